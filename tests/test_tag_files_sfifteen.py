"""S-Fifteen's files are read as they were written: patterns, rollover events, wraps, all forms of a word."""

from fractions import Fraction
from itertools import accumulate
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tag_file_writers import Pattern, a1_content, tdc1_content
from tag_files_support import read, tags_of

from qnode.tags.formats import open_tag_file

A1_FORMS = ["a1", "a1-swapped", "a0", "a2"]
INPUTS = st.frozensets(st.integers(1, 4), min_size=1)
A1_UNIT_PS = Fraction(1000, 256)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tags") / "tags"


def patterns(gaps: st.SearchStrategy[int], first: st.SearchStrategy[int]) -> st.SearchStrategy[list[Pattern]]:
    """Events with such gaps between them, one in four of them a rollover event."""
    event = st.tuples(gaps, INPUTS, st.sampled_from([False, False, False, True]))

    def placed(first: int, drawn: list[tuple[int, frozenset[int], bool]]) -> list[Pattern]:
        ticks = accumulate((gap for gap, _, _ in drawn), initial=first)
        return [Pattern(at, inputs, told) for at, (_, inputs, told) in zip(ticks, drawn, strict=False)]

    return st.builds(placed, first, st.lists(event, min_size=1, max_size=40))


def clicks(events: list[Pattern]) -> list[tuple[int, int]]:
    return [
        (event.ticks, number) for event in events if not event.is_rollover for number in sorted(event.inputs)
    ]


def round_half_up(value: Fraction) -> int:
    return int((value + Fraction(1, 2)) // 1)


@pytest.mark.parametrize("form", A1_FORMS)
@given(
    events=patterns(
        st.one_of(st.integers(-30_000_000, 30_000_000), st.integers(0, 2**53 - 1)),
        st.one_of(st.integers(2**30, 2**54 - 1), st.integers(2**54 - 30_000_000, 2**54 - 1)),
    ),
    most_records=st.sampled_from([1, 7, 1 << 20]),
)
def test_a1_words_of_each_form_give_a_tag_for_each_input_that_fired(
    path: Path, form: str, events: list[Pattern], most_records: int
) -> None:
    path.write_bytes(a1_content(events, form))
    file = open_tag_file(path, form)
    got = tags_of(read(file, most_records))
    wanted = [(round_half_up(ticks * A1_UNIT_PS), number) for ticks, number in clicks(events)]
    assert got == [((ps + 2**63) % 2**64 - 2**63, number) for ps, number in wanted]
    assert (file.unit_ps, file.summary.records, file.summary.truncated) == (3.90625, len(events), "")
    assert file.summary.wraps == sum(event.is_rollover for event in events)


@pytest.mark.parametrize("form", A1_FORMS)
def test_an_a1_tag_late_over_a_wrap_lies_before_it_also_at_the_beginning_of_a_file(
    path: Path, form: str
) -> None:
    before, after = [2**54 - 256, 2**54 + 512, 2**54 - 512], [256, -512, 768]
    for ticks in (before, after):
        path.write_bytes(a1_content([Pattern(one, frozenset({1})) for one in ticks], form))
        times_ps = read(open_tag_file(path, form), 1).times_ps
        assert times_ps.tolist() == [int(one * A1_UNIT_PS) for one in ticks]


@given(
    events=patterns(st.integers(1, 2**27 - 1), st.integers(0, 2**27 - 1)),
    most_records=st.sampled_from([1, 7, 99]),
)
def test_tdc1_words_give_a_tag_for_each_input_that_fired(
    path: Path, events: list[Pattern], most_records: int
) -> None:
    path.write_bytes(tdc1_content(events))
    file = open_tag_file(path, "tdc1")
    assert tags_of(read(file, most_records)) == [(ticks * 2000, number) for ticks, number in clicks(events)]
    assert (file.summary.records, file.summary.truncated) == (len(events), "")
    assert file.summary.wraps == events[-1].ticks // 2**27


def steady(n: int, ticks_apart: int) -> list[Pattern]:
    return [Pattern(2**40 + i * ticks_apart + i * i % 97, frozenset({i % 4 + 1})) for i in range(n)]


@pytest.mark.parametrize("form", [*A1_FORMS, "tdc1"])
@pytest.mark.parametrize("ticks_apart", [500, 10_000, 1_000_000])
def test_each_form_is_recognised_by_its_content(path: Path, form: str, ticks_apart: int) -> None:
    events = steady(200, ticks_apart)
    path.write_bytes(tdc1_content(events) if form == "tdc1" else a1_content(events, form))
    assert open_tag_file(path).format == form


@pytest.mark.parametrize(
    ("form", "n_bytes"), [("a1", 8), ("a1-swapped", 8), ("a0", 18), ("a2", 17), ("tdc1", 4)]
)
def test_a_file_cut_at_any_byte_of_its_last_record_is_read_up_to_it(
    path: Path, form: str, n_bytes: int
) -> None:
    events = [Pattern(ticks, frozenset({1})) for ticks in (5, 70, 800)]
    content = tdc1_content(events) if form == "tdc1" else a1_content(events, form)
    for cut in range(1, n_bytes):
        path.write_bytes(content[:-cut])
        file = open_tag_file(path, form)
        assert len(read(file).times_ps) == 2
        assert (
            file.summary.truncated == f"ends in mid-record: {n_bytes - cut} of {n_bytes} bytes after record 2"
        )


@pytest.mark.parametrize("form", ["a0", "a2"])
def test_a_line_that_is_no_word_ends_the_reading(path: Path, form: str) -> None:
    events = steady(5, 1000)
    good, other = a1_content(events[:3], form), a1_content(events[3:], form)
    path.write_bytes(good + b"x" + other[1:])
    file = open_tag_file(path, form)
    assert len(read(file).times_ps) == file.summary.records == 3
    assert file.summary.truncated.startswith("record 3 is no hexadecimal word: b'x")
