"""The audit in a file that `qnodectl audit export` has written: each line must be exactly what it writes.

An export does not list its chains: each is what its lines say, and ends with the last of them. So only an
anchor, or a head that was kept elsewhere, shows that lines are missing at the end.
"""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, get_args
from uuid import UUID

import msgspec
from msgspec import Struct

from qnode.audit.entries import CHAIN_ID_BYTES, Chain, ChainPruned, Entry, Head, Row, encode, genesis
from qnode.audit.export import json_line, told
from qnode.audit.file import anchored_head
from qnode.audit.verify import AuditUnreadable

_BEGIN = b'{"chain":"'
_NO_HASH = b""
_NO_CHAIN = bytes(CHAIN_ID_BYTES)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_KINDS: dict[str, type[Entry]] = {str(kind.__struct_config__.tag): kind for kind in get_args(Entry)}
_PRUNED = str(ChainPruned.__struct_config__.tag)
# What a line that is not an entry makes of the steps that read it.
_UNREADABLE = (msgspec.MsgspecError, ArithmeticError, ValueError, KeyError, TypeError, RecursionError)


class _Line(Struct, frozen=True):
    """What shows where in the file a chain lies."""

    chain: str
    number: int
    event: str
    hash: str
    last: str = ""


def is_export(path: Path) -> bool:
    """Tell whether a file begins as an export does."""
    try:
        with path.open("rb") as file:
            return file.read(len(_BEGIN)) == _BEGIN
    except OSError:
        return False


class ExportSource:
    """The audit in the export at ``path``, compared with the anchor at ``anchor`` if that is given."""

    def __init__(self, path: Path, anchor: Path | None) -> None:
        self.name = str(path)
        self.anchored = None if anchor is None else anchored_head(anchor)
        self._path = path
        self._places: list[tuple[int, int]] = []  # in bytes, where the lines of each chain begin and end
        self._chains = self._look()

    def chains(self) -> list[Chain]:
        """Return the chains in the order of the file; one whose lines others divide is there twice."""
        return self._chains

    def rows(self, chain: Chain) -> Iterator[Row]:
        """Yield the entries of a chain in order."""
        place, end = self._places[chain.chain]
        with self._opened() as file:
            file.seek(place)
            while place < end:
                line = file.readline()
                place += len(line)
                yield _row(chain.chain_id.hex(), line)

    def _look(self) -> list[Chain]:
        """Read the file once for its chains, and for what was pruned of them."""
        runs: list[Chain] = []
        pruned: dict[tuple[bytes, int], bytes] = {}
        place = 0
        with self._opened() as file:
            for data in file:
                present = runs[-1].chain_id if runs else _NO_CHAIN
                chain_id, number, digest = present, 0, _NO_HASH
                try:
                    line = msgspec.json.decode(data, type=_Line)
                    chain_id, number, digest = (
                        bytes.fromhex(line.chain),
                        line.number,
                        bytes.fromhex(line.hash),
                    )
                    if line.event == _PRUNED:
                        last = Head.parse(line.last)
                        pruned[last.chain_id, last.number] = last.hash
                except _UNREADABLE:
                    pass  # `rows` says so, after the entries before it
                if not runs or chain_id != present:
                    gone = max(0, number - 1)
                    start = _NO_HASH if gone else genesis(chain_id)
                    runs.append(Chain(len(runs), chain_id, gone, start, number, digest))
                    self._places.append((place, place))
                place += len(data)
                self._places[-1] = (self._places[-1][0], place)
                runs[-1] = msgspec.structs.replace(runs[-1], last_number=number, last_hash=digest)
        return [
            msgspec.structs.replace(one, pruned_hash=pruned.get((one.chain_id, one.pruned_number), _NO_HASH))
            if one.pruned_number
            else one
            for one in runs
        ]

    def _opened(self) -> Any:
        try:
            return self._path.open("rb")
        except OSError as error:
            raise AuditUnreadable(f"{self._path}: {error.strerror}") from None


def _row(chain_id: str, line: bytes) -> Row:
    """Return the entry of a line of a chain. Raises AuditUnreadable."""
    if not line.endswith(b"\n"):
        raise AuditUnreadable("the next line is torn: its end is missing")
    try:
        fields = msgspec.json.decode(line)
        entry = _entry(fields)
        row = Row(entry.number, encode(entry), bytes.fromhex(fields["hash"]))
        if json_line(told(chain_id, row, entry)).encode() + b"\n" == line:
            return row
    except _UNREADABLE:
        pass
    raise AuditUnreadable("the next line is not one that qnodectl audit export writes")


def _entry(fields: dict[str, Any]) -> Entry:
    """Return the entry that was told as ``fields``."""
    at_us = (datetime.fromisoformat(fields["at"]) - _EPOCH) // _MICROSECOND
    values: list[Any] = [fields["event"], fields["number"], at_us]
    for name in _KINDS[fields["event"]].__struct_fields__[2:]:
        value = fields[name]
        if name == "key_ids":
            value = b"".join(UUID(one).bytes for one in value)
        elif name == "heads":
            value = [Head.parse(one) for one in value]
        elif name in ("last", "lost", "head") and value is not None:
            value = Head.parse(value)
        values.append(value)
    entry: Entry = msgspec.convert(values, Entry)
    return entry
