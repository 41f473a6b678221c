"""Emulated devices of the open protocol behind their ports, and a supply of tags that tests control."""

import math
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import trio

from qnode.config import SourceParameters
from qnode.emulate.open_protocol import OpenDevice
from qnode.emulate.open_protocol_tdc import OpenTdcEmulator
from qnode.emulate.open_protocol_transmitter import OpenTransmitterEmulator
from qnode.emulate.ports import Faults, pty_port, tcp_port, usb_port
from qnode.simulate.fibre_address import fibre_at
from qnode.simulate.parameters import SimulationParameters
from qnode.tags.types import TagBlock


class SteadySupply:
    """Random clicks at ``rate_hz`` of the wall clock; it keeps what it has yielded."""

    def __init__(self, rate_hz: float = 50_000, block_s: float = 0.01, seed: int = 1) -> None:
        self.origin_s = time.time()
        self.blocks: list[TagBlock] = []
        self._rate_hz, self._block_s = rate_hz, block_s
        self._random = np.random.default_rng(seed)

    async def tags(self) -> AsyncGenerator[TagBlock, None]:
        """Yield a block when its time has come."""
        until_s = 0.0
        while True:
            began_s, until_s = until_s, max(until_s, time.time() - self.origin_s)
            n = self._random.poisson(self._rate_hz * (until_s - began_s))
            times = np.sort(self._random.integers(int(began_s * 1e12), int(until_s * 1e12) + 1, n))
            channels = self._random.integers(0, 2, n).astype(np.int8)
            block = TagBlock(times, channels, int(until_s * 1e12))
            self.blocks.append(block)
            yield block
            await trio.sleep(self._block_s)


class ScriptedSupply:
    """Yields the blocks that a test gives it."""

    def __init__(self) -> None:
        self.origin_s = time.time()
        self.sent: list[tuple[int, int]] = []
        self._put, self._take = trio.open_memory_channel[TagBlock](math.inf)

    def give(self, times_ps: list[int], channels: list[int], until_ps: int) -> None:
        """Let tags click."""
        self.sent += zip(times_ps, channels, strict=True)
        block = TagBlock(np.array(times_ps, np.int64), np.array(channels, np.int8), until_ps)
        self._put.send_nowait(block)

    async def tags(self) -> AsyncGenerator[TagBlock, None]:
        """Yield what is given."""
        async for block in self._take:
            yield block


class Damaged(trio.abc.Stream):
    """A stream whose device's bytes are flipped, dropped and mixed with noise, by chance but seeded."""

    def __init__(self, stream: trio.abc.Stream, seed: int, share: float) -> None:
        self._stream, self._share = stream, share
        self._random = np.random.default_rng(seed)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send about the same bytes."""
        out = bytearray(data)
        for place in np.flatnonzero(self._random.random(len(out)) < self._share)[::-1].tolist():
            deed = int(self._random.integers(0, 3))
            if deed == 0:
                out[place] ^= int(self._random.integers(1, 256))
            elif deed == 1:
                del out[place]
            else:
                out[place:place] = self._random.bytes(int(self._random.integers(1, 30)))
        await self._stream.send_all(out)

    async def wait_send_all_might_not_block(self) -> None:
        """Wait like the stream."""
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """Receive what the host sends, whole."""
        return await self._stream.receive_some(max_bytes)

    async def aclose(self) -> None:
        """Close the stream."""
        await self._stream.aclose()


def transmitter_emulator(folder: Path, **simulation: object) -> OpenTransmitterEmulator:
    """Return the emulator of a transmitter at a fibre of its own."""
    fibre = fibre_at(str(folder / "fibre" / "fibre.sock"))
    return OpenTransmitterEmulator(fibre, SimulationParameters(**simulation), SourceParameters())  # type: ignore[arg-type]


@asynccontextmanager
async def at_port(
    device: OpenTdcEmulator | OpenTransmitterEmulator,
    kind: str = "tcp",
    damage: float = 0.0,
    faults: Faults | None = None,
) -> AsyncIterator[str]:
    """Run the emulator behind a port, which damages a share of its bytes; gives its address."""

    class Served:
        async def serve(self, stream: trio.abc.Stream) -> None:
            await device.serve(Damaged(stream, 5, damage) if damage else stream)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(device.run)
        if kind == "tcp":
            async with tcp_port(Served(), faults) as address:
                yield address
        elif kind == "usb":
            async with usb_port(Served(), faults) as address:
                yield address
        else:
            async with pty_port(Served(), faults) as path:
                yield f"serial://{path}"
        nursery.cancel_scope.cancel()


def is_safe(device: OpenDevice) -> bool:
    """Return whether nothing runs and the laser, if there is one, is off."""
    return not device.running and not device.settings.get((6, 0), 0)
