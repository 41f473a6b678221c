"""The file of a time tagger as Bob's side, with a recording of what Alice sent, for offline distillation."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from qnode.block.span_policy import RecentBlocks
from qnode.config import LinkParameters
from qnode.errors import ConfigError
from qnode.offline.recorded import START_UNCERTAINTY_S, recorded_link, tag_blocks
from qnode.offline.recorded_sites import MOST_TAGS as FEW_TAGS
from qnode.offline.sifting import BothSides, sifted_blocks, sifted_spans
from qnode.offline.synchronise import RunStart
from qnode.tags.file_tags import MOST_TAGS, FileTags, Survey
from qnode.tags.offset_search import FURTHEST_S
from qnode.tags.recorded_symbols import recorded_symbols, repeated_pattern
from qnode.tags.site_recording import (
    AliceRecording,
    RecordedBlock,
    is_site_recording,
    open_site_recording,
)
from qnode.tags.synchroniser import SyncResult
from qnode.tags.types import Channels, Codes, Slots, SymbolLookup, TagBlock, Times
from qnode.units import PS_PER_S

_ALWAYS_PS: Final = -(2**62)


@dataclass(frozen=True, eq=False)
class RecordedFile:
    """Bob's tags of a file and Alice's symbols of a recording.

    ``zero_ps``: the time in the file that is tag time zero, from which ``start`` counts. ``from_ps``: earlier
    tags are left out, because Alice recorded no symbols. ``blocks``: the spans that Alice recorded; none if
    spans are chosen again.
    """

    file: FileTags
    survey: Survey
    link: LinkParameters
    simulated: bool
    start: RunStart
    lookup: SymbolLookup
    zero_ps: int
    most_tags: int = MOST_TAGS
    from_ps: int = _ALWAYS_PS
    blocks: tuple[RecordedBlock, ...] = ()

    def __repr__(self) -> str:
        return f"RecordedFile({self.file.path})"  # with the symbols it discloses every bit

    @property
    def n_tags(self) -> int:
        """The number of tags of both arms in the file."""
        return self.survey.z_tags + self.survey.x_tags

    @property
    def block_ids(self) -> tuple[int, ...]:
        """Numbers of the blocks that Alice recorded completely."""
        return tuple(block.block_id for block in self.blocks)

    def tags(self) -> Iterator[TagBlock]:
        """Yield the tags as the time tagger wrote them."""
        return tag_blocks(self._parts(), self.survey.disorder_ps)

    def symbols(self, slots: Slots) -> Codes:
        """Return the symbols of ``slots``; unknown if not recorded."""
        return self.lookup(slots)

    def sifted(
        self, results: Iterable[SyncResult], link: LinkParameters, recent: RecentBlocks
    ) -> Iterator[tuple[int, BothSides]]:
        """Yield number and sifted block, with Alice's spans, or with spans chosen by the span policy."""
        if self.blocks:
            return sifted_spans(results, self.lookup, self.blocks)
        return enumerate(sifted_blocks(results, self.lookup, link, recent), 1)

    def _parts(self) -> Iterator[tuple[Times, Channels]]:
        for times, channels in self.file.parts(self.most_tags, self.zero_ps):
            late_enough = times >= self.from_ps
            if late_enough.any():
                yield times[late_enough], channels[late_enough]


def recorded_file(folder: Path, file: FileTags) -> RecordedFile:
    """Join a tag file with the recording of what Alice sent, of her site or of a simulated link.

    Raises:
        ConfigError: the recording is not Alice's, it is not known when the file began, or an arm has no tags.
    """
    if not is_site_recording(folder):
        return _with_link(folder, file)
    alice = alice_of(folder, file)
    manifest, began_at_s = alice.manifest, began_of(file, alice)
    assert manifest.started_at_s is not None  # a manifest without it cannot be read
    into_run_s = began_at_s - manifest.started_at_s
    start, survey = RunStart(into_run_s, manifest.start_uncertainty_s), file.survey()
    if manifest.repeats:
        pattern = repeated_pattern(alice)
        return RecordedFile(file, survey, manifest.link, True, start, lookup=pattern, zero_ps=file.first_ps)
    symbols = recorded_symbols(alice)
    ends_s = np.asarray(symbols.slots[[0, -1]] if symbols.slots.shape[0] else (0, 0))
    first_s, last_s = (ends_s / manifest.link.source.qubit_rate_hz).tolist()
    until_s = into_run_s + survey.span_ps / PS_PER_S
    # Rather a little late: each probe of clicks before the first symbol is a long search without result.
    from_s = first_s + FURTHEST_S
    if into_run_s > last_s + FURTHEST_S or until_s < from_s:
        raise ConfigError(
            f"{file.path}: its tags came {into_run_s:.3f} to {until_s:.3f} s after Alice's slot 0, and "
            f"{folder} has symbols of {first_s:.3f} to {last_s:.3f} s: expected the same time; is it right "
            f"when the first tag came, {began_at_s:.3f} (--began-at)?"
        )
    return RecordedFile(
        file=file,
        survey=survey,
        link=manifest.link,
        simulated=manifest.simulated,
        start=start,
        lookup=symbols,
        zero_ps=file.first_ps,
        most_tags=FEW_TAGS,
        from_ps=round((from_s - into_run_s) * PS_PER_S),
        blocks=tuple(sorted(manifest.blocks, key=lambda block: block.first_slot)),
    )


def alice_of(folder: Path, file: FileTags) -> AliceRecording:
    """Open the recording of Alice's site for a tag file of Bob's.

    Raises:
        ConfigError: it cannot be read, or is Bob's.
    """
    alice = open_site_recording(folder)
    if not isinstance(alice, AliceRecording):
        raise ConfigError(f"{folder} is Bob's recording, and so is {file.path}: Alice's is needed as well")
    return alice


def began_of(file: FileTags, alice: AliceRecording) -> float:
    """Return when the first tag of the file came, Unix time by Bob's clock.

    Where a pattern repeats it does not matter: the search finds one of its repetitions.

    Raises:
        ConfigError: nobody says.
    """
    if file.began_at_s is None and alice.manifest.repeats:
        assert alice.manifest.started_at_s is not None  # a manifest without it cannot be read
        return alice.manifest.started_at_s
    if file.began_at_s is None:
        raise ConfigError(
            f"{file.path}: when did its first tag come? Say --began-at, Unix time in seconds, right to "
            f"{FURTHEST_S:g} s, or in {file.path.name}.toml beside it: began_at_s"
        )
    return file.began_at_s


def _with_link(folder: Path, file: FileTags) -> RecordedFile:
    link = recorded_link(folder)
    times_ps, zero_ps, start = link.recording.times_ps, file.first_ps, link.start
    if file.began_at_s is not None:
        start = RunStart(file.began_at_s - link.manifest.started_at_s, START_UNCERTAINTY_S)
    elif times_ps.shape[0]:  # the file holds the recorded tags, so its first one is the recorded one
        zero_ps -= int(times_ps[0])
    return RecordedFile(
        file, file.survey(), link.link, link.simulated, start, lookup=link.symbols, zero_ps=zero_ps
    )
