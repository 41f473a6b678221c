"""The operator's line: what it does to packets, on sockets and a clock of the test."""

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qnode.testbed import relay as relay_module
from qnode.testbed.relay import LineCounts, LineQuality, Relay, serve


class Sites:
    """The two sites of a relay, as sockets of datagrams."""

    def __init__(self, stack: ExitStack, quality: LineQuality, seed: int = 1) -> None:
        pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(2)]
        for one in (one for pair in pairs for one in pair):
            stack.enter_context(one).setblocking(False)
        self.office, self.plant = pairs[0][0], pairs[1][0]
        self.relay = Relay((pairs[0][1].fileno(), pairs[1][1].fileno()), quality, seed)

    @staticmethod
    def received(site: socket.socket) -> list[bytes]:
        packets = []
        while True:
            try:
                packets.append(site.recv(65_536))
            except BlockingIOError:
                return packets


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def numbered(count: int) -> list[bytes]:
    return [b"%d" % number for number in range(count)]


def test_packets_pass_at_once_in_both_directions(stack: ExitStack) -> None:
    sites = Sites(stack, LineQuality())
    sites.office.send(b"to the plant")
    sites.plant.send(b"to the office")
    assert sites.relay.pass_packets(0.0) is None
    assert sites.received(sites.plant) == [b"to the plant"]
    assert sites.received(sites.office) == [b"to the office"]
    assert sites.relay.counts == LineCounts(received=2, passed=2, passed_bytes=25)


def test_a_packet_arrives_when_its_delay_is_over_and_not_before(stack: ExitStack) -> None:
    sites = Sites(stack, LineQuality(delay_s=0.005))
    sites.office.send(b"late")
    assert sites.relay.pass_packets(10.0) == pytest.approx(10.005)
    assert sites.relay.counts.under_way == 1
    assert sites.relay.pass_packets(10.0049) == pytest.approx(10.005)
    assert sites.received(sites.plant) == []
    assert sites.relay.pass_packets(10.0051) is None
    assert sites.received(sites.plant) == [b"late"]


def test_jitter_spreads_packets_and_none_overtakes_another(stack: ExitStack) -> None:
    sites = Sites(stack, LineQuality(delay_s=0.01, jitter_s=0.02))
    arrived: list[tuple[float, bytes]] = []
    for step in range(200):
        now_s = step * 0.001
        if step < 100:
            sites.office.send(b"%d" % step)
        sites.relay.pass_packets(now_s)
        arrived += [(now_s, packet) for packet in sites.received(sites.plant)]
    assert [packet for _, packet in arrived] == numbered(100)
    waits = [at_s - int(packet) * 0.001 for at_s, packet in arrived]
    assert 0.01 <= min(waits) < 0.02
    assert 0.02 < max(waits) <= 0.031


def test_the_share_of_lost_packets_is_that_asked_for(stack: ExitStack) -> None:
    sites = Sites(stack, LineQuality(loss=0.25))
    for packet in numbered(4000):
        sites.office.send(packet)
        sites.relay.pass_packets(0.0)
        sites.received(sites.plant)
    assert 900 < sites.relay.counts.lost_by_chance < 1100
    assert sites.relay.counts.passed + sites.relay.counts.lost_by_chance == 4000


def test_a_cut_line_passes_nothing_not_even_what_was_under_way(stack: ExitStack) -> None:
    sites = Sites(stack, LineQuality(delay_s=0.01))
    sites.office.send(b"under way")
    sites.relay.pass_packets(0.0)
    sites.relay.quality = LineQuality(delay_s=0.01, cut=True)
    sites.office.send(b"in the cut")
    sites.relay.pass_packets(0.02)
    sites.relay.quality = LineQuality(delay_s=0.01)
    sites.office.send(b"after it")
    sites.relay.pass_packets(0.03)
    sites.relay.pass_packets(0.05)
    assert sites.received(sites.plant) == [b"after it"]
    assert sites.relay.counts.lost_in_cut == 2


def test_packets_stay_in_order_when_the_delay_is_taken_away(stack: ExitStack) -> None:
    sites = Sites(stack, LineQuality(delay_s=0.01))
    sites.office.send(b"first")
    sites.relay.pass_packets(0.0)
    sites.relay.quality = LineQuality()
    sites.office.send(b"second")
    sites.relay.pass_packets(0.001)
    assert sites.received(sites.plant) == []
    sites.relay.pass_packets(0.011)
    assert sites.received(sites.plant) == [b"first", b"second"]


def test_a_full_queue_loses_what_comes_on_top_and_counts_it(
    stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay_module, "MOST_UNDER_WAY", 3)
    sites = Sites(stack, LineQuality(delay_s=1.0))
    for packet in numbered(5):
        sites.office.send(packet)
    sites.relay.pass_packets(0.0)
    sites.relay.pass_packets(1.0)
    assert sites.received(sites.plant) == numbered(3)
    assert sites.relay.counts.lost_by_queue == 2


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["office", "plant", "cut", "mend", "wait"]), st.floats(min_value=0, max_value=0.1)
        ),
        max_size=40,
    ),
    st.floats(min_value=0, max_value=1),
    st.floats(min_value=0, max_value=0.05),
    st.floats(min_value=0, max_value=0.05),
)
def test_every_packet_is_passed_lost_or_under_way(
    steps: list[tuple[str, float]], loss: float, delay_s: float, jitter_s: float
) -> None:
    quality = LineQuality(loss=loss, delay_s=delay_s, jitter_s=jitter_s)
    with ExitStack() as stack:
        sites, now_s, sent, arrived = Sites(stack, quality), 0.0, 0, 0
        for step, pause_s in steps:
            if step in ("cut", "mend"):
                sites.relay.quality = msgspec.structs.replace(quality, cut=step == "cut")
            elif step != "wait":
                getattr(sites, step).send(b"x")
                sent += 1
            now_s += pause_s
            sites.relay.pass_packets(now_s)
            arrived += len(sites.received(sites.office)) + len(sites.received(sites.plant))
            counts = sites.relay.counts
            lost = counts.lost_by_chance + counts.lost_in_cut + counts.lost_by_queue
            assert (counts.received, counts.passed) == (sent, arrived)
            assert sent == arrived + lost + counts.under_way


@pytest.mark.parametrize("wrong", [{"loss": 1.5}, {"loss": -0.1}, {"delay_s": -1.0}, {"jitter_s": 11.0}])
def test_an_impossible_quality_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        LineQuality(**wrong)


def test_the_relay_takes_orders_while_it_runs_and_ends_with_them(stack: ExitStack) -> None:
    sites = Sites(stack, LineQuality())
    orders_out, orders = os.pipe()
    answers, answers_in = os.pipe()
    thread = threading.Thread(target=serve, args=(sites.relay, orders_out, answers_in))
    thread.start()
    try:
        os.write(orders, b'{"cut":true}\n')
        assert msgspec.json.decode(os.read(answers, 4096), type=LineCounts) == LineCounts()
        sites.office.send(b"in the cut")
        while sites.relay.counts.lost_in_cut == 0:
            pass
        os.write(orders, b'{"delay_s":0.0')  # an order may come in pieces
        os.write(orders, b"01}\n")
        os.read(answers, 4096)
        sites.office.send(b"after it")
        sites.plant.setblocking(True)
        assert sites.plant.recv(65_536) == b"after it"
    finally:
        os.close(orders)
        thread.join(10.0)
        for end in (orders_out, answers, answers_in):
            os.close(end)
    assert not thread.is_alive()
