"""The reader's spool: each entry is a `Record`, a reading or a gap."""

from pathlib import Path

from qnode.spool import SEGMENT_ENTRIES, Spool, last_entry
from qnode.spool import read_after as entries_after
from qnode.testbed.sensors.record import DamagedRecord, Reason, Record, decode, encode


def last_record(folder: Path) -> Record | None:
    """Return the last whole record of the spool in ``folder``; None if there is none."""
    entry = last_entry(folder)
    return decode(entry.content) if entry else None


def read_after(folder: Path, after: int, limit: int) -> list[Record]:
    """Return up to ``limit`` records with numbers above ``after``, like `qnode.spool.read_after`."""
    records = []
    for entry in entries_after(folder, after, limit):
        try:
            records.append(decode(entry.content))
        except DamagedRecord:  # of a reader of another version: a hole, like what the disk damaged
            continue
    return records


class ReadingSpool(Spool):
    """The one writer of the spool of readings in ``folder``; ``last_record`` has the numbers so far.

    Raises:
        SpoolUnusable: another process writes it, or its files are of another version.
        OSError: the disk refuses.
    """

    def __init__(self, folder: Path, most_bytes: int, segment_entries: int = SEGMENT_ENTRIES) -> None:
        super().__init__(folder, most_bytes, segment_entries)
        self.last_record = decode(self.last.content) if self.last else None

    def put(
        self, time_ms: int, values: tuple[float, ...] = (), reason: Reason | None = None, polls: int = 1
    ) -> Record:
        """Append a reading, or ``polls`` missed polls with their ``reason``.

        Raises:
            OSError: the disk refused; the spool is as before.
        """
        last = self.last_record
        readings = (last.readings if last else 0) + (reason is None)
        missed = (last.missed if last else 0) + (0 if reason is None else polls)

        def made(number: int) -> bytes:
            return encode(
                Record(
                    number=number,
                    time_ms=time_ms,
                    readings=readings,
                    missed=missed,
                    reason=reason,
                    polls=polls,
                    values=values,
                )
            )

        self.last_record = decode(self._append(made).content)
        return self.last_record
