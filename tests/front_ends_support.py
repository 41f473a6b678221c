"""Two sites of which one has its store on a server, and front ends of that store."""

import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from keys_support import STORE_KEYS, Site, add_block, make_block, preshared
from postgresql_support import PostgresqlSite, missing

from qnode.choices import peer_of
from qnode.config import PostgresqlSection
from qnode.errors import StoreAway
from qnode.keys import Assignment, StoredKey
from qnode.keys._front_end_batch import Fetch, Take
from qnode.keys._front_end_store import FrontEndStore
from qnode.keys._vault import Kind, _Span

WITHIN_S = 60.0
LIFETIME_S = 1e6

needs_server = pytest.mark.skipif(bool(missing()), reason=missing() or "nothing is missing")


def front_end(site: PostgresqlSite, name: str, *, anchor_lost: bool = False) -> FrontEndStore:
    return FrontEndStore(
        PostgresqlSection(parameters=site.server.parameters, schema=site.schema),
        name=name,
        store_key=STORE_KEYS[site.role],
        anchor=site.folder / f"anchor-{name}",
        kme_id=f"kme-{site.role}",
        peer_kme_id=f"kme-{peer_of(site.role)}",
        anchor_lost=anchor_lost,
    )


@contextmanager
def two_stores(folder: Path, n_chunks: int = 400) -> Iterator[tuple[PostgresqlSite, Any, Any]]:
    """Lend Alice's site on the server, her store and Bob's, which is a file, with two blocks of key."""
    site = PostgresqlSite(folder / "a", "alice")
    with ExitStack() as opened:
        alice: Any = opened.enter_context(site.open())
        bob: Any = opened.enter_context(Site(folder / "b", "bob").open())
        for store in (alice, bob):
            store.load_preshared(preshared(64))
        fill(alice, bob, 2, n_chunks)
        yield site, alice, bob


def fill(alice: Any, bob: Any, n_blocks: int, n_chunks: int) -> None:
    """Add blocks of key to both stores."""
    for block_id in range(1, n_blocks + 1):
        add_block(make_block(block_id, n_chunks), alice, bob)


def ready(store: Any, *front_ends: FrontEndStore) -> None:
    """Let front ends join, and the node admit them."""
    until = time.monotonic() + WITHIN_S
    while [reason for one in front_ends if (reason := one.look())]:
        store.tend_front_ends(LIFETIME_S)
        assert time.monotonic() < until, [one.look() for one in front_ends]
    store.tend_front_ends(LIFETIME_S)


def when_open(ask: Any, *front_ends: FrontEndStore) -> Any:
    """Return what a store answers once it is open; front ends say meanwhile what they know."""
    until = time.monotonic() + WITHIN_S
    while True:
        for one in front_ends:
            one.look()
        try:
            return ask()
        except StoreAway:
            assert time.monotonic() < until, "the store does not open"
            time.sleep(0.01)


def stocked(owner: Any, peer: Any, number: int, master: str = "m", slave: str = "s") -> None:
    """Agree on keys ahead."""
    _agreed(owner, peer, number, master, [slave], 256, stock=True)


def waiting(
    owner: Any,
    peer: Any,
    number: int,
    master: str = "m",
    slaves: tuple[str, ...] = ("s",),
    size_bits: int = 256,
) -> list[StoredKey]:
    """Return keys that a master got at the site of ``owner``: at the other one they wait for its slaves."""
    agreed = _agreed(owner, peer, number, master, slaves, size_bits)
    keys: list[StoredKey] = owner.deliver_to_master(agreed.assignment_id)
    return keys


def _agreed(
    owner: Any,
    peer: Any,
    number: int,
    master: str,
    slaves: Iterable[str],
    size_bits: int,
    *,
    stock: bool = False,
) -> Assignment:
    assignment: Assignment = owner.assign(master, [*slaves], number, size_bits, now=0.0, stock=stock)
    peer.accept_assignment(assignment, now=0.0)
    owner.acknowledge(assignment.assignment_id)
    return assignment


def take(store: FrontEndStore, number: int, *, limit: int | None = None, slave: str = "s") -> list[StoredKey]:
    request = Take("m", slave, number, limit)
    store.perform([request], {})
    if request.error is not None:
        raise request.error
    return request.keys


def fetch(store: FrontEndStore, key_ids: list[UUID], *, slave: str = "s") -> list[StoredKey]:
    request = Fetch(slave, "m", key_ids)
    store.perform([request], {})
    if request.error is not None:
        raise request.error
    return request.keys


def bits(keys: list[StoredKey]) -> dict[UUID, bytes]:
    return {key.key_id: key.key for key in keys}


def live_chunks(store: Any) -> int:
    """Return how many chunks the sealed units still have: none that was delivered."""
    with store._database.look() as tx:
        rows = tx.connection.execute(
            "SELECT segment, unit FROM sealed_unit WHERE kind = 'chunk' ORDER BY segment, unit"
        ).fetchall()
        units = (tx.vault._open(Kind.CHUNK, segment, _Span(unit, 0, 0)) for segment, unit in rows)
        return sum(unit.live.bit_count() for unit in units)
