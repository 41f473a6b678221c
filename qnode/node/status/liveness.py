"""Liveness of the node for the watchdog of the service manager, in addition to the event loop.

The store is alive if it has answered recently. The pipeline (Bob's tags, Alice's symbols) is alive if no step
in a worker thread takes minutes. Idleness is no hang: a dark fibre, an absent peer or a waiting source is
normal.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

STORE_LIMIT_S: Final = 30.0
# Without a cache the first step compiles its kernels, for minutes on a slow machine.
STEP_LIMIT_S: Final = 300.0


class Liveness:
    """``now_s``: a monotonic clock. `store_answered` and `step` may be used in any thread."""

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        self._now_s = now_s
        self._store_answered_s = now_s()
        self._steps: dict[object, float] = {}

    def store_answered(self) -> None:
        """Note that the store has answered a call."""
        self._store_answered_s = self._now_s()

    @contextmanager
    def step(self) -> Iterator[None]:
        """Note that a step of the pipeline runs inside the block."""
        token = object()
        self._steps[token] = self._now_s()
        try:
            yield
        finally:
            del self._steps[token]

    def is_alive(self) -> bool:
        """Return whether store and pipeline are alive, or idle."""
        now_s = self._now_s()
        oldest_s = min(list(self._steps.values()), default=now_s)
        return now_s - self._store_answered_s < STORE_LIMIT_S and now_s - oldest_s < STEP_LIMIT_S
