"""The table of blocks as a file: continued over restarts, refused when it is another table."""

import csv
import errno
import io
import stat
from pathlib import Path
from typing import Any

import msgspec
import pytest
from blocks_support import accepted_block, lost_block
from hypothesis import given
from hypothesis import strategies as st

from qnode.operate.blocks.row import DecidedBlock
from qnode.operate.blocks.table_file import COLUMNS, HEADER, TableRefused, csv_lines, open_block_table


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "blocks.csv"


def append(path: Path, *blocks: DecidedBlock) -> int | None:
    """Append to the file and return the last block that it held before."""
    with open_block_table(path) as table:
        last = table.last_block_id
        table.append(list(blocks))
    return last


def block_ids(path: Path) -> list[int]:
    return [int(row["block_id"]) for row in csv.DictReader(io.StringIO(path.read_text()))]


def test_a_new_file_begins_with_the_names_and_is_public(path: Path) -> None:
    assert append(path) is None
    assert path.read_bytes() == HEADER
    (path.parent / "ordinary").touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((path.parent / "ordinary").stat().st_mode)


def test_a_row_holds_every_figure_and_nothing_for_the_unknown(path: Path) -> None:
    append(path, accepted_block(812), lost_block(813, "qber_z", '12,1 % above "11 %"'))
    accepted, lost = csv.DictReader(io.StringIO(path.read_text()))
    assert tuple(accepted) == COLUMNS
    plain = msgspec.structs.asdict(accepted_block(812))
    (found,) = plain.pop("checks")
    assert {name: accepted[name] for name in plain} == {name: str(value) for name, value in plain.items()}
    checked = {name: value for name, value in accepted.items() if name not in plain and value}
    assert checked == {
        "check_cross_clicks": str(found.value),
        "check_cross_clicks_least": str(found.least),
        "check_cross_clicks_most": str(found.most),
    }
    assert (lost["outcome"], lost["detail"]) == ("qber_z", '12,1 % above "11 %"')
    assert lost["n_z_signal"] == lost["f_ec"] == lost["span_s"] == ""
    assert lost["secret_bits"] == "0"


def test_a_file_is_continued_after_its_last_block(path: Path) -> None:
    assert append(path, lost_block(3), accepted_block(2)) is None
    assert append(path, accepted_block(4)) == 2
    assert append(path) == 4
    assert block_ids(path) == [3, 2, 4]


@given(cut=st.integers(0, len(HEADER) + len(csv_lines([accepted_block(1), accepted_block(2)]))))
def test_whatever_a_killed_writer_left_is_mended(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    path = tmp_path_factory.mktemp("t") / "blocks.csv"
    blocks = [accepted_block(1), accepted_block(2)]
    path.write_bytes((HEADER + csv_lines(blocks).encode())[:cut])
    with open_block_table(path) as table:
        table.append(blocks[table.last_block_id or 0 :])
    assert path.read_bytes() == HEADER + csv_lines(blocks).encode()


def test_the_last_block_of_a_long_file_is_found(path: Path) -> None:
    append(path, *(accepted_block(i) for i in range(1, 2001)))
    assert append(path) == 2000


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"block_id,decided_at_s,result\n1,2,3\n", "column 3 is 'result', expected 'outcome'"),
        (HEADER[:-1] + b",temperature_k\n", f"{len(COLUMNS) + 1} columns, expected {len(COLUMNS)}"),
        (b"block_id,decided_at_s\n1,2\n", f"2 columns, expected {len(COLUMNS)}"),
        (b"\x89PNG\r\n\x1a\n" + bytes(5000), "not the header"),
        (HEADER + b"1,2,3\n", "last line is no block"),
        (HEADER + csv_lines([accepted_block(1)]).replace("1,", "x,", 1).encode(), "last line is no block"),
        (HEADER + b"x" * 100_000, "last line is no block"),
    ],
)
def test_another_file_is_refused_and_left_as_it_is(path: Path, content: bytes, match: str) -> None:
    path.write_bytes(content)
    with pytest.raises(TableRefused, match=match):
        append(path, accepted_block(1))
    assert path.read_bytes() == content


def test_a_file_that_is_being_written_is_refused(path: Path) -> None:
    with open_block_table(path) as table:
        with pytest.raises(TableRefused, match="another process writes this table"):
            append(path, accepted_block(1))
        table.append([accepted_block(2)])
    assert block_ids(path) == [2]


def test_a_full_disk_leaves_no_half_line(path: Path) -> None:
    import resource

    with open_block_table(path) as table:
        table.append([accepted_block(1)])
        size = path.stat().st_size
        limits: Any = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 50, limits[1]))
        try:
            with pytest.raises(OSError, match="too large") as refused:
                table.append([accepted_block(2)])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert refused.value.errno == errno.EFBIG
        assert path.stat().st_size == size
        assert table.last_block_id == 1
        table.append([accepted_block(2)])
    assert block_ids(path) == [1, 2]
