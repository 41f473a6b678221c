"""The load of the plant over time: the currents of a motor hall with one burst, and what they entail."""

import math
import random
from typing import Final

from qnode.testbed.sensors.power_meter import NAMES

# The burst: a large machine starts in minute 25 and runs for two and a half minutes.
BURST_BEGIN_S: Final = 25 * 60.0
BURST_S: Final = 150.0
_BURST_A: Final = 38.0
_INRUSH_A: Final = 55.0
_INRUSH_S: Final = 1.5

_BASE_A: Final = (12.4, 11.7, 12.9)
_COMPRESSOR_A: Final = 3.2
_COMPRESSOR_PERIOD_S: Final = 420.0
_COMPRESSOR_ON_S: Final = 150.0
_VOLTAGE_V: Final = 230.9
_SAG_V_PER_A: Final = 0.035


def currents_a(time_s: float) -> tuple[float, float, float]:
    """Return the currents of the three phases in ampere, without noise, ``time_s`` after the start."""
    load = 1.1 * math.sin(2 * math.pi * time_s / 1740.0) + 0.4 * math.sin(2 * math.pi * time_s / 97.0)
    if time_s % _COMPRESSOR_PERIOD_S < _COMPRESSOR_ON_S:
        load += _COMPRESSOR_A
    since = time_s - BURST_BEGIN_S
    if 0 <= since < BURST_S:
        load += _BURST_A + _INRUSH_A * math.exp(-since / _INRUSH_S)
    first, second, third = (base + load for base in _BASE_A)
    return first, second, third


def measured(time_s: float, seed: int = 1) -> tuple[float, ...]:
    """Return what the meter shows ``time_s`` after the start, in the order of `NAMES`.

    The same time and seed give the same values.
    """
    noise = random.Random(f"{seed} {round(time_s * 1000)}")  # noqa: S311  a load, not a secret
    amperes = [current + noise.gauss(0, 0.05) for current in currents_a(time_s)]
    volts = [_VOLTAGE_V - _SAG_V_PER_A * current + noise.gauss(0, 0.08) for current in amperes]
    factor = 0.91 - 0.06 * min(1.0, max(0.0, amperes[0] - 20.0) / 60.0)
    apparent = [volt * ampere for volt, ampere in zip(volts, amperes, strict=True)]
    pairs = [math.sqrt(a * a + a * b + b * b) for a, b in zip(volts, (*volts[1:], volts[0]), strict=True)]
    total = sum(apparent)
    values = (
        *volts,
        *pairs,
        *amperes,
        *apparent,
        *(factor * power for power in apparent),
        50.0 + 0.02 * math.sin(2 * math.pi * time_s / 311.0) + noise.gauss(0, 0.002),
        sum(volts) / 3,
        sum(pairs) / 3,
        sum(amperes) / 3,
        total,
        factor * total,
        math.sqrt(1 - factor * factor) * total,
        factor,
    )
    assert len(values) == len(NAMES)
    return values
