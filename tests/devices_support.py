"""A driver for a device of the tests: it ticks, and breaks when told to."""

import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, ClassVar

import msgspec
import numpy as np
import trio

from qnode.devices.protocols import DeviceIdentity
from qnode.tags.types import TagBlock


class MetronomeConfig(msgspec.Struct, frozen=True):
    """``period_s``: time between blocks of tags."""

    serial: str = "M-1"
    period_s: float = 0.001
    simulated: bool = False


class Metronome:
    """Ticks: ten tags a block, and one reading. Tests subclass it to break single promises."""

    Config: ClassVar[type[msgspec.Struct]] = MetronomeConfig
    opened = 0
    left_safe = 0
    on_open: Callable[[], None] | None = None

    def __init__(self, config: MetronomeConfig) -> None:
        self.config = config
        self.identity = DeviceIdentity("metronome", config.serial, config.simulated)
        self.paced = True
        self.origin_s = time.time()

    @classmethod
    @asynccontextmanager
    async def open(cls, config: Any) -> "AsyncIterator[Metronome]":
        """Count openings and leavings on the class."""
        cls.opened += 1
        if cls.on_open is not None:
            cls.on_open()
        try:
            yield cls(config)
        finally:
            cls.left_safe += 1

    async def tags(self) -> AsyncGenerator[TagBlock, None]:
        """Tick."""
        number = 0
        while True:
            await trio.sleep(self.config.period_s)
            yield self.block(number)
            number += 1

    def block(self, number: int) -> TagBlock:
        """Return block ``number``."""
        times = np.arange(10, dtype=np.int64) * 100 + number * 1000
        return TagBlock(times, np.zeros(10, dtype=np.int8), until_ps=(number + 1) * 1000)

    async def readings(self) -> dict[str, float]:
        """Return a temperature."""
        await trio.lowlevel.checkpoint()
        return {"temperature_celsius": 21.5}


def fresh_metronome() -> type[Metronome]:
    """Return a class of its own, so that counts start at zero."""
    return type("FreshMetronome", (Metronome,), {})
