"""The ledger of announced slots and of slots revealed by an alignment: no slot is used in both ways.

Alice keeps the ledger across sessions, so that a repeated dialogue cannot disclose the same qubits in two
ways. Blocks announce in separate threads, hence the lock.
"""

import threading
from dataclasses import dataclass

import numpy as np

from qnode.errors import ProtocolError
from qnode.tags.types import Slots


@dataclass
class AnnouncedSpan:
    """The announced slots of one block: ``first`` to ``until - 1``; none if they are equal."""

    first: int = 0
    until: int = 0
    closed: bool = False

    def touches(self, first: int, until: int) -> bool:
        """Return whether slots ``first`` to ``until - 1`` overlap the span."""
        return self.first < until and first < self.until


class SlotLedger:
    """The slots of one emission run."""

    def __init__(self, run_id: int) -> None:
        self.run_id = run_id
        self._spans: list[AnnouncedSpan] = []
        self._revealed: list[range] = []
        self._lock = threading.Lock()

    def open_block(self) -> AnnouncedSpan:
        """Open a block in the ledger."""
        span = AnnouncedSpan()
        with self._lock:
            self._spans.append(span)
        return span

    def announce(self, span: AnnouncedSpan, slots: Slots) -> None:
        """Note that ascending ``slots`` were announced into the block of ``span``.

        Raises:
            ProtocolError: an alignment revealed some of them, or another block has announced slots around
            them.
        """
        if not slots.shape[0]:
            return
        with self._lock:
            self._announce(span, slots)

    def _announce(self, span: AnnouncedSpan, slots: Slots) -> None:
        first, until = int(slots[0]), int(slots[-1]) + 1
        if any(other is not span and other.touches(first, until) for other in self._spans):
            raise ProtocolError(f"clicks from slot {first} on were announced into a second block")
        for revealed in self._revealed:
            begin, end = np.searchsorted(slots, (revealed.start, revealed.stop))
            if begin != end:
                raise ProtocolError("clicks were announced that an alignment has given away")
        span.first = first if span.first == span.until else min(span.first, first)
        span.until = max(span.until, until)

    def close(self, span: AnnouncedSpan) -> None:
        """End a block; the oldest ended blocks become one span, because no new block may begin among them."""
        with self._lock:
            self._close(span)

    def _close(self, span: AnnouncedSpan) -> None:
        span.closed = True
        kept = [other for other in self._spans if other.first < other.until or not other.closed]
        spans = sorted(kept, key=_first)
        while len(spans) > 1 and spans[0].closed and spans[1].closed:
            spans[1].first = spans[0].first
            spans[1].until = max(spans[0].until, spans[1].until)
            del spans[0]
        self._spans = spans

    def reveal(self, slots: range) -> bool:
        """Reveal ``slots`` to an alignment; False if clicks around them were already announced."""
        with self._lock:
            if any(span.touches(slots.start, slots.stop) for span in self._spans):
                return False
            self._revealed.append(slots)
            return True


def _first(span: AnnouncedSpan) -> int:
    return span.first
