"""The router of one session: passes each message to the block, request or part that waits for it.

A session has one router and ends with it. Every unfinished block is then lost at both sites, except prepared
blocks, which `qnode.node.session.resume` settles in the next session.
"""

from collections.abc import Awaitable, Callable
from typing import Protocol

import structlog
import trio

from qnode.block.outcome import BlockLost, Reason
from qnode.errors import LinkError, StoreError, StoreUnusable
from qnode.link.messages import (
    BlockDiscarded,
    BlockStateAnswer,
    BlockStateQuery,
    NodeMessage,
    SaesRegistered,
    StateOfBlock,
    StreamAnswer,
    StreamRequest,
)
from qnode.link.session import deliver_later
from qnode.node.dialogue.channel import BlockChannel, BlockMessage, BlockTag
from qnode.node.dialogue.context import BlockContext
from qnode.node.dialogue.observer import BlockObserver
from qnode.node.session.key_control import KeyControl, KeyRequest
from qnode.node.session.requests import Answer, PeerRequests
from qnode.node.session.resume import resume
from qnode.node.session.sae_tables import PeerSaes

log = structlog.get_logger()

Work = Callable[[BlockChannel], Awaitable[None]]
RESUME_S = 30.0
ANSWER_CHECK_S = 10.0
MOST_DETAIL = 1000  # characters; a message has room for no more than 2000
# Each may wait some seconds for keys or for an encryptor. Further ones get the answer of a site without any.
MOST_STREAM_REQUESTS = 256


class SessionSide(Protocol):
    """The tasks of one role in a session."""

    async def start(self) -> None:
        """Begin, after earlier blocks are settled."""

    async def handle(self, message: NodeMessage) -> None:
        """Handle a message that no block waits for."""


class SessionRouter:
    """One session from the view of the node; ``settled``: earlier operations are settled.

    ``saes_told``: called when the peer has sent its encryptors, in protocol 2. ``serve_stream``: answers the
    peer's requests about key streams.
    """

    def __init__(self, context: BlockContext, observer: BlockObserver, nursery: trio.Nursery) -> None:
        self.context = context
        self._observer = observer
        self._nursery = nursery
        self._channels: dict[int, BlockChannel] = {}
        self._requests = PeerRequests(context.session)
        self.keys = KeyControl(context, self._requests, nursery)
        self.settled = trio.Event()
        self.peer_saes = PeerSaes()
        self.saes_told: Callable[[], None] = lambda: None
        self.serve_stream: Callable[[bytes], Awaitable[bytes]] | None = None
        self._stream_requests = 0

    async def run(self, side: SessionSide) -> None:
        """Settle the open operations of the last session, then route messages until the session ends."""
        self.context.session.deliver_at_once = self._deliver_at_once
        self._nursery.start_soon(self._begin, side)
        self._nursery.start_soon(self._check_answers)
        try:
            await self._route(side)
        finally:
            # The session still reads for a while, but nobody serves what it reads.
            self.context.session.deliver_at_once = deliver_later
            self._requests.close()
        raise LinkError(f"the peer said goodbye: {self.context.session.goodbye}")

    async def _route(self, side: SessionSide) -> None:
        async for message in self.context.session:
            if self._deliver_at_once(message):
                continue
            if isinstance(message, BlockMessage) and (channel := self._channels.get(message.block_id)):
                self._note_tag(message)
                await channel.deliver(message)
            elif isinstance(message, BlockStateQuery):
                self._nursery.start_soon(self._tell_states, message)
            elif isinstance(message, StreamRequest):
                self._nursery.start_soon(self._answer_stream, message)
            elif isinstance(message, SaesRegistered):
                if self.peer_saes.take(message):
                    self.saes_told()
            else:
                await side.handle(message)

    def _deliver_at_once(self, message: NodeMessage) -> bool:
        """Deliver a message if nobody has to wait for that; the session's reader asks this first."""
        if isinstance(message, BlockMessage):
            channel = self._channels.get(message.block_id)
            if channel is None or channel.must_wait:
                return False
            self._note_tag(message)
            channel.deliver_at_once(message)
        elif isinstance(message, Answer):
            self._requests.take(message)
        elif isinstance(message, KeyRequest):
            self._nursery.start_soon(self.keys.serve, message)
        else:
            return False
        return True

    def _note_tag(self, message: BlockMessage) -> None:
        if isinstance(message, BlockTag):
            self.context.tag_order.arrive(message.block_id)

    async def _check_answers(self) -> None:
        while True:
            await trio.sleep(ANSWER_CHECK_S)
            for channel in self._channels.values():
                channel.check_answer(trio.current_time())

    async def _begin(self, side: SessionSide) -> None:
        try:
            with trio.fail_after(RESUME_S):
                await resume(self.context, self._observer, self._requests, self.keys)
        except trio.TooSlowError:
            raise LinkError(f"the sites could not settle earlier blocks within {RESUME_S:g} s") from None
        self.settled.set()
        await side.start()

    # Key streams

    async def ask_about_stream(self, request: bytes) -> bytes:
        """Return the peer's answer about a key stream of its own; raises LinkError."""
        return await self._requests.ask_about_stream(request)

    async def _answer_stream(self, message: StreamRequest) -> None:
        answer = b""
        if self.serve_stream is not None and self._stream_requests < MOST_STREAM_REQUESTS:
            self._stream_requests += 1
            try:
                answer = await self.serve_stream(message.request)
            finally:
                self._stream_requests -= 1
        await self.context.session.send(StreamAnswer(request_id=message.request_id, answer=answer))

    # Blocks

    def open_channel(self, block_id: int, *, back_pressure: bool = False) -> BlockChannel:
        """Create the inbox of a block; ``back_pressure``: see `BlockChannel`."""
        channel = BlockChannel(self.context.session, block_id, back_pressure=back_pressure)
        self._channels[block_id] = channel
        return channel

    async def run_block(self, channel: BlockChannel, work: Work) -> None:
        """Run the dialogue of a block; a lost block is reported to the peer and to the observer."""
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
            if channel.prepared:  # here, and perhaps at the peer: the next session settles it
                raise LinkError(f"the commit of block {block_id} was cut: {lost.reason}") from error
        finally:
            if not ended:
                self._write_down(channel, Reason.LINK, "the session with the peer ended")
            self._channels.pop(block_id, None)
            channel.close()
            with trio.CancelScope(shield=True):
                await self.context.tag_order.give_up(block_id)

    def _write_down(self, channel: BlockChannel, reason: str, detail: str) -> None:
        """Report that a block was lost, or that only the next session can settle it."""
        note = self._observer.undecided if channel.prepared else self._observer.lost
        note(channel.block_id, reason, detail)

    async def _tell_states(self, message: BlockStateQuery) -> None:
        states = await self.context.store.block_states(message.block_ids)
        await self.context.session.send(
            BlockStateAnswer(
                request_id=message.request_id,
                states=tuple(
                    StateOfBlock(block_id, state)
                    for block_id, state in zip(message.block_ids, states, strict=True)
                ),
            )
        )
