"""A client that has gone loses no key that was certainly not sent to it, and nobody gets one twice."""

import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import structlog
import trio
import trio.testing
from etsi014_support import ENTRIES, A, B, C, MemorySupply, World, world
from http_support import HOST, Pki
from interface_support import Breaking, ask, der
from trio.testing import MockClock

from qnode.delivery import Delivery, Key, KeyRequest, SaeDirectory
from qnode.delivery.unsent import HELD_S, MOST_KEYS, Unsent
from qnode.etsi014 import application
from qnode.streams import Wire

API = "/api/v1/keys"


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(Path(tmp_path_factory.mktemp("pki")))


@pytest.fixture(autouse=True)
def logs() -> Any:
    with structlog.testing.capture_logs() as captured:
        yield captured


class Hasty:
    """A client in a thread of its own: it connects, asks when told to, and hangs up without waiting."""

    def __init__(self, place: World, name: str, kme: str, path: str) -> None:
        self._context = place.pki.client_context(place.pki.ca.issue_cert(common_name=name))
        self._port = place.servers[kme].port
        self._request = f"GET {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode()
        self._connected = trio.Event()
        self._ask, self._hang_up, self.gone = threading.Event(), threading.Event(), threading.Event()

    async def run(self) -> None:
        token = trio.lowlevel.current_trio_token()
        await trio.to_thread.run_sync(self._work, lambda: token.run_sync_soon(self._connected.set))

    def _work(self, tell_connected: Callable[[], None]) -> None:
        tcp = socket.create_connection((HOST, self._port))
        with self._context.wrap_socket(tcp, server_hostname=HOST) as tls:
            tell_connected()
            self._ask.wait(60)
            tls.sendall(self._request)
            self._hang_up.wait(60)
        self.gone.set()

    async def connected(self) -> None:
        await self._connected.wait()
        await trio.testing.wait_all_tasks_blocked(0.05)

    def ask(self) -> None:
        self._ask.set()

    def hang_up(self) -> None:
        """Return once the client has closed; called from the event loop, this stops the node meanwhile."""
        self._hang_up.set()
        assert self.gone.wait(60)


async def keys_made(place: World, number: int = 1) -> dict[str, str]:
    a = await place.client(A, "alice")
    answer = await a.get(f"{API}/{B}/enc_keys", params={"number": number})
    return {entry["key_ID"]: entry["key"] for entry in answer.json()["keys"]}


async def test_a_slave_that_hung_up_while_the_node_stood_still_fetches_its_key_later(pki: Pki) -> None:
    async with world(pki) as place, trio.open_nursery() as nursery:
        ((key_id, key),) = (await keys_made(place)).items()
        path = f"{API}/{A}/dec_keys?key_ID={key_id}"
        hasty = Hasty(place, B, "bob", path)
        nursery.start_soon(hasty.run)
        await hasty.connected()
        hasty.ask()
        hasty.hang_up()
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert B in place.supply.owed[UUID(key_id)]
        b = await place.client(B, "bob")
        assert (await b.get(path)).json()["keys"] == [{"key_ID": key_id, "key": key}]


async def test_a_master_that_hung_up_while_the_node_stood_still_takes_no_key(pki: Pki) -> None:
    async with world(pki) as place, trio.open_nursery() as nursery:
        hasty = Hasty(place, A, "alice", f"{API}/{B}/enc_keys?number=9")
        nursery.start_soon(hasty.run)
        await hasty.connected()
        hasty.ask()
        hasty.hang_up()
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert place.servers["alice"].counters.requests == 1
        assert place.supply.chunks == 1000


async def hang_up_during(
    place: World, hasty: Hasty, method: str, monkeypatch: pytest.MonkeyPatch, nursery: trio.Nursery
) -> None:
    """Have the client go while the store hands out its keys, so that their answer cannot be sent."""
    real = getattr(place.supply, method)
    done = trio.Event()

    async def slow(*arguments: Any) -> list[Key]:
        keys: list[Key] = await real(*arguments)
        hasty.hang_up()
        done.set()
        return keys

    with monkeypatch.context() as patched:
        patched.setattr(place.supply, method, slow)
        nursery.start_soon(hasty.run)
        await hasty.connected()
        hasty.ask()
        await done.wait()
        await trio.testing.wait_all_tasks_blocked(0.05)


async def test_a_slave_gets_keys_that_were_not_sent_when_it_asks_again_and_only_once(
    pki: Pki, monkeypatch: pytest.MonkeyPatch, logs: list[dict[str, Any]]
) -> None:
    async with world(pki) as place, trio.open_nursery() as nursery:
        ((key_id, key),) = (await keys_made(place)).items()
        path = f"{API}/{A}/dec_keys?key_ID={key_id}"
        await hang_up_during(place, Hasty(place, B, "bob", path), "fetch", monkeypatch, nursery)
        assert B not in place.supply.owed[UUID(key_id)], "the store has given it away"
        c = await place.client("urn:sae/c d", "bob")
        assert (await c.get(path)).status_code == 401
        b = await place.client(B, "bob")
        assert (await b.get(path)).json()["keys"] == [{"key_ID": key_id, "key": key}]
        assert (await b.get(path)).status_code == 400
    told = [entry["event"] for entry in logs if entry["event"].startswith("key.")]
    assert told == ["key.allocated", "key.fetched", "key.unsent", "key.sent_again"]


async def test_a_master_gets_keys_that_were_not_sent_with_its_next_equal_request(
    pki: Pki, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world(pki) as place, trio.open_nursery() as nursery:
        path = f"{API}/{B}/enc_keys?number=3"
        await hang_up_during(place, Hasty(place, A, "alice", path), "allocate", monkeypatch, nursery)
        assert place.supply.chunks == 997
        unsent = {str(key_id) for key_id in place.supply.issued}
        other = await keys_made(place, 2)
        assert not unsent & set(other)
        again = await keys_made(place, 3)
        assert set(again) == unsent
        assert not unsent & set(await keys_made(place, 3))
        b = await place.client(B, "bob")
        wanted = {"key_IDs": [{"key_ID": key_id} for key_id in again]}
        got = (await b.post(f"{API}/{A}/dec_keys", json=wanted)).json()["keys"]
        assert {entry["key_ID"]: entry["key"] for entry in got} == again


@pytest.mark.parametrize("nothing_sent", [True, False])
async def test_a_key_is_given_again_only_if_no_byte_of_its_answer_was_sent(
    pki: Pki, nothing_sent: bool
) -> None:
    supply = MemorySupply()
    delivery = Delivery(SaeDirectory("bob", ENTRIES), supply)
    (key,) = await supply.allocate(A, (B,), 1, 256)
    app, certificate = application(delivery), der(pki.ca.issue_cert(common_name=B))
    path = f"{API}/{A}/dec_keys?key_ID={key.key_id}"
    with pytest.raises(OSError, match="connection lost"):
        await ask(app, certificate, "GET", path, breaking=Breaking(nothing_sent))
    statuses = [(await ask(app, certificate, "GET", path)).status for _ in range(2)]
    assert statuses == ([200, 400] if nothing_sent else [400, 400])


async def test_unsent_keys_go_to_nobody_else_and_are_no_keys_for_other_slaves() -> None:
    directory = SaeDirectory("alice", ENTRIES)
    delivery = Delivery(directory, MemorySupply())
    a, d = (entry for entry in directory.local)
    given = await delivery.allocate(a, B, KeyRequest(number=2))
    delivery.take_back(given)
    unsent = {key.key_id for key in given.keys}
    for caller, slave, request in (
        (d, B, KeyRequest(number=2)),
        (a, C, KeyRequest(number=2)),
        (a, B, KeyRequest(number=2, additional_slaves=(C,))),
        (a, B, KeyRequest(number=2, size_bits=128)),
    ):
        others = await delivery.allocate(caller, slave, request)
        assert unsent.isdisjoint(key.key_id for key in others.keys)
    again = await delivery.allocate(a, B, KeyRequest(number=2))
    assert {key.key_id for key in again.keys} == unsent


async def test_unsent_keys_are_lost_after_their_time_and_beyond_their_number(
    autojump_clock: MockClock,
) -> None:
    unsent = Unsent()
    key = Key(UUID(int=1), bytes(32))
    unsent.hold("owner", [key])
    assert unsent.take("another", (key.key_id,)) is None
    await trio.sleep(HELD_S - 0.1)
    assert unsent.take("owner", (key.key_id,)) == [key]
    assert unsent.take("owner", (key.key_id,)) is None
    unsent.hold("owner", [key])
    await trio.sleep(HELD_S)
    unsent.forget_old()
    assert unsent.take("owner", (key.key_id,)) is None
    assert unsent.take_any("owner") is None
    assert (unsent.held_total, unsent.lost_total) == (2, 1)
    many = [Key(UUID(int=number), bytes(32)) for number in range(MOST_KEYS)]
    unsent.hold("owner", many)
    unsent.hold("owner", [key])
    assert unsent.lost_total == 2
    assert unsent.take_any("owner") == many


async def test_a_part_of_what_was_not_sent_may_be_asked_for_and_the_rest_later() -> None:
    unsent = Unsent()
    keys = [Key(UUID(int=number), bytes(32)) for number in range(4)]
    unsent.hold("owner", keys[:3])
    unsent.hold("owner", keys[3:])
    assert unsent.take("owner", (keys[3].key_id, keys[0].key_id)) == [keys[3], keys[0]]
    assert unsent.take("owner", (keys[1].key_id, keys[0].key_id)) is None
    assert unsent.take("owner", (keys[2].key_id, keys[1].key_id)) == [keys[2], keys[1]]


async def test_a_wire_knows_what_it_has_sent_and_whether_its_client_has_gone() -> None:
    ours, theirs = socket.socketpair()
    wire, client = Wire(ours), trio.SocketStream(trio.socket.from_stdlib_socket(theirs))
    await wire.send_all(b"hello")
    assert (wire.sent_bytes, wire.gone) == (5, False)
    with trio.move_on_after(1):
        while True:
            before = wire.sent_bytes
            await wire.send_all(bytes(1 << 16))
    assert wire.sent_bytes - before in (0, 1 << 16), "what cannot be told counts as sent"
    before = wire.sent_bytes
    with trio.move_on_after(0.1):
        await wire.send_all(b"nobody reads")
    assert wire.sent_bytes == before
    await client.aclose()
    assert wire.gone
    with pytest.raises(trio.BrokenResourceError):
        await wire.send_all(b"gone")
    assert wire.sent_bytes == before
    await wire.aclose()
    assert wire.gone
