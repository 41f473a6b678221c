"""Entries of an audit as text: JSON, CSV, or lines for people. Hostile text in them stays text."""

import csv
import io
import json
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Any, NamedTuple
from uuid import UUID

from qnode.audit.entries import KEY_ID_BYTES, Entry, Head, KeyDelivered, Row, decode, fields_of, kind_of
from qnode.audit.verify import Source

COLUMNS = (
    *("chain", "number", "at", "event", "door", "side", "sae", "peers", "size_bits", "key_ids"),
    *("what", "subject", "details", "because", "heads", "lost", "last", "kme_id", "head", "hash"),
)
# Spreadsheets compute what begins like this.
_FORMULA = ("=", "+", "-", "@")


class Wanted(NamedTuple):
    """Which entries are wanted: times in microseconds, ``sae``: every entry that names it."""

    since_us: int | None = None
    until_us: int | None = None
    sae: str | None = None

    def has(self, entry: Entry) -> bool:
        """Return whether an entry is wanted."""
        if self.since_us is not None and entry.at_us < self.since_us:
            return False
        if self.until_us is not None and entry.at_us >= self.until_us:
            return False
        if self.sae is None:
            return True
        if isinstance(entry, KeyDelivered):
            return self.sae == entry.sae or self.sae in entry.peers
        return self.sae == getattr(entry, "subject", None)


def selected(source: Source, wanted: Wanted) -> Iterator[dict[str, Any]]:
    """Yield the wanted entries, by field; only one is held at a time."""
    for chain in source.chains():
        chain_id = chain.chain_id.hex()
        for row in source.rows(chain):
            entry = decode(row.content)
            if wanted.has(entry):
                yield told(chain_id, row, entry)


def json_lines(entries: Iterable[dict[str, Any]]) -> Iterator[str]:
    """Yield each entry as one JSON object, in ASCII."""
    return map(json_line, entries)


def json_line(entry: dict[str, Any]) -> str:
    """Return an entry as one JSON object, in ASCII."""
    return json.dumps(entry, separators=(",", ":"))


def csv_lines(entries: Iterable[dict[str, Any]]) -> Iterator[str]:
    """Yield a line of names, then each entry; lists are joined by blanks."""
    yield ",".join(COLUMNS)
    for entry in entries:
        line = io.StringIO()
        csv.writer(line, lineterminator="").writerow([_cell(entry.get(name)) for name in COLUMNS])
        yield line.getvalue()


def told(chain_id: str, row: Row, entry: Entry) -> dict[str, Any]:
    """Return an entry by field, as it is exported."""
    fields = {name: _value(name, value) for name, value in fields_of(entry).items()}
    del fields["number"], fields["at_us"]
    at = datetime.fromtimestamp(entry.at_us // 10**6, UTC).replace(microsecond=entry.at_us % 10**6)
    return {
        "chain": chain_id,
        "number": row.number,
        "at": at.isoformat(timespec="microseconds"),
        "event": kind_of(entry),
        **fields,
        "hash": row.hash.hex(),
    }


def _value(name: str, value: Any) -> Any:
    if name == "key_ids":
        parts = range(0, len(value), KEY_ID_BYTES)
        return [str(UUID(bytes=value[i : i + KEY_ID_BYTES])) for i in parts]
    if isinstance(value, Head):
        return str(value)
    if isinstance(value, tuple):
        return [_value("", one) for one in value]
    return value


def _cell(value: Any) -> str:
    if value is None:
        return ""
    text = " ".join(map(str, value)) if isinstance(value, list) else str(value)
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return f"'{text}" if text.startswith(_FORMULA) else text
