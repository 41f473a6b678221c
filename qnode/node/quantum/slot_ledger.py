"""Which slots of an emission run were announced, and which an alignment gave away: none serves twice.

Alice keeps it over sessions, so that a repeated dialogue cannot disclose the same qubits in two ways. Blocks
announce in threads of their own, hence the lock.
"""

import threading
from dataclasses import dataclass

import numpy as np

from qnode.errors import ProtocolError
from qnode.tags.types import Slots


@dataclass
class AnnouncedSpan:
    """What one block has announced: slots ``first`` to ``until - 1``; nothing yet when they are equal."""

    first: int = 0
    until: int = 0
    closed: bool = False

    def touches(self, first: int, until: int) -> bool:
        """Tell whether slots ``first`` to ``until - 1`` overlap the span."""
        return self.first < until and first < self.until


class SlotLedger:
    """The slots of one emission run."""

    def __init__(self, run_id: int) -> None:
        self.run_id = run_id
        self._spans: list[AnnouncedSpan] = []
        self._revealed: list[range] = []
        self._lock = threading.Lock()

    def open_block(self) -> AnnouncedSpan:
        """Begin to keep account of a block."""
        span = AnnouncedSpan()
        with self._lock:
            self._spans.append(span)
        return span

    def announce(self, span: AnnouncedSpan, slots: Slots) -> None:
        """Note that ascending ``slots`` were announced into the block of ``span``.

        Raises:
            ProtocolError: an alignment gave some of them away, or another block has announced around them.
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
        """End a block; the oldest ended ones become one span, for nothing new may begin among them."""
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
        """Give ``slots`` away to an alignment; False when clicks around them were announced already."""
        with self._lock:
            if any(span.touches(slots.start, slots.stop) for span in self._spans):
                return False
            self._revealed.append(slots)
            return True


def _first(span: AnnouncedSpan) -> int:
    return span.first
