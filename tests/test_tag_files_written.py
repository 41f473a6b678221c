"""What is written in an open format is read back: exactly, or to half a step of the format."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from tag_files_support import markers_of, read, tags_of

from qnode.cli.tags import tags as tags_command
from qnode.errors import ConfigError
from qnode.tags.formats import WRITABLE, TagFileBlock, open_tag_file, write_tag_file

Numbered = list[tuple[int, int]]
LAST_PS = 69 * 3600 * 10**12


def block(tags: Numbered, markers: Numbered) -> TagFileBlock:
    columns = [
        (np.array([time for time, _ in some], np.int64), np.array([number for _, number in some], np.int16))
        for some in (tags, markers)
    ]
    return TagFileBlock(*columns[0], *columns[1])


def ordered(least: int, most: int, latest_ps: int = LAST_PS) -> st.SearchStrategy[Numbered]:
    """Tags in order of time, some close to each other and some hours apart."""
    gaps = st.one_of(st.integers(0, 10**6), st.integers(0, latest_ps // 30))
    tags = st.lists(st.tuples(gaps, st.integers(least, most)), max_size=30)

    def placed(drawn: Numbered) -> Numbered:
        times = np.cumsum([gap for gap, _ in drawn], dtype=np.int64).tolist()
        return list(zip(times, [number for _, number in drawn], strict=True))

    return tags.map(placed)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tags")


def written(
    folder: Path, name: str, blocks: list[TagFileBlock], period_ps: float | None = None
) -> TagFileBlock:
    path = folder / f"tags.{name}"
    path.unlink(missing_ok=True)
    write_tag_file(path, blocks, name, period_ps)
    file = open_tag_file(path, name)
    got = read(file)
    assert file.summary.truncated == ""
    return got


def in_pieces(tags: Numbered, markers: Numbered, n: int) -> list[TagFileBlock]:
    """Return blocks of ``n`` tags, the markers with the tags of their time."""
    starts = [0, *(tags[i][0] for i in range(n, len(tags), n)), 2**62]
    return [
        block(
            [tag for tag in tags if first <= tag[0] < end], [one for one in markers if first <= one[0] < end]
        )
        for first, end in pairwise(starts)
    ]


@pytest.mark.parametrize(
    ("name", "least", "most"), [("ptu", 0, 64), ("qutag", 0, 99), ("npy", -7, 32_767), ("csv", -7, 32_767)]
)
@given(data=st.data(), n=st.integers(1, 10))
def test_tags_are_read_back_as_they_were(
    folder: Path, name: str, least: int, most: int, data: st.DataObject, n: int
) -> None:
    tags = data.draw(ordered(least, most))
    numbers = {"ptu": st.integers(1, 15), "qutag": st.sampled_from([100, 104, 203])}
    markers = data.draw(ordered(0, 0)) if name in numbers else []
    markers = [(time, data.draw(numbers[name])) for time, _ in markers]
    got = written(folder, name, in_pieces(tags, markers, n))
    assert tags_of(got) == tags
    assert markers_of(got) == markers


@pytest.mark.parametrize(("name", "step_ps"), [("a1", 3.90625), ("a1-swapped", 3.90625), ("tdc1", 2000)])
@given(tags=ordered(1, 4, latest_ps=30 * 3600 * 10**12).filter(bool), n=st.integers(1, 10))
def test_tags_are_read_back_to_half_a_step(
    folder: Path, name: str, step_ps: float, tags: Numbered, n: int
) -> None:
    if name == "tdc1":
        tags = [(time // 10**4, number) for time, number in tags]
    got = written(folder, name, in_pieces(tags, [], n))
    assert got.channels.tolist() == [number for _, number in tags]
    turns = 2**54 * 1000 // 256 if name != "tdc1" else 2**62
    lead = tags[0][0] // turns * turns if tags else 0
    apart = got.times_ps - np.array([time - lead for time, _ in tags], np.int64)
    assert np.abs(apart).max(initial=0) <= step_ps / 2 + 0.5


@given(
    tags=ordered(1, 64),
    markers=ordered(1, 15),
    n=st.integers(1, 10),
    period_ps=st.sampled_from([12_495.52, 1e6 / 3, 5e5]),
)
def test_t3_tags_are_read_back_to_half_a_step_of_dtime(
    folder: Path, tags: Numbered, markers: Numbered, n: int, period_ps: float
) -> None:
    got = written(folder, "ptu", in_pieces(tags, markers, n), period_ps)
    step_ps = -(-period_ps // 32_767)
    assert got.channels.tolist() == [number for _, number in tags]
    assert (
        np.abs(got.times_ps - np.array([time for time, _ in tags], np.int64)).max(initial=0)
        <= step_ps / 2 + 1
    )
    assert got.marker_numbers.tolist() == [number for _, number in markers]
    assert np.all(np.array([time for time, _ in markers], np.int64) - got.marker_times_ps <= period_ps + 1)


def test_tags_of_a_block_out_of_order_are_written_in_order_where_the_format_wants_it(folder: Path) -> None:
    tags = [(10**9, 1), (3, 2), (10**12, 3)]
    for name in ("ptu", "tdc1"):
        got = written(folder, name, [block(tags, [])])
        assert got.channels.tolist() == [2, 1, 3]
    assert tags_of(written(folder, "qutag", [block(tags, [])])) == tags


@pytest.mark.parametrize(
    ("name", "blocks", "said"),
    [
        ("ptu", [block([(5, 65)], [])], "channel 65 or 65: .ptu has 0 to 64 only"),
        ("ptu", [block([], [(5, 16)])], "marker 16 or 16: .ptu has 1 to 15 only"),
        ("ptu", [block([(-5, 1)], [])], "-5 ps: .ptu has times from 0 on"),
        ("ptu", [block([(10**9, 1)], []), block([(3, 1)], [])], "a tag of a wrap that has passed"),
        ("qutag", [block([(5, 100)], [])], "channels 100 to 100: the format has 0 to 99"),
        ("qutag", [block([], [(5, 7)])], "markers {7}: a quTAG has 100, 101"),
        ("a1", [block([(5, 0)], [])], "channels 0 to 0: the format has 1 to 4"),
        ("a1", [block([(5, 1), (10 * 3600 * 10**12, 1)], [])], "no tag for more than 9 hours"),
        ("tdc1", [block([(5, 5)], [])], "channels 5 to 5: the format has 1 to 4"),
        ("tdc1", [block([(10**9, 1)], []), block([(3, 1)], [])], "in order of time only"),
        ("csv", [block([], [(5, 1)])], "the format has no markers"),
        ("npy", [block([], [(5, 1)])], "the format has no markers"),
    ],
)  # fmt: skip
def test_what_a_format_cannot_hold_is_refused_and_nothing_is_left(
    tmp_path: Path, name: str, blocks: list[TagFileBlock], said: str
) -> None:
    path = tmp_path / "tags"
    with pytest.raises(ConfigError, match="tags: ") as caught:
        write_tag_file(path, blocks, name)
    assert said in str(caught.value)
    assert not path.exists()


def test_a_file_that_is_there_an_unknown_format_or_an_idle_period_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tags"
    path.write_bytes(b"mine")
    with pytest.raises(ConfigError, match="File exists"):
        write_tag_file(path, [], "csv")
    assert path.read_bytes() == b"mine"
    with pytest.raises(
        ConfigError, match="cannot be written as 'ttbin'; possible are " + ", ".join(WRITABLE)
    ):
        write_tag_file(path, [], "ttbin")
    with pytest.raises(ConfigError, match="a sync period is written into ptu files only"):
        write_tag_file(path, [], "csv", 5.0)
    with pytest.raises(ConfigError, match="sync period: expected 1 to 1000000000 ps, got 0"):
        write_tag_file(tmp_path / "new", [], "ptu", 0.0)
    with pytest.raises(ConfigError, match="channel 0: T3 records hold no sync"):
        write_tag_file(tmp_path / "new", [block([(5, 0)], [])], "ptu", 5.0)


def test_a_written_file_is_its_owners_and_an_interrupted_one_goes(tmp_path: Path) -> None:
    def broken() -> Iterator[TagFileBlock]:
        yield block([(5, 1)], [])
        raise KeyboardInterrupt

    path = tmp_path / "tags"
    with pytest.raises(KeyboardInterrupt):
        write_tag_file(path, broken(), "qutag")
    assert not path.exists()
    write_tag_file(path, [block([(5, 1)], [])], "qutag")
    assert path.stat().st_mode & 0o777 == 0o600


def test_the_command_copies_a_file_into_another_format(tmp_path: Path) -> None:
    original, copy = tmp_path / "tags.qutag", tmp_path / "tags.PTU"
    tags = [(72 * 3600 * 10**12 + i * 10**6, i % 2 + 1) for i in range(100)]
    write_tag_file(original, [block(tags, [])])
    result = CliRunner().invoke(tags_command, [str(original), "--copy", str(copy)], standalone_mode=False)
    assert result.return_value == 0, result.output
    assert tags_of(read(open_tag_file(copy))) == tags
    for name, said in ("tags.PTU", "File exists"), ("tags.timeres", "cannot be written as 'timeres'"):
        arguments = [str(original), "--copy", str(tmp_path / name)]
        result = CliRunner().invoke(tags_command, arguments, standalone_mode=False)
        assert (result.return_value, said in result.stderr) == (64, True), result.stderr
