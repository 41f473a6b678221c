"""The status model and its screen."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from operate_support import NOW, degraded_status, well_status

from qnode.operate.status.interfaces import Etsi004Status, SkipStatus
from qnode.operate.status.metrics import render_metrics
from qnode.operate.status.model import Alarm, BlockStatus, Discard, KeyStatus, NodeStatus, State
from qnode.operate.status.screen import SIMULATED, Loud, device_detail, duration, si, status_lines
from qnode.operate.status.troubles import troubles, why_no_key


def test_a_transition_keeps_the_age_of_an_unchanged_state() -> None:
    locked = State("locked", 100.0)
    again = locked.to("locked", "still", at=200.0)
    lost = again.to("lost", "no clicks", at=300.0)
    assert again == State("locked", 100.0, "still")
    assert lost == State("lost", 300.0, "no clicks")


def test_a_status_survives_json_whole() -> None:
    status = degraded_status()
    assert msgspec.json.decode(msgspec.json.encode(status), type=NodeStatus) == status


def test_fields_of_a_newer_node_are_ignored_and_missing_ones_have_defaults() -> None:
    plain = msgspec.to_builtins(well_status())
    plain["moon_phase"] = 0.3
    del plain["totals"]
    assert msgspec.convert(plain, NodeStatus).totals.tags == 0


def test_a_node_that_is_well_has_no_troubles() -> None:
    assert troubles(well_status()) == []


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"state": State("starting", NOW)}, "node.starting"),
        ({"quantum": replace(well_status().quantum, lock=State("lost", NOW))}, "quantum.unlocked"),
        ({"peer": replace(well_status().peer, connection=State("disconnected", NOW))}, "peer.disconnected"),
    ],
)
def test_each_part_that_is_not_well_is_a_trouble(change: dict[str, object], name: str) -> None:
    assert [trouble.name for trouble in troubles(well_status(**change))] == [name]


def test_a_failed_device_and_the_nodes_own_alarms_are_troubles() -> None:
    assert [(t.name, t.text) for t in troubles(degraded_status())] == [
        ("device.failed", "voa waiting: silent for 10 s (silence_limit_s)"),
        ("pads.low", "12 authentication pads left"),
    ]


def test_a_source_that_ended_is_a_trouble_and_not_up() -> None:
    ended = replace(well_status().devices[0], state=State("finished", NOW - 9, "the source ended"))
    status = well_status(devices=[ended])
    assert [(one.name, one.text) for one in troubles(status)] == [
        ("device.finished", "tdc finished: the source ended")
    ]
    assert "tdc        WARN" in "\n".join(status_lines(status))
    assert [line for line in status_lines(status) if isinstance(line, Loud)] == [
        line for line in status_lines(status) if " WARN " in line or SIMULATED in line
    ]
    assert (
        'qkd_device_up{device="tdc",driver="sfifteen-tdc1",link="turin"} 0.0'
        in render_metrics(status).decode()
    )


def test_the_screen_reads_like_the_operators_example() -> None:
    screen = "\n".join(status_lines(degraded_status()))
    for expected in (
        "alice@turin (KME-ALICE)   running 2 d 21 h   qnode 0.4.1   peer KME-BOB up 2 d 20 h",
        "quantum   ok     QBER Z 1.62 %  X 2.04 %   sifted 41.2 kb/s   clock ±38 ps",
        "channel   ok     rtt 0.41 ms",
        "keys      ok     12 481 ready (3.2 Mb)   block 812, 41 s ago   block 813 43 % full",
        "devices   tdc        ok     sfifteen-tdc1 TDC1-0042   0 restarts",
        "bias_v 4.21",
        "voa        WARN   oz-dd100   silent for 10 s (silence_limit_s)   retry in 3.0 s",
        "etsi014   ok     https://kme-alice:8443   2 SAEs   last key 3.0 s ago   2 refused",
        "2 warnings. See: qnodectl devices voa",
    ):
        assert expected in screen
    assert "no key" not in screen
    assert "imulated" not in screen


def test_an_interface_that_cannot_listen_is_not_ok_and_says_why() -> None:
    taken = "cannot listen on 192.0.2.1:8443: Address already in use"
    status = well_status()
    status = replace(
        status,
        etsi014=replace(status.etsi014, away=taken),
        skip=SkipStatus(url="https://192.0.2.1:8444", away=taken),
        etsi004=Etsi004Status(address="192.0.2.1:8445", away=taken),
    )
    for name in ("etsi014", "skip", "etsi004"):
        (line,) = [one for one in status_lines(status) if one.startswith(f"  {name} ")]
        assert line.startswith(f"  {name:<9} WARN   {taken}   ")
        assert isinstance(line, Loud)


def test_simulated_keys_are_said_to_be_simulated_loudly() -> None:
    lines = status_lines(well_status(simulated=True))
    assert SIMULATED in lines[1]


def test_text_from_a_device_cannot_drive_the_terminal() -> None:
    evil = replace(well_status().devices[0], serial="\x1b]0;owned\x07", model="\x9b2J")
    screen = "\n".join([*status_lines(well_status(devices=[evil])), *device_detail(evil, NOW)])
    assert "\x1b" not in screen
    assert "\x9b" not in screen
    assert "\\x1b]0;owned" in screen


def _no_keys(**changes: object) -> NodeStatus:
    return well_status(keys=KeyStatus(), **changes)


def test_why_there_is_no_key_is_explained_by_the_latest_reason() -> None:
    well = well_status()
    assert why_no_key(well) is None
    discard = Discard(block_id=813, at=NOW - 5, reason="qber_z", detail="12.1 % above 11 %")
    late = replace(well.block, last_discard=discard)
    assert why_no_key(_no_keys(block=late)) == "block 813 was discarded (qber_z): 12.1 % above 11 %"
    reading = replace(well.devices[0], state=State("waiting", NOW, "silent for 10 s"))
    ended = replace(well.devices[0], state=State("finished", NOW, "the source ended"))
    unlocked = replace(well.quantum, lock=State("searching", NOW, "no clicks"))
    away = replace(well.peer, connection=State("disconnected", NOW, "connection refused"))
    # What stands in the way now comes before what became of the last block, and devices come first.
    for device, reason in (
        (reading, "device tdc is waiting: silent for 10 s"),
        (ended, "device tdc is finished: the source ended"),
    ):
        status = _no_keys(block=late, devices=[device], quantum=unlocked, peer=away)
        assert why_no_key(status) == reason
    assert why_no_key(_no_keys(block=late, quantum=unlocked, peer=away)) == (
        "the peer is not connected: connection refused"
    )
    assert why_no_key(_no_keys(block=late, quantum=unlocked)) == ("no lock on the quantum channel: no clicks")
    assert why_no_key(_no_keys()) == "all keys are used; block 812 was the last to give key"
    assert why_no_key(_no_keys(block=BlockStatus(current=1, filled=0.431))) == "the first block is 43 % full"
    assert why_no_key(_no_keys(block=BlockStatus())) == "the first block has not begun"
    assert "no key: the first block has not begun" in "\n".join(status_lines(_no_keys(block=BlockStatus())))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0 s"),
        (0.44, "0.4 s"),
        (41.2, "41 s"),
        (59.7, "1 min 0 s"),
        (3599.9, "1 h 0 min"),
        (11_520, "3 h 12 min"),
        (248_400, "2 d 21 h"),
    ],
)
def test_durations_read_naturally(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@given(st.floats(0, 9e14))
def test_si_figures_have_three_digits_and_the_right_size(value: float) -> None:
    number, _, prefix = si(value).partition(" ")
    factor = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}[prefix]
    assert abs(float(number) * factor - value) <= 0.0051 * value + 1e-12
    assert float(number) < 1000


def test_a_store_that_waits_for_its_peer_serves_no_keys_and_says_so() -> None:
    waiting = Alarm(name="store.waiting", since=NOW - 9, text="no key is served: the anchor is missing")
    status = well_status(alarms=[waiting])
    assert why_no_key(status) == "the store holds its keys back (see store.waiting)"
    assert [trouble.name for trouble in troubles(status)] == ["store.waiting"]
    screen = "\n".join(status_lines(status))
    assert "keys      WARN   12 481 held back" in screen
    assert "no key is served: the anchor is missing" in screen
