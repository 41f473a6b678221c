"""MACsec: what goes to `ip` and what is read from it. The kernel itself is in `tests/kernel_tunnels.py`."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qnode.agent.tunnel import TunnelKey
from qnode.agent.tunnels import macsec
from qnode.agent.tunnels.macsec import MacsecConfig, MacsecTunnel
from qnode.agent.tunnels.macsec_associations import Orders, key_identifier, read_interface
from qnode.agent.tunnels.programs import output_of
from qnode.errors import TunnelError

ADDRESSES = ("02:00:00:00:00:0a", "02:00:00:00:00:0b")
FIRST = TunnelKey("00112233-4455-6677-8899-aabbccddeeff", bytes(range(32)))
SECOND = TunnelKey("ffeeddcc-bbaa-9988-7766-554433221100", bytes(range(32, 64)))
THIRD = TunnelKey("01234567-89ab-cdef-0123-456789abcdef", bytes(range(64, 96)))

# `ip -s -j macsec show macsec0` of iproute2 6.1.0 on the kernel 6.1.0-57 of Debian, amid a change of key.
RECORDED = (
    '[{"ifindex":3,"ifname":"macsec0","protect":true,"validate":"strict","sc":true,"sa":true,"encrypt":true,'
    '"send_sci":true,"end_station":false,"scb":false,"replay":true,"window":64,"cipher_suite":"GCM-AES-256",'
    '"icv_length":16,"sci":"0x2000000000a0001","encoding_sa":1,"OutPktsUntagged":0,"InPktsUntagged":0,'
    '"OutPktsTooLong":0,"InPktsNoTag":7,"InPktsBadTag":0,"InPktsUnknownSCI":0,"InPktsNoSCI":0,'
    '"InPktsOverrun":0,"OutPktsProtected":0,"OutPktsEncrypted":91,"OutOctetsProtected":0,'
    '"OutOctetsEncrypted":7598,"sa_list":[{"an":0,"pn":67,"active":true,'
    '"key":"00112233445566778899aabbccddeeff","OutPktsProtected":0,"OutPktsEncrypted":66},{"an":1,"pn":26,'
    '"active":true,"key":"ffeeddccbbaa99887766554433221100","OutPktsProtected":0,"OutPktsEncrypted":25}],'
    '"rx_sc":[{"sci":"0x2000000000b0001","active":true,"InOctetsValidated":0,"InOctetsDecrypted":7598,'
    '"InPktsUnchecked":0,"InPktsDelayed":0,"InPktsOK":91,"InPktsInvalid":0,"InPktsLate":0,'
    '"InPktsNotValid":0,"InPktsNotUsingSA":0,"InPktsUnusedSA":0,"sa_list":[{"an":0,"pn":50,"active":true,'
    '"key":"00112233445566778899aabbccddeeff","InPktsOK":49,"InPktsInvalid":0,"InPktsNotValid":0,'
    '"InPktsNotUsingSA":0,"InPktsUnusedSA":0},{"an":1,"pn":43,"active":true,'
    '"key":"ffeeddccbbaa99887766554433221100","InPktsOK":42,"InPktsInvalid":0,"InPktsNotValid":0,'
    '"InPktsNotUsingSA":0,"InPktsUnusedSA":0}]}],"offload":"off"}]'
)


@dataclasses.dataclass
class Line:
    """One end's MACsec as the kernel has it: it takes orders, and refuses what the kernel refuses."""

    end: int
    cipher: str = "GCM-AES-256"
    encoding: int = 0
    channel: bool = True
    sending: dict[int, dict[str, Any]] = dataclasses.field(default_factory=dict)
    received: dict[int, dict[str, Any]] = dataclasses.field(default_factory=dict)
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)

    def show(self) -> str:
        """Return what `ip -s -j macsec show` prints."""
        channel = {"sci": _sci(1 - self.end), "InOctetsDecrypted": 7, "sa_list": _listed(self.received)}
        interface = {
            **{"ifname": "macsec0", "protect": True, "validate": "strict", "encrypt": True, "replay": True},
            **{"cipher_suite": self.cipher, "sci": _sci(self.end), "encoding_sa": self.encoding},
            **{"OutOctetsEncrypted": 5, "sa_list": _listed(self.sending)},
            **{"rx_sc": [channel] if self.channel else []},
        }
        return json.dumps([interface | self.settings])

    def take(self, order: str) -> None:
        """Carry out one order."""
        peer = f"rx port 1 address {ADDRESSES[1 - self.end]}"
        words = order.replace(f"macsec0 {peer}", "macsec0 rx").split()
        if words[:2] == ["link", "set"]:
            if "encodingsa" in words:
                self.encoding = int(words[-1])
            return
        assert words[0] == "macsec", order
        if words[3:] == ["rx", "on"]:
            self.channel = True
            return
        assert self.channel
        associations, number = {"tx": self.sending, "rx": self.received}[words[3]], int(words[5])
        if words[1] == "add":
            assert number not in associations, f"device or resource busy: {order}"
            key = words[words.index("key") + 1]
            associations[number] = {"pn": 1, "active": True, "key": key, "secret": words[-1], "n": 0}
            associations[number]["numbering"] = words[6 : words.index("on")]
        elif words[1] == "set":
            assert words[6] == "off"
            associations[number]["active"] = False
        else:
            assert words[1] == "del"
            assert not associations[number]["active"], f"device or resource busy: {order}"
            del associations[number]

    def reaches(self, other: "Line") -> bool:
        """Send a packet; return whether the other end validates it."""
        used = self.sending.get(self.encoding)
        if used is None or not used["active"]:
            return False
        used["pn"] += 1
        used["n"] += 1
        held = other.received.get(self.encoding)
        if held is None or not held["active"] or held["secret"] != used["secret"]:
            return False
        assert held["numbering"] == used["numbering"]
        held["n"] += 1
        return True


def _sci(end: int) -> str:
    return f"{int(ADDRESSES[end].replace(':', ''), 16) << 16 | 1:#x}"


def _listed(associations: dict[int, dict[str, Any]]) -> list[dict[str, Any]]:
    shown = ("pn", "active", "key")
    return [
        {"an": an, **{name: sa[name] for name in shown}, "InPktsOK": sa["n"], "OutPktsEncrypted": sa["n"]}
        for an, sa in associations.items()
    ]


def orders_of(line: Line) -> Orders:
    return Orders("macsec0", ADDRESSES[1 - line.end], 1)


def state_of(line: Line) -> Any:
    return read_interface(line.show())


def change(lines: Sequence[Line], key: TunnelKey) -> list[bool]:
    """Change the key in the agents' order; return after each order whether packets pass both ways."""
    passed = []

    def carry_out(line: Line, orders: list[str]) -> None:
        for order in orders:
            line.take(order)
            passed.append(lines[0].reaches(lines[1]) and lines[1].reaches(lines[0]))

    identifier = key_identifier(key.key_id)
    for line in lines:
        carry_out(line, orders_of(line).load(state_of(line), key))
    for line in lines:
        [held] = (sa for sa in state_of(line).associations if sa.key == identifier)
        carry_out(line, orders_of(line).activate(held))
    for line in lines:
        carry_out(line, orders_of(line).retire(state_of(line), identifier))
    return passed


# Reading


def test_what_ip_prints_is_read() -> None:
    interface = read_interface(RECORDED)
    assert interface is not None
    assert (interface.name, interface.cipher, interface.encoding) == ("macsec0", "GCM-AES-256", 1)
    assert interface.sending is not None
    assert (interface.sending.pn, interface.sending.key) == (26, key_identifier(SECOND.key_id))
    assert [(sa.an, sa.n_validated) for sa in interface.received] == [(0, 49), (1, 42)]
    assert interface.octets == 2 * 7598
    assert interface.packet_number_bits == 32


def test_an_interface_without_macsec_and_other_words_are_told_apart() -> None:
    assert read_interface("[]") is None
    with pytest.raises(TunnelError, match="unexpected answer"):
        read_interface("Usage: ip macsec")


def test_the_kernel_names_a_key_by_its_key_id() -> None:
    assert key_identifier("00112233-4455-6677-8899-AABBCCDDEEFF") == "00112233445566778899aabbccddeeff"
    assert len(key_identifier("no UUID")) == 32


# Orders


def test_a_change_takes_the_next_association_number_and_receives_under_all_but_the_one_in_use() -> None:
    interface = read_interface(RECORDED)
    assert interface is not None
    orders = Orders("macsec0", ADDRESSES[1], 1).load(interface, THIRD)
    peer, key = "rx port 1 address 02:00:00:00:00:0b", f"key {key_identifier(THIRD.key_id)} {THIRD.key.hex()}"
    assert orders == [
        f"macsec set macsec0 {peer} sa 0 off",
        f"macsec del macsec0 {peer} sa 0",
        f"macsec add macsec0 {peer} sa 0 pn 1 on {key}",
        f"macsec add macsec0 {peer} sa 2 pn 1 on {key}",
        f"macsec add macsec0 {peer} sa 3 pn 1 on {key}",
        f"macsec add macsec0 tx sa 2 pn 1 on {key}",
    ]


def test_both_ends_agree_on_salt_and_short_identifiers_of_extended_packet_numbers() -> None:
    lines = [Line(end, "GCM-AES-XPN-256") for end in (0, 1)]
    change(lines, FIRST)
    [first], [second] = (line.sending.values() for line in lines)
    assert first["numbering"] == ["xpn", "1", "salt", "00112233445566778899aabb", "ssci", "2"]
    assert second["numbering"] == ["xpn", "1", "salt", "00112233445566778899aabb", "ssci", "1"]
    assert all(line.reaches(other) for line, other in (lines, lines[::-1]))


@given(
    starts=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    responder=st.integers(0, 1),
    n_changes=st.integers(1, 9),
)
def test_packets_pass_both_ways_after_every_single_order_of_every_change(
    starts: tuple[int, int], responder: int, n_changes: int
) -> None:
    lines = [Line(end, encoding=start) for end, start in enumerate(starts)]
    order = [lines[responder], lines[1 - responder]]
    change(order, FIRST)
    for n in range(n_changes):
        key = TunnelKey(f"{n:032x}", bytes([n]) * 32)
        assert all(change(order, key))
    assert all(
        {sa["key"] for sa in (*line.sending.values(), *line.received.values())} == {f"{n:032x}"}
        for line in lines
    )
    assert all(len(line.sending) == len(line.received) == 1 for line in lines)


@given(stands=st.integers(0, 3), started_anew=st.integers(0, 1))
def test_an_end_that_was_made_anew_is_in_step_after_at_most_two_changes(
    stands: int, started_anew: int
) -> None:
    lines = [Line(end, encoding=stands) for end in (0, 1)]
    change(lines, FIRST)
    lines[started_anew] = Line(started_anew)
    passed = [change(lines, key)[-1] for key in (SECOND, THIRD)]
    assert passed[-1]


@given(activated=st.booleans(), start=st.integers(0, 3))
def test_a_key_that_is_unloaded_leaves_the_one_before_in_use(activated: bool, start: int) -> None:
    lines = [Line(end, encoding=start) for end in (0, 1)]
    change(lines, FIRST)
    identifier = key_identifier(SECOND.key_id)
    for line in lines:
        for order in orders_of(line).load(state_of(line), SECOND):
            line.take(order)
    if activated:
        [held] = (sa for sa in state_of(lines[0]).associations if sa.key == identifier)
        for order in orders_of(lines[0]).activate(held):
            lines[0].take(order)
    for line in lines:
        for order in orders_of(line).unload(state_of(line), identifier):
            line.take(order)
            assert lines[0].reaches(lines[1])
            assert lines[1].reaches(lines[0])
        assert {sa["key"] for sa in line.sending.values()} == {key_identifier(FIRST.key_id)}


def test_nothing_is_left_after_take_down() -> None:
    lines = [Line(end) for end in (0, 1)]
    change(lines, FIRST)
    for order in orders_of(lines[0]).take_down(state_of(lines[0])):
        lines[0].take(order)
    assert not lines[0].sending
    assert not lines[0].received


# The tunnel


class Probes:
    """Stands for the socket of the probes: each one is a packet on the line."""

    def __init__(self, line: Line, other: Line) -> None:
        self._ends = line, other

    def __enter__(self) -> "Probes":
        return self

    def __exit__(self, *exc_info: object) -> None:
        pass

    def sendto(self, payload: bytes, address: tuple[object, ...]) -> None:
        assert address[0] == "macsec0"
        self._ends[0].reaches(self._ends[1])


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[Line]:
    """Two ends; the first one is the tunnel's."""
    ends = [Line(end, channel=not end) for end in (1, 0)]
    ends[0].channel, ends[1].channel = False, True

    async def run(command: Sequence[str], *, text: str = "", secret: str = "") -> str:
        assert not any(key.key.hex() in word for key in (FIRST, SECOND) for word in command)
        if list(command) == ["ip", "-s", "-j", "macsec", "show", "macsec0"]:
            return ends[0].show()
        assert list(command) == ["ip", "-batch", "-"]
        for order in text.splitlines():
            ends[0].take(order)
        return ""

    monkeypatch.setattr(macsec, "output_of", run)
    monkeypatch.setattr(macsec, "probe_socket", lambda: Probes(ends[0], ends[1]))
    return ends


def a_tunnel() -> MacsecTunnel:
    return MacsecTunnel(MacsecConfig(interface="macsec0", peer_address=ADDRESSES[0]), "responder")


def peer_has(lines: list[Line], key: TunnelKey, *, activates: bool) -> None:
    for order in orders_of(lines[1]).load(state_of(lines[1]), key):
        lines[1].take(order)
    if activates:
        [held] = (sa for sa in state_of(lines[1]).associations if sa.key == key_identifier(key.key_id))
        for order in orders_of(lines[1]).activate(held):
            lines[1].take(order)


async def test_a_key_is_in_use_only_when_the_peers_packets_were_validated_under_it(lines: list[Line]) -> None:
    async with a_tunnel().open(first_key_required=True) as tunnel:
        await tunnel.load(FIRST)
        peer_has(lines, FIRST, activates=False)
        await tunnel.activate(FIRST)
        assert await tunnel.in_use() is None
        peer_has(lines, FIRST, activates=True)
        lines[1].reaches(lines[0])
        used = await tunnel.in_use()
        assert used is not None
        assert used.key_id == FIRST.key_id
        assert "validated 1 of the peer's" in used.proof
        await tunnel.load(SECOND)
        peer_has(lines, SECOND, activates=False)
        await tunnel.activate(SECOND)
        used = await tunnel.in_use()
        assert used is not None
        assert used.key_id == FIRST.key_id
        assert await tunnel.transferred_bytes() == 12


async def test_a_key_that_was_used_is_never_added_again(lines: list[Line]) -> None:
    async with a_tunnel().open(first_key_required=True) as tunnel:
        await tunnel.load(FIRST)
        await tunnel.load(FIRST)
        await tunnel.activate(FIRST)
        await tunnel.load(FIRST)
        assert lines[0].sending[lines[0].encoding]["pn"] > 1
        await tunnel.take_down()
        with pytest.raises(TunnelError, match="used and removed"):
            await tunnel.load(FIRST)
        with pytest.raises(TunnelError, match="not loaded"):
            await tunnel.activate(FIRST)
        with pytest.raises(TunnelError, match="not in use"):
            await tunnel.retire(SECOND)


async def test_an_agent_that_starts_again_knows_the_key_that_stands(lines: list[Line]) -> None:
    async with a_tunnel().open(first_key_required=True) as tunnel:
        await tunnel.load(FIRST)
        await tunnel.activate(FIRST)
    peer_has(lines, FIRST, activates=True)
    lines[1].reaches(lines[0])
    async with a_tunnel().open(first_key_required=True) as tunnel:
        used = await tunnel.in_use()
        assert used is not None
        assert used.key_id == FIRST.key_id


async def test_the_end_of_the_packet_numbers_is_told_once(
    lines: list[Line], monkeypatch: pytest.MonkeyPatch
) -> None:
    told = []
    monkeypatch.setattr(macsec.log, "warning", lambda event, **fields: told.append((event, fields["used"])))
    async with a_tunnel().open(first_key_required=True) as tunnel:
        await tunnel.load(FIRST)
        await tunnel.activate(FIRST)
        lines[0].sending[lines[0].encoding]["pn"] = int(0.8 * 2**32)
        await tunnel.in_use()
        await tunnel.in_use()
    assert told == [("packet_numbers.near_end", 0.8)]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"protect": False}, "sends without protection"),
        ({"encrypt": False}, "sends in clear"),
        ({"validate": "check"}, "accepts frames without protection"),
        ({"replay": False}, "accepts frames twice"),
        ({"cipher_suite": "GCM-AES-128"}, "has the cipher GCM-AES-128"),
        ({"sci": _sci(0)}, "this end's own"),
        ({"rx_sc": [{"sci": "0x20000000000ff0001"}]}, "receives from 20000000000ff0001"),
    ],
)
async def test_an_interface_that_protects_less_is_refused_with_the_remedy(
    lines: list[Line], settings: dict[str, Any], told: str
) -> None:
    lines[0].settings = settings
    with pytest.raises(TunnelError, match=told):
        async with a_tunnel().open(first_key_required=True):
            pass


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"interface": "a b"}, "interface: expected"),
        ({"peer_address": "02:00:00:00:00"}, "peer_address: expected"),
        ({"peer_port": 0}, "peer_port: expected"),
    ],
)
def test_impossible_settings_are_refused(change: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        MacsecConfig(**({"interface": "macsec0", "peer_address": ADDRESSES[0]} | change))


async def test_a_key_of_another_size_is_refused(lines: list[Line]) -> None:
    async with a_tunnel().open(first_key_required=True) as tunnel:
        with pytest.raises(TunnelError, match="has 128 bits, not 256"):
            await tunnel.load(TunnelKey(FIRST.key_id, bytes(16)))


# Programs


async def test_a_program_that_fails_is_told_without_the_key() -> None:
    with pytest.raises(TunnelError, match=r'cat: argument "\(key\)" is wrong') as caught:
        await output_of(
            ["sh", "-c", 'echo "cat: argument \\"$(cat)\\" is wrong" >&2; exit 1'], text="ab12", secret="ab12"
        )
    assert "ab12" not in str(caught.value)


async def test_a_program_that_is_not_there_is_told() -> None:
    with pytest.raises(TunnelError, match=r"no-such-program: cannot be run: No such file or directory"):
        await output_of(["no-such-program"])
