"""From tags to clicks in Alice's slots, with her answer to each probe at hand."""

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from qnode.config import LinkParameters
from qnode.tags.alignment import Lookup, correlate, offset_window
from qnode.tags.synchroniser import Synchroniser, SyncResult
from qnode.tags.types import TagBlock
from qnode.units import PS_PER_S


@dataclass(frozen=True)
class RunStart:
    """When Alice's slot 0 left: ``into_run_s`` before tag time zero, known to ``uncertainty_s``."""

    into_run_s: float = 0.0
    uncertainty_s: float = 0.010


def synchronised(
    blocks: Iterable[TagBlock],
    lookup: Lookup,
    link: LinkParameters,
    start: RunStart,
    random_bytes: Callable[[int], bytes] = os.urandom,
) -> Iterator[SyncResult]:
    """Yield what each block of tags gives; probes are answered from ``lookup`` at once."""
    synchroniser = Synchroniser(link.source, link.receiver, random_bytes)
    for block in blocks:
        result = synchroniser.feed(block)
        probe = result.probe
        if probe is not None:
            elapsed_s = probe.start_ps / PS_PER_S / (1.0 + 1e-6 * result.statistics.clock_offset_ppm)
            offsets = offset_window(
                probe, start.into_run_s + elapsed_s, start.uncertainty_s, link.source.qubit_rate_hz
            )
            found = correlate(probe, lookup, offsets.start, offsets.stop - 1)
            if found is None:
                synchroniser.alignment_failed(probe.number)
            else:
                synchroniser.aligned(found)
        yield result
