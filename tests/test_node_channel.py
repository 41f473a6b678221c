"""The conversation about a block: replies go out where messages are read; none is lost or overtaken."""

import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import cast

import pytest
import trio
import trio.testing
from link_room import Two, memory_sessions

from qnode.block.outcome import BlockLost
from qnode.errors import ProtocolError
from qnode.link import messages as m
from qnode.link.session import Session
from qnode.node.dialogue.channel import INBOX_MESSAGES, BlockChannel
from qnode.node.dialogue.context import BlockContext
from qnode.node.dialogue.observer import BlockObserver
from qnode.node.dialogue.tag_order import TagOrder
from qnode.node.session.router import SessionRouter
from qnode.world import streams
from qnode.world.streams import Connection

ROUNDS = 30
Asked = m.ReconcileRequest | m.VerifyBegin


def request(number: int, size: int = 4) -> m.ReconcileRequest:
    return m.ReconcileRequest(1, number.to_bytes(4, "big") + bytes(size - 4))


def never(_message: object) -> bool:
    return False


class Asking:
    """Bob's part: asks ``rounds`` times, each time with what was answered."""

    def __init__(self, channel: BlockChannel, rounds: int = ROUNDS, size: int = 4) -> None:
        self.channel, self.rounds, self.size = channel, rounds, size
        self.answers: list[int] = []

    def reply(self, answer: m.ReconcileAnswer) -> m.ReconcileRequest | None:
        self.answers.append(int.from_bytes(answer.payload[:4], "big"))
        return request(len(self.answers), self.size) if len(self.answers) < self.rounds else None

    async def run(self) -> None:
        await self.channel.send(request(0, self.size))
        await self.channel.converse(self.reply, never, m.ReconcileAnswer)
        await self.channel.send(m.VerifyBegin(1, bytes(16)))


def answer(message: Asked) -> m.ReconcileAnswer | None:
    return m.ReconcileAnswer(1, message.payload) if isinstance(message, m.ReconcileRequest) else None


@asynccontextmanager
async def channels() -> AsyncIterator[tuple[Two, Two]]:
    """Two sessions, and a channel of block 1 at each."""
    connection = Connection()
    async with memory_sessions(Two(connection.a, connection.b)) as sessions:
        both = Two(BlockChannel(sessions.alice, 1), BlockChannel(sessions.bob, 1))

        def deliver_to(channel: BlockChannel) -> Callable[[m.NodeMessage], bool]:
            def deliver(message: m.NodeMessage) -> bool:
                channel.deliver_at_once(message)  # type: ignore[arg-type]
                return True

            return deliver

        for name in ("alice", "bob"):
            getattr(sessions, name).deliver_at_once = deliver_to(getattr(both, name))
        await both.bob.send(m.BlockProposed(1, 1, 0, 1000))
        assert await both.alice.expect(m.BlockProposed) == m.BlockProposed(1, 1, 0, 1000)
        yield sessions, both


@asynccontextmanager
async def routed() -> AsyncIterator[tuple[Two, Two, Two]]:
    """Two sessions, a router at each, and their channels of blocks 1 and 2."""
    connection = Connection()
    async with memory_sessions(Two(connection.a, connection.b)) as sessions, trio.open_nursery() as nursery:
        firsts, seconds = list[BlockChannel](), list[BlockChannel]()
        for session in (sessions.alice, sessions.bob):
            context = cast(BlockContext, OnlySession(session))
            router = SessionRouter(context, cast(BlockObserver, None), nursery)
            session.deliver_at_once = router._deliver_at_once
            nursery.start_soon(router._route, Nobody())
            firsts.append(router.open_channel(1))
            seconds.append(router.open_channel(2))
        for block_id, (ours, theirs) in enumerate((firsts, seconds), 1):
            await theirs.send(m.BlockProposed(block_id, 1, 1000 * block_id, 1000))
            await ours.expect(m.BlockProposed)
        yield sessions, Two(*firsts), Two(*seconds)
        nursery.cancel_scope.cancel()


@dataclass
class OnlySession:
    """Of a block's context, the session."""

    session: Session
    role: str = "alice"
    link: None = None
    store: None = None
    tag_order: TagOrder = field(default_factory=TagOrder)


class Nobody:
    """The side of a site at which nobody handles what the router does not know."""

    async def start(self) -> None: ...

    async def handle(self, message: m.NodeMessage) -> None: ...


async def answer_all(channel: BlockChannel) -> Asked:
    return await channel.converse(answer, never, m.ReconcileRequest, m.VerifyBegin)


@pytest.mark.parametrize("another_sends", [False, True], ids=["alone", "beside a long message"])
async def test_a_reply_to_a_message_that_waited_behind_another_goes_out_at_once_and_in_order(
    another_sends: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qnode.link.session.PING_INTERVAL_S", 1e6)  # no other message takes it along
    with trio.fail_after(8.0):
        async with routed() as (sessions, first, second), trio.open_nursery() as nursery:
            nursery.start_soon(answer_all, first.alice)
            await trio.testing.wait_all_tasks_blocked()
            await sessions.bob.send(m.AlignmentProbeMessage(1, 1, b"", 0, 0))  # for the router's task
            await first.bob.send(request(7))
            if another_sends:
                await trio.testing.wait_all_tasks_blocked()
                await second.alice.send(m.SampleAnswer(2, bytes(100_000)))
                await second.bob.expect(m.SampleAnswer)
            assert await first.bob.expect(m.ReconcileAnswer) == answer(request(7))
            nursery.cancel_scope.cancel()


class Steps(trio.abc.Instrument):
    """Counts how often each task runs, by the end of its name."""

    def __init__(self) -> None:
        self.of: dict[str, int] = {}

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        name = task.name.rpartition(".")[2]
        self.of[name] = self.of.get(name, 0) + 1


async def test_a_conversation_needs_no_turn_of_its_tasks() -> None:
    steps = Steps()
    async with channels() as (_, both), trio.open_nursery() as nursery:
        asking = Asking(both.bob)
        trio.lowlevel.add_instrument(steps)
        nursery.start_soon(asking.run)
        nursery.start_soon(answer_all, both.alice)
    assert asking.answers == list(range(ROUNDS))
    assert steps.of["run"] < 10
    assert steps.of["answer_all"] < 10


async def test_the_transcripts_of_a_conversation_agree() -> None:
    async with channels() as (sessions, both):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Asking(both.bob).run)
            nursery.start_soon(answer_all, both.alice)
        for sender, receiver in ((sessions.alice, sessions.bob), (sessions.bob, sessions.alice)):
            sent = sender.transcript_hash(1, outgoing=True)
            assert sent == receiver.transcript_hash(1, outgoing=False)
            assert sent.n_bytes > 10 * ROUNDS


async def test_a_reply_that_the_line_does_not_take_at_once_arrives_whole_and_before_later_ones(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    async with channels() as (sessions, both):
        asking = Asking(both.bob, size=5000)
        monkeypatch.setattr(streams, "WINDOW_BYTES", 700)
        with trio.fail_after(10):  # pings, which take the rest with them, are too rare
            async with trio.open_nursery() as nursery:
                nursery.start_soon(asking.run)
                nursery.start_soon(answer_all, both.alice)
                for number in range(20):
                    nursery.start_soon(sessions.alice.send, m.Ping(number))
    assert asking.answers == list(range(ROUNDS))


async def test_a_reply_waits_for_its_turn_while_another_message_is_sent() -> None:
    async with channels() as (sessions, both), trio.open_nursery() as nursery:
        asking = Asking(both.bob)
        nursery.start_soon(answer_all, both.alice)
        await sessions.alice._turn.acquire()
        nursery.start_soon(asking.run)
        await trio.testing.wait_all_tasks_blocked()
        assert asking.answers == []
        sessions.alice._turn.release()
    assert asking.answers == list(range(ROUNDS))


async def test_a_reply_that_takes_long_is_made_in_a_thread() -> None:
    threads: list[str] = []

    def slowly(message: Asked) -> m.ReconcileAnswer | None:
        threads.append(threading.current_thread().name)
        return answer(message)

    def is_odd(message: Asked) -> bool:
        return isinstance(message, m.ReconcileRequest) and message.payload[3] % 2 == 1

    async with channels() as (_, both), trio.open_nursery() as nursery:
        nursery.start_soon(Asking(both.bob, rounds=4).run)
        await both.alice.converse(slowly, is_odd, m.ReconcileRequest, m.VerifyBegin)
    main = threading.main_thread().name
    assert [name == main for name in threads] == [True, False, True, False, True]


async def test_a_reply_that_fails_fails_in_its_task_and_the_session_goes_on() -> None:
    def refuse(_message: m.ReconcileRequest) -> None:
        raise ProtocolError("asks too much")

    async with channels() as (_, both):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(both.bob.send, request(0))
            with pytest.raises(ProtocolError, match="asks too much"):
                await both.alice.converse(refuse, never, m.ReconcileRequest)
        await both.alice.send(m.BlockAgreed(1))
        assert await both.bob.expect(m.BlockAgreed) == m.BlockAgreed(1)


@pytest.mark.parametrize("said", [m.BlockDiscarded(1, "store-full"), m.BlockAgreed(1)])
async def test_a_conversation_ends_with_what_does_not_belong_to_it(said: m.Message) -> None:
    error = BlockLost if isinstance(said, m.BlockDiscarded) else ProtocolError
    async with channels() as (_, both), trio.open_nursery() as nursery:
        nursery.start_soon(both.bob.send, said)
        with pytest.raises(error):
            await answer_all(both.alice)


async def test_messages_that_came_before_the_conversation_are_answered_in_order() -> None:
    async with channels() as (_, both):
        for number in range(5):
            await both.bob.send(request(number))
        await trio.testing.wait_all_tasks_blocked()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer_all, both.alice)
            for number in range(5):
                assert (await both.bob.expect(m.ReconcileAnswer)).payload == number.to_bytes(4, "big")
            await both.bob.send(m.VerifyBegin(1, bytes(16)))


class _Nobody:
    """A session on which nothing is sent."""

    def drop_transcript(self, block_id: int) -> None:
        pass


def alone(*, back_pressure: bool) -> BlockChannel:
    session: Session = _Nobody()  # type: ignore[assignment]
    return BlockChannel(session, 1, back_pressure=back_pressure)


async def test_a_full_inbox_makes_the_peer_wait_until_a_message_is_read_or_the_block_ends() -> None:
    channel = alone(back_pressure=True)
    for _ in range(INBOX_MESSAGES):
        assert not channel.must_wait
        channel.deliver_at_once(m.BlockAgreed(1))
    assert channel.must_wait
    with trio.fail_after(30):
        for step in (lambda: channel.expect(m.BlockAgreed), trio.lowlevel.checkpoint):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(channel.deliver, m.BlockAgreed(1))
                await trio.testing.wait_all_tasks_blocked()
                assert channel.must_wait
                await step()
                if step is trio.lowlevel.checkpoint:
                    channel.close()


async def test_without_back_pressure_one_message_too_many_is_an_error() -> None:
    channel = alone(back_pressure=False)
    for _ in range(INBOX_MESSAGES):
        channel.deliver_at_once(m.BlockAgreed(1))
    with pytest.raises(ProtocolError, match=f"more than {INBOX_MESSAGES} messages"):
        channel.deliver_at_once(m.BlockAgreed(1))


async def test_a_message_is_not_lost_with_a_wait_that_was_cancelled() -> None:
    channel = alone(back_pressure=False)
    with trio.move_on_after(0.01):
        await channel.expect(m.BlockAgreed)
    channel.deliver_at_once(m.BlockAgreed(1))
    assert await channel.expect(m.BlockAgreed) == m.BlockAgreed(1)
