"""The analytic model of link and detectors: the expected rates of the click generator.

The model follows the link model of the security reference (section 5). A detector with the rate S while live,
dark rate D, dead time tau and afterpulse probability p clicks at r = (S + D) / (1 - p + (S + D) tau). It is
live for the fraction 1 - r tau, and has the noise rate D + p r / (live fraction) while live. Beyond the
reference's formulas it counts the jitter into neighbouring gates, also from neighbouring qubits, the
boundary slots, and cross clicks. A slot in which both detectors click gets one of the four outcomes at random
(security reference 6.2), which adds errors on a link without dead time. Approximations: a joint hold-off is
averaged over both detectors, dead times shorter than a slot count as a slot, two clicks of one detector in a
slot are left out, and the state is that of constant settings (no drift).
"""

import math
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import product

from msgspec import Struct

from qnode.config import LinkParameters, ReceiverParameters, SourceParameters
from qnode.distill.counts import Pair, XCounts
from qnode.simulate.jitter import acceptance
from qnode.simulate.light import BLINDED, CAREFUL, HONEST, Light, light_sent, maker
from qnode.simulate.parameters import DetectorParameters, JitterParameters, Settings, SimulationParameters
from qnode.tags.gates import Gate, Gates, gates
from qnode.tags.types import X_CHANNEL, X_PLUS, Z_CHANNEL, Z_EARLY, Z_LATE
from qnode.units import PS_PER_S

_SENT = (0, 1, 2, 4, 5, 6)  # symbol codes that Alice sends
Loads = tuple["DetectorLoad", "DetectorLoad"]
_OWN, _BEFORE, _AFTER = 0, -1, 1


class DetectorLoad(Struct, frozen=True):
    """The load of a detector. ``saturation``: S tau. ``noise_hz``: dark counts and afterpulses while live."""

    incident_hz: float
    clicks_hz: float
    live_fraction: float
    noise_hz: float
    saturation: float


class LinkRates(Struct, frozen=True):
    """Expected events a second; pairs by intensity, signal first.

    ``n_z_plus``: clicks of the Z arm on |+>. ``boundary``: all clicks in boundary slots. ``cross_clicks``:
    slots with a click at either detector. ``out_of_gate``: tags in no gate.
    """

    n_z: Pair
    m_z: Pair
    x: XCounts
    z_detector: DetectorLoad
    x_detector: DetectorLoad
    n_z_plus: Pair
    boundary: float
    cross_clicks: float
    out_of_gate: float

    @property
    def qber_z(self) -> float:
        """Bit errors among the sifted bits, a fraction."""
        return self.m_z.total / self.n_z.total


def expected_rates(
    simulation: SimulationParameters, link: LinkParameters, settings: Settings | None = None
) -> LinkRates:
    """Return the rates at ``settings`` (by default those that hold before any scheduled change)."""
    if settings is None:
        settings = simulation.first_settings()
    source = link.source
    placed = _placed(source.qubit_rate_hz, source.bin_spacing_ps, link.receiver)
    light = light_sent(simulation, link, settings)
    model = _Model(simulation, link, light, _sent_shares(link), placed, settings)
    loads = _loads(model, simulation)
    chances = {code: _chances(model, loads, code) for code in _SENT}
    n_z, m_z, n_z_plus = _z_rates(model, loads, chances)
    x, boundary = _x_rates(model, loads, chances)
    out_of_gate = loads[Z_CHANNEL].clicks_hz + loads[X_CHANNEL].clicks_hz - _in_gates(model, loads, chances)
    cross = _cross_clicks(model, loads, chances)
    return LinkRates(n_z, m_z, x, *loads, n_z_plus, boundary, cross, out_of_gate)


@dataclass(frozen=True, eq=False)
class _Model:
    """Light by the state that Alice sent, and the probabilities of the states."""

    simulation: SimulationParameters
    link: LinkParameters
    light: Light
    shares: dict[int, float]
    placed: Gates
    settings: Settings
    _known: dict[tuple[int, Gate, int, int], float] = field(default_factory=dict)

    @property
    def jitter(self) -> JitterParameters:
        return self.simulation.jitter

    def click_chance(self, detector: int, code: int) -> float:
        """Return the probability that a qubit makes the live detector click (at most once)."""
        return -math.expm1(-math.fsum(self.light[detector, code].tolist()))

    def in_gate(self, detector: int, gate: Gate, code: int, neighbour: int) -> float:
        """Return the probability that a qubit clicks in ``gate`` of its own slot or a neighbour's."""
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
            light[place] * self._acceptance(gate, place * spacing + neighbour * period) for place in range(3)
        )
        return -math.expm1(-total) * accepted / total

    @cached_property
    def moves(self) -> list[tuple[float, float]]:
        """The shares of the light, and Eve's delay of each in ps."""
        shift_ps, late = self.settings.eve_time_shift_ps, self.settings.eve_after_gate
        sides = [(1.0, 0.0)] if shift_ps == 0.0 else [(0.5, -shift_ps), (0.5, shift_ps)]
        parts = [(1.0 - late, 0.0), (late, self.link.source.period_ps / 4.0)]
        return [(side * part, by + more) for side, by in sides for part, more in parts if part]

    def _acceptance(self, gate: Gate, at_ps: float) -> float:
        """Return the fraction of the light due at ``at_ps`` that is in ``gate``."""
        offset_ps, width_ps = gate.centre_ps - at_ps, 2.0 * gate.half_width_ps
        return sum(share * acceptance(self.jitter, offset_ps - by, width_ps) for share, by in self.moves)

    def burst_hz(self, detector: int) -> float:
        """Return the rate of Eve's pulses between the gates of ``detector``."""
        dazzled = Z_CHANNEL if self.settings.eve_burst_arm == "z" else X_CHANNEL
        blinded = maker(self.settings) == BLINDED
        return self.settings.eve_burst_hz if detector == dazzled and not blinded else 0.0

    def burst_in_gate(self, detector: int, gate: Gate) -> float:
        """Return the probability per slot that jitter moves such a pulse into ``gate``."""
        rate_hz = self.burst_hz(detector)
        if not rate_hz:
            return 0.0
        period = self.link.source.period_ps
        at_ps = (self.link.source.bin_spacing_ps + period) / 2.0
        accepted = sum(self._acceptance(gate, at_ps + slots * period) for slots in (_BEFORE, _OWN, _AFTER))
        return rate_hz * period / PS_PER_S * accepted

    def mean_in_gate(self, detector: int, gate: Gate, neighbour: int) -> float:
        """Return the same probability for a neighbour of unknown state."""
        return sum(self.shares[code] * self.in_gate(detector, gate, code, neighbour) for code in _SENT)


@lru_cache(maxsize=16)  # a search for the best intensities does not change the gates
def _placed(qubit_rate_hz: int, bin_spacing_ps: float, receiver: ReceiverParameters) -> Gates:
    source = SourceParameters(qubit_rate_hz=qubit_rate_hz, bin_spacing_ps=bin_spacing_ps)
    return gates(source, receiver)


def _sent_shares(link: LinkParameters) -> dict[int, float]:
    p_z = link.source.p_z
    states = {Z_EARLY: p_z / 2.0, Z_LATE: p_z / 2.0, X_PLUS: 1.0 - p_z}
    return {code: states[code & 3] * link.source.p[code >> 2] for code in _SENT}


def _loads(model: _Model, simulation: SimulationParameters) -> Loads:
    """Return the loads of the detectors; blinded detectors have no noise of their own."""
    blinded = maker(model.settings) == BLINDED
    rate_hz = model.link.source.qubit_rate_hz
    incident, wanted, dead = [], [], []
    for index, detector in enumerate((simulation.z_detector, simulation.x_detector)):
        signal = rate_hz * sum(
            share * model.click_chance(index, code) for code, share in model.shares.items()
        )
        incident.append(signal)
        afterpulse = 0.0 if blinded else detector.afterpulse_probability
        noise = 0.0 if blinded else detector.dark_rate_hz + model.burst_hz(index)
        wanted.append((signal + noise) / (1.0 - afterpulse))
        # The wait for a slot that clicks already contains that slot: on average half of one at either end.
        dead.append(max(detector.dead_time_s - 0.5 / rate_hz, 0.0))
    joint = simulation.hold_off == "joint"
    blanked = sum(w * d for w, d in zip(wanted, dead, strict=True))
    loads = []
    for index, detector in enumerate((simulation.z_detector, simulation.x_detector)):
        live = 1.0 / (1.0 + (blanked if joint else wanted[index] * dead[index]))
        clicks = wanted[index] * live
        noise = 0.0 if blinded else _noise_hz(detector, wanted[index])
        saturation = incident[index] * detector.dead_time_s
        loads.append(DetectorLoad(incident[index], clicks, live, noise, saturation))
    return loads[0], loads[1]


def _noise_hz(detector: DetectorParameters, clicks_while_live_hz: float) -> float:
    return detector.dark_rate_hz + detector.afterpulse_probability * clicks_while_live_hz


class _Chances(Struct, frozen=True):
    """Click probabilities of a live detector in gates of a slot. ``boundary``: without the qubit before."""

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
        model.in_gate(X_CHANNEL, placed.boundary, code, _OWN)
        + _noise(model, x_load, X_CHANNEL, placed.boundary),
    )


def _z_rates(model: _Model, loads: Loads, chances: dict[int, _Chances]) -> tuple[Pair, Pair, Pair]:
    """Return sifted bits, bit errors, and clicks on |+> a second."""
    sifted, errors, plus = [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]
    for code in _SENT:
        slot, in_x = chances[code], _x_beside(model, loads, chances[code])
        for outcome, chance in enumerate((slot.early, slot.late)):
            rate = model.shares[code] * _kept(model, loads, Z_CHANNEL, chance, slot.z, in_x)
            if code & 3 == X_PLUS:
                plus[code >> 2] += rate
            else:
                sifted[code >> 2] += rate
                errors[code >> 2] += rate if outcome != code & 3 else 0.0
    return Pair(*sifted), Pair(*errors), Pair(*plus)


def _x_rates(model: _Model, loads: Loads, chances: dict[int, _Chances]) -> tuple[XCounts, float]:
    """Return the classes of X-arm clicks, and all clicks in boundary slots, a second."""
    counts = {name: [0.0, 0.0] for name in XCounts.__struct_fields__}
    in_boundary = 0.0
    for before, own in product(_SENT, _SENT):
        share, slot = model.shares[before] * model.shares[own], chances[own]
        boundary = slot.boundary + model.in_gate(X_CHANNEL, model.placed.boundary, before, _BEFORE)
        in_x, in_z = slot.central + boundary, _z_beside(model, loads, slot)
        name = "c_plus" if own & 3 == X_PLUS else "c_z"
        counts[name][own >> 2] += share * _kept(model, loads, X_CHANNEL, slot.central, in_x, in_z)
        name, carrier = _boundary_class(before, own)
        kept = share * _kept(model, loads, X_CHANNEL, boundary, in_x, in_z)
        in_boundary += kept
        if name:
            counts[name][carrier >> 2] += kept
    return XCounts(**{name: Pair(*pair) for name, pair in counts.items()}), in_boundary


def _x_beside(model: _Model, loads: Loads, slot: _Chances) -> float:
    """Return the probability of an X click in a slot with a Z click; Eve avoids two clicks at once.

    Light that Eve makes for the other arm cannot click in this one; only noise and other qubits can.
    """
    placed, load = model.placed, loads[X_CHANNEL]
    before = model.mean_in_gate(X_CHANNEL, placed.boundary, _BEFORE)
    if maker(model.settings) == CAREFUL:
        return 0.0
    if maker(model.settings) != HONEST:
        noise = _noise(model, load, X_CHANNEL, placed.boundary)
        return _stray(model, load, X_CHANNEL, placed.central) + noise + before
    return slot.central + slot.boundary + before


def _z_beside(model: _Model, loads: Loads, slot: _Chances) -> float:
    """Return the probability of a Z click in a slot with an X click, like `_x_beside`."""
    if maker(model.settings) == CAREFUL:
        return 0.0
    if maker(model.settings) != HONEST:
        load, gates_z = loads[Z_CHANNEL], (model.placed.early, model.placed.late)
        return sum(_stray(model, load, Z_CHANNEL, gate) for gate in gates_z)
    return slot.z


def _cross_clicks(model: _Model, loads: Loads, chances: dict[int, _Chances]) -> float:
    """Return how many slots a second have a click in a gate of either detector."""
    if model.simulation.hold_off == "joint":
        return 0.0
    chance = sum(
        model.shares[code] * slot.z * _x_beside(model, loads, slot) for code, slot in chances.items()
    )
    live = loads[Z_CHANNEL].live_fraction * loads[X_CHANNEL].live_fraction
    return live * model.link.source.qubit_rate_hz * chance


def _in_gates(model: _Model, loads: Loads, chances: dict[int, _Chances]) -> float:
    """Return the number of tags per second in a gate."""
    before = model.mean_in_gate(X_CHANNEL, model.placed.boundary, _BEFORE)
    in_z = sum(model.shares[code] * slot.z for code, slot in chances.items())
    in_x = sum(model.shares[code] * (slot.central + slot.boundary) for code, slot in chances.items()) + before
    live = loads[Z_CHANNEL].live_fraction * in_z + loads[X_CHANNEL].live_fraction * in_x
    return live * model.link.source.qubit_rate_hz


def _kept(
    model: _Model, loads: Loads, detector: int, chance: float, own_chance: float, other_chance: float
) -> float:
    """Return how often per second a slot keeps an outcome that a detector has with ``chance`` per slot.

    ``own_chance``, ``other_chance``: the probabilities that this detector, or the other one, clicks in any
    gate while live. A quarter of the slots in which both click gets this outcome at random.
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
    """Return the probability per slot of a click in ``gate`` that the slot's own qubit did not cause."""
    neighbours = model.mean_in_gate(detector, gate, _BEFORE) + model.mean_in_gate(detector, gate, _AFTER)
    return neighbours + _noise(model, load, detector, gate)


def _noise(model: _Model, load: DetectorLoad, detector: int, gate: Gate) -> float:
    """Return the probability per slot of a click in ``gate`` that no qubit caused."""
    return load.noise_hz * 2.0 * gate.half_width_ps / PS_PER_S + model.burst_in_gate(detector, gate)
