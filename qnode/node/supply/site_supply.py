"""The key supply of a site with several links: each key comes from the link to the site of its slave."""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Protocol
from uuid import UUID

import trio

from qnode.delivery import Key, KeyRate, KeySupply, SaeDirectory, counted_keys
from qnode.errors import AboveSaeLimit, KeyNotFound, LinkDown, StoreError


class SharedLimits(Protocol):
    """Counts for the limits of masters that several processes share."""

    async def spend(self, sae_id: str, number: int, keys_per_minute: int) -> None:
        """Count keys, or give a negative number back; raises SaeLimitReached."""


class SiteKeySupply(KeySupply):
    """The supply of a site; ``links``: by the kme_id of the peer, the first also for pairs within this site.

    ``shared``: the store that counts for the limits of masters, for front ends as well; None: they count in
    memory.
    The two sites of one link hold a key, so all slaves of one key are at one other site.
    """

    def __init__(
        self, links: Mapping[str, KeySupply], directory: SaeDirectory, shared: SharedLimits | None = None
    ) -> None:
        self._links = dict(links)
        self._own = next(iter(self._links.values()))
        self.directory = directory
        self._rate = KeyRate()
        self._shared = shared

    async def stored_key_count(self, master: str, slave: str, size_bits: int) -> int:
        """Return the number of keys of ``size_bits`` available for the pair now."""
        return await self._between(master, (slave,)).stored_key_count(master, slave, size_bits)

    async def allocate(self, master: str, slaves: tuple[str, ...], number: int, size_bits: int) -> list[Key]:
        """Take keys from the link to the slaves' site; raises like `KeySupply.allocate`."""
        supply = self._between(master, slaves)
        if self._shared is None or (limit := self.directory.keys_per_minute(master)) is None:
            with self._rate.spending(self.directory, master, number, size_bits):
                return await supply.allocate(master, slaves, number, size_bits)
        n_counted = counted_keys(number, size_bits)
        if n_counted > limit:
            raise AboveSaeLimit(master, limit)
        await self._shared.spend(master, n_counted, limit)
        try:
            return await supply.allocate(master, slaves, number, size_bits)
        except BaseException:
            with trio.CancelScope(shield=True), suppress(StoreError):
                await self._shared.spend(master, -n_counted, limit)
            raise

    async def fetch(self, slave: str, master: str, key_ids: tuple[UUID, ...]) -> list[Key]:
        """Give ``slave`` keys of the link to its master's site; raises like `KeySupply.fetch`.

        Keys of a pair within this site may come from any link: other slaves of the same key determined it.
        """
        if self.directory.kme_of(master) != self.directory.kme_id:
            return await self._between(slave, (master,)).fetch(slave, master, key_ids)
        troubles: list[StoreError] = []
        for supply in self._links.values():
            try:
                return await supply.fetch(slave, master, key_ids)
            except StoreError as error:  # perhaps another link has the keys
                troubles.append(error)
        raise next((one for one in troubles if not isinstance(one, KeyNotFound)), troubles[0])

    def _between(self, local: str, others: Iterable[str]) -> KeySupply:
        """Return the supply of the link that joins the sites of these encryptors, at most two.

        Raises:
            LinkDown: no link leads there.
        """
        sites = {self.directory.kme_of(sae_id) for sae_id in (local, *others)} - {self.directory.kme_id}
        assert len(sites) <= 1, "the interface refuses slaves at several sites"
        if not sites:
            return self._own
        kme_id = sites.pop()
        if kme_id not in self._links:
            raise LinkDown(f"no link leads to {kme_id}")
        return self._links[kme_id]
