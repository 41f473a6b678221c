"""strongSwan keyed from QKD, on the real daemon: two charons in two network namespaces, ESP in user space."""

import os
import secrets
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
import strongswan_support
import trio

from qnode.agent.tunnel import Role, TunnelKey
from qnode.config.reading import convert
from qnode.errors import ConfigError, TunnelError

pytest.importorskip("vici")
from qnode.agent.tunnels.strongswan import StrongSwanTunnel
from qnode.agent.tunnels.strongswan_config import StrongSwanConfig
from qnode.agent.tunnels.strongswan_vici import Secret

ASKED = "QNODE_TUNNELS" in os.environ
MISSING = strongswan_support.missing() if ASKED else "QNODE_TUNNELS is not set (make tunnels)"
DAEMON = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))
PATIENCE_S = 120.0

# Counts packets on the cable whose addresses are inside the tunnel; ends with its standard input.
_WATCH = """
import select, socket, sys
inside = {socket.inet_aton(text) for text in sys.argv[1:]}
cable = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0003))
cable.bind(("cable", 0x0003))
print("ready", flush=True)
clear = 0
while True:
    ready, _, _ = select.select([cable, sys.stdin], [], [])
    if cable in ready:
        packet = cable.recv(65536)
        clear += packet[0] >> 4 == 4 and (packet[12:16] in inside or packet[16:20] in inside)
    elif sys.stdin in ready:
        break
print(clear)
"""


def new_key() -> TunnelKey:
    return TunnelKey(str(uuid.uuid4()), secrets.token_bytes(32))


def config_of(site: strongswan_support.Site, **changed: Any) -> StrongSwanConfig:
    return StrongSwanConfig(**{"connection": site.connection, "socket": site.socket, **changed})


@dataclass
class Pair:
    """Both ends of one tunnel; a change of key as two agents do it."""

    sites: tuple[strongswan_support.Site, strongswan_support.Site]
    initiator: StrongSwanTunnel
    responder: StrongSwanTunnel

    async def change(self, key: TunnelKey | None = None) -> TunnelKey:
        key = key or new_key()
        initiator, responder = self.initiator, self.responder
        await initiator.prepare()
        await responder.prepare()
        await responder.load(key)
        await initiator.load(key)
        await responder.activate(key)
        await initiator.activate(key)
        assert await self.in_use() == {key.key_id}
        await responder.retire(key)
        await initiator.retire(key)
        return key

    async def in_use(self) -> set[str | None]:
        told = [await self.responder.in_use(), await self.initiator.in_use()]
        return {one.key_id if one is not None else "no tunnel" for one in told}

    def ike_sas(self) -> list[int]:
        return [site.swanctl("--list-sas").count("ESTABLISHED") for site in self.sites]


@pytest.fixture(scope="module")
def sites(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[strongswan_support.Site, strongswan_support.Site]]:
    # What finds no tunnel would pass in clear: what a test finds stopped was stopped by charon.
    folder = tmp_path_factory.mktemp("sites")
    with strongswan_support.sites("ssw-test", folder, routed_in_clear=True) as pair:
        yield pair


@asynccontextmanager
async def opened(
    sites: tuple[strongswan_support.Site, strongswan_support.Site], **changed: Any
) -> AsyncIterator[Pair]:
    ends = []
    async with AsyncExitStack() as stack:
        roles: tuple[Role, Role] = ("initiator", "responder")
        for site, role in zip(sites, roles, strict=True):
            tunnel = StrongSwanTunnel(config_of(site, **changed), role)
            ends.append(await stack.enter_async_context(tunnel.open(first_key_required=True)))
        yield Pair(sites, *ends)


@pytest.fixture
async def pair(sites: tuple[strongswan_support.Site, strongswan_support.Site]) -> AsyncIterator[Pair]:
    with trio.fail_after(PATIENCE_S):
        async with opened(sites) as found:
            yield found
            await found.initiator.take_down()
            await found.responder.take_down()


def pings(site: strongswan_support.Site, count: int) -> int:
    """Send pings through the tunnel, 100 a second, and return how many came back."""
    said = site.run(
        *("ping", "-q", "-i", "0.01", "-W", "1", "-c", str(count)),
        *("-I", site.tunnel_address, site.peer_tunnel_address),
        check=False,
    )
    return int(said.partition(" received")[0].rpartition(" ")[2])


class Cable:
    """Watches the cable for packets that are not inside the tunnel."""

    def __init__(self, site: strongswan_support.Site) -> None:
        self._process = subprocess.Popen(
            ["ip", "netns", "exec", site.namespace, sys.executable, "-c", _WATCH, *site.tunnel_addresses],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    def packets_in_clear(self) -> int:
        said, _ = self._process.communicate()
        return int(said)


@DAEMON
async def test_no_packet_passes_before_the_first_key_nor_after_the_tunnel_was_taken_down(pair: Pair) -> None:
    alice, bob = pair.sites
    cable = Cable(alice)
    assert pings(alice, 5) == 0
    assert pings(bob, 5) == 0
    await pair.change()
    assert pings(alice, 20) == 20
    await pair.initiator.take_down()
    await pair.responder.take_down()
    assert pings(alice, 5) == 0
    assert pings(bob, 5) == 0
    assert await pair.in_use() == {"no tunnel"}
    await pair.change()
    assert pings(alice, 20) == 20
    assert cable.packets_in_clear() == 0


@DAEMON
async def test_packets_would_pass_in_clear_without_the_drop_policy(
    sites: tuple[strongswan_support.Site, strongswan_support.Site],
) -> None:
    # The control of the test above: the same sites, the drop policies left to an operator who has none.
    alice = sites[0]
    for site in sites:
        site.kill_daemon()
        site.start_daemon()
    cable = Cable(alice)
    async with opened(sites, dropped_by="operator"):
        assert pings(alice, 5) == 5
    assert cable.packets_in_clear() >= 10


@DAEMON
async def test_a_change_of_key_loses_no_packet_and_leaves_one_ike_sa_and_no_ppk(pair: Pair) -> None:
    await pair.change()
    received: list[int] = []
    async with trio.open_nursery() as nursery:

        async def traffic(site: strongswan_support.Site) -> None:
            received.append(await trio.to_thread.run_sync(pings, site, 300))

        for site in pair.sites:
            nursery.start_soon(traffic, site)
        used = [await pair.change() for _ in range(6)]
    assert received == [300, 300]
    assert pair.ike_sas() == [1, 1]
    for tunnel in (pair.initiator, pair.responder):
        told = await tunnel.in_use()
        assert told is not None
        assert told.key_id == used[-1].key_id
        assert "ESTABLISHED, PPK, CHILD_SA net" in told.proof
        assert abs(told.since - time.time()) < PATIENCE_S
    answer = await pair.responder.in_use()
    assert answer is not None
    assert f"using PPK for PPK_ID '{used[-1].key_id}'" in answer.proof
    for site in pair.sites:
        for key in used:
            assert f"unloaded shared key with id 'qnode/{key.key_id}'" in site.log()


@DAEMON
async def test_a_ppk_that_differs_is_refused_in_plain_words_and_the_key_in_use_stays(pair: Pair) -> None:
    before = await pair.change()
    key = new_key()
    await pair.responder.load(TunnelKey(key.key_id, secrets.token_bytes(32)))
    await pair.initiator.load(key)
    with pytest.raises(TunnelError, match="the other end holds another PPK under this key_ID, or none"):
        await pair.responder.activate(key)
    with pytest.raises(TunnelError, match="has set up no IKE_SA with a PPK"):
        await pair.initiator.activate(key)
    await pair.responder.unload(key)
    await pair.initiator.unload(key)
    assert await pair.in_use() == {before.key_id}
    assert pings(pair.sites[0], 20) == 20
    await pair.change()


@DAEMON
async def test_a_key_that_only_one_end_activates_is_gone_after_unload_at_both(pair: Pair) -> None:
    before = await pair.change()
    key = new_key()
    await pair.responder.load(key)
    await pair.initiator.load(key)
    await pair.responder.activate(key)
    assert await pair.in_use() == {before.key_id}
    assert pings(pair.sites[0], 20) == 20  # one direction under each key
    await pair.responder.unload(key)
    await pair.initiator.unload(key)
    assert await pair.in_use() == {before.key_id}
    assert pings(pair.sites[0], 20) == 20
    with pytest.raises(TunnelError, match="is not loaded"):
        await pair.initiator.activate(key)
    with pytest.raises(TunnelError, match="nothing was removed"):
        await pair.initiator.retire(key)


@DAEMON
async def test_a_key_in_use_both_ways_is_not_taken_back(pair: Pair) -> None:
    await pair.change()
    key = new_key()
    await pair.responder.load(key)
    await pair.initiator.load(key)
    await pair.responder.activate(key)
    await pair.initiator.activate(key)
    for tunnel in (pair.responder, pair.initiator):
        with pytest.raises(TunnelError, match="in use both ways already, so it stays"):
            await tunnel.unload(key)
    assert await pair.in_use() == {key.key_id}
    assert pings(pair.sites[0], 20) == 20
    await pair.change()
    assert pair.ike_sas() == [1, 1]


@DAEMON
@pytest.mark.parametrize("end", [0, 1])
async def test_charon_killed_and_started_again_gets_a_new_key(pair: Pair, end: int) -> None:
    await pair.change()
    tunnel = (pair.initiator, pair.responder)[end]
    pair.sites[end].kill_daemon()
    with pytest.raises(TunnelError, match="is strongSwan running"):
        await tunnel.in_use()
    pair.sites[end].start_daemon()
    assert await tunnel.in_use() is None
    await pair.change()
    assert pair.ike_sas() == [1, 1]
    assert pings(pair.sites[0], 20) == 20


@DAEMON
async def test_no_packet_passes_in_clear_while_charon_is_dead_and_the_operators_route_is_unreachable(
    pair: Pair,
) -> None:
    await pair.change()
    alice = pair.sites[0]
    alice.run("ip", "route", "replace", "unreachable", alice.peer_tunnel_address)
    cable = Cable(alice)
    alice.kill_daemon()
    assert pings(alice, 5) == 0
    alice.start_daemon()
    assert pings(alice, 5) == 0
    await pair.change()
    assert pings(alice, 20) == 20
    assert cable.packets_in_clear() == 0
    alice.route_in_clear()


@DAEMON
async def test_a_reload_by_the_operator_does_no_harm(pair: Pair) -> None:
    alice, bob = pair.sites
    before = await pair.change()
    for site in (bob, alice):  # in the middle of a change
        key = new_key()
        await pair.responder.load(key)
        await pair.initiator.load(key)
        site.load_operators_file()
        assert "qnode" not in site.swanctl("--list-conns", "--raw")
        if site is alice:
            with pytest.raises(TunnelError, match="or the agent's connection is not loaded there"):
                await pair.responder.activate(key)
            await pair.responder.unload(key)
            await pair.initiator.unload(key)
            assert await pair.in_use() == {before.key_id}
        else:
            await pair.responder.activate(key)
            await pair.initiator.activate(key)
            assert await pair.in_use() == {key.key_id}
            await pair.responder.retire(key)
            await pair.initiator.retire(key)
            before = key
    for site in pair.sites:
        site.load_operators_file()
    cable = Cable(alice)
    assert pings(alice, 20) == 20
    await pair.change()
    assert cable.packets_in_clear() == 0


@DAEMON
async def test_a_restarted_agent_finds_the_tunnel_as_it_was_under_a_key_that_it_does_not_know(
    pair: Pair,
) -> None:
    await pair.change()
    async with opened(pair.sites) as again:
        assert await again.in_use() == {None}
        assert pings(pair.sites[0], 20) == 20
        key = await again.change()
        assert await again.in_use() == {key.key_id}
    assert pair.ike_sas() == [1, 1]


@DAEMON
async def test_an_older_ike_sa_that_was_left_over_is_ended_at_the_next_pass(pair: Pair) -> None:
    await pair.change()
    key = new_key()
    await pair.responder.load(key)
    await pair.initiator.load(key)
    await pair.responder.activate(key)
    await pair.initiator.activate(key)
    assert pair.ike_sas() == [2, 2]
    await pair.initiator.prepare()
    assert pair.ike_sas() == [1, 1]
    assert await pair.in_use() == {key.key_id}
    assert pings(pair.sites[0], 20) == 20


@DAEMON
async def test_what_charon_would_rekey_in_the_middle_of_a_change_is_rekeyed_before_it(
    sites: tuple[strongswan_support.Site, strongswan_support.Site],
) -> None:
    child = {
        **sites[0].connection["children"]["net"],
        "rekey_time": "9s",
        "life_time": "1h",
        "rand_time": "0",
    }
    connection = {**sites[0].connection, "children": {"net": child}}
    tunnel = StrongSwanTunnel(config_of(sites[0], connection=connection), "initiator")
    with trio.fail_after(PATIENCE_S):
        async with opened(sites) as pair, tunnel.open(first_key_required=True):
            pair.initiator = tunnel
            await pair.change()
            before = sites[0].log().count("inbound CHILD_SA net")
            received = await with_pings(sites[0], 100, tunnel.prepare)
            assert received == 100
            # Both CHILD_SAs, whichever end set them up.
            assert sites[0].log().count("inbound CHILD_SA net") == before + 2
            await pair.change()


async def with_pings(site: strongswan_support.Site, count: int, work: Callable[[], Awaitable[None]]) -> int:
    received: list[int] = []

    async def traffic() -> None:
        received.append(await trio.to_thread.run_sync(pings, site, count))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(traffic)
        await work()
    return received[0]


@DAEMON
async def test_rekeying_renews_no_ppk_and_an_ike_sa_that_was_rekeyed_by_hand_has_no_known_key(
    pair: Pair,
) -> None:
    # charon holds no PPK at this time, yet rekeying works, and says PPK: it is the old one's doing.
    await pair.change()
    alice = pair.sites[0]
    alice.swanctl("--rekey", "--child", "net")
    alice.swanctl("--rekey", "--ike", "qnode")
    assert await pair.in_use() == {None}
    assert "PPK" in alice.swanctl("--list-sas")
    assert pings(alice, 20) == 20
    await pair.change()


@DAEMON
async def test_no_ike_sa_comes_up_without_the_agents(pair: Pair) -> None:
    await pair.change()
    for site in pair.sites:
        site.swanctl("--terminate", "--ike", "qnode", "--force", "--timeout", "1", check=False)
    for site in pair.sites:
        said = site.swanctl("--initiate", "--child", "net", check=False)
        assert "PPK required but" in said
    assert await pair.in_use() == {"no tunnel"}


@DAEMON
async def test_settings_that_let_traffic_around_the_tunnel_are_refused(pair: Pair) -> None:
    alice = pair.sites[0]
    operators = (alice.folder / "swanctl.conf").read_text()
    network = f"local_ts = {alice.tunnel_address}/32\n remote_ts = 10.216.0.0/16\n"
    for child, message in (
        (f"mode = pass\n start_action = trap\n {network}", "lets traffic of the tunnel pass in clear"),
        (network, "has a child other for traffic of the tunnel"),
    ):
        changed = f"connections {{\n plain {{\n children {{\n other {{\n {child} }}\n }}\n }}\n }}\n"
        (alice.folder / "swanctl.conf").write_text(operators + changed)
        alice.load_operators_file()
        with pytest.raises(TunnelError, match=message):
            await pair.initiator.prepare()
        (alice.folder / "swanctl.conf").write_text(operators)
        alice.load_operators_file()
        await pair.initiator.prepare()


@DAEMON
async def test_the_bytes_of_the_tunnel_are_counted(pair: Pair) -> None:
    await pair.change()
    before = await pair.initiator.transferred_bytes()
    assert pings(pair.sites[0], 20) == 20
    assert await pair.initiator.transferred_bytes() - before >= 40 * 84


@DAEMON
async def test_a_charon_that_does_not_answer_is_one_error_and_the_tunnel_goes_on_afterwards(
    sites: tuple[strongswan_support.Site, strongswan_support.Site],
) -> None:
    async with opened(sites, answer_timeout_s=1.0) as pair:
        await pair.change()
        os.kill(sites[0].daemon_pid, signal.SIGSTOP)
        with pytest.raises(TunnelError, match="did not answer"):
            await pair.initiator.in_use()
        with trio.move_on_after(0.1):
            await pair.initiator.prepare()
        os.kill(sites[0].daemon_pid, signal.SIGCONT)
        await pair.change()
        os.kill(sites[0].daemon_pid, signal.SIGSTOP)
        key = new_key()
        await pair.responder.load(key)
        with pytest.raises(TunnelError, match="the other end's charon did not answer"):
            await pair.responder.activate(key)
        os.kill(sites[0].daemon_pid, signal.SIGCONT)
        await pair.responder.unload(key)
        await pair.change()


@DAEMON
async def test_a_key_that_charon_cannot_use_is_refused(pair: Pair) -> None:
    with pytest.raises(TunnelError, match="has 128 bits, expected 256"):
        await pair.initiator.load(TunnelKey("key", bytes(16)))
    with pytest.raises(TunnelError, match="expected letters, digits and - only"):
        await pair.initiator.load(TunnelKey("*", bytes(32)))


@DAEMON
async def test_no_key_reaches_the_log_of_charon(pair: Pair) -> None:
    key = await pair.change()
    for site in pair.sites:
        assert key.key_id in site.log()
        assert key.key.hex() not in site.log().lower().replace(" ", "")


async def test_a_charon_that_is_not_there_is_named_with_its_socket(tmp_path: Path) -> None:
    tunnel = StrongSwanTunnel(StrongSwanConfig(connection=CONNECTION, socket=tmp_path / "vici"), "initiator")
    with pytest.raises(TunnelError, match=f"{tmp_path}/vici.*No such file.*is strongSwan running"):
        async with tunnel.open(first_key_required=True):
            pass


def test_a_secret_does_not_show_itself() -> None:
    assert repr(Secret(b"secret")) == "Secret(48 bits)"


CONNECTION = {"children": {"net": {"local_ts": "10.0.1.0/24", "remote_ts": "10.0.2.0/24, 10.0.3.0/24"}}}


@pytest.mark.parametrize(
    ("connection", "message"),
    [
        ({**CONNECTION, "ppk_id": "x"}, "connection.ppk_id: the agent sets it"),
        ({**CONNECTION, "ppk_required": False}, "connection.ppk_required: must be yes"),
        ({**CONNECTION, "reauth_time": "1h"}, "connection.reauth_time: must be 0"),
        ({**CONNECTION, "unique": "replace"}, "connection.unique: must be no"),
        ({**CONNECTION, "local": {"secret": "x"}}, "connection.local.secret: secrets do not belong"),
        ({**CONNECTION, "local": {"certs": "alice.pem"}}, "connection.local.certs: expected absolute paths"),
        ({**CONNECTION, "dpd_delay": 1.5}, "connection.dpd_delay: expected a text"),
        ({}, "connection.children: expected at least one table"),
        ({"children": {"net": 1}}, "connection.children.net: expected a table"),
        ({"children": {"net": {"local_ts": "10.0.1.0/24"}}}, "connection.children.net.remote_ts: is missing"),
        (
            {"children": {"net": {"local_ts": "dynamic", "remote_ts": "10.0.2.0/24"}}},
            "connection.children.net.local_ts: expected networks, got 'dynamic'",
        ),
        (
            {"children": {"net": {**CONNECTION["children"]["net"], "start_action": "trap"}}},
            "connection.children.net.start_action: must be none",
        ),
        (
            {"children": {"net": {**CONNECTION["children"]["net"], "reqid": 1}}},
            "connection.children.net.reqid: the agent sets it",
        ),
        (
            {"children": {"net-in": CONNECTION["children"]["net"]}},
            "connection.children.net-in: a name that ends with -in",
        ),
        (
            {"children": {"net": {**CONNECTION["children"]["net"], "mode": "pass"}}},
            "connection.children.net.mode: expected a mode that protects traffic",
        ),
    ],
)
def test_a_connection_that_an_agent_cannot_run_is_refused_by_name(
    connection: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        convert({"connection": connection}, StrongSwanConfig, where="agent.toml")


def test_the_connection_is_written_as_in_swanctl_conf(tmp_path: Path) -> None:
    certificate = tmp_path / "alice.pem"
    certificate.write_bytes(b"certificate")
    config = msgspec.convert(
        {
            "connection": {
                **CONNECTION,
                "mobike": False,
                "local": {"certs": str(certificate)},
                "keyingtries": 3,
            }
        },
        StrongSwanConfig,
    )
    made = config.message("key", in_user_space=True)["qnode"]
    networks = {"local_ts": ["10.0.1.0/24"], "remote_ts": ["10.0.2.0/24", "10.0.3.0/24"]}
    assert list(made["children"]) == ["net-in", "net", "net-admit"]
    assert made["children"]["net"] == networks
    own_id = made["children"]["net-in"]["reqid"]
    assert made["children"]["net-in"] == {**networks, "policies": "no", "reqid": own_id}
    assert made["children"]["net-admit"] == {**networks, "reqid": own_id}
    assert config.message()["qnode"]["children"] == {
        "net-in": {**networks, "policies": "no", "reqid": own_id},
        "net": {**networks, "reqid": own_id},
    }
    assert made["local"] == {"certs": [b"certificate"]}
    assert (made["mobike"], made["keyingtries"]) == ("no", "3")
    assert (made["version"], made["ppk_required"], made["ppk_id"]) == ("2", "yes", "key")
    assert "ppk_id" not in config.message()["qnode"]


def test_networks_that_overlap_are_told_from_those_that_do_not() -> None:
    config = StrongSwanConfig(connection=CONNECTION)
    assert config.overlaps(["10.0.0.0/16"], ["10.0.3.7/32[tcp/80]"])
    assert config.overlaps(["dynamic"], ["10.0.0.0/8"])
    assert not config.overlaps(["10.0.1.0/24"], ["10.0.4.0/24"])
    assert not config.overlaps(["10.0.9.0/24"], ["10.0.2.0/24"])
    assert not config.overlaps(["10.0.1.0/24"], ["2001:db8::/32"])
