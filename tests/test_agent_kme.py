"""The agent's client of ETSI GS QKD 014: our own interface, and key managers that answer anything else."""

import base64
import re
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
import trio
from agent_support import issue
from etsi014_support import A, B, MemorySupply, world
from http_support import HOST, Pki

from qnode.agent.config import KmeSection
from qnode.agent.kme import Etsi014KeyManager, key_manager_context
from qnode.errors import ConfigError, KeyManagerError

KEY_ID = "00000000-0000-4000-8000-000000000001"
KEY = bytes(range(32))


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    made = Pki(tmp_path_factory.mktemp("pki"))
    for name in (A, B, "sae-x"):
        issue(made, name)
    return made


def section(pki: Pki, port: int, sae_id: str = A, peer: str = B, **changes: object) -> KmeSection:
    return msgspec.structs.replace(
        KmeSection(
            url=f"https://{HOST}:{port}",
            ca=pki.ca_file,
            certificate=pki.folder / f"{sae_id}.pem",
            key=pki.folder / f"{sae_id}.key",
            sae_id=sae_id,
            peer_sae_id=peer,
        ),
        **changes,
    )


def manager(pki: Pki, port: int, sae_id: str = A, peer: str = B, **changes: object) -> Etsi014KeyManager:
    settings = section(pki, port, sae_id, peer, **changes)
    return Etsi014KeyManager(settings, key_manager_context(settings))


@pytest.mark.parametrize("method", ["POST", "GET"])
async def test_both_ends_get_the_same_key_from_our_own_interface(pki: Pki, method: str) -> None:
    async with world(pki, MemorySupply(chunks=10)) as made:
        here = manager(pki, made.servers["alice"].port, A, B, method=method)
        there = manager(pki, made.servers["bob"].port, B, A, method=method)
        assert await here.stored_key_count() == 10
        key = await here.new_key(256)
        assert (await there.key(key.key_id, 256)).key == key.key
        assert await here.stored_key_count() == 9
        with pytest.raises(KeyManagerError, match="not found on KME") as refused:
            await there.key(key.key_id, 256)
        assert refused.value.not_given


async def test_refusals_of_our_own_interface_say_what_to_do(pki: Pki) -> None:
    async with world(pki, MemorySupply(chunks=0)) as made:
        port = made.servers["alice"].port
        with pytest.raises(KeyManagerError, match="enc_keys answers 503") as empty:
            await manager(pki, port).new_key(256)
        assert empty.value.not_given
        assert empty.value.retry_after_s is not None
        with pytest.raises(KeyManagerError, match=r"answers 401.*register them there"):
            await manager(pki, port, "sae-x").new_key(256)
        with pytest.raises(KeyManagerError, match="answers 400"):
            await manager(pki, port, peer="sae-nobody").new_key(256)


@asynccontextmanager
async def answering(pki: Pki, answer: bytes, *, hold: bool = False) -> AsyncIterator[tuple[int, list[bytes]]]:
    """Serve ``answer`` to every request over TLS; yields the port and the requests."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pki.folder / "server.pem", pki.folder / "server.key")
    asked: list[bytes] = []

    async def serve(stream: trio.SSLStream[trio.SocketStream]) -> None:
        try:
            request = bytes(await stream.receive_some(1 << 16))
            asked.append(request)
            await stream.send_all(answer)
            if hold:
                await trio.sleep_forever()
            await stream.aclose()
        except trio.BrokenResourceError:
            await trio.aclose_forcefully(stream)

    async with trio.open_nursery() as nursery:
        listeners = await trio.open_ssl_over_tcp_listeners(0, context, host=HOST)
        nursery.start_soon(trio.serve_listeners, serve, listeners)
        listener = listeners[0].transport_listener
        assert isinstance(listener, trio.SocketListener)
        yield listener.socket.getsockname()[1], asked
        nursery.cancel_scope.cancel()


def http(status: str, body: bytes, headers: str = "", *, length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    return f"HTTP/1.1 {status}\r\nContent-Length: {size}\r\n{headers}\r\n".encode() + body


def container(key: str, key_id: str = KEY_ID, *, times: int = 1) -> bytes:
    return msgspec.json.encode({"keys": [{"key_ID": key_id, "key": key}] * times})


GOOD = base64.b64encode(KEY).decode()
WRONG_ANSWERS: dict[str, tuple[bytes, str, bool]] = {
    "400": (http("400 Bad Request", b'{"message": "size too large"}'), "answers 400: size too large", True),
    "401 without a body": (
        http("401 Unauthorized", b""),
        "answers 401; it does not know kme.certificate",
        True,
    ),
    "404 in HTML": (http("404 Not Found", b"<html>"), "answers 404; look at kme.url", True),
    "405": (http("405 Method Not Allowed", b""), "set kme.method to the other one", True),
    "500": (http("500 Internal Server Error", b"oops"), "answers 500", False),
    "502 of a proxy": (http("502 Bad Gateway", b"<html>"), "answers 502", False),
    "503": (http("503 Service Unavailable", b"{}", "Retry-After: 7\r\n"), "answers 503", True),
    "503 with a strange wish": (http("503 Busy", b"", "Retry-After: soon\r\n"), "answers 503", True),
    "a redirection": (
        http("302 Found", b"", "Location: https://x/\r\n"),
        "redirections are not followed",
        True,
    ),
    "HTML": (http("200 OK", b"<html>Welcome</html>"), "no JSON; is kme.url a key manager's?", False),
    "no body": (http("200 OK", b""), "answered nothing", False),
    "nothing": (b"", "broke off", False),
    "garbage": (b"\x00\x01\x02garbage\r\n\r\n", "broke off", False),
    "half a body": (http("200 OK", container(GOOD)[:40], length=200), "broke off", False),
    "half a JSON": (http("200 OK", container(GOOD)[:40]), "no JSON", False),
    "another JSON": (http("200 OK", b'{"key": 1}'), "answered JSON without keys", False),
    "a list": (http("200 OK", b"[1]"), "answered JSON without keys", False),
    "no key": (http("200 OK", b'{"keys": []}'), "gave 0 keys, expected 1", False),
    "two keys": (http("200 OK", container(GOOD, times=2)), "gave 2 keys, expected 1", False),
    "no base64": (http("200 OK", container("*" * 44)), "not base64", False),
    "unpadded base64": (http("200 OK", container(GOOD.rstrip("="))), "not base64", False),
    "half a key": (http("200 OK", container(GOOD[:24])), "a key of 144 bits, expected 256", False),
    "a key_ID that is an option": (http("200 OK", container(GOOD, "--help")), "no UUID", False),
    "too much": (http("200 OK", b" " * 100_000), "answered more than 65536 bytes", False),
    "compressed": (http("200 OK", b"x", "Content-Encoding: gzip\r\n"), "answered compressed", False),
    "deep JSON": (http("200 OK", b'{"keys":' + b"[" * 60_000), "answered JSON without keys", False),
}


def parts_of_the_key(text: str) -> Iterator[str]:
    yield from re.findall("|".join(re.escape(GOOD[at : at + 8]) for at in range(30)), text)


@pytest.mark.parametrize("case", WRONG_ANSWERS)
async def test_a_wrong_answer_is_one_error_with_a_remedy_and_asked_for_once(pki: Pki, case: str) -> None:
    answer, told, not_given = WRONG_ANSWERS[case]
    async with answering(pki, answer) as (port, asked):
        with pytest.raises(KeyManagerError) as refused:
            await manager(pki, port).new_key(256)
    assert told in str(refused.value)
    assert str(refused.value).startswith(f"key manager https://{HOST}:{port}: enc_keys")
    assert refused.value.not_given is not_given
    assert len(asked) == 1
    assert not list(parts_of_the_key(str(refused.value)))
    assert refused.value.retry_after_s == (7.0 if case == "503" else None)


async def test_another_key_than_the_one_asked_for_is_refused(pki: Pki) -> None:
    async with answering(pki, http("200 OK", container(GOOD))) as (port, _):
        there = manager(pki, port)
        assert (await there.key(KEY_ID, 256)).key == KEY
        with pytest.raises(KeyManagerError, match="gave another key than the one"):
            await there.key(KEY_ID.replace("1", "2"), 256)
        with pytest.raises(KeyManagerError, match="is no key_ID"):
            await there.key("../status?", 256)


async def test_a_key_manager_that_answers_nothing_or_drips_is_left(pki: Pki) -> None:
    async with answering(pki, b"", hold=True) as (port, asked):
        slow = manager(pki, port, answer_timeout_s=0.3)
        with pytest.raises(KeyManagerError, match=r"did not answer within 0\.3 s") as silent:
            await slow.new_key(256)
        assert not silent.value.not_given
        assert len(asked) == 1


async def test_a_key_manager_that_is_away_or_not_the_one_meant_gives_nothing(
    pki: Pki, tmp_path: Path
) -> None:
    async with answering(pki, b"") as (port, _):
        pass
    with pytest.raises(KeyManagerError, match="cannot be reached") as away:
        await manager(pki, port).new_key(256)
    assert away.value.not_given
    stranger = Pki(tmp_path)
    async with answering(stranger, b"") as (port, asked):
        with pytest.raises(KeyManagerError, match=r"certificate is not accepted.*look at kme\.ca") as other:
            await manager(pki, port).new_key(256)
    assert other.value.not_given
    assert asked == []


async def test_a_certificate_that_the_key_manager_does_not_know_is_named(pki: Pki, tmp_path: Path) -> None:
    stranger = Pki(tmp_path)
    issue(stranger, A)
    async with world(pki) as made:
        with pytest.raises(
            KeyManagerError, match=r"refuses the connection.*look at kme\.certificate"
        ) as error:
            await manager(
                pki,
                made.servers["alice"].port,
                certificate=tmp_path / f"{A}.pem",
                key=tmp_path / f"{A}.key",
            ).new_key(256)
    assert error.value.not_given


@pytest.mark.parametrize("host", ["a..b", "a" * 64, "xn--0"])
async def test_a_host_that_cannot_be_is_one_error(pki: Pki, host: str) -> None:
    with pytest.raises(KeyManagerError, match=r"no host has such a name; look at kme\.url") as refused:
        await manager(pki, 1, url=f"https://{host}:1").new_key(256)
    assert refused.value.not_given


async def test_a_number_of_keys_beyond_every_number_is_refused(pki: Pki) -> None:
    async with answering(pki, http("200 OK", b'{"stored_key_count": 1' + b"0" * 400 + b"}")) as (port, _):
        with pytest.raises(KeyManagerError, match="without stored_key_count"):
            await manager(pki, port).stored_key_count()


def test_a_file_that_cannot_be_used_is_named(pki: Pki) -> None:
    with pytest.raises(ConfigError, match=r"kme: .*absent\.pem: cannot be read"):
        key_manager_context(section(pki, 1, certificate=pki.folder / "absent.pem"))


async def test_no_key_is_in_the_text_of_any_object(pki: Pki) -> None:
    async with world(pki) as made:
        key = await manager(pki, made.servers["alice"].port).new_key(256)
    text = base64.b64encode(key.key).decode()
    assert text not in repr(key)
    assert key.key.hex() not in repr(key)
    assert repr(key) == f"TunnelKey({key.key_id}, 256 bits)"
