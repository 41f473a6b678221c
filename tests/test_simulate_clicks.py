"""The click generator: repeatable in any steps, and with the timing of real detectors and clocks."""

import msgspec
import numpy as np
import pytest
from simulated_counts import KEY, Tags, record, still

from qnode.choices import DeadTime
from qnode.config import LinkParameters
from qnode.simulate.generator import KNOTS_PER_S, PAGE_KNOTS, Lit, TagGenerator
from qnode.simulate.jitter import acceptance
from qnode.simulate.parameters import (
    DetectorParameters,
    JitterParameters,
    Settings,
    SimulationParameters,
)
from qnode.simulate.symbols import symbols
from qnode.tags.types import UNKNOWN_SYMBOL, X_CHANNEL, Z_CHANNEL, TagBlock
from qnode.units import PS_PER_S

LINK = LinkParameters()
PERIOD_PS = LINK.source.period_ps
QUIET = DetectorParameters(dark_rate_hz=0.0, afterpulse_probability=0.0)
BUSY = DetectorParameters(efficiency=0.9, dead_time_s=0.0, afterpulse_probability=0.0)


def in_steps(simulation: SimulationParameters, knots: list[int]) -> TagBlock:
    """Generate in steps that end at ``knots``, with Eve and darkness coming and going at thirds."""
    generator = TagGenerator(simulation, LINK)
    blocks = []
    third = knots[-1] // 3
    for until in knots:
        while generator.knot < until:
            part = generator.knot // third
            settings = Settings(
                eve_intercept=0.3 * (part % 2), attenuation_db=simulation.settings_at(0.0).attenuation_db
            )
            lit = Lit(KEY, third // 5) if part < 2 else None
            blocks.append(generator.step(min(until, (part + 1) * third), settings, lit))
    return TagBlock(
        np.concatenate([block.times_ps for block in blocks]),
        np.concatenate([block.channels for block in blocks]),
        blocks[-1].until_ps,
    )


@pytest.mark.parametrize(
    ("name", "simulation", "knots"),
    [
        (
            "drifting",
            SimulationParameters(
                interferometer_drift_rad_per_root_s=0.3, modulator_drift_rad_per_root_s=0.1, seed=7
            ),
            300,
        ),
        ("beyond a page", SimulationParameters(attenuation_db=30.0), PAGE_KNOTS + 100),
        ("joint", SimulationParameters(hold_off="joint"), 150),
        (
            "no dead time",
            SimulationParameters(attenuation_db=3.0, z_detector=BUSY, x_detector=QUIET),
            9,
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_steps_do_not_change_the_tags(name: str, simulation: SimulationParameters, knots: int) -> None:
    whole = in_steps(simulation, [knots])
    third = knots // 3
    for steps in ([1, 2, third // 2, third + 2, knots - 1, knots], list(range(1, knots + 1))):
        parts = in_steps(simulation, steps)
        assert np.array_equal(parts.times_ps, whole.times_ps)
        assert np.array_equal(parts.channels, whole.channels)
    other = in_steps(msgspec.structs.replace(simulation, seed=8), [knots])
    assert not np.array_equal(other.times_ps, whole.times_ps)


@pytest.mark.parametrize("hold_off", ["independent", "joint"])
def test_clicks_of_both_detectors_come_in_order(hold_off: DeadTime) -> None:
    exact = JitterParameters(sigma_ps=0.001, tail_fraction=0.0)
    simulation = still(
        SimulationParameters(
            attenuation_db=0.0, z_detector=BUSY, x_detector=BUSY, jitter=exact, hold_off=hold_off
        )
    )
    generator = TagGenerator(simulation, LINK)
    block = generator.step(1, Settings(attenuation_db=0.0), Lit(KEY, 0))
    assert np.count_nonzero(block.channels == X_CHANNEL) > 10_000
    assert np.count_nonzero(block.channels == Z_CHANNEL) > 10_000
    assert np.diff(block.times_ps).min() >= 0


def test_a_full_buffer_does_not_change_the_tags() -> None:
    dense = SimulationParameters(attenuation_db=0.0, z_detector=BUSY, x_detector=BUSY)
    generator = TagGenerator(dense, LINK)
    blocks = []
    while generator.knot < 3:  # several blocks a knot
        blocks.append(generator.step(3, Settings(attenuation_db=0.0), Lit(KEY, 0)))
        assert blocks[-1].times_ps.size <= 1 << 18
    times = np.concatenate([block.times_ps for block in blocks])
    assert len(blocks) > 3
    assert (np.bincount(np.floor(times / (10**10)).astype(np.int64), minlength=3)[:3] > 5e5).all()
    complete = [block.until_ps for block in blocks]
    assert all(block.times_ps.min() >= until for block, until in zip(blocks[1:], complete, strict=False))


def test_no_detector_clicks_inside_its_dead_time() -> None:
    detector = DetectorParameters(efficiency=0.9, dead_time_s=40e-9)
    exact = JitterParameters(sigma_ps=0.01, tail_fraction=0.0)
    for hold_off in ("independent", "joint"):
        simulation = still(
            SimulationParameters(z_detector=detector, x_detector=detector, jitter=exact, hold_off=hold_off)
        )
        tags = record(simulation, LINK, 1)
        for channel in (Z_CHANNEL, X_CHANNEL):
            gaps = np.diff(tags.times_ps[tags.channels == channel])
            assert gaps.min() >= 40_000 - 1
            assert gaps.min() < 40_000 + 2 * PERIOD_PS
        across = np.diff(tags.times_ps)[np.diff(tags.channels) != 0].min()
        assert (across >= 40_000 - 1) == (hold_off == "joint")


def test_a_saturated_detector_clicks_once_a_dead_time() -> None:
    tags = record(still(SimulationParameters(attenuation_db=0.0)), LINK, 2)
    gaps = np.diff(tags.times_ps[tags.channels == Z_CHANNEL])
    assert gaps.min() > 62.5e6 - 1000
    assert gaps.mean() == pytest.approx(62.5e6, rel=0.003)


def folded(tags: Tags, channel: int) -> np.ndarray:
    """Return times after the early pulse, from -300 ps on."""
    since = tags.times_ps[tags.channels == channel] - tags.first_arrival_ps
    return np.asarray(np.mod(since + 300.0, PERIOD_PS) - 300.0)


def test_jitter_puts_the_configured_share_into_a_gate() -> None:
    sharp = DetectorParameters(efficiency=0.9, dark_rate_hz=0.0, afterpulse_probability=0.0, dead_time_s=1e-7)
    simulation = still(SimulationParameters(z_detector=sharp, x_detector=sharp, wrong_bin_fraction=0.0))
    phase = folded(record(simulation, LINK, 1), Z_CHANNEL)
    late = LINK.source.bin_spacing_ps
    accepted = np.mean(np.abs(phase) < 200) + np.mean(np.abs(phase - late) < 200)
    strays = sum(acceptance(simulation.jitter, offset, 400) for offset in (late, PERIOD_PS - late)) / 2
    assert accepted == pytest.approx(acceptance(simulation.jitter, 0.0, 400.0) + strays, abs=4e-4)
    assert acceptance(simulation.jitter, 0.0, 400.0) == pytest.approx(0.97, abs=5e-4)
    for gate in (100.0, 200.0):  # the shape, too
        share = np.mean(np.abs(phase) < gate / 2) + np.mean(np.abs(phase - late) < gate / 2)
        assert share == pytest.approx(acceptance(simulation.jitter, 0.0, gate), abs=1e-3)


def test_the_x_arm_has_three_pulses_a_qubit() -> None:
    exact = JitterParameters(sigma_ps=1.0, tail_fraction=0.0)
    simulation = still(SimulationParameters(z_detector=QUIET, x_detector=QUIET, jitter=exact))
    phase = folded(record(simulation, LINK, 5), X_CHANNEL)
    spacing = LINK.source.bin_spacing_ps
    places = np.array([0.0, spacing, 2 * spacing - PERIOD_PS])
    nearest = np.abs(phase[:, np.newaxis] - places)
    assert nearest.min(axis=1).max() < 6.0
    shares = np.bincount(nearest.argmin(axis=1)) / phase.size
    light = np.array([1 / 8, 0.5 * 1 / 4 + 0.5 * 0.05 / 4, 1 / 8])
    assert shares == pytest.approx(light / light.sum(), abs=0.006)


def test_dark_counts_are_uniform_and_afterpulses_follow_clicks() -> None:
    noisy = DetectorParameters(
        dark_rate_hz=1e5, dead_time_s=0.0, afterpulse_probability=0.1, afterpulse_lifetime_s=1e-7
    )
    simulation = still(SimulationParameters(z_detector=noisy, x_detector=noisy))
    tags = record(simulation, LINK, 2, Settings(source_on=False))
    times = tags.times_ps[tags.channels == Z_CHANNEL]
    assert times.size == pytest.approx(2e5 / 0.9, abs=5 * np.sqrt(2e5 / 0.9) * 1.2)
    phase = np.histogram(folded(tags, Z_CHANNEL), 10)[0]
    assert np.abs(phase - phase.mean()).max() < 5 * np.sqrt(phase.mean())
    soon = np.count_nonzero(np.diff(times) < 1e6)  # ten lifetimes; dark counts may come that soon, too
    assert soon / times.size == pytest.approx(0.1 + 0.9 * (1 - np.exp(-0.1)), abs=0.01)


def clock_error_ps(simulation: SimulationParameters, seconds: int) -> np.ndarray:
    """Return how far Bob's clock is off after each knot: the median lateness of Z clicks in their bins."""
    sharp = JitterParameters(sigma_ps=5.0, tail_fraction=0.0)
    simulation = msgspec.structs.replace(simulation, jitter=sharp, z_detector=QUIET, x_detector=QUIET)
    tags = record(simulation, LINK, seconds)
    times = tags.times_ps[tags.channels == Z_CHANNEL] - tags.first_arrival_ps
    bins = np.exp(2j * np.pi * 2 * times / PERIOD_PS)
    knots = np.minimum((times / 1e9).astype(np.int64), seconds * 1000 - 1)  # a millisecond each
    sums = np.bincount(knots, bins.real) + 1j * np.bincount(knots, bins.imag)
    return np.unwrap(np.angle(sums)) / (4 * np.pi) * PERIOD_PS


def test_bobs_clock_runs_fast_by_the_configured_offset() -> None:
    off = msgspec.structs.replace(still(SimulationParameters()), clock_offset_ppm=0.3)
    errors = clock_error_ps(off, 2)
    slope = np.polyfit(np.arange(errors.size), errors, 1)[0]
    assert slope / 1e9 == pytest.approx(0.3e-6, rel=0.01)


def test_bobs_clock_walks_at_random_and_the_fibre_drifts() -> None:
    rates = []
    for seed in range(12):
        walking = msgspec.structs.replace(still(SimulationParameters(seed=seed)), clock_walk_per_root_s=1e-8)
        errors = clock_error_ps(walking, 2)
        rates.append((errors[-100:].mean() - errors[-200:-100].mean()) / 1e11)
    assert 0.5e-8 < np.std(rates) < 2.5e-8  # sqrt(1.9) e-8 expected of twelve
    wandering = msgspec.structs.replace(still(SimulationParameters()), fibre_delay_drift_ns_per_hour=360.0)
    errors = clock_error_ps(wandering, 2)
    assert (errors[-50:].mean() - errors[:50].mean()) / 1.95 == pytest.approx(100.0, abs=8.0)  # ps a second


def test_symbols_have_the_configured_shares_and_an_end() -> None:
    source = LINK.source
    codes = symbols(KEY, np.arange(400_000), source)
    shares = np.bincount(codes, minlength=8) / codes.size
    expected = np.array([0.25 * 0.7, 0.25 * 0.7, 0.5 * 0.7, 0, 0.25 * 0.3, 0.25 * 0.3, 0.5 * 0.3, 0])
    assert shares == pytest.approx(expected, abs=0.004)
    assert (symbols(KEY, np.array([-1, 10]), source, 10) == UNKNOWN_SYMBOL).all()
    assert (symbols(KEY + 1, np.arange(1000), source) != codes[:1000]).any()


def test_tag_time_goes_on_for_days_without_losing_precision() -> None:
    simulation = still(SimulationParameters(jitter=JitterParameters(sigma_ps=1.0, tail_fraction=0.0)))
    generator = TagGenerator(simulation, LINK)
    state = generator.step(PAGE_KNOTS, Settings(), None)
    assert state.until_ps > 0.99 * PAGE_KNOTS / KNOTS_PER_S * PS_PER_S
    generator._page_start = 10 * 86_400 * KNOTS_PER_S - PAGE_KNOTS  # as if ten days had passed
    block = generator.step(generator.knot + 50, Settings(), Lit(KEY, 0))
    z = block.times_ps[block.channels == Z_CHANNEL]
    assert z.min() // PS_PER_S == 10 * 86_400
    phase = np.mod(z - 10 * 86_400 * PS_PER_S - generator.first_arrival_ps + 300, PERIOD_PS) - 300
    sharp = (np.abs(phase) < 6) | (np.abs(phase - LINK.source.bin_spacing_ps) < 6)
    assert sharp.mean() > 0.97  # the rest is noise
