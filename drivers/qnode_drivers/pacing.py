"""The pace of recorded tags: as fast as the node takes them, or so many seconds of tags a second."""

from typing import Annotated, Final

import trio

from qnode.config.description import Described, Limits
from qnode.units import PS_PER_S

REALTIME: Final = 1.0
BLOCK_S: Final = 0.1
LONGEST_BLOCK_S: Final = 8.0
MOST_LAG_S: Final = 1.0

Speed = Annotated[
    float | None,
    Described(
        "seconds of tags per second of the wall clock; default: as fast as the node takes them",
        "ratio",
        limits=Limits(1e-3, 1e6),
    ),
]


class Pace:
    """The pace of one reading; ``speed``: as `Speed`."""

    def __init__(self, speed: float | None) -> None:
        self._speed = speed
        self._began_s = trio.current_time()

    async def wait_until_due(self, passed_ps: int) -> None:
        """Wait until tags up to ``passed_ps`` after the first are due."""
        if self._speed is None:
            return
        due_s = self._began_s + passed_ps / PS_PER_S / self._speed
        if not is_paced(self._speed) and trio.current_time() - due_s > MOST_LAG_S:
            self._began_s += trio.current_time() - due_s  # a slow consumer need not catch up
        await trio.sleep_until(due_s)

    def block_ps(self, passed_ps: int) -> int:
        """Return the tag time of a block; the first ones are short, so that lock is not late by a block."""
        longest_s = min(LONGEST_BLOCK_S, max(BLOCK_S, passed_ps / PS_PER_S / 8))
        return int(PS_PER_S * (longest_s if self._speed is None else min(longest_s, BLOCK_S * self._speed)))


def is_paced(speed: float | None) -> bool:
    """Return whether tags come at real time; at any other speed the source waits for a slow consumer."""
    return speed == REALTIME
