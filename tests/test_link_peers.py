"""Real TCP and TLS: who gets in, who does not, and how the link comes back."""

import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
import structlog
import trio
import trio.testing
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from link_room import MemoryPads, local_end, tls_files, transport
from msgspec.structs import replace as replace_files
from trio.testing import MockClock

from qnode.config import LinkParameters, SourceParameters
from qnode.errors import AuthenticationError, ConfigError, LinkError, PeerRefused, StoreError
from qnode.link import messages as m
from qnode.link import peers
from qnode.link.frames import FrameStream
from qnode.link.hello import LocalEnd
from qnode.link.peers import FIRST_PAUSE_S, FailureLog, LinkFailure, connect_to_peer, serve_peer
from qnode.link.session import Session
from qnode.link.tls import TlsTransport, link_contexts
from qnode.peer_tls import certificate_identities
from qnode.unproven import CONNECTIONS_AT_ONCE, CONNECTIONS_HZ, PLACES, Place, Unproven


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def alice_files(tmp_path: Path, authority: trustme.CA) -> Any:
    folder = tmp_path / "alice"
    folder.mkdir()
    return tls_files(folder, authority, "kme-alice")


@pytest.fixture
def bob_files(tmp_path: Path, authority: trustme.CA) -> Any:
    return tls_files(tmp_path, authority, "kme-bob")


class Site:
    """One end of the link: its sessions as they come, and its failures."""

    def __init__(self) -> None:
        self._sessions_in, self.sessions = trio.open_memory_channel[Session](10)
        self._failures_in, self._failures = trio.open_memory_channel[LinkFailure](100)

    async def handle(self, session: Session) -> None:
        await self._sessions_in.send(session)
        await trio.sleep_forever()

    def on_failure(self, failure: LinkFailure) -> None:
        self._failures_in.send_nowait(failure)

    async def session(self) -> Session:
        return await self.sessions.receive()

    async def failure(self) -> LinkFailure:
        return await self._failures.receive()


@asynccontextmanager
async def alice_serving(
    files: Any, local: LocalEnd | None = None, **changes: Any
) -> AsyncIterator[tuple[Site, int]]:
    site = Site()
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            port = await nursery.start(
                partial(serve_peer, on_failure=site.on_failure),
                local or local_end("alice"),
                transport(files, "kme-bob", **changes),
                site.handle,
            )
            yield site, port
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def bob_calling(
    files: Any, port: int, local: LocalEnd | None = None, **changes: Any
) -> AsyncIterator[Site]:
    site = Site()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(
            partial(connect_to_peer, on_failure=site.on_failure),
            local or local_end("bob"),
            transport(files, changes.pop("expects", "kme-alice"), port, **changes),
            site.handle,
        )
        yield site
        nursery.cancel_scope.cancel()


async def test_two_sites_talk_over_tls(alice_files: Any, bob_files: Any) -> None:
    local = local_end("alice", run_sync=trio.to_thread.run_sync)
    async with alice_serving(alice_files, local) as (alice, port), bob_calling(bob_files, port) as bob:
        at_alice, at_bob = await alice.session(), await bob.session()
        big = m.ClickBatch(1, 0, bytes(range(256)) * 8192)
        await at_alice.send(m.BlockProposed(1, 1, 0, 10))
        await at_alice.send(big)
        assert await at_bob.receive() == m.BlockProposed(1, 1, 0, 10)
        assert await at_bob.receive() == big
        assert at_alice.transcript_hash(1, outgoing=True) == at_bob.transcript_hash(1, outgoing=False)
        tls: Any = at_bob._frames.stream
        assert tls.transport._socket.getsockopt(trio.socket.IPPROTO_TCP, trio.socket.TCP_NODELAY)
        assert tls.connection.version() == "TLSv1.3"


async def refusal(
    alice_files: Any, files: Any, *, alice: dict[str, Any], bob: dict[str, Any]
) -> tuple[Any, Any]:
    """Let Bob call once or twice and return what each side says of it."""
    async with (
        alice_serving(alice_files, **alice) as (at_alice, port),
        bob_calling(files, port, **bob) as at_bob,
    ):
        failures = (await at_alice.failure(), await at_bob.failure())
        assert not any(failure.proven for failure in failures)
        for site in (at_alice, at_bob):
            with pytest.raises(trio.WouldBlock):
                site.sessions.receive_nowait()
        return failures[0].error, failures[1].error


async def test_a_certificate_of_another_authority_is_refused(
    alice_files: Any, bob_files: Any, tmp_path: Path
) -> None:
    (tmp_path / "foreign").mkdir()
    foreign = tls_files(tmp_path / "foreign", trustme.CA(), "kme-bob")
    foreign = replace_files(foreign, ca=alice_files.ca)
    at_alice, at_bob = await refusal(alice_files, foreign, alice={}, bob={})
    assert isinstance(at_alice, PeerRefused)
    assert "certificate is not accepted" in str(at_alice)
    assert "unknown ca" in str(at_bob)


async def test_bob_refuses_an_alice_of_another_authority(bob_files: Any, tmp_path: Path) -> None:
    (tmp_path / "foreign").mkdir()
    foreign = replace_files(tls_files(tmp_path / "foreign", trustme.CA(), "kme-alice"), ca=bob_files.ca)
    at_alice, at_bob = await refusal(foreign, bob_files, alice={}, bob={})
    assert isinstance(at_bob, PeerRefused)
    assert isinstance(at_alice, LinkError)


async def test_bob_refuses_a_stranger_with_alices_name_who_wants_no_certificate_of_his(
    bob_files: Any,
) -> None:
    foreign = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("kme-alice").configure_cert(foreign)

    async def serve(stream: trio.SocketStream) -> None:
        with contextlib.suppress(trio.BrokenResourceError):
            tls = trio.SSLStream(stream, foreign, server_side=True)
            await tls.do_handshake()
            await tls.receive_some()

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            (listener,) = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
            port = listener.socket.getsockname()[1]
            with pytest.raises(PeerRefused, match="not accepted"):
                await transport(bob_files, "kme-alice", port).connect()
            nursery.cancel_scope.cancel()


async def test_a_revoked_certificate_is_refused(
    alice_files: Any, bob_files: Any, authority: trustme.CA, tmp_path: Path
) -> None:
    issuer = x509.load_pem_x509_certificate(authority.cert_pem.bytes())
    signer = serialization.load_pem_private_key(authority.private_key_pem.bytes(), None)
    assert isinstance(signer, EllipticCurvePrivateKey)
    revoked = x509.load_pem_x509_certificate(bob_files.certificate.read_bytes())
    now = datetime.now(UTC)
    entry = x509.RevokedCertificateBuilder().serial_number(revoked.serial_number).revocation_date(now).build()
    crl = x509.CertificateRevocationListBuilder().issuer_name(issuer.subject).add_revoked_certificate(entry)
    crl = crl.last_update(now - timedelta(hours=1)).next_update(now + timedelta(hours=1))
    with_crl = replace_files(alice_files, crl=tmp_path / "crl.pem")
    with_crl.crl.write_bytes(crl.sign(signer, SHA256()).public_bytes(serialization.Encoding.PEM))
    at_alice, at_bob = await refusal(with_crl, bob_files, alice={}, bob={})
    assert isinstance(at_alice, PeerRefused)
    assert "certificate revoked" in str(at_alice)
    assert "certificate revoked" in str(at_bob)


async def test_another_kme_of_the_same_authority_is_refused(
    alice_files: Any, authority: trustme.CA, tmp_path: Path
) -> None:
    files = tls_files(tmp_path, authority, "kme-carol")
    at_alice, _ = await refusal(alice_files, files, alice={}, bob={})
    assert isinstance(at_alice, PeerRefused)
    assert "names kme-carol, expected kme-bob" in str(at_alice)


async def test_bob_refuses_an_unexpected_alice(alice_files: Any, bob_files: Any) -> None:
    async with (
        alice_serving(alice_files) as (_, port),
        bob_calling(bob_files, port, expects="kme-north") as bob,
    ):
        error = (await bob.failure()).error
        assert isinstance(error, PeerRefused)
        assert "names kme-alice, expected kme-north" in str(error)


@pytest.mark.parametrize("names", [("sae-1",), ("kme-bob", "sae-1")])
async def test_an_encryptors_certificate_is_refused(
    names: tuple[str, ...], alice_files: Any, authority: trustme.CA, tmp_path: Path
) -> None:
    files = tls_files(tmp_path, authority, *names)
    identities = {"encryptor_identities": frozenset({"sae-1", "sae-2"})}
    at_alice, _ = await refusal(alice_files, files, alice=identities, bob={})
    assert isinstance(at_alice, PeerRefused)
    assert "an encryptor's" in str(at_alice)


async def test_different_parameters_are_refused_over_tls_too(alice_files: Any, bob_files: Any) -> None:
    theirs = local_end("bob", parameters=LinkParameters(source=SourceParameters(mu=(0.48, 0.2))))
    at_alice, at_bob = await refusal(alice_files, bob_files, alice={}, bob={"local": theirs})
    assert "link.source.mu: ours [0.5, 0.2], theirs [0.48, 0.2]" in str(at_alice)
    assert "link.source.mu: ours [0.48, 0.2], theirs [0.5, 0.2]" in str(at_bob)


async def test_a_wrong_preshared_key_is_refused_over_tls_too(alice_files: Any, bob_files: Any) -> None:
    theirs = local_end("bob", secrets=MemoryPads("bob", seed=2))
    at_alice, at_bob = await refusal(alice_files, bob_files, alice={}, bob={"local": theirs})
    assert isinstance(at_alice, AuthenticationError)
    assert isinstance(at_bob, PeerRefused)


async def test_tls_1_2_and_plain_tcp_get_nowhere(alice_files: Any, bob_files: Any) -> None:
    async with alice_serving(alice_files) as (alice, port):
        context = ssl.create_default_context(cafile=str(bob_files.ca))
        context.check_hostname = False
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(bob_files.certificate, bob_files.key)
        tcp = await trio.open_tcp_stream("127.0.0.1", port)
        async with tcp:
            with pytest.raises(trio.BrokenResourceError):
                await trio.SSLStream(tcp, context).do_handshake()
        assert "unsupported protocol" in str((await alice.failure()).error)
        async with await trio.open_tcp_stream("127.0.0.1", port) as plain:
            await plain.send_all(b"GET / HTTP/1.1\r\n\r\n")
        assert (await alice.failure()).proven is False


async def test_no_byte_of_a_stranger_is_parsed(
    alice_files: Any, authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed: list[FrameStream] = []
    real = FrameStream.receive

    async def receive(self: FrameStream) -> bytes:
        parsed.append(self)
        return await real(self)

    monkeypatch.setattr(FrameStream, "receive", receive)
    files = tls_files(tmp_path, authority, "kme-carol")
    async with alice_serving(alice_files) as (alice, port):
        stream = await transport(files, "kme-alice", port).connect()
        with contextlib.suppress(trio.BrokenResourceError):
            await stream.send_all(b"\0\0\0\x01x")
        assert isinstance((await alice.failure()).error, PeerRefused)
        await trio.aclose_forcefully(stream)
    assert parsed == []


async def test_silent_strangers_do_not_keep_the_peer_out(
    alice_files: Any, bob_files: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "HANDSHAKE_LIMIT_S", 1000.0)  # only giving way makes room
    async with alice_serving(alice_files) as (alice, port):
        strangers = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(PLACES + 3)]
        async with bob_calling(bob_files, port):
            for _ in range(4):
                failure = await alice.failure()
                assert (str(failure.error), failure.address) == (
                    "gave way to a newer connection",
                    "127.0.0.1",
                )
            await alice.session()
        for stranger in strangers:
            await stranger.aclose()


async def test_a_stranger_never_takes_the_place_of_one_who_comes_from_where_the_peer_does() -> None:
    unproven = Unproven(connects_from=("192.0.2.0/28",))
    gone: list[str] = []

    async def stay(address: str) -> None:
        with unproven.place(address, lambda: gone.append(address)):
            await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(stay, "192.0.2.7")
        for number in range(3 * PLACES):
            nursery.start_soon(stay, f"198.51.100.{number}")
        await trio.testing.wait_all_tasks_blocked()
        assert len(unproven) == PLACES
        assert len(gone) == 2 * PLACES + 1
        assert "192.0.2.7" not in gone
        unproven.proven("203.0.113.5")
        nursery.start_soon(stay, "203.0.113.5")
        for number in range(2 * PLACES):
            nursery.start_soon(stay, f"198.51.100.{number}")
        await trio.testing.wait_all_tasks_blocked()
        assert not {"192.0.2.7", "203.0.113.5"} & set(gone)
        nursery.cancel_scope.cancel()


async def test_one_network_full_of_strangers_gives_way_before_a_single_one_of_another() -> None:
    unproven = Unproven()
    gone: list[str] = []

    async def stay(address: str) -> None:
        with unproven.place(address, lambda: gone.append(address)):
            await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(stay, "192.0.2.7")
        await trio.testing.wait_all_tasks_blocked()
        for number in range(2 * PLACES):
            nursery.start_soon(stay, f"2001:db8:0:1::{number}")
        await trio.testing.wait_all_tasks_blocked()
        assert len(gone) == PLACES + 1
        assert "192.0.2.7" not in gone
        nursery.cancel_scope.cancel()


async def test_connections_of_strangers_are_bounded_by_network_and_the_peers_are_not(
    autojump_clock: MockClock,
) -> None:
    unproven = Unproven(connects_from=("192.0.2.0/28",))
    at_once = sum(unproven.admits("198.51.100.1") for _ in range(5000))
    assert at_once == pytest.approx(CONNECTIONS_AT_ONCE, abs=1)
    assert all(unproven.admits("192.0.2.7") for _ in range(1000))
    assert unproven.admits("198.51.100.2")
    await trio.sleep(1)
    assert sum(unproven.admits("198.51.100.1") for _ in range(1000)) == pytest.approx(CONNECTIONS_HZ, abs=1)


async def test_who_has_spoken_outlasts_silent_ones_of_its_own_network() -> None:
    unproven, gone = Unproven(), 0
    ours, _ = trio.testing.memory_stream_pair()

    def count() -> None:
        nonlocal gone
        gone += 1

    async def stay(*, speak: bool) -> None:
        with unproven.place("192.0.2.7", count) as place:
            if speak:
                await unproven.wait_for_turn(ours, place)
            await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(stay, speak=True))
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(3 * PLACES):
            nursery.start_soon(partial(stay, speak=False))
        await trio.testing.wait_all_tasks_blocked()
        assert gone == 2 * PLACES + 1
        assert any(place.spoken for place in unproven._places)
        nursery.cancel_scope.cancel()


async def test_handshakes_that_fail_are_bounded_by_network(autojump_clock: MockClock) -> None:
    unproven = Unproven()
    ours, _ = trio.testing.memory_stream_pair()
    refused = 0

    async def turn_of(address: str) -> None:
        await unproven.wait_for_turn(ours, Place(address, preferred=False, opened_s=0.0))

    async def fail() -> None:
        nonlocal refused
        try:
            await turn_of("198.51.100.1")
        except LinkError:
            refused += 1

    start_s = trio.current_time()
    async with trio.open_nursery() as nursery:
        for _ in range(10_000):
            nursery.start_soon(fail)
        await turn_of("192.0.2.7")
        assert trio.current_time() == start_s
    # 100 are served at once, and 20 a second for the second that one waits at most.
    assert refused == pytest.approx(10_000 - 120, abs=1)


async def test_the_peer_gets_his_turn_beside_a_flood_from_his_own_address(autojump_clock: MockClock) -> None:
    unproven = Unproven()
    unproven.proven("192.0.2.7")
    ours, _ = trio.testing.memory_stream_pair()
    turns = 0

    async def come(handshake_s: float) -> None:
        with contextlib.suppress(LinkError), unproven.place("192.0.2.7", lambda: None) as place:
            await unproven.wait_for_turn(ours, place)
            if not handshake_s:
                nonlocal turns
                turns += 1
            await trio.sleep(handshake_s)

    async def flood() -> None:
        while True:
            nursery.start_soon(come, 10.0)
            await trio.sleep(1 / 40)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(flood)
        await trio.sleep(60)  # the budget at once is spent
        for number in range(60):
            nursery.start_soon(come, 0.0)
            await trio.sleep(5.003 + 0.0007 * number)
        nursery.cancel_scope.cancel()
    assert turns >= 10


async def test_the_log_of_strangers_is_bounded_and_says_what_it_left_out(autojump_clock: MockClock) -> None:
    log = FailureLog()
    with structlog.testing.capture_logs() as lines:
        for number in range(10_000):
            address = f"198.51.100.{number % 200}"
            log.write(LinkFailure(LinkError("no hello"), proven=False, address=address))
        await trio.sleep(60)
        log.write(LinkFailure(LinkError("no hello"), proven=False, address="198.51.100.1"))
        log.write(LinkFailure(LinkError("peer is gone"), proven=True))
    assert len(lines) <= 22
    assert sum(line.get("not_logged", 0) for line in lines) + len(lines) == 10_002
    assert lines[-1]["event"] == "link.lost"


async def test_the_link_comes_back_after_a_cut(alice_files: Any, bob_files: Any) -> None:
    async with alice_serving(alice_files) as (alice, port), bob_calling(bob_files, port) as bob:
        for _ in range(3):
            at_alice, at_bob = await alice.session(), await bob.session()
            await at_alice.send(m.BlockDiscarded(1, "hello"))
            assert await at_bob.receive() == m.BlockDiscarded(1, "hello")
            await trio.aclose_forcefully(at_bob._frames.stream)
            assert (await alice.failure()).proven
            assert (await bob.failure()).proven


async def test_bob_waits_for_an_alice_that_starts_later(alice_files: Any, bob_files: Any) -> None:
    async with alice_serving(alice_files) as (_, port):
        pass
    async with bob_calling(bob_files, port) as bob:
        assert "does not answer" in str((await bob.failure()).error)
        alice = Site()
        async with trio.open_nursery() as nursery:
            await nursery.start(
                serve_peer, local_end("alice"), transport(alice_files, "kme-bob", port), alice.handle
            )
            with trio.fail_after(60):
                await bob.session()
            nursery.cancel_scope.cancel()


async def test_a_newer_session_replaces_a_half_open_one(alice_files: Any, bob_files: Any) -> None:
    async with alice_serving(alice_files) as (alice, port), bob_calling(bob_files, port) as first:
        await alice.session()
        old = await first.session()
        async with bob_calling(bob_files, port) as second:
            at_alice, at_bob = await alice.session(), await second.session()
            failure = await alice.failure()
            assert (failure.proven, str(failure.error)) == (True, "replaced by a newer session")
            await at_alice.send(m.BlockDiscarded(1, "to the newer"))
            assert await at_bob.receive() == m.BlockDiscarded(1, "to the newer")
            with pytest.raises(trio.WouldBlock):
                old._inbox.receive_nowait()


async def test_a_key_store_that_refuses_a_read_of_the_hello_is_told_and_asked_again(
    autojump_clock: MockClock,
) -> None:
    secrets = MemoryPads("bob")
    refusing: Any = MemoryPads("bob")
    failures: list[LinkFailure] = []

    class Way:
        def check(self) -> None:
            pass

        async def connect(self) -> trio.abc.Stream:
            return trio.testing.memory_stream_pair()[0]

    def refuse() -> Any:
        raise StoreError("canceling statement due to statement timeout")

    way: Any = Way()
    for name in ("session_root", "hash_keys"):
        setattr(refusing, name, refuse)
    for end in (local_end("bob", secrets=secrets, standing=refuse), local_end("bob", secrets=refusing)):
        with trio.move_on_after(2 * FIRST_PAUSE_S + 1):
            await connect_to_peer(end, way, Site().handle, on_failure=failures.append)
    assert len(failures) >= 4
    assert all("statement timeout" in str(failure.error) for failure in failures)


async def test_an_error_of_the_node_is_not_swallowed(alice_files: Any, bob_files: Any) -> None:
    async def broken(session: Session) -> None:
        raise ZeroDivisionError

    with pytest.RaisesGroup(ZeroDivisionError, flatten_subgroups=True):
        async with trio.open_nursery() as nursery:
            port = await nursery.start(
                serve_peer, local_end("alice"), transport(alice_files, "kme-bob"), broken
            )
            await connect_to_peer(local_end("bob"), transport(bob_files, "kme-alice", port), Site().handle)


async def test_a_link_error_from_within_the_nodes_nurseries_only_ends_the_session(
    alice_files: Any, bob_files: Any
) -> None:
    async def fails(session: Session) -> None:
        async def inner() -> None:
            raise LinkError("from deep inside")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(inner)
            nursery.start_soon(trio.sleep_forever)

    site = Site()
    async with alice_serving(alice_files) as (alice, port), trio.open_nursery() as nursery:
        call: Callable[..., Awaitable[None]] = partial(connect_to_peer, on_failure=site.on_failure)
        nursery.start_soon(call, local_end("bob"), transport(bob_files, "kme-alice", port), fails)
        ended_s: list[float] = []
        for _ in range(3):
            await alice.session()
            failure = await site.failure()
            assert (failure.proven, str(failure.error)) == (True, "from deep inside")
            ended_s.append(trio.current_time())
        assert ended_s[2] - ended_s[1] >= 2 * FIRST_PAUSE_S  # sessions that end at once become rarer
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("address", ["nowhere", ":1", "h:", "h:-1", "h:99999", "h:x", "h..x:1", ""])
def test_an_impossible_address_is_a_config_error(address: str, bob_files: Any) -> None:
    with pytest.raises(ConfigError, match=r"peer\.address"):
        TlsTransport(address, bob_files, "kme-alice").check()


def test_unusable_files_are_a_config_error(bob_files: Any, alice_files: Any, tmp_path: Path) -> None:
    missing = type(bob_files)(ca=bob_files.ca, certificate=tmp_path / "none.pem", key=bob_files.key)
    mixed = type(bob_files)(ca=bob_files.ca, certificate=bob_files.certificate, key=alice_files.key)
    for files in (missing, mixed):
        with pytest.raises(ConfigError, match=r"peer\.tls"):
            transport(files, "kme-alice", 1).check()


async def test_a_port_in_use_is_said_and_tried_again(
    alice_files: Any, bob_files: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "LONGEST_PAUSE_S", 0.05)
    site = Site()
    async with trio.open_nursery() as nursery:
        with trio.fail_after(60):
            async with alice_serving(alice_files) as (_, port):
                serve = partial(serve_peer, on_failure=site.on_failure)
                nursery.start_soon(
                    serve, local_end("alice"), transport(alice_files, "kme-bob", port), site.handle
                )
                failure = await site.failure()
                assert isinstance(failure.error, LinkError)
                assert f"peer.address: cannot listen on 127.0.0.1:{port}: " in str(failure.error)
            async with bob_calling(bob_files, port):  # the port is free now
                await site.session()
        nursery.cancel_scope.cancel()


async def test_renewed_files_serve_the_next_connection_and_end_a_session_only_if_they_do_not_admit_its_peer(
    authority: trustme.CA, alice_files: Any, bob_files: Any, tmp_path: Path
) -> None:
    at_alice = transport(alice_files, "kme-bob")
    (tmp_path / "new").mkdir()
    renewed = trustme.CA()
    new_alice = tls_files(tmp_path / "new", renewed, "kme-alice")
    new_bob = tls_files(tmp_path / "new", renewed, "kme-bob")
    alice = Site()
    async with trio.open_nursery() as nursery:
        with trio.fail_after(60):
            serve = partial(serve_peer, on_failure=alice.on_failure)
            port = await nursery.start(serve, local_end("alice"), at_alice, alice.handle)
            async with bob_calling(bob_files, port) as bob:
                first, at_bob = await alice.session(), await bob.session()
                alice_files.certificate.write_text("")  # what lies on the disk changes nothing by itself
                both = tmp_path / "both.pem"
                both.write_bytes(b"".join(files.ca.read_bytes() for files in (alice_files, new_alice)))
                at_alice.renew(link_contexts(msgspec.structs.replace(new_alice, ca=both)), frozenset())
                await first.send(m.BlockDiscarded(1, "still here"))
                assert await at_bob.receive() == m.BlockDiscarded(1, "still here")
                at_alice.renew(link_contexts(new_alice), frozenset())
                assert isinstance((await bob.failure()).error, LinkError)
                async with bob_calling(bob_files, port) as stranger:
                    assert isinstance((await stranger.failure()).error, PeerRefused)
                async with bob_calling(new_bob, port) as renewed_bob:
                    await renewed_bob.session()
        nursery.cancel_scope.cancel()


def test_identities_come_from_the_alternative_name_first(authority: trustme.CA) -> None:
    def identities(*names: str, common_name: str | None = None) -> frozenset[str]:
        issued = authority.issue_cert(*names, common_name=common_name)
        return certificate_identities(ssl.PEM_cert_to_DER_cert(issued.cert_chain_pems[0].bytes().decode()))

    assert identities("kme-a", common_name="kme-b") == {"kme-a"}
    assert identities(common_name="kme-b") == {"kme-b"}
    assert identities("10.0.0.1", common_name="kme-b") == {"kme-b"}
    with pytest.raises(PeerRefused, match="cannot be read"):
        certificate_identities(b"no certificate")


def test_the_pool_does_not_show_in_the_local_end() -> None:
    local = replace(local_end("alice"), secrets=MemoryPads("alice", root=b"S3CRET"))
    assert "S3CRET" not in repr(local)
