"""The commands of `qnodectl` that show a running node, and change nothing.

Large modules are imported where they are used, so `qnodectl status` answers at once.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qnode.cli.exits import EXIT_DEGRADED, EXIT_OK
from qnode.cli.printing import echo
from qnode.cli.shown import fitted_lines, print_table, show_screen, table_of
from qnode.cli.where import Where, node_of, of_link
from qnode.cli.width import columns
from qnode.operate.blocks.row import KEPT_BLOCKS
from qnode.operate.control.client import (
    ask_blocks,
    ask_events,
    ask_exchanges,
    ask_status,
    decode_status,
    follow_status,
)

if TYPE_CHECKING:
    from qnode.distill.check_table import Finding
    from qnode.operate.status.model import NodeStatus

# On a narrower terminal `qnodectl checks` omits the description of each check.
CHECKS_WITH_MEANING_COLUMNS = 120


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object with everything.")
@click.pass_obj
def status(where: Where, as_json: bool) -> int:
    """Show the state of the node; exits with 1 when it is degraded."""
    from qnode.operate.status.troubles import troubles

    raw = ask_status(where.path, patience_s=where.patience_s)
    node = of_link(decode_status(raw), where.link)
    if as_json:
        import msgspec

        shown = msgspec.json.encode(node) if where.link else bytes(raw)
        echo(msgspec.json.format(shown, indent=2))
    else:
        show_screen(node)
    return EXIT_DEGRADED if troubles(node) else EXIT_OK


@click.command()
@click.option(
    "--interval", default=1.0, type=click.FloatRange(0.1, 60.0), help="Seconds between two updates."
)
@click.option(
    "--count", default=0, type=click.IntRange(min=0), help="Stop after this many updates (0: never)."
)
@click.pass_obj
def watch(where: Where, interval: float, count: int) -> int:
    """Show the status repeatedly, until Ctrl-C."""
    from itertools import islice

    from qnode.operate.status.screen import status_lines

    followed = follow_status(where.path, interval_s=interval, patience_s=where.patience_s)
    looks = (of_link(node, where.link) for node in islice(followed, count or None))
    if not sys.stdout.isatty():
        for node in looks:
            if not echo("\n".join([*fitted_lines(status_lines(node)), ""])):
                break
        return EXIT_OK
    from rich.live import Live
    from rich.text import Text

    with Live(auto_refresh=False, screen=False) as live:
        for node in looks:
            live.update(Text("\n".join(fitted_lines(status_lines(node)))), refresh=True)
    return EXIT_OK


@click.command()
@click.option("--interval", default=0.5, type=click.FloatRange(0.1, 60.0), help="Seconds between two pages.")
@click.option("--count", default=0, type=click.IntRange(min=0), help="Stop after this many pages (0: never).")
@click.pass_obj
def align(where: Where, interval: float, count: int) -> int:
    """Show live rates, visibility and folded histograms at Bob's site, until Ctrl-C.

    For whoever adjusts the optics. Plain text; on a terminal each page replaces the one before.
    """
    from itertools import islice

    from qnode.operate.status.bench import bench_lines

    followed = follow_status(where.path, interval_s=interval, patience_s=where.patience_s)
    clear = "\x1b[H\x1b[2J" if sys.stdout.isatty() else ""
    for node in islice(followed, count or None):
        view = of_link(node, where.link) if where.link else node.each_link[0]
        if not echo(clear + "\n".join([*bench_lines(view), ""])):
            break
    return EXIT_OK


@click.command()
@click.pass_obj
def keys(where: Where) -> int:
    """Show the numbers of keys: in the store, delivered, void and expired."""
    from qnode.operate.events.line import printable
    from qnode.operate.status.screen import keys_rows
    from qnode.operate.status.troubles import why_no_key

    node = node_of(where)
    table = table_of(node, "", "chunks", "")
    for what, number, meaning in keys_rows(node):
        table.add_row(what, number, printable(meaning))
    print_table(table)
    reason = why_no_key(node)
    if reason is not None:
        echo(f"no key: {printable(reason)}")
    return EXIT_OK


@click.command()
@click.argument("name", required=False)
@click.pass_obj
def devices(where: Where, name: str | None) -> int:
    """Show all devices, or everything about one device: what is wrong, its figures, its last bytes."""
    from qnode.operate.status.screen import device_detail, device_line, exchange_lines

    node = node_of(where)
    if name is None:
        for device in node.devices:
            echo("\n".join(fitted_lines([device_line(device, node.at)])))
        return EXIT_OK
    found = [device for device in node.devices if device.name == name]
    if not found:
        known = ", ".join(device.name for device in node.devices) or "none"
        raise click.UsageError(f"no device {name} (devices: {known})")
    echo("\n".join(device_detail(found[0], node.at)))
    exchanges = ask_exchanges(where.path, name, link=where.link, patience_s=where.patience_s)
    echo("\n".join(exchange_lines(exchanges, columns())))
    return EXIT_OK


@click.command()
@click.argument("name")
@click.option(
    "--output",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="The transcript, a new file.",
)
@click.pass_obj
def doctor(where: Where, name: str, output: Path) -> int:
    """Write the last bytes to and from the device NAME as a transcript, for a test of its driver.

    The file begins in the middle of the conversation, where the record does. `qnode driver record` writes a
    whole one, of a device that no node uses. Exit 1: there are no bytes.
    """
    import time

    from qnode.emulate.transcript import Said, write_transcript

    exchanges = ask_exchanges(where.path, name, link=where.link, patience_s=where.patience_s)
    if not exchanges:
        echo(
            f"{name}: no bytes are recorded: they are key material, or do not pass through qnode's transports"
        )
        return EXIT_DEGRADED
    if output.exists():
        raise click.UsageError(f"{output} is there already; name another file")
    since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(exchanges[0].at))
    remark = f"{name}, the last bytes since {since}: > sent to the device, < from it."
    try:
        write_transcript(output, (Said(one.sent, one.data) for one in exchanges), remark)
    except OSError as error:
        raise click.UsageError(f"{output}: {error.strerror}") from None
    echo(f"{output}: {sum(len(one.data) for one in exchanges):,} bytes")
    return EXIT_OK


@click.command()
@click.option("--count", default=50, type=click.IntRange(1, 1000), help="Number of events to show.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@click.pass_obj
def events(where: Where, count: int, as_json: bool) -> int:
    """Show the latest events of the log."""
    import msgspec

    from qnode.operate.events.line import render_dated_line

    for event in ask_events(where.path, count, patience_s=where.patience_s):
        echo(msgspec.json.encode(event) if as_json else render_dated_line(event))
    return EXIT_OK


@click.command()
@click.option("--count", default=50, type=click.IntRange(1, KEPT_BLOCKS), help="Number of blocks to show.")
@click.option("--csv", "as_csv", is_flag=True, help="Every public figure, as CSV with a line of names.")
@click.pass_obj
def blocks(where: Where, count: int, as_csv: bool) -> int:
    """Show the outcomes of the latest blocks since the start of the node."""
    from qnode.operate.status.screen import BLOCK_COLUMNS, block_cells

    if as_csv:
        from qnode.operate.blocks.table_file import HEADER, csv_lines

        decided = ask_blocks(where.path, count, link=where.link, patience_s=where.patience_s)
        echo((HEADER.decode() + csv_lines(decided)).rstrip("\n"))
        return EXIT_OK
    node = node_of(where)
    table = table_of(node, *BLOCK_COLUMNS)
    for block in ask_blocks(where.path, count, link=where.link, patience_s=where.patience_s):
        table.add_row(*block_cells(block, node.at))
    print_table(table)
    return EXIT_OK


@click.command()
@click.pass_obj
def checks(where: Where) -> int:
    """Show the plausibility checks of the last corrected block, and the monitors; exit 1 if one failed."""
    from qnode.distill.check_table import BY_NAME
    from qnode.monitors.table import MONITOR_BY_NAME

    node = node_of(where)
    found = node.quantum.checks
    failed = sum(not one.plausible for one in found)
    if found:
        echo(f"block {node.quantum.checks_of_block}: {failed} of {len(found)} checks failed")
        meanings = {name: check.what for name, check in BY_NAME.items()}
        _show_findings(node, "check", [(one.check, one) for one in found], meanings)
    else:
        echo("no block was corrected since the node was started")
    if node.monitors:
        tripped = sum(not one.plausible for one in node.monitors.values())
        echo(f"devices: {tripped} of {len(node.monitors)} monitors are outside their limits")
        known = {place: MONITOR_BY_NAME.get(one.check) for place, one in node.monitors.items()}
        meanings = {place: one.what for place, one in known.items() if one is not None}
        _show_findings(node, "monitor", list(node.monitors.items()), meanings)
        failed += tripped
    return EXIT_DEGRADED if failed else EXIT_OK


def _show_findings(
    node: "NodeStatus", title: str, found: "list[tuple[str, Finding]]", meanings: dict[str, str]
) -> None:
    """Print one table; ``meanings``: what is measured, by the name in the first column."""
    from qnode.operate.events.line import printable

    headings = (title, "value", "plausible", "verdict", "measures")
    shown = headings if columns() >= CHECKS_WITH_MEANING_COLUMNS else headings[:-1]
    table = table_of(node, *shown)
    for name, one in found:
        verdict = "ok" if one.plausible else f"WARN {printable(one.points_to)}"
        cells = (printable(name), f"{one.value:.6g}", one.limits, verdict, meanings.get(name, ""))
        table.add_row(*cells[: len(shown)])
    print_table(table)
