"""The channel for the dialogue about one block, the same at both sites.

A session has many blocks at once. Each has an inbox of its own, so that a waiting block never delays another
one. A block ends when it is accepted, or by `BlockLost` with the reason.
"""

import math
from collections import deque
from collections.abc import Callable
from typing import TypeVar

import trio

from qnode.block.outcome import BlockLost, reason_from_peer
from qnode.errors import ProtocolError, QnodeError
from qnode.link.messages import BlockDiscarded, DialogueMessage, Prepared, TranscriptTag, printable
from qnode.link.session import Session

BlockTag = TranscriptTag | Prepared
BlockMessage = DialogueMessage | BlockTag | BlockDiscarded
M = TypeVar("M", bound=BlockMessage)

# Messages of one block that may wait.
INBOX_MESSAGES = 64
# The longest time for an answer of the peer; a loaded machine with a full pipeline stays below it. Without a
# limit, a peer that is alive and does not answer would hold a place in the pipeline for ever.
ANSWER_LIMIT_S = 600.0


class BlockChannel:
    """Send and expect messages of one block.

    ``back_pressure``: while `INBOX_MESSAGES` wait, TCP makes the peer wait. Alice needs this when clicks come
    faster than Alice looks up symbols. Without it, one more message is an error: Bob reads no message of a
    block that it still announces, and a full inbox would stop the session.
    """

    def __init__(self, session: Session, block_id: int, *, back_pressure: bool = False) -> None:
        self.block_id = block_id
        self._back_pressure = back_pressure
        self.prepared = False
        """The block's key is durably prepared at this site: both sites settle its outcome together."""
        self._session = session
        self._inbox: deque[BlockMessage] = deque()
        self._room = trio.lowlevel.ParkingLot()  # messages that wait for the inbox
        self._closed = False
        # A memory channel would cost several turns and objects for each message.
        self._expecting: trio.lowlevel.Task | None = None
        self._arrived: BlockMessage | None = None
        self._reply: Callable[[BlockMessage], BlockMessage | None] | None = None
        self._unsent: BlockMessage | None = None
        self._failure: QnodeError | None = None
        self._within_s = math.inf
        self._since_s: float | None = None

    @property
    def protocol(self) -> int:
        """The protocol of the session."""
        return self._session.protocol

    @property
    def must_wait(self) -> bool:
        """Whether the peer's next message has to wait until this block has read another one."""
        return self._back_pressure and len(self._inbox) >= INBOX_MESSAGES

    def deliver_at_once(self, message: BlockMessage) -> None:
        """Pass a received message to the task that expects it, or into the inbox, unless it `must_wait`.

        Raises:
            ProtocolError: the peer has sent more messages than the dialogue has.
        """
        if self._closed:  # a block that has just ended ignores messages that were still on their way
            return
        if self._expecting is not None:
            if not self._replied(message):
                self._wake(message)
        elif len(self._inbox) < INBOX_MESSAGES:
            self._inbox.append(message)
        else:
            raise ProtocolError(
                f"block {self.block_id}: more than {INBOX_MESSAGES} messages without a request"
            )

    async def deliver(self, message: BlockMessage) -> None:
        """Pass a received message on when there is room."""
        while self._expecting is None and len(self._inbox) >= INBOX_MESSAGES and not self._closed:
            await self._room.park()
        self.deliver_at_once(message)

    def check_answer(self, now_s: float) -> None:
        """Wake the task that waits for a message of the peer if its time is over; to be called now and then.

        A cancel scope around each wait would cost more than all the rest of it.
        """
        if self._expecting is None:
            return
        if self._since_s is None:
            self._since_s = now_s
        elif now_s >= self._since_s + self._within_s:
            self._wake(None)

    async def send(self, message: BlockMessage) -> None:
        """Send ``message`` to the peer."""
        await self._session.send(message)

    async def expect(self, *kinds: type[M], within_s: float = ANSWER_LIMIT_S) -> M:
        """Return the next message of this block, which must be of one of ``kinds``.

        Raises:
            BlockLost: the peer discarded the block.
            ProtocolError: the peer sent another message, or none ``within_s``.
        """
        while (message := await self._next(within_s)) is not None and self._unsent is not None:
            unsent, self._unsent = self._unsent, None
            await self.send(unsent)
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure
        if isinstance(message, kinds):
            return message
        if isinstance(message, BlockDiscarded):
            raise BlockLost(reason_from_peer(message.reason), printable(message.detail), told=True)
        wanted = " or ".join(kind.__name__ for kind in kinds)
        if message is None:
            raise ProtocolError(f"block {self.block_id}: no {wanted} within {within_s:g} s")
        raise ProtocolError(f"block {self.block_id}: expected {wanted}, got {type(message).__name__}")

    async def converse(
        self,
        reply: Callable[[M], BlockMessage | None],
        takes_long: Callable[[M], bool],
        *kinds: type[M],
    ) -> M:
        """Send what ``reply`` returns for each message, until it returns None; return the message then.

        A reply that does not take long is made and sent where the message is read: a round without a turn of
        this task costs half. One that takes long is made in a worker thread. Raises as `expect`, and what
        ``reply`` raises.
        """
        ended = False

        def reply_at_once(message: BlockMessage) -> BlockMessage | None:
            nonlocal ended
            if not isinstance(message, kinds) or takes_long(message):
                return None
            made = reply(message)
            ended = made is None
            return made

        while True:
            self._reply = reply_at_once
            try:
                message = await self.expect(*kinds)
            finally:
                self._reply = None
            if ended:
                return message
            if takes_long(message):
                made = await trio.to_thread.run_sync(reply, message)
            else:
                made = reply(message)
            if made is None:
                return message
            await self.send(made)

    def _replied(self, message: BlockMessage) -> bool:
        """Reply to a message of a conversation; False if the task has to do something."""
        if self._reply is None:
            return False
        try:
            made = self._reply(message)
            if made is None:
                return False
            if self._session.send_at_once(made):
                self._since_s = None
                return True
            self._unsent = made
        except QnodeError as error:  # it is the task's
            self._failure = error
        return False

    async def _next(self, within_s: float) -> BlockMessage | None:
        """Return the next message, None if none comes ``within_s``."""
        if self._inbox:
            await trio.lowlevel.checkpoint_if_cancelled()
            message = self._inbox.popleft()
            self._room.unpark()
            return message
        self._within_s, self._since_s = within_s, None
        self._expecting = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(self._give_up)
        arrived, self._arrived = self._arrived, None
        return arrived

    def _wake(self, message: BlockMessage | None) -> None:
        assert self._expecting is not None
        self._arrived = message
        trio.lowlevel.reschedule(self._expecting)
        self._expecting = None

    def _give_up(self, _raise_cancel: Callable[[], None]) -> trio.lowlevel.Abort:
        self._expecting = None
        return trio.lowlevel.Abort.SUCCEEDED

    def close(self) -> None:
        """Discard the rest of the inbox, and the transcripts."""
        self._closed = True
        self._inbox.clear()
        self._room.unpark_all()
        self._session.drop_transcript(self.block_id)
