"""The last bytes in both directions, with their times, to find out what went wrong."""

import time
from collections import deque
from collections.abc import Callable
from contextvars import ContextVar
from typing import Final

from msgspec.structs import replace

from qnode.devices.status import Exchange

KEPT_BYTES: Final = 4096  # in each direction


class Transcript:
    """A record of the last ``kept_bytes`` that were sent, and as many that were received."""

    def __init__(self, now: Callable[[], float] = time.time, *, kept_bytes: int = KEPT_BYTES) -> None:
        self._now = now
        self._most_bytes = kept_bytes
        self._kept: dict[bool, deque[Exchange]] = {True: deque(), False: deque()}
        self._bytes = {True: 0, False: 0}

    def note_sent(self, data: bytes) -> None:
        """Note what the node has sent."""
        self._note(data, sent=True)

    def note_received(self, data: bytes) -> None:
        """Note what the device has sent."""
        self._note(data, sent=False)

    def _note(self, data: bytes, *, sent: bool) -> None:
        if not data:
            return
        kept = self._kept[sent]
        kept.append(Exchange(self._now(), sent, bytes(data[-self._most_bytes :])))
        self._bytes[sent] += len(kept[-1].data)
        while (excess := self._bytes[sent] - self._most_bytes) > 0:
            oldest = kept.popleft()
            self._bytes[sent] -= min(excess, len(oldest.data))
            if excess < len(oldest.data):
                kept.appendleft(replace(oldest, data=oldest.data[excess:]))

    def exchanges(self) -> list[Exchange]:
        """Return what is kept of both directions, in the order of time."""
        return sorted([*self._kept[True], *self._kept[False]], key=lambda one: one.at)


PRESENT: Final[ContextVar[Transcript | None]] = ContextVar("transcript", default=None)
"""The record of the device that the present task supervises; it lives on over openings of the device."""
