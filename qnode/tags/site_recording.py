"""Recordings of one site of a running link: Bob's raw tags, or the symbols that Alice looked up.

A recording is a folder that only its owner can read, because it discloses the key:

* ``recording.toml``: the manifest, see `SiteManifest`; it is written last, so without it there is no
  recording.
* Bob's: ``times_ps.npy`` and ``channels.npy``, as in `qnode.tags.recording`;
* Alice's: ``slots.npy`` (int64) and ``symbols.npy`` (uint8, coded as in `qnode.tags.types`), in the order of
  look-up: the slots of announced clicks, and those before boundary clicks.
"""

import os
import stat
import tomllib
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final

import msgspec
import numpy as np
from msgspec import Struct

from qnode.config import LinkParameters, Role, load, tables
from qnode.errors import ConfigError
from qnode.tags.arrays import Disorder, GrowingArray, mapped, new_folder
from qnode.tags.recording import CHANNELS, MANIFEST, TIMES
from qnode.tags.types import Channels, Codes, Slots, Times

FORMAT: Final = 1
SLOTS, SYMBOLS = "slots.npy", "symbols.npy"


class RecordedBlock(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A block that was announced completely during the recording, with the number of the sites."""

    block_id: int
    first_slot: int
    n_slots: int

    @property
    def end_slot(self) -> int:
        """The first slot after the block."""
        return self.first_slot + self.n_slots


class SiteManifest(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The description of a recording of one site, of one emission run.

    ``began_at_s``: Unix time; ``ended``: the reason for its end. Alice's has ``started_at_s``: when slot 0
    left, seconds of Alice's wall clock. Bob's has ``origin_s``: tag time zero, seconds of Bob's wall clock,
    ``first_slot``: the slot of the first tag, or a little before, and ``disorder_ps``: how far a tag may be
    earlier than one before it. ``start_uncertainty_s``: of the wall clocks. ``entries``: tags or symbols.
    ``blocks``: number, first slot and slots of each complete block. ``repeats``: Alice's symbols, of all
    slots from 0 on, are a pattern that she sent again and again; then its keys protect nothing (simulated).
    """

    format: int
    role: Role
    kme_id: str
    peer_kme_id: str
    simulated: bool
    run_id: int
    began_at_s: float
    ended: str
    start_uncertainty_s: float
    entries: int
    blocks: tuple[RecordedBlock, ...]
    link: LinkParameters
    started_at_s: float | None = None
    origin_s: float | None = None
    first_slot: int = 0
    disorder_ps: int = 0
    repeats: bool = False

    def __post_init__(self) -> None:
        if self.format != FORMAT:
            raise ValueError(f"format: expected {FORMAT}, got {self.format}")
        if (self.started_at_s if self.role == "alice" else self.origin_s) is None:
            raise ValueError(f"{'started_at_s' if self.role == 'alice' else 'origin_s'}: is missing")
        if self.repeats and not (self.role == "alice" and self.simulated and self.entries):
            raise ValueError("repeats: only symbols of Alice can, with simulated = true")


@dataclass(frozen=True, eq=False)
class AliceRecording:
    """A recording of Alice's site; the arrays are mapped, not read."""

    folder: Path
    manifest: SiteManifest
    slots: Slots
    symbols: Codes


@dataclass(frozen=True, eq=False)
class BobRecording:
    """A recording of Bob's site; the arrays are mapped, not read."""

    folder: Path
    manifest: SiteManifest
    times_ps: Times
    channels: Channels


def is_site_recording(folder: Path) -> bool:
    """Return whether the manifest in ``folder`` is that of one site; False if none can be read."""
    try:
        return "role" in tomllib.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError):
        return False


def open_site_recording(folder: Path) -> AliceRecording | BobRecording:
    """Open the recording in ``folder``.

    Raises:
        ConfigError: there is none, others can read it, or its parts do not fit together.
    """
    manifest = load(folder / MANIFEST, SiteManifest)
    if folder.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ConfigError(f"{folder} can be read by others, and it is the key; run chmod 700 {folder}")
    if manifest.role == "alice":
        alice = AliceRecording(
            folder, manifest, mapped(folder / SLOTS, np.int64), mapped(folder / SYMBOLS, np.uint8)
        )
        _check_lengths(folder, manifest, alice.slots.shape[0], alice.symbols.shape[0])
        return alice
    bob = BobRecording(folder, manifest, mapped(folder / TIMES, np.int64), mapped(folder / CHANNELS, np.int8))
    _check_lengths(folder, manifest, bob.times_ps.shape[0], bob.channels.shape[0])
    return bob


def _check_lengths(folder: Path, manifest: SiteManifest, first: int, second: int) -> None:
    if not first == second == manifest.entries:
        raise ConfigError(
            f"{folder}: {manifest.entries} entries by the manifest, its arrays have {first} and {second}"
        )


class SiteRecordingWriter:
    """Writes one site's recording into a new folder; a folder without `finish` is no recording.

    Raises:
        ConfigError: the folder exists and is not empty, or cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        new_folder(folder)
        self._folder = folder
        self._arrays: tuple[GrowingArray, GrowingArray] | None = None
        self._disorder = Disorder()

    @property
    def entries(self) -> int:
        """The number of tags or symbols so far."""
        return self._arrays[0].count if self._arrays is not None else 0

    @property
    def disorder_ps(self) -> int:
        """The largest disorder so far: how far a tag was earlier than one before it."""
        return self._disorder.most_ps

    def add_tags(self, times_ps: Times, channels: Channels) -> None:
        """Append tags in the order of their arrival."""
        self._disorder.see(times_ps)
        times_file, channels_file = self._files("bob")
        times_file.append(times_ps)
        channels_file.append(channels)

    def add_symbols(self, slots: Slots, symbols: Codes) -> None:
        """Append the symbols of ``slots``."""
        slots_file, symbols_file = self._files("alice")
        slots_file.append(slots)
        symbols_file.append(symbols)

    def finish(self, manifest: SiteManifest) -> None:
        """Complete the recording; the manifest is written last."""
        self._files(manifest.role)  # makes empty files if there were no entries
        self.close()
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        with os.fdopen(os.open(self._folder / MANIFEST, flags, 0o600), "wb") as file:
            file.write(msgspec.toml.encode(tables(manifest)))

    def close(self) -> None:
        """Close the arrays."""
        if self._arrays is not None:
            try:
                self._arrays[0].close()
            finally:
                self._arrays[1].close()

    def _files(self, role: Role) -> tuple[GrowingArray, GrowingArray]:
        if self._arrays is None:
            names = (
                ((SLOTS, "<i8"), (SYMBOLS, "|u1")) if role == "alice" else ((TIMES, "<i8"), (CHANNELS, "|i1"))
            )
            first, second = (GrowingArray(self._folder / name, descr) for name, descr in names)
            self._arrays = (first, second)
        return self._arrays

    def __enter__(self) -> "SiteRecordingWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
