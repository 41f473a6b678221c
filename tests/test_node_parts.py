"""The node's small parts: frames, spans, decisions, secrets."""

import math
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, TypeVar, cast

import numpy as np
import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from qnode.block.decision import (
    MOST_ANNOUNCED_CLICKS,
    assumptions,
    check_clicks,
    check_size,
    decide,
    verification_bits,
)
from qnode.block.history import BlockHistory
from qnode.block.outcome import BlockLost
from qnode.block.pipeline_depth import method_for, pipeline_depth
from qnode.block.running_rate import RunningRate
from qnode.block.sample import sample_of
from qnode.block.span import BlockSpan
from qnode.block.span_policy import FIRST_SIFTED_BITS, RecentBlocks, best_span
from qnode.config import (
    BlockParameters,
    LinkParameters,
    MonitorsSection,
    SiteConfig,
    SourceParameters,
    convert,
    load,
)
from qnode.devices.protocols import EmissionRun, Transmitter
from qnode.distill.bits import Bits
from qnode.distill.block_counts import BlockCounts
from qnode.distill.counts import Pair, XCounts
from qnode.distill.keylength import Assumption
from qnode.errors import ConfigError, LinkError, ProtocolError
from qnode.keys import Positions
from qnode.link import codec
from qnode.link.messages import (
    AlignmentProbeMessage,
    BlockAgreed,
    BlockDiscarded,
    BlockProposed,
    Sifted,
)
from qnode.link.session import deliver_later
from qnode.loopback.result import Ledger
from qnode.node.dialogue import reconciliation
from qnode.node.dialogue.bob import BobBlock
from qnode.node.dialogue.tag_order import TagOrder
from qnode.node.monitoring.randomness import system_bytes
from qnode.node.monitoring.watch import MonitorWatch
from qnode.node.quantum.alice import AliceSide
from qnode.node.quantum.bob import BobSide
from qnode.node.quantum.receiver_requests import ClickAnnouncement
from qnode.node.quantum.recorder import AliceRecorder, BobRecorder
from qnode.node.quantum.slot_ledger import SlotLedger
from qnode.node.quantum.transmitter_port import TransmitterPort
from qnode.node.session.router import ANSWER_CHECK_S, SessionRouter
from qnode.node.status.quantum_figures import QuantumFigures
from qnode.node.supply.async_store import PeerMemory, runs_of
from qnode.operate.recording.recordings import Recordings
from qnode.secret_files import read_secret
from qnode.tags.marks import Marks
from qnode.tags.types import (
    OUTCOME_BOUNDARY,
    OUTCOME_CENTRAL,
    OUTCOME_EARLY,
    UNKNOWN_SYMBOL,
    Clicks,
    SlotRange,
)

Recorder = TypeVar("Recorder", AliceRecorder, BobRecorder)

SEAMS: dict[str, Any] = {"watch": MonitorWatch(MonitorsSection()), "draw": system_bytes}


@given(n_bits=st.integers(0, 20_000))
def test_a_sample_is_of_the_asked_length_or_the_whole_key(n_bits: int) -> None:
    key = Bits.pack(np.ones(n_bits, np.uint8))
    sample = sample_of(key, 1024)
    assert len(sample) == (1024 if n_bits // 64 > 16 else n_bits)
    assert sample.unpack().all()


def test_the_span_of_a_block_follows_the_running_rate_and_the_latency_limit() -> None:
    rate, nothing = RunningRate(p_z=0.5), None
    link = LinkParameters(
        source=SourceParameters(qubit_rate_hz=1_000_000),
        block=BlockParameters(sifted_bits=10_000, longest_s=10.0),
    )
    known = [rate.known]
    assert rate.span_slots(link, nothing) == 10_000_000  # nothing known: the latency limit
    for step in range(1, 12):
        clicks = Clicks(np.arange(400), np.zeros(400, np.uint8))
        rate.add(7, step * 100_000, cut_slots=0, clicks=len(clicks), z_clicks=400)
    assert [*known, rate.known] == [False, True]
    assert rate.sifted_per_slot == pytest.approx(0.5 * 400 / 100_000)
    assert rate.span_slots(link, nothing) == 5_000_000


def test_an_automatic_span_follows_the_blocks_that_were_decided() -> None:
    rate, recent = RunningRate(p_z=0.5), RecentBlocks()
    link = LinkParameters(
        source=SourceParameters(qubit_rate_hz=1_000_000),
        block=BlockParameters(sifted_bits="auto", longest_s=900.0),
    )
    for step in range(1, 12):
        clicks = Clicks(np.arange(400), np.zeros(400, np.uint8))
        rate.add(7, step * 25_000, cut_slots=0, clicks=len(clicks), z_clicks=400)
    sifted_hz = rate.sifted_per_slot * 1e6
    assert rate.span_slots(link, recent.rates()) == round(1e6 * FIRST_SIFTED_BITS / sifted_hz)
    counts = BlockCounts(
        n_z=Pair(851_800, 148_200),
        m_z=Pair(11_900, 3_070),
        x=XCounts(
            c_plus=Pair(32_000, 6_750),
            c_z=Pair(542_600, 94_300),
            e_same=Pair(135_500, 23_800),
            e_plus=Pair(138_900, 25_000),
            e_dark=Pair(1_745, 600),
        ),
        alice_parities=118_000,
        reconciliation_leak_bits=118_000,
    )
    recent.accepted(125.0, counts)
    rates = recent.rates()
    assert rates is not None
    best = best_span(rates.at(sifted_hz), link)
    assert 0.0 < best.span_s < 900.0
    assert rate.span_slots(link, recent.rates()) == round(best.span_s * 1e6)


def test_slots_without_lock_do_not_lower_the_running_rate() -> None:
    rate = RunningRate(p_z=1.0)
    clicks = Clicks(np.arange(400), np.zeros(400, np.uint8))
    rate.add(7, 1000, cut_slots=0, clicks=len(clicks), z_clicks=400)
    rate.add(7, 10_000, cut_slots=8_000, clicks=len(clicks), z_clicks=400)
    assert rate.sifted_per_slot == pytest.approx(0.4)


def test_an_interruption_of_the_link_does_not_lower_the_running_rate() -> None:
    rate = RunningRate(p_z=1.0)
    clicks = Clicks(np.arange(400), np.zeros(400, np.uint8))
    rate.add(7, 1000, cut_slots=0, clicks=len(clicks), z_clicks=400)
    rate.add(7, 2000, cut_slots=0, clicks=len(clicks), z_clicks=400)
    rate.begin_session()
    rate.add(7, 900_000, cut_slots=0, clicks=len(clicks), z_clicks=400)
    rate.add(7, 901_000, cut_slots=0, clicks=len(clicks), z_clicks=400)
    assert rate.sifted_per_slot == pytest.approx(0.4)


def test_no_block_is_expected_to_have_more_clicks_than_a_message_can_name() -> None:
    rate, recent = RunningRate(p_z=0.5), RecentBlocks()
    link = LinkParameters(
        source=SourceParameters(qubit_rate_hz=1_000_000),
        block=BlockParameters(sifted_bits=40_000_000, longest_s=86_400.0),
    )
    clicks = Clicks(np.arange(800), np.zeros(800, np.uint8))  # half of them of the X arm
    for step in range(1, 12):
        rate.add(7, step * 25_000, cut_slots=0, clicks=len(clicks), z_clicks=400)
    n_slots = rate.span_slots(link, recent.rates())
    assert n_slots * 800 / 25_000 == pytest.approx(0.9 * MOST_ANNOUNCED_CLICKS)
    check_clicks(MOST_ANNOUNCED_CLICKS)
    with pytest.raises(BlockLost) as lost:
        check_clicks(MOST_ANNOUNCED_CLICKS + 1)
    assert lost.value.reason == "too_many_bits"
    nothing = (0, 0)
    codec.encode(  # the largest that is not refused can be said
        Sifted(1, bytes(MOST_ANNOUNCED_CLICKS // 8), b"", 0, (nothing,) * 5, 0, False)
    )


def test_slots_serve_one_block_once_and_never_after_an_alignment_gave_them_away() -> None:
    ledger = SlotLedger(1)
    assert ledger.reveal(range(100, 200))
    first, second = ledger.open_block(), ledger.open_block()
    with pytest.raises(ProtocolError, match="given away"):
        ledger.announce(first, np.array([99, 150]))
    ledger.announce(first, np.array([99, 200, 300]))
    with pytest.raises(ProtocolError, match="second block"):
        ledger.announce(second, np.array([250, 400]))
    ledger.announce(second, np.array([301, 400]))
    assert not ledger.reveal(range(250, 260))
    ledger.close(first)
    ledger.close(second)
    third = ledger.open_block()
    with pytest.raises(ProtocolError, match="second block"):
        ledger.announce(third, np.array([300]))
    ledger.announce(third, np.array([401]))


def test_blocks_in_any_order_of_their_batches_keep_apart() -> None:
    ledger = SlotLedger(1)
    first, second = ledger.open_block(), ledger.open_block()
    ledger.announce(second, np.array([500, 600]))
    ledger.announce(first, np.array([400, 499]))
    ledger.close(first)
    ledger.announce(second, np.array([601]))


def test_a_block_around_another_leaves_no_slot_of_its_own_free_when_both_have_ended() -> None:
    ledger = SlotLedger(1)
    outer, inner = ledger.open_block(), ledger.open_block()
    ledger.announce(outer, np.array([0, 10]))
    ledger.announce(inner, np.array([200, 300]))
    ledger.announce(outer, np.array([400, 500]))
    ledger.close(outer)
    ledger.close(inner)
    assert not ledger.reveal(range(450, 451))
    with pytest.raises(ProtocolError, match="second block"):
        ledger.announce(ledger.open_block(), np.array([400, 500]))


def test_of_two_blocks_that_announce_a_slot_at_the_same_time_one_gets_it() -> None:
    def announce(ledger: SlotLedger, together: threading.Barrier) -> bool:
        span = ledger.open_block()
        together.wait()
        try:
            ledger.announce(span, np.array([1000, 2000]))
        except ProtocolError:
            return False
        return True

    before_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(2) as pool:
            for _ in range(300):
                ledger, together = SlotLedger(1), threading.Barrier(2)
                for slot in range(20):
                    ledger.announce(ledger.open_block(), np.array([slot]))
                    assert ledger.reveal(range(10_000 + slot, 10_001 + slot))
                tries = [pool.submit(announce, ledger, together) for _ in range(2)]
                assert sorted(one.result() for one in tries) == [False, True]
    finally:
        sys.setswitchinterval(before_s)


def test_a_block_that_is_too_small_is_lost_before_anything_is_disclosed() -> None:
    with pytest.raises(BlockLost) as lost:
        check_size(63, LinkParameters())
    assert lost.value.reason == "too_few_bits"


def test_the_keys_record_names_what_the_protocol_adds_to_the_estimators_assumptions() -> None:
    link = LinkParameters()
    named = assumptions(decide(turin_counts(), link), link)
    assert named.keys() >= {
        Assumption.COMPUTATIONAL_KEY_CONTROL,
        Assumption.PUBLIC_ERROR_POSITIONS,
        Assumption.INDEPENDENT_DEAD_TIME,
    }
    assert "AES-256-GMAC" in named[Assumption.COMPUTATIONAL_KEY_CONTROL]


def test_a_receiver_with_joint_hold_off_does_not_assume_independent_dead_times() -> None:
    link = convert({"receiver": {"dead_time": "joint"}}, LinkParameters, where="test")
    assert Assumption.INDEPENDENT_DEAD_TIME not in assumptions(decide(turin_counts(), link), link)


def turin_counts(qber_z: float = 0.015, e_vis: float = 0.03) -> BlockCounts:
    """Counts of a block of a million sifted bits, about those of the Turin link."""
    n_z = Pair(853_000, 147_000)
    c_z = Pair(853_000, 147_000)
    return BlockCounts(
        n_z=n_z,
        m_z=Pair(round(n_z.signal * qber_z), round(n_z.decoy * qber_z)),
        x=XCounts(
            c_plus=Pair(round(2 * e_vis * c_z.signal), round(2 * e_vis * c_z.decoy)),
            c_z=c_z,
            e_same=Pair(c_z.signal / 4, c_z.decoy / 4),
            e_plus=Pair(c_z.signal / 4, c_z.decoy / 4),
            e_dark=Pair(100, 100),
        ),
        alice_parities=120_000,
        reconciliation_leak_bits=120_000,
    )


def test_a_good_block_gives_key_and_a_noisy_one_does_not() -> None:
    link = LinkParameters()
    assert decide(turin_counts(), link).length > 50_000
    with pytest.raises(BlockLost) as lost:
        decide(turin_counts(qber_z=0.12), link)
    assert lost.value.reason == "qber_z"
    with pytest.raises(BlockLost) as lost:
        decide(turin_counts(e_vis=0.2), link)
    assert lost.value.reason == "e_vis"
    with pytest.raises(BlockLost) as lost:
        decide(turin_counts(e_vis=0.14), link)
    assert lost.value.reason == "key_length"
    assert "phase error" in lost.value.detail


def test_disclosed_bits_count_the_error_counts_too() -> None:
    counts = turin_counts()
    assert counts.lambda_ec_bits == 120_000 + 2 * math.ceil(math.log2(1_000_001))


def test_a_long_block_gets_a_longer_verification_tag() -> None:
    assert verification_bits(LinkParameters(), 1_000_000) == 64
    assert verification_bits(LinkParameters(), 10_000_000) == 128


def test_a_secret_that_others_can_read_is_refused(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"x" * 32)
    secret.chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        read_secret(secret, "store.store_key")
    secret.chmod(0o600)
    assert read_secret(secret, "store.store_key") == b"x" * 32


def test_sums_go_on_growing_when_a_daemon_starts_anew() -> None:
    ledger = Ledger(0.5)
    for reading in (0, 10, 30, 0, 5):
        ledger._count("secret_bits", reading)
    assert ledger.total("secret_bits") == 35


def test_a_block_has_more_round_trips_where_more_blocks_may_be_under_way() -> None:
    def method(sifted_bits: int | Literal["auto"], round_trip_s: float) -> str:
        link = LinkParameters(block=BlockParameters(sifted_bits=sifted_bits))
        # Ten million bits a second, filled in a second: 70 round trips of 100 ms take seven.
        return method_for(link, round_trip_s, 10_000_000, 1.0)

    assert pipeline_depth(10_000_000) == 25
    assert method(10_000_000, 0.1) == "cascade"
    assert method(10_000_000, math.nan) == "cascade"
    assert method(10_000_000, 1.0) == "ldpc"
    # Of the four places one is for the block that fills, one for the one agreed ahead.
    assert method("auto", 0.1) == "ldpc"
    assert method("auto", 0.03) == "ldpc"
    assert method("auto", 0.02) == "cascade"


def nobody_records(kind: type[Recorder]) -> Recorder:
    config = load(Path(__file__).parent.parent / "config" / "bob.toml", SiteConfig)
    return kind(config, Recordings(), simulated=True)


class _Peer:
    """Alice's part of a proposal: agrees on request."""

    protocol = 2

    def __init__(self) -> None:
        self.peer = SimpleNamespace(last_block_id=None)
        self.heard: list[Any] = []

    def knows(self, kind: Any, field: str = "") -> bool:
        return True

    async def send(self, message: Any) -> None:
        self.heard.append(message)

    def drop_transcript(self, block_id: int) -> None:
        pass

    def proposed(self) -> list[tuple[int, int]]:
        return [(one.block_id, one.run_id) for one in self.heard if isinstance(one, BlockProposed)]


class _Storage:
    async def positions(self) -> Positions:
        return Positions()

    async def record_block_opened(self, block_id: int, epsilon: float) -> None:
        pass


class _Book:
    """The part of the figures that Bob's proposals write."""

    def __init__(self) -> None:
        self.history = BlockHistory(LinkParameters(block=BlockParameters(qber_z_limit=1.0)))
        self.quantum = QuantumFigures()
        self.blocks = self
        self.losses: list[tuple[int, str]] = []

    def announced(self, block_id: int, span_s: float) -> None:
        pass

    def dropped(self, clicks: int) -> None:
        pass

    def lost(self, block_id: int, reason: str, detail: str) -> None:
        self.losses.append((block_id, reason))


async def test_a_block_that_was_given_up_before_its_turn_is_never_proposed() -> None:
    link = LinkParameters(source=SourceParameters(qubit_rate_hz=1_000_000))
    peer, book, rate = _Peer(), _Book(), RunningRate(p_z=0.5)
    site: Any = SimpleNamespace(link=link, session=peer, store=_Storage(), tag_order=TagOrder(), **SEAMS)
    none = Clicks(np.empty(0, np.int64), np.empty(0, np.uint8))
    old = [ClickAnnouncement(7, 1, none, 2000, slot, (), 0) for slot in (1000, 2000, 3000)]
    new = [ClickAnnouncement(8, 2, none, 2000, slot, (), 0) for slot in (1000, 2000)]
    async with trio.open_nursery() as nursery:
        conversation = SessionRouter(site, book, nursery)  # type: ignore[arg-type]
        part = BobSide(conversation, book, rate, nursery, nobody_records(BobRecorder))  # type: ignore[arg-type]
        nursery.start_soon(part.start)
        await part.ready.wait()
        for announcement in old[:2]:
            await part.do(announcement)
        await trio.testing.wait_all_tasks_blocked()
        assert peer.proposed() == [(1, 7)]  # the second one waits for the answer to the first
        for announcement in new:
            await part.do(announcement)
            await trio.testing.wait_all_tasks_blocked()
        for block_id in (1, 3, 4):
            await conversation._channels[block_id].deliver(BlockAgreed(block_id))
            await trio.testing.wait_all_tasks_blocked()
        assert peer.proposed() == [(1, 7), (3, 8), (4, 8)]
        assert sorted(book.losses) == [(1, "emission"), (2, "emission")]
        assert [one.block_id for one in peer.heard if isinstance(one, BlockDiscarded)] == [1]
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("decided", [True, False])
@pytest.mark.parametrize(("can_wait", "qber_z"), [(True, None), (True, 0.015), (False, None)])
async def test_a_source_that_can_wait_waits_for_the_first_error_rate(
    can_wait: bool, qber_z: float | None, decided: bool
) -> None:
    async def counts() -> SimpleNamespace:
        return SimpleNamespace(here=0)

    link = LinkParameters(source=SourceParameters(qubit_rate_hz=1_000_000))
    peer, book, rate, storage = _Peer(), _Book(), RunningRate(p_z=0.5), _Storage()
    storage.counts, storage.most_chunks = counts, 1  # type: ignore[attr-defined]
    if qber_z is not None:
        book.history.error_rate.counted(qber_z)
    site: Any = SimpleNamespace(link=link, session=peer, store=storage, tag_order=TagOrder(), **SEAMS)
    none, taken = Clicks(np.empty(0, np.int64), np.empty(0, np.uint8)), list[int]()

    async def announce(part: BobSide) -> None:
        with suppress(LinkError):
            for slot in (1000, 2000, 1_500_000, 1_600_000):
                await part.do(ClickAnnouncement(7, 1, none, 2000, slot, (), 0, can_wait))
                taken.append(slot)

    async with trio.open_nursery() as nursery:
        conversation = SessionRouter(site, book, nursery)  # type: ignore[arg-type]
        part = BobSide(conversation, book, rate, nursery, nobody_records(BobRecorder))  # type: ignore[arg-type]
        nursery.start_soon(part.start)
        await part.ready.wait()
        nursery.start_soon(announce, part)
        for block_id in (1, 2):
            await trio.testing.wait_all_tasks_blocked()
            await conversation._channels[block_id].deliver(BlockAgreed(block_id))
        await trio.testing.wait_all_tasks_blocked()
        assert 1_500_000 in taken  # the first block ends with these clicks
        assert (1_600_000 in taken) == (not can_wait or qber_z is not None)
        if decided:
            await conversation._channels[1].deliver(BlockDiscarded(1, "key_length", ""))
            await trio.testing.wait_all_tasks_blocked()
            assert 1_600_000 in taken
        nursery.cancel_scope.cancel()
    # Each once, the one that was being distilled as well as the one that was to be announced next.
    assert sorted(book.losses) == [(1, "key_length" if decided else "link"), (2, "link")]


async def test_marks_and_cuts_count_in_the_block_whose_slots_they_lie_in() -> None:
    link = LinkParameters(
        source=SourceParameters(qubit_rate_hz=1_000_000),
        block=BlockParameters(sifted_bits=1000, longest_s=10.0),
    )
    peer, book, rate = _Peer(), _Book(), RunningRate(p_z=0.5)
    site: Any = SimpleNamespace(link=link, session=peer, store=_Storage(), tag_order=TagOrder(), **SEAMS)
    none, blocks = Clicks(np.empty(0, np.int64), np.empty(0, np.uint8)), list[BobBlock]()

    def marks(*slots: int) -> Marks:
        each = np.array(slots, np.int64)
        return Marks(each, each[:0], each, each[:1])

    async with trio.open_nursery() as nursery:
        conversation = SessionRouter(site, book, nursery)  # type: ignore[arg-type]
        part = BobSide(conversation, book, rate, nursery, nobody_records(BobRecorder))  # type: ignore[arg-type]
        part._distil = lambda block: None  # type: ignore[method-assign]
        nursery.start_soon(part.start)
        await part.ready.wait()
        for slot in (1000, 2_001_000):  # a sifted bit each two thousand slots
            await part.do(ClickAnnouncement(7, 1, none, 2000, slot, (), 0, marks=marks(slot - 1)))
            await trio.testing.wait_all_tasks_blocked()
        for block_id in (1, 2):
            await conversation._channels[block_id].deliver(BlockAgreed(block_id))
            await trio.testing.wait_all_tasks_blocked()
        assert part._current is not None
        assert part._upcoming is not None
        blocks = [part._current, part._upcoming]
        (first, end), last = (blocks[0].span.first_slot, blocks[0].span.end_slot), blocks[1].span.end_slot
        assert first == 2_001_000
        n = end - first
        clicks = Clicks(np.array([first, end - 1, end, end + 1]), np.array([0, 1, 2, 1], np.uint8))
        cuts = (SlotRange(first + 10, first + 20), SlotRange(end - n // 2, end + n // 4))
        early = ClickAnnouncement(7, 1, none, 0, first + 30, cuts[:1], 0, marks=marks(first, first + 29))
        late = ClickAnnouncement(
            7, 1, clicks, 3, end + n // 2, cuts[1:], 0, marks=marks(first + 30, end - 1, end)
        )
        for announcement in (early, late):
            await part.do(announcement)
            await trio.testing.wait_all_tasks_blocked()
        await part.do(ClickAnnouncement(7, 1, none, 0, end + n // 2 + 1, (), 0, marks=marks(end + n // 2)))
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    before, after = (block.tag_counts() for block in blocks)
    assert (before.cross_clicks, before.double_clicks, before.out_of_gate, before.too_close) == (4, 0, 4, 2)
    assert (after.cross_clicks, after.double_clicks, after.out_of_gate, after.too_close) == (2, 0, 2, 1)
    assert sum(before.live_slots) == n - 10 - n // 2
    assert sum(after.live_slots) == last - end - n // 4
    assert (sum(before.z_clicks), sum(before.x_clicks)) == (2, 0)
    assert (before.z_clicks[0], before.z_clicks[-1]) == (1, 1)
    assert (sum(after.z_clicks), sum(after.x_clicks)) == (1, 1)


class _Dialogue:
    """A dialogue in which Alice says one thing, whatever Bob says."""

    def __init__(self, answer: Any, protocol: int = 1) -> None:
        self.block_id = 1
        self.protocol = protocol
        self._answer = answer

    async def send(self, message: Any) -> None:
        pass

    async def expect(self, *kinds: Any) -> Any:
        return self._answer


@pytest.mark.parametrize("x_counts", [(2, 2, 0, 0, 0), (0, 0, 1, 1, 0), (0, 1 << 60, 0, 0, 0)])
async def test_alice_cannot_count_more_clicks_of_the_x_arm_than_bob_has_announced(
    x_counts: tuple[int, ...],
) -> None:
    async def counts() -> SimpleNamespace:
        return SimpleNamespace(here=0)

    counted: Any = tuple((n, 0) for n in x_counts)
    sifted = Sifted(1, b"\x01", b"\x00", 1, counted, 0, False)
    site: Any = SimpleNamespace(
        link=LinkParameters(),
        store=SimpleNamespace(counts=counts, most_chunks=1),
        session=SimpleNamespace(knows=lambda *_: True),
        **SEAMS,
    )
    book: Any = _Book()
    channel: Any = _Dialogue(sifted)
    block = BobBlock(site, channel, BlockSpan(7, 0, 100), book)
    outcomes = [OUTCOME_EARLY, OUTCOME_CENTRAL, OUTCOME_CENTRAL, OUTCOME_CENTRAL, OUTCOME_BOUNDARY]
    await block.announce(Clicks(np.arange(5), np.array(outcomes, np.uint8)))
    with pytest.raises(ProtocolError, match="more clicks of the X arm"):
        await block.distil(0, None)


async def test_alice_searches_for_one_probe_at_a_time() -> None:
    peer, released = _Peer(), threading.Event()

    class Waiting:
        def symbols(self, run_id: int, slots: Any) -> Any:
            released.wait()
            return np.full(slots.shape[0], UNKNOWN_SYMBOL, np.uint8)

    source = TransmitterPort()
    source.transmitter, source.run = cast(Transmitter, Waiting()), EmissionRun(7, 0.0)
    conversation: Any = SimpleNamespace(context=SimpleNamespace(session=peer))
    figures: Any = SimpleNamespace(quantum=QuantumFigures())
    probe = AlignmentProbeMessage(7, 1, np.arange(3, dtype="<i8").tobytes(), 0, 100)
    async with trio.open_nursery() as nursery:
        part = AliceSide(conversation, source, figures, nursery, nobody_records(AliceRecorder))
        await part.handle(probe)
        with pytest.raises(ProtocolError, match="before the one before it was answered"):
            await part.handle(probe)
        released.set()
    assert [one.offset for one in peer.heard] == [None]
    async with trio.open_nursery() as nursery:
        part._nursery = nursery
        await part.handle(probe)
    assert len(peer.heard) == 2


async def test_tags_are_checked_in_the_order_in_which_they_came() -> None:
    order = TagOrder()
    checked: list[int] = []

    async def check(block_id: int) -> None:
        async with order.turn(block_id):
            checked.append(block_id)

    for block_id in (5, 6, 7):
        order.arrive(block_id)
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(check, 7)
            nursery.start_soon(check, 5)
            await trio.testing.wait_all_tasks_blocked()
            assert checked == [5]
            await order.give_up(6)
    assert checked == [5, 7]


@given(numbers=st.sets(st.integers(0, 200)))
def test_runs_of_segments_hold_exactly_the_segments(numbers: set[int]) -> None:
    memory = PeerMemory(Positions(), runs_of(sorted(numbers)))
    assert {segment for segment in range(202) if memory.holds(segment)} == numbers


async def test_a_block_is_corrected_as_suits_the_path_whatever_the_load(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Chosen(Exception):
        pass

    def choose(_link: LinkParameters, round_trip_s: float, _n_bits: int, _filled_in_s: float) -> str:
        raise Chosen(round_trip_s)

    monkeypatch.setattr(reconciliation, "method_for", choose)
    session = SimpleNamespace(round_trip_s=4.0, path_round_trip_s=0.02)
    site: Any = SimpleNamespace(link=LinkParameters(), session=session)
    nothing: Any = None
    with pytest.raises(Chosen, match=r"^0\.02$"):
        await reconciliation.correct(site, nothing, Bits.pack(np.ones(64, np.uint8)), 1.0, 0.01, nothing)


class _Leaving(_Peer):
    """A peer that says goodbye at once."""

    goodbye = "bye"
    deliver_at_once = staticmethod(deliver_later)

    def __aiter__(self) -> "_Leaving":
        return self

    async def __anext__(self) -> Any:
        assert self.deliver_at_once is not deliver_later
        raise StopAsyncIteration


async def test_what_the_session_reads_after_its_router_has_ended_is_served_by_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    session: Any = _Leaving()
    site: Any = SimpleNamespace(
        link=LinkParameters(), session=session, store=_Storage(), tag_order=TagOrder(), **SEAMS
    )

    async def begin(_: Any) -> None:
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        conversation = SessionRouter(site, _Book(), nursery)  # type: ignore[arg-type]
        monkeypatch.setattr(conversation, "_begin", begin)
        with pytest.raises(LinkError, match="said goodbye: bye"):
            await conversation.run(session)
        nursery.cancel_scope.cancel()
    assert session.deliver_at_once is deliver_later  # the nursery of whoever serves requests is closed


async def test_an_answer_that_does_not_come_ends_the_wait_for_it(autojump_clock: MockClock) -> None:
    site: Any = SimpleNamespace(
        link=LinkParameters(), session=_Peer(), store=_Storage(), tag_order=TagOrder(), **SEAMS
    )
    async with trio.open_nursery() as nursery:
        conversation = SessionRouter(site, _Book(), nursery)  # type: ignore[arg-type]
        nursery.start_soon(conversation._check_answers)
        channel = conversation.open_channel(5)
        began_s = trio.current_time()
        with pytest.raises(ProtocolError, match="block 5: no BlockAgreed within 600 s"):
            await channel.expect(BlockAgreed)
        assert 600.0 <= trio.current_time() - began_s <= 600.0 + 2.0 * ANSWER_CHECK_S
        await trio.sleep(700.0)  # nobody waits
        channel.deliver_at_once(BlockAgreed(5))
        assert await channel.expect(BlockAgreed) == BlockAgreed(5)
        nursery.cancel_scope.cancel()


async def test_a_block_that_is_announced_as_the_session_ends_is_counted_as_lost() -> None:
    link = LinkParameters(source=SourceParameters(qubit_rate_hz=1_000_000))
    book, storage = _Book(), _Storage()
    storage.counts = trio.sleep_forever  # type: ignore[attr-defined]
    site: Any = SimpleNamespace(link=link, session=_Peer(), store=storage, tag_order=TagOrder(), **SEAMS)
    async with trio.open_nursery() as nursery:
        conversation = SessionRouter(site, book, nursery)  # type: ignore[arg-type]
        part = BobSide(conversation, book, RunningRate(p_z=0.5), nursery, nobody_records(BobRecorder))  # type: ignore[arg-type]
        block = await part._propose(7, 0)
        block.agreed.set()
        await part._places.acquire()
        part._distil(block)
        nursery.cancel_scope.cancel()
    assert book.losses == [(0, "link")]
    assert block.decided.is_set()
