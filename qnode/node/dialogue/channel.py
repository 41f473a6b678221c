"""The channel for the dialogue about one block, the same at both sites.

A session has many blocks at once. Each has an inbox of its own, so that a waiting block never delays another
one. A block ends when it is accepted, or by `BlockLost` with the reason.
"""

import math
from contextlib import suppress
from typing import TypeVar

import trio

from qnode.block.outcome import BlockLost, reason_from_peer
from qnode.errors import ProtocolError
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
        self._deliver, self._inbox = trio.open_memory_channel[BlockMessage | None](INBOX_MESSAGES)
        self._answer_by_s = math.inf

    @property
    def protocol(self) -> int:
        """The protocol of the session."""
        return self._session.protocol

    @property
    def must_wait(self) -> bool:
        """Whether the peer's next message has to wait until this block has read another one."""
        full = self._deliver.statistics().current_buffer_used >= INBOX_MESSAGES
        return full and self._back_pressure

    def deliver_at_once(self, message: BlockMessage) -> None:
        """Put a received message into the inbox, unless it `must_wait`.

        Raises:
            ProtocolError: the peer has sent more messages than the dialogue has.
        """
        # A block that has just ended ignores messages that were still on their way.
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            try:
                self._deliver.send_nowait(message)
            except trio.WouldBlock:
                raise ProtocolError(
                    f"block {self.block_id}: more than {INBOX_MESSAGES} messages without a request"
                ) from None

    async def deliver(self, message: BlockMessage) -> None:
        """Put a received message into the inbox when there is room."""
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await self._deliver.send(message)

    def check_answer(self, now_s: float) -> None:
        """Wake the task that waits for a message of the peer if its time is over; to be called now and then.

        A cancel scope around each wait would cost more than all the rest of it.
        """
        if now_s >= self._answer_by_s and self._inbox.statistics().tasks_waiting_receive:
            self._deliver.send_nowait(None)

    async def send(self, message: BlockMessage) -> None:
        """Send ``message`` to the peer."""
        await self._session.send(message)

    async def expect(self, *kinds: type[M], within_s: float = ANSWER_LIMIT_S) -> M:
        """Return the next message of this block, which must be of one of ``kinds``.

        Raises:
            BlockLost: the peer discarded the block.
            ProtocolError: the peer sent another message, or none ``within_s``.
        """
        wanted = " or ".join(kind.__name__ for kind in kinds)
        self._answer_by_s = trio.current_time() + within_s
        message = await self._inbox.receive()
        self._answer_by_s = math.inf
        if message is None:
            raise ProtocolError(f"block {self.block_id}: no {wanted} within {within_s:g} s")
        if isinstance(message, kinds):
            return message
        if isinstance(message, BlockDiscarded):
            raise BlockLost(reason_from_peer(message.reason), printable(message.detail), told=True)
        raise ProtocolError(f"block {self.block_id}: expected {wanted}, got {type(message).__name__}")

    def close(self) -> None:
        """Discard the rest of the inbox, and the transcripts."""
        self._deliver.close()
        self._inbox.close()
        self._session.drop_transcript(self.block_id)
