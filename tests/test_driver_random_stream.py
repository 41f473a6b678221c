"""A generator that streams random bytes: over each port, through faults, and under the health tests."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio
from driver_support import refused
from qnode_drivers.random_stream import SILENCE_LIMIT_S, RandomStream, RandomStreamConfig
from trio.testing import MockClock

from qnode.block.outcome import BlockLost
from qnode.config import RandomnessSection
from qnode.devices.capabilities import RandomSource
from qnode.devices.conformance import check_driver
from qnode.devices.transport.transcript import PRESENT, Transcript
from qnode.emulate.ports import pty_port, tcp_port, usb_port
from qnode.emulate.random_stream import RandomStreamEmulator
from qnode.node.monitoring.randomness import DeviceRandomness

COMMANDS = {"start": "cmdO\n", "stop": "cmdo\n"}  # OneRNG's


@asynccontextmanager
async def opened(emulator: RandomStreamEmulator, **keys: str) -> AsyncIterator[RandomStream]:
    async with (
        tcp_port(emulator) as address,
        RandomStream.open(RandomStreamConfig(address=address, **keys)) as device,
    ):
        yield device


async def test_it_conforms_over_a_serial_line() -> None:
    async with pty_port(RandomStreamEmulator()) as path:
        await check_driver(RandomStream, {"address": f"serial://{path}"})


async def test_it_conforms_over_tcp_with_commands() -> None:
    emulator = RandomStreamEmulator(b"cmdO\n", b"cmdo\n")
    async with tcp_port(emulator) as address:
        table = {"address": address, **COMMANDS}
        await check_driver(RandomStream, table, is_safe=lambda: emulator.heard.endswith(b"cmdo\n"))


async def test_it_is_left_only_when_its_stream_has_ended() -> None:
    class Slow(RandomStreamEmulator):
        async def serve(self, stream: trio.abc.Stream) -> None:
            await super().serve(trio.StapledStream(stream, SlowlyRead(stream)))

    emulator = Slow(b"cmdO\n", b"cmdo\n")
    async with opened(emulator, **COMMANDS) as device:
        await device.random_bytes(100)
    assert emulator.heard == b"cmdO\ncmdo\n"


class SlowlyRead(trio.abc.ReceiveStream):
    """A stream from which each byte comes a while after it was sent."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        await trio.sleep(0.02)
        return await self._stream.receive_some(1)

    async def aclose(self) -> None:
        await self._stream.aclose()


async def test_it_conforms_over_usb() -> None:
    async with usb_port(RandomStreamEmulator()) as address:
        await check_driver(RandomStream, {"address": address})


async def test_what_is_asked_for_is_given_and_no_byte_twice() -> None:
    async with opened(RandomStreamEmulator()) as device:
        assert isinstance(device, RandomSource)
        drawn = [await device.random_bytes(number) for number in (1, 32, 5000, 32)]
    assert [len(one) for one in drawn] == [1, 32, 5000, 32]
    assert drawn[1] != drawn[3]
    assert drawn[1] not in drawn[2]


async def test_no_byte_of_it_is_recorded() -> None:
    transcript = Transcript()
    before = PRESENT.set(transcript)
    try:
        async with opened(RandomStreamEmulator(b"cmdO\n", b"cmdo\n"), **COMMANDS) as device:
            await device.random_bytes(100)
    finally:
        PRESENT.reset(before)
    assert [(one.sent, one.data) for one in transcript.exchanges()] == [(True, b"cmdO\n"), (True, b"cmdo\n")]


async def test_a_silent_generator_is_one_clear_error(autojump_clock: MockClock) -> None:
    emulator = RandomStreamEmulator()
    emulator.silent = True
    with refused(f"no byte for {SILENCE_LIMIT_S:g} s"):
        async with opened(emulator) as device:
            await device.random_bytes(1)


@pytest.mark.parametrize(
    ("keys", "fault"),
    [
        ({"address": "zmq://127.0.0.1:1"}, "serial://"),
        ({"address": "tcp://127.0.0.1:1", "start": "ä"}, "start: expected ASCII text"),
    ],
)
def test_a_wrong_table_is_refused(keys: dict[str, str], fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        RandomStreamConfig(**keys)


async def test_seeds_come_from_it_until_it_is_stuck(tmp_path: Path) -> None:
    section = RandomnessSection(device="qrng", min_entropy_bits=7.0)
    told: list[str] = []
    randomness, emulator = DeviceRandomness(section, told.append), RandomStreamEmulator()
    with trio.fail_after(60):
        async with opened(emulator) as device, trio.open_nursery() as nursery:
            nursery.start_soon(partial(randomness.use, device, 10.0))
            assert len(await randomness.draw(100_000)) == 100_000
            assert told == []
            emulator.stuck = True
            with pytest.raises(BlockLost, match="a generator that is stuck"):
                await randomness.draw(1_000_000)  # sound bytes are still on their way
            nursery.cancel_scope.cancel()
    assert len(told) == 1
