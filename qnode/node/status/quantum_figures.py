"""The figures of the quantum channel of one link: lock, rates, and counts of tags and clicks."""

import math
import time
from typing import Any

import msgspec.structs
import structlog

from qnode.choices import LockState
from qnode.operate.status.model import QuantumStatus, State, Totals

log = structlog.get_logger()

# A source that waits, such as a simulation, may keep Bob silent for longer than hardware.
LONGEST_UNANNOUNCED_S = 30.0
RATES_WINDOW_S = 2.0  # of tag time with lock, which click rates cover


class QuantumFigures:
    """The quantum channel of one link. Only the event loop's thread uses it, except `clicks_heard`.

    ``filled``: fraction of the block ``current_block`` that has passed.
    """

    def __init__(self) -> None:
        self.status = QuantumStatus(lock=State(LockState.SEARCHING, time.time()))
        self.totals = Totals()
        self.current_block: int | None = None
        self.filled: float | None = None
        self._clicks_heard_s = -math.inf

    def show(self, **values: Any) -> None:
        """Show ``values``, by the names that they have in `QuantumStatus`."""
        self.status = msgspec.structs.replace(self.status, **values)

    def count(self, **added: float) -> None:
        """Add to totals, by the names that they have in `Totals`."""
        totals = self.totals
        sums = {name: getattr(totals, name) + number for name, number in added.items()}
        self.totals = msgspec.structs.replace(totals, **sums)

    def note_lock(self, state: LockState, because: str = "") -> None:
        """Note whether Bob's clicks have slots; Alice infers it from Bob's requests."""
        lock = self.status.lock.to(state, because, at=time.time())
        self.show(lock=lock)

    def lose_lock(self, because: str) -> None:
        """Note the loss of lock because no tags come, or no clicks are announced."""
        if self.status.lock.state != LockState.LOST:
            log.info("quantum.lock", state=LockState.LOST, because=because)
        self.note_lock(LockState.LOST, because)
        self.forget_rates()
        self.filled = None

    def forget_rates(self) -> None:
        """Note that the click rates are not known."""
        self.show(click_rates_hz={}, sifted_rate_bits_per_s=None, folded=None)

    def clicks_heard(self) -> None:
        """Note at Alice's site that Bob has announced clicks; any thread may call this."""
        self._clicks_heard_s = time.monotonic()

    def look_after_lock(self) -> None:
        """End the lock at Alice's site if Bob announces no more clicks; called from time to time."""
        is_silent = time.monotonic() - self._clicks_heard_s >= LONGEST_UNANNOUNCED_S
        if self.status.locked and is_silent:
            self.lose_lock(f"Bob has announced no clicks for more than {LONGEST_UNANNOUNCED_S:g} s")
        elif self.status.lock.state == LockState.LOST and not is_silent:
            self.note_lock(LockState.LOCKED)
