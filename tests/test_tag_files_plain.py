"""Times and channels as arrays of numpy and as lines of text are read as they were written."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tag_files_support import read, tags_of

from qnode.errors import ConfigError
from qnode.tags.formats import TagFile, open_tag_file

TAGS = st.lists(
    st.tuples(st.integers(-(2**63) + 1, 2**63 - 1), st.integers(1 - 2**15, 2**15 - 1)), max_size=40
)
FEW = [(10**17, 1), (10**17 - 5, 0), (-3, 32_767)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tags")


def columns(
    tags: list[tuple[int, int]], channel: str = "<i2"
) -> "tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]":
    return np.array([time for time, _ in tags], "<i8"), np.array([number for _, number in tags], channel)


def write_fields(
    path: Path, tags: list[tuple[int, int]], names: str = "time_ps channel", kinds: str = "<i8 <i2"
) -> None:
    np.save(path, np.array(tags, list(zip(names.split(), kinds.split(), strict=True))))


def write_columns(path: Path, tags: list[tuple[int, int]]) -> None:
    np.save(path, np.array(tags, np.int64).reshape(-1, 2))


def write_archive(path: Path, tags: list[tuple[int, int]]) -> None:
    times, channels = columns(tags, "<i4")
    with path.open("wb") as file:
        np.savez_compressed(file, channels=channels, times_ps=times)


def write_pair(path: Path, tags: list[tuple[int, int]]) -> None:
    times, channels = columns(tags, "i1" if all(abs(number) < 128 for _, number in tags) else ">i4")
    np.save(path, times)
    np.save(path.with_name("channels.npy"), channels)


WRITERS = {
    "fields.npy": write_fields,
    "columns.npy": write_columns,
    "archive.npz": write_archive,
    "times_ps.npy": write_pair,
}


@pytest.mark.parametrize("name", WRITERS)
@given(tags=TAGS, most_records=st.sampled_from([1, 7, 1 << 20]))
def test_arrays_of_numpy_are_read_as_they_were_written(
    folder: Path, name: str, tags: list[tuple[int, int]], most_records: int
) -> None:
    path = folder / name
    WRITERS[name](path, tags)
    file = open_tag_file(path)
    assert tags_of(read(file, most_records)) == tags
    assert (file.format, file.summary.records, file.summary.truncated) == ("npy", len(tags), "")


@pytest.mark.parametrize("name", ["fields.npy", "columns.npy", "times_ps.npy"])
def test_an_array_cut_in_its_last_record_is_read_up_to_it(folder: Path, name: str) -> None:
    path = folder / name
    WRITERS[name](path, FEW)
    path.write_bytes(path.read_bytes()[:-1])
    file = open_tag_file(path)
    assert tags_of(read(file)) == FEW[:2]
    assert "3" in file.summary.truncated
    assert "2" in file.summary.truncated


def test_an_array_that_was_never_closed_is_read_to_its_end_and_said(folder: Path) -> None:
    path = folder / "open.npy"
    write_fields(path, FEW)
    path.write_bytes(path.read_bytes().replace(b"(3,)", b"(0,)"))
    file = open_tag_file(path)
    assert tags_of(read(file)) == FEW
    assert file.summary.truncated == "the header says 0 records, the file has 3"


def test_an_archive_that_is_damaged_within_is_not_to_be_relied_on(folder: Path) -> None:
    path = folder / "damaged.npz"
    tags = [(i * i, i % 100) for i in range(20_000)]
    write_archive(path, tags)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    file = open_tag_file(path)
    assert len(tags_of(read(file, 100))) < len(tags)
    assert file.summary.truncated.startswith("the archive is damaged, nothing of it can be relied on: ")


def damaged_at_each_byte(content: bytes, of_header: range) -> Iterator[bytes]:
    for at in of_header:
        for value in (0, ord("("), 0xFF, content[at] ^ 1):
            yield content[:at] + bytes([value]) + content[at + 1 :]


def test_damage_at_any_byte_of_a_header_is_told_in_one_line(folder: Path) -> None:
    told = set[str]()
    write_fields(folder / "fields.npy", FEW)
    write_archive(folder / "archive.npz", FEW)
    for name, part in (("fields.npy", slice(0, 128)), ("archive.npz", slice(-250, None))):
        path, content = folder / f"damaged-{name}", (folder / name).read_bytes()
        for damaged in damaged_at_each_byte(content, range(len(content))[part]):
            path.write_bytes(damaged)
            try:
                read(open_tag_file(path))
            except ConfigError as error:
                told.add(str(error))
    assert told
    assert all(map(str.isprintable, told))


@pytest.mark.parametrize("write", [write_columns, write_archive])
def test_a_channel_that_is_none_ends_the_reading(folder: Path, write: Any) -> None:
    path = folder / "other.npy"
    for channel in (-32_768, 32_768):
        write(path, [*FEW, (5, channel), (6, 1)])
        file = open_tag_file(path)
        assert tags_of(read(file)) == FEW
        assert file.summary.truncated == f"record 3 has channel {channel}; expected -32767 to 32767"


def refusal(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        open_tag_file(path)
    return str(caught.value)


def test_arrays_that_are_no_tags_are_refused_with_what_they_are(folder: Path) -> None:
    path = folder / "other.npy"
    for array, said in (
        (np.zeros((4, 2)), "got float64, shape (4, 2)"),
        (np.zeros((4, 3), np.int64), "got int64, shape (4, 3)"),
        (np.zeros((4, 2), np.int32), "got int32"),
        (np.asfortranarray(np.zeros((4, 2), np.int64)), "in order of columns"),
        (np.array(5), "got the shape ()"),
        (np.zeros(4, np.int64), "holds times only"),
    ):
        np.save(path, array)
        assert said in refusal(path), said
    write_fields(path, FEW, names="time_ns channel")
    assert "'time_ns' is in another unit; expected whole picoseconds" in refusal(path)
    path.write_bytes(b"\x93NUMPY\x01\x00")
    assert "cannot be read as an array of numpy" in refusal(path)
    with path.open("wb") as file:
        np.savez(file, a=np.zeros(3))
    assert "expected the arrays times_ps and channels; it has a" in refusal(path)
    path.write_bytes(path.read_bytes()[:60])
    assert "other.npy" in refusal(path)


def text(folder: Path, content: str) -> TagFile:
    path = folder / "tags.csv"
    path.write_text(content, newline="")
    return open_tag_file(path)


@given(
    tags=TAGS.filter(bool),
    most_records=st.sampled_from([1, 7, 1 << 20]),
    separator=st.sampled_from([",", ";", "\t", " ", " , ", "  "]),
    line_end=st.sampled_from(["\n", "\r\n", "\n\n", " \n# a remark\n"]),
    first=st.sampled_from(
        ["", "time_ps,channel\n", "# measured on Monday\n\n", "#1,2\ntime (ps); channel\r\n"]
    ),
)
def test_lines_of_text_are_read_as_they_were_written(
    folder: Path, tags: list[tuple[int, int]], most_records: int, separator: str, line_end: str, first: str
) -> None:
    file = text(folder, first + "".join(f"{time}{separator}{number}{line_end}" for time, number in tags))
    assert tags_of(read(file, most_records)) == tags
    assert (file.format, file.summary.records, file.summary.truncated) == ("csv", len(tags), "")


def test_a_line_of_names_may_say_that_the_channel_comes_first(folder: Path) -> None:
    assert tags_of(read(text(folder, "channel,time_ps\n1,500\n2,499\n"))) == [(500, 1), (499, 2)]


def test_text_longer_than_a_buffer_is_read_piece_by_piece(folder: Path) -> None:
    tags = [(i * 123_456_789_012, i % 9) for i in range(150_000)]
    file = text(folder, "".join(f"{time},{number}\n" for time, number in tags))
    assert tags_of(read(file)) == tags
    assert tags_of(read(file, 40_000)) == tags


@pytest.mark.parametrize("cut", range(1, 12))
def test_text_cut_in_its_last_line_is_read_up_to_it(folder: Path, cut: int) -> None:
    file = text(folder, "100,1\n200,2\n-123456,789\n"[:-cut])
    assert tags_of(read(file)) == [(100, 1), (200, 2)]
    assert file.summary.truncated.startswith("ends in mid-line after record 2: b'-")


@pytest.mark.parametrize(
    "line",
    [
        "1.5,2", "12", "12,", ",3", "12,3,4", "1e5,3", "12,-32768", "12,32768", "9223372036854775808,1",
        "12 3 4", "--1,2", "x", "12,,3",
    ],
)  # fmt: skip
def test_a_line_that_is_no_tag_ends_the_reading(folder: Path, line: str) -> None:
    file = text(folder, f"100,1\n200,2\n{line}\n300,3\n")
    assert tags_of(read(file)) == [(100, 1), (200, 2)]
    assert file.summary.truncated == f"no time and channel after record 2: {line.encode()!r}"
    assert file.summary.records == 2


def test_an_endless_line_ends_the_reading(folder: Path) -> None:
    file = text(folder, "100,1\n" + "9" * 3_000_000)
    assert tags_of(read(file)) == [(100, 1)]
    assert file.summary.truncated.startswith("no time and channel after record 1: b'999")


@pytest.mark.parametrize("name", ["time_ns", "time (s)", "Time [us]", "t_ms", "time/fs", "seconds"])
def test_text_in_another_unit_is_refused(folder: Path, name: str) -> None:
    path = folder / "tags.csv"
    path.write_text(f"{name},channel\n100,1\n")
    assert "is in another unit" in refusal(path)
