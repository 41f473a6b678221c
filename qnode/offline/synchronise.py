"""From tags to clicks in Alice's slots; the answer to each probe is available at once."""

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from qnode.config import LinkParameters
from qnode.errors import QnodeError
from qnode.tags.alignment import Alignment, correlate
from qnode.tags.offset_search import FURTHEST_S, Attempt, OffsetSearch
from qnode.tags.synchroniser import FAILURES_BEFORE_SEARCH, Synchroniser, SyncResult
from qnode.tags.types import SymbolLookup, TagBlock
from qnode.units import PS_PER_S

# This number of first probes is searched in all windows, which takes seconds each; later ones in the
# likeliest windows, by the wall clocks and by Bob's own count.
SOUGHT_EVERYWHERE: Final = 2
LIKELIEST: Final = 2
# After these failures probes of every length have been tried.
MOST_IN_VAIN: Final = FAILURES_BEFORE_SEARCH + 1


class NotAligned(QnodeError):
    """Bob's clicks fit Alice's symbols in no search window."""


@dataclass(frozen=True)
class RunStart:
    """The start of Alice's slot 0: by the wall clocks ``into_run_s`` before tag time zero.

    ``uncertainty_s``: of the wall clocks. ``counted_slot``: by Bob's own count the slot at tag time
    ``counted_ps``, or a little before.
    """

    into_run_s: float = 0.0
    uncertainty_s: float = 0.010
    counted_slot: int | None = None
    counted_ps: int = 0


def synchronised(
    blocks: Iterable[TagBlock],
    lookup: SymbolLookup,
    link: LinkParameters,
    start: RunStart,
    random_bytes: Callable[[int], bytes] = os.urandom,
    astray: Callable[[float], None] = lambda _seconds: None,
) -> Iterator[SyncResult]:
    """Yield the result of each block of tags; probes are answered from ``lookup`` at once.

    ``astray`` gets the distance of the slots from the prediction of the wall clocks in seconds, if it exceeds
    their uncertainty.

    Raises:
        NotAligned: the first probes fit in no window.
    """
    synchroniser = Synchroniser(link.source, link.receiver, random_bytes)
    rate_hz = link.source.qubit_rate_hz
    search = OffsetSearch(start.uncertainty_s, rate_hz)
    if start.counted_slot is not None:
        search.note(0, start.counted_slot, start.counted_ps / PS_PER_S)
    in_vain, locked = 0, False
    for block in blocks:
        result = synchroniser.feed(block)
        probe = result.probe
        if probe is not None:
            elapsed_s = probe.start_ps / PS_PER_S / (1.0 + 1e-6 * result.statistics.clock_offset_ppm)
            into_run_s, until_s = start.into_run_s + elapsed_s, result.until_ps / PS_PER_S
            attempts = search.everywhere(probe, 0, into_run_s, result.until_ps, until_s)
            sought = attempts if in_vain < SOUGHT_EVERYWHERE else attempts[:LIKELIEST]
            found = _first_fit(sought, lookup)
            if found is None:
                in_vain += 1
                if in_vain >= MOST_IN_VAIN and not locked:
                    raise NotAligned(_nowhere(start))
                synchroniser.alignment_failed(probe.number)
            else:
                in_vain, locked = 0, True
                if (seconds := attempts[0].astray_s(found, rate_hz)) is not None:
                    astray(seconds)
                synchroniser.aligned(found)
        yield result


def _first_fit(attempts: Iterable[Attempt], lookup: SymbolLookup) -> Alignment | None:
    """Return the first alignment found."""
    for attempt in attempts:
        found = correlate(attempt.probe, lookup, attempt.offsets.start, attempt.offsets.stop - 1)
        if found is not None:
            return found
    return None


def _nowhere(start: RunStart) -> str:
    counted = "" if start.counted_slot is None else " nor by Bob's own count"
    return (
        f"no alignment: Bob's clicks fit Alice's symbols nowhere within {FURTHEST_S:g} s of where the times "
        f"of day put them{counted}; the sites' clocks were further apart, or these are of other photons"
    )
