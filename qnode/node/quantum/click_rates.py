"""The click rates of Bob's arms per second of tag time, over the last two seconds with lock.

The synchroniser yields clicks for whole stretches of slots, which may need several tag blocks. Rates are
therefore clicks per duration of these slots, never per duration of a tag block.
"""

from collections import deque
from typing import NamedTuple

from qnode.choices import LockState
from qnode.node.status.quantum_figures import RATES_WINDOW_S
from qnode.tags.synchroniser import SyncResult


class _Stretch(NamedTuple):
    """Slots with lock, and the clicks in them."""

    slots: int
    z: int
    x: int


class ClickRates:
    """The clicks of the last slots with lock; without lock there are no rates."""

    def __init__(self, qubit_rate_hz: float) -> None:
        self._qubit_rate_hz = qubit_rate_hz
        self.forget()

    def forget(self) -> None:
        """Forget everything: lock was lost, slots are numbered again, or no tags come."""
        self._stretches = deque[_Stretch]()
        self._slots = self._z = self._x = 0
        self._reached_slot: int | None = None

    def see(self, result: SyncResult) -> None:
        """Add the result of one feed of tags."""
        before, self._reached_slot = self._reached_slot, result.reached
        if result.state is not LockState.LOCKED:
            self.forget()
            return
        if before is None:
            return  # the first slot of these clicks is not known
        cut = sum(max(0, one.end - max(one.first, before)) for one in result.cuts)
        slots = result.reached - before - cut
        if slots <= 0:
            return
        self._add(_Stretch(slots, result.z_clicks, len(result.clicks) - result.z_clicks))

    def by_arm_hz(self) -> dict[str, float]:
        """Return the rate of each arm, `z` and `x`; empty if unknown."""
        if not self._slots:
            return {}
        seconds = self._slots / self._qubit_rate_hz
        return {"z": self._z / seconds, "x": self._x / seconds}

    def _add(self, new: _Stretch) -> None:
        self._stretches.append(new)
        self._count(new, 1)
        window = RATES_WINDOW_S * self._qubit_rate_hz
        while self._slots - self._stretches[0].slots >= window:
            self._count(self._stretches.popleft(), -1)

    def _count(self, stretch: _Stretch, sign: int) -> None:
        self._slots += sign * stretch.slots
        self._z += sign * stretch.z
        self._x += sign * stretch.x
