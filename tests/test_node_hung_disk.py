"""A disk that hangs: it is said, and callers get their answer in time."""

import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import pytest
import trio
from keys_support import Site, add_block, make_block, preshared
from link_room import link_node

import qnode.node.supply.async_store
import qnode.node.supply.stalls
from qnode.config import PostgresqlSection, SiteConfig, StoreSection, load
from qnode.errors import NotEnoughKeys
from qnode.keys import SqliteKeyStore
from qnode.node.supply.async_store import AsyncStore
from qnode.node.supply.stalls import CALM_S, Stalls

CONFIG = Path(__file__).parent.parent / "config"


class HungDisk:
    """Keeps every call to a store waiting, as one that waits for its disk does."""

    def __init__(self, store: SqliteKeyStore) -> None:
        self._lock = store._database._lock

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *exc_info: object) -> None:
        self._lock.release()


class HungCall:
    """Keeps a call of a store, once it has begun, waiting for the disk."""

    def __init__(self, store: SqliteKeyStore, name: str) -> None:
        self._store, self._name, self._method = store, name, getattr(store, name)
        self._goes_on = threading.Event()

    def __enter__(self) -> None:
        setattr(self._store, self._name, self._wait)

    def __exit__(self, *exc_info: object) -> None:
        self._goes_on.set()

    def _wait(self, *args: object) -> object:
        self._goes_on.wait(60)
        return self._method(*args)


async def settle(storage: AsyncStore) -> None:
    """Wait until the store has answered what it was asked."""
    while not storage.unsettled:  # noqa: ASYNC110
        await trio.sleep(0.01)


async def ask_apart(storage: AsyncStore) -> object:
    """Ask in a thread of its own."""
    return (await storage.positions()).pool_epoch


async def ask_together(storage: AsyncStore) -> object:
    """Ask together with others."""
    return await storage.stock_count("m", "s")


@pytest.mark.parametrize(
    ("ask", "name", "answer"), [(ask_apart, "positions", 1), (ask_together, "stock_count", 0)]
)
async def test_a_call_that_began_is_waited_for_unless_the_disk_hangs(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ask: Callable[[AsyncStore], Awaitable[object]],
    name: str,
    answer: int,
) -> None:
    with Site(tmp_path, "alice").open() as store:
        store.load_preshared(preshared(64))
        storage = AsyncStore(store, 1 << 20)
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                ended = [trio.Event() for _ in range(3)]
                answers = list[object]()

                async def ask_within(seconds: float, end: trio.Event) -> None:
                    with trio.move_on_after(seconds):
                        await ask(storage)
                    end.set()

                async def ask_and_wait() -> None:
                    answers.append(await ask(storage))

                with HungCall(store, name):
                    for end in ended:  # the second and the third wait for the thread of the first
                        nursery.start_soon(ask_within, 0.01, end)
                    await trio.sleep(0.2)
                    for _ in range(3):
                        nursery.start_soon(ask_and_wait)
                    storage.let_go()  # has not lasted long enough to be called hung
                    await trio.sleep(0.1)
                    assert not any(end.is_set() for end in ended)
                    assert storage.stalled_s >= 0.2
                    monkeypatch.setattr(qnode.node.supply.async_store, "STALL_S", 0.1)
                    storage.let_go()
                    for end in ended:
                        await end.wait()  # though the store has not answered
                    assert not storage.unsettled
                await settle(storage)
                while len(answers) < 3:  # noqa: ASYNC110
                    await trio.sleep(0.01)
                assert storage.stalled_s == 0.0
                assert answers == [answer] * 3
                assert await ask(storage) == answer


async def test_calls_that_come_while_the_store_works_share_its_next_commit(tmp_path: Path) -> None:
    with Site(tmp_path, "alice").open() as store:
        add_block(make_block(1, 80), store)
        storage = AsyncStore(store, 1 << 20)
        generations = set[int]()

        async def take(number: int) -> None:
            assignment = await storage.assign("m", ("s",), number, 256)
            await storage.acknowledge(assignment.assignment_id)
            assert len(await storage.deliver_to_master(assignment.assignment_id)) == number
            generations.add(store.positions().generation)

        began = store.positions().generation
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                with HungDisk(store):
                    for number in (1, 2, 3, 4, 5, 6, 7):
                        nursery.start_soon(take, number)
                    await trio.testing.wait_all_tasks_blocked()
                with pytest.raises(NotEnoughKeys):
                    await storage.assign("m", ("s",), 41, 256)
        assert store.counts().delivered == 28
        assert store.positions().generation - began <= 3  # seven deliveries


def test_a_store_that_hangs_again_and_again_is_one_alarm_that_names_its_kind() -> None:
    of_file = StoreSection(path=Path("a"), store_key=Path("b"), anchor=Path("c"), preshared_key=Path("d"))
    of_server = msgspec.structs.replace(of_file, postgresql=PostgresqlSection(parameters="host=db"))
    for section, cause in (
        (of_file, "its disk hangs"),
        (of_server, "the server of its database, or the network"),
    ):
        stalls = Stalls(section)
        assert stalls.look(2.9, 0.0) == ""
        for began_s in range(0, 200, 20):  # hangs for 5 s in every 20
            assert f"for 5 s: {cause}" in stalls.look(5.0, began_s + 5.0)
            assert f"after up to 5 s: {cause}" in stalls.look(0.1, began_s + 19.0)
        assert stalls.look(0.1, 190.0 + CALM_S) == ""
        assert stalls.look(4.0, 1000.0)
        stalls.forget()
        assert stalls.look(0.0, 1001.0) == ""


async def test_the_status_says_within_seconds_that_the_disk_hangs_and_takes_it_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qnode.node.supply.stalls, "CALM_S", 0.5)
    with Site(tmp_path, "bob").open() as store:
        add_block(make_block(1, 4), store)
        node = link_node(load(CONFIG / "bob.toml", SiteConfig), store)

        def alarms() -> list[str]:
            return [alarm.name for alarm in node.figures.status().alarms]

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(node._watch_store)
                with HungDisk(store):
                    nursery.start_soon(node.refresh)
                    began = trio.current_time()
                    while "store.stalled" not in alarms():  # noqa: ASYNC110
                        await trio.sleep(0.05)
                    assert trio.current_time() - began >= 3.0
                while "store.stalled" in alarms():  # noqa: ASYNC110
                    await trio.sleep(0.05)
                nursery.cancel_scope.cancel()
