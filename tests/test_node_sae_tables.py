"""An encryptor entered at one site only: both sites say so, and no key is assigned to it."""

from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import structlog
import trio
from etsi014_support import A, B, C, world
from http_support import Pki
from keys_support import Site as StoreSite
from keys_support import preshared
from link_room import greet_both, link_node
from test_node_site import CONFIG, end_of
from trio.testing import MockClock

from qnode.config import Role, SaeSection, SiteConfig, load
from qnode.delivery import SaeDirectory
from qnode.errors import LinkError, ProtocolError
from qnode.link.messages import SaesRegistered
from qnode.link.session import open_session
from qnode.node.link_node import LinkNode
from qnode.node.reload import read_directory
from qnode.node.session.sae_tables import MOST_PAIRS, PeerSaes, SaeTables, parts

ROLES: tuple[Role, Role] = ("alice", "bob")
NEW = (
    SaeSection(sae_id="new-a", kme_id="kme-alice", peers=("new-b",)),
    SaeSection(sae_id="new-b", kme_id="kme-bob", peers=("new-a",)),
)


def config_of(role: Role, *more: SaeSection) -> SiteConfig:
    config = load(CONFIG / f"{role}.toml", SiteConfig)
    section = msgspec.structs.replace(config.etsi014, sae=(*config.etsi014.sae, *more))
    return msgspec.structs.replace(config, etsi014=section)


def told(node: LinkNode) -> list[str]:
    """Return what the node's status says about encryptors that one site alone has."""
    return [alarm.text for alarm in node.figures.status().alarms if alarm.name == "saes.differ"]


async def until_told(node: LinkNode, expected: list[str]) -> None:
    while told(node) != expected:  # noqa: ASYNC110
        await trio.sleep(0.01)


@asynccontextmanager
async def two_nodes(folder: Path, *configs: SiteConfig, protocol: int = 2) -> AsyncIterator[list[LinkNode]]:
    """Run a session between two nodes over real stores, settled at both, for the length of the body."""
    with ExitStack() as stack, trio.fail_after(30), structlog.testing.capture_logs():
        nodes, ends = [], []
        for role, config in zip(ROLES, configs, strict=True):
            store = stack.enter_context(StoreSite(folder / role, role).open())
            store.load_preshared(preshared(64))
            nodes.append(link_node(config, store))
            standing = nodes[-1]._read_standing
            ends.append(replace(end_of(role, store), standing=standing, protocol=protocol))
        alice, bob = ends
        greeted = await greet_both(alice, bob)

        async def converse(node: LinkNode, role: Role, end: Any) -> None:
            node.tested.set()
            with suppress(LinkError, BaseExceptionGroup):
                frames = getattr(greeted.frames, role)
                async with open_session(frames, end, getattr(greeted, role)) as session:
                    await node.hold_session(session)

        async with trio.open_nursery() as nursery:
            for node, role, end in zip(nodes, ROLES, ends, strict=True):
                nursery.start_soon(converse, node, role, end)
            while not all(node.connected for node in nodes):  # noqa: ASYNC110
                await trio.sleep(0.01)
            yield nodes
            nursery.cancel_scope.cancel()


async def test_a_pair_that_one_site_alone_has_is_shown_at_both_until_the_other_has_it_too(
    tmp_path: Path,
) -> None:
    difference = (
        "new-a at kme-alice shares keys with new-b, which at kme-bob is not registered, or has no peers"
    )
    async with two_nodes(tmp_path, config_of("alice", *NEW), config_of("bob")) as (alice, bob):
        await until_told(alice, [difference])
        await until_told(bob, [difference])
        assert not alice.saes.peer_shares("new-a", "new-b")
        assert alice.saes.peer_shares("encryptor-alice", "encryptor-bob")
        assert [pair.master for pair in alice.saes.stocked_pairs()] == ["encryptor-alice"]
        bob.saes.renew(read_directory([config_of("bob", *NEW)]))  # as a reload does
        await until_told(alice, [])
        await until_told(bob, [])
        assert alice.saes.peer_shares("new-a", "new-b")
        assert len(alice.saes.stocked_pairs()) == 2


async def test_a_peer_of_protocol_1_is_neither_told_nor_waited_for(tmp_path: Path) -> None:
    configs = config_of("alice", *NEW), config_of("bob")
    async with two_nodes(tmp_path, *configs, protocol=1) as (alice, bob):
        assert (told(alice), told(bob)) == ([], [])
        assert alice.saes.peer_shares("new-a", "new-b")


def compared(ours: tuple[SaeSection, ...], theirs: frozenset[tuple[str, str]]) -> tuple[int, list[str]]:
    noted: list[tuple[int, list[str]]] = []
    tables = SaeTables(SaeDirectory("alice", ours, ("bob",)), "bob", lambda *what: noted.append(what))
    peer = PeerSaes()
    for part in parts(theirs):
        peer.take(part)
    tables.hear(peer)
    return noted[-1]


def test_each_difference_is_named_once_with_the_site_that_lacks_it() -> None:
    ours = (
        SaeSection(sae_id="a", kme_id="alice", peers=("b", "c", "a2")),
        SaeSection(sae_id="a2", kme_id="alice", peers=("a",)),  # within one site: nobody else's business
        SaeSection(sae_id="b", kme_id="bob", peers=("a",)),
        SaeSection(sae_id="c", kme_id="bbo", peers=()),
    )
    assert compared(ours, frozenset({("b", "a"), ("c", "a")})) == (0, [])
    assert compared(ours, frozenset({("b", "x"), ("c", "a")})) == (
        2,
        [
            "a at alice shares keys with b, which at bob does not name a among its peers",
            "b at bob shares keys with x, which at alice is not registered, or has no peers",
        ],
    )


def test_large_tables_come_in_parts_and_an_endless_one_is_refused() -> None:
    pairs = frozenset((f"b{n}", f"a{n}") for n in range(10_000))
    said = list(parts(pairs))
    assert [part.more for part in said] == [True, True, False]
    peer = PeerSaes()
    assert [peer.take(part) for part in said] == [False, False, True]
    assert peer.pairs == pairs
    assert list(parts(frozenset())) == [SaesRegistered(pairs=())]
    endless = PeerSaes()
    for n in range(0, MOST_PAIRS, 4096):
        assert not endless.take(SaesRegistered(tuple((str(k), "a") for k in range(n, n + 4096)), more=True))
    with pytest.raises(ProtocolError, match="pairs of encryptors"):
        endless.take(SaesRegistered((("one more", "a"),), more=True))


async def test_a_peer_that_never_says_its_encryptors_ends_the_session(autojump_clock: MockClock) -> None:
    silent, partial = PeerSaes(), PeerSaes()
    partial.take(SaesRegistered((("b", "a"),), more=True))
    for peer in (silent, partial):
        with pytest.raises(ProtocolError, match="no SaesRegistered within 600 s"):
            await peer.heard()
    partial.take(SaesRegistered((("b", "c"),)))
    await partial.heard()
    assert partial.pairs == {("b", "a"), ("b", "c")}


async def test_a_key_for_a_slave_that_the_peer_does_not_know_is_refused_before_a_chunk_is_spent(
    tmp_path: Path,
) -> None:
    with structlog.testing.capture_logs():
        async with world(Pki(tmp_path)) as sites:
            sites.deliveries["alice"]._peer_shares = lambda master, slave: (master, slave) == (A, B)
            client = await sites.client(A, "alice")
            before = sites.supply.chunks
            path = f"/api/v1/keys/{C.replace(' ', '%20').replace('/', '%2F')}"
            for answer in (
                await client.get(f"{path}/enc_keys"),
                await client.get(f"{path}/status"),
                await client.post(f"/api/v1/keys/{B}/enc_keys", json={"additional_slave_SAE_IDs": [C]}),
            ):
                assert answer.status_code == 400
                assert "is not registered for keys with sae-a at its own KME" in answer.json()["message"]
            assert sites.supply.chunks == before
            assert (await client.get(f"/api/v1/keys/{B}/enc_keys")).status_code == 200
