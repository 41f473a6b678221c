"""Two separate recordings of the sites of a running link, for offline distillation."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from qnode.block.span_policy import RecentBlocks
from qnode.config import LinkParameters
from qnode.errors import ConfigError
from qnode.offline.recorded import slices, tag_blocks
from qnode.offline.sifting import BothSides, sifted_spans
from qnode.offline.synchronise import RunStart
from qnode.tags.recorded_symbols import RecordedSymbols, recorded_symbols
from qnode.tags.site_recording import AliceRecording, BobRecording, RecordedBlock, open_site_recording
from qnode.tags.synchroniser import SyncResult
from qnode.tags.types import Codes, Slots, TagBlock
from qnode.units import PS_PER_S

# Few at once: all tags before the answer to the first probe are dropped.
MOST_TAGS: Final = 1 << 13
_MARGIN_PS: Final = PS_PER_S // 4  # after the last block, in addition to the difference of the two clocks
_MOST_CLOCK_OFFSET: Final = 1e-4


@dataclass(frozen=True, eq=False)
class RecordedSites:
    """Two recordings of one emission run, with Alice's symbols sorted by slot."""

    alice: AliceRecording
    bob: BobRecording
    recorded: RecordedSymbols
    blocks: tuple[RecordedBlock, ...]

    def __repr__(self) -> str:
        return f"RecordedSites({self.alice.folder}, {self.bob.folder})"  # both together disclose every bit

    @property
    def link(self) -> LinkParameters:
        """Source, receiver and settings of distillation."""
        return self.bob.manifest.link

    @property
    def simulated(self) -> bool:
        """Whether its keys are simulated."""
        return self.bob.manifest.simulated

    @property
    def n_tags(self) -> int:
        """The number of Bob's tags."""
        return int(self.bob.times_ps.shape[0])

    @property
    def start(self) -> RunStart:
        """The start of slot 0, as known to the sites."""
        ours, theirs = self.bob.manifest, self.alice.manifest
        assert ours.origin_s is not None  # a manifest without these cannot be read
        assert theirs.started_at_s is not None
        into_run_s = ours.origin_s - theirs.started_at_s
        if not self.n_tags:
            return RunStart(into_run_s, ours.start_uncertainty_s)
        return RunStart(into_run_s, ours.start_uncertainty_s, ours.first_slot, int(self.bob.times_ps[0]))

    @property
    def block_ids(self) -> tuple[int, ...]:
        """Numbers of the blocks that both sites recorded completely."""
        return tuple(block.block_id for block in self.blocks)

    def tags(self) -> Iterator[TagBlock]:
        """Yield Bob's tags from the first slot that Alice recorded to the end of the last common block."""
        times_ps = self.bob.times_ps
        if not times_ps.shape[0]:
            return iter(())
        slots = self.recorded.slots
        first_symbol = int(slots[0]) if slots.shape[0] else 0
        # Rather a little late: each probe of clicks before the first symbol is a long search without result.
        first_ps = self._time_of(first_symbol, 1.0 + _MOST_CLOCK_OFFSET)
        end_ps = self._time_of(self.blocks[-1].end_slot, 1.0 + _MOST_CLOCK_OFFSET) + _MARGIN_PS
        # The disorder of tags is negligible here.
        first, end = np.searchsorted(times_ps, (first_ps, end_ps)).tolist()
        parts = slices(times_ps[first:end], self.bob.channels[first:end], MOST_TAGS)
        return tag_blocks(parts, self.bob.manifest.disorder_ps, until_ps=end_ps)

    def symbols(self, slots: Slots) -> Codes:
        """Return the symbols of ``slots``; unknown where Bob announced no click."""
        return self.recorded(slots)

    def sifted(
        self, results: Iterable[SyncResult], link: LinkParameters, recent: RecentBlocks
    ) -> Iterator[tuple[int, BothSides]]:
        """Yield number and sifted block of the blocks that both sites recorded, with the sites' spans."""
        return sifted_spans(results, self.symbols, self.blocks)

    def _time_of(self, slot: int, slowness: float) -> int:
        """Return the arrival of ``slot`` in tag time; ``slowness``: of Bob's clock against Alice's."""
        after = slot - self.bob.manifest.first_slot
        return int(self.bob.times_ps[0]) + round(after * self.link.source.period_ps * slowness)


def recorded_sites(one: Path, other: Path) -> RecordedSites:
    """Open the two sites' recordings, in either order.

    Raises:
        ConfigError: they cannot be read, or are not from both sites of one link in one emission run.
    """
    first, second = open_site_recording(one), open_site_recording(other)
    if isinstance(first, BobRecording):
        first, second = second, first
    if not isinstance(first, AliceRecording) or not isinstance(second, BobRecording):
        role = first.manifest.role
        raise ConfigError(f"{one} and {other} are both {role}'s: one recording of each site is needed")
    alice, bob = first.manifest, second.manifest
    where = f"{first.folder} and {second.folder}"
    if (alice.kme_id, alice.peer_kme_id) != (bob.peer_kme_id, bob.kme_id):
        raise ConfigError(
            f"{where} are not of one link: {alice.kme_id} with {alice.peer_kme_id}, "
            f"{bob.kme_id} with {bob.peer_kme_id}"
        )
    if alice.run_id != bob.run_id:
        raise ConfigError(
            f"{where} are of two emission runs, {alice.run_id} and {bob.run_id}: "
            f"record both sites at one time"
        )
    if alice.link != bob.link:
        raise ConfigError(f"{where}: their [link] tables differ")
    common = set(alice.blocks) & set(bob.blocks)
    if not common:
        raise ConfigError(
            f"{where} have no whole block in common ({_numbers(alice.blocks)} and {_numbers(bob.blocks)}): "
            f"record both sites at one time, for several blocks"
        )
    blocks = tuple(sorted(common, key=lambda block: block.first_slot))
    return RecordedSites(first, second, recorded_symbols(first), blocks)


def _numbers(blocks: tuple[RecordedBlock, ...]) -> str:
    if not blocks:
        return "none"
    return f"{blocks[0].block_id} to {blocks[-1].block_id}"
