"""Readings of a monitored site: honest ones with drift and noise over hours, and those under each attack.

Made for the page of `qnode report monitors` and for the tests. The figures are typical of a site with
InGaAs avalanche diodes in free-running mode; the limits of a real site follow from its own devices.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from qnode.config.monitors import MonitorsSection, PhotocurrentMonitor, ReadingMonitor, ReadingMonitorName
from qnode.distill.check_table import Finding
from qnode.monitors import readings
from qnode.monitors.random_health import RandomHealth

PERIOD_S: Final = 5.0
CLICK_RATE_HZ: Final = 16_000.0
DAY_S: Final = 86_400.0
_INTERVALS: Final[tuple[tuple[ReadingMonitorName, str, float, float, float], ...]] = (
    ("detector_temperature", "z_detector_temperature_k", 223.0, 223.3, 0.02),
    ("detector_bias", "z_detector_bias_v", 49.95, 50.05, 0.005),
    ("detector_dead_time", "z_detector_dead_time_s", 59.5e-6, 60.5e-6, 0.05e-6),
    ("output_power", "power_w", 0.94e-6, 1.06e-6, 5e-9),
    ("backward_light", "power_w", -1e-12, 5e-12, 1e-12),
    ("input_light", "power_w", -1e-12, 1e-10, 1e-12),
    ("interlock", "interlock_closed", 1.0, 1.0, 0.0),
)
SETTINGS: Final = MonitorsSection(
    readings={
        monitor: ReadingMonitor(
            monitor=monitor, device="monitored", reading=reading, least=least, most=most, noise=noise
        )
        for monitor, reading, least, most, noise in _INTERVALS
    },
    photocurrents={
        "z": PhotocurrentMonitor(
            device="monitored",
            channel=0,
            reading="z_detector_photocurrent_a",
            dark_a=1e-9,
            charge_per_click_c=5e-12,
            noise_a=2e-9,
        )
    },
)
DEVIATIONS: Final = readings.deviations_allowed(SETTINGS, PERIOD_S)

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Attack:
    """An attack in words, the monitor that it trips, and the reading under it."""

    monitor: ReadingMonitorName
    what: str
    value: float


ATTACKS: Final = (
    Attack("detector_temperature", "thermal blinding: the diode is 0.5 K warmer", 223.65),
    Attack("detector_bias", "blinding: 10 uA over 50 kOhm lower the bias by 0.5 V", 49.5),
    Attack("detector_dead_time", "the dead time is set to 20 us", 20e-6),
    Attack("output_power", "laser seeding: pulses are 30 % brighter", 1.3e-6),
    Attack("backward_light", "Trojan horse: 100 pW of the probe come back", 1e-10),
    Attack("input_light", "blinding: 1 nW at the input", 1e-9),
    Attack("interlock", "somebody opens the interlock", 0.0),
)
BLINDED_A: Final = 10e-6
"""The photocurrent of a diode that bright light blinds: it clicks only when Eve wants it to."""
FAKED_RATE_HZ: Final = 8_000.0


def honest(monitor: ReadingMonitorName, n: int, rng: np.random.Generator) -> Values:
    """Return ``n`` honest readings: a daily drift over the whole interval, and noise."""
    settings = SETTINGS.readings[monitor]
    if monitor == "interlock":
        return np.ones(n)
    at_s = PERIOD_S * np.arange(n)
    middle, half = 0.5 * (settings.most + settings.least), 0.5 * (settings.most - settings.least)
    drift: Values = middle + half * np.sin(2.0 * math.pi * at_s / DAY_S)
    return drift + settings.noise * rng.standard_normal(n)


def honest_findings(monitor: ReadingMonitorName, n: int, rng: np.random.Generator) -> Iterator[Finding]:
    """Judge ``n`` honest readings."""
    settings = SETTINGS.readings[monitor]
    return (readings.reading(value, settings, DEVIATIONS) for value in honest(monitor, n, rng).tolist())


def honest_photocurrents(n: int, rng: np.random.Generator) -> Iterator[Finding]:
    """Judge ``n`` honest photocurrents: the click rate drifts by 30 % a day, the charge by 10 %."""
    settings = SETTINGS.photocurrents["z"]
    phase = 2.0 * math.pi * PERIOD_S * np.arange(n) / DAY_S
    tags = rng.poisson(CLICK_RATE_HZ * (1.0 + 0.3 * np.sin(phase)) * PERIOD_S)
    charge = settings.charge_per_click_c * (1.0 + 0.1 * np.cos(phase))
    currents = settings.dark_a + charge * tags / PERIOD_S + settings.noise_a * rng.standard_normal(n)
    for current, counted in zip(currents.tolist(), tags.tolist(), strict=True):
        yield readings.photocurrent(current, counted, PERIOD_S, settings, DEVIATIONS)


def attacked(attack: Attack) -> Finding:
    """Judge a reading under an attack."""
    return readings.reading(attack.value, SETTINGS.readings[attack.monitor], DEVIATIONS)


def blinded() -> Finding:
    """Judge the photocurrent of a blinded detector that clicks half as often as before."""
    tags = round(FAKED_RATE_HZ * PERIOD_S)
    return readings.photocurrent(BLINDED_A, tags, PERIOD_S, SETTINGS.photocurrents["z"], DEVIATIONS)


MIN_ENTROPY_BITS: Final = 7.0
ALPHA_EXPONENT: Final = 40


def generator_health() -> RandomHealth:
    """Return fresh health tests of a generator that states 7 bits of min-entropy a byte."""
    return RandomHealth(MIN_ENTROPY_BITS, ALPHA_EXPONENT)


Generator = Callable[[np.random.Generator, int], bytes]


def sound_generator(rng: np.random.Generator, n: int) -> bytes:
    """Return bytes with the stated min-entropy of 7 bits: the most likely value has probability 1/128."""
    samples = rng.integers(0, 256, n, dtype=np.uint8)
    samples[rng.integers(0, n, rng.binomial(n, 1.0 / 255.0))] = (
        0x55  # one of 256, and as often in their place
    )
    return samples.tobytes()


def stuck_generator(_rng: np.random.Generator, n: int) -> bytes:
    """Return the bytes of a generator that is stuck."""
    return b"\xa7" * n


def biased_generator(rng: np.random.Generator, n: int) -> bytes:
    """Return bytes whose bits are one with probability 0.8, for example by light on a beam splitter."""
    return np.packbits(rng.random(8 * n) < 0.8).tobytes()


GENERATOR_FAULTS: Final[tuple[tuple[str, str, Generator], ...]] = (
    ("repetition_count", "the generator is stuck", stuck_generator),
    ("adaptive_proportion", "light from outside makes a bit one with probability 0.8", biased_generator),
)
