"""The monitors over single readings: a reading and the settings of the site give a value with its limits.

Pure functions. Beyond the interval of honest operation, each limit leaves ``z`` standard deviations of the
stated noise; `deviations_allowed` derives z from the allowed false alarms.
"""

import math
from typing import Final

from qnode.config.monitors import MonitorsSection, PhotocurrentMonitor, ReadingMonitor
from qnode.distill.check_table import Finding
from qnode.distill.plausibility import YEAR_S
from qnode.distill.plausibility.chance import standard_deviations
from qnode.monitors.table import MONITOR_BY_NAME

# Otherwise rare readings would have limits within three standard deviations.
_MOST_CHANCE: Final = 1e-3


def chance_of_false_alarm(settings: MonitorsSection, period_s: float) -> float:
    """Return the false-alarm probability of one side of one monitor in one reading.

    ``period_s``: between two readings.
    """
    sides = 2 * max(1, len(settings.tables()))
    return min(_MOST_CHANCE, settings.false_alarms_per_year * period_s / YEAR_S / sides)


def deviations_allowed(settings: MonitorsSection, period_s: float) -> float:
    """Return the standard deviations of noise between an honest interval and the limit of an alarm."""
    return standard_deviations(chance_of_false_alarm(settings, period_s))


def reading(value: float, settings: ReadingMonitor, z: float) -> Finding:
    """Compare a reading with its interval."""
    noise = z * settings.noise
    return _finding(settings.monitor, value, settings.least - noise, settings.most + noise)


def photocurrent(
    current_a: float, tags: int, counted_s: float, settings: PhotocurrentMonitor, z: float
) -> Finding:
    """Compare a detector's photocurrent with the current of ``tags`` avalanches in ``counted_s`` seconds.

    A detector in linear mode carries the current of the light that controls it, and clicks no more often.
    """
    charge_c = settings.charge_per_click_c
    fewest, most = _means(tags, z)
    return _finding(
        "photocurrent",
        current_a,
        (settings.dark_a + charge_c * fewest / counted_s) * (1.0 - settings.tolerance) - z * settings.noise_a,
        (settings.dark_a + charge_c * most / counted_s) * (1.0 + settings.tolerance) + z * settings.noise_a,
    )


def _means(count: int, z: float) -> tuple[float, float]:
    """Return the least and the greatest mean of a Poisson count that yields ``count`` within z deviations.

    The count of an honest detector varies at most so. Few counts say little of a mean that is larger: its own
    deviation counts, not that of ``count``.
    """
    return (
        max(0.0, count - z * math.sqrt(count + 1.0)),
        count + 0.5 * z * z + z * math.sqrt(count + 0.25 * z * z),
    )


def _finding(monitor: str, value: float, least: float, most: float) -> Finding:
    known = MONITOR_BY_NAME[monitor]
    found = Finding(monitor, value, least, most)
    if found.plausible:
        return found
    return Finding(monitor, value, least, most, known.low if found.too_low else known.high)
