"""Does the node still move? What the service manager's watchdog is fed by, beside the event loop itself.

The store moves when it has answered lately. The pipeline (Bob's tags, Alice's symbols) moves when no step of
it that was begun in a worker thread is still at work after minutes. Having nothing to do is no hang: a dark
fibre, an absent peer and a source that waits are well.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

STORE_LIMIT_S: Final = 30.0
# Without a cache the first step compiles its kernels, for minutes on a slow machine.
STEP_LIMIT_S: Final = 300.0


class Liveness:
    """``now_s``: a clock that never jumps. `store_answered` and `step` may be used in any thread."""

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        self._now_s = now_s
        self._store_answered_s = now_s()
        self._steps: dict[object, float] = {}

    def store_answered(self) -> None:
        """Note that the store has done what it was asked."""
        self._store_answered_s = self._now_s()

    @contextmanager
    def step(self) -> Iterator[None]:
        """Note that a step of the pipeline is at work inside the block."""
        token = object()
        self._steps[token] = self._now_s()
        try:
            yield
        finally:
            del self._steps[token]

    def is_alive(self) -> bool:
        """Tell whether store and pipeline move, or have nothing to do."""
        now_s = self._now_s()
        oldest_s = min(list(self._steps.values()), default=now_s)
        return now_s - self._store_answered_s < STORE_LIMIT_S and now_s - oldest_s < STEP_LIMIT_S
