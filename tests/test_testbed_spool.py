"""The spool: its records' bytes, and what stays after a crash at any byte."""

import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qnode.spool import (
    HEAD_BYTES,
    HEADER_BYTES,
    SpoolUnusable,
    acknowledged,
    identity,
    segment_path,
    segments,
    set_acknowledged,
)
from qnode.testbed.sensors.power_meter import NAMES
from qnode.testbed.sensors.record import RECORD_BYTES, DamagedRecord, Reason, Record, decode, encode
from qnode.testbed.sensors.spool import ReadingSpool, last_record, read_after

MOST_BYTES = 1 << 20
ENTRY_BYTES = HEAD_BYTES + RECORD_BYTES
floats = st.floats(width=32, allow_nan=False)
readings = st.lists(floats, min_size=len(NAMES), max_size=len(NAMES)).map(tuple)


@st.composite
def records(draw: st.DrawFn) -> Record:
    reason: Reason | None = draw(st.sampled_from([None, "timeout", "not_running"]))
    return Record(
        number=draw(st.integers(1, 2**63)),
        time_ms=draw(st.integers(0, 2**60)),
        readings=draw(st.integers(0, 2**60)),
        missed=draw(st.integers(0, 2**60)),
        reason=reason,
        polls=1 if reason is None else draw(st.integers(1, 2**32 - 1)),
        values=draw(readings) if reason is None else (),
    )


def values(n: int) -> tuple[float, ...]:
    return tuple(float(n) for _ in NAMES)


def numbers(folder: Path, after: int = 0) -> list[int]:
    return [record.number for record in read_after(folder, after, 1_000_000)]


@given(records())
def test_a_record_is_the_same_after_writing_and_reading(record: Record) -> None:
    assert decode(encode(record)) == record


@given(records(), st.integers(0, RECORD_BYTES - 1), st.integers(1, 255))
def test_a_record_with_a_changed_byte_is_refused(record: Record, place: int, change: int) -> None:
    raw = bytearray(encode(record))
    raw[place] ^= change
    with pytest.raises(DamagedRecord):
        decode(bytes(raw))


@given(records(), st.integers(0, RECORD_BYTES - 1))
def test_a_torn_record_is_refused(record: Record, length: int) -> None:
    with pytest.raises(DamagedRecord):
        decode(encode(record)[:length])


def test_a_spool_goes_on_after_a_cut_at_every_byte(tmp_path: Path) -> None:
    folder = tmp_path / "spool"
    with_records = ReadingSpool(folder, MOST_BYTES, segment_entries=3)
    for n in range(5):
        with_records.put(100 * n, values(n))
    with_records.close()
    last = segment_path(folder, segments(folder)[-1])
    whole, first = last.read_bytes(), segments(folder)[-1]
    for length in range(len(whole)):
        last.write_bytes(whole[:length])
        kept = first - 1 + max(0, length - HEADER_BYTES) // ENTRY_BYTES
        spool = ReadingSpool(folder, MOST_BYTES, segment_entries=3)
        assert numbers(folder) == list(range(1, kept + 1)), length
        appended = spool.put(900, reason="timeout")
        assert (appended.number, appended.readings, appended.missed) == (kept + 1, kept, 1), length
        spool.close()
        assert numbers(folder) == list(range(1, kept + 2)), length
        for segment in segments(folder):
            if segment > first:
                segment_path(folder, segment).unlink()


@settings(max_examples=30)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("append"), st.integers(1, 5)),
            st.tuples(st.just("crash"), st.binary(max_size=2 * ENTRY_BYTES)),
            st.tuples(st.just("acknowledge"), st.integers(0, 10)),
        ),
        max_size=30,
    )
)
def test_no_number_is_given_twice_and_nothing_unacknowledged_is_lost(
    tmp_path_factory: pytest.TempPathFactory, deeds: list[tuple[str, int | bytes]]
) -> None:
    folder = tmp_path_factory.mktemp("spool")
    spool = ReadingSpool(folder, MOST_BYTES, segment_entries=4)
    written: dict[int, Record] = {}
    for deed, amount in deeds:
        if deed == "append":
            assert isinstance(amount, int)
            for _ in range(amount):
                record = spool.put(100 * len(written), values(len(written)))
                assert record.number not in written
                written[record.number] = record
        elif deed == "crash":  # what a torn write may leave behind the last record
            assert isinstance(amount, bytes)
            spool.close()
            with (segment_path(folder, segments(folder)[-1])).open("ab") as file:
                file.write(amount)
            spool = ReadingSpool(folder, MOST_BYTES, segment_entries=4)
        else:
            assert isinstance(amount, int)
            set_acknowledged(folder, max(acknowledged(folder), len(written) - amount))
        known = acknowledged(folder)
        assert read_after(folder, known, 1000) == [record for n, record in written.items() if n > known]
    last = last_record(folder)
    assert (last.readings if last else 0) == len(written)
    spool.close()


def test_acknowledged_segments_are_deleted_and_the_number_of_readings_stays(tmp_path: Path) -> None:
    spool = ReadingSpool(tmp_path, MOST_BYTES, segment_entries=3)
    for n in range(12):
        spool.put(100 * n, values(n))
        set_acknowledged(tmp_path, n + 1)
    assert segments(tmp_path) == [7, 10]
    spool.close()
    again = ReadingSpool(tmp_path, MOST_BYTES, segment_entries=3)
    assert again.put(5000, values(1)).readings == 13
    assert identity(tmp_path) == again.identity
    again.close()


def test_a_full_spool_drops_its_oldest_segment(tmp_path: Path) -> None:
    spool = ReadingSpool(tmp_path, 4 * (HEADER_BYTES + 10 * ENTRY_BYTES), segment_entries=10)
    for n in range(55):
        spool.put(100 * n, values(n))
    assert segments(tmp_path) == [21, 31, 41, 51]
    assert numbers(tmp_path) == list(range(21, 56))
    spool.close()


def test_a_damaged_record_between_whole_ones_is_a_hole(tmp_path: Path) -> None:
    spool = ReadingSpool(tmp_path, MOST_BYTES)
    for n in range(5):
        spool.put(100 * n, values(n))
    spool.close()
    path = segment_path(tmp_path, 1)
    raw = bytearray(path.read_bytes())
    raw[HEADER_BYTES + 2 * ENTRY_BYTES + 40] ^= 1
    path.write_bytes(raw)
    again = ReadingSpool(tmp_path, MOST_BYTES)
    assert numbers(tmp_path) == [1, 2, 4, 5]
    assert again.put(900, values(1)).number == 6
    again.close()


def test_only_one_reader_writes_a_spool(tmp_path: Path) -> None:
    spool = ReadingSpool(tmp_path, MOST_BYTES)
    with pytest.raises(SpoolUnusable, match="another process"):
        ReadingSpool(tmp_path, MOST_BYTES)
    spool.close()


def test_a_segment_of_another_version_is_refused(tmp_path: Path) -> None:
    ReadingSpool(tmp_path, MOST_BYTES).close()
    (segment_path(tmp_path, 1)).write_bytes(b"something else  " + bytes(10))
    with pytest.raises(SpoolUnusable, match="not a segment of this version"):
        ReadingSpool(tmp_path, MOST_BYTES)


@contextmanager
def largest_file(length: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (length, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_write_that_the_disk_refuses_leaves_the_spool_as_it_was(tmp_path: Path) -> None:
    spool = ReadingSpool(tmp_path, MOST_BYTES)
    spool.put(0, values(0))
    for short in (0, 1, ENTRY_BYTES - 1):
        with (
            largest_file(HEADER_BYTES + ENTRY_BYTES + short),
            pytest.raises(OSError, match=r"wrote|too large"),
        ):
            spool.put(100, values(1))
        assert numbers(tmp_path) == [1]
    assert spool.put(200, values(2)).number == 2
    assert numbers(tmp_path) == [1, 2]
    spool.close()


WRITER = """
import sys
from pathlib import Path
from qnode.testbed.sensors.power_meter import NAMES
from qnode.testbed.sensors.spool import ReadingSpool
spool = ReadingSpool(Path(sys.argv[1]), 1 << 20, segment_entries=50)
while True:
    print(spool.put(0, (1.0,) * len(NAMES)).number, flush=True)
"""


def test_a_killed_writer_loses_no_record(tmp_path: Path) -> None:
    said = 0
    for _ in range(3):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True
        ) as writer:
            assert writer.stdout is not None
            before = said
            for line in writer.stdout:
                said = int(line)
                if said > before + 120:
                    break
            writer.send_signal(signal.SIGKILL)
            said = max([said, *(int(line) for line in writer.stdout if line.endswith("\n"))])
        found = numbers(tmp_path)
        assert found[-1] >= said
        assert found == list(range(1, found[-1] + 1))
        said = found[-1]
