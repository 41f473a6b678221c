"""A maker's library in a process of its own: answers, hangs, crashes, and no process left behind."""

import os
import select
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import numpy as np
import pytest
import trio
from library_drivers_support import use_stand_ins

from qnode.devices.child import Child, open_child
from qnode.devices.child_frames import LENGTH, MOST_BYTES, Answer, Array, encoded
from qnode.devices.transport.transcript import PRESENT, Transcript
from qnode.errors import DeviceError, DeviceGone, TransientDeviceError

TARGET = "misbehaving_library:MisbehavingLibrary"
START_S = 60.0


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    use_stand_ins(monkeypatch)


@asynccontextmanager
async def library(target: str = TARGET) -> AsyncIterator[Child]:
    with trio.fail_after(2 * START_S):
        async with open_child("device", target) as child:
            yield child


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_values_and_arrays_come_back_and_the_process_ends_with_its_user(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", "/run/credentials/qnode")
    monkeypatch.setenv("QNODE_STORE_KEY", "secret")
    async with library() as child:
        said = await child.ask("pid", limit_s=START_S)
        assert said["pid"] == child.pid
        assert not {"CREDENTIALS_DIRECTORY", "QNODE_STORE_KEY"} & said["environment"].keys()
        got = await child.ask("arrays", limit_s=START_S, n=100_000)
        assert got["n"] == 100_000
        assert np.array_equal(got["times"], np.arange(100_000))
        assert got["kinds"].dtype == np.uint8
        got["times"][0] = 5  # an array of our own
        assert (await child.ask("pid", limit_s=START_S))["calls"] == 2
    assert not is_alive(child.pid)


async def test_an_exception_of_the_library_is_an_error_and_its_process_goes_on() -> None:
    async with library() as child:
        with pytest.raises(DeviceError, match="device: fail failed: RuntimeError: no device with"):
            await child.ask("fail", limit_s=START_S)
        assert (await child.ask("pid", limit_s=START_S))["pid"] == child.pid


async def test_a_missing_library_is_told() -> None:
    async with library("no_such_library:Thing") as child:
        with pytest.raises(DeviceError, match="cannot be imported: No module named 'no_such_library'"):
            await child.ask("pid", limit_s=START_S)


@pytest.mark.parametrize("call", ["sleep", "hang_with_the_lock"])
async def test_a_library_that_hangs_is_killed(call: str) -> None:
    async with library() as child:
        await child.ask("pid", limit_s=START_S)
        arguments = {"seconds": 1000} if call == "sleep" else {}
        with pytest.raises(TransientDeviceError, match=f"no answer to {call} within 0.1 s, its process was"):
            await child.ask(call, limit_s=0.1, **arguments)
        with pytest.raises(DeviceGone, match="was ended by SIGKILL in pid"):
            await child.ask("pid", limit_s=START_S)
    assert not is_alive(child.pid)


async def test_a_library_that_crashes_is_gone_and_its_last_words_are_told() -> None:
    record = Transcript()
    PRESENT.set(record)
    async with library() as child:
        with pytest.raises(DeviceGone, match=r"ended by SIGSEGV in crash; it said: ERR about to crash$"):
            await child.ask("crash", limit_s=START_S)
    assert b"about to crash" in b"".join(one.data for one in record.exchanges())


async def test_a_library_that_ends_its_process_is_gone() -> None:
    async with library() as child:
        with pytest.raises(DeviceGone, match="ended with exit code 3 in leave"):
            await child.ask("leave", limit_s=START_S)


def frame(body: bytes) -> bytes:
    return LENGTH.pack(len(body)) + body


def damaged_array(kind: str) -> bytes:
    return encoded(Answer(1, {}, {"times": Array(kind, bytes(12))}))


@pytest.mark.parametrize(
    "sent",
    [
        frame(b"\xc1"),
        frame(b""),
        frame(b"\x95\x01"),
        frame(b"\x01"),
        frame(encoded(Answer(1, {"word": "key"}, {}))[LENGTH.size :].replace(b"key", b"\xff\xff\xff")),
        frame(b"\x95\x01\x81\xa1x" + b"\x91" * 100_000 + b"\x01\x80\xa0\xa0"),
        *(damaged_array(kind) for kind in ("<i8", "<i3", "|O8", "", "(1,,1)i4", "<U0", "<V99999999999999")),
        LENGTH.pack(MOST_BYTES + 1),
    ],
)
async def test_a_damaged_answer_is_an_error_of_the_device_and_its_process_is_killed(sent: bytes) -> None:
    ours, theirs = socket.socketpair()
    process = await trio.lowlevel.open_process(["sleep", "1000"], start_new_session=True)
    with theirs, trio.fail_after(START_S):
        async with trio.SocketStream(trio.socket.from_stdlib_socket(ours)) as channel:
            theirs.sendall(sent)
            with pytest.raises(TransientDeviceError, match="device: a damaged answer to look, its process"):
                await Child("device", process, channel).ask("look", limit_s=START_S)
            assert await process.wait() == -signal.SIGKILL


async def test_a_library_that_writes_between_the_answers_is_an_error_of_its_device() -> None:
    async with library() as child:
        with pytest.raises(TransientDeviceError, match="device: a damaged answer to send, its process"):
            await child.ask("send", limit_s=START_S, data=b"debug: 12 tags\n")
    assert not is_alive(child.pid)


async def test_what_a_library_prints_never_disturbs_an_answer_or_stops_it() -> None:
    async with library() as child:
        assert await child.ask("babble", limit_s=START_S, n_bytes=1_000_000) == {"done": True}
        assert await child.ask("babble", limit_s=START_S, n_bytes=10) == {"done": True}


async def test_a_request_that_was_given_up_leaves_no_answer_to_the_next_one() -> None:
    async with library() as child:
        await child.ask("pid", limit_s=START_S)
        with trio.move_on_after(0.05):
            await child.ask("sleep", limit_s=START_S, seconds=0.3)
        assert "pid" in await child.ask("pid", limit_s=START_S)


async def test_it_is_left_within_five_seconds_while_it_hangs() -> None:
    async with library() as child:
        await child.ask("pid", limit_s=START_S)
        with trio.move_on_after(0.05):
            await child.ask("hang_with_the_lock", limit_s=START_S)
        began_s = trio.current_time()
    assert trio.current_time() - began_s < 5.0
    assert not is_alive(child.pid)


def test_the_process_ends_with_a_node_that_was_killed_even_while_the_library_hangs() -> None:
    program = """
        import trio
        from qnode.devices.child import open_child

        async def main():
            async with open_child("device", "misbehaving_library:MisbehavingLibrary") as child:
                await child.ask("pid", limit_s=60)
                print(child.pid, flush=True)
                await child.ask("hang_with_the_lock", limit_s=60)

        trio.run(main)
    """
    node = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, text=True
    )
    assert node.stdout is not None
    with node.stdout:
        pid = int(node.stdout.readline())
        watch = os.pidfd_open(pid)
        node.send_signal(signal.SIGKILL)
        node.wait(60)
    try:
        assert select.select([watch], [], [], 60)[0], "the process of the library goes on"
    finally:
        os.close(watch)
