"""Tag files of time taggers are recognised and read, and what is wrong with one is said."""

import os
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tag_files_support import markers_of, read, tags_of

from qnode.errors import ConfigError
from qnode.tags.formats import FORMATS, open_tag_file

TIMES_PS = st.integers(0, 80 * 3600 * 10**12)


def qutag_bytes(records: list[tuple[int, int]]) -> bytes:
    return bytes(40) + b"".join(struct.pack("<qh", *record) for record in records)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tags")


@given(
    records=st.lists(st.tuples(TIMES_PS, st.sampled_from([0, 1, 5, 32, 99, 100, 104, 200, 203]))),
    most_records=st.integers(1, 5),
)
def test_a_qutag_file_gives_every_tag_and_marker_in_file_order(
    folder: Path, records: list[tuple[int, int]], most_records: int
) -> None:
    path = folder / "tags.qutag"
    path.write_bytes(qutag_bytes(records))
    file = open_tag_file(path)
    block = read(file, most_records)
    assert tags_of(block) == [record for record in records if record[1] < 100]
    assert markers_of(block) == [record for record in records if record[1] >= 100]
    assert (file.format, file.unit_ps, file.summary.records) == ("qutag", 1.0, len(records))
    assert sum(file.summary.markers.values()) == len(markers_of(block))
    assert file.summary.truncated == ""


@pytest.mark.parametrize("cut", range(1, 10))
def test_a_qutag_file_cut_in_its_last_record_is_read_up_to_it_and_said(folder: Path, cut: int) -> None:
    path = folder / "cut.qutag"
    path.write_bytes(qutag_bytes([(72 * 3600 * 10**12, 1), (5, 2), (7, 1)])[:-cut])
    file = open_tag_file(path)
    assert tags_of(read(file, 2)) == [(72 * 3600 * 10**12, 1), (5, 2)]
    assert file.summary.truncated == f"ends in mid-record: {10 - cut} of 10 bytes after record 2"


@pytest.mark.parametrize("channel", [-1, 105, 199, 204, 32767, -32768])
def test_a_qutag_file_is_read_up_to_a_channel_that_no_quTAG_has(folder: Path, channel: int) -> None:  # noqa: N802
    path = folder / "broken.qutag"
    path.write_bytes(qutag_bytes([(1, 1), (2, 100), (3, channel), (4, 1)]))
    file = open_tag_file(path)
    block = read(file)
    assert (tags_of(block), markers_of(block)) == ([(1, 1)], [(2, 100)])
    assert file.summary.records == 2
    assert file.summary.truncated == f"record 2 has channel {channel}, which no quTAG has"


def test_a_file_is_read_again_from_its_start(folder: Path) -> None:
    path = folder / "twice.qutag"
    path.write_bytes(qutag_bytes([(1, 1), (2, 100)]))
    file = open_tag_file(path)
    next(file.blocks(1))
    for _ in range(2):
        assert tags_of(read(file)) == [(1, 1)]
        assert (file.summary.records, file.summary.markers) == (2, {100: 1})


@pytest.mark.parametrize("content", [b"\xff" * 400, bytes(400), b"no tags\n", b"\x00", bytes(range(256)) * 4])
def test_a_file_of_no_known_format_is_refused_with_what_was_found(folder: Path, content: bytes) -> None:
    path = folder / "other"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="it begins with") as caught:
        open_tag_file(path)
    assert all(name in str(caught.value) for name in FORMATS)


def test_a_missing_or_empty_file_or_an_unknown_format_is_refused(folder: Path) -> None:
    path = folder / "empty.qutag"
    with pytest.raises(ConfigError, match="No such file"):
        open_tag_file(path)
    path.touch()
    with pytest.raises(ConfigError, match="is empty"):
        open_tag_file(path)
    with pytest.raises(ConfigError, match="no format of tag files"):
        open_tag_file(path, "qutags")
    path.write_bytes(bytes(39))
    with pytest.raises(ConfigError, match="ends within its header: 39 bytes of 40"):
        open_tag_file(path)
    with pytest.raises(ConfigError, match="Is a directory"):
        open_tag_file(folder)


def test_a_pipe_is_refused_at_once_and_nothing_of_it_is_read(tmp_path: Path) -> None:
    pipe = tmp_path / "tags.qutag"
    os.mkfifo(pipe)  # nobody writes into it: opening it would wait for ever
    with pytest.raises(ConfigError, match=r"is a pipe or a device, .* save it as a file"):
        open_tag_file(pipe)
