"""Recorded hardware: a transmitter and a time tagger that play a recording once or repeatedly.

Both read the same folder and take the emission run from it; nothing connects them. A loop repeats the
recorded span: each pass moves the slots by exactly the span, and the tags by exactly its duration on Bob's
clock. So clock recovery sees no seam. Each time the time tagger is opened, it begins later in the loop than
before, because no slot of an emission run may be announced twice.

Everyone who has the recording knows the keys of a replay: both devices declare themselves simulated.
"""

import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
import trio
from msgspec import Struct

from qnode.config.description import Described, check_limits
from qnode.devices.protocols import DeviceIdentity, EmissionRun
from qnode.errors import ConfigError
from qnode.simulate.symbols import repeated_symbols, symbols
from qnode.tags.arrays import give_back
from qnode.tags.recorded_symbols import recorded_symbols, repeated_pattern
from qnode.tags.recording import Recording, check_loopable, open_recording, read_symbol_key
from qnode.tags.site_recording import AliceRecording, is_site_recording, open_site_recording
from qnode.tags.tag_time import signed_64
from qnode.tags.types import UNKNOWN_SYMBOL, Codes, Slots, SymbolLookup, TagBlock
from qnode_drivers.pacing import Pace, Speed, is_paced

MOST_TAGS = 1 << 19
# A loop that is opened again begins where it would be if it had always run this many times faster than real
# time. After 18 hours this starts again, because slot numbers would run out.
_AHEAD = 1 << 13
_AHEAD_MODULUS_S = 1 << 16
_LAST_SLOT = 1 << 60


class TransmitterConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Alice's symbols from a recording."""

    recording: Annotated[Path, Described("folder of the recording")]
    loop: Annotated[bool, Described("repeat the recording without end")] = False


class TdcConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Bob's time tags from a recording."""

    recording: Annotated[Path, Described("folder of the recording")]
    loop: Annotated[bool, Described("repeat the recording without end")] = False
    speed: Speed = None

    def __post_init__(self) -> None:
        check_limits(self)


class ReplayTransmitter:
    """Alice's recorded qubit source."""

    Config: ClassVar[type[Struct]] = TransmitterConfig

    def __init__(self, run: EmissionRun, lookup: SymbolLookup) -> None:
        self._run = run
        self._lookup = lookup

    @classmethod
    @asynccontextmanager
    async def open(cls, config: TransmitterConfig) -> AsyncIterator["ReplayTransmitter"]:
        """Open the recording of a simulated link, or of Alice's site.

        Raises:
            ConfigError: the recording cannot be read or cannot be looped, or is Bob's.
        """
        yield cls(*_recorded(config.recording, loop=config.loop))

    @property
    def identity(self) -> DeviceIdentity:
        """The identity that the device reports."""
        return DeviceIdentity("replayed transmitter", f"run-{self._run.run_id:x}", simulated=True)

    async def runs(self) -> AsyncGenerator[EmissionRun, None]:
        """Yield the only emission run."""
        yield self._run
        await trio.sleep_forever()

    def symbols(self, run_id: int, slots: Slots) -> Codes:
        """Return the symbols sent in ``slots``; `UNKNOWN_SYMBOL` for other runs and unrecorded slots."""
        if run_id != self._run.run_id:
            return np.full(slots.shape[0], UNKNOWN_SYMBOL, np.uint8)
        return self._lookup(slots)


class ReplayTdc:
    """Bob's recorded time-to-digital converter."""

    Config: ClassVar[type[Struct]] = TdcConfig

    def __init__(self, recording: Recording, first_pass: int, *, loop: bool, speed: float | None) -> None:
        self._recording = recording
        self._first_pass = first_pass
        self._loop = loop
        self._speed = speed

    @classmethod
    @asynccontextmanager
    async def open(cls, config: TdcConfig) -> AsyncIterator["ReplayTdc"]:
        """Open the recording; its tags are mapped into memory, not read.

        Raises:
            ConfigError: the recording cannot be read, cannot be looped, or has no tags.
        """
        recording = _opened(config.recording, loop=config.loop)
        first_pass = _pass_of(time.time(), recording) if config.loop else 0
        yield cls(recording, first_pass, loop=config.loop, speed=config.speed)

    @property
    def identity(self) -> DeviceIdentity:
        """The identity that the device reports."""
        return DeviceIdentity("replayed TDC", f"run-{self._recording.manifest.run_id:x}", simulated=True)

    @property
    def paced(self) -> bool:
        """True at real time only: at any other speed the source waits for a slow consumer."""
        return is_paced(self._speed)

    @property
    def origin_s(self) -> float:
        """Bob's wall-clock time at tag time zero, the start of the first played pass."""
        manifest = self._recording.manifest
        ahead_slots = self._first_pass * manifest.slots
        return manifest.origin_s + ahead_slots / manifest.link.source.qubit_rate_hz

    async def tags(self) -> AsyncGenerator[TagBlock, None]:
        """Yield tag blocks of at most 2^19 tags; a recording that is not looped ends."""
        times_ps, manifest = self._recording.times_ps, self._recording.manifest
        whole_ps, part_ps = int(manifest.span_ps), manifest.span_ps % 1.0
        pace = Pace(self._speed)
        round_number, first, until_ps = 0, 0, 0
        while True:
            shift_ps = round_number * whole_ps + round(round_number * part_ps)
            last = self._block_end(first, int(times_ps[first]) + pace.block_ps(until_ps))
            await pace.wait_until_due(int(times_ps[last - 1]) + shift_ps)
            until_ps = max(until_ps, int(times_ps[last - 1]) + shift_ps - manifest.disorder_ps)
            yield await trio.to_thread.run_sync(self._block, first, last, shift_ps, until_ps)
            first = last
            if first == times_ps.shape[0]:
                if not self._loop:
                    return
                round_number, first = round_number + 1, 0

    def _block_end(self, first: int, until_ps: int) -> int:
        """Return the end of the block from tag ``first`` up to about ``until_ps``."""
        times_ps = self._recording.times_ps
        most = min(first + MOST_TAGS, int(times_ps.shape[0]))
        if int(times_ps[most - 1]) <= until_ps:
            return most
        return first + max(1, int(np.searchsorted(times_ps[first:most], until_ps)))

    def _block(self, first: int, last: int, shift_ps: int, until_ps: int) -> TagBlock:
        recording = self._recording
        times_ps = recording.times_ps[first:last] + np.int64(signed_64(shift_ps))  # wraps, as hardware does
        channels = recording.channels[first:last].copy()
        # Otherwise the daemon grows by the whole recording while it is played.
        give_back(recording.times_ps, first, last)
        give_back(recording.channels, first, last)
        return TagBlock(times_ps, channels, until_ps)


def _recorded(folder: Path, *, loop: bool) -> tuple[EmissionRun, SymbolLookup]:
    """Return the emission run, and the symbols in it."""
    if is_site_recording(folder):
        alice = open_site_recording(folder)
        if loop or not isinstance(alice, AliceRecording):
            raise ConfigError(f"{folder}: expected Alice's recording of her site, played once (loop = false)")
        assert alice.manifest.started_at_s is not None  # a manifest without it cannot be read
        run = EmissionRun(alice.manifest.run_id, alice.manifest.started_at_s)
        return run, repeated_pattern(alice) if alice.manifest.repeats else recorded_symbols(alice)
    manifest, key = _opened(folder, loop=loop).manifest, read_symbol_key(folder)
    run, source, n = EmissionRun(manifest.run_id, manifest.started_at_s), manifest.link.source, manifest.slots
    if loop:
        return run, lambda slots: repeated_symbols(key, slots, source, n, _LAST_SLOT)
    return run, lambda slots: symbols(key, slots, source, n)


def _opened(folder: Path, *, loop: bool) -> Recording:
    recording = open_recording(folder)
    if loop:
        check_loopable(recording)
    if not recording.times_ps.shape[0]:
        raise ConfigError(f"{folder}: there are no tags in this recording")
    return recording


def _pass_of(time_s: float, recording: Recording) -> int:
    """Return the first pass of a loop for a time tagger that is opened at ``time_s``."""
    ahead_slots = int(time_s % _AHEAD_MODULUS_S) * _AHEAD * recording.manifest.link.source.qubit_rate_hz
    return int(ahead_slots // recording.manifest.slots)
