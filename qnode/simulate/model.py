"""The analytic model of link and detectors: the rates that the click generator should show.

It follows the link model of the security reference (section 5): a detector that sees the rate S while live,
with dark rate D, dead time tau and afterpulse probability p clicks at r = (S + D) / (1 - p + (S + D) tau), is
live for the fraction 1 - r tau, and meets the noise rate D + p r / (live fraction) while live. Beyond the
reference's formulas it counts what jitter carries into neighbouring gates, from neighbouring qubits too, the
boundary slots, and cross clicks: a slot in which both detectors click gets one of the four outcomes at
random (security reference 6.2), which a link without dead time pays for. Approximations: a joint hold-off is
averaged over both detectors, dead times shorter than a slot count as a slot, two clicks of one detector in a
slot are left out, and the state is that of constant settings (no drift).
"""

import math
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import product

from msgspec import Struct

from qnode.config import LinkParameters, ReceiverParameters, SourceParameters
from qnode.distill.counts import Pair, XCounts
from qnode.simulate.jitter import acceptance
from qnode.simulate.light import Light, light_sent
from qnode.simulate.parameters import DetectorParameters, JitterParameters, Settings, SimulationParameters
from qnode.tags.gates import Gate, Gates, gates
from qnode.tags.types import X_CHANNEL, X_PLUS, Z_CHANNEL, Z_EARLY, Z_LATE
from qnode.units import PS_PER_S

_SENT = (0, 1, 2, 4, 5, 6)  # symbol codes that Alice sends
Loads = tuple["DetectorLoad", "DetectorLoad"]
_OWN, _BEFORE, _AFTER = 0, -1, 1


class DetectorLoad(Struct, frozen=True):
    """How busy a detector is. ``saturation``: S tau. ``noise_hz``: dark counts and afterpulses while live."""

    incident_hz: float
    clicks_hz: float
    live_fraction: float
    noise_hz: float
    saturation: float


class LinkRates(Struct, frozen=True):
    """Expected events a second; pairs by intensity, signal first.

    ``n_z_plus``: clicks of the Z arm on |+>. ``boundary``: all clicks in boundary slots, whatever the states
    around them.
    """

    n_z: Pair
    m_z: Pair
    x: XCounts
    n_z_plus: Pair
    boundary: float
    z_detector: DetectorLoad
    x_detector: DetectorLoad

    @property
    def qber_z(self) -> float:
        """Bit errors among the sifted bits, a fraction."""
        return self.m_z.total / self.n_z.total


def expected_rates(
    simulation: SimulationParameters, link: LinkParameters, settings: Settings | None = None
) -> LinkRates:
    """Return the rates at ``settings`` (by default those that hold before any scheduled change)."""
    if settings is None:
        settings = Settings(attenuation_db=simulation.attenuation_db)
    source = link.source
    placed = _placed(source.qubit_rate_hz, source.bin_spacing_ps, link.receiver)
    model = _Model(simulation, link, light_sent(simulation, link, settings), _sent_shares(link), placed)
    loads = _loads(model, simulation, blinded=settings.eve_blinding)
    chances = {code: _chances(model, loads, code) for code in _SENT}
    n_z, m_z, n_z_plus = _z_rates(model, loads, chances)
    x, boundary = _x_rates(model, loads, chances)
    return LinkRates(n_z, m_z, x, n_z_plus, boundary, loads[Z_CHANNEL], loads[X_CHANNEL])


@dataclass(frozen=True, eq=False)
class _Model:
    """Light by what Alice sent, and how likely she sends it."""

    simulation: SimulationParameters
    link: LinkParameters
    light: Light
    shares: dict[int, float]
    placed: Gates
    _known: dict[tuple[int, Gate, int, int], float] = field(default_factory=dict)

    @property
    def jitter(self) -> JitterParameters:
        return self.simulation.jitter

    def click_chance(self, detector: int, code: int) -> float:
        """Return the chance that a qubit makes the live detector click (at most once)."""
        return -math.expm1(-math.fsum(self.light[detector, code].tolist()))

    def in_gate(self, detector: int, gate: Gate, code: int, neighbour: int) -> float:
        """Return the chance that a qubit clicks in ``gate`` of a slot, being its own or a neighbour."""
        asked = (detector, gate, code, neighbour)
        chance = self._known.get(asked)
        if chance is None:
            chance = self._known[asked] = self._chance_in_gate(*asked)
        return chance

    def _chance_in_gate(self, detector: int, gate: Gate, code: int, neighbour: int) -> float:
        light: list[float] = self.light[detector, code].tolist()
        total = math.fsum(light)
        if total <= 0.0:
            return 0.0
        period, spacing = self.link.source.period_ps, self.link.source.bin_spacing_ps
        accepted = sum(
            light[place]
            * acceptance(
                self.jitter, gate.centre_ps - place * spacing - neighbour * period, 2.0 * gate.half_width_ps
            )
            for place in range(3)
        )
        return -math.expm1(-total) * accepted / total

    def mean_in_gate(self, detector: int, gate: Gate, neighbour: int) -> float:
        """Return the same for a neighbour of which nothing is known."""
        return sum(self.shares[code] * self.in_gate(detector, gate, code, neighbour) for code in _SENT)


@lru_cache(maxsize=16)  # a search for the best intensities keeps its gates
def _placed(qubit_rate_hz: int, bin_spacing_ps: float, receiver: ReceiverParameters) -> Gates:
    source = SourceParameters(qubit_rate_hz=qubit_rate_hz, bin_spacing_ps=bin_spacing_ps)
    return gates(source, receiver)


def _sent_shares(link: LinkParameters) -> dict[int, float]:
    p_z = link.source.p_z
    states = {Z_EARLY: p_z / 2.0, Z_LATE: p_z / 2.0, X_PLUS: 1.0 - p_z}
    return {code: states[code & 3] * link.source.p[code >> 2] for code in _SENT}


def _loads(model: _Model, simulation: SimulationParameters, *, blinded: bool) -> Loads:
    """Return how busy the detectors are; blinded ones have no noise of their own."""
    rate_hz = model.link.source.qubit_rate_hz
    incident, wanted, dead = [], [], []
    for index, detector in enumerate((simulation.z_detector, simulation.x_detector)):
        signal = rate_hz * sum(
            share * model.click_chance(index, code) for code, share in model.shares.items()
        )
        incident.append(signal)
        afterpulse = 0.0 if blinded else detector.afterpulse_probability
        wanted.append((signal + (0.0 if blinded else detector.dark_rate_hz)) / (1.0 - afterpulse))
        # The wait for a slot that clicks already contains that slot: half of one at either end, on average.
        dead.append(max(detector.dead_time_s - 0.5 / rate_hz, 0.0))
    joint = simulation.hold_off == "joint"
    blanked = sum(w * d for w, d in zip(wanted, dead, strict=True))
    loads = []
    for index, detector in enumerate((simulation.z_detector, simulation.x_detector)):
        live = 1.0 / (1.0 + (blanked if joint else wanted[index] * dead[index]))
        clicks = wanted[index] * live
        noise = 0.0 if blinded else _noise_hz(detector, wanted[index])
        loads.append(
            DetectorLoad(incident[index], clicks, live, noise, incident[index] * detector.dead_time_s)
        )
    return loads[0], loads[1]


def _noise_hz(detector: DetectorParameters, clicks_while_live_hz: float) -> float:
    return detector.dark_rate_hz + detector.afterpulse_probability * clicks_while_live_hz


class _Chances(Struct, frozen=True):
    """The chances that a live detector clicks in gates of a slot. ``boundary``: without the qubit before."""

    early: float
    late: float
    central: float
    boundary: float

    @property
    def z(self) -> float:
        """In any gate of the Z detector."""
        return self.early + self.late


def _chances(model: _Model, loads: Loads, code: int) -> _Chances:
    placed, z_load, x_load = model.placed, loads[Z_CHANNEL], loads[X_CHANNEL]
    return _Chances(
        model.in_gate(Z_CHANNEL, placed.early, code, _OWN) + _stray(model, z_load, Z_CHANNEL, placed.early),
        model.in_gate(Z_CHANNEL, placed.late, code, _OWN) + _stray(model, z_load, Z_CHANNEL, placed.late),
        model.in_gate(X_CHANNEL, placed.central, code, _OWN)
        + _stray(model, x_load, X_CHANNEL, placed.central),
        model.in_gate(X_CHANNEL, placed.boundary, code, _OWN) + _noise(x_load, placed.boundary),
    )


def _z_rates(model: _Model, loads: Loads, chances: dict[int, _Chances]) -> tuple[Pair, Pair, Pair]:
    """Return sifted bits, bit errors, and clicks on |+> a second."""
    sifted, errors, plus = [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]
    before = model.mean_in_gate(X_CHANNEL, model.placed.boundary, _BEFORE)
    for code, slot in chances.items():
        in_x = slot.central + slot.boundary + before
        for outcome, chance in enumerate((slot.early, slot.late)):
            rate = model.shares[code] * _kept(model, loads, Z_CHANNEL, chance, slot.z, in_x)
            if code & 3 == X_PLUS:
                plus[code >> 2] += rate
                continue
            sifted[code >> 2] += rate
            errors[code >> 2] += rate if outcome != code & 3 else 0.0
    return Pair(*sifted), Pair(*errors), Pair(*plus)


def _x_rates(model: _Model, loads: Loads, chances: dict[int, _Chances]) -> tuple[XCounts, float]:
    """Return the classes of X-arm clicks a second, and all clicks in boundary slots."""
    counts = {name: [0.0, 0.0] for name in XCounts.__struct_fields__}
    all_boundary = 0.0
    for before, own in product(_SENT, _SENT):
        share, slot = model.shares[before] * model.shares[own], chances[own]
        boundary = slot.boundary + model.in_gate(X_CHANNEL, model.placed.boundary, before, _BEFORE)
        in_x = slot.central + boundary
        name = "c_plus" if own & 3 == X_PLUS else "c_z"
        counts[name][own >> 2] += share * _kept(model, loads, X_CHANNEL, slot.central, in_x, slot.z)
        kept = share * _kept(model, loads, X_CHANNEL, boundary, in_x, slot.z)
        all_boundary += kept
        name, carrier = _boundary_class(before, own)
        if name:
            counts[name][carrier >> 2] += kept
    return XCounts(**{name: Pair(*pair) for name, pair in counts.items()}), all_boundary


def _kept(
    model: _Model, loads: Loads, detector: int, chance: float, own_chance: float, other_chance: float
) -> float:
    """Return how often a second a detector's outcome of ``chance`` a slot is what the slot gets.

    ``own_chance``, ``other_chance``: that this detector, the other one, clicks in any gate while live. Of the
    slots in which both do, a quarter gets this outcome, whatever it was.
    """
    joint = model.simulation.hold_off == "joint"  # then one of them alone clicks
    other_chance *= 0.0 if joint else loads[1 - detector].live_fraction
    kept = chance * (1.0 - other_chance) + own_chance * other_chance / 4.0
    return loads[detector].live_fraction * model.link.source.qubit_rate_hz * kept


def _boundary_class(before: int, own: int) -> tuple[str, int]:
    """Return the class of a boundary slot between two symbols and which of them carries the light."""
    states = (before & 3, own & 3)
    if states == (Z_EARLY, Z_EARLY):
        return "e_same", own
    if states == (Z_LATE, Z_LATE):
        return "e_same", before
    if states == (Z_EARLY, X_PLUS):
        return "e_plus", own
    if states == (X_PLUS, Z_LATE):
        return "e_plus", before
    if states == (Z_EARLY, Z_LATE):
        return "e_dark", own
    return "", own


def _stray(model: _Model, load: DetectorLoad, detector: int, gate: Gate) -> float:
    """Return the chance a slot of a click in ``gate`` that the slot's own qubit did not cause."""
    neighbours = model.mean_in_gate(detector, gate, _BEFORE) + model.mean_in_gate(detector, gate, _AFTER)
    return neighbours + _noise(load, gate)


def _noise(load: DetectorLoad, gate: Gate) -> float:
    return load.noise_hz * 2.0 * gate.half_width_ps / PS_PER_S
