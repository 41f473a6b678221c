"""The parameters of a link that give the most key: Alice's intensities and probabilities, Bob's splitter."""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Final, Literal

import msgspec.structs
from msgspec import Struct

from qnode.choices import choices_of
from qnode.config import LinkParameters
from qnode.plan.forecast import Forecast, forecast
from qnode.plan.search import Found, Interval, maximise
from qnode.simulate.parameters import SimulationParameters

Free = Literal["mu1", "mu2", "p_1", "p_z", "splitter"]
FREE: Final[tuple[Free, ...]] = choices_of(Free)
# The parameters that a transmitter can change; the splitter is a hardware part.
ALICES: Final[tuple[Free, ...]] = ("mu1", "mu2", "p_1", "p_z")

# mu2 is searched as a fraction of mu1.
_INTERVALS: Final[Mapping[Free, Interval]] = {
    "mu1": Interval(0.02, 1.2),
    "mu2": Interval(0.02, 0.9),
    "p_1": Interval(0.02, 0.98),
    "p_z": Interval(0.05, 0.99),
    "splitter": Interval(0.05, 0.99),
}
# The starts of searches, in addition to the link's own parameters: for unsaturated detectors; for saturated
# ones, for which fewer photons per qubit suffice; and the same with the weaker intensity as the usual one.
_STARTS: Final[tuple[Mapping[Free, float], ...]] = (
    {"mu1": 0.5, "mu2": 0.35, "p_1": 0.7, "p_z": 0.9, "splitter": 0.9},
    {"mu1": 0.15, "mu2": 0.3, "p_1": 0.4, "p_z": 0.9, "splitter": 0.6},
    {"mu1": 0.3, "mu2": 0.3, "p_1": 0.1, "p_z": 0.9, "splitter": 0.6},
)


class Optimum(Struct, frozen=True, kw_only=True):
    """The best parameters found, and their forecast."""

    link: LinkParameters
    forecast: Forecast
    evaluations: int


def optimum(
    simulation: SimulationParameters,
    link: LinkParameters,
    f_ec: float,
    free: Collection[Free] = ALICES,
    near: LinkParameters | None = None,
) -> Optimum:
    """Return ``link`` with the ``free`` parameters chosen for the most secret bits a second.

    ``near``: parameters that should be close to the best (the neighbour on a curve), for a shorter search.

    Raises:
        ValueError: no parameter is free, or the link gives no sifted bits.
    """
    names = [name for name in FREE if name in free]
    if not names:
        raise ValueError("no parameter is free to be chosen")
    intervals = [_INTERVALS[name] for name in names]

    def value(arguments: Sequence[float]) -> float:
        changed = _with(link, dict(zip(names, arguments, strict=True)))
        if changed is None:
            return -math.inf
        return forecast(simulation, changed, f_ec).margin_bits_per_s

    def climb(start: Mapping[Free, float], step: float) -> Found:
        return maximise(value, intervals, [start[name] for name in names], step=step)

    starts = (_values(link), *_STARTS)
    if near is None:
        found = [climb(start, 0.4) for start in starts]
    else:
        found = [climb(_values(near), 0.15)]
        # On a curve the optimum may change from one maximum to another.
        other = max(starts, key=lambda start: value([start[name] for name in names]))
        if value([other[name] for name in names]) > found[0].value * 0.9:
            found.append(climb(other, 0.4))
    best = max(found, key=lambda one: one.value)
    chosen = _with(link, dict(zip(names, best.arguments, strict=True)))
    if chosen is None:  # the link's own uncertainties leave no room between the intensities
        chosen = link
    return Optimum(
        link=chosen,
        forecast=forecast(simulation, chosen, f_ec),
        evaluations=sum(one.evaluations for one in found),
    )


def _values(link: LinkParameters) -> dict[Free, float]:
    source = link.source
    return {
        "mu1": source.mu[0],
        "mu2": source.mu[1] / source.mu[0],
        "p_1": source.p[0],
        "p_z": source.p_z,
        "splitter": link.receiver.p_z,
    }


def _with(link: LinkParameters, chosen: dict[Free, float]) -> LinkParameters | None:
    """Return ``link`` with these values, None if its uncertainties would allow equal intensities."""
    values = {**_values(link), **chosen}
    mu1 = values["mu1"]
    mu2 = mu1 * values["mu2"] if "mu2" in chosen or "mu1" not in chosen else link.source.mu[1]
    off1, off2 = link.source.mu_uncertainty
    if mu2 * (1.0 + off2) >= mu1 * (1.0 - off1):
        return None
    p = (chosen["p_1"], 1.0 - chosen["p_1"]) if "p_1" in chosen else link.source.p
    source = msgspec.structs.replace(link.source, mu=(mu1, mu2), p=p, p_z=values["p_z"])
    receiver = msgspec.structs.replace(link.receiver, p_z=values["splitter"])
    return msgspec.structs.replace(link, source=source, receiver=receiver)
