"""Monitors over readings: each trips on its attack and stays quiet in honest hours; cutoffs are exact."""

import math
import tomllib
from fractions import Fraction
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from msgspec.structs import replace

from qnode.bench.monitored_readings import (
    ALPHA_EXPONENT,
    ATTACKS,
    BLINDED_A,
    DEVIATIONS,
    GENERATOR_FAULTS,
    PERIOD_S,
    SETTINGS,
    Attack,
    Generator,
    attacked,
    blinded,
    generator_health,
    honest_findings,
    honest_photocurrents,
    sound_generator,
)
from qnode.cli.monitors_page import EXAMPLE, monitors_table
from qnode.config import convert
from qnode.config.monitors import (
    MonitorsSection,
    RandomnessSection,
    ReadingMonitorName,
    monitor_faults,
)
from qnode.distill.check_table import Finding
from qnode.distill.plausibility.chance import standard_deviations
from qnode.monitors import readings
from qnode.monitors.random_health import (
    START_UP_SAMPLES,
    AdaptiveProportion,
    HealthTestNeverFires,
    RandomHealth,
    RepetitionCount,
    adaptive_proportion_cutoff,
    repetition_count_cutoff,
)
from qnode.monitors.table import MONITOR_BY_NAME, MONITORS
from qnode.monitors.trips import UNWATCHED, TripLog

HOURS = 69
N_READINGS = round(HOURS * 3600 / PERIOD_S)
FAIRLY_SURE = 5.0  # standard deviations of a seeded draw

OF_READINGS: tuple[ReadingMonitorName, ...] = get_args(ReadingMonitorName)


# Readings


def test_every_monitor_names_its_attack_its_limit_and_its_false_alarms() -> None:
    assert len(MONITOR_BY_NAME) == len(MONITORS)
    for one in MONITORS:
        assert one.low or one.high
        assert one.limit
        assert one.false_alarm
        assert one.what
    assert set(OF_READINGS) < set(MONITOR_BY_NAME)


def test_the_page_has_every_monitor_and_an_example_that_is_accepted() -> None:
    page = (Path(__file__).parent.parent / "docs" / "monitors.md").read_text()
    assert monitors_table() in page, "run qnode report monitors"
    assert EXAMPLE in page
    tables = tomllib.loads(EXAMPLE)
    monitors = convert(tables["monitors"], MonitorsSection, where="example")
    randomness = convert(tables["randomness"], RandomnessSection, where="example")
    devices = frozenset({"diode", "laser", "spd", "qrng"})
    assert list(monitor_faults(monitors, randomness, devices)) == []
    assert set(monitors.tables()) == {"readings.back", "readings.interlock", "photocurrents.z"}


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.monitor)
def test_a_monitor_trips_on_its_attack_and_names_it(attack: Attack) -> None:
    found = attacked(attack)
    assert not found.plausible
    assert found.check == attack.monitor
    known = MONITOR_BY_NAME[attack.monitor]
    assert found.points_to == (known.low if found.too_low else known.high) != ""


def test_every_monitor_of_readings_has_an_attack() -> None:
    assert sorted(attack.monitor for attack in ATTACKS) == sorted(OF_READINGS)


def test_a_blinded_detector_carries_more_current_than_its_clicks_explain() -> None:
    found = blinded()
    assert found.too_high
    assert "bright light" in found.points_to


def test_clicks_without_avalanches_carry_too_little_current() -> None:
    settings = SETTINGS.photocurrents["z"]
    found = readings.photocurrent(settings.dark_a, 80_000, PERIOD_S, settings, DEVIATIONS)
    assert found.too_low
    assert "no avalanche" in found.points_to


def test_a_dark_detector_with_its_dark_current_is_honest() -> None:
    settings = SETTINGS.photocurrents["z"]
    assert readings.photocurrent(settings.dark_a, 0, PERIOD_S, settings, DEVIATIONS).plausible
    assert not readings.photocurrent(BLINDED_A, 0, PERIOD_S, settings, DEVIATIONS).plausible


@pytest.mark.parametrize("monitor", OF_READINGS)
def test_a_monitor_stays_quiet_for_69_honest_hours(monitor: ReadingMonitorName) -> None:
    rng = np.random.default_rng(69)
    assert all(found.plausible for found in honest_findings(monitor, N_READINGS, rng))


def test_the_photocurrent_stays_quiet_for_69_honest_hours() -> None:
    rng = np.random.default_rng(69)
    assert all(found.plausible for found in honest_photocurrents(N_READINGS, rng))


def test_false_alarms_are_shared_equally_by_all_sides_of_a_year() -> None:
    chance = readings.chance_of_false_alarm(SETTINGS, PERIOD_S)
    sides = 2 * (len(SETTINGS.readings) + len(SETTINGS.photocurrents))
    assert chance * sides * 365.25 * 86_400 / PERIOD_S == pytest.approx(SETTINGS.false_alarms_per_year)
    assert readings.chance_of_false_alarm(replace(SETTINGS, false_alarms_per_year=1e9), PERIOD_S) <= 1e-3


@pytest.mark.parametrize("side", [-1.0, 1.0])
def test_a_value_at_the_edge_of_its_interval_trips_as_often_as_its_noise_allows(side: float) -> None:
    chance, n = 1e-3, 200_000
    settings = SETTINGS.readings["output_power"]
    edge = settings.most if side > 0 else settings.least
    values = edge + settings.noise * np.random.default_rng(1).standard_normal(n)
    z = standard_deviations(chance)
    tripped = sum(not readings.reading(value, settings, z).plausible for value in values.tolist())
    assert abs(tripped - n * chance) < FAIRLY_SURE * math.sqrt(n * chance)


def test_a_photocurrent_at_its_tolerance_trips_no_more_often_than_its_noise_allows() -> None:
    chance, n, rng = 1e-3, 200_000, np.random.default_rng(2)
    settings = SETTINGS.photocurrents["z"]
    tags = rng.poisson(100.0, n)  # few enough that the count's noise is the greater part
    factor = 1.0 + settings.tolerance
    honest_a = factor * (settings.dark_a + settings.charge_per_click_c * 100.0 / PERIOD_S)
    currents = honest_a + settings.noise_a * rng.standard_normal(n)
    z = standard_deviations(chance)
    tripped = sum(
        not readings.photocurrent(current, counted, PERIOD_S, settings, z).plausible
        for current, counted in zip(currents.tolist(), tags.tolist(), strict=True)
    )
    assert tripped < n * chance + FAIRLY_SURE * math.sqrt(n * chance)


@pytest.mark.parametrize("mean", [5.0, 20.0, 100.0, 1000.0])
def test_few_clicks_trip_no_more_often_than_the_false_alarms_allow(mean: float) -> None:
    """By exact tails: the photocurrent is that of the mean, and chance draws the clicks."""
    chance = 1e-8
    settings = replace(SETTINGS.photocurrents["z"], dark_a=0.0, noise_a=0.0, tolerance=0.0)
    current_a, z = settings.charge_per_click_c * mean / PERIOD_S, standard_deviations(chance)
    low = high = 0.0
    for count in range(round(mean + 12.0 * math.sqrt(mean)) + 60):
        found = readings.photocurrent(current_a, count, PERIOD_S, settings, z)
        likely = math.exp(count * math.log(mean) - mean - math.lgamma(count + 1.0))
        low, high = low + likely * found.too_low, high + likely * found.too_high
    assert low <= chance
    assert high <= chance


# Trips and blocks

GOOD = Finding("backward_light", 0.0, None, 1.0)
BAD = Finding("backward_light", 2.0, None, 1.0, "light injected into Alice")


def log() -> TripLog:
    trips = TripLog({"readings.back": 15.0}, 0.0)
    for at_s in (5.0, 10.0):
        trips.note("readings.back", at_s, GOOD)
    return trips


def test_a_block_overlaps_a_trip_from_the_last_good_reading_to_the_next_good_one() -> None:
    trips = log()
    trips.note("readings.back", 15.0, BAD)
    trips.note("readings.back", 20.0, BAD)
    trips.note("readings.back", 25.0, GOOD)
    found = trips.first(0.0, 100.0, 26.0)
    assert found is not None
    assert (found.reason, found.from_s, found.until_s) == ("backward_light", 10.0, 25.0)
    assert "light injected into Alice" in found.detail
    assert trips.first(0.0, 9.9, 26.0) is None
    assert trips.first(25.1, 26.0, 26.0) is None
    assert trips.first(24.9, 26.0, 26.0) is not None


def test_a_trip_lasts_until_a_good_reading_comes() -> None:
    trips = log()
    trips.note("readings.back", 15.0, BAD)
    assert trips.first(17.0, 18.0, 18.0) is not None  # nothing says that it is over


def test_a_monitor_without_readings_is_blind_from_the_last_one_to_the_next() -> None:
    trips = log()
    assert trips.first(0.0, 25.0, 25.0) is None
    assert trips.blind(25.1) == ["readings.back"]
    blind = trips.first(11.0, 25.1, 25.1)
    assert blind is not None
    assert blind.reason == UNWATCHED
    trips.note("readings.back", 40.0, GOOD)
    assert trips.blind(40.0) == []
    assert trips.first(12.0, 13.0, 41.0) is not None
    assert trips.first(40.1, 41.0, 41.0) is None


def test_a_block_is_judged_only_after_a_reading_since_its_end() -> None:
    trips = log()
    assert trips.complete(10.0, 11.0)
    assert not trips.complete(10.1, 11.0)
    assert trips.complete(10.1, 25.1)  # blind: nothing more to wait for
    assert TripLog({}, 0.0).complete(100.0, 100.0)


# The generator of random numbers


@pytest.mark.parametrize(
    ("min_entropy_bits", "exponent", "window", "cutoff"),
    # Those of SP 800-90B for its recommended windows that other implementations publish.
    [(1.0, 30, 512, 325), (1.0, 20, 1024, 589), (1.0, 40, 1024, 0), (7.0, 40, 512, 0), (0.3, 30, 512, 0)],
)
def test_a_cutoff_is_that_of_exact_fractions(
    min_entropy_bits: float, exponent: int, window: int, cutoff: int
) -> None:
    found = adaptive_proportion_cutoff(min_entropy_bits, exponent, window)
    assert cutoff in (0, found)
    p = Fraction(2.0**-min_entropy_bits)

    def beyond(k: int) -> Fraction:
        return sum(
            (math.comb(window, j) * p**j * (1 - p) ** (window - j) for j in range(k + 1, window + 1)),
            Fraction(0),
        )

    assert beyond(found - 1) <= Fraction(1, 2**exponent) < beyond(found - 2)


def test_a_cutoff_of_repetitions_is_that_of_the_standard() -> None:
    assert repetition_count_cutoff(1.0, 30) == 31
    assert repetition_count_cutoff(8.0, 40) == 6
    assert repetition_count_cutoff(0.5, 20) == 41


def test_a_test_that_would_never_fire_is_refused() -> None:
    with pytest.raises(HealthTestNeverFires, match="513 of 512"):
        adaptive_proportion_cutoff(0.05, 40, 512)
    with pytest.raises(HealthTestNeverFires):
        RandomHealth(0.01, 60, 1)
    assert adaptive_proportion_cutoff(0.1, 40, 512) <= 512


@pytest.mark.parametrize("chunk", [1, 7, 512, 100_000])
def test_a_health_test_finds_the_same_in_pieces_as_sample_by_sample(chunk: int) -> None:
    rng = np.random.default_rng(5)
    samples = rng.choice(np.array([0, 1, 2], np.uint8), 6000, p=[0.8, 0.15, 0.05])
    repetition, proportion = RepetitionCount(1.0, 30), AdaptiveProportion(1.0, 30, 512)
    longest = greatest = 0
    for at in range(0, samples.size, chunk):
        longest = max(longest, repetition.feed(samples[at : at + chunk]))
        greatest = max(greatest, proportion.feed(samples[at : at + chunk]))
    run, runs, last = 0, [], -1
    for value in samples.tolist():
        run, last = (run + 1, value) if value == last else (1, value)
        runs.append(run)
    windows = [samples[at : at + 512] for at in range(0, samples.size, 512)]
    assert longest == max(runs)
    assert greatest == max(int((window == window[0]).sum()) for window in windows)


@pytest.mark.parametrize(("name", "generator"), [(name, one) for name, _, one in GENERATOR_FAULTS])
def test_a_generator_that_fails_is_found_within_its_start_up_test(name: str, generator: Generator) -> None:
    health = generator_health()
    assert health.feed(sound_generator(np.random.default_rng(1), 100_000)) is None
    found = health.feed(generator(np.random.default_rng(3), START_UP_SAMPLES))
    assert found is not None
    assert found.check == name
    assert not found.plausible
    assert found.points_to == MONITOR_BY_NAME[name].high


def test_a_generator_that_failed_once_stays_failed() -> None:
    health = generator_health()
    health.feed(bytes(64))
    assert health.feed(sound_generator(np.random.default_rng(1), 10_000)) is not None


def test_single_bits_are_tested_from_the_most_significant_on() -> None:
    health = RandomHealth(0.9, ALPHA_EXPONENT, 1)
    assert health.start_up_bytes == START_UP_SAMPLES // 8
    assert health.feed(b"\x01" + bytes(5) + b"\x80") is None  # 40 zeros; the other way round 54
    assert health.feed(b"\x01" + bytes(6)) is not None


def test_a_generator_at_its_stated_min_entropy_stays_quiet_for_69_hours() -> None:
    """The seeds of 69 hours: about 160 kB for each block of 132 s."""
    health, rng = generator_health(), np.random.default_rng(69)
    for _ in range(HOURS * 3600 // 132):
        assert health.feed(sound_generator(rng, 160_000)) is None


def test_false_alarms_of_the_health_tests_are_as_rare_as_they_say() -> None:
    exponent, n, rng = 10, 4_000_000, np.random.default_rng(8)
    samples = np.frombuffer(sound_generator(rng, n), np.uint8)
    cutoff = adaptive_proportion_cutoff(7.0, exponent, 512)
    windows = samples[: n // 512 * 512].reshape(-1, 512)
    tripped = int(((windows == windows[:, :1]).sum(axis=1) >= cutoff).sum())
    expected = windows.shape[0] / 2**exponent
    assert tripped < expected + FAIRLY_SURE * math.sqrt(expected)
    run = repetition_count_cutoff(7.0, exponent)
    edges = np.concatenate(([0], np.flatnonzero(np.diff(samples)) + 1, [n]))
    assert int((np.diff(edges) >= run).sum()) < n / 2**exponent
