"""A link over days of drift, with and without its controllers, through the analytic model.

Every ten seconds the model gives the rates at the present drifts and settings, and chance draws the counts.
The controllers are those of the node (`qnode.calibration`); they see what they see in the node: the central
share of a stretch, the errors of a decided block, the power at a monitor. A block is decided by the node's
own rules. Time tags, clock and session are not part of it: the node follows the delay by itself.
"""

import math
from collections.abc import Iterator
from contextlib import suppress

import msgspec.structs
import numpy as np
from msgspec import Struct

from qnode.block.decision import check_size, decide
from qnode.block.outcome import BlockLost
from qnode.block.span_policy import BlockRates, choose_span_s
from qnode.calibration.hold import PowerTarget, corrected_attenuation_db
from qnode.calibration.tracker import Shape, Stretch, Tracker, central_cosine, central_slope, share
from qnode.config import LinkParameters
from qnode.config.calibration import BiasSection, PhaseSection
from qnode.distill.counts import Pair, XCounts
from qnode.distill.keylength import binary_entropy
from qnode.distill.reconcile import leaked_bits
from qnode.plan.forecast import USUAL_F_EC
from qnode.simulate.drift import DriftParameters, bias_rad, laser_power, phase_rad, x_arm_loss_db
from qnode.simulate.model import LinkRates, expected_rates
from qnode.simulate.parameters import Settings, SimulationParameters
from qnode.units import decibels

STEP_S = 10.0
HALF_WAVE_V = 5.0
# The drifts of an installed link over 69 hours.
DRIFT = DriftParameters(
    interferometer_turn_s=2400.0,
    interferometer_step_rad=0.1,
    interferometer_steps_per_hour=6.0,
    modulator_daily_rad=0.1 * math.pi / HALF_WAVE_V,
    laser_daily=0.05,
    fibre_daily_ns=10.0 * 24.0 / (2.0 * math.pi),
    x_arm_daily_db=0.5,
)
BIAS_WALK_RAD_PER_ROOT_S = 0.05 * math.pi / HALF_WAVE_V / 60.0
# An attenuator is set in steps of 5 s at the power of a monitor with this noise.
MONITOR_NOISE = 0.002
NOMINAL_DB = 20.0
# The tags that are cut at a step of the phase: its command, a block of tags, and the settling time.
CUT_S = 0.25


class BlockFigures(Struct, frozen=True, kw_only=True):
    """One block: its end, span and public figures; ``secret_bits`` is 0 for one that gave no key."""

    end_s: float
    span_s: float
    n_z: float
    m_z: float
    c_plus: float
    c_z: float
    secret_bits: int
    lost: str


class Course(Struct, frozen=True, kw_only=True):
    """The blocks of one run. ``phase_errors_rad``: of the best phase known, one a step."""

    blocks: list[BlockFigures]
    phase_errors_rad: list[float]
    p_z: float

    @property
    def qber_z(self) -> float:
        """Mean error rate of the sifted bits."""
        return sum(one.m_z for one in self.blocks) / sum(one.n_z for one in self.blocks)

    @property
    def e_vis(self) -> float:
        """Mean visibility error."""
        return error_of_visibility(self.blocks, self.p_z)

    @property
    def secret_bits_per_s(self) -> float:
        """Secret bits a second."""
        return sum(one.secret_bits for one in self.blocks) / sum(one.span_s for one in self.blocks)

    @property
    def accepted(self) -> float:
        """The share of the blocks that gave key."""
        return sum(one.secret_bits > 0 for one in self.blocks) / len(self.blocks)


def error_of_visibility(blocks: list[BlockFigures], p_z: float) -> float:
    """Return e_vis of blocks together; nan without clicks."""
    c_z = sum(one.c_z for one in blocks)
    if not c_z:
        return math.nan
    return p_z / (2.0 * (1.0 - p_z)) * sum(one.c_plus for one in blocks) / c_z


class _World:
    """The drifts of a run: the same for every run with the same seed."""

    def __init__(self, drift: DriftParameters, walk_rad_per_root_s: float, hours: float, seed: int) -> None:
        steps = round(hours * 3600.0 / STEP_S)
        random = np.random.default_rng([seed, 1])
        self.middles_s = np.arange(steps, dtype=np.float64) * STEP_S + STEP_S / 2.0
        chance = drift.interferometer_steps_per_hour * STEP_S / 3600.0
        happens = random.random(steps) < chance
        jumps = np.where(happens, random.choice([-1.0, 1.0], steps) * drift.interferometer_step_rad, 0.0)
        self.phases_rad = phase_rad(drift, self.middles_s) + np.cumsum(jumps)
        walk = random.normal(0.0, walk_rad_per_root_s * math.sqrt(STEP_S), steps)
        self.biases_rad = bias_rad(drift, self.middles_s) + np.cumsum(walk)
        self.laser = [laser_power(drift, float(at_s)) for at_s in self.middles_s]
        self.x_loss_db = [x_arm_loss_db(drift, float(at_s)) for at_s in self.middles_s]


class _Controls:
    """The settings, and the controllers that change them; none if ``on`` is false."""

    def __init__(self, link: LinkParameters, visibility: float, *, on: bool) -> None:
        self._on = on
        self._p_x, self._visibility = 1.0 - link.source.p_z, visibility
        phase, bias = PhaseSection(), BiasSection()
        per_v = math.pi / bias.half_wave_v
        self.phase = Tracker(
            Shape(
                slope=central_slope(self._p_x, visibility),
                dither_rad=phase.dither_rad,
                limits_rad=(-4.0, 4.0),
                walk_rad_per_root_s=phase.walk_rad_per_root_s,
                rate_rad_per_s=phase.rate_rad_per_s,
            ),
            0.0,
        )
        rate = bias.rate_v_per_hour * per_v / 3600.0
        self.bias = Tracker(
            Shape(
                slope=0.49,
                dither_rad=bias.dither_v * per_v,
                limits_rad=(-10.0 * per_v, 10.0 * per_v),
                walk_rad_per_root_s=bias.walk_v_per_root_hour * per_v / 60.0,
                rate_rad_per_s=rate,
                rate_walk=rate / math.sqrt(6.0 * 3600.0),
            ),
            0.0,
        )
        self._power = PowerTarget(power_w=1.0, limits_db=(0.0, 60.0))
        self._attenuation_db = NOMINAL_DB
        self._agreed_before_s = 0.0

    def settings(self, attenuation_db: float) -> Settings:
        """Return the settings, without the drifts."""
        return Settings(
            attenuation_db=attenuation_db,
            source_attenuation_db=self._attenuation_db - NOMINAL_DB,
            interferometer_phase_rad=self.phase.setting_rad if self._on else 0.0,
            modulator_bias_rad=self.bias.setting_rad if self._on else 0.0,
        )

    @property
    def cut_s(self) -> float:
        """What a step loses to its adjustment."""
        return CUT_S if self._on else 0.0

    def see_stretch(self, central: int, boundary: int, middle_s: float) -> None:
        """Adjust the phase."""
        if not self._on or not boundary:
            return
        signal, variance = share(central, central + boundary)
        cosine = central_cosine(signal, self._p_x, self._visibility)
        stretch = Stretch(signal=signal, variance=variance, at_s=middle_s, cosine=cosine)
        self.phase.observe(stretch, middle_s + STEP_S)

    def see_power(self, power: float) -> None:
        """Adjust the attenuation, twice in a step."""
        for _ in range(2 if self._on else 0):
            behind = power * 10.0 ** (-(self._attenuation_db - NOMINAL_DB) / 10.0)
            next_db = corrected_attenuation_db(self._power, self._attenuation_db, behind)
            self._attenuation_db = self._attenuation_db if next_db is None else next_db

    def see_block(self, errors: int, bits: int, began_s: float, end_s: float) -> None:
        """Adjust the bias; a block counts if it was agreed after the last change, one block ahead."""
        if not self._on or not bits or began_s < self._agreed_before_s:
            return
        signal, variance = share(errors, bits)
        middle_s = (began_s + end_s) / 2.0
        self.bias.observe(
            Stretch(signal=signal, variance=variance, at_s=middle_s), middle_s + 2.0 * (end_s - began_s)
        )
        self._agreed_before_s = end_s + 0.5 * (end_s - began_s)  # the next block is agreed already


def course(
    link: LinkParameters, simulation: SimulationParameters, *, hours: float, drifts: bool, controlled: bool,
    seed: int = 1,
) -> Course:  # fmt: skip
    """Run the link for ``hours``, with the drifts or without."""
    drift = DRIFT if drifts else DriftParameters()
    world = _World(drift, BIAS_WALK_RAD_PER_ROOT_S if drifts else 0.0, hours, seed)
    controls = _Controls(link, simulation.visibility, on=controlled)
    random = np.random.default_rng([seed, 2])
    blocks, phase_errors = list[BlockFigures](), list[float]()
    pending = _Block(link, expected_rates(simulation, link).n_z.total, 0.0)
    for index, middle_s in enumerate(world.middles_s.tolist()):
        settings = controls.settings(simulation.attenuation_db)
        phase = settings.interferometer_phase_rad + float(world.phases_rad[index])
        best = controls.phase.centre_rad if controlled else 0.0
        phase_errors.append(math.remainder(best + float(world.phases_rad[index]), 2.0 * math.pi))
        rates = expected_rates(
            msgspec.structs.replace(
                simulation, x_arm_loss_db=max(0.0, simulation.x_arm_loss_db + world.x_loss_db[index])
            ),
            link,
            msgspec.structs.replace(
                settings,
                source_attenuation_db=settings.source_attenuation_db - decibels(world.laser[index]),
                interferometer_phase_rad=math.remainder(phase, 2.0 * math.pi),
                modulator_bias_rad=settings.modulator_bias_rad + float(world.biases_rad[index]),
            ),
        )
        central, boundary = pending.add(rates, STEP_S - controls.cut_s, random)
        controls.see_stretch(central, boundary, middle_s)
        controls.see_power(world.laser[index] * (1.0 + random.normal(0.0, MONITOR_NOISE)))
        end_s = middle_s + STEP_S / 2.0
        if pending.full(end_s):
            done = pending.decided(end_s)
            controls.see_block(round(done.m_z), round(done.n_z), pending.began_s, end_s)
            blocks.append(done)
            pending = _Block(link, done.n_z / done.span_s, end_s)
    return Course(blocks=blocks, phase_errors_rad=phase_errors, p_z=link.source.p_z)


class _Block:
    """The counts of a running block; its span follows from the rate of the block before."""

    def __init__(self, link: LinkParameters, rate_hz: float, began_s: float) -> None:
        self._link = link
        self.began_s = began_s
        self._ends_s = began_s + choose_span_s(link, max(rate_hz, 1.0), None)
        self._sums: dict[str, list[float]] = {}

    def add(self, rates: LinkRates, lasting_s: float, random: np.random.Generator) -> tuple[int, int]:
        """Draw the counts of a step; return the central and the boundary clicks."""

        def draw(name: str, *hz: float) -> list[float]:
            drawn = [float(random.poisson(rate * lasting_s)) for rate in hz]
            before = self._sums.setdefault(name, [0.0] * len(drawn))
            self._sums[name] = [a + b for a, b in zip(before, drawn, strict=True)]
            return drawn

        draw("m_z", rates.m_z.signal, rates.m_z.decoy)
        right = rates.n_z.signal - rates.m_z.signal, rates.n_z.decoy - rates.m_z.decoy
        draw("right", *right)
        draw("n_z_plus", rates.n_z_plus.signal, rates.n_z_plus.decoy)
        clicks = {name: draw(name, *_pair(rates.x, name)) for name in XCounts.__struct_fields__}
        (rest,) = draw("rest", max(0.0, rates.boundary - rates.x.boundary))
        boundary = rest + sum(sum(clicks[name]) for name in ("e_same", "e_plus", "e_dark"))
        return round(sum(clicks["c_plus"]) + sum(clicks["c_z"])), round(boundary)

    def full(self, at_s: float) -> bool:
        """Return whether the block has ended."""
        return at_s >= self._ends_s

    def decided(self, end_s: float) -> BlockFigures:
        """Decide the block as the node does."""
        sums, span_s = self._sums, end_s - self.began_s
        m_z = Pair(*sums["m_z"])
        n_z = Pair(sums["right"][0] + m_z.signal, sums["right"][1] + m_z.decoy)
        x = XCounts(**{name: Pair(*sums[name]) for name in XCounts.__struct_fields__})
        disclosed = USUAL_F_EC * n_z.total * binary_entropy(min(0.5, m_z.total / max(n_z.total, 1.0)))
        per_s = BlockRates(
            n_z=_scaled(n_z, span_s),
            m_z=_scaled(m_z, span_s),
            x=XCounts(*(_scaled(getattr(x, name), span_s) for name in XCounts.__struct_fields__)),
            n_z_plus=_scaled(Pair(*sums["n_z_plus"]), span_s),
            boundary=(x.boundary + sums["rest"][0]) / span_s,
            alice_parities=disclosed / span_s,
            leak_bits=disclosed * leaked_bits(1, self._link.reconciliation.leak_count) / span_s,
        )
        counts = per_s.counts(span_s, self._link.source.qubit_rate_hz)
        secret_bits, lost = 0, ""
        try:
            check_size(math.floor(n_z.total), self._link)
            secret_bits = decide(counts, self._link).length
        except BlockLost as reason:
            lost = reason.reason
        return BlockFigures(
            end_s=end_s,
            span_s=span_s,
            n_z=n_z.total,
            m_z=m_z.total,
            c_plus=x.c_plus.total,
            c_z=x.c_z.total,
            secret_bits=secret_bits,
            lost=lost,
        )


def _pair(x: XCounts, name: str) -> tuple[float, float]:
    pair: Pair = getattr(x, name)
    return pair.signal, pair.decoy


def _scaled(pair: Pair, span_s: float) -> Pair:
    return Pair(pair.signal / span_s, pair.decoy / span_s)


def hourly(course: Course, hours_each: float) -> Iterator[tuple[float, float, float, float]]:
    """Yield the middle in hours, QBER_Z, e_vis and secret bits a second of each part of the run."""
    parts: dict[int, list[BlockFigures]] = {}
    for block in course.blocks:
        parts.setdefault(int(block.end_s / 3600.0 / hours_each), []).append(block)
    for number, blocks in sorted(parts.items()):
        with suppress(ZeroDivisionError):
            yield (
                (number + 0.5) * hours_each,
                sum(one.m_z for one in blocks) / sum(one.n_z for one in blocks),
                error_of_visibility(blocks, course.p_z),
                sum(one.secret_bits for one in blocks) / sum(one.span_s for one in blocks),
            )
