"""Mutual TLS over real loopback TCP: who gets in, who does not and why, reload, cancellation."""

import datetime
import gc
import math
import ssl
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import structlog
import trio
import trio.testing
import trustme
from cryptography import x509
from http_support import HOST, Pki, read_all, respond, running

from qnode.errors import ConfigError
from qnode.http import Limits, TlsSettings
from qnode.http._tls import certificate_expired, server_context

GET = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"


@pytest.fixture
def pki(tmp_path: Path) -> Pki:
    return Pki(tmp_path)


class Door:
    """An application that remembers the certificates of those who reached it."""

    def __init__(self) -> None:
        self.visitors: list[dict[str, Any]] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.visitors.append(scope["extensions"]["tls"])
        await respond(send, 200, b"hello")


async def knock(pki: Pki, leaf: trustme.LeafCert | None, port: int) -> bytes:
    """Ask once over TLS; return the answer, or nothing when the server closes."""
    return await knock_with(pki.client_context(leaf), port)


async def knock_with(context: ssl.SSLContext, port: int) -> bytes:
    tcp = await trio.open_tcp_stream(HOST, port)
    async with trio.SSLStream(tcp, context, server_hostname=HOST, https_compatible=True) as stream:
        await stream.send_all(GET.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n"))
        return b"".join([chunk async for chunk in stream])


async def test_the_application_sees_the_clients_certificate(pki: Pki) -> None:
    leaf, door = pki.ca.issue_cert("sae-a"), Door()
    async with (
        running(door, pki.settings()) as server,
        pki.http_client(leaf, server.port) as client,
    ):
        assert (await client.get("/")).text == "hello"
        assert (await client.get("/")).text == "hello"
        assert server.counters.connections == 1
    expected = x509.load_pem_x509_certificate(leaf.cert_chain_pems[0].bytes())
    assert x509.load_der_x509_certificate(door.visitors[0]["client_cert_der"]) == expected
    assert x509.load_pem_x509_certificate(door.visitors[0]["client_cert_chain"][0].encode()) == expected
    assert door.visitors[0]["tls_version"] == 0x0304


async def test_without_a_client_ca_nobody_is_asked_for_a_certificate(pki: Pki) -> None:
    door = Door()
    async with running(door, pki.settings(mutual=False)) as server:
        assert (await knock(pki, None, server.port)).endswith(b"hello")
    assert door.visitors[0]["client_cert_der"] is None


def strangers(pki: Pki) -> dict[str, tuple[trustme.LeafCert | None, str, str]]:
    past = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    revoked = pki.ca.issue_cert("sae-r")
    pki.revoke(revoked)
    return {
        "no certificate": (None, "certificate required", "peer did not return a certificate"),
        "wrong CA": (
            trustme.CA().issue_cert("sae-a"),
            "unknown ca",
            "unable to get local issuer certificate",
        ),
        "expired": (
            pki.ca.issue_cert("sae-a", not_before=past, not_after=past.replace(year=2021)),
            "certificate expired",
            "certificate has expired",
        ),
        "revoked": (revoked, "certificate revoked", "certificate revoked"),
    }


@pytest.mark.parametrize("kind", ["no certificate", "wrong CA", "expired", "revoked"])
async def test_a_stranger_gets_an_alert_and_never_reaches_the_application(pki: Pki, kind: str) -> None:
    leaf, alert, reason = strangers(pki)[kind]
    door = Door()
    with structlog.testing.capture_logs() as logs:
        async with running(door, pki.settings(crl=True)) as server:
            with pytest.raises(trio.BrokenResourceError) as caught:
                await knock(pki, leaf, server.port)
            assert alert in str(caught.value.__cause__).lower()
            assert (await knock(pki, pki.ca.issue_cert("sae-b"), server.port)).endswith(b"hello")
    assert len(door.visitors) == 1
    (entry,) = [entry for entry in logs if entry["event"] == "http.handshake_failed"]
    assert entry["reason"] == reason


async def test_plain_http_to_the_tls_port_is_a_failed_handshake(pki: Pki) -> None:
    door = Door()
    with structlog.testing.capture_logs() as logs:
        async with (
            running(door, pki.settings()) as server,
            await trio.open_tcp_stream(HOST, server.port) as stream,
        ):
            await stream.send_all(GET)
            assert b"HTTP" not in await read_all(stream)
    assert [entry["reason"] for entry in logs if entry["event"] == "http.handshake_failed"] == [
        "http request"
    ]
    assert door.visitors == []


async def test_a_client_that_never_speaks_tls_is_closed_at_the_handshake_deadline(pki: Pki) -> None:
    with structlog.testing.capture_logs() as logs:
        async with (
            running(Door(), pki.settings(), Limits(handshake_s=0.1)) as server,
            await trio.open_tcp_stream(HOST, server.port) as stream,
        ):
            with trio.fail_after(60):
                assert await read_all(stream) == b""
    assert [entry["reason"] for entry in logs if entry["event"] == "http.handshake_failed"] == [
        "handshake took too long"
    ]


async def test_a_tls_1_2_client_is_served(pki: Pki) -> None:
    context = pki.client_context(pki.ca.issue_cert("sae-a"))
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    door = Door()
    async with running(door, pki.settings()) as server:
        assert (await knock_with(context, server.port)).endswith(b"hello")
    assert door.visitors[0]["tls_version"] == 0x0303


async def test_a_tls_1_1_client_is_not(pki: Pki) -> None:
    context = pki.client_context(pki.ca.issue_cert("sae-a"))
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    with structlog.testing.capture_logs() as logs:
        async with running(Door(), pki.settings()) as server:
            with pytest.raises(trio.BrokenResourceError):
                await knock_with(context, server.port)
    assert [entry["reason"] for entry in logs if entry["event"] == "http.handshake_failed"] == [
        "unsupported protocol"
    ]


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_a_client_revoked_by_a_crl_of_the_same_date_is_out_after_reload(
    pki: Pki, version: ssl.TLSVersion
) -> None:
    leaf, other = pki.ca.issue_cert("sae-a"), pki.ca.issue_cert("sae-b")
    pki.revoke()
    context = pki.client_context(leaf)
    context.maximum_version = version
    with structlog.testing.capture_logs():
        async with running(Door(), pki.settings(crl=True)) as server:
            tcp = await trio.open_tcp_stream(HOST, server.port)
            async with trio.SSLStream(tcp, context, server_hostname=HOST, https_compatible=True) as kept:
                await kept.send_all(GET)
                await kept.receive_some()
                pki.revoke(leaf)
                server.reload()
                assert await read_all(kept) == b"", "an idle connection keeps no old verdict"
            with pytest.raises(trio.BrokenResourceError):
                await knock_with(context, server.port)
            assert (await knock(pki, other, server.port)).endswith(b"hello")


class Slow:
    """A client that stops where a test wants it to: its handshake flies by hand."""

    def __init__(self, context: ssl.SSLContext, tcp: trio.SocketStream) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=HOST)
        self._tcp = tcp

    async def begin(self) -> None:
        """Send the first flight and take the server's; do not answer it yet."""
        with pytest.raises(ssl.SSLWantReadError):
            self._tls.do_handshake()
        await self._tcp.send_all(self._outgoing.read())
        while self._outgoing.pending == 0:
            self._incoming.write(await self._tcp.receive_some())
            with suppress(ssl.SSLWantReadError):
                self._tls.do_handshake()

    async def ask(self) -> bytes:
        """End the handshake, ask, and return the answer; nothing if the server hangs up."""
        await self._tcp.send_all(self._outgoing.read())
        with suppress(ssl.SSLWantReadError):
            self._tls.do_handshake()
        self._tls.write(GET)
        with suppress(trio.BrokenResourceError):
            await self._tcp.send_all(self._outgoing.read())
        answer = b""
        while not answer.endswith(b"hello"):
            try:
                answer += self._tls.read(4096)
            except ssl.SSLWantReadError:
                try:
                    data = await self._tcp.receive_some()
                except trio.BrokenResourceError:
                    return b""
                if not data:
                    return b""
                self._incoming.write(data)
        return answer


def nothing(_pki: Pki, _leaf: trustme.LeafCert) -> None:
    """Reload the same files."""


def renewed_crl(pki: Pki, _leaf: trustme.LeafCert) -> None:
    pki.revoke(pki.ca.issue_cert("sae-b"))


def another_authority(pki: Pki, _leaf: trustme.LeafCert) -> None:
    pki.ca_file.write_bytes(pki.ca_file.read_bytes() + trustme.CA().cert_pem.bytes())


def revocation(pki: Pki, leaf: trustme.LeafCert) -> None:
    pki.revoke(leaf)


def authority_gone(pki: Pki, _leaf: trustme.LeafCert) -> None:
    strange = trustme.CA()
    strange.cert_pem.write_to_path(str(pki.ca_file))
    (pki.folder / "other").mkdir()
    other = Pki(pki.folder / "other")
    other.ca = strange
    other.revoke()
    (pki.folder / "crl.pem").write_bytes((other.folder / "crl.pem").read_bytes())


@pytest.mark.parametrize(
    ("change", "goes_on"),
    [
        (nothing, True),
        (renewed_crl, True),
        (another_authority, True),
        (revocation, False),
        (authority_gone, False),
    ],
)
async def test_a_reload_cuts_off_those_alone_whom_the_new_files_may_not_let_in(
    pki: Pki, change: Callable[[Pki, trustme.LeafCert], None], goes_on: bool
) -> None:
    leaf, door = pki.ca.issue_cert("sae-a"), Door()
    pki.revoke()
    context = pki.client_context(leaf)
    with structlog.testing.capture_logs():
        async with (
            running(door, pki.settings(crl=True)) as server,
            await trio.open_tcp_stream(HOST, server.port) as first,
            await trio.open_tcp_stream(HOST, server.port) as second,
        ):
            resting, half_way = Slow(context, first), Slow(context, second)
            await resting.begin()
            assert await resting.ask()
            await half_way.begin()
            change(pki, leaf)
            server.reload()
            assert bool(await half_way.ask()) is goes_on
            assert bool(await resting.ask()) is goes_on
    assert len(door.visitors) == (3 if goes_on else 1)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_no_session_outlives_a_reload(pki: Pki, version: ssl.TLSVersion) -> None:
    client = pki.client_context(pki.ca.issue_cert("sae-a"))
    client.maximum_version = version
    session, _ = _shake(server_context(pki.settings()), client, None)
    assert _shake(server_context(pki.settings()), client, session)[1] is False


def test_tls_1_3_resumes_nothing(pki: Pki) -> None:
    server, client = server_context(pki.settings()), pki.client_context(pki.ca.issue_cert("sae-a"))
    session, _ = _shake(server, client, None)
    assert _shake(server, client, session)[1] is False


def test_tls_1_2_gives_no_tickets(pki: Pki) -> None:
    server, client = server_context(pki.settings()), pki.client_context(pki.ca.issue_cert("sae-a"))
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    session, _ = _shake(server, client, None)
    assert session is not None
    assert not session.has_ticket


def test_a_certificate_behind_a_resumed_session_expires_all_the_same() -> None:
    peer = {"notAfter": "Jan  1 00:00:00 2030 GMT"}
    expiry_s = ssl.cert_time_to_seconds(peer["notAfter"])
    assert certificate_expired(peer, expiry_s + 1)
    assert not certificate_expired(peer, expiry_s - 1)
    assert not certificate_expired({}, expiry_s + 1)


def _shake(
    server: ssl.SSLContext, client: ssl.SSLContext, session: ssl.SSLSession | None
) -> tuple[ssl.SSLSession | None, bool]:
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    near = client.wrap_bio(down, up, server_hostname=HOST, session=session)
    far = server.wrap_bio(up, down, server_side=True)
    for _ in range(3):
        for end in (near, far):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
    far.write(b"x")
    assert near.read(1) == b"x"
    session = near.session
    for _ in range(2):  # a session that was not closed properly is never resumed, and would prove nothing
        for end in (near, far):
            try:
                end.unwrap()
            except ssl.SSLWantReadError:
                continue
    return session, bool(near.session_reused)


async def test_reload_with_a_broken_file_keeps_what_was_there(pki: Pki) -> None:
    with structlog.testing.capture_logs():
        async with running(Door(), pki.settings()) as server:
            (pki.folder / "server.pem").write_text("spoiled")
            with pytest.raises(ConfigError, match=r"server\.pem"):
                server.reload()
            assert (await knock(pki, pki.ca.issue_cert("sae-a"), server.port)).endswith(b"hello")


async def test_reload_serves_the_new_certificate(pki: Pki) -> None:
    with structlog.testing.capture_logs():
        async with running(Door(), pki.settings(mutual=False)) as server:
            pki.write("server", pki.ca.issue_cert(HOST, common_name="renewed"))
            server.reload()
            tcp = await trio.open_tcp_stream(HOST, server.port)
            context = pki.client_context(None)
            async with trio.SSLStream(tcp, context, server_hostname=HOST, https_compatible=True) as stream:
                await stream.do_handshake()
                assert "renewed" in str(stream.getpeercert())


def test_unusable_files_are_named(pki: Pki) -> None:
    good = pki.settings()
    missing = pki.folder / "missing.pem"
    for settings, match in [
        (TlsSettings(certificate=missing, key=good.key), "missing.pem: cannot be read"),
        (TlsSettings(certificate=good.certificate, key=good.certificate), "server.pem: not usable for TLS"),
        (TlsSettings(certificate=good.certificate, key=good.key, client_ca=missing), "missing.pem"),
        (TlsSettings(certificate=good.certificate, key=good.key, crl=missing), "needs the client CA"),
    ]:
        with pytest.raises(ConfigError, match=match):
            server_context(settings)


async def test_cancellation_is_prompt_though_a_tls_client_does_not_read(pki: Pki) -> None:
    async def flood(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(64):
            await send({"type": "http.response.body", "body": bytes(1 << 20), "more_body": True})

    async with running(flood, pki.settings()) as server:
        tcp = await trio.open_tcp_stream(HOST, server.port)
        context = pki.client_context(pki.ca.issue_cert("sae-a"))
        stream = trio.SSLStream(tcp, context, server_hostname=HOST)
        await stream.send_all(GET)
        await stream.receive_some()
        await trio.testing.wait_all_tasks_blocked(0.05)
        cancelled = trio.current_time()
    assert trio.current_time() - cancelled < Limits().handshake_s / 2
    await trio.aclose_forcefully(stream)


async def test_a_flood_of_strangers_does_not_drive_out_an_encryptor(pki: Pki) -> None:
    with structlog.testing.capture_logs():
        async with (
            running(Door(), pki.settings(), Limits(connections_per_client=32)) as server,
            pki.http_client(pki.ca.issue_cert("sae-a"), server.port) as client,
            trio.open_nursery() as nursery,
        ):

            async def stranger() -> None:
                while True:
                    async with await trio.open_tcp_stream(HOST, server.port) as stream:
                        await stream.send_all(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
                        await read_all(stream)

            await client.get("/")
            for _ in range(80):
                nursery.start_soon(stranger)
            for _ in range(30):
                assert (await client.get("/")).text == "hello"
            assert server.counters.connections_evicted > 0
            assert server.counters.requests == 31
            nursery.cancel_scope.cancel()


async def test_more_handshakes_than_slots_leave_nobody_unserved_for_ever(pki: Pki) -> None:
    """Newcomers must not drive out those about to be served, or a crowd of clients would starve itself."""
    context, served = pki.client_context(pki.ca.issue_cert("sae-a")), 0
    with structlog.testing.capture_logs():
        async with (
            running(Door(), pki.settings(), Limits(connections_per_client=4)) as server,
            trio.open_nursery() as nursery,
        ):

            async def insist() -> None:
                nonlocal served
                answer = b""
                while not answer.startswith(b"HTTP/1.1 200 "):  # turned away: 503, a reset, or an end
                    with suppress(trio.BrokenResourceError):
                        answer = await knock_with(context, server.port)
                assert answer.endswith(b"hello")
                served += 1

            with trio.fail_after(60):
                async with trio.open_nursery() as crowd:
                    for _ in range(24):
                        crowd.start_soon(insist)
            nursery.cancel_scope.cancel()
    assert served == 24


async def test_a_refused_connection_is_not_charged_for_a_handshake(pki: Pki) -> None:
    limits = Limits(
        connections_per_client=1,
        surplus_connections=0,
        failed_handshakes_hz=0.001,
        failed_handshakes_at_once=2,
        handshake_wait_s=3600.0,
    )
    with structlog.testing.capture_logs():
        async with running(Door(), pki.settings(), limits) as server:
            clients = []

            async def connect(number: int) -> None:
                for _ in range(number):
                    at = await trio.open_tcp_stream(HOST, server.port, local_address="127.0.0.9")
                    clients.append(at)

            await connect(2)
            while server.counters.connections < 2:  # noqa: ASYNC110 - the second takes the slot of the first
                await trio.sleep(0.01)
            await connect(20)  # these would have to wait, and there is no slot
            while server.counters.connections_refused < 20:  # noqa: ASYNC110
                await trio.sleep(0.01)
            wait_s = server._handshakes.spend("127.0.0.9", trio.current_time(), longest_wait_s=math.inf)
            assert wait_s is not None
            assert wait_s < 1500  # for one handshake, not for 21
            for one in clients:
                await trio.aclose_forcefully(one)


async def test_client_hellos_without_a_certificate_have_a_budget_and_leave_others_their_answers(
    pki: Pki,
) -> None:
    limits = Limits(
        failed_handshakes_hz=1.0, failed_handshakes_at_once=5, handshake_wait_s=0.0, linger_s=0.01
    )
    anonymous, honest = pki.client_context(None), pki.client_context(pki.ca.issue_cert("sae-a"))
    with structlog.testing.capture_logs() as logs:
        async with running(Door(), pki.settings(), limits) as server:

            async def stranger() -> None:
                tcp = await trio.open_tcp_stream(HOST, server.port, local_address="127.0.0.9")
                stream = trio.SSLStream(tcp, anonymous, server_hostname=HOST)
                with suppress(trio.BrokenResourceError):
                    await stream.send_all(GET)
                    await stream.receive_some()
                await trio.aclose_forcefully(tcp)

            began_s = trio.current_time()
            for _ in range(20):
                async with trio.open_nursery() as flood:
                    for _ in range(10):
                        flood.start_soon(stranger)
                assert (await knock_with(honest, server.port)).endswith(b"hello")
            allowed = limits.failed_handshakes_at_once + (trio.current_time() - began_s) + 1
            assert 5 <= server.counters.handshakes_failed <= allowed
            assert server.counters.connections_refused + server.counters.handshakes_failed == 200
            assert server.counters.requests == 20
    assert len([entry for entry in logs if entry["event"] == "http.handshake_failed"]) <= allowed


async def test_handshakes_that_succeed_are_not_counted_against_a_client(pki: Pki) -> None:
    limits = Limits(failed_handshakes_hz=0.001, failed_handshakes_at_once=2)
    leaf = pki.ca.issue_cert("sae-a")
    async with running(Door(), pki.settings(), limits) as server:
        for _ in range(10):
            assert (await knock(pki, leaf, server.port)).endswith(b"hello")


async def test_a_connection_leaves_nothing_for_the_collector_of_cycles(pki: Pki) -> None:
    """OpenSSL holds tens of kilobytes a connection: a daemon that collects rarely would grow with each."""
    honest, anonymous = pki.client_context(pki.ca.issue_cert("sae-a")), pki.client_context(None)
    with structlog.testing.capture_logs():
        async with running(Door(), pki.settings()) as server:

            def connections() -> int:
                # By type: `isinstance` would ask a weak reference for an object that may be gone.
                objects: list[Any] = [one for one in gc.get_objects() if issubclass(type(one), ssl.SSLObject)]
                return sum(one.server_side for one in objects)

            await knock_with(honest, server.port)
            gc.collect()
            before = connections()
            gc.disable()
            try:
                for context in (honest, anonymous):
                    for _ in range(10):
                        with suppress(trio.BrokenResourceError):
                            await knock_with(context, server.port)
                while server.open_connections:
                    await trio.testing.wait_all_tasks_blocked(0.01)
                assert connections() == before  # a context remembers its last
            finally:
                gc.enable()


async def test_many_clients_behind_one_address_keep_their_connections(pki: Pki) -> None:
    limits = Limits(connections=40, connections_per_client=30, rest_s=1000.0, idle_s=1000.0)
    context = pki.client_context(pki.ca.issue_cert("sae-a"))
    async with running(Door(), pki.settings(), limits) as server:
        clients: list[trio.SSLStream[trio.SocketStream]] = []
        for _ in range(30):
            tcp = await trio.open_tcp_stream(HOST, server.port)
            clients.append(trio.SSLStream(tcp, context, server_hostname=HOST, https_compatible=True))
        for _ in range(3):
            for client in clients:
                await client.send_all(GET)
                assert (await client.receive_some()).startswith(b"HTTP/1.1 200 ")
            assert b" 503 " in (await knock_with(context, server.port))[:20]
        assert server.counters.connections_evicted == 0
        for client in clients:
            await trio.aclose_forcefully(client)


async def test_strangers_of_many_addresses_share_a_budget_which_known_clients_do_not_need(pki: Pki) -> None:
    limits = Limits(unknown_handshakes_hz=0.001, unknown_handshakes_at_once=5, handshake_wait_s=0.0)
    anonymous, honest = pki.client_context(None), pki.client_context(pki.ca.issue_cert("sae-a"))
    with structlog.testing.capture_logs():
        async with running(Door(), pki.settings(), limits) as server:
            assert (await knock_with(honest, server.port)).endswith(b"hello")
            for number in range(2, 42):
                tcp = await trio.open_tcp_stream(HOST, server.port, local_address=f"127.0.0.{number}")
                with suppress(trio.BrokenResourceError):
                    stream = trio.SSLStream(tcp, anonymous, server_hostname=HOST)
                    await stream.send_all(GET)
                    await stream.receive_some()
                await trio.aclose_forcefully(tcp)
                assert (await knock_with(honest, server.port)).endswith(b"hello")
            assert server.counters.handshakes_failed == 5  # those that succeeded are not counted
            assert server.counters.connections_refused == 35


async def test_a_server_that_may_keep_more_clients_of_an_address_takes_in_more_at_once(pki: Pki) -> None:
    def limits(at_once: int) -> Limits:
        return Limits(failed_handshakes_hz=0.001, failed_handshakes_at_once=at_once, handshake_wait_s=0.0)

    context = pki.client_context(pki.ca.issue_cert("sae-a"))
    async with running(Door(), pki.settings(), limits(3)) as server:
        under_way = [await trio.open_tcp_stream(HOST, server.port) for _ in range(3)]
        with pytest.raises(trio.BrokenResourceError):
            await knock_with(context, server.port)
        server.limit(limits(4))
        assert (await knock_with(context, server.port)).endswith(b"hello")
        for tcp in under_way:
            await trio.aclose_forcefully(tcp)


async def test_clients_that_prove_themselves_leave_the_budget_of_strangers_alone(pki: Pki) -> None:
    limits = Limits(unknown_handshakes_hz=0.001, unknown_handshakes_at_once=2, handshake_wait_s=0.0)
    context = pki.client_context(pki.ca.issue_cert("sae-a"))
    async with running(Door(), pki.settings(), limits) as server:
        for number in range(2, 12):
            tcp = await trio.open_tcp_stream(HOST, server.port, local_address=f"127.0.0.{number}")
            async with trio.SSLStream(tcp, context, server_hostname=HOST, https_compatible=True) as stream:
                await stream.send_all(GET.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n"))
                assert b"".join([chunk async for chunk in stream]).endswith(b"hello")
        assert server.counters.connections_refused == 0
