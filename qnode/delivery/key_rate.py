"""The most keys that an encryptor may get as master in a minute, through all interfaces together."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import trio

from qnode.delivery.directory import SaeDirectory
from qnode.errors import StoreError

KEY_BITS: Final = 256
WINDOW_S: Final = 60.0


class SaeLimitReached(StoreError):
    """An encryptor has had as many keys as it may; nothing was taken. ``wait_s``: until it may ask again."""

    def __init__(self, sae_id: str, keys_per_minute: int, wait_s: float) -> None:
        super().__init__(f"{sae_id} may get {keys_per_minute} keys a minute")
        self.keys_per_minute = keys_per_minute
        self.wait_s = wait_s


class KeyRate:
    """What each encryptor has got lately: ``keys_per_minute`` at once, and as many a minute after that.

    A key counts as one for each 256 bits begun. Only this process knows the counts: a restart begins anew.
    """

    def __init__(self) -> None:
        self._paid_until_s: dict[str, float] = {}

    @contextmanager
    def spending(self, directory: SaeDirectory, sae_id: str, number: int, size_bits: int) -> Iterator[None]:
        """Count ``number`` keys for ``sae_id``; an error or a cancellation within the block counts none.

        Raises:
            SaeLimitReached: the encryptor may not have so many now; none was counted.
        """
        limit, now_s = directory.keys_per_minute(sae_id), trio.current_time()
        if limit is None:
            yield
            return
        cost_s = number * -(-size_bits // KEY_BITS) * WINDOW_S / limit
        before_s = max(now_s, self._paid_until_s.get(sae_id, now_s))
        wait_s = before_s + cost_s - now_s - WINDOW_S
        if wait_s > 1e-6:
            raise SaeLimitReached(sae_id, limit, min(wait_s, WINDOW_S))
        self._paid_until_s[sae_id] = before_s + cost_s
        try:
            yield
        except BaseException:  # also one that was cancelled has given nothing
            self._paid_until_s[sae_id] -= cost_s
            raise
