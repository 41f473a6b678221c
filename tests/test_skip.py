"""SKIP over real mutual TLS: answers and errors of draft-cisco-skip-02, on the same keys as ETSI 014."""

import base64
import itertools
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest
import structlog
import trio
import trio.testing
from etsi014_support import A, B, C, D, MemorySupply, World, _issued, world
from http_support import HOST, Pki, read_all, running
from interface_support import ask, der

from qnode import skip
from qnode.delivery import ApiLimits, Delivery, SaeDirectory, SaeEntry
from qnode.errors import ConfigError, DeviceError, KeyNotFound, StoreError
from qnode.http import Server
from qnode.skip._interface import ENTROPY_AT_ONCE, ENTROPY_HZ, MOST_ENTROPY_BITS

API = "/api/v1/keys"


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(Path(tmp_path_factory.mktemp("pki")))


@pytest.fixture(autouse=True)
def logs() -> Any:
    with structlog.testing.capture_logs() as captured:
        yield captured


async def counted_bytes(number: int) -> bytes:
    return bytes(range(256))[:number] if number <= 256 else bytes(number)


@dataclass
class Sites:
    """Two sites with both interfaces over one supply."""

    place: World
    skips: dict[str, Server]

    async def skip_client(self, name: str, kme: str) -> httpx.AsyncClient:
        leaf = _issued(self.place.pki, name)
        return await self.place.stack.enter_async_context(
            self.place.pki.http_client(leaf, self.skips[kme].port)
        )


@asynccontextmanager
async def sites(
    pki: Pki, supply: MemorySupply | None = None, *, simulated: bool = False
) -> AsyncIterator[Sites]:
    async with world(pki, supply, simulated=simulated) as place, AsyncExitStack() as stack:
        skips = {
            kme: await stack.enter_async_context(
                running(skip.application(delivery, counted_bytes), pki.settings())
            )
            for kme, delivery in place.deliveries.items()
        }
        yield Sites(place, skips)


def key_of(answer: httpx.Response) -> tuple[str, bytes]:
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert set(body) == {"keyId", "key"}
    assert body["keyId"] == UUID(body["keyId"]).hex, "32 hexadecimal digits in lower case"
    return body["keyId"], bytes.fromhex(body["key"])


def refused(answer: httpx.Response, status: int) -> str:
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"message"}
    message: str = answer.json()["message"]
    return message


# What works.


async def test_both_ends_get_the_same_key_once(pki: Pki) -> None:
    async with sites(pki) as two:
        a, b = await two.skip_client(A, "alice"), await two.skip_client(B, "bob")
        key_id, key = key_of(await a.get("/key", params={"remoteSystemID": B}))
        assert len(key) == 32
        other = f"/key/{key_id.upper()}"
        assert key_of(await b.get(other, params={"remoteSystemID": A})) == (key_id, key)
        refused(await b.get(other, params={"remoteSystemID": A}), 400)


async def test_a_key_got_by_skip_is_fetched_once_by_either_interface(pki: Pki) -> None:
    async with sites(pki) as two:
        a, b = await two.skip_client(A, "alice"), await two.skip_client(B, "bob")
        etsi_a, etsi_b = await two.place.client(A, "alice"), await two.place.client(B, "bob")
        # By SKIP here, by ETSI there.
        key_id, key = key_of(await a.get("/key", params={"remoteSystemID": B}))
        wanted = {"key_ID": str(UUID(key_id))}
        container = (await etsi_b.get(f"{API}/{A}/dec_keys", params=wanted)).json()
        assert base64.b64decode(container["keys"][0]["key"]) == key
        assert (await etsi_b.get(f"{API}/{A}/dec_keys", params=wanted)).status_code == 400
        refused(await b.get(f"/key/{key_id}", params={"remoteSystemID": A}), 400)
        # By ETSI here, by SKIP there.
        (got,) = (await etsi_a.get(f"{API}/{B}/enc_keys")).json()["keys"]
        fetched = await b.get(f"/key/{UUID(got['key_ID']).hex}", params={"remoteSystemID": A})
        assert key_of(fetched)[1] == base64.b64decode(got["key"])
        assert (await etsi_b.get(f"{API}/{A}/dec_keys", params={"key_ID": got["key_ID"]})).status_code == 400
        assert two.place.deliveries["bob"].usage[B].keys_delivered == 2


@pytest.mark.parametrize("bits", [64, 128, 256, 512, 65536])
async def test_a_key_has_the_size_that_was_asked_for(pki: Pki, bits: int) -> None:
    async with sites(pki) as two:
        a = await two.skip_client(A, "alice")
        answer = await a.get("/key", params={"remoteSystemID": B, "size": bits})
        assert 8 * len(key_of(answer)[1]) == bits


async def test_capabilities_name_the_encryptor_and_its_peers(pki: Pki) -> None:
    async with sites(pki) as two:
        assert (await (await two.skip_client(A, "alice")).get("/capabilities")).json() == {
            "entropy": True,
            "key": True,
            "algorithm": "QKD",
            "localSystemID": A,
            "remoteSystemID": [B, C],
        }


async def test_simulated_keys_are_said_to_be_simulated(pki: Pki) -> None:
    async with sites(pki, simulated=True) as two:
        a = await two.skip_client(A, "alice")
        assert (await a.get("/capabilities")).json()["algorithm"] == "QKD (simulated)"
        answer = (await a.get("/key", params={"remoteSystemID": B})).json()
        assert answer["qnode_simulated"] is True


async def test_entropy_has_the_bits_that_were_asked_for_in_whole_bytes(pki: Pki) -> None:
    async with sites(pki) as two:
        a = await two.skip_client(A, "alice")
        answer = (await a.get("/entropy")).json()
        assert answer == {"randomStr": bytes(range(32)).hex(), "minentropy": 256}
        assert (await a.get("/entropy", params={"minentropy": 129})).json()["minentropy"] == 136
        most = (await a.get("/entropy", params={"minentropy": MOST_ENTROPY_BITS})).json()
        assert 4 * len(most["randomStr"]) == most["minentropy"] == MOST_ENTROPY_BITS


async def test_a_client_that_names_itself_as_host_gets_one_whole_answer_and_the_end(pki: Pki) -> None:
    """So does skip-qkd: its own name in Host, no reuse, JSON must come in one piece."""
    async with sites(pki) as two:
        stream = await trio.open_tcp_stream(HOST, two.skips["alice"].port)
        tls = trio.SSLStream(
            stream, pki.client_context(_issued(pki, A)), server_hostname=HOST, https_compatible=True
        )
        async with tls:
            await tls.send_all(b"GET /capabilities HTTP/1.1\r\nHost: sae-a\r\n\r\n")
            with trio.fail_after(30):
                answer = await read_all(tls)
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 ")
        lines = head.lower().split(b"\r\n")
        assert b"content-length: %d" % len(body) in lines
        assert b"connection: close" in lines
        assert b"transfer-encoding" not in head.lower()


# Whose key it is.


async def test_system_ids_name_encryptors_instead_of_their_sae_ids(pki: Pki) -> None:
    entries = (
        SaeEntry(sae_id=A, kme_id="alice", peers=(B, C), system_id="kp alice"),
        SaeEntry(sae_id=B, kme_id="bob", peers=(A,), system_id="KP_*"),
        SaeEntry(sae_id=C, kme_id="bob", peers=(A,)),
    )
    delivery = Delivery(SaeDirectory("alice", entries), MemorySupply())
    app, certificate = skip.application(delivery, counted_bytes), der(_issued(pki, A))
    capabilities = (await ask(app, certificate, "GET", "/capabilities")).body
    assert capabilities["localSystemID"] == "kp alice"
    # Each entry is a pattern in the draft: a name with a wildcard matches itself alone.
    assert capabilities["remoteSystemID"] == ["KP_[*]", C]
    assert (await ask(app, certificate, "GET", "/key?remoteSystemID=KP_*")).status == 200
    assert (await ask(app, certificate, "GET", "/key?remoteSystemID=KP_1")).status == 400
    assert (await ask(app, certificate, "GET", f"/key?remoteSystemID={B}")).status == 400


def test_two_encryptors_cannot_have_one_system_id() -> None:
    entries = (
        SaeEntry(sae_id=A, kme_id="alice", peers=(), system_id=B),
        SaeEntry(sae_id=B, kme_id="bob", peers=()),
    )
    with pytest.raises(ConfigError, match=f"system_id '{B}' belongs to {A} already"):
        SaeDirectory("alice", entries)


async def test_nobody_else_gets_a_key_and_nobody_unknown_gets_anything(pki: Pki) -> None:
    async with sites(pki) as two:
        a = await two.skip_client(A, "alice")
        key_id, _ = key_of(await a.get("/key", params={"remoteSystemID": B}))
        c = await two.skip_client(C, "bob")
        told = refused(await c.get(f"/key/{key_id}", params={"remoteSystemID": A}), 400)
        unknown = refused(await c.get(f"/key/{UUID(int=0).hex}", params={"remoteSystemID": A}), 400)
        assert told == unknown == "one or more keys specified are not found on KME"
        refused(await a.get(f"/key/{key_id}", params={"remoteSystemID": B}), 400)
        for name, kme in (("stranger", "alice"), (B, "alice"), ("alice", "alice")):
            client = await two.skip_client(name, kme)
            for path in ("/capabilities", "/key", f"/key/{key_id}", "/entropy", "/openapi.json"):
                refused(await client.get(path, params={"remoteSystemID": B}), 401)
        async with pki.http_client(None, two.skips["alice"].port) as nobody:
            with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError, ssl.SSLError)):
                await nobody.get("/capabilities")


# What is wrong gets the status of the draft.


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/", 404),
        ("/keys", 404),
        ("/key/", 404),
        ("/capabilities/", 404),
        (f"{API}/{B}/status", 404),
        ("/key", 400),
        ("/key?remoteSystemID=", 400),
        ("/key?remoteSystemID=nobody", 400),
        (f"/key?remoteSystemID={D}", 400),
        (f"/key?remoteSystemID={A}", 400),
        (f"/key?remoteSystemID={B}&remoteSystemID={B}", 400),
        *[
            (f"/key?remoteSystemID={B}&size={size}", 400)
            for size in ("", "0", "-8", "63", "65544", "100", "x")
        ],
        (f"/key/{'0' * 32}", 400),
        *[(f"/key/{name}?remoteSystemID={B}", 400) for name in ("0" * 31, "0" * 33, "g" * 32, UUID(int=1))],
        (f"/key/{'0' * 32}?remoteSystemID={B}", 400),
        *[(f"/entropy?minentropy={bits}", 400) for bits in ("", "0", "-1", "4097", "x", "1.0")],
    ],
)
async def test_a_wrong_request_is_refused_and_uses_up_no_key(pki: Pki, path: str, status: int) -> None:
    async with sites(pki) as two:
        a = await two.skip_client(A, "alice")
        refused(await a.get(path), status)
        assert two.place.supply.chunks == 1000


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "QUERY"])
async def test_another_method_than_get_is_405(pki: Pki, method: str) -> None:
    async with sites(pki) as two:
        a = await two.skip_client(A, "alice")
        for path in ("/capabilities", "/key", f"/key/{'0' * 32}", "/entropy"):
            answer = await a.request(method, path)
            refused(answer, 405)
            assert answer.headers["allow"] == "GET"


async def test_too_few_keys_or_no_peer_is_503_and_a_broken_store_500(
    pki: Pki, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with sites(pki, MemorySupply(chunks=0)) as two:
        a = await two.skip_client(A, "alice")
        answer = await a.get("/key", params={"remoteSystemID": B})
        refused(answer, 503)
        assert answer.headers["retry-after"] == "2"
        two.place.supply.link_up = False
        refused(await a.get("/key", params={"remoteSystemID": B}), 503)

        async def broken(*_: object) -> Any:
            raise StoreError("disk full")

        monkeypatch.setattr(two.place.supply, "fetch", broken)
        monkeypatch.setattr(two.place.supply, "allocate", broken)
        refused(await a.get("/key", params={"remoteSystemID": B}), 500)
        refused(await a.get(f"/key/{UUID(int=0).hex}", params={"remoteSystemID": B}), 500)


async def test_a_store_that_hangs_is_500_within_the_deadline(
    pki: Pki, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    supply = MemorySupply()
    entries = (
        SaeEntry(sae_id=A, kme_id="alice", peers=(B,)),
        SaeEntry(sae_id=B, kme_id="bob", peers=(A,)),
    )
    delivery = Delivery(SaeDirectory("alice", entries), supply, limits=ApiLimits(answer_s=10.0))

    async def hang(*_: object) -> Any:
        await trio.sleep_forever()

    monkeypatch.setattr(supply, "allocate", hang)
    app = skip.application(delivery, hang)
    with trio.fail_after(60.0):
        answer = await ask(app, der(_issued(pki, A)), "GET", f"/key?remoteSystemID={B}")
    assert answer.status == 500
    assert trio.current_time() == pytest.approx(10.0)
    with trio.fail_after(60.0):
        entropy = await ask(app, der(_issued(pki, A)), "GET", "/entropy")
    assert entropy.status == 503
    assert trio.current_time() == pytest.approx(20.0)


async def test_encryptors_take_turns_at_the_random_source(pki: Pki) -> None:
    entries = [SaeEntry(sae_id=name, kme_id="alice", peers=()) for name in (A, B)]
    delivery = Delivery(SaeDirectory("alice", entries), MemorySupply())
    drawing, most = 0, 0

    async def slow_bytes(number: int) -> bytes:
        nonlocal drawing, most
        drawing += 1
        most = max(most, drawing)
        await trio.lowlevel.checkpoint()
        drawing -= 1
        return bytes(number)

    app = skip.application(delivery, slow_bytes)
    async with trio.open_nursery() as nursery:
        for name in (A, B, A, B):
            nursery.start_soon(ask, app, der(_issued(pki, name)), "GET", "/entropy")
    assert most == 1


async def test_entropy_is_limited_for_each_encryptor_and_comes_again(
    pki: Pki, autojump_clock: trio.testing.MockClock
) -> None:
    entries = [SaeEntry(sae_id=name, kme_id="alice", peers=()) for name in (A, B)]
    delivery = Delivery(SaeDirectory("alice", entries), MemorySupply())
    app = skip.application(delivery, counted_bytes)
    a, b = der(_issued(pki, A)), der(_issued(pki, B))

    async def given(number: int) -> int:
        statuses = [(await ask(app, a, "GET", "/entropy")).status for _ in range(number)]
        assert set(statuses) == {200, 503}
        return statuses.count(200)

    # The clock's rounding may cost one.
    assert ENTROPY_AT_ONCE - 1 <= await given(100) <= ENTROPY_AT_ONCE
    assert (await ask(app, a, "GET", "/entropy")).headers["retry-after"] == "1"
    assert (await ask(app, b, "GET", "/entropy")).status == 200
    await trio.sleep(1.0)
    assert ENTROPY_HZ - 1 <= await given(100) <= ENTROPY_HZ + 1


async def test_entropy_of_a_sick_source_is_503_and_not_other_bits(pki: Pki) -> None:
    async def sick(number: int) -> bytes:
        raise DeviceError("qrng: repetition count: failed")

    delivery = Delivery(SaeDirectory("alice", [SaeEntry(sae_id=A, kme_id="alice", peers=())]), MemorySupply())
    answer = await ask(skip.application(delivery, sick), der(_issued(pki, A)), "GET", "/entropy")
    assert answer.status == 503
    assert "qrng" not in answer.content.decode(), "the reason is for the log alone"


# What is not said.


async def test_no_key_and_no_random_bits_reach_the_log(pki: Pki, logs: Any) -> None:
    async with sites(pki) as two:
        a, b = await two.skip_client(A, "alice"), await two.skip_client(B, "bob")
        key_id, key = key_of(await a.get("/key", params={"remoteSystemID": B}))
        key_of(await b.get(f"/key/{key_id}", params={"remoteSystemID": A}))
        await a.get("/entropy")
    written = repr(logs)
    assert key.hex() not in written
    assert repr(key) not in written
    assert bytes(range(32)).hex() not in written
    assert {"event", "sae", "bits", "log_level"} == next(
        set(one) for one in logs if one["event"] == "entropy.given"
    )


async def test_a_key_whose_answer_was_not_sent_is_given_once_whatever_the_interface(pki: Pki) -> None:
    """The answer breaks before its first byte: the next equal request of the same encryptor gets the key."""
    delivery = Delivery(
        SaeDirectory(
            "bob",
            [SaeEntry(sae_id=B, kme_id="bob", peers=(A,)), SaeEntry(sae_id=A, kme_id="alice", peers=(B,))],
        ),
        supply := MemorySupply(),
    )
    (key,) = await supply.allocate(A, (B,), 1, 256)
    given = await delivery.fetch(delivery.directory.local[0], A, (key.key_id,))
    delivery.take_back(given)
    app, certificate = skip.application(delivery, counted_bytes), der(_issued(pki, B))
    target = f"/key/{key.key_id.hex}?remoteSystemID={A}"
    first, second = [await ask(app, certificate, "GET", target) for _ in range(2)]
    assert first.body == {"keyId": key.key_id.hex, "key": key.key.hex()}
    assert second.status == 400
    with pytest.raises(KeyNotFound):
        await supply.fetch(B, A, (key.key_id,))
    assert list(itertools.chain(*[delivery.unsent._answers])) == []
