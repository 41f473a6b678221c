"""`qnodectl audit`: verify and export the record of deliveries, of a running node or of a file."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qnode.cli.printing import echo
from qnode.cli.where import Where
from qnode.operate.control.client import NoAnswer, ask_audit

if TYPE_CHECKING:
    from qnode.audit.entries import AuditPage, Chain, Head, Row
    from qnode.audit.verify import Source

EXIT_OK, EXIT_FOUND = 0, 1


class NodeSource:
    """The audit of a running node, asked in pages."""

    def __init__(self, where: Where) -> None:
        self._where = where
        self.name = str(where.path)
        page = self._page(0, 0)
        self._chains, self.anchored = page.chains, page.anchored

    def _page(self, chain: int, after: int) -> "AuditPage":
        where = self._where
        return ask_audit(where.path, chain, after, link=where.link, patience_s=where.patience_s)

    def chains(self) -> "list[Chain]":
        """Return the chains as they were at the first page."""
        return self._chains

    def rows(self, chain: "Chain") -> "Iterator[Row]":
        """Yield the entries of a chain up to its head at the first page."""
        after = chain.pruned_number
        while after < chain.last_number:
            page = self._page(chain.chain, after)
            if not page.rows or page.rows[0].number > after + 1:
                now = {one.chain: one.pruned_number for one in page.chains}
                if now.get(chain.chain, chain.last_number) > after:
                    raise NoAnswer("old entries were deleted while they were read; ask again")
            if not page.rows:
                return
            for row in page.rows:
                if row.number > chain.last_number:
                    return
                yield row
            after = page.rows[-1].number


@click.group()
def audit() -> None:
    """Verify or export the record of who got which key when, and of what operators changed.

    It never contains a key. docs/audit.md describes it.
    """


def _source_options(command: Callable[..., Any]) -> Callable[..., Any]:
    of_file = click.option(
        "--from",
        "file",
        type=click.Path(path_type=Path, dir_okay=False),
        help="The database of a stopped node, a backup of it, or a whole export, instead of a running node.",
    )
    anchor = click.option(
        "--anchor",
        type=click.Path(path_type=Path, dir_okay=False),
        help="With --from: the anchor or the witness of this store, to find entries missing at the end.",
    )
    return of_file(anchor(command))


@audit.command()
@_source_options
@click.option("--expect", multiple=True, metavar="HEAD", help="A head that an earlier verification printed.")
@click.pass_obj
def verify(where: Where, file: Path | None, anchor: Path | None, expect: tuple[str, ...]) -> int:
    """Verify every entry, the chains, and the anchor; exit 1 if anything is missing or was changed."""
    from qnode.audit.verify import verify as verify_audit
    from qnode.operate.events.line import printable

    heads = [_head(text) for text in expect]
    with _source(where, file, anchor) as source:
        result = verify_audit(source, heads)
    for finding in result.findings:
        echo(f"{printable(source.name)}: {printable(str(finding))}")
    verdict = f"{len(result.findings)} findings" if result.findings else "nothing is missing or changed"
    echo(f"{result.entries:,} entries in {result.chains} chains: {verdict}")
    if not result.anchored:
        echo("no anchor to compare with: entries missing at the end are not found (--anchor)")
    elif result.unanchored:
        echo(f"the last {result.unanchored:,} entries are newer than the anchor")
    if result.head is not None:
        echo(f"head {result.head}")
    if result.peer_head is not None:
        echo(f"head of the other site when they last met {result.peer_head}")
    return EXIT_FOUND if result.findings else EXIT_OK


@audit.command()
@_source_options
@click.option("--since", metavar="TIME", help="From this time on: 2026-11-30 or 2026-11-30T16:00, UTC.")
@click.option("--until", metavar="TIME", help="Before this time.")
@click.option("--sae", help="Only entries that name this encryptor.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line (the default).")
@click.option("--csv", "as_csv", is_flag=True, help="CSV with a line of names.")
@click.pass_obj
def export(
    where: Where,
    file: Path | None,
    anchor: Path | None,
    since: str | None,
    until: str | None,
    sae: str | None,
    as_json: bool,
    as_csv: bool,
) -> int:
    """Print entries, oldest first, as they are read."""
    from qnode.audit.export import Wanted, csv_lines, json_lines, selected

    if as_json and as_csv:
        raise click.UsageError("--json or --csv, not both")
    wanted = Wanted(_time_us("--since", since), _time_us("--until", until), sae)
    with _source(where, file, anchor) as source:
        for line in (csv_lines if as_csv else json_lines)(selected(source, wanted)):
            if not echo(line):
                break
    return EXIT_OK


@contextmanager
def _source(where: Where, file: Path | None, anchor: Path | None) -> "Iterator[Source]":
    """Open what is asked for. Raises NoAnswer if it cannot be read, or not to its end."""
    import msgspec

    from qnode.audit.export_file import ExportSource, is_export
    from qnode.audit.file import FileSource
    from qnode.audit.verify import AuditUnreadable

    if file is None:
        if anchor is not None:
            raise click.UsageError("--anchor is for --from: a running node compares with its own anchor")
        yield NodeSource(where)
        return
    try:
        if is_export(file):
            yield ExportSource(file, anchor)
            return
        with FileSource(file, anchor) as source:
            yield source
    except AuditUnreadable as error:
        raise NoAnswer(str(error)) from None
    except (msgspec.MsgspecError, ValueError, OverflowError) as error:  # also a time of no calendar
        raise NoAnswer(f"{file}: an entry cannot be read ({error}); run qnodectl audit verify") from None


def _head(text: str) -> "Head":
    from qnode.audit.entries import Head

    try:
        return Head.parse(text)
    except ValueError:
        raise click.UsageError(
            f"--expect {text!r}: expected CHAIN:NUMBER:HASH, as verify prints it"
        ) from None


def _time_us(option: str, text: str | None) -> int | None:
    if text is None:
        return None
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise click.UsageError(f"{option} {text!r}: expected a time like 2026-11-30T16:00") from None
    return round((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * 1e6)
