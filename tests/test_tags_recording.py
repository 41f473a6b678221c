"""Recordings: written as a link runs, read back as they were, refused when something is wrong with them."""

import stat
from pathlib import Path

import numpy as np
import pytest

from qnode.config import LinkParameters
from qnode.errors import ConfigError
from qnode.tags.recording import (
    CHANNELS,
    MANIFEST,
    SYMBOL_KEY,
    TIMES,
    Manifest,
    RecordingWriter,
    check_loopable,
    open_recording,
    read_symbol_key,
)

KEY = 0x0123_4567_89AB_CDEF


def written(folder: Path, *, drift_ps: float = 0.0) -> None:
    """Write a recording of seven tags, the fourth 20 ps before the third."""
    with RecordingWriter(folder) as writer:
        writer.add(np.array([10, 50, 90, 70]), np.array([0, 1, 0, 0], np.int8))
        writer.add(np.array([], np.int64), np.array([], np.int8))
        writer.add(np.array([80, 120, 150]), np.array([1, 0, 0], np.int8))
        manifest = Manifest(
            format=1,
            simulated=True,
            run_id=7,
            started_at_s=1000.0,
            origin_s=1000.1,
            slots=600,
            span_ps=1e6,
            clock_drift_ps=drift_ps,
            disorder_ps=writer.disorder_ps,
            z_tags=writer.z_tags,
            x_tags=writer.x_tags,
            link=LinkParameters(name="recorded"),
            simulation={"seed": 3},
        )
        writer.finish(manifest, KEY)


def test_a_recording_is_read_as_it_was_written(tmp_path: Path) -> None:
    folder = tmp_path / "recording"
    written(folder)
    recording = open_recording(folder)
    assert recording.times_ps.tolist() == [10, 50, 90, 70, 80, 120, 150]
    assert recording.channels.tolist() == [0, 1, 0, 0, 1, 0, 0]
    manifest = recording.manifest
    assert (manifest.z_tags, manifest.x_tags, manifest.disorder_ps) == (5, 2, 20)
    assert manifest.link == LinkParameters(name="recorded")
    assert manifest.simulation == {"seed": 3}
    assert read_symbol_key(folder) == KEY
    plain = np.load(folder / TIMES)  # what the documentation promises
    assert plain.dtype == np.int64
    assert plain.tolist() == recording.times_ps.tolist()


def test_the_symbol_key_is_for_its_owner_alone(tmp_path: Path) -> None:
    folder = tmp_path / "recording"
    written(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / SYMBOL_KEY).stat().st_mode) == 0o600
    assert f"{KEY:x}" not in (folder / MANIFEST).read_text()
    (folder / SYMBOL_KEY).chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        read_symbol_key(folder)
    (folder / SYMBOL_KEY).unlink()
    with pytest.raises(ConfigError, match="cannot be read"):
        read_symbol_key(folder)


def test_a_recording_that_was_cut_short_is_none_and_leaves_its_folder_to_the_next(tmp_path: Path) -> None:
    folder = tmp_path / "recording"
    with RecordingWriter(folder) as writer:
        writer.add(np.array([10]), np.array([0], np.int8))
    with pytest.raises(ConfigError, match=MANIFEST):
        open_recording(folder)
    written(folder)
    open_recording(folder)
    with pytest.raises(ConfigError, match="not empty"):
        RecordingWriter(folder)


def test_parts_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "recording"
    written(folder)
    np.save(folder / CHANNELS, np.zeros(6, np.int8))
    with pytest.raises(ConfigError, match="7 tags by the manifest, 7 times, 6 channels"):
        open_recording(folder)
    np.save(folder / CHANNELS, np.zeros(7, np.int16))
    with pytest.raises(ConfigError, match="expected a row of int8, got int16"):
        open_recording(folder)
    (folder / CHANNELS).write_bytes(b"tags")
    with pytest.raises(ConfigError, match=CHANNELS):
        open_recording(folder)
    manifest = (folder / MANIFEST).read_text()
    (folder / MANIFEST).write_text(manifest.replace("format = 1", "format = 2"))
    with pytest.raises(ConfigError, match="expected 1, got 2"):
        open_recording(folder)


def test_only_a_recording_without_drift_is_looped(tmp_path: Path) -> None:
    written(tmp_path / "steady", drift_ps=0.1)
    check_loopable(open_recording(tmp_path / "steady"))
    written(tmp_path / "drifting", drift_ps=700.0)
    with pytest.raises(ConfigError, match=r"strays by 700 ps.*--loopable"):
        check_loopable(open_recording(tmp_path / "drifting"))
