"""Holds of values that are measured directly: the optical power, and readings with limits."""

import math

from msgspec import Struct


class PowerTarget(Struct, frozen=True, kw_only=True):
    """The power to hold with an attenuator; ``power_w`` at the monitor when the intensities are right.

    ``largest_step_db``: of one correction. ``deadband_db``: smaller errors are left.
    """

    power_w: float
    limits_db: tuple[float, float]
    gain: float = 0.5
    largest_step_db: float = 0.1
    deadband_db: float = 0.005


def corrected_attenuation_db(target: PowerTarget, attenuation_db: float, power_w: float) -> float | None:
    """Return the next attenuation, or None if the present one stays.

    No light is no reason to take the attenuator away: without power, or with a tenth of it, nothing moves.
    """
    error_db = power_error_db(target, power_w)
    if error_db is None or error_db < -10.0 or abs(error_db) < target.deadband_db:
        return None
    step_db = min(max(target.gain * error_db, -target.largest_step_db), target.largest_step_db)
    least, most = target.limits_db
    wanted_db = min(max(attenuation_db + step_db, least), most)
    return wanted_db if wanted_db != attenuation_db else None


def power_error_db(target: PowerTarget, power_w: float) -> float | None:
    """Return how much brighter than wanted it is; None without light."""
    return 10.0 * math.log10(power_w / target.power_w) if power_w > 0.0 else None


def intensity_error(target: PowerTarget, power_w: float, monitor_uncertainty: float) -> float:
    """Return the largest relative error of the mean photon numbers: of the power, and of its measurement."""
    return (1.0 + abs(power_w / target.power_w - 1.0)) * (1.0 + monitor_uncertainty) - 1.0


def outside(value: float | None, least: float | None, most: float | None) -> bool:
    """Return whether a reading is known to lie outside its limits; a reading that is no number does."""
    if value is None:
        return False
    if not math.isfinite(value):
        return True
    return (least is not None and value < least) or (most is not None and value > most)
