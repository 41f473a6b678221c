"""Alice's end of the simulated fibre: her run, her symbols, and what time it is in the simulated world."""

import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import numpy as np
import trio

from qnode.config import SourceParameters
from qnode.devices.protocols import EmissionRun
from qnode.errors import DeviceError
from qnode.simulate.fibre import Claim, Hello, Line, Run, Set, World, background
from qnode.simulate.fibre_address import FibreAddress
from qnode.simulate.generator import KNOT_S, KNOTS_PER_S
from qnode.simulate.parameters import Change, SimulationParameters
from qnode.simulate.symbols import symbols
from qnode.tags.types import UNKNOWN_SYMBOL, Codes, Slots

# The end of time is known from the receiver's claims only, and tags may overtake a claim: slots that lie a
# day of simulated time beyond it were certainly not sent.
_AHEAD_KNOTS = 86_400 * KNOTS_PER_S


@dataclass(frozen=True)
class _Emission:
    """A run and the key of its symbols."""

    run_id: int
    symbol_key: int
    first_knot: int

    @classmethod
    def begun(cls, first_knot: int) -> "_Emission":
        return cls(secrets.randbits(63), secrets.randbits(64), first_knot)

    def __repr__(self) -> str:
        return f"_Emission(run_id={self.run_id}, first_knot={self.first_knot})"


def site_offset_s(simulation: SimulationParameters, site: str) -> float:
    """Return how far the time of day of ``site`` is off, within the configured limit."""
    limit = simulation.start_offset_limit_s
    generator = np.random.default_rng([simulation.seed, *site.encode()])
    return float(generator.uniform(-limit, limit))


class TransmitterEnd:
    """Alice's source: one run after the other, each with its own symbols."""

    def __init__(self, simulation: SimulationParameters, source: SourceParameters) -> None:
        self._source = source
        self._speed = simulation.speed if simulation.speed != "max" else 1.0
        self._offset_s = site_offset_s(simulation, "alice")
        began = int(time.time() * KNOTS_PER_S)
        self._world = World(began, began)
        self._world_at_s = trio.current_time()
        self._emission = _Emission.begun(began)
        self._new_run = trio.Event()
        self._change = Change()
        self._lines: set[Line] = set()

    @property
    def emission_run(self) -> EmissionRun:
        """The present run, its start as Alice's site knows it."""
        return EmissionRun(self._emission.run_id, self._emission.first_knot * KNOT_S + self._offset_s)

    async def runs(self) -> AsyncGenerator[EmissionRun, None]:
        """Yield the present run, then each later one."""
        while True:
            event = self._new_run
            yield self.emission_run
            await event.wait()

    def symbols(self, run_id: int, slots: Slots) -> Codes:
        """Look up symbol codes; unknown for another run than the present, and for slots never sent."""
        emission = self._emission
        if run_id != emission.run_id:
            return np.full(slots.shape[0], UNKNOWN_SYMBOL, np.uint8)
        knots = self._world.next_knot - emission.first_knot + _AHEAD_KNOTS
        return symbols(
            emission.symbol_key, slots, self._source, knots * self._source.qubit_rate_hz // KNOTS_PER_S
        )

    async def change(self, change: Change) -> None:
        """Change settings from the first knot that Bob's end has not generated; kept while this end lives."""
        self._change = self._change.merged(change)
        for line in tuple(self._lines):
            await _try_send(line, Set(self._change))

    def present_world(self) -> World:
        """Return the world with the first knot that Bob's end cannot have generated yet."""
        elapsed_s = (trio.current_time() - self._world_at_s) * self._speed
        return World(self._world.began_knot, self._world.next_knot + int(elapsed_s * KNOTS_PER_S))

    async def serve(self, stream: trio.SocketStream) -> None:
        """Talk to one receiver's end until it is gone."""
        line = Line(stream)
        try:
            while (message := await line.receive()) is not None:
                if isinstance(message, Hello):
                    self._meet(message)
                    self._lines.add(line)
                    emission = self._emission
                    run = Run(emission.run_id, emission.symbol_key, emission.first_knot, self.present_world())
                    await _try_send(line, run)
                    await _try_send(line, Set(self._change))
                elif isinstance(message, Claim):
                    self._pass(message.next_knot)
        except DeviceError:
            return  # whoever speaks something else loses this connection and nothing more
        finally:
            self._lines.discard(line)
            await line.aclose()

    def _meet(self, hello: Hello) -> None:
        """Take over the world of a receiver that has one; begin a run in it unless he knows ours."""
        if hello.world is None:
            return
        self._world = hello.world
        self._world_at_s = trio.current_time()
        if hello.run_id != self._emission.run_id:
            self._emission = _Emission.begun(hello.world.next_knot)
            self._new_run.set()
            self._new_run = trio.Event()

    def _pass(self, next_knot: int) -> None:
        if next_knot > self._world.next_knot:
            self._world = World(self._world.began_knot, next_knot)
            self._world_at_s = trio.current_time()


async def _try_send(line: Line, message: Run | Set) -> None:
    """Send; a receiver that is gone is noticed by whoever reads from him."""
    with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        await line.send(message)


@asynccontextmanager
async def open_transmitter(
    fibre: FibreAddress, simulation: SimulationParameters, source: SourceParameters
) -> AsyncIterator[TransmitterEnd]:
    """Listen at ``fibre`` and send; left, the light goes out.

    Raises:
        DeviceError: see `FibreAddress.listen`.
    """
    end = TransmitterEnd(simulation, source)

    async def serve(stream: trio.SocketStream) -> None:
        if fibre.admits(stream):
            await end.serve(stream)
        else:
            await trio.aclose_forcefully(stream)

    listeners = await fibre.listen()
    try:
        async with background() as nursery:
            nursery.start_soon(trio.serve_listeners, serve, listeners)
            yield end
    finally:
        fibre.left()
