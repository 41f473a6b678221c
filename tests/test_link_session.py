"""A session over memory streams: hello, transcripts, keep-alive, and how it ends."""

from typing import Any

import msgspec
import pytest
import trio
import trio.testing
from link_room import Greetings, MemoryPadId, MemoryPads, Two, greet_both, local_end, memory_sessions
from test_protocol_2 import tag_counts
from trio.testing import MockClock, memory_stream_pair

from qnode.block.pipeline_depth import method_for
from qnode.config import LinkParameters, SourceParameters
from qnode.errors import AuthenticationError, ConfigError, LinkError, PeerRefused, ProtocolError
from qnode.link import messages as m
from qnode.link.authentication import make_tag, verify_tag
from qnode.link.codec import decode, encode
from qnode.link.directions import Direction
from qnode.link.frames import LARGEST_PAYLOAD_BYTES, FrameStream
from qnode.link.hello import Greeted, LocalEnd, Standing
from qnode.link.session import open_session
from qnode.link.session_keys import derive_session_keys

NONCE = bytes(range(16))


# --- hello ---


async def test_fitting_sites_greet_and_learn_each_others_standing() -> None:
    standing = Standing(last_block_id=812, generation=4, positions=b"opaque")
    greeted = await greet_both(local_end("alice", standing=lambda: standing), local_end("bob"))
    assert isinstance(greeted.alice, Greeted)
    assert greeted.bob.peer.last_block_id == 812
    assert (greeted.bob.peer.generation, greeted.bob.peer.positions) == (4, b"opaque")
    assert greeted.alice.peer.kme_id == "kme-bob"
    assert greeted.alice.hellos == greeted.bob.hellos


async def test_different_parameters_are_named_on_both_sides() -> None:
    ours, theirs = LinkParameters(), LinkParameters(source=SourceParameters(mu=(0.48, 0.2)))
    greeted = await greet_both(local_end("alice", parameters=ours), local_end("bob", parameters=theirs))
    assert isinstance(greeted.alice, PeerRefused)
    assert isinstance(greeted.bob, PeerRefused)
    assert "link.source.mu: ours [0.5, 0.2], theirs [0.48, 0.2]" in str(greeted.alice)
    assert "link.source.mu: ours [0.48, 0.2], theirs [0.5, 0.2]" in str(greeted.bob)


async def test_every_difference_is_named() -> None:
    theirs = LinkParameters(name="north", source=SourceParameters(p_z=0.9, p=(0.6, 0.4)))
    greeted = await greet_both(local_end("alice"), local_end("bob", parameters=theirs, kme_id="kme-eve"))
    for part in (
        "peer.kme_id: expected kme-bob, theirs 'kme-eve'",
        "link.name: ours 'link', theirs 'north'",
        "link.source.p: ours [0.7, 0.3], theirs [0.6, 0.4]",
        "link.source.p_z: ours 0.5, theirs 0.9",
    ):
        assert str(greeted.alice).count(part) == 1


async def test_a_site_with_simulated_hardware_makes_no_key_with_one_that_has_none() -> None:
    greeted = await greet_both(local_end("alice", simulated=True), local_end("bob"))
    assert "node.allow_simulated: ours True, theirs False" in str(greeted.alice)
    assert "node.allow_simulated: ours False, theirs True" in str(greeted.bob)


def test_a_name_too_long_for_a_hello_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match=r"link\.name: expected 1 to 128"):
        local_end("alice", parameters=LinkParameters(name=129 * "x"))


async def test_two_of_the_same_role_are_refused() -> None:
    greeted = await greet_both(local_end("alice", peer_kme_id="kme-alice"), local_end("alice"))
    assert "node.role: ours alice, theirs alice" in str(greeted.alice)


@pytest.mark.parametrize(
    ("ours", "theirs", "agreed"), [((2, 1), (1, 1), 1), ((2, 1), (3, 2), 2), ((2, 1), (2, 1), 2)]
)
async def test_neighbouring_protocols_agree_on_the_older(
    ours: tuple[int, int], theirs: tuple[int, int], agreed: int
) -> None:
    greeted = await greet_both(
        local_end("alice", protocol=ours[0], oldest_protocol=ours[1]),
        local_end("bob", protocol=theirs[0], oldest_protocol=theirs[1]),
    )
    assert (greeted.alice.protocol, greeted.bob.protocol) == (agreed, agreed)


async def test_distant_protocols_are_refused_by_name() -> None:
    greeted = await greet_both(local_end("alice"), local_end("bob", protocol=4, oldest_protocol=3))
    assert "protocol: ours 1 to 2, theirs 3 to 4" in str(greeted.alice)
    assert "protocol: ours 3 to 4, theirs 1 to 2" in str(greeted.bob)


async def test_a_wrong_preshared_key_is_refused_and_both_sides_say_so() -> None:
    greeted = await greet_both(local_end("alice"), local_end("bob", secrets=MemoryPads("bob", seed=2)))
    assert isinstance(greeted.alice, AuthenticationError)
    assert isinstance(greeted.bob, PeerRefused)
    for error in (greeted.alice, greeted.bob):
        assert "load the same pre-shared key" in str(error)


async def test_what_the_peer_says_is_shown_escaped_and_short() -> None:
    theirs = msgspec.structs.replace(LinkParameters(), name="x\n\x1b[2J" + 100 * "y")
    greeted = await greet_both(local_end("alice"), local_end("bob", parameters=theirs))
    assert isinstance(greeted.alice, LinkError)
    assert str(greeted.alice).isprintable()
    assert len(str(greeted.alice)) < 500


@pytest.mark.parametrize("first", [m.HelloProof(bytes(32)), m.Goodbye("out of turn")])
async def test_a_hello_out_of_turn_is_a_protocol_error(first: m.Message) -> None:
    ours, theirs = memory_stream_pair()
    await FrameStream(theirs).send(encode(first))
    greeted = await greet_both(local_end("alice"), local_end("bob"), Two(ours, theirs))
    assert isinstance(greeted.alice, ProtocolError)


def test_session_keys_differ_by_direction_purpose_root_and_hellos() -> None:
    a = derive_session_keys(b"root", b"hellos", Direction.ALICE_TO_BOB)
    b = derive_session_keys(b"root", b"hellos", Direction.BOB_TO_ALICE)
    assert (a.outgoing_proof, a.outgoing_frames) == (b.incoming_proof, b.incoming_frames)
    everything = {a.outgoing_proof, a.incoming_proof, a.outgoing_frames, a.incoming_frames}
    other = derive_session_keys(b"root", b"other hellos", Direction.ALICE_TO_BOB)
    another = derive_session_keys(b"another root", b"hellos", Direction.ALICE_TO_BOB)
    assert len(everything | {other.outgoing_frames, another.outgoing_frames}) == 6
    assert b.peer_proves(b"hellos", a.proof(b"hellos"))
    assert not a.peer_proves(b"hellos", a.proof(b"hellos"))
    assert repr(a) == "SessionKeys(outgoing=<Direction.ALICE_TO_BOB: 1>)"


async def listened(greeted: Greetings, alice: LocalEnd) -> None:
    """Run Alice's session; an error must cancel the body, not let it end as if the peer had said goodbye."""
    async with open_session(greeted.frames.alice, alice, greeted.alice) as session:
        async for _ in session:
            pass
        raise AssertionError("the iteration ended in order")


# --- messages and transcripts ---


async def test_a_block_dialogue_is_sealed_at_both_ends() -> None:
    alice_pads, bob_pads = MemoryPads("alice"), MemoryPads("bob")
    async with memory_sessions() as two:
        channel: list[tuple[Any, Any, m.Message]] = [
            (two.alice, two.bob, m.BlockProposed(1, 1, 0, 1000)),
            (two.bob, two.alice, m.BlockAgreed(1)),
            (two.bob, two.alice, m.ClickBatch(1, 0, b"clicks")),
            (two.bob, two.alice, m.ClicksEnded(1, 6, 0, NONCE, False, tag_counts())),
            (two.alice, two.bob, m.Sifted(1, b"k", b"d", 4, ((1, 2),) * 5, 0, False, (3, 1), 4)),
            (two.alice, two.bob, m.Amplify(1, 2, b"seed", 3, 2)),
        ]
        for sender, receiver, message in channel:
            await sender.send(message)
            assert await receiver.receive() == message
        for sender, receiver, pads, peer_pads in (
            (two.alice, two.bob, alice_pads, bob_pads),
            (two.bob, two.alice, bob_pads, alice_pads),
        ):
            sealed = make_tag(pads, sender.transcript_hash(1, outgoing=True))
            await sender.send(m.TranscriptTag(1, sealed.pad_segment, sealed.pad_index, sealed.tag))
            tag = await receiver.receive()
            pad_id = MemoryPadId(tag.pad_segment, tag.pad_index)
            verify_tag(peer_pads, receiver.transcript_hash(1, outgoing=False), pad_id, tag.tag)
    assert alice_pads.confirmed == bob_pads.confirmed == [0]


async def test_the_transcript_contains_the_hellos() -> None:
    values = []
    for _ in range(2):
        async with memory_sessions() as two:
            await two.alice.send(m.BlockProposed(1, 1, 0, 1000))
            await two.bob.receive()
            values.append(two.alice.transcript_hash(1, outgoing=True).value)
            assert two.bob.transcript_hash(1, outgoing=False).value == values[-1]
    assert values[0] != values[1]


async def test_a_statement_hashes_alike_in_every_session() -> None:
    values = set()
    for _ in range(2):
        async with memory_sessions() as two:
            values.add(two.alice.statement_hash(1, b"prepared", outgoing=True).value)
            values.add(two.bob.statement_hash(1, b"prepared", outgoing=False).value)
    assert len(values) == 1


async def test_messages_of_a_dropped_block_reach_neither_side() -> None:
    async with memory_sessions() as two:
        await two.alice.send(m.BlockProposed(1, 1, 0, 1000))
        await two.bob.receive()
        two.alice.drop_transcript(1)
        await two.alice.send(m.Amplify(1, 2, b"seed", 3, 2))
        await two.bob.send(m.BlockAgreed(1))
        await two.bob.send(m.BlockDiscarded(1, "next"))
        assert await two.alice.receive() == m.BlockDiscarded(1, "next")
        assert two.alice.stale_messages == 2


async def test_a_dialogue_message_of_an_unknown_block_ends_the_session() -> None:
    alice = local_end("alice")
    greeted = await greet_both(alice, local_end("bob"))
    await greeted.frames.bob.send(encode(m.BlockAgreed(3)))
    with pytest.raises(ProtocolError, match="block 3, which was not proposed"):
        await listened(greeted, alice)


async def test_a_hello_within_a_session_is_a_protocol_error() -> None:
    alice = local_end("alice")
    greeted = await greet_both(alice, local_end("bob"))
    await greeted.frames.bob.send(encode(greeted.alice.peer))
    with pytest.raises(ProtocolError, match="not a message of this protocol"):
        await listened(greeted, alice)


async def test_concurrent_senders_keep_the_transcripts_in_step() -> None:
    async with memory_sessions() as two:
        await two.bob.send(m.BlockProposed(1, 1, 0, 1000))
        async with trio.open_nursery() as nursery:
            for slot in range(40):
                nursery.start_soon(two.bob.send, m.ClickBatch(1, slot, bytes(slot)))
            assert isinstance(await two.alice.receive(), m.BlockProposed)
            slots = {(await two.alice.receive()).first_slot for _ in range(40)}
        assert slots == set(range(40))
        assert two.alice.transcript_hash(1, outgoing=False) == two.bob.transcript_hash(1, outgoing=True)


# --- keep-alive and ends ---


async def test_pings_measure_the_round_trip(autojump_clock: MockClock) -> None:
    async with memory_sessions() as two:
        await trio.sleep(10)
        assert two.alice.round_trip_s >= 0
        assert two.bob.round_trip_s >= 0


async def test_correction_is_chosen_by_the_round_trip_of_the_path_and_not_by_that_under_load(
    autojump_clock: MockClock,
) -> None:
    def method(round_trip_s: float) -> str:
        return method_for(LinkParameters(), round_trip_s, 1_000_000, 0.1)

    async with memory_sessions() as two:
        await trio.sleep(1.0)
        quiet_s = two.alice.path_round_trip_s
        assert quiet_s < 0.01
        for _ in range(30):
            await two.bob._turn.acquire()  # bulk is being sent, and pongs wait for their turn
            await trio.sleep(3.0)
            two.bob._turn.release()
            await trio.sleep(0.0)
        assert two.alice.round_trip_s > 0.5
        assert two.alice.path_round_trip_s == quiet_s
        assert (method(two.alice.round_trip_s), method(two.alice.path_round_trip_s)) == ("ldpc", "cascade")


async def test_a_path_that_has_become_longer_is_known_within_minutes(autojump_clock: MockClock) -> None:
    async with memory_sessions() as two:
        await trio.sleep(1.0)
        two.alice._round_trips_s.clear()
        two.alice._round_trips_s.append(-1.0)  # of a path that is no more
        await trio.sleep(290.0)
        assert two.alice.path_round_trip_s == -1.0
        await trio.sleep(20.0)
        assert two.alice.path_round_trip_s >= 0.0


async def test_silence_is_noticed_within_ten_seconds(autojump_clock: MockClock) -> None:
    alice = local_end("alice")
    greeted = await greet_both(alice, local_end("bob"))
    start_s = trio.current_time()
    with pytest.raises(LinkError, match="nothing was heard"):
        await listened(greeted, alice)
    assert trio.current_time() - start_s <= 10


@pytest.mark.parametrize("length", [0, 1 << 10, LARGEST_PAYLOAD_BYTES])
async def test_bytes_without_a_verified_frame_are_silence(autojump_clock: MockClock, length: int) -> None:
    """A forged length must not keep a session that swallows whatever arrives behind it."""
    alice = local_end("alice")
    greeted = await greet_both(alice, local_end("bob"))
    start_s = trio.current_time()

    async def dribble() -> None:
        stream = greeted.frames.bob.stream
        await stream.send_all(length.to_bytes(4, "big"))
        while True:
            await trio.sleep(1)
            await stream.send_all(b"x" if length > 1 << 10 else b"")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(dribble)
        with pytest.raises(LinkError, match="nothing was heard"):
            await listened(greeted, alice)
        nursery.cancel_scope.cancel()
    assert trio.current_time() - start_s <= 26


async def test_a_long_frame_over_a_slow_line_is_heard(autojump_clock: MockClock) -> None:
    alice = local_end("alice")
    greeted = await greet_both(alice, local_end("bob"))
    ours, theirs = memory_stream_pair()
    wire, greeted.frames.bob.stream = greeted.frames.bob.stream, ours
    messages = [m.BlockProposed(1, 1, 0, 10), m.ClickBatch(1, 0, bytes(8 << 20))]
    for message in messages:
        await greeted.frames.bob.send(encode(message))
    data = bytes(await theirs.receive_some(1 << 24))

    async def drip() -> None:
        for start in range(0, len(data), 1 << 20):
            await trio.sleep(1.5)
            await wire.send_all(data[start : start + (1 << 20)])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(drip)
        async with open_session(greeted.frames.alice, alice, greeted.alice) as session:
            assert [await session.receive() for _ in messages] == messages
            await greeted.frames.bob.stream.aclose()


async def test_a_node_that_does_not_receive_is_not_taken_for_dead(autojump_clock: MockClock) -> None:
    async with memory_sessions() as two:
        for number in range(100):
            await two.bob.send(m.BlockDiscarded(1, str(number)))
        await trio.sleep(60)
        assert [(await two.alice.receive()).reason for _ in range(100)] == [str(n) for n in range(100)]


async def test_a_message_is_delivered_at_once_unless_an_earlier_one_waits_or_is_handled() -> None:
    at_once: list[str] = []

    def deliver(message: m.NodeMessage) -> bool:
        assert isinstance(message, m.BlockDiscarded)
        if message.reason.startswith("waits"):
            return False
        at_once.append(message.reason)
        return True

    async def say(*reasons: str) -> None:
        for reason in reasons:
            await two.bob.send(m.BlockDiscarded(1, reason))
        await trio.testing.wait_all_tasks_blocked()

    async with memory_sessions() as two:
        two.alice.deliver_at_once = deliver
        await say("first")
        assert at_once == ["first"]
        await say("waits", "behind it")
        assert at_once == ["first"]
        assert await two.alice.receive() == m.BlockDiscarded(1, "waits")
        assert await two.alice.receive() == m.BlockDiscarded(1, "behind it")
        await say("while it is handled")
        assert at_once == ["first"]
        assert await two.alice.receive() == m.BlockDiscarded(1, "while it is handled")
        with trio.move_on_after(0.01):
            await two.alice.receive()
        await say("last")
        assert at_once == ["first", "last"]


async def test_leaving_says_goodbye_and_ends_the_peers_iteration() -> None:
    alice, bob = local_end("alice"), local_end("bob")
    greeted = await greet_both(alice, bob)
    seen: list[m.Message] = []

    async def listen() -> None:
        async with open_session(greeted.frames.alice, alice, greeted.alice) as session:
            async for message in session:
                seen.append(message)
            assert session.goodbye == "maintenance"
            with pytest.raises(LinkError, match="said goodbye: maintenance"):
                await session.receive()
            with pytest.raises(LinkError, match="said goodbye: maintenance"):
                await session.send(m.BlockDiscarded(1, "too late"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(listen)
        async with open_session(greeted.frames.bob, bob, greeted.bob, goodbye="maintenance") as session:
            await session.send(m.BlockDiscarded(1, "last words"))
    assert seen == [m.BlockDiscarded(1, "last words")]


async def test_a_tampered_frame_ends_the_session_with_an_authentication_error() -> None:
    alice = local_end("alice")
    greeted = await greet_both(alice, local_end("bob"))
    await greeted.frames.bob.stream.send_all(bytes([0, 0, 0, 1, 0xC0]) + bytes(16))
    with pytest.raises(AuthenticationError):
        await listened(greeted, alice)


async def test_an_error_of_the_body_comes_out_as_it_is() -> None:
    alice = local_end("alice")
    greeted = await greet_both(alice, local_end("bob"))

    async def fail() -> None:
        async with open_session(greeted.frames.alice, alice, greeted.alice):
            assert isinstance(decode(await greeted.frames.bob.receive()), m.Ping)
            raise KeyError("mine") from ValueError("its cause")

    with pytest.raises(KeyError, match="mine") as caught:
        await fail()
    assert isinstance(caught.value.__cause__, ValueError)
    with pytest.raises(LinkError, match="closed the connection without a goodbye"):
        await greeted.frames.bob.receive()


async def test_a_cancelled_send_ends_sending_but_not_receiving() -> None:
    class Stuck(trio.abc.Stream):
        """Passes everything on until it is told to block."""

        def __init__(self, inner: trio.abc.Stream) -> None:
            self.inner, self.blocked = inner, False

        async def send_all(self, data: Any) -> None:
            if self.blocked:
                await trio.sleep_forever()
            await self.inner.send_all(data)

        async def wait_send_all_might_not_block(self) -> None:
            await trio.lowlevel.checkpoint()

        async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
            return await self.inner.receive_some(max_bytes)

        async def aclose(self) -> None:
            await self.inner.aclose()

    ours, theirs = memory_stream_pair()
    stuck = Stuck(ours)
    async with memory_sessions(Two(stuck, theirs)) as two:
        await trio.testing.wait_all_tasks_blocked()
        stuck.blocked = True
        with trio.move_on_after(0.01):
            await two.alice.send(m.BlockDiscarded(1, "lost"))
        with pytest.raises(LinkError, match="cut off"):
            await two.alice.send(m.BlockDiscarded(1, "never"))
        await two.bob.send(m.BlockDiscarded(1, "heard"))
        assert await two.alice.receive() == m.BlockDiscarded(1, "heard")
