"""Slow drifts of the simulated link with a daily period, and the steady turn of its interferometer.

Random walks are part of the generator. All of this depends on the time of the simulated world alone, so that
both sites' devices agree on it.
"""

import math
from typing import Annotated

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from qnode.config.description import Described, Limits, check_limits

Reals = npt.NDArray[np.float64]


class DriftParameters(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Drifts of the simulated parts; daily ones are sines that begin at zero."""

    day_s: Annotated[float, Described("the period of the daily drifts", limits=Limits(1.0, 1e9))] = 86_400.0
    interferometer_turn_s: Annotated[
        float,
        Described(
            "time in which the interferometer's phase drifts by 2 π; 0: no such drift",
            limits=Limits(0.0, 1e9),
        ),
    ] = 0.0
    interferometer_step_rad: Annotated[
        float, Described("size of sudden steps of this phase, up or down", limits=Limits(0.0, 10.0))
    ] = 0.1
    interferometer_steps_per_hour: Annotated[
        float, Described("mean number of these steps in an hour", "1/h", limits=Limits(0.0, 1e5))
    ] = 0.0
    modulator_daily_rad: Annotated[
        float, Described("amplitude of the daily drift of the modulator's bias", limits=Limits(0.0, 10.0))
    ] = 0.0
    laser_daily: Annotated[
        float,
        Described("amplitude of the daily drift of the laser's power", "fraction", limits=Limits(0.0, 0.9)),
    ] = 0.0
    fibre_daily_ns: Annotated[
        float, Described("amplitude of the daily drift of the fibre's delay", "ns", limits=Limits(0.0, 1e6))
    ] = 0.0
    x_arm_daily_db: Annotated[
        float,
        Described(
            "amplitude of the daily drift of the loss of Bob's X arm, as by polarisation",
            limits=Limits(0.0, 20.0),
        ),
    ] = 0.0

    def __post_init__(self) -> None:
        check_limits(self)


def _daily(drift: DriftParameters, world_s: Reals) -> Reals:
    return np.sin(2.0 * math.pi / drift.day_s * world_s)


def phase_rad(drift: DriftParameters, world_s: Reals) -> Reals:
    """Return the steady drift of the interferometer's phase."""
    if not drift.interferometer_turn_s:
        return np.zeros_like(world_s)
    return 2.0 * math.pi / drift.interferometer_turn_s * world_s


def bias_rad(drift: DriftParameters, world_s: Reals) -> Reals:
    """Return the daily drift of the modulator's bias."""
    return drift.modulator_daily_rad * _daily(drift, world_s)


def laser_power(drift: DriftParameters, world_s: float) -> float:
    """Return the laser's power relative to its nominal one."""
    return 1.0 + drift.laser_daily * float(_daily(drift, np.array(world_s)))


def x_arm_loss_db(drift: DriftParameters, world_s: float) -> float:
    """Return the additional loss of the X arm, which may be negative."""
    return drift.x_arm_daily_db * float(_daily(drift, np.array(world_s)))


def fibre_rate(drift: DriftParameters, world_s: Reals) -> Reals:
    """Return how much the fibre's delay grows, in seconds a second."""
    turns_per_s = 2.0 * math.pi / drift.day_s
    return drift.fibre_daily_ns * 1e-9 * turns_per_s * np.cos(turns_per_s * world_s)


def phase_steps_rad(drift: DriftParameters, random: np.random.Generator, n: int, each_s: float) -> Reals:
    """Draw the steps of the phase in ``n`` intervals of ``each_s``; draw nothing if there are none."""
    if not drift.interferometer_steps_per_hour:
        return np.zeros(n)
    chance = drift.interferometer_steps_per_hour * each_s / 3600.0
    happens = random.random(n) < chance
    return np.where(happens, random.choice([-1.0, 1.0], n) * drift.interferometer_step_rad, 0.0)
