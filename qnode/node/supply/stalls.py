"""Whether the calls of a key store hang: a state that lasts until none has hung for a while."""

from qnode.config import StoreSection

# A call that lasts so long hangs.
STALL_S = 3.0
# A store that is slow again and again is one state, not many.
CALM_S = 30.0


class Stalls:
    """The calls of the store of ``section`` that hang, for people."""

    def __init__(self, section: StoreSection) -> None:
        self._cause = "its disk hangs"
        if section.postgresql is not None:
            self._cause = "the server of its database, or the network to it, hangs"
        self._longest_s = 0.0
        self._last_s = 0.0

    def look(self, oldest_call_s: float, now_s: float) -> str:
        """Return what to say about a store whose oldest running call has lasted so long; empty: nothing."""
        if oldest_call_s >= STALL_S:
            self._longest_s, self._last_s = max(self._longest_s, oldest_call_s), now_s
            return (
                f"the key store has not answered for {oldest_call_s:.0f} s: {self._cause}, no key is served"
            )
        if self._longest_s and now_s - self._last_s < CALM_S:
            return (
                f"the key store answers again after up to {self._longest_s:.0f} s: {self._cause} at times; "
                f"this ends {CALM_S:.0f} s after the last time"
            )
        self._longest_s = 0.0
        return ""

    def forget(self) -> None:
        """Begin anew: another alarm says what the matter is."""
        self._longest_s = 0.0
