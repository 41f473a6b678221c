"""The interface between key delivery and the key store."""

from collections.abc import Mapping
from typing import Any, Protocol
from uuid import UUID

from msgspec import Struct


class Key(Struct, frozen=True, eq=False, gc=False):
    """A key on its way to an encryptor.

    ``extension`` has further facts (estimator, block) under plain names; the API adds the vendor prefix.
    """

    key_id: UUID
    key: bytes
    extension: Mapping[str, Any] = {}

    def __repr__(self) -> str:
        return f"Key(key_id={self.key_id}, {8 * len(self.key)} bits)"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        # The inherited method lists every field, and tracebacks with local variables use it.
        return [("key_id", self.key_id)]


class KeySupply(Protocol):
    """A supply of keys. SAEs are named by sae_id; each method may take as long as the link needs.

    If a caller is cancelled while it waits, its keys are never delivered.
    """

    async def stored_key_count(self, master: str, slave: str, size_bits: int) -> int:
        """Return the number of keys of ``size_bits`` available now for this pair in this direction."""
        ...

    async def allocate(self, master: str, slaves: tuple[str, ...], number: int, size_bits: int) -> list[Key]:
        """Assign ``number`` keys to ``master`` and each slave, durably at both sites.

        Raises:
            NotEnoughKeys: fewer are available; none was assigned.
            LinkDown: the peer is needed and not reachable; none was assigned.
            ShareUsedUp: too many keys of these SAEs wait to be fetched; none was assigned.
            SaeLimitReached: the master has had as many keys as it may; none was assigned. AboveSaeLimit: it
                may never have so many at once.
            StoreError: any other error of the store.
        """
        ...

    async def fetch(self, slave: str, master: str, key_ids: tuple[UUID, ...]) -> list[Key]:
        """Give ``slave`` the keys that ``master`` got under ``key_ids``, in this order: all or none.

        Raises:
            NotNamed: one was assigned, but not to this slave.
            KeyNotFound: one is unknown, expired, or delivered to this slave before.
            LinkDown: the peer is needed and not reachable.
            StoreError: any other error of the store.
        """
        ...
