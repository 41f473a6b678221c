"""Emulator of a time-to-digital converter that speaks the open device protocol."""

import struct
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt
import trio

from qnode.emulate.open_protocol import BEGAN_AGAIN, TAGS, TDC, OpenDevice, built_frame
from qnode.tags.types import TagBlock

TICK_NUMERATOR, TICK_DENOMINATOR, CHANNELS, THRESHOLD, CLOCK_SOURCE, PHASE = range(16, 22)
PHASE_LIMITS: Final = (-4_000_000, 4_000_000)  # microradians
BUFFER_FILL, TAGS_LOST = (3, 0), (5, 0)
RECORDS_IN_FRAME: Final = 248
LARGEST_STEP: Final = 1 << 27
FURTHEST: Final = 1 << 40  # ticks from the time of a frame
INPUTS: Final = 4
SENT_AT_ONCE: Final = 32  # frames

Ticks = npt.NDArray[np.int64]


class TagSupply(Protocol):
    """Where the clicks come from: Bob's end of the simulated fibre, or a test."""

    @property
    def origin_s(self) -> float:
        """Unix time at tag time zero."""

    def tags(self) -> AsyncGenerator[TagBlock, None]:
        """Yield the clicks at their own pace."""


class OpenTdcEmulator(OpenDevice):
    """Serves the tags of ``supply``; `run` keeps its time going, connected or not.

    ``set_phase``: sets the interferometer's phase in radians; None: the device has no converter for it.
    ``tick``: picoseconds as numerator and denominator. ``buffer_tags``: what its memory holds while the host
    does not read. Faults: ``drop_frames`` (so many of the next are not sent), ``overflow_tags`` (so many of
    the next tags find no room), `begin_again`.
    """

    kind = TDC

    def __init__(
        self,
        supply: TagSupply,
        *,
        serial: str = "E-TDC-1",
        tick: tuple[int, int] = (1, 1),
        simulated: bool = True,
        buffer_tags: int = 1 << 20,
        set_phase: Callable[[float], None] | None = None,
    ) -> None:
        super().__init__("emulated open TDC", serial, simulated=simulated)
        self.supply = supply
        self.tick = tick
        self.buffer_tags = buffer_tags
        self.drop_frames = 0
        self.overflow_tags = 0
        self.counted_tags = 0  # since the start: sent, lost, or waiting
        self.overflowed_tags = 0
        self._zero_ticks = 0
        self._until = 0
        self._waiting: deque[tuple[int, bytes]] = deque()
        self._waiting_tags = 0
        self._more = trio.Event()
        self.settings = {(TICK_NUMERATOR, 0): tick[0], (TICK_DENOMINATOR, 0): tick[1]}
        self.settings |= {(CHANNELS, 0): 0b11, (CLOCK_SOURCE, 0): 0}
        self.settings |= {(THRESHOLD, number): 100_000 for number in range(INPUTS)}
        self.limits = {(CHANNELS, 0): (0, (1 << INPUTS) - 1), (CLOCK_SOURCE, 0): (0, 1)}
        self.limits |= {(THRESHOLD, number): (-2_000_000, 2_000_000) for number in range(INPUTS)}
        self._set_phase = set_phase
        if set_phase is not None:
            least, most = self.limits[PHASE, 0] = PHASE_LIMITS
            self.settings |= {(PHASE, 0): 0, (PHASE, 1): least, (PHASE, 2): most}

    async def run(self) -> None:
        """Take clicks for ever, and send them while a host wants them."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.watch_host)
            nursery.start_soon(self._send_waiting)
            async for block in self.supply.tags():
                if self.running:
                    self._record(block)

    async def settings_changed(self) -> None:
        """Set the phase."""
        if self._set_phase is not None:
            self._set_phase(self.settings[PHASE, 0] * 1e-6)

    async def start(self, epoch: int) -> None:
        """Begin to count tags at 0; the clock goes on."""
        await super().start(epoch)
        self._forget()

    async def stop(self) -> None:
        """Stop the stream; what was not sent yet is forgotten."""
        await super().stop()
        self._forget()

    async def begin_again(self) -> None:
        """Restart clock and count, as after a brown-out, and say so."""
        self._zero_ticks = self._now()
        self.epoch = (self.epoch + 1) % (1 << 32)
        self._forget()
        await self.tell(BEGAN_AGAIN, "the counter was reset")

    def position(self) -> int:
        """Return the present tick."""
        return self._now() - self._zero_ticks

    def _now(self) -> int:
        passed_ps = max(0, int((time.time() - self.supply.origin_s) * 1e12))
        return passed_ps * self.tick[1] // self.tick[0]

    def _forget(self) -> None:
        self._waiting.clear()
        self._waiting_tags = self.counted_tags = self._until = 0

    def _record(self, block: TagBlock) -> None:
        numerator, denominator = self.tick
        used = (self.settings[CHANNELS, 0] >> block.channels.astype(np.int64)) & 1 == 1
        ticks = block.times_ps[used] * denominator // numerator - self._zero_ticks
        channels = block.channels[used].astype(np.uint32)
        until = block.until_ps * denominator // numerator - self._zero_ticks
        after_reset = ticks >= 0
        ticks, channels = ticks[after_reset], channels[after_reset]
        self.counted_tags += block.lost
        lost = min(self.overflow_tags, ticks.size)
        self.overflow_tags -= lost
        self._lose(lost)
        ticks, channels = ticks[lost:], channels[lost:]
        for first, end in _cuts(ticks):
            self._until = max(self._until, int(ticks[first:end].max()))
            if end == ticks.size:
                self._until = max(self._until, until)
            self._queue(ticks[first:end], channels[first:end])
        if not ticks.size:
            self._until = max(self._until, until)
            self._queue(ticks, channels)

    def _lose(self, tags: int) -> None:
        self.counted_tags += tags
        self.overflowed_tags += tags
        self.health[TAGS_LOST] = self.overflowed_tags

    def _queue(self, ticks: Ticks, channels: npt.NDArray[np.uint32]) -> None:
        """Make a frame and keep it until it is sent, if there is room for it."""
        if self._waiting_tags + ticks.size > self.buffer_tags:
            self._lose(ticks.size)
            return
        payload = tag_payload(self.epoch, self.counted_tags, ticks, channels, self._until)
        self.counted_tags += ticks.size
        self._waiting.append((ticks.size, built_frame(TAGS, 0, payload)))
        self._waiting_tags += ticks.size
        self.health[BUFFER_FILL] = 1_000_000 * self._waiting_tags // self.buffer_tags
        self._more.set()

    async def _send_waiting(self) -> None:
        while True:
            await self._more.wait()
            self._more = trio.Event()
            while self._waiting:
                some = [self._waiting.popleft() for _ in range(min(SENT_AT_ONCE, len(self._waiting)))]
                dropped = min(self.drop_frames, len(some))
                self.drop_frames -= dropped
                await self.send(b"".join(data for _, data in some[dropped:]))
                self._waiting_tags = sum(tags for tags, _ in self._waiting)


def _cuts(ticks: Ticks) -> list[tuple[int, int]]:
    """Cut tags into frames: each tag needs a record, and one more after a long step or a step back."""
    if not ticks.size:
        return []
    steps = np.diff(ticks)
    each = RECORDS_IN_FRAME
    if steps.size and (steps.min() < 0 or steps.max() >= LARGEST_STEP):
        each //= 2
    if int(ticks.max()) - int(ticks.min()) >= FURTHEST:
        each = 1
    return [(first, min(first + each, ticks.size)) for first in range(0, ticks.size, each)]


def tag_payload(epoch: int, first: int, ticks: Ticks, channels: npt.NDArray[np.uint32], until: int) -> bytes:
    """Return the payload of TAGS: the head, and the records of ``ticks`` on ``channels``."""
    begin = int(ticks[0]) if ticks.size else until
    head = struct.pack("<IHHQQQ", epoch, ticks.size, 0, first, begin, until)
    steps = np.diff(ticks, prepend=begin)
    turns = steps >> 27  # of 2^27 ticks; -1 for a step back
    tags = channels << np.uint32(27) | (steps & (LARGEST_STEP - 1)).astype(np.uint32)
    if turns.any():
        wraps = np.uint32(1 << 31) | (turns & (LARGEST_STEP - 1)).astype(np.uint32)
        both = np.stack((wraps, tags), axis=1)
        needed = np.stack((turns != 0, np.ones(turns.size, np.bool_)), axis=1)
        tags = both[needed]
    return head + tags.astype("<u4").tobytes()
