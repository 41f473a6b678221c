"""All that is said in one session, whoever says it: routing, blocks in the air, key control, resume.

Each role adds its own part (`AliceSide`, `BobSide`). A conversation ends with its session; every block that
is then in the air is lost at both sites, unless it was prepared: those are settled by `_resume` next time.
"""

import itertools
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

import msgspec
import structlog
import trio
from msgspec import UNSET, UnsetType

from qnode.block.outcome import BlockLost, Reason
from qnode.errors import LinkError, ProtocolError, ShareUsedUp, StoreError, StoreUnusable
from qnode.keys import Assignment, Handover, Loss, Release, StoreStanding, Waiting
from qnode.keys import BlockState as StoredState
from qnode.link.messages import (
    Assign,
    BlockDiscarded,
    BlockState,
    BlockStateAnswer,
    BlockStateQuery,
    GiveAway,
    Hello,
    KeyAnswer,
    NodeMessage,
    ReleaseAssignments,
    SaesRegistered,
    VoidAssignments,
    VoidHandover,
    VoidLost,
)
from qnode.node.dialogue.channel import BlockChannel, BlockMessage, BlockTag
from qnode.node.dialogue.context import BlockContext
from qnode.node.dialogue.observer import BlockObserver
from qnode.node.session.assignments import Assignments
from qnode.node.session.losses import tell_losses
from qnode.node.session.sae_tables import PeerSaes
from qnode.node.supply.async_store import PeerMemory

log = structlog.get_logger()

Answer = KeyAnswer | BlockStateAnswer
KeyRequest = Assign | VoidAssignments | ReleaseAssignments | GiveAway | VoidHandover | VoidLost
Work = Callable[[BlockChannel], Awaitable[None]]
RESUME_S = 30.0
T = TypeVar("T")
MOST_DETAIL = 1000  # characters; a message has room for no more than 2000


class Part(Protocol):
    """What only one role says and hears."""

    async def start(self) -> None:
        """Begin, once earlier blocks are settled."""

    async def handle(self, message: NodeMessage) -> None:
        """Take a message that no block waits for."""


class Conversation:
    """One session as the node uses it."""

    def __init__(self, context: BlockContext, observer: BlockObserver, nursery: trio.Nursery) -> None:
        self.context = context
        self._observer = observer
        self._nursery = nursery
        self._channels: dict[int, BlockChannel] = {}
        self._answers: dict[int, trio.MemorySendChannel[Answer]] = {}
        self._numbers = itertools.count(1)
        self.assignments = Assignments(context, nursery, self._ask_for_keys)
        self.accepted_chunks = 0
        """How many chunks the peer's encryptors have asked for in this session."""
        self.settled = trio.Event()
        self.peer_saes = PeerSaes()
        self.saes_told: Callable[[], None] = lambda: None
        """What to do when the peer has said which encryptors he has, in protocol 2."""

    async def run(self, part: Part) -> None:
        """Settle what the last session left, then route messages until the session ends."""
        self._nursery.start_soon(self._begin, part)
        try:
            await self._route(part)
        finally:
            for waiting in self._answers.values():
                waiting.close()
            self._answers.clear()
        raise LinkError(f"the peer said goodbye: {self.context.session.goodbye}")

    async def _route(self, part: Part) -> None:
        async for message in self.context.session:
            if isinstance(message, BlockMessage):
                channel = self._channels.get(message.block_id)
                if channel is not None:
                    if isinstance(message, BlockTag):
                        self.context.tag_order.arrive(message.block_id)
                    await channel.deliver(message)
                    continue
            if isinstance(message, Answer):
                self._take_answer(message)
            elif isinstance(message, KeyRequest):
                self._nursery.start_soon(self._serve_keys, message)
            elif isinstance(message, BlockStateQuery):
                self._nursery.start_soon(self._tell_states, message)
            elif isinstance(message, SaesRegistered):
                if self.peer_saes.take(message):
                    self.saes_told()
            else:
                await part.handle(message)

    async def _begin(self, part: Part) -> None:
        try:
            with trio.fail_after(RESUME_S):
                await self._resume()
        except trio.TooSlowError:
            raise LinkError(f"the sites could not settle earlier blocks within {RESUME_S:g} s") from None
        self.settled.set()
        await part.start()

    # Blocks

    def open_channel(self, block_id: int) -> BlockChannel:
        """Give a block its inbox."""
        channel = BlockChannel(self.context.session, block_id)
        self._channels[block_id] = channel
        return channel

    async def run_block(self, channel: BlockChannel, work: Work) -> None:
        """Run a block's dialogue to its end; a lost block is told to the peer and written down."""
        block_id = channel.block_id
        ended = False
        try:
            await work(channel)
            ended = True
        except StoreUnusable:
            raise
        except (BlockLost, StoreError) as error:
            lost = error if isinstance(error, BlockLost) else BlockLost(Reason.STORE, str(error))
            ended = True
            self._write_down(channel, lost.reason, lost.detail)
            if not lost.told:
                await self.context.session.send(
                    BlockDiscarded(block_id=block_id, reason=lost.reason, detail=lost.detail[:MOST_DETAIL])
                )
            if channel.prepared:  # here, and perhaps at the peer's: meeting anew settles it
                raise LinkError(f"the commit of block {block_id} was cut: {lost.reason}") from error
        finally:
            if not ended:
                self._write_down(channel, Reason.LINK, "the session with the peer ended")
            self._channels.pop(block_id, None)
            channel.close()
            with trio.CancelScope(shield=True):
                await self.context.tag_order.give_up(block_id)

    def _write_down(self, channel: BlockChannel, reason: str, detail: str) -> None:
        """Write down that a block was given up, or that only the next meeting shows what became of it."""
        note = self._observer.undecided if channel.prepared else self._observer.lost
        note(channel.block_id, reason, detail)

    # Requests and answers

    async def _ask(self, make: Callable[[int], NodeMessage]) -> Answer:
        number = next(self._numbers)
        deliver, receive = trio.open_memory_channel[Answer](1)
        self._answers[number] = deliver
        try:
            await self.context.session.send(make(number))
            return await receive.receive()
        except trio.EndOfChannel:
            raise LinkError("the session ended before the peer answered") from None
        finally:
            self._answers.pop(number, None)

    def _take_answer(self, answer: Answer) -> None:
        waiting = self._answers.pop(answer.request_id, None)
        if waiting is not None:  # otherwise the caller has given up
            waiting.send_nowait(answer)

    # Key control

    async def hand_over(self, handover: Handover) -> bool:
        """Have the peer own what this site has given away, or else void it; repeated until that is True.

        Raises:
            LinkError: the session ended.
        """
        content = msgspec.msgpack.encode(handover)
        answer = await self._ask_for_keys(lambda number: GiveAway(request_id=number, handover=content))
        if answer.ok:
            await self.context.store.finish_handover(handover.handover_id)
            return True
        log.error("handover.refused", handover=handover.handover_id, reason=answer.error)
        answer = await self._ask_for_keys(lambda number: VoidHandover(request_id=number, handover=content))
        if answer.ok:
            await self.context.store.void_handover(handover)
        return answer.ok

    async def _ask_for_keys(self, make: Callable[[int], NodeMessage]) -> KeyAnswer:
        answer = await self._ask(make)
        if not isinstance(answer, KeyAnswer):
            raise ProtocolError("a request to the key store was answered by something else")
        return answer

    async def _serve_keys(self, message: KeyRequest) -> None:
        """Do what the peer asks of this site's key store, and tell him once it is durable."""
        store = self.context.store
        ok, told = True, None
        share_used_up: bool | UnsetType = UNSET
        try:
            if isinstance(message, Assign):
                assignment = _decoded(message.assignment, Assignment)
                by_shares = self.context.session.knows(KeyAnswer, "share_used_up")
                await store.accept_assignment(assignment, by_shares=by_shares)
                if not assignment.stock:
                    self.accepted_chunks += sum(item.count for item in assignment.ranges)
            elif isinstance(message, VoidAssignments):
                for assignment in _decoded(message.assignments, list[Assignment]):
                    await store.void_accepted(assignment)
            elif isinstance(message, ReleaseAssignments):
                await store.release_accepted(_decoded(message.releases, list[Release]))
            elif isinstance(message, GiveAway):
                await store.take_over(_decoded(message.handover, Handover))
            elif isinstance(message, VoidLost):
                await store.accept_loss(_decoded(message.loss, Loss))
            else:
                await store.void_handover(_decoded(message.handover, Handover))
        except StoreError as error:
            ok, told = False, str(error)[:500]
            share_used_up = isinstance(error, ShareUsedUp) or UNSET
            log.warning("key_control.refused", request=type(message).__name__, reason=told)
        await self.context.session.send(
            KeyAnswer(request_id=message.request_id, ok=ok, error=told, share_used_up=share_used_up)
        )

    # Resume

    async def _resume(self) -> None:
        """Settle what an earlier session, or a restored database, left undecided."""
        peer = self.context.session.peer
        try:
            memory = msgspec.msgpack.decode(peer.positions, type=PeerMemory)
        except msgspec.DecodeError as error:
            raise ProtocolError(f"positions that cannot be read: {error}") from None
        standing = _standing(peer)
        voided, condition = await self.context.store.meet_peer(peer.generation, memory, standing)
        if voided:
            reason = condition.reason or "the peer remembers a later state than this store"
            log.error("store.voided", reason=reason)
        if not condition.serves:
            raise LinkError(f"this store serves nothing: {condition.reason}")
        if voided:
            # The peer must void its copies before anything else; it learns of it in the next hello.
            raise LinkError("this store was voided; connecting anew so that the peer hears of it")
        if standing is not None and standing.waits == Waiting.RESTORE:
            raise LinkError(
                "the peer's store serves nothing until a new pre-shared key is loaded; "
                "run qnodectl restore at both sites"
            )
        unconfirmed = await self.context.store.unconfirmed_blocks()
        if unconfirmed:
            answer = await self._ask(
                lambda number: BlockStateQuery(request_id=number, block_ids=tuple(unconfirmed))
            )
            if not isinstance(answer, BlockStateAnswer):
                raise ProtocolError("a question for block states was answered by something else")
            states = {state.block_id: state.state for state in answer.states}
            for block_id in unconfirmed:
                if states.get(block_id) in (StoredState.PREPARED, StoredState.AVAILABLE):
                    record = await self.context.store.block_record(block_id)
                    await self.context.store.confirm(block_id)
                    log.info("block.resumed", block=block_id)
                    self._observer.resumed(block_id, record)
                    continue
                try:
                    await self.context.store.void_block(block_id, "the peer does not hold it")
                    log.warning("block.void", block=block_id, reason="the peer does not hold it")
                except StoreError as error:
                    # The peer has used keys of a block that it says it does not hold: it was restored.
                    log.error("block.undecided", block=block_id, reason=str(error))
        self._observer.settled()
        await self.assignments.resume()
        await self._tell_losses()

    def loss_found(self) -> None:
        """Have the peer give up what cannot be opened here; the next session does, if this one ends."""

        async def work() -> None:
            try:
                await self._tell_losses()
            except StoreUnusable:
                raise
            except (LinkError, StoreError) as error:
                log.warning("store.loss_open", reason=str(error))

        self._nursery.start_soon(work)

    async def _tell_losses(self) -> None:
        """Have the peer give up what could not be opened here, if his protocol can say it."""
        if self.context.session.knows(VoidLost):
            await tell_losses(self.context.store, self._ask_for_keys)

    async def _tell_states(self, message: BlockStateQuery) -> None:
        states = await self.context.store.block_states(message.block_ids)
        await self.context.session.send(
            BlockStateAnswer(
                request_id=message.request_id,
                states=tuple(
                    BlockState(block_id, state.value)
                    for block_id, state in zip(message.block_ids, states, strict=True)
                ),
            )
        )


def _standing(peer: Hello) -> StoreStanding | None:
    """Return what the peer says of his store; None of protocol 1, which cannot say it."""
    if isinstance(peer.since_2, UnsetType) or not peer.since_2.store:
        return None
    try:
        return msgspec.msgpack.decode(peer.since_2.store, type=StoreStanding)
    except msgspec.DecodeError as error:
        raise ProtocolError(f"the state of a store that cannot be read: {error}") from None


def _decoded(content: bytes, kind: type[T]) -> T:
    try:
        return msgspec.msgpack.decode(content, type=kind)
    except msgspec.DecodeError as error:
        raise ProtocolError(f"key control that cannot be read: {error}") from None
