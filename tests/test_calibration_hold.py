"""Holds of what is measured directly: power and limits."""

import math

import pytest

from qnode.calibration.hold import (
    PowerTarget,
    corrected_attenuation_db,
    intensity_error,
    outside,
    power_error_db,
)

TARGET = PowerTarget(power_w=1e-6, limits_db=(5.0, 60.0), largest_step_db=0.1)


@pytest.mark.parametrize(
    ("power_w", "next_db"),
    [
        (1.01e-6, 20.0216),  # half of the error of 0.0432 dB
        (0.99e-6, 19.9782),
        (2e-6, 20.1),  # the largest step
        (0.5e-6, 19.9),
        (1.0005e-6, None),  # too small to be worth a step
        (0.0, None),  # no light is no reason to open the attenuator
        (-1e-9, None),
        (0.5e-7, None),
        (math.nan, None),
    ],
)
def test_the_attenuation_is_corrected_by_a_part_of_the_error_in_small_steps(
    power_w: float, next_db: float | None
) -> None:
    found = corrected_attenuation_db(TARGET, 20.0, power_w)
    assert found == (None if next_db is None else pytest.approx(next_db, abs=1e-4))


def test_the_attenuation_stays_within_its_limits() -> None:
    assert corrected_attenuation_db(TARGET, 5.05, 0.5e-6) == 5.0
    assert corrected_attenuation_db(TARGET, 5.0, 0.5e-6) is None
    assert corrected_attenuation_db(TARGET, 60.0, 2e-6) is None


def test_the_error_of_the_monitor_is_part_of_the_error_of_the_intensities() -> None:
    assert intensity_error(TARGET, 1e-6, 0.005) == pytest.approx(0.005)
    assert intensity_error(TARGET, 0.99e-6, 0.005) == pytest.approx(0.01505)
    assert not intensity_error(TARGET, math.nan, 0.005) <= 1.0
    assert power_error_db(TARGET, 1e-5) == pytest.approx(10.0)


@pytest.mark.parametrize(
    ("value", "is_outside"), [(None, False), (1.0, False), (0.9, True), (2.1, True), (math.nan, True)]
)
def test_a_reading_that_is_no_number_is_outside_and_an_unknown_one_is_not(
    value: float | None, is_outside: bool
) -> None:
    assert outside(value, 1.0, 2.0) == is_outside
    assert not outside(1.0, None, None)
