"""Tags and symbols of the simulated link without processes or devices between them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from qnode.config import LinkParameters
from qnode.simulate.generator import KNOTS_PER_S, Lit, TagGenerator
from qnode.simulate.parameters import SimulationParameters
from qnode.simulate.symbols import symbols
from qnode.tags.types import Codes, Slots, TagBlock

BLOCK_KNOTS: Final = KNOTS_PER_S // 20


@dataclass(frozen=True)
class SimulatedRecording:
    """The recordings of both sites of one emission run that begins at tag time zero."""

    simulation: SimulationParameters
    link: LinkParameters
    symbol_key: int = 1

    def __repr__(self) -> str:
        return f"SimulatedRecording({self.link.name!r})"

    def tags(self, duration_s: float) -> Iterator[TagBlock]:
        """Yield ``duration_s`` seconds of tags in blocks of 0.05 s, because lock needs a few blocks."""
        generator = TagGenerator(self.simulation, self.link)
        lit = Lit(self.symbol_key, 0)
        end = round(duration_s * KNOTS_PER_S)
        while generator.knot < end:
            until = min(end, generator.knot + BLOCK_KNOTS)
            yield generator.step(until, self.simulation.settings_at(0.0), lit)

    def symbols(self, slots: Slots) -> Codes:
        """Return what Alice sent."""
        return symbols(self.symbol_key, slots, self.link.source)
