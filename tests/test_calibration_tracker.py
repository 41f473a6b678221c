"""The tracker on signals drawn from the model of the X arm and of a modulator."""

import math

import numpy as np
import pytest

from qnode.calibration.tracker import Shape, Stretch, Tracker, central_cosine, central_slope, share

P_X, VISIBILITY = 0.5, 0.95
CLICKS_HZ = 14_800.0  # of the X arm of the Turin link, in a central or boundary gate
STRETCH_S = 10.0
FULL_TURN_S = 2400.0


class Arm:
    """An X arm whose phase drifts, held by a tracker."""

    def __init__(self, start_rad: float, rate_rad_per_s: float, *, steps_rad: float = 0.0) -> None:
        self.tracker = Tracker(
            Shape(slope=central_slope(P_X, VISIBILITY), dither_rad=0.06, limits_rad=(-4.0, 4.0)), 0.0
        )
        self.phase_rad, self.at_s = start_rad, 0.0
        self._rate, self._steps = rate_rad_per_s, steps_rad
        self._random = np.random.default_rng(5)
        self.settings: list[float] = []

    def run(self, seconds: float) -> tuple[float, float]:
        """Return the root mean square of the errors in rad, and the mean of e_vis."""
        errors, e_vis = [], []
        for _ in range(round(seconds / STRETCH_S)):
            if self._random.random() < 6 * STRETCH_S / 3600:
                self.phase_rad += self._steps * self._random.choice([-1.0, 1.0])
            setting = self.tracker.setting_rad
            self.settings.append(setting)
            phase = self.phase_rad + self._rate * STRETCH_S / 2.0
            cosine = P_X * VISIBILITY * math.cos(phase + setting)
            clicks = int(self._random.poisson(CLICKS_HZ * STRETCH_S))
            central = int(self._random.binomial(clicks, (1.0 - cosine) / (2.0 - cosine)))
            errors.append(math.remainder(phase + self.tracker.centre_rad, 2.0 * math.pi))
            e_vis.append((1.0 - VISIBILITY * math.cos(phase + setting)) / 2.0)
            signal, variance = share(central, clicks)
            middle_s = self.at_s + STRETCH_S / 2.0
            far = central_cosine(signal, P_X, VISIBILITY)
            stretch = Stretch(signal=signal, variance=variance, at_s=middle_s, cosine=far)
            self.tracker.observe(stretch, middle_s + STRETCH_S)
            self.phase_rad += self._rate * STRETCH_S
            self.at_s += STRETCH_S
        return float(np.sqrt(np.mean(np.square(errors)))), float(np.mean(e_vis))


@pytest.mark.parametrize("start_rad", [0.0, 1.0, -2.0, 3.0, math.pi])
def test_the_minimum_is_found_from_everywhere_within_two_minutes(start_rad: float) -> None:
    arm = Arm(start_rad, 0.0)
    arm.run(120.0)
    assert arm.run(600.0)[0] < 0.1


def test_a_turn_in_forty_minutes_with_steps_is_held_within_a_tenth_of_a_radian() -> None:
    arm = Arm(2.0, 2.0 * math.pi / FULL_TURN_S, steps_rad=0.1)
    arm.run(600.0)
    error_rad, e_vis = arm.run(4 * 3600.0)
    assert error_rad < 0.06
    assert e_vis < (1.0 - VISIBILITY) / 2.0 + 0.002
    assert arm.tracker.rate_rad_per_s == pytest.approx(2.0 * math.pi / FULL_TURN_S, rel=0.3)
    assert arm.tracker.sigma_rad < 0.06


def test_settings_stay_within_their_limits_over_many_turns() -> None:
    arm = Arm(0.0, -2.0 * math.pi / FULL_TURN_S)
    arm.run(6 * 3600.0)
    assert -4.0 <= min(arm.settings) < max(arm.settings) <= 4.0
    moves = np.abs(np.diff(arm.settings))
    assert np.count_nonzero(moves > 1.0) == pytest.approx(9, abs=6)  # back by a whole turn


def test_a_jump_of_two_radians_is_followed_within_five_minutes() -> None:
    arm = Arm(0.0, 0.0)
    arm.run(3600.0)
    arm.phase_rad += 2.0
    arm.run(300.0)
    assert arm.run(600.0)[0] < 0.1


def test_after_an_hour_without_signal_the_old_estimate_counts_for_nothing() -> None:
    arm = Arm(0.0, 0.0)
    arm.run(1800.0)
    arm.tracker.forget_first()
    arm.at_s += 3600.0
    arm.phase_rad -= 2.5
    arm.run(300.0)
    assert arm.run(600.0)[0] < 0.1


def test_the_bias_of_a_modulator_is_held_by_errors_counted_in_blocks() -> None:
    """The error rate is 0.0087 + 0.98 sin²(x / 2); a block of a million bits takes 130 s."""
    random, best = np.random.default_rng(3), 0.0087
    shape = Shape(
        slope=0.5 - best, dither_rad=0.03, limits_rad=(-3.0, 3.0),
        walk_rad_per_root_s=5e-4, rate_rad_per_s=2e-5, rate_walk=1e-7,
    )  # fmt: skip
    tracker, bias_rad, excess = Tracker(shape, 0.0), 0.3, []
    for number in range(400):
        at_s = 390.0 * number
        bias_rad += random.normal(0.0, 0.03 * math.sqrt(390.0 / 3600.0))
        leak = math.sin((bias_rad + tracker.setting_rad) / 2.0) ** 2
        rate = best + (1.0 - 2.0 * best) * leak
        signal, variance = share(int(random.binomial(1_000_000, rate)), 1_000_000)
        tracker.observe(Stretch(signal=signal, variance=variance, at_s=at_s), at_s + 390.0)
        excess.append(rate - best)
    assert np.mean(excess[20:]) < 1e-3


def test_the_central_share_follows_its_slope() -> None:
    contrast = P_X * VISIBILITY
    shares = [(1.0 - contrast * math.cos(x)) / (2.0 - contrast * math.cos(x)) for x in (0.0, 0.1)]
    assert shares[1] - shares[0] == pytest.approx(
        central_slope(P_X, VISIBILITY) * (1.0 - math.cos(0.1)), rel=0.01
    )


@pytest.mark.parametrize("phase_rad", [0.0, 1.0, 3.0])
def test_the_central_share_tells_how_far_the_phase_is_off(phase_rad: float) -> None:
    cosine = P_X * VISIBILITY * math.cos(phase_rad)
    found = central_cosine((1.0 - cosine) / (2.0 - cosine), P_X, VISIBILITY)
    assert found == pytest.approx(math.cos(phase_rad))


def test_a_share_of_nothing_is_uncertain() -> None:
    assert share(0, 100)[1] > 0.0
