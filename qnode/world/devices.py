"""The devices of the simulated world, with faults on request: Alice's transmitter and Bob's clicks.

The transmitter is a normal device. Bob has no tags here: `ClickSource` replaces Bob's receiver and gives
announcements to the session, in step with the virtual clock. Like a hardware receiver, it continues without a
session; it drops and counts clicks that it cannot announce.
"""

import random
from collections.abc import AsyncGenerator

import numpy as np
import trio

from qnode.config import LinkParameters
from qnode.devices.protocols import DeviceIdentity, EmissionRun, TagSource
from qnode.errors import LinkError
from qnode.node.quantum.bob import BobSide
from qnode.node.quantum.receiver_requests import ClickAnnouncement
from qnode.tags.marks import NO_MARKS
from qnode.tags.types import NO_CLICKS, UNKNOWN_SYMBOL, Codes, SlotRange, Slots
from qnode.world.configuration import SIFTED_BITS
from qnode.world.determinism import TIME_OF_DAY_S, now_s
from qnode.world.light import SIFTED_PER_SLOT, Light

TICKS_OF_A_BLOCK = 10
"""So often clicks are announced while a block fills."""
USUAL_ERROR_RATE = 0.005


class WorldTransmitter:
    """Alice's source: its runs, and a record of symbols that reaches back ``record_s``."""

    identity = DeviceIdentity("world", "1", simulated=True)

    def __init__(self, light: Light, link: LinkParameters, rng: random.Random) -> None:
        self._light = light
        self._rate_hz = link.source.qubit_rate_hz
        self._rng = rng
        self._restarted = trio.Event()
        self.record_s = 60.0
        self.off_s = 1.0
        """How long it is gone when it fails."""
        self._failed = False
        self.run = self._new_run()

    def _new_run(self) -> EmissionRun:
        return EmissionRun(run_id=self._rng.randrange(1, 1 << 20), started_at_s=TIME_OF_DAY_S + now_s())

    def restart(self) -> None:
        """Begin another run."""
        self.run = self._new_run()
        self._restarted.set()

    def fail(self) -> None:
        """Be gone for a while; another run begins after that."""
        self._failed = True
        self._restarted.set()

    async def runs(self) -> AsyncGenerator[EmissionRun, None]:
        """Yield the present run, then each later one."""
        while True:
            self._restarted = trio.Event()
            yield self.run
            await self._restarted.wait()
            if self._failed:
                self._failed = False
                self.run = self._new_run()
                return

    def symbols(self, run_id: int, slots: Slots) -> Codes:
        """Look up what was sent."""
        symbols = self._light.symbols(run_id, slots)
        reach = (TIME_OF_DAY_S + now_s() - self.run.started_at_s - self.record_s) * self._rate_hz
        if run_id != self.run.run_id or (slots.shape[0] and slots[0] < reach):
            symbols = np.where(
                (slots < reach) | (run_id != self.run.run_id), np.uint8(UNKNOWN_SYMBOL), symbols
            ).astype(np.uint8)
        return symbols


class ClickSource:
    """Bob's clicks. Whatever is set here takes effect with the next tick."""

    def __init__(self, light: Light, link: LinkParameters) -> None:
        self._light = light
        self._rate_hz = link.source.qubit_rate_hz
        self._tick_s = SIFTED_BITS / SIFTED_PER_SLOT / self._rate_hz / TICKS_OF_A_BLOCK
        self.error_rate = USUAL_ERROR_RATE
        self.locked = True
        self._numbering = 1
        self._run: EmissionRun | None = None
        self._reached = 0
        self._unannounced = 0

    async def use(self, source: TagSource, silence_limit_s: float) -> None:
        """Have no use for tags."""
        raise NotImplementedError

    def look_after(self) -> None:
        """There is nothing to take back."""

    def restart(self) -> None:
        """Count slots anew."""
        self._numbering += 1

    async def serve(self, part: BobSide) -> None:
        """Announce through ``part`` until its session ends."""
        await part.ready.wait()
        await part.run_known.wait()
        while True:
            await self._tick(part)
            await trio.sleep(self._tick_s)

    async def _tick(self, part: BobSide) -> None:
        run = part.run
        assert run is not None
        reached = round((TIME_OF_DAY_S + now_s() - run.started_at_s) * self._rate_hz)
        first = self._reached
        if self._run is None or self._run.run_id != run.run_id:
            self._run, first = run, reached
            self._numbering += 1
        if reached - first > 10 * self._tick_s * self._rate_hz:  # nobody was there to be told
            first = reached
        self._reached = reached
        cuts: tuple[SlotRange, ...] = (SlotRange(first, reached),)
        clicks, marks = NO_CLICKS, NO_MARKS
        if self.locked and reached > first:
            clicks, marks = self._light.clicks(run.run_id, first, reached, self.error_rate)
            cuts = ()
        z_clicks = int(np.count_nonzero(clicks.outcomes <= 1))
        dropped, self._unannounced = self._unannounced, 0
        news = ClickAnnouncement(
            run.run_id, self._numbering, clicks, z_clicks, reached, cuts, dropped, can_wait=False, marks=marks
        )
        try:
            await part.do(news)
        except LinkError:
            self._unannounced += dropped + len(clicks)
