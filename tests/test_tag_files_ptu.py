"""PicoQuant's files of each kind are read as they were written: overflows, markers, and how they end."""

import struct
from dataclasses import replace
from fractions import Fraction
from itertools import accumulate
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tag_file_writers import INPUT, LONGEST_COUNT, MARKER, PTU_KINDS, SYNC, Event, PtuKind, header
from tag_files_support import markers_of, read, tags_of

from qnode.errors import ConfigError
from qnode.tags.formats import TagFileBlock, open_tag_file
from qnode.tags.formats.ticks import Unit, to_ps

KINDS = pytest.mark.parametrize("kind", PTU_KINDS.values(), ids=PTU_KINDS)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tags") / "tags.ptu"


@st.composite
def events_of(draw: st.DrawFn, kind: PtuKind) -> list[Event]:
    """Events in the order of the device: mostly close to each other, some many wraps apart."""
    kinds = [INPUT] * 6 + [MARKER] + [SYNC] * kind.has_sync
    close = st.integers(0, 1000)
    gaps = st.one_of(close, close, close, st.integers(0, kind.most_ticks_apart))
    drawn = draw(
        st.lists(st.tuples(gaps, st.sampled_from(kinds), st.integers(0, kind.dtimes - 1)), max_size=60)
    )
    numbers = {INPUT: st.integers(1, kind.inputs), MARKER: st.integers(1, 15), SYNC: st.just(0)}
    ticks = accumulate(gap for gap, _, _ in drawn)
    return [
        Event(what, draw(numbers[what]), at, dtime if what == INPUT else 0)
        for at, (_, what, dtime) in zip(ticks, drawn, strict=True)
    ]


def exact_ps(kind: PtuKind, event: Event) -> Fraction:
    ticks = event.ticks
    if kind is PTU_KINDS["picoharp-t2"] and event.kind == MARKER:
        ticks -= ticks % kind.wrap % 16
    return ticks * unit_ps(kind.ticks_s) + event.dtime * unit_ps(kind.dtime_s)


def unit_ps(unit_s: float) -> Fraction:
    ps = Fraction(unit_s) * 10**12
    return Fraction(round(ps)) if abs(ps - round(ps)) < 1e-9 else ps


def agrees(kind: PtuKind, block: TagFileBlock, events: list[Event]) -> None:
    for got, wanted in (
        (tags_of(block), [event for event in events if event.kind != MARKER]),
        (markers_of(block), [event for event in events if event.kind == MARKER]),
    ):
        assert [number for _, number in got] == [event.number for event in wanted]
        for (time_ps, _), event in zip(got, wanted, strict=True):
            apart = (time_ps - exact_ps(kind, event) + 2**63) % 2**64 - 2**63
            assert abs(apart) <= Fraction(501, 1000), event


@KINDS
@given(data=st.data(), most_records=st.sampled_from([1, 7, 20, 1 << 20]))
def test_a_file_of_each_kind_is_read_as_it_was_written(
    path: Path, kind: PtuKind, data: st.DataObject, most_records: int
) -> None:
    events = data.draw(events_of(kind))
    content, n_records = kind.content(events)
    path.write_bytes(content)
    file = open_tag_file(path)
    agrees(kind, read(file, most_records), events)
    n_markers = sum(event.kind == MARKER for event in events)
    assert (file.format, file.device, file.summary.truncated) == ("ptu", "Emulated Harp", "")
    assert (file.summary.records, file.summary.wraps) == (n_records, n_records - len(events))
    assert sum(file.summary.markers.values()) == n_markers


@pytest.mark.parametrize("name", ["hydraharp-2-t2", "multiharp-t2"])
@pytest.mark.parametrize("count", [127, 128, 129, 2**16, LONGEST_COUNT])
def test_an_overflow_may_carry_any_count(path: Path, name: str, count: int) -> None:
    kind = PTU_KINDS[name]
    events = [Event(INPUT, 1, 5), *(Event(INPUT, 2, count * 2**25 + i) for i in range(20))]
    content, n_records = kind.content(events)
    path.write_bytes(content)
    agrees(kind, read(open_tag_file(path)), events)
    assert n_records == len(events) + 1


@KINDS
@pytest.mark.parametrize("said", [0, 2, 100])
def test_the_length_of_a_file_counts_not_what_its_header_says(path: Path, kind: PtuKind, said: int) -> None:
    events = [Event(INPUT, 1, ticks) for ticks in (5, 8, kind.wrap + 7)]
    content, n_records = kind.content(events, records_said=said)
    path.write_bytes(content)
    file = open_tag_file(path)
    agrees(kind, read(file), events)
    assert file.summary.truncated == f"the header says {said} records, the file has {n_records}"


@KINDS
@pytest.mark.parametrize("cut", [1, 2, 3])
def test_a_file_cut_in_its_last_record_is_read_up_to_it(path: Path, kind: PtuKind, cut: int) -> None:
    events = [Event(INPUT, 1, ticks) for ticks in (5, 8, kind.wrap + 7)]
    content, n_records = kind.content(events)
    path.write_bytes(content[:-cut])
    file = open_tag_file(path)
    agrees(kind, read(file), events[:-1])
    assert file.summary.records == n_records - 1
    assert f"ends in mid-record: {4 - cut} of 4 bytes after record {n_records - 1}" in file.summary.truncated
    assert f"the header says {n_records} records, the file has {n_records - 1}" in file.summary.truncated


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("hydraharp-2-t2", 0x80000000 | 16 << 25), ("multiharp-t2", 0x80000000 | 62 << 25),
        ("multiharp-t3", 0x80000000), ("hydraharp-1-t3", 0x80000000 | 16 << 25),
        ("picoharp-t2", 5 << 28), ("picoharp-t3", 5 << 28), ("picoharp-t3", 7), ("picoharp-t3", 0xF0100000),
    ],
)  # fmt: skip
def test_a_file_is_read_up_to_a_record_that_means_nothing(path: Path, name: str, word: int) -> None:
    kind = PTU_KINDS[name]
    events = [Event(INPUT, 1, ticks) for ticks in range(20)]
    content, _ = kind.content(events)
    place = len(content) - 4 * 7
    path.write_bytes(content[:place] + struct.pack("<I", word) + content[place + 4 :])
    file = open_tag_file(path)
    agrees(kind, read(file), events[:13])
    assert file.summary.records == 13
    assert file.summary.truncated == f"record 13 is of no known kind: {word:#010x}"


def test_t3_tags_of_one_sync_need_not_ascend(path: Path) -> None:
    kind = PTU_KINDS["multiharp-t3"]
    events = [Event(INPUT, 1, 7, 30_000), Event(INPUT, 2, 7, 10), Event(INPUT, 1, 8, 3)]
    path.write_bytes(kind.content(events)[0])
    block = read(open_tag_file(path))
    agrees(kind, block, events)
    assert np.diff(block.times_ps)[0] < 0


def test_times_stay_exact_in_a_measurement_of_69_hours(path: Path) -> None:
    kind = replace(PTU_KINDS["multiharp-t3"], ticks_s=1.0000347e-6)
    syncs = int(69 * 3600 / kind.ticks_s)
    events = [Event(INPUT, 1, syncs // 4 * quarter + quarter, quarter) for quarter in range(5)]
    path.write_bytes(kind.content(events)[0])
    file = open_tag_file(path)
    agrees(kind, read(file), events)
    assert file.summary.wraps > 200_000


@given(
    ticks=st.lists(st.integers(0, 2**62), min_size=1, max_size=20),
    unit=st.fractions(Fraction(1, 2**20), 10**9),
    dtimes=st.integers(0, 2**16 - 1),
    dtime_unit=st.fractions(0, 10**4),
)
def test_ticks_become_whole_picoseconds_without_an_error_that_adds_up(
    ticks: list[int], unit: Fraction, dtimes: int, dtime_unit: Fraction
) -> None:
    times = np.array(ticks, np.int64)
    to_ps(times, Unit(unit), np.full(len(ticks), dtimes, np.uint16), Unit(dtime_unit))
    for time_ps, number in zip(times.tolist(), ticks, strict=True):
        exact = number * unit + dtimes * dtime_unit
        # 64 bits of fraction are right to half of the last for each tick.
        allowed = Fraction(501, 1000) + Fraction(number, 2**65)
        assert abs((time_ps - exact + 2**63) % 2**64 - 2**63) <= allowed


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"PQTTTR", "ends within its header"),
        (header({"A": 1})[:-1], "ends within its header, without Header_End"),
        (header({"A": "text"}).replace(struct.pack("<Q", 8), struct.pack("<Q", 2**40)), "A has 10995"),
        (header({"A": 1}).replace(struct.pack("<I", 0x10000008), bytes(4)), "'A' has the type 0x00000000"),
        (header({"A": 1}), "TTResultFormat_TTTRRecType is missing"),
        (header({"TTResultFormat_TTTRRecType": 7}), "TTResultFormat_TTTRRecType is 0x00000007"),
        (header({"TTResultFormat_TTTRRecType": 0x00010207}), "MeasDesc_GlobalResolution is None"),
        *(
            (
                header({"TTResultFormat_TTTRRecType": 0x00010207, "MeasDesc_GlobalResolution": value}),
                f"MeasDesc_GlobalResolution is {value}",
            )
            for value in (0.0, -1e-12, float("nan"), float("inf"), 1.0)
        ),
    ],
)  # fmt: skip
def test_a_header_that_cannot_be_used_is_refused_with_what_is_wrong(
    path: Path, content: bytes, said: str
) -> None:
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=f"^{path}: .*{said}"):
        open_tag_file(path)
