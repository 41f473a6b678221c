"""A driver under supervision: what it yields over all its openings, and what the board says of it."""

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from importlib.metadata import EntryPoint
from typing import Any

import pytest
import trio

from qnode.config import DeviceSection
from qnode.devices import registry
from qnode.devices.protocols import Device, TagSource
from qnode.devices.registry import DriverClass
from qnode.devices.status import DeviceStatus
from qnode.devices.supervisor import supervise
from qnode.tags.types import TagBlock


class Supervised:
    """The openings of a tag source so far: the blocks of each."""

    def __init__(self) -> None:
        self.board: dict[str, DeviceStatus] = {}
        self.openings: list[list[TagBlock]] = []
        self._more = trio.Event()

    async def use(self, device: Device) -> None:
        assert isinstance(device, TagSource)
        self.openings.append([])
        async with aclosing(device.tags()) as blocks:
            async for block in blocks:
                self.openings[-1].append(block)
                self._more.set()
                self._more = trio.Event()

    async def tags_again(self, after_openings: int = 0) -> None:
        """Wait until new tags come, in a later opening than so many."""
        while True:
            await self._more.wait()
            if len(self.openings) > after_openings and self.openings[-1][-1].times_ps.shape[0]:
                return


@asynccontextmanager
async def supervised(
    monkeypatch: pytest.MonkeyPatch, driver: DriverClass, table: dict[str, Any]
) -> AsyncIterator[Supervised]:
    """Keep the device of ``table`` in use."""

    class Found(EntryPoint):
        def load(self) -> DriverClass:
            return driver

    entry = Found("driver", f"{driver.__module__}:{driver.__qualname__}", "qnode.drivers")
    monkeypatch.setattr(registry, "entry_points", lambda **_: [entry])
    watched = Supervised()
    section = DeviceSection(driver="driver", config=table)
    async with trio.open_nursery() as nursery:

        async def keep() -> None:
            await supervise("tdc", section, watched.use, board=watched.board, allow_simulated=False)

        nursery.start_soon(keep)
        yield watched
        nursery.cancel_scope.cancel()
