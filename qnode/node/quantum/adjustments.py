"""Adjustments of Bob's receiver: the tags of their time are cut, and clicks are counted between them.

An adjustment begins before the first command to the device and ends when the device has confirmed the last
one. Which tags are cut follows from its time alone: those between the last tag block that arrived before it
began and the first one that arrives after its end, and those of the settling time after that. Nobody has
looked at these tags when that is decided.

Between two adjustments the clicks of the X arm are counted, for the controller of the interferometer's phase:
how many fell in a central or a boundary slot. Bob announces this anyway, and it says nothing about the key.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import trio

from qnode.choices import LockState
from qnode.tags.synchroniser import SyncResult
from qnode.tags.types import OUTCOME_BOUNDARY, OUTCOME_CENTRAL
from qnode.units import PS_PER_S


class Cut(NamedTuple):
    """What to cut with a tag block: the block, and ``settling_ps`` of tag time after it.

    ``number``: of the adjustment.
    """

    number: int
    settling_ps: int


class XClicks(NamedTuple):
    """Clicks of the X arm since the last adjustment, over ``lasting_s`` of slots with lock.

    ``middle_s``: the middle of this time by the TDC's clock.
    """

    central: int
    boundary: int
    lasting_s: float
    middle_s: float


class Adjustments:
    """The adjustments of one receiver. Only the event loop's thread uses it."""

    def __init__(self, qubit_rate_hz: float) -> None:
        self._qubit_rate_hz = qubit_rate_hz
        self._running = 0
        self._number = 0
        self._due: Cut | None = None
        self._passed: Cut | None = None
        self._seen = 0
        self._grown = trio.Event()
        self._begin()

    def _begin(self) -> None:
        self._central = self._boundary = self._slots = 0
        self._reached: int | None = None
        self._first_ps = self._until_ps = 0

    @contextmanager
    def adjust(self, settle_s: float) -> Iterator[None]:
        """Change settings within this block; tags of the next ``settle_s`` are cut as well."""
        self._number += 1
        settling_ps = max(round(settle_s * PS_PER_S), 0 if self._due is None else self._due.settling_ps)
        self._due = Cut(self._number, settling_ps)
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1
            # Another one may have ended meanwhile, with a longer settling time.
            self._due = Cut(self._number, max(settling_ps, self._due.settling_ps))

    # The receiver

    def due(self) -> Cut | None:
        """Return what to cut with the tag block that has just arrived."""
        return self._due

    def passed_on(self, cut: Cut | None) -> None:
        """Note that a block is on its way to the synchroniser with ``cut``."""
        if cut is not None and cut is self._due and not self._running:
            self._due, self._passed = None, cut

    def repeat(self) -> None:
        """Let the latest cut be due again: its block was dropped, or the source of its tags has ended.

        The settling time may go on with the next source.
        """
        if self._due is None:
            self._due = self._passed

    def see(self, result: SyncResult, cut: Cut | None) -> None:
        """Count the clicks of one feed of tags, which had this ``cut``."""
        if cut is not None:
            self._seen = cut.number
        if cut is not None or self._seen != self._number or result.state is not LockState.LOCKED:
            self._begin()
            return
        before, self._reached = self._reached, result.reached
        if before is None:
            self._first_ps = result.until_ps
            return  # the first slot of these clicks is not known
        self._slots += result.reached - before
        self._slots -= sum(max(0, one.end - max(one.first, before)) for one in result.cuts)
        self._until_ps = result.until_ps
        outcomes = result.clicks.outcomes
        self._central += int(np.count_nonzero(outcomes == OUTCOME_CENTRAL))
        self._boundary += int(np.count_nonzero(outcomes == OUTCOME_BOUNDARY))
        self._grown.set()
        self._grown = trio.Event()

    # The controller

    async def x_clicks(self, lasting_s: float) -> XClicks:
        """Return the clicks since the last adjustment, once they cover ``lasting_s``."""
        while self._slots < lasting_s * self._qubit_rate_hz or self._seen != self._number:
            await self._grown.wait()
        middle_s = (self._first_ps + self._until_ps) / 2 / PS_PER_S
        return XClicks(self._central, self._boundary, self._slots / self._qubit_rate_hz, middle_s)
