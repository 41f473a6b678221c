"""A recording as the offline way takes it: blocks of tags, symbols, and when the run began."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from qnode.offline.synchronise import RunStart
from qnode.simulate.symbols import symbols
from qnode.tags.recording import Manifest, Recording, open_recording, read_symbol_key
from qnode.tags.types import Codes, Slots, TagBlock

MOST_TAGS: Final = 1 << 18
_UNCERTAINTY_S: Final = 0.010  # of the sites' times of day, as a node's default


@dataclass(frozen=True)
class RecordedLink:
    """What both sites have recorded of one emission run."""

    recording: Recording
    symbol_key: int

    def __repr__(self) -> str:
        return f"RecordedLink({self.recording.folder})"  # who has the key knows every bit

    @property
    def manifest(self) -> Manifest:
        """What it is a recording of."""
        return self.recording.manifest

    @property
    def start(self) -> RunStart:
        """When slot 0 left, as well as the sites know."""
        return RunStart(self.manifest.origin_s - self.manifest.started_at_s, _UNCERTAINTY_S)

    def tags(self) -> Iterator[TagBlock]:
        """Yield the tags as the TDC sent them, at most 2^18 at once."""
        times_ps, channels = self.recording.times_ps, self.recording.channels
        n_tags = int(times_ps.shape[0])
        latest_ps = 0
        for first in range(0, n_tags, MOST_TAGS):
            times = times_ps[first : first + MOST_TAGS].copy()
            latest_ps = max(latest_ps, int(times.max()))
            # After the last block nothing comes, however early.
            until_ps = latest_ps - self.manifest.disorder_ps if first + MOST_TAGS < n_tags else latest_ps + 1
            yield TagBlock(times, channels[first : first + MOST_TAGS].copy(), until_ps)

    def symbols(self, slots: Slots) -> Codes:
        """Return what Alice sent in ``slots``; unknown outside the recording."""
        return symbols(self.symbol_key, slots, self.manifest.link.source, self.manifest.slots)


def recorded_link(folder: Path) -> RecordedLink:
    """Open the recording in ``folder``.

    Raises:
        ConfigError: there is none that can be read.
    """
    return RecordedLink(open_recording(folder), read_symbol_key(folder))
