"""Emulated devices of the open protocol behind their ports, and a supply of tags that tests control."""

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
from qnode.emulate.ports import pty_port, tcp_port
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


def transmitter_emulator(folder: Path, **simulation: object) -> OpenTransmitterEmulator:
    """Return the emulator of a transmitter at a fibre of its own."""
    fibre = fibre_at(str(folder / "fibre" / "fibre.sock"))
    return OpenTransmitterEmulator(fibre, SimulationParameters(**simulation), SourceParameters())  # type: ignore[arg-type]


@asynccontextmanager
async def at_port(device: OpenTdcEmulator | OpenTransmitterEmulator, kind: str = "tcp") -> AsyncIterator[str]:
    """Run the emulator behind a port; gives its address."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(device.run)
        if kind == "tcp":
            async with tcp_port(device) as address:
                yield address
        else:
            async with pty_port(device) as path:
                yield f"serial://{path}"
        nursery.cancel_scope.cancel()


def is_safe(device: OpenDevice) -> bool:
    """Return whether nothing runs and the laser, if there is one, is off."""
    return not device.running and not device.settings.get((6, 0), 0)
