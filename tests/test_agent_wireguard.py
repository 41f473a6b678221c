"""The agent's WireGuard tunnel, both ends in one process, over the real wireguard-go."""

import base64
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from wireguard_support import Site, missing, new_mark, preshared_key, sites

from qnode.agent.tunnel import InUse, TunnelKey
from qnode.agent.tunnels import wireguard_device
from qnode.agent.tunnels.wireguard import WireGuardConfig, WireGuardTunnel
from qnode.agent.tunnels.wireguard_device import NO_KEY, WireGuardDevice, read_dump
from qnode.config.reading import convert
from qnode.errors import ConfigError, TunnelError

PUBLIC_KEY = base64.b64encode(bytes(range(32))).decode()
REASON = missing() if "QNODE_TUNNELS" in os.environ else "QNODE_TUNNELS is not set (make tunnels)"
real = pytest.mark.skipif(REASON is not None, reason=REASON or "")


@pytest.fixture
def both(tmp_path: Path) -> Iterator[tuple[Site, Site]]:
    with sites(new_mark(), tmp_path) as pair:
        yield pair


def new_key(name: str) -> TunnelKey:
    return TunnelKey(name, secrets.token_bytes(32))


@asynccontextmanager
async def opened(
    alice: Site, bob: Site, **settings: Any
) -> AsyncIterator[tuple[WireGuardTunnel, WireGuardTunnel]]:
    async with (
        alice.tunnel("initiator", **settings).open(first_key_required=True) as initiator,
        bob.tunnel("responder", **settings).open(first_key_required=True) as responder,
    ):
        yield initiator, responder


async def activated(initiator: WireGuardTunnel, responder: WireGuardTunnel, key: TunnelKey) -> None:
    """Do the first half of a change."""
    for tunnel in (responder, initiator):
        await tunnel.prepare()
    for tunnel in (responder, initiator):
        await tunnel.load(key)
    for tunnel in (responder, initiator):
        await tunnel.activate(key)


async def changed(initiator: WireGuardTunnel, responder: WireGuardTunnel, key: TunnelKey) -> None:
    """Do a whole change, as two agents do it."""
    await activated(initiator, responder, key)
    for tunnel in (responder, initiator):
        await uses(tunnel, key.key_id)
        await tunnel.retire(key)


async def uses(tunnel: WireGuardTunnel, key_id: str | None) -> InUse:
    """Wait until the encryptor says that it uses a key."""
    with trio.fail_after(60):
        while (said := await tunnel.in_use()) is None or said.key_id != key_id:  # noqa: ASYNC110
            await trio.sleep(0.05)
    return said


async def passes(site: Site, count: int = 1) -> bool:
    """Return whether a packet reaches the other end of the tunnel."""
    said = await trio.to_thread.run_sync(
        lambda: site.run(
            "ping", "-q", "-c", str(count), "-i", "0.2", "-W", "1", site.peer_tunnel_address, check=False
        )
    )
    return " 0% packet loss" in said


# Without a daemon


def dump(*peers: str, private_key: str = PUBLIC_KEY) -> str:
    return "".join(f"{line}\n" for line in (f"{private_key}\t{PUBLIC_KEY}\t51820\toff", *peers))


def test_the_output_of_wg_is_read_with_all_its_forms_of_nothing() -> None:
    state = read_dump(
        dump(f"{PUBLIC_KEY}\t(none)\t(none)\t(none)\t0\t0\t0\toff", private_key="(none)"), PUBLIC_KEY
    )
    assert state is not None
    assert (state.private_key, state.preshared_key) == (NO_KEY, NO_KEY)
    assert (state.endpoint, state.allowed_ips, state.keepalive_s, state.other_peers) == (None, None, 0, 0)
    full = f"{PUBLIC_KEY}\t{PUBLIC_KEY}\t[fd00::1]:51820\t10.0.0.0/8,fd00::/8\t1796052511\t12\t34\t25"
    state = read_dump(dump(full).replace("off", "0xca6c"), PUBLIC_KEY)
    assert state is not None
    assert state.firewall_mark == 0xCA6C
    assert state.preshared_key == bytes(range(32))
    assert (state.endpoint, state.allowed_ips) == ("[fd00::1]:51820", "10.0.0.0/8,fd00::/8")
    assert (state.latest_handshake, state.received_bytes, state.sent_bytes) == (1796052511, 12, 34)
    assert read_dump(dump(), PUBLIC_KEY) is None


@pytest.mark.parametrize(
    "text", ["", "no\n", dump("a\tb"), dump(f"{PUBLIC_KEY}\tAAAA\t(none)\t(none)\t0\t0\t0\toff")]
)
def test_another_output_of_wg_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected|padding"):
        read_dump(text, PUBLIC_KEY)


def test_no_key_shows_in_a_state() -> None:
    state = read_dump(dump(f"{PUBLIC_KEY}\t{PUBLIC_KEY}\t(none)\t(none)\t0\t0\t0\toff"), PUBLIC_KEY)
    assert repr(state) == "PeerState(latest_handshake=0)"


async def test_both_requests_for_a_handshake_reach_wireguard_go_as_one_piece_and_the_first_fills_its_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """wireguard-go forgets what it read beyond the end of a request, and it would stay without its key."""
    monkeypatch.setattr(wireguard_device, "SOCKETS", tmp_path)
    state = read_dump(
        dump(f"{PUBLIC_KEY}\t(none)\t(none)\t10.0.0.0/8\t0\t0\t0\t25").replace("off", "0xca6c", 1), PUBLIC_KEY
    )
    assert state is not None
    pieces = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "wg7.sock"))
        listener.listen()

        def serve() -> None:
            end, _ = listener.accept()
            with end:
                for _ in range(2):
                    pieces.append(end.recv(4096).decode())
                    end.sendall(b"errno=0\n\n")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, serve)
            await WireGuardDevice("wg7", PUBLIC_KEY, 60).force_handshake(state)
    first, second = pieces
    assert len(first) == 4096
    for piece, key in ((first, NO_KEY), (second, state.private_key)):
        assert piece.startswith(f"set=1\nprivate_key={key.hex()}\n")
        assert piece.index("\n\n") == len(piece) - 2  # one request
        assert "\nupdate_only=true\n" in piece
        assert piece.endswith("\npersistent_keepalive_interval=0\npersistent_keepalive_interval=25\n\n")
    mark = next(line for line in first.splitlines() if line.startswith("fwmark="))
    assert int(mark.removeprefix("fwmark=")) == state.firewall_mark


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"interface": "wg0", "peer_public_key": "AAAA"}, "peer_public_key: expected 32 bytes in base64"),
        (
            {"interface": "../wg0", "peer_public_key": PUBLIC_KEY},
            "interface: expected the name of an interface",
        ),
        ({"interface": "wg0", "peer_public_key": PUBLIC_KEY, "renewal_age_s": 170}, "renewal_age_s"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        convert(settings, WireGuardConfig, where="agent.toml")


async def test_a_key_of_another_size_or_of_zeros_is_refused() -> None:
    tunnel = WireGuardTunnel(WireGuardConfig(interface="wg0", peer_public_key=PUBLIC_KEY), "initiator")
    for key in (bytes(31), b"k" * 33, bytes(32)):
        with pytest.raises(TunnelError, match="WireGuard takes 256"):
            await tunnel.load(TunnelKey("k", key))


# On the real daemon


@real
async def test_no_packet_passes_before_the_first_key_and_all_after_it(both: tuple[Site, Site]) -> None:
    alice, bob = both
    async with opened(alice, bob) as (initiator, responder):
        assert not await passes(alice)
        assert await initiator.in_use() is None
        assert await responder.in_use() is None
        before = time.time()
        await changed(initiator, responder, new_key("first"))
        assert await passes(alice, 3)
        said = await initiator.in_use()
        assert said is not None
        assert said.since >= int(before)
        assert "latest handshake at" in said.proof
        assert await initiator.transferred_bytes() > 0


@real
async def test_a_change_under_traffic_loses_no_packet(
    both: tuple[Site, Site],
) -> None:
    alice, bob = both
    async with opened(alice, bob) as (initiator, responder), trio.open_nursery() as nursery:
        await changed(initiator, responder, new_key("0"))
        said: list[str] = []

        async def ping() -> None:
            arguments = ("ping", "-q", "-i", "0.01", "-c", "1000", "-W", "2", alice.peer_tunnel_address)
            said.append(await trio.to_thread.run_sync(lambda: alice.run(*arguments, check=False)))

        nursery.start_soon(ping)
        for number in range(1, 6):
            await trio.sleep(1)
            key = new_key(str(number))
            await changed(initiator, responder, key)
            for site in both:
                assert site.preshared_key() == preshared_key(key.key)
    assert "1000 packets transmitted, 1000 received" in said[0]


@real
async def test_a_new_key_is_not_in_use_before_a_handshake(both: tuple[Site, Site]) -> None:
    alice, bob = both
    async with opened(alice, bob) as (initiator, responder):
        await changed(initiator, responder, new_key("old"))
        key = new_key("new")
        for tunnel in (responder, initiator):
            await tunnel.load(key)
        await responder.activate(key)
        assert bob.preshared_key() != alice.preshared_key()
        for tunnel in (responder, initiator):
            await uses(tunnel, "old")
        with pytest.raises(TunnelError, match="no handshake has used key new"):
            await responder.retire(key)
        assert await passes(alice, 3)
        await initiator.activate(key)
        for tunnel in (responder, initiator):
            await uses(tunnel, "new")


@real
async def test_a_key_that_one_end_only_has_set_is_taken_back(both: tuple[Site, Site]) -> None:
    alice, bob = both
    async with opened(alice, bob) as (initiator, responder):
        old, key = new_key("old"), new_key("new")
        await changed(initiator, responder, old)
        for tunnel in (responder, initiator):
            await tunnel.load(key)
        await responder.activate(key)
        for tunnel in (responder, initiator):
            await tunnel.unload(key)
            await tunnel.unload(key)
        assert bob.preshared_key() == alice.preshared_key() == preshared_key(old.key)
        with pytest.raises(TunnelError, match="not loaded"):
            await initiator.activate(key)
        assert await passes(alice, 3)
        await changed(initiator, responder, new_key("next"))


@real
async def test_a_key_in_use_at_both_ends_is_not_taken_back(both: tuple[Site, Site]) -> None:
    alice, bob = both
    async with opened(alice, bob) as (initiator, responder):
        key = new_key("first")
        await activated(initiator, responder, key)
        for tunnel in (responder, initiator):
            await uses(tunnel, "first")
            with pytest.raises(TunnelError, match="in use at both ends"):
                await tunnel.unload(key)
        assert bob.preshared_key() == alice.preshared_key() == preshared_key(key.key)


@real
async def test_a_key_that_the_other_end_does_not_have_is_never_in_use_and_the_old_one_is_back_after_unloading(
    both: tuple[Site, Site],
) -> None:
    alice, bob = both
    async with opened(alice, bob) as (initiator, responder):
        await changed(initiator, responder, new_key("old"))
        await initiator.load(key := new_key("new"))
        await initiator.activate(key)
        said = await initiator.in_use()
        assert said is not None
        assert said.key_id == "old"
        await initiator.unload(key)
        assert await passes(alice, 3)
        await uses(initiator, "old")


@real
async def test_a_handshake_is_made_under_the_old_key_when_the_latest_is_old(both: tuple[Site, Site]) -> None:
    alice, bob = both
    async with opened(alice, bob, renewal_age_s=1) as (initiator, responder):
        await changed(initiator, responder, new_key("old"))
        await trio.sleep(2)
        before = alice.latest_handshake()
        await responder.prepare()
        assert alice.latest_handshake() == before
        await initiator.prepare()
        assert before < alice.latest_handshake() < time.time()
        await uses(initiator, "old")


@real
async def test_a_preshared_key_that_another_program_wipes_or_restores_is_put_back(
    both: tuple[Site, Site],
) -> None:
    alice, bob = both
    async with opened(alice, bob) as (initiator, responder):
        key = new_key("k")
        await changed(initiator, responder, key)
        alice.apply("setconf", None)
        assert alice.preshared_key() == "(none)"
        await initiator.in_use()
        assert alice.preshared_key() == preshared_key(key.key)
        bob.apply("syncconf", bob.own_preshared_key)
        assert bob.preshared_key() == bob.own_preshared_key
        await responder.prepare()
        assert bob.preshared_key() == preshared_key(key.key)
        await changed(initiator, responder, new_key("next"))


@real
async def test_a_handshake_under_a_key_of_another_program_is_told(both: tuple[Site, Site]) -> None:
    alice, bob = both
    async with opened(alice, bob) as (initiator, responder):
        await changed(initiator, responder, new_key("k"))
        foreign = preshared_key(secrets.token_bytes(32))
        for site in both:
            site.set_preshared_key(foreign)
        async with bob.tunnel("initiator", renewal_age_s=1).open(first_key_required=True) as other:
            await trio.sleep(2)
            await other.prepare()
        for tunnel in (initiator, responder):
            said = await tunnel.in_use()
            assert said is not None
            assert said.key_id is None
        await changed(initiator, responder, new_key("next"))


@real
async def test_a_tunnel_that_is_taken_down_passes_nothing_until_the_next_key(both: tuple[Site, Site]) -> None:
    alice, bob = both
    async with opened(alice, bob) as (initiator, responder):
        await changed(initiator, responder, new_key("k"))
        await initiator.take_down()  # one end is enough
        assert await initiator.in_use() is None
        assert not await passes(alice)
        assert not await passes(bob)
        await responder.take_down()
        assert not await passes(alice)
        await changed(initiator, responder, new_key("next"))
        assert await passes(alice, 3)


@real
async def test_an_agent_that_starts_again_keeps_the_session_and_does_not_claim_its_key(
    both: tuple[Site, Site],
) -> None:
    alice, bob = both
    async with opened(alice, bob) as (initiator, responder):
        await changed(initiator, responder, new_key("k"))
    async with opened(alice, bob) as (initiator, responder):
        for tunnel in (initiator, responder):
            said = await tunnel.in_use()
            assert said is not None
            assert said.key_id is None
        assert await passes(alice, 3)
        await changed(initiator, responder, new_key("next"))


_KILLED = """
import sys, trio
from qnode.agent.tunnels.wireguard_device import WireGuardDevice
async def main():
    device = WireGuardDevice(sys.argv[1], sys.argv[2], 5)
    while True:
        await device.force_handshake(await device.state())
        print("x", flush=True)
trio.run(main)
"""


@real
async def test_an_agent_killed_while_it_forces_handshakes_leaves_the_private_key(
    both: tuple[Site, Site],
) -> None:
    alice, bob = both
    async with opened(alice, bob) as (initiator, responder):
        await changed(initiator, responder, new_key("k"))
        for number in range(10):
            program = [sys.executable, "-c", _KILLED, alice.interface, alice.peer_public_key]
            with subprocess.Popen(program, stdout=subprocess.PIPE) as killed:  # noqa: ASYNC220
                assert killed.stdout is not None
                for _ in range(1 + number):
                    killed.stdout.readline()
                killed.kill()
            assert alice.run("wg", "show", alice.interface, "private-key").strip() == alice.private_key
        await changed(initiator, responder, new_key("next"))
        assert await passes(alice, 3)


@real
async def test_wireguard_that_was_killed_passes_nothing_until_the_next_key(both: tuple[Site, Site]) -> None:
    alice, bob = both
    async with opened(alice, bob) as (initiator, responder):
        await changed(initiator, responder, new_key("k"))
        # As docs/encryptors.md says: with a route behind it that refuses, nothing takes another way in clear.
        bob.run("ip", "route", "add", "default", "via", bob.peer_address)
        bob.run("ip", "route", "add", "unreachable", "10.215.0.0/24", "metric", "4096")
        assert bob.interface in bob.run("ip", "route", "get", alice.tunnel_address)
        bob.kill_daemon()
        with pytest.raises(TunnelError, match=bob.interface):
            await responder.in_use()
        assert bob.run("ip", "route", "get", alice.tunnel_address, check=False) == ""
        bob.start_daemon()
        assert not await passes(bob)
        await changed(initiator, responder, new_key("next"))
        assert await passes(bob, 3)


@real
async def test_settings_that_would_let_traffic_pass_without_a_key_are_refused(
    both: tuple[Site, Site],
) -> None:
    alice, _ = both
    alice.apply("setconf", None)
    with pytest.raises(TunnelError, match="no preshared key, so traffic passes without a QKD key"):
        async with alice.tunnel("initiator").open(first_key_required=True):
            pass
    async with alice.tunnel("initiator").open(first_key_required=False):
        pass
    alice.run("wg", "set", alice.interface, "peer", PUBLIC_KEY, "allowed-ips", "10.9.0.0/24")
    with pytest.raises(TunnelError, match="1 more peers"):
        async with alice.tunnel("initiator").open(first_key_required=False):
            pass


@real
async def test_an_interface_that_is_not_complete_is_refused_with_the_remedy(both: tuple[Site, Site]) -> None:
    alice, bob = both

    async def refused(told: str, site: Site = alice) -> None:
        with pytest.raises(TunnelError, match=told):
            async with site.tunnel("initiator").open(first_key_required=True):
                pass

    peer = ("wg", "set", alice.interface, "peer", alice.peer_public_key)
    alice.run(*peer, "persistent-keepalive", "0")
    await refused("set PersistentKeepalive = 25")
    alice.run(*peer, "allowed-ips", "")
    await refused("set AllowedIPs")
    alice.run(*peer, "remove")
    await refused("has no peer")
    alice.run("wg", "set", alice.interface, "private-key", "/dev/null")
    bob.run("wg", "set", bob.interface, "private-key", "/dev/null")
    await refused("has no private key", bob)
    bob.kill_daemon()
    await refused("failed", bob)


@real
async def test_a_peer_that_was_removed_is_not_made_again(both: tuple[Site, Site]) -> None:
    alice, bob = both
    async with opened(alice, bob) as (initiator, responder):
        await changed(initiator, responder, new_key("k"))
        alice.run("wg", "set", alice.interface, "peer", alice.peer_public_key, "remove")
        for step in (initiator.prepare, initiator.in_use):
            with pytest.raises(TunnelError, match="has no peer"):
                await step()
        assert alice.run("wg", "show", alice.interface, "peers") == ""
