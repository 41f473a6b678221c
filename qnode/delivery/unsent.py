"""Keys whose answer was certainly not sent: they wait in memory for the same SAE to repeat its request.

The store destroys keys before the answer is written, so that no crash delivers a key twice. If the connection
turns out to be broken before any byte of the answer was sent, nobody has the keys yet. They are then
delivered once, to the same SAE when it repeats its request. They are never written to disk: a restart loses
them.
"""

from collections import deque
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Never
from uuid import UUID

import structlog
import trio

from qnode.delivery.supply import Key

log = structlog.get_logger()

HELD_S = 10.0
MOST_KEYS = 4096
FORGET_PERIOD_S = 0.5


@dataclass(frozen=True)
class _Answer:
    until_s: float
    keys: dict[UUID, Key]


class Unsent:
    """Unsent keys by ``owner``: the SAE with the part of its request that any equal request repeats."""

    def __init__(self) -> None:
        self._answers: dict[Hashable, deque[_Answer]] = {}
        self._keys = 0
        self.held_total = 0
        """The number of keys held since the start."""
        self.lost_total = 0
        """The number of these keys that were not requested again in time."""

    def hold(self, owner: Hashable, keys: list[Key]) -> None:
        """Keep ``keys`` for ``owner`` for 10 s; if too many are already held, these are lost."""
        self.forget_old()
        self.held_total += len(keys)
        if self._keys + len(keys) > MOST_KEYS:
            self._lose(len(keys))
            return
        self._keys += len(keys)
        until_s = trio.current_time() + HELD_S
        answer = _Answer(until_s, {key.key_id: key for key in keys})
        self._answers.setdefault(owner, deque()).append(answer)
        log.warning("key.unsent", keys=len(keys), held_s=HELD_S)

    def take_any(self, owner: Hashable) -> list[Key] | None:
        """Return the keys of one unsent answer of ``owner`` to an equal request; None if there is none."""
        self.forget_old()
        answers = self._answers.get(owner)
        if not answers:
            return None
        keys = list(answers.popleft().keys.values())
        self._forget_empty(owner)
        self._keys -= len(keys)
        return keys

    def take(self, owner: Hashable, key_ids: tuple[UUID, ...]) -> list[Key] | None:
        """Return the keys of ``key_ids`` to ``owner``: all, or None."""
        self.forget_old()
        held = {key_id: answer for answer in self._answers.get(owner, ()) for key_id in answer.keys}
        if not all(key_id in held for key_id in key_ids):
            return None
        keys = [held[key_id].keys.pop(key_id) for key_id in key_ids]
        self._forget_empty(owner)
        self._keys -= len(keys)
        return keys

    async def run(self) -> Never:
        """Discard keys in time, also while no request comes, until cancelled."""
        while True:
            await trio.sleep(FORGET_PERIOD_S)
            self.forget_old()

    def forget_old(self) -> None:
        """Discard the keys that were not requested again in time."""
        now_s = trio.current_time()
        for owner in list(self._answers):
            for answer in self._old(owner, now_s):
                self._keys -= len(answer.keys)
                self._lose(len(answer.keys))
            self._forget_empty(owner)

    def _old(self, owner: Hashable, now_s: float) -> Iterator[_Answer]:
        answers = self._answers[owner]
        while answers and answers[0].until_s <= now_s:
            yield answers.popleft()

    def _forget_empty(self, owner: Hashable) -> None:
        answers = self._answers[owner]
        while answers and not answers[0].keys:
            answers.popleft()
        if not answers:
            del self._answers[owner]

    def _lose(self, keys: int) -> None:
        if keys:
            self.lost_total += keys
            log.warning(
                "key.lost",
                keys=keys,
                reason="the answer was not sent, and the request was not repeated in time",
            )
