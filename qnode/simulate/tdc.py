"""Bob's end of the simulated fibre: it makes simulated time pass, and time tags with it."""

import math
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

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
# How much wall time of tags makes a block, and how far a slow consumer may put an unpaced source behind.
BLOCK_S = 0.1
# At speed blocks are long, so that what each costs in hand-overs vanishes; but soon after the light changed
# they are short, a third of the time since then, so that lock is not late by a block.
SHORTEST_BLOCK_S = 0.1
LONGEST_BLOCK_S = 32.0
# Large blocks: whatever is done once a block, by either site, is done less often.
MOST_TAGS = 1 << 20
MOST_LAG_S = 1.0
CLAIM_AT_MOST_S = 10.0  # of tag time at once, where no speed says how much a wall second is
NOT_ADMITTED = "closed without an answer; does fibre_peer at Alice's admit this host?"

log = structlog.get_logger()


class ReceiverEnd:
    """Bob's detectors and time tagger."""

    def __init__(self, simulation: SimulationParameters, link: LinkParameters, world: World) -> None:
        self._simulation = simulation
        self._began_knot = world.began_knot
        self._zero_knot = world.next_knot
        self._claimed_knot = world.next_knot
        self._generator = TagGenerator(simulation, link, MOST_TAGS)
        self._run: Run | None = None
        self._last_run_id: int | None = None
        self._change = Change()
        self._line: Line | None = None
        self._lit = trio.Event()
        self._changed_knot = 0

    @property
    def origin_s(self) -> float:
        """Tag time zero as Bob's site knows it."""
        return self._zero_knot * KNOT_S + site_offset_s(self._simulation, "bob")

    @property
    def paced(self) -> bool:
        """True at real time only: at any other speed the source waits for a slow consumer."""
        return self._simulation.speed == REALTIME

    async def tags(self) -> AsyncGenerator[TagBlock, None]:
        """Yield tag blocks of at most 32 seconds and 2^20 tags, as fast as the speed allows."""
        pace = _Pace(self._generator.knot)
        while True:
            speed = self._present_speed()
            knot = self._generator.knot
            until = self._block_end(knot, speed)
            pace.set(speed, knot, may_lag=not self.paced)
            if not await self._due(pace.due_s(until)):
                continue  # the light came on: the speed may be another
            settings, lit = self._settings(knot), self._as_lit(self._run)
            await self._claim(until)
            while self._generator.knot < until:
                yield await trio.to_thread.run_sync(self._generator.step, until, settings, lit)

    def _block_end(self, knot: int, speed: float) -> int:
        """Return up to which knot the next block goes; no change of the light lies within it."""
        offset = self._began_knot - self._zero_knot
        changes = [offset + math.ceil(change.at_s * KNOTS_PER_S) for change in self._simulation.schedule]
        latest = max((at for at in changes if at <= knot), default=0)
        steady_s = (knot - max(latest, self._changed_knot)) * KNOT_S
        block_s = min(BLOCK_S * speed, LONGEST_BLOCK_S, max(SHORTEST_BLOCK_S, steady_s / 3))
        until = knot + max(1, round(block_s * KNOTS_PER_S))
        return min([until, *(at for at in changes if at > knot)])

    async def follow(self, fibre: FibreAddress, line: Line | None) -> None:
        """Stay connected to the transmitter at ``fibre``, beginning with ``line`` if there is one.

        Raises:
            DeviceError: somebody speaks something else there.
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
        """Let the light of ``run`` in."""
        self._run = run
        self._last_run_id = run.run_id
        self._change = Change()
        self._line = line
        self._changed_knot = self._generator.knot
        self._lit.set()

    async def _listen(self, line: Line) -> bool:
        """Follow the transmitter's end until it is gone; return whether it ever said what it sends."""
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
        """Return a connection on which we have said what time it is; None if there is nobody."""
        try:
            line = Line(await fibre.connect())
        except OSError:
            return None
        # What was claimed and not generated is given back: a living receiver knows better.
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
        """Tell the transmitter's end, now and then, how far time is going to have passed."""
        next_knot = self._zero_knot + until
        if next_knot <= self._claimed_knot or self._line is None:
            return
        speed = self._simulation.speed
        ahead_s = CLAIM_AT_MOST_S if speed == "max" else speed
        self._claimed_knot = next_knot + round(KNOTS_PER_S * ahead_s)
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):  # `_listen` notices as well
            await self._line.send(Claim(self._claimed_knot))

    def _present_speed(self) -> float:
        """Return tag seconds a wall second; in the dark, where nobody waits for a key, real time at most."""
        speed = self._simulation.speed if self._simulation.speed != "max" else math.inf
        return speed if self._run is not None else min(speed, REALTIME)

    async def _due(self, due_s: float) -> bool:
        """Wait until ``due_s``; return False when light came on in the dark before."""
        if self._run is not None:
            await trio.sleep_until(due_s)
            return True
        with trio.move_on_at(due_s):
            await self._lit.wait()
            return False
        return True

    def _settings(self, knot: int) -> Settings:
        middle_s = (self._zero_knot + knot - self._began_knot + 0.5) * KNOT_S  # no trouble with rounding
        return self._change.applied(self._simulation.settings_at(middle_s))

    def _as_lit(self, run: Run | None) -> Lit | None:
        return None if run is None else Lit(run.symbol_key, run.first_knot - self._zero_knot)


class _Pace:
    """Wall time against tag time."""

    def __init__(self, knot: int) -> None:
        self._speed = math.inf
        self._since_s, self._since_knot = trio.current_time(), knot

    def set(self, speed: float, knot: int, *, may_lag: bool) -> None:
        """Begin anew at a new speed; and, where lag is forgiven, after too much of it."""
        now_s = trio.current_time()
        lags = may_lag and now_s - self.due_s(knot) > MOST_LAG_S
        if speed != self._speed or lags:
            self._speed, self._since_s, self._since_knot = speed, now_s, knot

    def due_s(self, knot: int) -> float:
        """Return when ``knot`` begins."""
        return self._since_s + (knot - self._since_knot) * KNOT_S / self._speed


@dataclass(frozen=True, eq=False)
class _Joined:
    """A connection to a transmitter, and what it sends."""

    line: Line
    run: Run


@asynccontextmanager
async def open_receiver(
    fibre: FibreAddress, simulation: SimulationParameters, link: LinkParameters
) -> AsyncIterator[ReceiverEnd]:
    """Join the world of the transmitter at ``fibre``, or begin a dark one and wait for it.

    Raises:
        DeviceError: somebody speaks something else there.
    """
    joined = await _join(fibre)
    now = int(time.time() * KNOTS_PER_S)
    end = ReceiverEnd(simulation, link, joined.run.world if joined is not None else World(now, now))
    async with background() as nursery:
        if joined is not None:
            end.begin(joined.run, joined.line)
        nursery.start_soon(end.follow, fibre, joined.line if joined is not None else None)
        yield end


async def _join(fibre: FibreAddress) -> _Joined | None:
    """Ask the transmitter for its world; None if there is nobody, or not for long enough."""
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
