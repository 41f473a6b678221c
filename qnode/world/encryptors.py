"""Encryptors of both sites: they ask for keys, go away in the middle, and fetch what the other end has."""

import random
from collections.abc import Mapping
from uuid import UUID

import trio

from qnode.choices import Role
from qnode.errors import KeyNotFound, LinkDown, NotEnoughKeys, NotNamed, ShareUsedUp, StoreError
from qnode.world.configuration import other, saes_of
from qnode.world.history import Answered, History, NotFound
from qnode.world.site import Site, SiteDown


class Encryptors:
    """All encryptors of the world. ``pause_s``: by site, between the requests of its masters, at the mean."""

    def __init__(
        self,
        sites: dict[Role, Site],
        history: History,
        rng: random.Random,
        pause_s: Mapping[Role, float],
        patience_s: float,
    ) -> None:
        self._sites = sites
        self._history = history
        self._rng = rng
        self._pause_s = pause_s
        self._patience_s = patience_s
        self.quiet = False
        """Ask for nothing more; keys that are on their way to their slaves still get there."""
        self.refused: dict[str, int] = {}
        """How often each reason was heard."""

    async def ask_at(self, site: Site, nursery: trio.Nursery) -> None:
        """Ask as masters of ``site``, now and then."""
        while True:
            await trio.sleep(self._rng.expovariate(1.0 / self._pause_s[site.role]))
            if not self.quiet:
                nursery.start_soon(self._ask, site, nursery)

    async def burst(self, site: Site, lasts_s: float) -> None:
        """Ask many times at once."""
        async with trio.open_nursery() as nursery:
            for _ in range(self._rng.randint(5, 30)):
                nursery.start_soon(self._ask_later, site, nursery, self._rng.uniform(0.0, lasts_s))

    async def _ask_later(self, site: Site, nursery: trio.Nursery, pause_s: float) -> None:
        await trio.sleep(pause_s)
        await self._ask(site, nursery)

    async def _ask(self, site: Site, nursery: trio.Nursery) -> None:
        rng = self._rng
        master = rng.choice(saes_of(site.role))
        slaves = list(saes_of(other(site.role)))
        rng.shuffle(slaves)
        if rng.random() < 0.85:
            slaves.pop()
        number = rng.choice((1, 1, 1, 2, 3, 8))
        size_bits = rng.choice((256, 256, 256, 256, 128, 512, 1000))
        patience_s = rng.uniform(0.0, 0.02) if rng.random() < 0.15 else self._patience_s
        keys = None
        try:
            with trio.move_on_after(patience_s):
                keys = await site.ask(
                    lambda supply: supply.allocate(master, tuple(slaves), number, size_bits)
                )
        except (NotEnoughKeys, LinkDown, ShareUsedUp, SiteDown, StoreError) as refusal:
            self._count(refusal)
            return
        if keys is None:
            self._count(trio.TooSlowError())
            return
        for key in keys:
            self._answered(site, master, key.key_id, key.key, is_master=True)
        ids = [key.key_id for key in keys]
        if rng.random() < 0.9:  # else nobody ever comes for them
            for slave in slaves:
                nursery.start_soon(self._fetch, self._sites[other(site.role)], slave, master, ids)

    async def _fetch(self, site: Site, slave: str, master: str, ids: list[UUID]) -> None:
        """Fetch what a master has got, at once or later, until an answer comes."""
        rng = self._rng
        await trio.sleep(rng.choice((0.0, 0.05, 1.0, rng.uniform(0.0, 60.0))))
        left = list(ids)
        uncertain = False  # an answer was lost: what it held may be gone
        while left:
            some = tuple(left[: rng.randint(1, len(left))])
            try:
                with trio.move_on_after(self._patience_s):
                    keys = await site.ask(lambda supply, some=some: supply.fetch(slave, master, some))  # type: ignore[misc]
                    for key in keys:
                        self._answered(site, slave, key.key_id, key.key, is_master=False)
                    del left[: len(some)]
                    if rng.random() < 0.15:  # the slave lost them, and must not get them again
                        left += some
                        uncertain = True
                    continue
            except (KeyNotFound, NotNamed) as refusal:
                self._count(refusal)
                now_s = self._history.now_s()
                if not uncertain:
                    self._history.events += [
                        NotFound(now_s, site.role, sae=slave, key_id=one) for one in some
                    ]
                return
            except (LinkDown, SiteDown, StoreError) as refusal:
                self._count(refusal)
                uncertain |= isinstance(refusal, SiteDown)
            else:
                return  # went away: whether the store has handed them out is not known
            await trio.sleep(2.0)

    def _answered(self, site: Site, sae: str, key_id: UUID, key: bytes, *, is_master: bool) -> None:
        self._history.events.append(
            Answered(self._history.now_s(), site.role, sae=sae, is_master=is_master, key_id=key_id, key=key)
        )

    def _count(self, refusal: Exception) -> None:
        name = type(refusal).__name__
        self.refused[name] = self.refused.get(name, 0) + 1
