"""Key rate against loss, distance, size of a block or dead time, as configured and at the best parameters."""

import math
from collections.abc import Collection, Sequence
from typing import Final, Literal

import msgspec.structs
from msgspec import Struct

from qnode.choices import choices_of
from qnode.config import LinkParameters
from qnode.plan.forecast import Forecast, at_loss, forecast, reach_db
from qnode.plan.optimum import Free, Optimum, optimum
from qnode.simulate.parameters import SimulationParameters

Against = Literal["loss", "distance", "block", "dead-time"]
AGAINST: Final[tuple[Against, ...]] = choices_of(Against)

_BLOCK_BITS: Final = (1e4, 5e7)
_DEAD_TIME_US: Final = (0.1, 200.0)
# The extent of a curve beyond the reach as configured, because the best parameters reach further.
_BEYOND_REACH_DB: Final = 6.0


class Fibre(Struct, frozen=True, kw_only=True):
    """The loss of a fibre by length; ``excess_db`` is other loss (splices, patches, a switch)."""

    db_per_km: float = 0.2
    excess_db: float = 0.0

    def loss_db(self, length_km: float) -> float:
        """Return the attenuation of a fibre of this length."""
        return self.excess_db + self.db_per_km * length_km

    def length_km(self, loss_db: float) -> float:
        """Return the length that has this attenuation, 0 where the excess alone is more."""
        return max(0.0, loss_db - self.excess_db) / self.db_per_km


class Link(Struct, frozen=True, kw_only=True):
    """The link that is planned: simulated optics, shared parameters, fibre, efficiency of correction."""

    simulation: SimulationParameters
    link: LinkParameters
    f_ec: float
    fibre: Fibre = Fibre()

    def at(self, against: Against, x: float) -> "Link":
        """Return the link with one thing changed to ``x``: dB, km, sifted bits, or microseconds."""
        replace = msgspec.structs.replace
        simulation, link = self.simulation, self.link
        match against:
            case "loss":
                simulation = at_loss(simulation, x)
            case "distance":
                simulation = at_loss(simulation, self.fibre.loss_db(x))
            case "block":
                link = replace(link, block=replace(link.block, sifted_bits=round(x)))
            case "dead-time":
                simulation = replace(
                    simulation,
                    z_detector=replace(simulation.z_detector, dead_time_s=x * 1e-6),
                    x_detector=replace(simulation.x_detector, dead_time_s=x * 1e-6),
                )
        return replace(self, simulation=simulation, link=link)

    def forecast(self) -> Forecast:
        """Return the expected block as configured."""
        return forecast(self.simulation, self.link, self.f_ec)

    def optimum(self, free: Collection[Free], near: LinkParameters | None = None) -> Optimum:
        """Return the best choice of the ``free`` parameters."""
        return optimum(self.simulation, self.link, self.f_ec, free, near)

    def reach_db(self) -> float | None:
        """Return the largest attenuation that still gives key as configured."""
        return reach_db(self.simulation, self.link, self.f_ec)


class CurvePoint(Struct, frozen=True):
    """One point of a curve; ``best`` is None if not requested, or if no choice gives key."""

    x: float
    now: Forecast
    best: Optimum | None


def places(link: Link, against: Against, count: int) -> list[float]:
    """Return the points of a curve, ascending: round steps in dB and km, even ratios otherwise.

    With round steps there may be fewer than ``count`` points.
    """
    if against in ("loss", "distance"):
        furthest = max(link.reach_db() or 0.0, link.simulation.attenuation_db) + _BEYOND_REACH_DB
        if against == "distance":
            furthest = link.fibre.length_km(furthest)
        step = _round_step(furthest / (count - 1))
        return [step * i for i in range(math.ceil(furthest / step) + 1)]
    low, high = _BLOCK_BITS if against == "block" else _DEAD_TIME_US
    return [low * (high / low) ** (i / (count - 1)) for i in range(count)]


def curve(link: Link, against: Against, at: Sequence[float], free: Collection[Free]) -> list[CurvePoint]:
    """Return the key rate at each point, ascending; without ``free`` only as configured.

    Each search starts from the result of its neighbour on the side with more key. No search is made beyond
    the first point without key.
    """
    points: list[CurvePoint] = []
    near: LinkParameters | None = None
    searching = bool(free)
    for x in sorted(at, reverse=against == "block"):
        changed = link.at(against, x)
        best = changed.optimum(free, near) if searching else None
        if best is not None and best.forecast.lost is not None:
            best, searching = None, False
        if best is not None:
            near = best.link
        points.append(CurvePoint(x, changed.forecast(), best))
    return sorted(points, key=lambda point: point.x)


def _round_step(least: float) -> float:
    """Return the next of 1, 2, 2.5 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1.0, 2.0, 2.5, 5.0, 10.0) if factor * power >= least)


def decades(values: Sequence[float]) -> float:
    """Return how many powers of ten the positive ones among ``values`` span."""
    positive = [value for value in values if value > 0.0]
    return math.log10(max(positive) / min(positive)) if positive else 0.0
