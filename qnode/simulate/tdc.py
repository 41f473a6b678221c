"""Bob's end of the simulated fibre: it advances simulated time and generates time tags."""

import math
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import msgspec
import structlog
import trio

from qnode.config import LinkParameters
from qnode.simulate.fibre import Claim, Hello, Line, Run, Set, World, background
from qnode.simulate.fibre_address import FibreAddress
from qnode.simulate.generator import KNOT_S, KNOTS_PER_S, Lit, TagGenerator
from qnode.simulate.parameters import Change, Settings, SimulationParameters
from qnode.simulate.transmitter import site_offset_s
from qnode.tags.types import TagBlock

REALTIME = 1.0
# The wall time of a block of tags, and the largest delay of an unpaced source by a slow consumer.
BLOCK_S = 0.1
# At high speed blocks are long, so that the costs per block are negligible. Soon after a change of the light
# they are short, a third of the time since then, so that lock is not delayed by a block.
SHORTEST_BLOCK_S = 0.1
LONGEST_BLOCK_S = 32.0
# A controller of this end sees the effect of a setting when the tags after it come.
LONGEST_CONTROLLED_BLOCK_S = 0.5
# Large blocks reduce the costs per block at both sites.
MOST_TAGS = 1 << 20
MOST_LAG_S = 1.0
MOST_CLAIMED_AHEAD_S = 3.0  # in real time: a claim, the time since it, and some lateness
CLAIM_AT_MOST_S = 10.0  # of tag time at once, if no speed is set
NOT_ADMITTED = "closed without an answer; does fibre_peer at Alice's admit this host?"

log = structlog.get_logger()


class ReceiverEnd:
    """Bob's detectors and time tagger."""

    def __init__(self, simulation: SimulationParameters, link: LinkParameters, world: World) -> None:
        self._simulation = simulation
        self._began_knot = world.began_knot
        self._zero_knot = world.next_knot
        self._claimed_knot = world.next_knot
        world_s = (world.next_knot - world.began_knot) * KNOT_S
        self._generator = TagGenerator(simulation, link, MOST_TAGS, world_s)
        self._phase_rad: float | None = None
        self._run: Run | None = None
        self._last_run_id: int | None = None
        self._change = Change()
        self._line: Line | None = None
        self._lit = trio.Event()
        self._changed_knot = 0

    @property
    def origin_s(self) -> float:
        """Tag time zero by the wall clock of Bob's site."""
        return self._zero_knot * KNOT_S + site_offset_s(self._simulation, "bob")

    @property
    def paced(self) -> bool:
        """True in real time only: at any other speed the source waits for a slow consumer."""
        return self._simulation.speed == REALTIME

    @property
    def phase_rad(self) -> float:
        """What was set of the interferometer's phase."""
        return self._phase_rad or 0.0

    def set_phase(self, phase_rad: float) -> None:
        """Add ``phase_rad`` to the interferometer's phase, from the next tags that are not yet generated."""
        self._phase_rad = phase_rad

    async def tags(self) -> AsyncGenerator[TagBlock, None]:
        """Yield tag blocks of at most 32 seconds and 2^20 tags, as fast as the speed allows."""
        pace = _Pace(self._generator.knot)
        while True:
            speed = self._present_speed()
            knot = self._generator.knot
            until = self._block_end(knot, speed)
            pace.set(speed, knot, may_lag=not self.paced)
            if not await self._due(pace.due_s(until)):
                continue  # the light came on: the speed may have changed
            settings, lit = self._settings(knot), self._as_lit(self._run)
            await self._claim(until)
            while self._generator.knot < until:
                present = msgspec.structs.replace(
                    settings, interferometer_phase_rad=settings.interferometer_phase_rad + self.phase_rad
                )
                yield await trio.to_thread.run_sync(self._generator.step, until, present, lit)

    def _block_end(self, knot: int, speed: float) -> int:
        """Return the end of the next block as a knot; the light does not change within a block."""
        offset = self._began_knot - self._zero_knot
        changes = [offset + math.ceil(change.at_s * KNOTS_PER_S) for change in self._simulation.schedule]
        latest = max((at for at in changes if at <= knot), default=0)
        steady_s = (knot - max(latest, self._changed_knot)) * KNOT_S
        longest_s = LONGEST_BLOCK_S if self._phase_rad is None else LONGEST_CONTROLLED_BLOCK_S
        block_s = min(BLOCK_S * speed, longest_s, max(SHORTEST_BLOCK_S, steady_s / 3))
        until = knot + max(1, round(block_s * KNOTS_PER_S))
        return min([until, *(at for at in changes if at > knot)])

    async def follow(self, fibre: FibreAddress, line: Line | None) -> None:
        """Stay connected to the transmitter at ``fibre``, beginning with ``line`` if there is one.

        Raises:
            DeviceError: the other end uses another protocol.
        """
        told = False
        while True:
            if line is not None:
                answered = await self._listen(line)
                if not (answered or told):
                    log.warning("fibre.refused", fibre=str(fibre), because=NOT_ADMITTED)
                told = not answered
            await trio.sleep(fibre.retry_s)
            line = await self._connected(fibre)

    def begin(self, run: Run, line: Line) -> None:
        """Start the light of ``run``."""
        self._run = run
        self._last_run_id = run.run_id
        self._change = Change()
        self._line = line
        self._changed_knot = self._generator.knot
        self._lit.set()

    async def _listen(self, line: Line) -> bool:
        """Follow the transmitter's end until it disconnects; return whether it ever sent a run."""
        try:
            while (message := await line.receive()) is not None:
                if isinstance(message, Run):
                    self.begin(message, line)
                elif isinstance(message, Set):
                    self._change = message.change
            return self._run is not None
        finally:
            self._run, self._line, self._lit = None, None, trio.Event()
            self._changed_knot = self._generator.knot
            await line.aclose()

    async def _connected(self, fibre: FibreAddress) -> Line | None:
        """Return a connection on which the time was sent; None if nobody listens."""
        try:
            line = Line(await fibre.connect())
        except OSError:
            return None
        # Return the claimed time that was not generated: a living receiver knows the exact time.
        self._claimed_knot = self._zero_knot + self._generator.knot
        greeted = False
        try:
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                await line.send(Hello(World(self._began_knot, self._claimed_knot), self._last_run_id))
                greeted = True
        finally:
            if not greeted:
                await line.aclose()
        return line if greeted else None

    async def _claim(self, until: int) -> None:
        """Send the coming time to the transmitter's end from time to time."""
        next_knot = self._zero_knot + until
        if next_knot <= self._claimed_knot or self._line is None:
            return
        speed = self._simulation.speed
        ahead_s = CLAIM_AT_MOST_S if speed == "max" else speed
        self._claimed_knot = next_knot + round(KNOTS_PER_S * ahead_s)
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):  # `_listen` also detects this
            await self._line.send(Claim(self._claimed_knot))

    def _present_speed(self) -> float:
        """Return tag seconds per wall second; in the dark at most 1, because nobody waits for a key."""
        speed = self._simulation.speed if self._simulation.speed != "max" else math.inf
        return speed if self._run is not None else min(speed, REALTIME)

    async def _due(self, due_s: float) -> bool:
        """Wait until ``due_s``; return False if light came on before."""
        if self._run is not None:
            await trio.sleep_until(due_s)
            return True
        with trio.move_on_at(due_s):
            await self._lit.wait()
            return False
        return True

    def _settings(self, knot: int) -> Settings:
        middle_s = (self._zero_knot + knot - self._began_knot + 0.5) * KNOT_S  # avoids rounding errors
        return self._change.applied(self._simulation.settings_at(middle_s))

    def _as_lit(self, run: Run | None) -> Lit | None:
        return None if run is None else Lit(run.symbol_key, run.first_knot - self._zero_knot)


class _Pace:
    """The relation of wall time and tag time."""

    def __init__(self, knot: int) -> None:
        self._speed = math.inf
        self._since_s, self._since_knot = trio.current_time(), knot

    def set(self, speed: float, knot: int, *, may_lag: bool) -> None:
        """Restart at a new speed, or after too much lag if lag is allowed."""
        now_s = trio.current_time()
        lags = may_lag and now_s - self.due_s(knot) > MOST_LAG_S
        if speed != self._speed or lags:
            self._speed, self._since_s, self._since_knot = speed, now_s, knot

    def due_s(self, knot: int) -> float:
        """Return the wall time of the start of ``knot``."""
        return self._since_s + (knot - self._since_knot) * KNOT_S / self._speed


@dataclass(frozen=True, eq=False)
class _Joined:
    """A connection to a transmitter, and its run."""

    line: Line
    run: Run


@asynccontextmanager
async def open_receiver(
    fibre: FibreAddress, simulation: SimulationParameters, link: LinkParameters
) -> AsyncIterator[ReceiverEnd]:
    """Join the world of the transmitter at ``fibre``, or begin a dark world and wait for it.

    Raises:
        DeviceError: the other end uses another protocol.
    """
    joined = await _join(fibre)
    now = int(time.time() * KNOTS_PER_S)
    end = ReceiverEnd(simulation, link, joined.run.world if joined is not None else World(now, now))
    if end.paced:
        # The world was claimed ahead: else each restart would take it further from the time of day.
        ahead_s = (joined.run.world.next_knot * KNOT_S - time.time()) if joined is not None else 0.0
        await trio.sleep(min(max(0.0, ahead_s), MOST_CLAIMED_AHEAD_S))
    async with background() as nursery:
        if joined is not None:
            end.begin(joined.run, joined.line)
        nursery.start_soon(end.follow, fibre, joined.line if joined is not None else None)
        yield end


async def _join(fibre: FibreAddress) -> _Joined | None:
    """Request the world from the transmitter; None if nobody listens, or not long enough."""
    try:
        line = Line(await fibre.connect())
    except OSError:
        return None
    run: Run | None = None
    try:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await line.send(Hello(None, None))
            while run is None and (message := await line.receive()) is not None:
                run = message if isinstance(message, Run) else None
    finally:
        if run is None:
            await line.aclose()
    return _Joined(line, run) if run is not None else None
