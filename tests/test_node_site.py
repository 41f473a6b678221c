"""One site put together."""

from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from keys_support import Site as StoreSite
from keys_support import add_block, make_block, preshared
from link_room import greet_both, link_node, local_end

import qnode.node.link_node
from qnode.config import Role, SiteConfig, load
from qnode.errors import ConfigError, LinkError, PeerRefused, StoreAway, StoreError, StoreUnusable
from qnode.keys import SqliteKeyStore
from qnode.link.hello import LocalEnd, Standing
from qnode.link.peers import LinkFailure
from qnode.link.session import open_session
from qnode.node.dialogue.context import BlockContext
from qnode.node.link_node import LinkNode
from qnode.node.site import SiteNode
from qnode.node.status.site_figures import SiteFigures
from qnode.node.supply.async_store import PeerMemory, runs_of
from qnode.operate.daemon import clearest
from qnode.operate.events.log import EventLog
from qnode.operate.status.alarms import AlarmName
from qnode.operate.status.screen import status_lines

CONFIG = Path(__file__).parent.parent / "config"


def end_of(role: Role, store: SqliteKeyStore) -> LocalEnd:
    memory = PeerMemory(store.view_of_peer(), runs_of(store.pad_segments()))
    positions = store.positions()
    standing = Standing(
        generation=positions.generation,
        pool_epoch=positions.pool_epoch,
        positions=msgspec.msgpack.encode(memory),
    )
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
            database._end("disk I/O error")
        node = link_node(load(CONFIG / f"{role}.toml", SiteConfig), {"alice": alice, "bob": bob}[role])
        node.tested.set()
        expected: type[Exception] = LinkError if disk == "full" else StoreUnusable
        with trio.fail_after(60), pytest.RaisesGroup(expected, flatten_subgroups=True, allow_unwrapped=True):
            async with open_session(
                getattr(greeted.frames, role), ends[role], getattr(greeted, role)
            ) as session:
                await node.hold_session(session)
        assert [alarm.name for alarm in node.figures.status().alarms] == ["store.failed"] * (disk == "full")
        database._tx.connection.execute("PRAGMA query_only = OFF")


def test_silent_strangers_do_not_say_why_the_peer_is_missing(tmp_path: Path) -> None:
    with StoreSite(tmp_path / "a", "alice").open() as store:
        node = link_node(load(CONFIG / "alice.toml", SiteConfig), store)
    refused = LinkFailure(PeerRefused("the certificate names carol"), proven=False, address="192.0.2.7")
    silent = LinkFailure(LinkError("no hello within 10 s"), proven=False, address="198.51.100.1")

    async def fail() -> None:
        for failure in (refused, silent):
            node._note_failure(failure)

    trio.run(fail)
    assert node.figures.peer.connection.because == "the certificate names carol"


async def test_a_session_is_used_once_the_self_test_has_passed(tmp_path: Path) -> None:
    with ExitStack() as stack:
        alice = stack.enter_context(StoreSite(tmp_path / "a", "alice").open())
        bob = stack.enter_context(StoreSite(tmp_path / "b", "bob").open())
        for store in (alice, bob):
            store.load_preshared(preshared(64))
        ends = {"alice": end_of("alice", alice), "bob": end_of("bob", bob)}
        greeted = await greet_both(ends["alice"], ends["bob"])
        node = link_node(load(CONFIG / "bob.toml", SiteConfig), bob)

        def is_connected() -> bool:
            return node.figures.status().peer.connection.state == "connected"

        with trio.fail_after(60):
            async with (
                open_session(greeted.frames.alice, ends["alice"], greeted.alice),
                open_session(greeted.frames.bob, ends["bob"], greeted.bob) as session,
                trio.open_nursery() as nursery,
            ):
                nursery.start_soon(node.hold_session, session)
                await trio.sleep(0.2)
                assert not is_connected()
                node.tested.set()
                while not is_connected():  # noqa: ASYNC110
                    await trio.sleep(0.01)
                nursery.cancel_scope.cancel()


@pytest.mark.parametrize(("protocol", "bound"), [(1, "joint"), (2, "shares")])
async def test_blocks_are_decided_by_the_parameters_of_the_protocol_that_both_sites_speak(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: int, bound: str
) -> None:
    used: list[str] = []

    def note(site: BlockContext, *_: object) -> None:
        used.append(site.link.estimation.asymmetry_bound)
        raise LinkError("seen enough")

    monkeypatch.setattr(qnode.node.link_node, "SessionRouter", note)
    with StoreSite(tmp_path / "b", "bob").open() as bob:
        bob.load_preshared(preshared(64))
        config = load(CONFIG / "bob.toml", SiteConfig)
        estimation = msgspec.structs.replace(config.link.estimation, asymmetry_bound="shares")
        link = msgspec.structs.replace(config.link, estimation=estimation)
        node = link_node(msgspec.structs.replace(config, link=link), bob)
        node.tested.set()
        end, peer = end_of("bob", bob), local_end("alice", secrets=bob, protocol=protocol)
        greeted = await greet_both(peer, end)
        async with open_session(greeted.frames.bob, end, greeted.bob) as session:
            with pytest.RaisesGroup(LinkError, flatten_subgroups=True, allow_unwrapped=True):
                await node.hold_session(session)
    assert used == [bound]


async def test_a_store_that_has_healed_is_well_within_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qnode.node.link_node, "STORE_RETRY_S", 0.01)
    with StoreSite(tmp_path / "b", "bob").open() as store:
        store.load_preshared(preshared(64))
        node = link_node(load(CONFIG / "bob.toml", SiteConfig), store)
        refused = 0

        def is_failing() -> bool:
            return [alarm.name for alarm in node.figures.status().alarms] == ["store.failed"]

        async def expire(lifetime_s: float) -> int:
            nonlocal refused
            try:
                return await storage_expire(lifetime_s)
            except StoreError:
                refused += 1
                raise

        storage_expire = node.store.expire
        monkeypatch.setattr(node.store, "expire", expire)
        node.figures.alarms.raise_alarm(AlarmName.STORE_FAILED, "by a session")
        store._database._tx.connection.execute("PRAGMA query_only = ON")  # every change is refused
        with trio.fail_after(qnode.node.link_node.EXPIRY_PERIOD_S / 2):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(node._expire)
                while refused < 3:  # noqa: ASYNC110
                    await trio.sleep(0.01)
                assert is_failing()
                store._database._tx.connection.execute("PRAGMA query_only = OFF")
                while is_failing():  # noqa: ASYNC110
                    await trio.sleep(0.01)
                nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("errors", "shown"),
    [
        ([LinkError("cut"), StoreUnusable("damaged"), StoreUnusable("damaged")], "damaged"),
        ([StoreError("full"), LinkError("cut")], "full"),
        ([ConfigError("no such address")], "no such address"),
    ],
)
def test_errors_that_come_together_are_one(errors: list[Exception], shown: str) -> None:
    assert str(clearest(ExceptionGroup("all", [ExceptionGroup("some", errors[:1]), *errors[1:]]))) == shown


def test_an_error_that_nobody_foresaw_is_shown_with_all_that_came_with_it() -> None:
    group = ExceptionGroup("all", [StoreUnusable("damaged"), ZeroDivisionError("division by zero")])
    assert clearest(group) is group


async def test_a_store_that_breaks_ends_the_node_with_one_error(tmp_path: Path) -> None:
    with StoreSite(tmp_path / "b", "bob").open() as store:
        store.load_preshared(preshared(64))
        node = link_node(load(CONFIG / "bob.toml", SiteConfig), store)

        async def break_while_several_look() -> None:
            async with trio.open_nursery() as nursery:
                with store._database._lock:
                    for _ in range(4):
                        nursery.start_soon(node.refresh)
                    await trio.sleep(0.1)
                    store._database._end("disk I/O error")

        with pytest.raises(BaseExceptionGroup) as caught:
            await break_while_several_look()
        assert len(caught.value.exceptions) > 1
        error = clearest(caught.value)
        assert isinstance(error, StoreUnusable)
        assert "disk I/O error" in str(error)


async def test_a_site_whose_store_waits_shows_that_it_holds_its_keys_back(tmp_path: Path) -> None:
    site = StoreSite(tmp_path / "b", "bob")
    with site.open() as store:
        store.load_preshared(preshared(64))
        add_block(make_block(1, 8), store)
    site.anchor.unlink()
    with site.open() as store:
        node = link_node(load(CONFIG / "bob.toml", SiteConfig), store)
        await node.refresh()
        status = SiteFigures(node.config.node, [node.figures]).status()
        assert status.keys.available_own + status.keys.available_peer == 8
        screen = "\n".join(status_lines(status))
        assert "keys      WARN   8 held back" in screen
        assert "no key: the store holds its keys back" in screen


async def test_a_store_that_waits_for_its_peer_is_not_shown_as_failed_once_it_answers(tmp_path: Path) -> None:
    site = StoreSite(tmp_path / "b", "bob")
    with site.open() as store:
        store.load_preshared(preshared(64))
        add_block(make_block(1, 8), store)
    site.anchor.unlink()
    with site.open() as store:
        node = link_node(load(CONFIG / "bob.toml", SiteConfig), store)
        node.figures.alarms.raise_alarm(AlarmName.STORE_FAILED, "the database is away")
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(node._expire)
                while node.figures.alarms.has_alarm(AlarmName.STORE_FAILED):  # noqa: ASYNC110
                    await trio.sleep(0.01)
                nursery.cancel_scope.cancel()


async def test_the_witness_goes_on_after_a_read_that_the_store_refused_and_ends_with_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qnode.node.link_node, "WITNESS_PERIOD_S", 0.01)
    told: list[Exception] = [StoreError("statement timeout"), StoreAway("away"), StoreUnusable("damaged")]

    def tell() -> None:
        raise told.pop(0)

    with StoreSite(tmp_path / "b", "bob").open() as store:
        node = link_node(load(CONFIG / "bob.toml", SiteConfig), store)
        monkeypatch.setattr(store, "tell_witness", tell)
        with trio.fail_after(60), pytest.raises(StoreUnusable):
            await node._keep_witness()
    assert told == []


async def test_a_store_that_breaks_stops_its_link_and_no_other(tmp_path: Path) -> None:
    config = load(CONFIG / "bob.toml", SiteConfig)
    other = msgspec.structs.replace(config, link=msgspec.structs.replace(config.link, name="asti"))
    with ExitStack() as stack:
        stores = [stack.enter_context(StoreSite(tmp_path / name, "bob").open()) for name in ("a", "b")]
        for store in stores:
            store.load_preshared(preshared(64))
        site = SiteNode([config, other], stores, EventLog())
        broken, well = site._links
        stores[0]._database._end("disk I/O error")

        async def look(link: LinkNode, *_: object) -> None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(link.refresh)
                await trio.sleep_forever()

        nothing: Any = None
        for link in site._links:
            link.run = partial(look, link)  # type: ignore[method-assign, assignment]
        with trio.fail_after(60):
            await site._run_link(broken, nothing)
        with trio.move_on_after(0.1) as scope:
            await site._run_link(well, nothing)
        assert scope.cancelled_caught
        (alarm,) = site._figures.status().alarms
        assert (alarm.name, alarm.link) == ("link.failed", config.link.name)
        assert "disk I/O error" in alarm.text
