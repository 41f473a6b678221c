"""The `qnodectl` command: show a running node through its control socket, and restore it.

Exit codes are an interface: 0 ok, 1 degraded, 2 not running, 3 cannot tell, 64 usage. Large modules are
imported where they are used, so `qnodectl status` answers at once.
"""

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qnode.cli.audit import audit
from qnode.cli.backup import backup
from qnode.cli.interrupted import end_interrupted
from qnode.cli.pki import pki
from qnode.cli.preshared import preshared
from qnode.cli.printing import echo, say
from qnode.cli.rollback import rollback
from qnode.cli.saes import RELOAD_PATIENCE_S, add_sae, limit_sae, remove_sae
from qnode.cli.version import version_option
from qnode.cli.width import columns, fitted
from qnode.operate.blocks.row import KEPT_BLOCKS
from qnode.operate.control.client import (
    LONGEST_PRESHARED_BYTES,
    NoAnswer,
    NodeNotRunning,
    ask_blocks,
    ask_calibrate,
    ask_events,
    ask_exchanges,
    ask_reload,
    ask_restore,
    ask_self_test,
    ask_status,
    decode_status,
    follow_status,
)

if TYPE_CHECKING:
    from rich.table import Table

    from qnode.distill.check_table import Finding
    from qnode.operate.status.model import NodeStatus

EXIT_OK, EXIT_DEGRADED, EXIT_NOT_RUNNING, EXIT_CANNOT_TELL, EXIT_USAGE = 0, 1, 2, 3, 64
RESTORE_PATIENCE_S = 60.0
SELF_TEST_PATIENCE_S = 60.0
SOCKETS = Path("/run/qnode")
SOCKET_NAME = "control.sock"
# On a narrower terminal `qnodectl checks` omits the description of each check.
CHECKS_WITH_MEANING_COLUMNS = 120
# Columns of tables that are aligned to the right.
_NUMBERS = frozenset(
    {
        *("chunks", "keys", "refused", "keys/min", "value", "plausible"),
        *("block", "ago", "s", "sifted", "QBER Z", "f_EC", "phase error", "secret"),
    }
)


class Where:
    """The socket, the time to wait for it, and the link; an empty link means all of them, or the first."""

    def __init__(self, path: Path | None, patience_s: float, link: str = "") -> None:
        self._path = path
        self.patience_s = patience_s
        self.link = link

    @property
    def path(self) -> Path:
        """Return the socket: from the option or the environment, else the only one of this machine.

        Raises:
            NodeNotRunning: there is no socket.
            NoAnswer: there are several sockets.
        """
        if self._path is not None:
            return self._path
        found = sorted(SOCKETS.glob(f"*/{SOCKET_NAME}"))
        if not found:
            raise NodeNotRunning(
                f"no control socket under {SOCKETS}; start the service (systemctl start qnode@alice), "
                "or name its socket with --socket"
            )
        if len(found) > 1:
            raise NoAnswer(f"several nodes run here, name one with --socket: {', '.join(map(str, found))}")
        return found[0]


@click.group()
@click.option(
    "--socket",
    "path",
    type=click.Path(path_type=Path),
    envvar="QNODE_CONTROL_SOCKET",
    help="Control socket of the node (default: $QNODE_CONTROL_SOCKET, or the only one below /run/qnode).",
)
@click.option(
    "--patience", default=5.0, type=click.FloatRange(min=0.01), help="Seconds to wait for an answer."
)
@click.option("--link", default="", help="Ask about this link of a site with several (default: the first).")
@version_option
@click.pass_context
def qnodectl(context: click.Context, path: Path | None, patience: float, link: str) -> None:
    """Show a running node of a QKD link.

    Exit codes: 0 ok, 1 degraded, 2 not running, 3 cannot tell, 64 usage.
    """
    context.obj = Where(path, patience, link)


qnodectl.add_command(pki)
qnodectl.add_command(preshared)
qnodectl.add_command(backup)
qnodectl.add_command(rollback)


@qnodectl.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object with everything.")
@click.pass_obj
def status(where: Where, as_json: bool) -> int:
    """Show the state of the node; exits with 1 when it is degraded."""
    from qnode.operate.status.model import troubles

    raw = ask_status(where.path, patience_s=where.patience_s)
    node = _of_link(decode_status(raw), where.link)
    if as_json:
        import msgspec

        shown = msgspec.json.encode(node) if where.link else bytes(raw)
        echo(msgspec.json.format(shown, indent=2))
    else:
        _show_screen(node)
    return EXIT_DEGRADED if troubles(node) else EXIT_OK


@qnodectl.command()
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
    looks = (_of_link(node, where.link) for node in islice(followed, count or None))
    if not sys.stdout.isatty():
        for node in looks:
            if not echo("\n".join([*_fitted(status_lines(node)), ""])):
                break
        return EXIT_OK
    from rich.live import Live
    from rich.text import Text

    with Live(auto_refresh=False, screen=False) as live:
        for node in looks:
            live.update(Text("\n".join(_fitted(status_lines(node)))), refresh=True)
    return EXIT_OK


@qnodectl.command()
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
        view = _of_link(node, where.link) if where.link else node.each_link[0]
        if not echo(clear + "\n".join([*bench_lines(view), ""])):
            break
    return EXIT_OK


@qnodectl.command()
@click.pass_obj
def keys(where: Where) -> int:
    """Show the numbers of keys: in the store, delivered, void and expired."""
    from qnode.operate.events.line import printable
    from qnode.operate.status.model import why_no_key
    from qnode.operate.status.screen import keys_rows

    node = _node(where)
    table = _table(node, "", "chunks", "")
    for what, number, meaning in keys_rows(node):
        table.add_row(what, number, printable(meaning))
    _print(table)
    reason = why_no_key(node)
    if reason is not None:
        echo(f"no key: {printable(reason)}")
    return EXIT_OK


@qnodectl.group(invoke_without_command=True)
@click.pass_context
def saes(context: click.Context) -> int:
    """Show, add, limit and remove encryptors; without a command: the same as `saes list`."""
    if context.invoked_subcommand is None:
        return _list_saes(context.obj)
    return EXIT_OK


saes.add_command(add_sae)
saes.add_command(remove_sae)
saes.add_command(limit_sae)


@saes.command("list")
@click.pass_obj
def list_saes(where: Where) -> int:
    """Show the encryptors, the keys delivered to them, and their limits."""
    return _list_saes(where)


def _list_saes(where: Where) -> int:
    from qnode.operate.events.line import printable
    from qnode.operate.status.screen import age, count

    node = _node(where)
    table = _table(node, "SAE", "at KME", "shares keys with", "keys", "last key", "refused", "keys/min")
    for sae in node.etsi014.saes:
        last = "never" if sae.last_key_at is None else f"{age(sae.last_key_at, node.at)} ago"
        delivered, refused = count(sae.keys_delivered_total), count(sae.requests_refused_total)
        peers = printable(", ".join(sae.peers))
        limit = "any" if sae.keys_per_minute is None else count(sae.keys_per_minute)
        table.add_row(printable(sae.sae_id), printable(sae.kme_id), peers, delivered, last, refused, limit)
    _print(table)
    return EXIT_OK


@qnodectl.command("reload")
@click.pass_obj
def reload_site(where: Where) -> int:
    """Read the site's file and certificates again, as `systemctl reload`; exit 1: nothing has changed."""
    reloaded = ask_reload(where.path, patience_s=max(where.patience_s, RELOAD_PATIENCE_S))
    if reloaded.fault is not None:
        say(f"the node continues as before: {reloaded.fault}")
        return EXIT_DEGRADED
    say(f"applied: {', '.join(reloaded.applied) or 'no setting has changed; certificates are read again'}")
    if reloaded.waiting:
        say(f"waits for a restart: {', '.join(reloaded.waiting)}")
    return EXIT_OK


@qnodectl.command("selftest")
@click.pass_obj
def self_test(where: Where) -> int:
    """Have the node test its computations now; if one is wrong, the node ends, and this with exit 1."""
    tested = ask_self_test(where.path, patience_s=max(where.patience_s, SELF_TEST_PATIENCE_S))
    if tested.fault is not None:
        say(f"{tested.fault}; the node ends")
        return EXIT_DEGRADED
    say(f"passed in {tested.took_s:.2f} s: distillation, ciphers and hashes")
    return EXIT_OK


@qnodectl.command()
@click.argument("name", required=False)
@click.pass_obj
def devices(where: Where, name: str | None) -> int:
    """Show all devices, or everything about one device: what is wrong, its figures, its last bytes."""
    from qnode.operate.status.screen import device_detail, device_line, exchange_lines

    node = _node(where)
    if name is None:
        for device in node.devices:
            echo("\n".join(_fitted([device_line(device, node.at)])))
        return EXIT_OK
    found = [device for device in node.devices if device.name == name]
    if not found:
        known = ", ".join(device.name for device in node.devices) or "none"
        raise click.UsageError(f"no device {name} (devices: {known})")
    echo("\n".join(device_detail(found[0], node.at)))
    exchanges = ask_exchanges(where.path, name, link=where.link, patience_s=where.patience_s)
    echo("\n".join(exchange_lines(exchanges, columns())))
    return EXIT_OK


@qnodectl.command()
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


@qnodectl.command()
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


@qnodectl.command()
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
    node = _node(where)
    table = _table(node, *BLOCK_COLUMNS)
    for block in ask_blocks(where.path, count, link=where.link, patience_s=where.patience_s):
        table.add_row(*block_cells(block, node.at))
    _print(table)
    return EXIT_OK


@qnodectl.command()
@click.pass_obj
def checks(where: Where) -> int:
    """Show the plausibility checks of the last corrected block, and the monitors; exit 1 if one failed."""
    from qnode.distill.check_table import BY_NAME
    from qnode.monitors.table import MONITOR_BY_NAME

    node = _node(where)
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
    table = _table(node, *shown)
    for name, one in found:
        verdict = "ok" if one.plausible else f"WARN {printable(one.points_to)}"
        cells = (printable(name), f"{one.value:.6g}", one.limits, verdict, meanings.get(name, ""))
        table.add_row(*cells[: len(shown)])
    _print(table)


@qnodectl.command(context_settings={"ignore_unknown_options": True})
@click.argument("name")
@click.argument("command", metavar="hold|auto|VALUE")
@click.pass_obj
def calibrate(where: Where, name: str, command: str) -> int:
    """Let the controller NAME hold its setting, go on by itself, or hold VALUE (in its own unit).

    `qnodectl status` lists the controllers. Only root and the daemon's own user may do this.
    """
    from qnode.operate.status.screen import controller_line

    told = ask_calibrate(where.path, name, command, link=where.link, patience_s=where.patience_s)
    echo(f"{command}: " + controller_line(told, time.time()))
    return EXIT_OK


@qnodectl.command()
@click.argument("preshared_key", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def restore(where: Where, preshared_key: Path, yes: bool) -> int:
    """Void every key of this site and start again with a new PRESHARED_KEY (a file of mode 0600).

    Use it after a restore from a backup, or when the one-time pads are used up. Run it at both sites with
    the same file, which neither site has loaded before. Delete both copies when the link works again.
    """
    secret = _read_preshared(preshared_key)
    links = decode_status(ask_status(where.path, patience_s=where.patience_s)).each_link
    if not where.link and len(links) > 1:
        names = ", ".join(view.site.link for view in links)
        raise click.UsageError(f"name the link whose keys are voided with --link (links: {names})")
    node = _node(where)
    known = node.keys
    n_here = known.available_own + known.available_peer + known.prepared + known.assigned + known.stock
    if not yes:
        if not sys.stdin.isatty():
            raise click.UsageError("say --yes where nobody can be asked")
        question = f"{node.site.kme_id}: void all {n_here:,} chunks and load this pre-shared key?"
        click.confirm(question, abort=True)
    patience_s = max(where.patience_s, RESTORE_PATIENCE_S)
    done = ask_restore(where.path, secret, link=where.link, patience_s=patience_s)
    echo(
        f"{node.site.kme_id}: {done.void_chunks:,} chunks are void, {done.pads_send:,} one-time pads to send "
        f"and {done.pads_receive:,} to receive are loaded.\n"
        f"Run the same with the same file at {node.peer.kme_id}; delete the file at both when the link is up."
    )
    return EXIT_OK


qnodectl.add_command(audit)


def _read_preshared(path: Path) -> bytes:
    """Return the content of the file. Raises UsageError when it cannot be a pre-shared key."""
    try:
        if path.stat().st_mode & 0o077:
            raise click.UsageError(f"{path} can be read by others; run chmod 600 {path}")
        content = path.read_bytes()
    except OSError as error:
        raise click.UsageError(f"{path}: {error.strerror}") from None
    if len(content) > LONGEST_PRESHARED_BYTES:
        raise click.UsageError(
            f"{path}: {len(content):,} bytes, at most {LONGEST_PRESHARED_BYTES:,} are taken"
        )
    return content


def _node(where: Where) -> "NodeStatus":
    """Return the status of the node for the requested link, or for the first one."""
    node = decode_status(ask_status(where.path, patience_s=where.patience_s))
    return _of_link(node, where.link) if where.link else node.each_link[0]


def _of_link(node: "NodeStatus", link: str) -> "NodeStatus":
    """Return the status of ``link`` alone; of all links if it is empty."""
    if not link:
        return node
    try:
        return node.of_link(link)
    except KeyError:
        names = ", ".join(view.site.link for view in node.each_link)
        raise click.UsageError(f"no link {link} (links: {names})") from None


def _show_screen(node: "NodeStatus") -> None:
    """Print the status, warnings in colour on a terminal."""
    from qnode.operate.status.screen import Loud, status_lines

    for line in status_lines(node):
        for part in _fitted([line]):
            echo(click.style(part, fg="yellow", bold=True) if isinstance(line, Loud) else part)


def _fitted(lines: list[str]) -> list[str]:
    """Wrap lines that are wider than the terminal."""
    from qnode.operate.status.screen import PARTS_COLUMN

    return [part for line in lines for part in fitted(line, columns(), PARTS_COLUMN)]


def _table(node: "NodeStatus", *headings: str) -> "Table":
    """Return an empty table; its title states `simulated` for a simulated link."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from qnode.operate.status.screen import SIMULATED

    title = SIMULATED if node.simulated else None
    table = Table(box=SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False, collapse_padding=True)
    for heading in headings:
        is_number = heading in _NUMBERS
        shown = heading.replace(" ", "\n")  # narrow columns: several lines in a heading
        table.add_column(shown, justify="right" if is_number else "left", no_wrap=is_number)
    return table


def _print(table: "Table") -> None:
    from rich.console import Console

    # Text from outside is not markup.
    console = Console(markup=False, highlight=False, width=columns())
    with console.capture() as text:
        console.print(table)
    echo(text.get().rstrip())


def main() -> None:
    """Run the command line with the documented exit codes."""
    try:
        code = qnodectl.main(standalone_mode=False)
    except click.UsageError as error:
        error.show()
        code = EXIT_USAGE
    except NodeNotRunning as error:
        click.echo(f"not running: {error}", err=True)
        code = EXIT_NOT_RUNNING
    except NoAnswer as error:
        click.echo(f"cannot tell: {error}", err=True)
        code = EXIT_CANNOT_TELL
    except (click.Abort, KeyboardInterrupt):
        end_interrupted()
    sys.exit(code if isinstance(code, int) else EXIT_OK)


if __name__ == "__main__":
    main()
