"""The spool for entries of any length: what a crash, damage or a full spool leaves of them."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qnode.spool import (
    HEAD_BYTES,
    HEADER_BYTES,
    LEAST_SEGMENTS,
    Spool,
    acknowledged,
    last_entry,
    read_after,
    segment_path,
    segments,
    set_acknowledged,
)

MOST_BYTES = 1 << 20


def contents(folder: Path, after: int = 0) -> list[bytes]:
    return [entry.content for entry in read_after(folder, after, 1_000_000)]


def size(folder: Path) -> int:
    return sum(segment_path(folder, first).stat().st_size for first in segments(folder))


@given(st.lists(st.binary(max_size=300), max_size=20), st.integers(1, 7))
def test_entries_of_any_length_come_back_in_order(
    tmp_path_factory: pytest.TempPathFactory, entries: list[bytes], segment_entries: int
) -> None:
    folder = tmp_path_factory.mktemp("spool")
    spool = Spool(folder, MOST_BYTES, segment_entries)
    numbers = [spool.append(entry).number for entry in entries]
    spool.close()
    assert numbers == list(range(1, len(entries) + 1))
    assert contents(folder) == entries
    last = last_entry(folder)
    assert (last.content if last else None) == (entries[-1] if entries else None)
    assert contents(folder, after=len(entries) // 2) == entries[len(entries) // 2 :]


@settings(max_examples=60)
@given(st.data())
def test_a_changed_byte_costs_its_own_entry_only(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("spool")
    entries = data.draw(st.lists(st.binary(min_size=1, max_size=60), min_size=2, max_size=6))
    spool = Spool(folder, MOST_BYTES)
    for entry in entries:
        spool.append(entry)
    spool.close()
    path = segment_path(folder, 1)
    raw = bytearray(path.read_bytes())
    hit = data.draw(st.integers(HEADER_BYTES, len(raw) - 1))
    raw[hit] ^= data.draw(st.integers(1, 255))
    path.write_bytes(raw)
    ends, end = [], HEADER_BYTES
    for entry in entries:
        end += HEAD_BYTES + len(entry)
        ends.append(end)
    damaged = next(n for n, end in enumerate(ends) if hit < end)
    assert contents(folder) == [entry for n, entry in enumerate(entries) if n != damaged]
    again = Spool(folder, MOST_BYTES)
    following = again.append(b"new")
    again.close()
    # The damaged last entry is cut off, and its number was never seen by anybody.
    assert following.number == len(entries) + (damaged != len(entries) - 1)


@settings(max_examples=40)
@given(st.lists(st.integers(0, 1000), max_size=60), st.integers(8_000, 20_000))
def test_a_spool_never_outgrows_its_bound_and_keeps_the_newest(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], most_bytes: int
) -> None:
    folder = tmp_path_factory.mktemp("spool")
    spool = Spool(folder, most_bytes)
    for length in lengths:
        spool.append(bytes(length))
        assert size(folder) <= most_bytes
    kept = contents(folder)
    assert kept == [bytes(length) for length in lengths[len(lengths) - len(kept) :]]
    dropped = sum(HEAD_BYTES + length for length in lengths[: len(lengths) - len(kept)])
    # No more is dropped than the bound demands, but for one segment.
    assert not dropped or size(folder) > most_bytes - 2 * (most_bytes // LEAST_SEGMENTS)
    spool.close()


def test_an_entry_longer_than_a_segment_is_refused_and_nothing_changes(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 4096)
    spool.append(b"one")
    with pytest.raises(ValueError, match=r"an entry of 2000 bytes; the most is 992"):
        spool.append(bytes(2000))
    assert spool.append(bytes(992)).number == 2
    assert contents(tmp_path) == [b"one", bytes(992)]
    spool.close()


def test_no_number_comes_again_after_the_last_segments_were_lost(tmp_path: Path) -> None:
    spool = Spool(tmp_path, MOST_BYTES, segment_entries=5)
    for n in range(12):
        spool.append(b"%d" % n)
    spool.close()
    set_acknowledged(tmp_path, 12)
    for first in segments(tmp_path)[1:]:
        segment_path(tmp_path, first).unlink()
    again = Spool(tmp_path, MOST_BYTES, segment_entries=5)
    assert again.append(b"new").number == 13
    assert contents(tmp_path, acknowledged(tmp_path)) == [b"new"]
    again.close()
