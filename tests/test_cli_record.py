"""`qnode record --site`: the blocks of a running site, written down while it runs, restarts, or is away."""

import csv
import io
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio
from blocks_support import accepted_block
from operate_support import well_status

from qnode.cli.main import main
from qnode.config import LinkParameters
from qnode.node.status.block_table import BlockTable, KnownOfBlock
from qnode.operate.blocks.table_file import HEADER, csv_lines, open_block_table
from qnode.operate.control.answers import Answers, LinkAnswers
from qnode.operate.control.server import serve_control
from qnode.operate.recorder.blocks import record_blocks

QNODE = str(Path(sys.executable).parent / "qnode")


class Node:
    """What a daemon keeps of its blocks."""

    def __init__(self, *block_ids: int) -> None:
        self.decided = BlockTable(LinkParameters())
        self.stop, self.stopped = trio.Event(), trio.Event()
        self.decide(*block_ids)

    def decide(self, *block_ids: int) -> None:
        for block_id in block_ids:
            self.decided.lost(block_id, "qber_z", f"block {block_id}, as an example", KnownOfBlock())

    @asynccontextmanager
    async def served(self, socket: Path) -> AsyncIterator[None]:
        async with trio.open_nursery() as nursery:
            answers = Answers(well_status, lambda _count: [], {"turin": LinkAnswers(self.decided.latest)})
            await nursery.start(serve_control, socket, answers)
            yield
            nursery.cancel_scope.cancel()

    async def serve_until_stopped(self, socket: Path, *, task_status: trio.TaskStatus[None]) -> None:
        async with self.served(socket):
            task_status.started()
            await self.stop.wait()
        self.stopped.set()


def block_ids(table: Path) -> list[int]:
    return [int(row["block_id"]) for row in csv.DictReader(io.StringIO(table.read_text()))]


async def written(table: Path, expected: list[int]) -> None:
    """Wait until the table has these blocks; another process writes it."""
    while not table.exists() or block_ids(table) != expected:  # noqa: ASYNC110, ASYNC240
        await trio.sleep(0.02)


async def recorded(
    socket: Path,
    table: Path,
    between: Callable[[int], Awaitable[bool]] | None = None,
    tell: Callable[[str], None] = print,
) -> int | None:
    """Record without pauses; ``between(polls)`` comes after each poll, True ends it (None: after one)."""
    polls = 0

    def wait(_pause_s: float) -> bool:
        nonlocal polls
        polls += 1
        return between is None or trio.from_thread.run(between, polls)

    def work() -> int | None:
        with open_block_table(table) as opened:
            return record_blocks(socket, opened, duration_s=None, wait=wait, tell=tell)

    with trio.fail_after(100):
        return await trio.to_thread.run_sync(work)


async def test_each_block_is_written_once_in_the_order_of_decision(tmp_path: Path) -> None:
    node = Node(1, 2)
    announcement = {1: (4,), 2: (), 3: (3, 5)}

    async def between(polls: int) -> bool:
        node.decide(*announcement.get(polls, ()))
        return polls not in announcement

    async with node.served(tmp_path / "s"):
        assert await recorded(tmp_path / "s", tmp_path / "t.csv", between) == 5
        assert block_ids(tmp_path / "t.csv") == [1, 2, 4, 3, 5]
        # Started again over the same file: nothing new, then one.
        assert await recorded(tmp_path / "s", tmp_path / "t.csv") == 0
        node.decide(6)
        assert await recorded(tmp_path / "s", tmp_path / "t.csv") == 1
    assert block_ids(tmp_path / "t.csv") == [1, 2, 4, 3, 5, 6]
    assert (tmp_path / "t.csv").read_text() == HEADER.decode() + csv_lines(node.decided.latest(100))


async def test_a_daemon_that_is_started_anew_is_waited_for(tmp_path: Path) -> None:
    said: list[str] = []
    socket, table = tmp_path / "s", tmp_path / "t.csv"
    first, second = Node(7, 8), Node(9)
    async with trio.open_nursery() as nursery:

        async def between(polls: int) -> bool:
            if polls == 1:  # nobody was there
                await nursery.start(first.serve_until_stopped, socket)
            elif polls == 2:
                first.stop.set()
                await first.stopped.wait()
            elif polls == 4:  # gone for two polls
                await nursery.start(second.serve_until_stopped, socket)
            return polls == 5

        assert await recorded(socket, table, between, said.append) == 3
        second.stop.set()
    assert block_ids(table) == [7, 8, 9]
    away, back = f"{socket}: nobody answers here; trying again", f"{socket}: answers"
    assert said == [away, back, away, back]


async def test_numbers_that_begin_anew_with_a_new_store_are_written(tmp_path: Path) -> None:
    async with Node(500).served(tmp_path / "s"):
        await recorded(tmp_path / "s", tmp_path / "t.csv")
    async with Node(1, 2).served(tmp_path / "s"):
        await recorded(tmp_path / "s", tmp_path / "t.csv")
    assert block_ids(tmp_path / "t.csv") == [500, 1, 2]


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
async def test_the_command_records_until_it_is_told_to_end(tmp_path: Path, ending: signal.Signals) -> None:
    node, table = Node(1, 2), tmp_path / "t.csv"
    with trio.fail_after(60):
        async with node.served(tmp_path / "s"), trio.open_nursery() as nursery:
            command = [QNODE, "record", "--site", str(tmp_path / "s"), "--blocks", str(table)]
            run = partial(trio.run_process, command, capture_stdout=True, check=False)
            process = await nursery.start(run)
            await written(table, [1, 2])
            node.decide(3)
            await written(table, [1, 2, 3])
            process.send_signal(ending)
    assert process.returncode == 0


def test_a_site_that_never_answers_exits_with_1(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    command = [QNODE, "record", "--site", "none", "--blocks", str(table), "--duration", "0.1"]
    run = subprocess.run(command, capture_output=True, check=False, cwd=tmp_path, text=True)
    assert (run.returncode, run.stdout) == (1, "")
    assert run.stderr == "qnode: none: nobody answers here; trying again\n"
    assert table.read_bytes() == HEADER


def exit_code(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> object:
    monkeypatch.setattr(sys, "argv", ["qnode", "record", *arguments])
    with pytest.raises(SystemExit) as exit_:
        main()
    return exit_.value.code


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--out", "d"),
        ("--duration", "1"),
        ("--site", "s"),
        ("--blocks", "t.csv"),
        ("--site", "s", "--duration", "1"),
        ("--blocks", "t.csv", "--out", "d", "--duration", "1"),
        ("--site", "s", "--out", "d", "--loopable"),
        ("--site", "s", "--blocks", "t.csv", "--config", "c"),
        ("--site", "s", "--blocks", "t.csv", "--loopable"),
        ("--site", "s", "--blocks", "t.csv", "--json"),
    ],
)
def test_a_simulated_link_and_a_site_exclude_each_other(
    arguments: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert exit_code(monkeypatch, *arguments) == 64
    assert "either --out DIR --duration S" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_table_with_another_header_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    table = tmp_path / "t.csv"
    table.write_text("a,b\n" + csv_lines([accepted_block(1)]))
    before = table.read_bytes()
    assert exit_code(monkeypatch, "--site", "s", "--blocks", str(table)) == 64
    said = capsys.readouterr().err
    assert f"{table}: its first line is not the header of this table (column 1 is 'a'" in said
    assert table.read_bytes() == before
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    assert not {signal.SIGINT, signal.SIGTERM} & blocked


def test_a_table_that_cannot_be_written_exits_with_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert exit_code(monkeypatch, "--site", "s", "--blocks", str(tmp_path / "no" / "t.csv")) == 1
    assert "cannot be written: No such file or directory" in capsys.readouterr().err


def test_recording_a_site_imports_nothing_heavy() -> None:
    program = (
        "import sys, qnode.cli.record, qnode.operate.recorder.blocks;"
        "print([name for name in ('numpy', 'numba', 'trio', 'rich') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, text=True)
    assert found.stdout == "[]\n"
