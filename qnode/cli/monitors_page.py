"""The page of `qnode report monitors`: every monitor over readings of devices, and its false alarms."""

from collections.abc import Callable
from typing import Final

import numpy as np

from qnode.bench.monitored_readings import (
    ALPHA_EXPONENT,
    ATTACKS,
    BLINDED_A,
    DEVIATIONS,
    FAKED_RATE_HZ,
    GENERATOR_FAULTS,
    MIN_ENTROPY_BITS,
    PERIOD_S,
    SETTINGS,
    attacked,
    blinded,
    generator_health,
    honest_findings,
    honest_photocurrents,
    sound_generator,
)
from qnode.distill.check_table import Finding
from qnode.loopback.markdown import table
from qnode.monitors.random_health import (
    START_UP_SAMPLES,
    adaptive_proportion_cutoff,
    repetition_count_cutoff,
)
from qnode.monitors.readings import chance_of_false_alarm
from qnode.monitors.table import MONITORS

SEED: Final = 69
HOURS: Final = 69
N_READINGS: Final = round(HOURS * 3600 / PERIOD_S)
BLOCK_S: Final = 132
SEED_BYTES_OF_A_BLOCK: Final = 160_000

_HOW: Final = """\
The checks of [plausibility](plausibility.md) see counts. The monitors on this page see readings of devices:
light, current, temperature, and the samples of a random number generator. A site monitors what its file
names in [`[monitors]` and `[randomness]`](configuration.md). Each monitor below measures one value and
compares it with limits that follow from the file; observations never move them.

A reading outside its limits raises the alarm `monitor.tripped`. It discards every block that was sent or
received, in part or whole, between the last reading within the limits and the next one, at both sites. The
monitor is then the reason in `qnodectl blocks` and in `qkd_blocks_discarded_total`. A site decides a block
only after a reading since the end of the block. If a monitored reading was missing for longer than
`longest_gap_s` during a block, the reason is `unwatched`. So a device that an attacker silences gives no
key either."""
_FALSE: Final = """\
All monitored readings together give `false_alarms_per_year` false alarms, 1 as shipped, for values at the
edge of their intervals with Gaussian noise of the stated standard deviation. Each side of each monitor gets
an equal part. Here {sides} sides and a reading every {period:g} s leave a probability of {chance:.1e} a
reading and side, or {z:.2f} standard deviations beyond the interval."""
_RANDOM: Final = """\
With `[randomness]` a site draws the seeds of permutation, verification and privacy amplification from a
device, after both health tests of SP 800-90B have seen every sample. At each opening of the device a
start-up test of {start:,} samples comes first; these samples are discarded. Tested samples are conditioned
by SHA-256, with 64 bits more of stated min-entropy than output, and the result is added (XOR) to as many
bytes of the operating system. After a failed test the site uses the device no more until the daemon is
started again: blocks that still need a seed are discarded as `randomness`, with the alarm
`randomness.failed`. With `fallback_to_system` the site continues with the operating system alone, under the
same alarm.

The cutoffs follow from the stated min-entropy H of a sample and from `alpha_exponent`. A cutoff above its
window would never be reached, so such a table is refused at the start. The tests find a generator that is
stuck or biased beyond H. They do not find one that computes its output, nor a pattern that repeats."""

EXAMPLE: Final = """\
[monitors.readings.back]              # at Alice: light that comes back
monitor = "backward_light"
device = "diode"                      # [devices.diode], any driver with power_w
reading = "power_w"
least = -1e-12                        # a calibrated zero
most = 5e-12                          # the reflections of an honest line
noise = 1e-12

[monitors.readings.interlock]
monitor = "interlock"
device = "laser"
reading = "interlock_closed"          # 1: closed
least = 1.0
most = 1.0

[monitors.photocurrents.z]            # at Bob: detector of the Z arm
device = "spd"
channel = 0
reading = "z_detector_photocurrent_a"
dark_a = 1e-9
charge_per_click_c = 5e-12
noise_a = 2e-9

[randomness]                          # at Alice: seeds from [devices.qrng]
device = "qrng"
min_entropy_bits = 7.0                # of a byte, as its maker states
"""


def monitors_page(command: str, tell: Callable[[str], None]) -> str:
    """Return the page in Markdown; ``command`` made it."""
    parts = [
        "# Monitors over the readings of devices",
        f"Made by `{command}`; every seed is fixed. Do not edit.",
        _HOW,
        "## The monitors",
        monitors_table(),
        "A monitor of a reading is a table `[monitors.readings.NAME]`, the photocurrent a table "
        "`[monitors.photocurrents.NAME]`. The limits of a light monitor are in watts at the monitor: for "
        "Alice's output, the mean photon number times the energy of a photon, the qubit rate and the ratio "
        "of the monitor's coupler, within `link.source.mu_uncertainty`.",
        "```toml\n" + EXAMPLE + "```",
        "## False alarms",
        _FALSE.format(
            sides=2 * len(SETTINGS.tables()),
            period=PERIOD_S,
            chance=chance_of_false_alarm(SETTINGS, PERIOD_S),
            z=DEVIATIONS,
        ),
        f"The next table has {HOURS} simulated hours ({N_READINGS:,} readings) with a daily drift over the "
        "whole interval and noise, and one reading under an attack.",
        _readings_table(tell),
        "## Random numbers",
        _RANDOM.format(start=START_UP_SAMPLES),
        _cutoffs_table(),
        f"The next table has a generator at {MIN_ENTROPY_BITS:g} bits of min-entropy a byte, with the seeds "
        f"of {HOURS} hours ({SEED_BYTES_OF_A_BLOCK:,} bytes every {BLOCK_S} s), and then its faults.",
        _generators_table(tell),
    ]
    return "\n\n".join(parts) + "\n"


def monitors_table() -> str:
    """Return the table of all monitors in Markdown."""
    rows = [
        [one.name, one.what, one.low or "(no limit)", one.high or "(no limit)", one.limit, one.false_alarm]
        for one in MONITORS
    ]
    titles = ["monitor", "measures", "attack or fault if too low", "if too high", "limits", "false alarms"]
    return table(titles, rows, words=range(len(titles)))


def _readings_table(tell: Callable[[str], None]) -> str:
    rows = []
    what = f"blinding: {BLINDED_A * 1e6:g} uA at {FAKED_RATE_HZ:,.0f} clicks a second"
    tell("photocurrent")
    tripped = sum(
        not found.plausible for found in honest_photocurrents(N_READINGS, np.random.default_rng(SEED))
    )
    rows.append(["photocurrent", f"{tripped} of {N_READINGS:,}", what, _shown(blinded())])
    for attack in ATTACKS:
        tell(attack.monitor)
        found = honest_findings(attack.monitor, N_READINGS, np.random.default_rng(SEED))
        tripped = sum(not one.plausible for one in found)
        cell = f"{tripped} of {N_READINGS:,}"
        rows.append([attack.monitor, cell, attack.what, _shown(attacked(attack))])
    return table(
        ["monitor", "tripped in honest hours", "attack", "reading and limits"], rows, words=(0, 2, 3)
    )


def _shown(found: Finding) -> str:
    verdict = "quiet" if found.plausible else "trips"
    return f"{verdict}: {found.value:.4g}, {found.least:.4g} to {found.most:.4g}"


def _cutoffs_table() -> str:
    rows = []
    for bits, min_entropy, window in (
        (8, 7.9, 512),
        (8, 7.0, 512),
        (8, 4.0, 512),
        (1, 0.9, 1024),
        (1, 0.5, 1024),
    ):
        for exponent in (20, 40):
            rows.append(
                [
                    f"{bits} bit",
                    f"{min_entropy:g}",
                    f"2^-{exponent}",
                    str(repetition_count_cutoff(min_entropy, exponent)),
                    f"{adaptive_proportion_cutoff(min_entropy, exponent, window)} of {window}",
                ]
            )
    titles = ["sample", "min-entropy", "alpha", "repetition count fails at", "adaptive proportion fails at"]
    return table(titles, rows, words=(0,))


def _generators_table(tell: Callable[[str], None]) -> str:
    health, rng = generator_health(), np.random.default_rng(SEED)
    blocks = HOURS * 3600 // BLOCK_S
    tell("random numbers")
    for _ in range(blocks):
        health.feed(sound_generator(rng, SEED_BYTES_OF_A_BLOCK))
    said = "quiet" if health.failed is None else f"fails: {health.failed}"
    rows = [["(none)", "honest", f"{blocks * SEED_BYTES_OF_A_BLOCK:,}", said]]
    for name, what, generator in GENERATOR_FAULTS:
        health = generator_health()
        found = health.feed(generator(np.random.default_rng(SEED), START_UP_SAMPLES))
        said = "quiet" if found is None else f"fails: {found.value:g}, at most {found.most:g}"
        rows.append([name, what, f"{START_UP_SAMPLES:,}", said])
    titles = ["health test", "generator", f"bytes (alpha 2^-{ALPHA_EXPONENT})", "result"]
    return table(titles, rows, words=(0, 1, 3))
