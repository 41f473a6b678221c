"""Two KMEs with a small in-memory key supply between them, each behind real mutual TLS."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import cache
from random import Random
from uuid import UUID

import httpx
import trustme
from http_support import Pki, running

from qnode.delivery import ApiLimits, Delivery, Key, SaeDirectory, SaeEntry
from qnode.errors import KeyNotFound, LinkDown, NotEnoughKeys, NotNamed
from qnode.etsi014 import application
from qnode.http import Server

A, B, C, D = "sae-a", "sae-b", "urn:sae/c d", "sae-d"
ENTRIES = (
    SaeEntry(sae_id=A, kme_id="alice", peers=(B, C)),
    SaeEntry(sae_id=B, kme_id="bob", peers=(A, C)),
    SaeEntry(sae_id=C, kme_id="bob", peers=(A, B)),
    SaeEntry(sae_id=D, kme_id="alice", peers=(B,), identities=("encryptor-d.example",)),
)


@dataclass
class MemorySupply:
    """Both sites' store in one: a stock of 256-bit chunks and, per key, who may still fetch it."""

    chunks: int = 1000
    link_up: bool = True
    extension: dict[str, object] = field(default_factory=dict)
    random: Random = field(default_factory=lambda: Random(7))
    issued: dict[UUID, Key] = field(default_factory=dict)
    master_of: dict[UUID, str] = field(default_factory=dict)
    named: dict[UUID, set[str]] = field(default_factory=dict)
    owed: dict[UUID, set[str]] = field(default_factory=dict)

    async def stored_key_count(self, master: str, slave: str, size_bits: int) -> int:
        return self.chunks // -(-size_bits // 256)

    async def allocate(self, master: str, slaves: tuple[str, ...], number: int, size_bits: int) -> list[Key]:
        if not self.link_up:
            raise LinkDown("no session")
        each = -(-size_bits // 256)
        if number * each > self.chunks:
            raise NotEnoughKeys(number, self.chunks // each)
        self.chunks -= number * each
        keys = []
        for _ in range(number):
            key_id = UUID(int=self.random.getrandbits(128), version=4)
            key = Key(key_id, self.random.randbytes(size_bits // 8), self.extension)
            self.issued[key_id], self.master_of[key_id] = key, master
            self.named[key_id], self.owed[key_id] = set(slaves), set(slaves)
            keys.append(key)
        return keys

    async def fetch(self, slave: str, master: str, key_ids: tuple[UUID, ...]) -> list[Key]:
        for key_id in key_ids:
            if key_id in self.named and slave not in self.named[key_id]:
                raise NotNamed(str(key_id))
        for key_id in key_ids:
            if self.master_of.get(key_id) != master or slave not in self.owed[key_id]:
                raise KeyNotFound(str(key_id))
        for key_id in key_ids:
            self.owed[key_id].discard(slave)
        return [self.issued[key_id] for key_id in key_ids]

    def expire(self) -> None:
        for owed in self.owed.values():
            owed.clear()


@cache
def _issued(pki: Pki, name: str) -> trustme.LeafCert:
    return pki.ca.issue_cert(common_name=name)


@dataclass
class World:
    """Two sites that serve."""

    pki: Pki
    supply: MemorySupply
    servers: dict[str, Server]
    deliveries: dict[str, Delivery]
    stack: AsyncExitStack

    async def client(self, leaf: trustme.LeafCert | str, kme: str) -> httpx.AsyncClient:
        if isinstance(leaf, str):
            leaf = _issued(self.pki, leaf)
        return await self.stack.enter_async_context(self.pki.http_client(leaf, self.servers[kme].port))


@asynccontextmanager
async def world(
    pki: Pki,
    supply: MemorySupply | None = None,
    *,
    limits: ApiLimits | None = None,
    simulated: bool = False,
) -> AsyncIterator[World]:
    """Serve alice and bob over one supply."""
    supply = supply or MemorySupply()
    async with AsyncExitStack() as stack:
        servers, deliveries = {}, {}
        for kme in ("alice", "bob"):
            directory = SaeDirectory(kme, ENTRIES, node_names=("node.alice", "node.bob"))
            delivery = Delivery(directory, supply, limits=limits or ApiLimits(), simulated=simulated)
            deliveries[kme] = delivery
            servers[kme] = await stack.enter_async_context(running(application(delivery), pki.settings()))
        yield World(pki, supply, servers, deliveries, await stack.enter_async_context(AsyncExitStack()))
