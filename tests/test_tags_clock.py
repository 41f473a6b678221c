import os
from pathlib import Path

import numpy as np
import pytest
from tag_file_exports import write_qutag
from tags_generator import Link

from qnode.tags.clock import recover_clock, residuals_ps
from qnode.tags.file_tags import TagFileNotes, file_tags
from qnode.tags.order import OrderWindow
from qnode.tags.types import Z_CHANNEL, TagBlock

TICK_PS = 1e12 / 1.2e9
# A folder with recorded tag files, for whoever has one (docs/tag-files.md).
RECORDED = os.environ.get("QNODE_RECORDED_TAGS", "")
SYNC_PERIOD_PS = 12495.6028  # of the recorded laser, on the recorder's clock


@pytest.mark.parametrize("ppm", [-97.0, 0.0, 30.0, 97.0])
def test_bin_clock_is_recovered_from_fifty_milliseconds_of_tags(ppm: float) -> None:
    times = Link(ppm=ppm, rate_hz=20_000, noise_share=0.35).tags(0.05, seed=2).tags.times_ps
    found = recover_clock(times, TICK_PS)
    assert found is not None
    assert found.significance > 30
    assert found.period_ps == pytest.approx(TICK_PS * (1 + ppm * 1e-6), rel=5e-9)
    assert 0.4 < found.vector_strength < 0.65


def test_the_fundamental_nearly_cancels_where_the_second_harmonic_is_strong() -> None:
    tags = Link(noise_share=0.0).tags(0.05, seed=4).tags
    times = tags.times_ps[tags.channels == Z_CHANNEL]
    at_bins, at_slots = recover_clock(times, TICK_PS), recover_clock(times, 2 * TICK_PS)
    assert at_bins is not None
    assert at_slots is not None
    assert at_bins.vector_strength > 0.7
    assert at_slots.significance < 3


def test_noise_alone_is_never_significant() -> None:
    rng = np.random.default_rng(5)
    significances = []
    for _ in range(20):
        found = recover_clock(np.sort(rng.integers(0, 5 * 10**10, 1500)), TICK_PS)
        assert found is not None
        significances.append(found.significance)
    assert max(significances) < 4


def test_too_few_tags_tell_nothing() -> None:
    assert recover_clock(np.array([1, 2, 3], np.int64), TICK_PS) is None
    assert recover_clock(np.full(100, 7, np.int64), TICK_PS) is None


def synthetic_recording(path: Path) -> None:
    """A file like the recorded one: sync pulses, photons 4 ns later, some tags late by up to 86 ns."""
    rng = np.random.default_rng(6)
    pulses = np.sort(rng.choice(400_000_000, 90_000, replace=False))
    sync = 260_182_250_071_800_102 + np.rint(pulses * SYNC_PERIOD_PS + rng.normal(0, 6, pulses.size)).astype(
        np.int64
    )
    photon = sync - 76_000 + np.rint(rng.exponential(400, sync.size)).astype(np.int64)
    times = np.stack([photon, sync], axis=1).ravel()
    channels = np.tile(np.array([1, 5], np.int16), sync.size)
    order = np.argsort(times + np.where(rng.random(times.size) < 0.003, 85_000, 0), kind="stable")
    write_qutag(path, times[order], channels[order])


def check_recording(path: Path) -> None:
    recording = file_tags(path, TagFileNotes(channels="z=5,x=1"))
    assert recording.survey().disorder_ps > 50_000
    window = OrderWindow(100_000)
    parts = [
        window.feed(TagBlock(times, channels, int(times.max()))).tags
        for times, channels in recording.parts(10_000)
    ]
    times = np.concatenate([part.times_ps for part in parts])
    channels = np.concatenate([part.channels for part in parts])
    assert window.statistics.late == 0
    assert np.all(np.diff(times) >= 0)
    sync = times[channels == 0]
    first = sync[sync - sync[0] < 2 * 10**10]
    found = recover_clock(first, 12_500.0, range_ppm=500.0)
    assert found is not None
    assert found.significance > 50
    assert found.vector_strength > 0.999
    assert found.period_ps == pytest.approx(SYNC_PERIOD_PS, abs=0.001)
    assert np.std(residuals_ps(first, found)) < 40
    photons = times[channels == 1]
    light = recover_clock(photons[photons - photons[0] < 2 * 10**10], 12_500.0, range_ppm=500.0)
    assert light is not None
    assert light.significance > 50
    assert light.period_ps == pytest.approx(found.period_ps, abs=0.001)


def test_a_synthetic_recording_gives_its_80_mhz_clock(tmp_path: Path) -> None:
    path = tmp_path / "synthetic.qutag"
    synthetic_recording(path)
    check_recording(path)


@pytest.mark.skipif(not RECORDED, reason="QNODE_RECORDED_TAGS names no folder of recorded tag files")
def test_the_recorded_qutag_file_gives_its_80_mhz_clock() -> None:
    check_recording(Path(RECORDED) / "19_qutag_80MHz_HBT_sync_filtered.qutag")
