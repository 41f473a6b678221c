"""The seam to the key store: what the interface needs of a node, and nothing else."""

from collections.abc import Mapping
from typing import Any, Protocol
from uuid import UUID

from msgspec import Struct


class Key(Struct, frozen=True, eq=False, gc=False):
    """A key on its way to an encryptor.

    ``extension`` says more about it (estimator, block), by plain names; the API adds the vendor prefix.
    """

    key_id: UUID
    key: bytes
    extension: Mapping[str, Any] = {}

    def __repr__(self) -> str:
        return f"Key(key_id={self.key_id}, {8 * len(self.key)} bits)"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        # The inherited one lists every field, and tracebacks with local variables use it.
        return [("key_id", self.key_id)]


class KeySupply(Protocol):
    """What delivers keys. SAEs are named by sae_id; each method may take as long as the link needs.

    A caller that is cancelled while it waits learns nothing: the keys in question are then never delivered.
    """

    async def stored_key_count(self, master: str, slave: str, size_bits: int) -> int:
        """Return how many keys of ``size_bits`` could be allocated now for this pair in this direction."""
        ...

    async def allocate(self, master: str, slaves: tuple[str, ...], number: int, size_bits: int) -> list[Key]:
        """Take ``number`` keys for ``master`` and mark them for each slave, durably at both sites.

        Raises:
            NotEnoughKeys: fewer are there; none was taken.
            LinkDown: the peer is needed and out of reach; none was taken.
            ShareUsedUp: too many keys of these SAEs wait to be fetched; none was taken.
            StoreError: any other trouble of the store.
        """
        ...

    async def fetch(self, slave: str, master: str, key_ids: tuple[UUID, ...]) -> list[Key]:
        """Give ``slave`` the keys that ``master`` got under ``key_ids``, in this order: all or none.

        Raises:
            NotNamed: one was assigned, but not to this slave.
            KeyNotFound: one is unknown, expired, or delivered to this slave before.
            LinkDown: the peer is needed and out of reach.
            StoreError: any other trouble of the store.
        """
        ...
