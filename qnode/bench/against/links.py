"""Whole links: processor time of both daemons, the share of secret bits, peak memory."""

from pathlib import Path

from qnode.bench.against.case import Figures, Measure
from qnode.bench.against.checkout import Checkout
from qnode.bench.against.daemons import recorded, running, secret_bits, sifted_bits, staged, tag_time_s

PAIR_CPU = "pair: CPU a sifted bit, ns"
PAIR_SHARE = "pair: secret / sifted bits"
PAIR_PEAK = "pair: peak memory, MiB"
TURIN_CPU = "Turin: CPU a simulated s, ms"


def pair(checkout: Checkout, folder: Path, *, quick: bool) -> Measure:
    """Measure the fast link at full speed, its tags from a recording, as `qnode bench` does."""
    recording = recorded(checkout, "fast", folder)

    def measure() -> Figures:
        with (
            staged(checkout, folder, "fast", recording=str(recording), loop=True) as sites,
            running(checkout, sites) as link,
        ):
            window = link.window(3.0, 3.0 if quick else 8.0)
            peak_mib = max(link.alice.peak_mib(), link.bob.peak_mib())
        sifted = window.gained(sifted_bits)
        return {
            PAIR_CPU: 1e9 * window.processor_s / sifted,
            PAIR_SHARE: window.gained(secret_bits) / sifted,
            PAIR_PEAK: peak_mib,
        }

    return measure


def turin(checkout: Checkout, folder: Path, *, quick: bool) -> Measure:
    """Measure the Turin link at full speed without simulator: a recording of 320 s is played in a loop."""
    recording = recorded(checkout, "turin", folder)

    def measure() -> Figures:
        with (
            staged(checkout, folder, "turin", recording=str(recording), loop=True) as sites,
            running(checkout, sites) as link,
        ):
            window = link.window(2.0, 3.0 if quick else 8.0)
        return {TURIN_CPU: 1e3 * window.processor_s / window.gained(tag_time_s)}

    return measure
