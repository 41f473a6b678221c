"""The period of a pulsed source is found in the tags alone, without a nominal value."""

import numpy as np
import pytest

from qnode.tags.periods import FOLD_BINS, find_periods
from qnode.tags.types import Times
from qnode.units import PS_PER_S

LASER_PS = 12_495.602884


def pulsed(period_ps: float, rate_hz: float, n: int, *, jitter_ps: float, seed: int = 1) -> Times:
    """Return the tags of pulses, each seen with the same small probability."""
    rng = np.random.default_rng(seed)
    ticks = np.cumsum(rng.geometric(rate_hz * period_ps / PS_PER_S, n))
    return np.rint(ticks * period_ps + rng.normal(0.0, jitter_ps, n)).astype(np.int64)


def test_a_laser_and_its_divided_sync_are_found_in_every_channel_that_shows_them() -> None:
    samples = {
        0: pulsed(8 * LASER_PS, 2e4, 20_000, jitter_ps=6.0),
        1: pulsed(LASER_PS, 1.5e4, 20_000, jitter_ps=300.0, seed=2),
        2: np.sort(np.random.default_rng(3).integers(0, PS_PER_S, 20_000)),  # noise alone
    }
    laser, sync = find_periods(samples, 1.0)
    assert [clock.channel for clock in laser.channels] == [0, 1]
    assert [clock.channel for clock in sync.channels] == [0]
    for clock in laser.channels:
        assert abs(clock.clock.period_ps - LASER_PS) < 5 * clock.period_sigma_ps < 0.01
        assert clock.folded.size == FOLD_BINS
        assert clock.folded.sum() == clock.clock.n_tags
        assert abs(int(np.argmax(clock.folded)) - FOLD_BINS // 2) <= FOLD_BINS // 20
    assert sync.period_ps == pytest.approx(8 * LASER_PS, abs=0.01)
    assert laser.channels[1].width_ps == pytest.approx(300.0, rel=0.05)


def test_a_channel_that_is_itself_a_clock_is_one() -> None:
    ticks = np.rint(np.arange(5000) * 1e6 * (1 + 3e-6)).astype(np.int64)
    (period,) = find_periods({0: ticks}, 1.0)
    assert period.period_ps == pytest.approx(1e6 * (1 + 3e-6), abs=0.01)


def test_two_bins_in_a_slot_show_the_bin_clock_and_the_qubit_rate() -> None:
    slots = pulsed(1e4 / 6, 3e4, 60_000, jitter_ps=40.0)
    late = np.random.default_rng(4).integers(0, 2, slots.size)
    bins, qubits = find_periods({1: slots + 800 * late}, 1.0)
    assert bins.period_ps == pytest.approx(1e4 / 12, rel=1e-7)
    assert qubits.period_ps == pytest.approx(1e4 / 6, rel=1e-7)
    assert qubits.channels[0].clock.vector_strength < 0.15 < bins.channels[0].clock.vector_strength


def test_a_clock_that_wanders_is_followed_as_long_as_it_keeps_its_phase() -> None:
    steady = pulsed(LASER_PS, 1e4, 60_000, jitter_ps=100.0)
    seconds = steady / PS_PER_S
    wandering = steady + np.rint(4_000.0 * np.sin(2 * np.pi * seconds / 3.0)).astype(np.int64)
    (period,) = find_periods({1: wandering}, 1.0)
    (clock,) = period.channels
    assert clock.seconds < 2.0
    assert clock.clock.vector_strength > 0.8
    fastest = 4_000.0 * 2 * np.pi / 3.0 / PS_PER_S
    assert clock.clock.period_ps == pytest.approx(LASER_PS, rel=1.1 * fastest)


def test_the_step_of_the_times_is_no_period() -> None:
    noise = np.sort(np.random.default_rng(5).integers(0, PS_PER_S, 20_000)) // 2000 * 2000
    assert find_periods({1: noise}, 2000.0) == ()


@pytest.mark.parametrize("n", [0, 1, 15, 300])
def test_few_tags_without_a_period_give_none(n: int) -> None:
    times = np.sort(np.random.default_rng(6).integers(0, PS_PER_S, n))
    assert find_periods({1: times}, 1.0) == ()


def test_tags_of_one_moment_have_no_period() -> None:
    assert find_periods({1: np.full(1000, 7, np.int64)}, 1.0) == ()
