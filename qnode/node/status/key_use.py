"""How fast the keys of one link are used, from the growing count of delivered chunks."""

from collections import deque
from typing import Final

from qnode.units import CHUNK_BITS

WINDOW_S: Final = 3600.0
STEP_S: Final = 20.0
SHORTEST_S: Final = 60.0


class KeyUse:
    """The use over the last hour; times are seconds of any clock that does not jump."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()
        self._latest: tuple[float, int] | None = None

    def see(self, at_s: float, delivered_chunks: int) -> None:
        """Take the present count of delivered chunks."""
        if self._latest is not None and delivered_chunks < self._latest[1]:
            self._seen.clear()  # a new store counts from 0
        self._latest = (at_s, delivered_chunks)
        if not self._seen or at_s - self._seen[-1][0] >= STEP_S:
            self._seen.append(self._latest)
        while at_s - self._seen[0][0] > WINDOW_S:
            self._seen.popleft()

    def bits_per_s(self) -> float | None:
        """Return the key delivered per second; None before a minute was seen."""
        if self._latest is None:
            return None
        (first_s, first), (last_s, last) = self._seen[0], self._latest
        if last_s - first_s < SHORTEST_S:
            return None
        return (last - first) * CHUNK_BITS / (last_s - first_s)
