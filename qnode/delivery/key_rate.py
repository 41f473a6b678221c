"""The most keys that an encryptor may get as master in a minute, through all interfaces together."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import trio

from qnode.delivery.directory import SaeDirectory
from qnode.errors import AboveSaeLimit, SaeLimitReached

KEY_BITS: Final = 256
WINDOW_S: Final = 60.0


def counted_keys(number: int, size_bits: int) -> int:
    """Return for how many keys such keys count: one for each 256 bits begun."""
    return number * -(-size_bits // KEY_BITS)


class KeyRate:
    """What each encryptor has got lately: ``keys_per_minute`` at once, and as many a minute after that.

    A key counts as one for each 256 bits begun. Only this process knows the counts: a restart begins anew.
    """

    def __init__(self) -> None:
        self._paid_until_s: dict[str, float] = {}
        # Of calls that the store has not answered yet. Time pays only for keys that were given, so a call
        # that fails late leaves no more behind than if it had never been made.
        self._held_s: dict[str, float] = {}

    @contextmanager
    def spending(self, directory: SaeDirectory, sae_id: str, number: int, size_bits: int) -> Iterator[None]:
        """Count ``number`` keys for ``sae_id``; an error or a cancellation within the block counts none.

        Raises:
            AboveSaeLimit: the encryptor may never have so many at once; none was counted.
            SaeLimitReached: it may not have so many now; none was counted.
        """
        limit, now_s = directory.keys_per_minute(sae_id), trio.current_time()
        if limit is None:
            yield
            return
        n_counted = counted_keys(number, size_bits)
        if n_counted > limit:
            raise AboveSaeLimit(sae_id, limit)
        cost_s, held_s = n_counted * WINDOW_S / limit, self._held_s.get(sae_id, 0.0)
        before_s = max(now_s, self._paid_until_s.get(sae_id, now_s))
        wait_s = before_s + held_s + cost_s - now_s - WINDOW_S
        if wait_s > 1e-6:
            raise SaeLimitReached(sae_id, limit, min(wait_s, WINDOW_S))
        self._held_s[sae_id] = held_s + cost_s
        try:
            yield
            self._paid_until_s[sae_id] = max(now_s, self._paid_until_s.get(sae_id, now_s)) + cost_s
        finally:  # a call that failed or was cancelled has given nothing
            self._held_s[sae_id] -= cost_s
