"""Recordings of a link: Bob's time tags and Alice's symbols, for study and replay.

A recording is a folder:

* ``recording.toml``: the manifest, see `Manifest`.
* ``times_ps.npy``: int64, shape ``(n,)``: picoseconds since tag time zero, in the order in which the TDC sent
  them, which is nearly the order of time.
* ``channels.npy``: int8, shape ``(n,)``: 0 is the Z detector, 1 the X detector.
* ``symbol.key``: the key of Alice's symbols, 16 hexadecimal digits, readable by the owner only: it discloses
  every bit. Only simulated symbols have a key.

numpy reads the arrays: ``np.load(folder / "times_ps.npy", mmap_mode="r")``. Slot 0 begins to arrive at tag
time zero, or a fraction of a slot later; the recorded span is ``slots`` of Alice's slots, which took
``span_ps`` on Bob's clock.
"""

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import msgspec
import numpy as np
from msgspec import Struct

from qnode.config import LinkParameters, load, tables
from qnode.errors import ConfigError
from qnode.tags.arrays import Disorder, GrowingArray, mapped, new_folder
from qnode.tags.types import X_CHANNEL, Channels, Times

FORMAT: Final = 1
MANIFEST, TIMES, CHANNELS, SYMBOL_KEY = "recording.toml", "times_ps.npy", "channels.npy", "symbol.key"
# The largest effect of a seam on the recovered clock: far below the jitter of any detector.
MOST_LOOP_DRIFT_PS: Final = 5.0


class Manifest(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The description of a recording.

    ``started_at_s``: when slot 0 left Alice, seconds of Alice's wall clock; ``origin_s``: tag time zero,
    seconds of Bob's wall clock. ``clock_drift_ps``: the deviation of the arrival of slots from a straight
    line over the span. ``disorder_ps``: how far a tag may be earlier than one before it. ``simulation``: the
    table of the simulation.
    """

    format: int
    simulated: bool
    run_id: int
    started_at_s: float
    origin_s: float
    slots: int
    span_ps: float
    clock_drift_ps: float
    disorder_ps: int
    z_tags: int
    x_tags: int
    link: LinkParameters
    simulation: dict[str, Any] = {}

    def __post_init__(self) -> None:
        if self.format != FORMAT:
            raise ValueError(f"format: expected {FORMAT}, got {self.format}")
        if self.slots <= 0 or self.span_ps <= 0.0:
            raise ValueError(f"slots, span_ps: expected positive, got {self.slots}, {self.span_ps:g}")


@dataclass(frozen=True, eq=False)
class Recording:
    """An opened recording; the arrays are mapped, not read."""

    folder: Path
    manifest: Manifest
    times_ps: Times
    channels: Channels


def open_recording(folder: Path) -> Recording:
    """Open the recording in ``folder``.

    Raises:
        ConfigError: there is none, or its parts do not fit together.
    """
    manifest = load(folder / MANIFEST, Manifest)
    times_ps = mapped(folder / TIMES, np.int64)
    channels = mapped(folder / CHANNELS, np.int8)
    tags = manifest.z_tags + manifest.x_tags
    if not times_ps.shape == channels.shape == (tags,):
        raise ConfigError(
            f"{folder}: {tags} tags by the manifest, {times_ps.shape[0]} times, {channels.shape[0]} channels"
        )
    return Recording(folder, manifest, times_ps, channels)


def check_loopable(recording: Recording) -> None:
    """Refuse a recording whose end does not fit its beginning.

    Raises:
        ConfigError: states the drift of its clock, and how to record one that can be looped.
    """
    drift_ps = recording.manifest.clock_drift_ps
    if drift_ps > MOST_LOOP_DRIFT_PS:
        raise ConfigError(
            f"{recording.folder}: cannot be looped: its clock strays by {drift_ps:.0f} ps over the span, "
            f"{MOST_LOOP_DRIFT_PS:g} ps go unnoticed; record with qnode record --loopable, or play it once"
        )


def read_symbol_key(folder: Path) -> int:
    """Read the key of Alice's simulated symbols.

    Raises:
        ConfigError: it is missing, no key, or readable by others.
    """
    path = folder / SYMBOL_KEY
    try:
        if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise ConfigError(f"{path} can be read by others; run chmod 600 {path}")
        text = path.read_text().strip()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        return int(text, 16)
    except ValueError:
        raise ConfigError(f"{path}: expected 16 hexadecimal digits") from None


class RecordingWriter:
    """Writes a recording into a new folder. Without `finish` the folder is empty again.

    Raises:
        ConfigError: the folder exists and is not empty, or cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        new_folder(folder)
        self._folder = folder
        self._finished = False
        try:
            self._times = GrowingArray(folder / TIMES, "<i8")
            self._channels = GrowingArray(folder / CHANNELS, "|i1")
        except OSError as error:
            raise ConfigError(f"{folder}: cannot be written: {error.strerror}") from None
        self.x_tags = 0
        self._disorder = Disorder()

    @property
    def z_tags(self) -> int:
        """The number of tags of the Z detector so far."""
        return self._times.count - self.x_tags

    @property
    def disorder_ps(self) -> int:
        """The largest disorder so far: how far a tag was earlier than one before it."""
        return self._disorder.most_ps

    def add(self, times_ps: Times, channels: Channels) -> None:
        """Append tags in the order of their arrival."""
        self._disorder.see(times_ps)
        self._times.append(times_ps)
        self._channels.append(channels)
        self.x_tags += int(np.count_nonzero(channels == X_CHANNEL))

    def finish(self, manifest: Manifest, symbol_key: int | None) -> None:
        """Complete the recording; the manifest is written last."""
        self.close()
        if symbol_key is not None:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
            with os.fdopen(os.open(self._folder / SYMBOL_KEY, flags, 0o600), "w") as file:
                file.write(f"{symbol_key:016x}\n")
        (self._folder / MANIFEST).write_bytes(msgspec.toml.encode(tables(manifest)))
        self._finished = True

    def close(self) -> None:
        """Close the arrays."""
        self._times.close()
        self._channels.close()

    def __enter__(self) -> "RecordingWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        finally:
            if not self._finished:  # an incomplete recording must not block the folder
                for name in (TIMES, CHANNELS, SYMBOL_KEY, MANIFEST):
                    (self._folder / name).unlink(missing_ok=True)
