"""One site put together."""

from contextlib import ExitStack
from pathlib import Path

import msgspec
import pytest
import trio
from keys_support import Site as StoreSite
from keys_support import preshared
from link_room import greet_both, local_end

import qnode.node.site
from qnode.config import Role, SiteConfig, load
from qnode.errors import LinkError, StoreUnusable
from qnode.keys import SqliteKeyStore
from qnode.link.hello import LocalEnd, Standing
from qnode.link.session import open_session
from qnode.node.settle import Site
from qnode.node.site import SiteNode
from qnode.node.storage import PeerMemory, runs_of
from qnode.operate.events import EventLog

CONFIG = Path(__file__).parent.parent / "config"


def end_of(role: Role, store: SqliteKeyStore) -> LocalEnd:
    memory = PeerMemory(store.view_of_peer(), runs_of(store.pad_segments()))
    standing = Standing(0, store.positions().generation, msgspec.msgpack.encode(memory))
    return local_end(role, secrets=store, standing=lambda: standing)


@pytest.mark.parametrize("role", ["alice", "bob"])
@pytest.mark.parametrize("disk", ["full", "broken"])
async def test_a_full_disk_ends_the_session_and_a_broken_one_the_node(
    tmp_path: Path, role: Role, disk: str
) -> None:
    with ExitStack() as stack:
        alice = stack.enter_context(StoreSite(tmp_path / "a", "alice").open())
        bob = stack.enter_context(StoreSite(tmp_path / "b", "bob").open())
        for store in (alice, bob):
            store.load_preshared(preshared(64))
        ends = {"alice": end_of("alice", alice), "bob": end_of("bob", bob)}
        greeted = await greet_both(ends["alice"], ends["bob"])
        database = (alice if role == "alice" else bob)._database
        if disk == "full":
            database._tx.connection.execute("PRAGMA query_only = ON")  # every change is refused
        else:
            database._unusable = "disk I/O error"
        node = SiteNode(
            load(CONFIG / f"{role}.toml", SiteConfig), {"alice": alice, "bob": bob}[role], EventLog()
        )
        node._tested.set()
        expected: type[Exception] = LinkError if disk == "full" else StoreUnusable
        with trio.fail_after(10), pytest.RaisesGroup(expected, flatten_subgroups=True, allow_unwrapped=True):
            async with open_session(
                getattr(greeted.frames, role), ends[role], getattr(greeted, role)
            ) as session:
                await node._hold_session(session)
        assert [alarm.name for alarm in node._figures.status().alarms] == ["store.failed"] * (disk == "full")
        database._tx.connection.execute("PRAGMA query_only = OFF")


async def test_a_session_is_used_once_the_self_test_has_passed(tmp_path: Path) -> None:
    with ExitStack() as stack:
        alice = stack.enter_context(StoreSite(tmp_path / "a", "alice").open())
        bob = stack.enter_context(StoreSite(tmp_path / "b", "bob").open())
        for store in (alice, bob):
            store.load_preshared(preshared(64))
        ends = {"alice": end_of("alice", alice), "bob": end_of("bob", bob)}
        greeted = await greet_both(ends["alice"], ends["bob"])
        node = SiteNode(load(CONFIG / "bob.toml", SiteConfig), bob, EventLog())

        def is_connected() -> bool:
            return node._figures.status().peer.connection.state == "connected"

        with trio.fail_after(10):
            async with (
                open_session(greeted.frames.alice, ends["alice"], greeted.alice),
                open_session(greeted.frames.bob, ends["bob"], greeted.bob) as session,
                trio.open_nursery() as nursery,
            ):
                nursery.start_soon(node._hold_session, session)
                await trio.sleep(0.2)
                assert not is_connected()
                node._tested.set()
                while not is_connected():  # noqa: ASYNC110
                    await trio.sleep(0.01)
                nursery.cancel_scope.cancel()


@pytest.mark.parametrize(("protocol", "bound"), [(1, "joint"), (2, "shares")])
async def test_blocks_are_decided_by_the_parameters_of_the_protocol_that_both_sites_speak(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: int, bound: str
) -> None:
    used: list[str] = []

    def note(site: Site, *_: object) -> None:
        used.append(site.link.estimation.asymmetry_bound)
        raise LinkError("seen enough")

    monkeypatch.setattr(qnode.node.site, "Conversation", note)
    with StoreSite(tmp_path / "b", "bob").open() as bob:
        bob.load_preshared(preshared(64))
        config = load(CONFIG / "bob.toml", SiteConfig)
        estimation = msgspec.structs.replace(config.link.estimation, asymmetry_bound="shares")
        link = msgspec.structs.replace(config.link, estimation=estimation)
        node = SiteNode(msgspec.structs.replace(config, link=link), bob, EventLog())
        node._tested.set()
        end, peer = end_of("bob", bob), local_end("alice", secrets=bob, protocol=protocol)
        greeted = await greet_both(peer, end)
        async with open_session(greeted.frames.bob, end, greeted.bob) as session:
            with pytest.RaisesGroup(LinkError, flatten_subgroups=True, allow_unwrapped=True):
                await node._hold_session(session)
    assert used == [bound]
