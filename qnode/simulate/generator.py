"""Time tags of the simulated receiver; they do not depend on the size of the steps."""

from dataclasses import dataclass

import msgspec
import numpy as np
import numpy.typing as npt

from qnode.choices import Arm, choices_of
from qnode.config import LinkParameters
from qnode.simulate.clicks import ClickState, Emission, Knots, Receiver, fill
from qnode.simulate.detection import CHANCE_BITS, TICK_BITS, TICKS_PER_SLOT
from qnode.simulate.drift import (
    bias_rad,
    fibre_rate,
    laser_power,
    phase_rad,
    phase_steps_rad,
    x_arm_loss_db,
)
from qnode.simulate.jitter import CLIPPED_SIGMAS
from qnode.simulate.light import arriving_light, attacked, contrast, maker, wrong_bin
from qnode.simulate.parameters import Settings, SimulationParameters
from qnode.simulate.symbols import limits
from qnode.tags.tag_time import signed_64
from qnode.tags.types import TagBlock
from qnode.units import PS_PER_S, decibels, transmission

KNOTS_PER_S = 100
KNOT_S = 1.0 / KNOTS_PER_S
# Knots are drawn a page at a time. Pages are long, because each kernel call waits for the interpreter's lock.
PAGE_KNOTS = 32 * KNOTS_PER_S
MOST_TAGS = 1 << 18
SEGMENT_CLICKS = (
    1 << 16
)  # at most, of a detector, processed at once; those of two detectors must fit into a step
_MASK = 2**64 - 1


@dataclass(frozen=True)
class Lit:
    """A run at Bob's detectors. ``first_knot``: when slot 0 left, in knots since tag time zero."""

    symbol_key: int
    first_knot: int

    def __repr__(self) -> str:
        return f"Lit(first_knot={self.first_knot})"


class TagGenerator:
    """The clicks of a receiver from tag time zero on; after 107 days their times wrap, as on hardware.

    Settings and run may change between steps. A change applies from the next knot (10 ms) that is not
    generated yet. With equal changes at equal knots the tags do not depend on the size of the steps, of which
    ``most_tags`` is the largest. ``world_s``: the time of the simulated world at tag time zero, for the
    daily drifts.
    """

    def __init__(
        self,
        simulation: SimulationParameters,
        link: LinkParameters,
        most_tags: int = MOST_TAGS,
        world_s: float = 0.0,
    ) -> None:
        self._most_tags = most_tags
        self._world_s = world_s
        self._simulation = simulation
        self._link = link
        streams = np.random.SeedSequence(simulation.seed).generate_state(4, np.uint64)
        self._state = ClickState.seeded(int(streams[0]))
        self._eve_key = int(streams[1])
        self._walks = np.random.Generator(np.random.PCG64(int(streams[2])))
        self._receiver = _receiver(simulation, link)
        self._z_limit, self._signal_limit = (int(limit) for limit in limits(link.source))
        phase_ps = link.source.period_ps * (
            1.0 + int(streams[3]) / 2.0**64
        )  # Bob's clock starts at a random phase
        self._first_arrival_ps = simulation.fibre_delay_s * PS_PER_S + phase_ps
        self._clock_ps = self._first_arrival_ps
        self._rate_walk = self._phase_rad = self._bias_rad = 0.0
        self._page = self._page_of_knots(0)
        self._page_start = 0
        self._promised_ps = -(2**62)  # no later tag is before this time

    @property
    def first_arrival_ps(self) -> float:
        """Tag time at which light sent at tag time zero would arrive (before the clocks drift apart)."""
        return self._first_arrival_ps

    @property
    def knot(self) -> int:
        """The first knot since tag time zero that is not completely generated yet."""
        return self._page_start + int(self._state.place[0])

    @property
    def arrival_ps(self) -> float:
        """Tag time at which light sent at the start of `knot` arrives."""
        knots, place = self._page, int(self._state.place[0])
        if place < PAGE_KNOTS:
            return float(knots.seconds_ps[place]) + float(knots.offsets_ps[place])
        return self._clock_ps + (self._page_start + PAGE_KNOTS) * KNOT_S * PS_PER_S

    def step(self, until_knot: int, settings: Settings, lit: Lit | None) -> TagBlock:
        """Generate up to ``until_knot``, but at most ``most_tags``.

        Call again while `knot` is below ``until_knot``. Without ``lit`` (or before its first knot, or with
        the source off) the detectors give dark counts and afterpulses.
        """
        times_ps = np.empty(self._most_tags, np.int64)
        channels = np.empty(self._most_tags, np.int8)
        n = 0
        while self.knot < until_knot:
            if int(self._state.place[0]) == PAGE_KNOTS:
                self._page_start += PAGE_KNOTS
                self._page = self._page_of_knots(self._page_start)
                self._state.place[:] = 0
            until, light = min(until_knot - self._page_start, PAGE_KNOTS), lit
            if lit is not None and self.knot < lit.first_knot:
                until, light = min(until, lit.first_knot - self._page_start), None
            emission = self._emission(settings, light)
            n += fill(self._state, self._page, until, self._receiver, emission, times_ps[n:], channels[n:])
            if int(self._state.place[0]) < until:
                break  # full
        if settings.eve_time_shift_ps:  # at the start of the shift, the earlier promise still holds
            promised_ps = np.int64(signed_64(self._promised_ps))
            times_ps[:n] = np.maximum(times_ps[:n] - promised_ps, 0) + promised_ps
        self._promised_ps = max(self._promised_ps, self._reached_ps(settings.eve_time_shift_ps))
        if n < self._most_tags // 2:  # a small block does not keep the memory of a large one
            return TagBlock(times_ps[:n].copy(), channels[:n].copy(), self._promised_ps)
        return TagBlock(times_ps[:n], channels[:n], self._promised_ps)

    def _emission(self, settings: Settings, lit: Lit | None) -> Emission:
        if lit is None:
            settings = msgspec.structs.replace(settings, source_on=False)
        # Power and polarisation drift so slowly that one value a page is enough.
        drift, world_s = self._simulation.drift, self._world_s + self._page_start * KNOT_S
        if drift.laser_daily:
            dimmer_db = settings.source_attenuation_db - decibels(laser_power(drift, world_s))
            settings = msgspec.structs.replace(settings, source_attenuation_db=dimmer_db)
        arriving = arriving_light(self._simulation, self._link, settings)
        if drift.x_arm_daily_db:
            arriving[1] *= transmission(x_arm_loss_db(drift, world_s))
        rate = self._link.source.qubit_rate_hz
        burst = settings.eve_burst_hz / rate
        return Emission(
            arriving=arriving,
            contrasts=contrast(self._simulation, self._page.phases_rad + settings.interferometer_phase_rad),
            wrong_bins=wrong_bin(self._simulation, self._page.biases_rad + settings.modulator_bias_rad),
            key=lit.symbol_key if lit is not None else 0,
            slot_offset=-(lit.first_knot * rate // KNOTS_PER_S) if lit is not None else 0,
            z_limit=self._z_limit,
            signal_limit=self._signal_limit,
            eve_key=self._eve_key,
            intercept_limit=round(attacked(settings) * 2**24),
            damping=settings.eve_damping,
            maker=maker(settings),
            bursts=np.array([burst if settings.eve_burst_arm == arm else 0.0 for arm in choices_of(Arm)]),
            shift_ticks=round(settings.eve_time_shift_ps / self._link.source.period_ps * TICKS_PER_SLOT),
            late_limit=round(settings.eve_after_gate * 2**24),
        )

    def _reached_ps(self, shift_ps: float) -> int:
        """Return a time before all later tags: the next event, less the largest jitter and shift."""
        knots, place = self._page, int(self._state.place[0])
        if int(self._state.place[1]):
            slots, row = int(self._state.positions.min()) >> TICK_BITS, place
        else:
            row = max(place - 1, 0)
            slots = int(knots.first_slots[place] - knots.first_slots[row])
        since = knots.slopes[row] * slots * self._receiver.period_ps
        earliest = CLIPPED_SIGMAS * self._simulation.jitter.sigma_ps + shift_ps
        second = self._page_start // KNOTS_PER_S
        return second * PS_PER_S + int(np.floor(knots.offsets_ps[row] + since - earliest))

    def _page_of_knots(self, start: int) -> Knots:
        """Return the knots of one page; each walk continues by one draw per knot."""
        rate, period = self._link.source.qubit_rate_hz, self._link.source.period_ps
        within = np.arange(PAGE_KNOTS + 1, dtype=np.int64) * rate // KNOTS_PER_S
        second = start // KNOTS_PER_S
        simulation = self._simulation
        steps = self._walks.standard_normal((PAGE_KNOTS, 3)) * np.sqrt(KNOT_S)
        rates = _walk(self._rate_walk, simulation.clock_walk_per_root_s * steps[:, 0])
        phases = _walk(self._phase_rad, simulation.interferometer_drift_rad_per_root_s * steps[:, 1])
        biases = _walk(self._bias_rad, simulation.modulator_drift_rad_per_root_s * steps[:, 2])
        drift = simulation.drift
        knots = np.arange(start, start + PAGE_KNOTS, dtype=np.float64)
        world_s = self._world_s + knots * KNOT_S
        phases[1:] += np.cumsum(phase_steps_rad(drift, self._walks, PAGE_KNOTS, KNOT_S))
        wander = simulation.fibre_delay_drift_ns_per_hour * 1e-9 / 3600.0 + fibre_rate(drift, world_s)
        excess = rates[:-1] + simulation.clock_offset_ppm * 1e-6 + wander
        lasts_ps = np.diff(within) * period
        clock_ps = _walk(self._clock_ps, excess * lasts_ps)
        self._rate_walk, self._phase_rad, self._bias_rad, self._clock_ps = (
            float(rates[-1]),
            float(phases[-1]),
            float(biases[-1]),
            float(clock_ps[-1]),
        )
        return Knots(
            first_slots=within + second * rate,
            seconds_ps=np.full(PAGE_KNOTS, signed_64(second * PS_PER_S), np.int64),
            offsets_ps=clock_ps[:-1] + within[:-1] * period,
            slopes=1.0 + excess,
            phases_rad=phases[:-1] + phase_rad(drift, world_s),
            biases_rad=biases[:-1] + bias_rad(drift, world_s),
        )


def _walk(start: float, steps: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return ``start`` and the sums after each step, added strictly in order."""
    return np.add.accumulate(np.concatenate(([start], steps)))


def _receiver(simulation: SimulationParameters, link: LinkParameters) -> Receiver:
    period_ps = link.source.period_ps
    detectors = (simulation.z_detector, simulation.x_detector)

    def ticks(ps: float) -> int:
        return round(ps / period_ps * TICKS_PER_SLOT)

    def chance(probability: float) -> int:
        return round(probability * (1 << CHANCE_BITS))

    dead = [ticks(detector.dead_time_s * PS_PER_S) for detector in detectors]
    shortest_slots = max(1, min(dead) // TICKS_PER_SLOT)  # between two clicks of a detector
    segment_slots = min(link.source.qubit_rate_hz // KNOTS_PER_S + 1, SEGMENT_CLICKS * shortest_slots)
    return Receiver(
        period_ps=period_ps,
        dark=np.array([d.dark_rate_hz * period_ps / PS_PER_S for d in detectors]),
        release=np.array([period_ps / PS_PER_S / d.afterpulse_lifetime_s for d in detectors]),
        trap_limits=np.array([chance(d.afterpulse_probability) for d in detectors], np.int64),
        dead_ticks=np.array(dead, np.int64),
        joint=simulation.hold_off == "joint",
        spacing_ticks=ticks(link.source.bin_spacing_ps),
        sigma_ps=simulation.jitter.sigma_ps,
        tail_limit=chance(simulation.jitter.tail_fraction),
        tail_ps=simulation.jitter.tail_ps,
        segment_slots=segment_slots,
        segment_clicks=segment_slots // shortest_slots + 2,
    )
