"""A recording for offline distillation: blocks of tags, symbols, and the start of the run."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from qnode.block.span_policy import RecentBlocks
from qnode.config import LinkParameters
from qnode.offline.sifting import BothSides, sifted_blocks
from qnode.offline.synchronise import RunStart
from qnode.simulate.symbols import symbols
from qnode.tags.file_tags import MOST_TAGS
from qnode.tags.recording import Manifest, Recording, open_recording, read_symbol_key
from qnode.tags.synchroniser import SyncResult
from qnode.tags.types import Channels, Codes, Slots, TagBlock, Times

START_UNCERTAINTY_S: Final = 0.010  # of the wall clocks, as a node's default


class Recorded(Protocol):
    """The recordings of both sites of one emission run, of any kind."""

    @property
    def link(self) -> LinkParameters:
        """Source, receiver and settings of distillation."""
        ...

    @property
    def simulated(self) -> bool:
        """Whether its keys are simulated."""
        ...

    @property
    def start(self) -> RunStart:
        """The start of slot 0, as known to the sites."""
        ...

    @property
    def n_tags(self) -> int:
        """The number of tags."""
        ...

    @property
    def block_ids(self) -> tuple[int, ...]:
        """Numbers of the expected blocks; none if spans are chosen again."""
        ...

    def tags(self) -> Iterator[TagBlock]:
        """Yield the tags as the TDC sent them."""
        ...

    def symbols(self, slots: Slots) -> Codes:
        """Return the symbols of ``slots``; unknown if not recorded."""
        ...

    def sifted(
        self, results: Iterable[SyncResult], link: LinkParameters, recent: RecentBlocks
    ) -> Iterator[tuple[int, BothSides]]:
        """Yield number and sifted block of each block."""
        ...


@dataclass(frozen=True)
class RecordedLink:
    """A recording of both sites of one emission run."""

    recording: Recording
    symbol_key: int

    def __repr__(self) -> str:
        return f"RecordedLink({self.recording.folder})"  # the key discloses every bit

    @property
    def manifest(self) -> Manifest:
        """The description of the recording."""
        return self.recording.manifest

    @property
    def link(self) -> LinkParameters:
        """Source, receiver and settings of distillation."""
        return self.manifest.link

    @property
    def simulated(self) -> bool:
        """Whether its keys are simulated."""
        return self.manifest.simulated

    @property
    def block_ids(self) -> tuple[int, ...]:
        """Empty: spans are chosen again."""
        return ()

    @property
    def n_tags(self) -> int:
        """The number of tags."""
        return int(self.recording.times_ps.shape[0])

    @property
    def start(self) -> RunStart:
        """The start of slot 0, as known to the sites."""
        return RunStart(self.manifest.origin_s - self.manifest.started_at_s, START_UNCERTAINTY_S)

    def tags(self) -> Iterator[TagBlock]:
        """Yield the tags as the TDC sent them, at most 2^18 at once."""
        recording = self.recording
        parts = slices(recording.times_ps, recording.channels, MOST_TAGS)
        return tag_blocks(parts, self.manifest.disorder_ps)

    def symbols(self, slots: Slots) -> Codes:
        """Return the symbols of ``slots``; unknown outside the recording."""
        return symbols(self.symbol_key, slots, self.manifest.link.source, self.manifest.slots)

    def sifted(
        self, results: Iterable[SyncResult], link: LinkParameters, recent: RecentBlocks
    ) -> Iterator[tuple[int, BothSides]]:
        """Yield number and sifted block, with spans chosen by the span policy."""
        return enumerate(sifted_blocks(results, self.symbols, link, recent), 1)


def slices(times_ps: Times, channels: Channels, most_tags: int) -> Iterator[tuple[Times, Channels]]:
    """Yield copies of recorded tags, at most ``most_tags`` at once."""
    for first in range(0, int(times_ps.shape[0]), most_tags):
        part = slice(first, first + most_tags)
        yield times_ps[part].copy(), channels[part].copy()


def tag_blocks(
    parts: Iterable[tuple[Times, Channels]], disorder_ps: int, until_ps: int | None = None
) -> Iterator[TagBlock]:
    """Yield recorded tags, a block for each part.

    ``disorder_ps``: how far a tag may be earlier than one before it. ``until_ps``: no tag came after the last
    one before this time.
    """
    latest_ps: int | None = None
    waiting: tuple[Times, Channels] | None = None
    for part in parts:
        if waiting is not None and latest_ps is not None:
            yield TagBlock(*waiting, latest_ps - disorder_ps)
        waiting = part
        newest_ps = int(part[0].max())
        latest_ps = newest_ps if latest_ps is None else max(latest_ps, newest_ps)
    if waiting is not None and latest_ps is not None:  # no tag comes after the last block
        yield TagBlock(*waiting, latest_ps + 1 if until_ps is None else max(until_ps, latest_ps + 1))


def recorded_link(folder: Path) -> RecordedLink:
    """Open the recording in ``folder``.

    Raises:
        ConfigError: it cannot be read.
    """
    return RecordedLink(open_recording(folder), read_symbol_key(folder))
