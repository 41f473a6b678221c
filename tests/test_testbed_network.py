"""Namespaces of a testbed: made, connected through the relay, and removed on every way out."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import trio

from qnode.testbed import network as network_module
from qnode.testbed.line import open_line
from qnode.testbed.measure import ping_command, read_pings
from qnode.testbed.network import (
    LINE_ADDRESS,
    NAME,
    PLACES,
    Network,
    NetworkRefused,
    open_network,
    remove_leftovers,
)
from qnode.testbed.parts import Part, PartEnded, in_time, keeping
from qnode.testbed.relay import LineQuality

MISSING = [
    what
    for what, missing in (
        ("root", os.geteuid() != 0),
        ("ip", shutil.which("ip") is None),
        ("ping", shutil.which("ping") is None),
        ("/dev/net/tun", not Path("/dev/net/tun").exists()),
    )
    if missing
]
needs_namespaces = pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)}")


def own_name(letter: str) -> str:
    return f"{letter}{os.getpid() % 10_000_000}"


def existing(name: str) -> list[str]:
    return [place for place in PLACES if Path("/run/netns", Network(name).namespace(place)).exists()]


def test_without_root_the_refusal_says_how_to_mend_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(NetworkRefused, match="need root: run it with sudo"), open_network("abc"):
        pass


def test_without_ip_the_refusal_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    with pytest.raises(NetworkRefused, match="apt-get install iproute2"), open_network("abc"):
        pass


@pytest.mark.parametrize("name", ["", "Abc", "a b", "a/b", "..", "abcdefghi"])
def test_a_name_that_fits_no_interface_is_none(name: str) -> None:
    assert NAME.fullmatch(name) is None


@needs_namespaces
@pytest.mark.parametrize("way_out", [None, RuntimeError, KeyboardInterrupt])
def test_the_namespaces_go_on_every_way_out_with_what_runs_in_them(
    way_out: type[BaseException] | None,
) -> None:
    name = own_name("w")
    try:
        with open_network(name) as network:
            assert existing(name) == list(PLACES)
            inside = subprocess.Popen(network.inside("plant", "sleep", "600"))
            if way_out is not None:
                raise way_out
    except (RuntimeError, KeyboardInterrupt):
        pass
    assert existing(name) == []
    assert inside.wait(10) == -signal.SIGKILL


@needs_namespaces
def test_two_testbeds_of_one_name_do_not_disturb_each_other() -> None:
    name = own_name("d")
    with open_network(name):
        with pytest.raises(NetworkRefused, match="is running; give another one"), open_network(name):
            pass
        remove_leftovers()
        assert existing(name) == list(PLACES)


@needs_namespaces
def test_what_a_killed_testbed_left_is_removed_at_the_next_start() -> None:
    name = own_name("k")
    code = (
        "import subprocess, sys\n"
        "from qnode.testbed.network import open_network\n"
        f"with open_network({name!r}) as network:\n"
        "    child = subprocess.Popen(network.inside('office', 'sleep', '600'), start_new_session=True)\n"
        "    print(child.pid, flush=True)\n"
        "    sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        inside = int(process.stdout.readline())
        process.kill()
    assert existing(name) == list(PLACES)
    with open_network(own_name("n")):
        assert existing(name) == []
    deadline = time.monotonic() + 10.0
    while Path("/proc", str(inside)).exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path("/proc", str(inside)).exists()


@needs_namespaces
async def test_the_sites_reach_each_other_over_the_line_until_it_is_cut(tmp_path: Path) -> None:

    async def replies() -> int:
        command = ping_command(LINE_ADDRESS["plant"], LINE_ADDRESS["office"], 0.05, 5)
        said = await trio.run_process(
            network.inside("plant", *command, "-w", "2"), capture_stdout=True, check=False
        )
        return len(read_pings(said.stdout.decode().splitlines()).replies)

    with open_network(own_name("l")) as network:
        quality = LineQuality(delay_s=0.002)
        async with open_line(network, quality, tmp_path / "line.log") as line:
            assert await replies() == 5
            await line.cut()
            assert await replies() == 0
            counts = await line.mend()
            assert counts.lost_in_cut >= 5
            assert await replies() == 5
        assert (tmp_path / "line.log").read_text() == ""


async def test_a_part_that_ends_by_itself_is_told_with_its_last_words(tmp_path: Path) -> None:

    part = Part("reader", ["sh", "-c", "echo first; echo the disk is full >&2; exit 3"], tmp_path / "log")
    with trio.fail_after(60), pytest.RaisesGroup(PartEnded) as caught:
        async with keeping(part):
            await trio.sleep_forever()
    assert "reader ended (exit 3): the disk is full" in str(caught.value.exceptions[0])


async def test_a_part_can_be_killed_and_started_again_and_is_stopped_at_the_end(tmp_path: Path) -> None:

    part = Part("database", ["sleep", "600"], tmp_path / "log")
    with trio.fail_after(60):
        async with keeping(part):
            first = await started(part)
            part.kill()
            await first.wait()
            await trio.sleep(0.1)
            assert part.process is first
            part.start()
            second = await started(part, first)
        assert first.returncode == -signal.SIGKILL
        assert second.returncode == -signal.SIGTERM


async def started(part: Part, before: object = None) -> trio.Process:

    while True:
        if part.process is not None and part.process is not before:
            return part.process
        await trio.sleep(0.01)


def test_locks_lie_in_a_folder_of_root_alone() -> None:
    assert Path("/run/qnode-testbed") == network_module.LOCKS


def test_a_machine_without_real_time_priority_gives_the_highest_ordinary_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for status, word in ((0, "chrt"), (1, "nice")):
        monkeypatch.setattr(
            subprocess, "run", lambda *_a, status=status, **_k: subprocess.CompletedProcess([], status)
        )
        assert in_time()[0] == word
