"""Key streams without clock, network and store: any order of calls gives each end each chunk once, equal."""

from collections.abc import Iterable
from uuid import UUID

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from qnode.delivery import Key
from qnode.etsi004.qos import DEFAULT_TIMEOUT_MS, DEFAULT_TTL_S, MOST_TIMEOUT_MS, MOST_TTL_S, offered
from qnode.etsi004.stream import INDICES, Allocate, Chunk, End, KeyStream, Refused, Wait
from qnode.etsi004.streams import Leftover, Streams
from qnode.etsi004.wire import Qos, Status

A, B, C = "sae-a", "sae-b", "sae-c"
ID = UUID(int=77)
QOS = Qos(key_chunk_bytes=4096, ttl_s=10)  # 16 chunks ahead


def keys(first: int, number: int) -> list[Key]:
    return [Key(UUID(int=1 + n), n.to_bytes(4), {}) for n in range(first, first + number)]


def stream(qos: Qos = QOS) -> KeyStream:
    made = KeyStream(ID, A, B, offered(qos, 0.0)[0])
    made.connect(A)
    made.connect(B)
    return made


class AnyOrder(RuleBasedStateMachine):
    """Both ends call in any order while time passes; keys may run out, or come when an end has closed."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self.streams = Streams(4, 100.0, lambda: ID)
        self.stream: KeyStream | None = None
        self.made = 0
        self.given: dict[str, dict[int, UUID]] = {A: {}, B: {}}
        self.fetched: set[UUID] = set()
        self.left: set[UUID] = set()
        self.of_stream: set[UUID] = set()
        self.late: list[KeyStream] = []

    def leave(self, leftovers: Iterable[Leftover | None]) -> None:
        for one in leftovers:
            if one is not None:
                assert (one.slave, one.master) == (B, A)
                assert self.left.isdisjoint(one.key_ids)
                assert self.fetched.isdisjoint(one.key_ids)
                self.left.update(one.key_ids)

    @rule(sae=st.sampled_from([A, B]), chosen=st.booleans())
    def open(self, sae: str, chosen: bool) -> None:
        if not chosen and self.stream is not None:
            return  # one stream at a time is enough here
        known = self.stream
        opening = self.streams.open(sae, A if sae == B else B, ID if chosen else None, QOS, self.now_s, 0.0)
        if known is None:
            assert opening.status == (Status.PEER_NOT_CONNECTED if chosen else Status.SUCCESSFUL)
            self.stream = opening.stream
            self.given = {A: {}, B: {}}
        elif opening.status != Status.ID_IN_USE:
            assert opening.stream is known

    @precondition(lambda self: self.stream is not None)
    @rule(sae=st.sampled_from([A, B]), index=st.integers(0, 40), stock=st.integers(0, 20), lost=st.booleans())
    def get(self, sae: str, index: int, stock: int, lost: bool) -> None:
        stream = self.streams.find(sae, ID, self.now_s)
        if stream is None:
            return
        step = stream.look(sae, index, self.now_s)
        if isinstance(step, Allocate):
            assert stream.both_connected
            number = step.needed + step.ahead if stock >= step.needed + step.ahead else step.needed
            if stock < step.needed:
                return
            new = keys(self.made, number)
            self.made += number
            self.of_stream.update(key.key_id for key in new)
            self.leave(leftover(stream, stream.add(new, self.now_s)))
            step = stream.look(sae, index, self.now_s)
            assert isinstance(step, Chunk)
        if not isinstance(step, Chunk) or lost:  # a lost answer of the home: the end asks again
            return
        assert index not in self.given[sae]
        if sae == A:
            key = stream.take(A, index)
            assert key is not None
            assert key.key_id == step.key_id
        else:
            assert step.key_id not in self.fetched
            assert step.key_id not in self.left
            self.fetched.add(step.key_id)
            assert stream.take(B, index) is None
        self.given[sae][index] = step.key_id

    @precondition(lambda self: self.stream is not None)
    @rule(sae=st.sampled_from([A, B]))
    def close(self, sae: str) -> None:
        stream = self.streams.find(sae, ID, self.now_s)
        if stream is not None:
            self.leave([self.streams.close(stream, sae)])
            self.note_end()

    @rule(seconds=st.floats(0.0, 60.0))
    def let_time_pass(self, seconds: float) -> None:
        self.now_s += seconds
        self.leave(self.streams.expire(self.now_s))
        self.note_end()

    def note_end(self) -> None:
        if self.stream is not None and self.stream not in list(self.streams):
            self.stream = None
            # What the slave did not take, it never will.
            assert self.of_stream == self.fetched | self.left

    @invariant()
    def both_ends_have_the_same_at_the_same_index(self) -> None:
        for index in self.given[A].keys() & self.given[B].keys():
            assert self.given[A][index] == self.given[B][index]

    @invariant()
    def what_waits_is_bounded(self) -> None:
        if self.stream is not None:
            assert self.stream.waiting <= self.stream.window

    @invariant()
    def no_key_is_in_two_places(self) -> None:
        assert self.fetched.isdisjoint(self.left)


def leftover(stream: KeyStream, key_ids: list[UUID]) -> list[Leftover]:
    return [Leftover(stream.slave, stream.master, tuple(key_ids))] if key_ids else []


AnyOrder.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestAnyOrder = AnyOrder.TestCase


def test_a_chunk_is_given_once_to_each_end() -> None:
    one = stream()
    step = one.look(A, 0, 0.0)
    assert step == Allocate(1, one.window // 4)
    one.add(keys(0, 2), 0.0)
    first = one.take(A, 0)
    assert first is not None
    assert first.key == (0).to_bytes(4)
    assert one.take(A, 0) is None
    assert one.look(A, 0, 0.0) == Refused(Status.INSUFFICIENT_KEY)
    assert isinstance(one.look(B, 0, 0.0), Chunk)
    assert one.take(B, 0) is None  # the slave's bytes are in its store
    assert one.look(B, 0, 0.0) == Refused(Status.INSUFFICIENT_KEY)
    assert one.waiting == 1


def test_no_key_is_allocated_before_both_ends_are_connected_or_after_one_has_closed() -> None:
    one = KeyStream(ID, A, B, QOS)
    assert one.look(A, 0, 0.0) == Refused(Status.PEER_NOT_YET_CONNECTED)
    one.connect(A)
    assert one.look(A, 0, 0.0) == Wait(Status.PEER_NOT_YET_CONNECTED)
    one.connect(B)
    assert isinstance(one.look(A, 0, 0.0), Allocate)
    one.add(keys(0, 2), 0.0)
    assert one.close(A) == []
    assert isinstance(one.look(B, 1, 0.0), Chunk)  # allocated before: held for the other end
    assert one.look(B, 2, 0.0) == Refused(Status.PEER_NOT_YET_CONNECTED)
    assert one.close(B) == [key.key_id for key in keys(0, 2)]
    assert one.waiting == 0


def test_keys_that_arrive_after_an_end_has_closed_are_given_up() -> None:
    one = stream()
    assert isinstance(one.look(A, 0, 0.0), Allocate)
    one.close(B)
    assert one.add(keys(0, 1), 0.0) == [keys(0, 1)[0].key_id]
    assert isinstance(one.look(A, 0, 0.0), Chunk)
    one.close(A)
    assert one.add(keys(1, 1), 0.0) == [keys(1, 1)[0].key_id]
    assert one.waiting == 0


def test_a_slow_end_stops_the_allocation_for_the_other_until_it_takes() -> None:
    one = stream()
    while isinstance(step := one.look(A, one.next_index, 0.0), Allocate):
        one.add(keys(one.next_index, step.needed + step.ahead), 0.0)
    assert step == Wait(Status.INSUFFICIENT_KEY)
    assert one.waiting == one.window == 16
    for index in range(16):
        one.take(A, index)
    assert one.look(A, 16, 0.0) == Wait(Status.INSUFFICIENT_KEY)
    one.take(B, 0)
    assert one.look(A, 16, 0.0) == Allocate(1, 0)


def test_an_index_far_ahead_or_past_the_last_is_refused() -> None:
    one = stream()
    assert one.look(A, 16, 0.0) == Refused(Status.INSUFFICIENT_KEY)
    assert isinstance(one.look(A, 15, 0.0), Allocate)
    one.next_index = INDICES - 1
    assert one.look(A, INDICES - 1, 0.0) == Allocate(1, 0)


def test_chunks_expire_after_their_time_to_live_at_both_ends() -> None:
    one = stream()
    one.add(keys(0, 2), 0.0)
    one.take(B, 0)
    assert one.expire(9.9) == []
    assert one.expire(10.0) == [keys(1, 1)[0].key_id]
    assert one.take(A, 0) is None
    assert one.look(A, 0, 10.0) == Refused(Status.INSUFFICIENT_KEY)
    assert isinstance(one.look(A, 2, 10.0), Allocate)


def test_max_bps_paces_the_allocation() -> None:
    one = stream(Qos(key_chunk_bytes=32, max_bps=256, ttl_s=1000))
    one.add(keys(0, 1), 100.0)
    assert isinstance(one.look(A, 1, 100.0), Allocate)  # a second's worth may come at once
    one.add(keys(1, 2), 100.0)
    assert one.look(A, 3, 101.9) == Wait(Status.INSUFFICIENT_KEY)
    assert isinstance(one.look(A, 3, 102.0), Allocate)


def test_an_application_that_was_started_again_opens_its_stream_again() -> None:
    streams = Streams(1, 100.0)
    first = streams.open(A, B, ID, QOS, 0.0, 0.0)
    again = streams.open(A, B, ID, Qos(), 0.0, 0.0)
    assert (again.status, again.stream, again.qos) == (Status.PEER_NOT_CONNECTED, first.stream, first.qos)
    assert streams.open(B, A, ID, QOS, 0.0, 0.0).status == Status.SUCCESSFUL
    assert streams.open(A, B, ID, Qos(), 0.0, 0.0).status == Status.SUCCESSFUL


def test_a_stream_that_one_end_has_closed_is_kept_for_the_other_during_its_time_to_live() -> None:
    streams = Streams(1, 100.0)
    one = streams.open(A, B, ID, QOS, 0.0, 0.0).stream
    assert one is not None
    streams.open(B, A, ID, QOS, 0.0, 0.0)
    one.add(keys(0, 1), 5.0)
    assert streams.find(A, ID, 5.0) is one
    streams.close(one, A)
    assert streams.expire(14.9) == []
    assert streams.open(A, B, ID, QOS, 14.9, 0.0).status == Status.ID_IN_USE
    assert streams.expire(15.0) == [Leftover(B, A, (keys(0, 1)[0].key_id,))]
    assert streams.open(A, B, ID, QOS, 15.0, 0.0).status == Status.PEER_NOT_CONNECTED


def test_an_id_in_use_is_refused_and_free_again_after_both_ends_have_closed() -> None:
    streams = Streams(4, 100.0)
    first = streams.open(A, B, ID, QOS, 0.0, 0.0)
    assert first.status == Status.PEER_NOT_CONNECTED
    assert first.stream is not None
    assert streams.open(C, A, ID, QOS, 0.0, 0.0).status == Status.ID_IN_USE
    joined = streams.open(B, A, ID, Qos(key_chunk_bytes=8, min_bps=10**9), 0.0, 0.0)
    assert joined.status == Status.SUCCESSFUL
    assert joined.qos == first.qos  # the quality of the stream, whatever the second end asks for
    streams.close(first.stream, A)
    assert streams.find(A, ID, 0.0) is None
    assert streams.open(A, B, ID, QOS, 0.0, 0.0).status == Status.ID_IN_USE
    streams.close(first.stream, B)
    assert streams.open(A, B, ID, QOS, 0.0, 0.0).status == Status.PEER_NOT_CONNECTED


def test_an_encryptor_has_a_limited_number_of_streams() -> None:
    streams = Streams(2, 100.0)
    opened = [streams.open(A, B, None, QOS, 0.0, 0.0) for _ in range(3)]
    assert [one.status for one in opened] == [
        Status.SUCCESSFUL,
        Status.SUCCESSFUL,
        Status.NO_QKD_CONNECTION,
    ]
    assert streams.open(B, A, ID, QOS, 0.0, 0.0).status == Status.PEER_NOT_CONNECTED
    assert opened[0].stream is not None
    streams.close(opened[0].stream, A)
    assert streams.open(A, B, None, QOS, 0.0, 0.0).status == Status.SUCCESSFUL


def test_streams_that_the_peer_never_joined_make_room_for_new_ones_after_their_timeout() -> None:
    streams = Streams(2, 1000.0)
    joined = streams.open(A, B, None, QOS, 0.0, 0.0).stream
    assert joined is not None
    streams.open(B, A, joined.stream_id, QOS, 0.0, 0.0)
    for made in range(3):
        opened_s = 10.0 * made
        lone = streams.open(A, B, None, QOS, opened_s, 0.0).stream
        assert lone is not None
        refused = streams.open(A, B, None, QOS, opened_s + 4.9, 0.0)
        assert refused.status == Status.NO_QKD_CONNECTION
        assert list(streams) == [joined, lone]


def test_a_stream_that_nobody_uses_is_forgotten() -> None:
    streams = Streams(2, 100.0)
    one = streams.open(A, B, ID, QOS, 0.0, 0.0).stream
    assert one is not None
    streams.open(B, A, ID, QOS, 50.0, 0.0)
    one.add(keys(0, 1), 149.0)
    assert streams.expire(149.9) == []
    assert streams.expire(150.0) == [Leftover(B, A, (keys(0, 1)[0].key_id,))]
    assert list(streams) == []
    assert one.ends == {A: End.CLOSED, B: End.CLOSED}


@pytest.mark.parametrize(
    ("asked", "spare_bps", "offer"),
    [
        (Qos(key_chunk_bytes=10_000), 0.0, Qos(key_chunk_bytes=8192)),
        (Qos(key_chunk_bytes=1), 0.0, Qos(key_chunk_bytes=8)),
        (Qos(key_chunk_bytes=32, min_bps=500), 499.9, Qos(key_chunk_bytes=32, min_bps=499)),
        (
            Qos(key_chunk_bytes=32, metadata_mimetype="text/xml"),
            0.0,
            Qos(key_chunk_bytes=32, metadata_mimetype="application/json"),
        ),
    ],
)
def test_what_cannot_be_given_gets_a_counter_proposal_that_is_then_met(
    asked: Qos, spare_bps: float, offer: Qos
) -> None:
    streams = Streams(2, 100.0)
    opening = streams.open(A, B, None, asked, 0.0, spare_bps)
    assert opening.status == Status.QOS_NOT_MET
    assert opening.stream is None
    assert opening.qos == offered(offer, spare_bps)[0]
    assert streams.open(A, B, None, opening.qos, 0.0, spare_bps).status == Status.SUCCESSFUL


def test_values_that_are_not_stated_get_defaults_and_guidance_refuses_nothing() -> None:
    offer, met = offered(Qos(), 0.0)
    assert met
    assert (offer.key_chunk_bytes, offer.timeout_ms, offer.ttl_s) == (32, DEFAULT_TIMEOUT_MS, DEFAULT_TTL_S)
    most = 2**32 - 1
    guided = Qos(max_bps=most, jitter_bps=most, priority=most, timeout_ms=most, ttl_s=most)
    offer, met = offered(guided, 0.0)
    assert met
    assert (offer.max_bps, offer.jitter_bps, offer.priority) == (most, most, most)
    assert (offer.timeout_ms, offer.ttl_s) == (MOST_TIMEOUT_MS, MOST_TTL_S)
