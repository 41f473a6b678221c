"""The channel for the dialogue about one block, the same at both sites.

A session has many blocks at once. Each has an inbox of its own, so that a waiting block never delays another
one. A block ends when it is accepted, or by `BlockLost` with the reason.
"""

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

# Messages of one block that may wait; beyond that, TCP makes the sender wait.
INBOX_MESSAGES = 64


class BlockChannel:
    """Send and expect messages of one block."""

    def __init__(self, session: Session, block_id: int) -> None:
        self.block_id = block_id
        self.prepared = False
        """The block's key is durably prepared at this site: both sites settle its outcome together."""
        self._session = session
        self._deliver, self._inbox = trio.open_memory_channel[BlockMessage](INBOX_MESSAGES)

    async def deliver(self, message: BlockMessage) -> None:
        """Put a received message into the inbox (called by the session's reader)."""
        # A block that has just ended ignores messages that were still on their way.
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await self._deliver.send(message)

    async def send(self, message: BlockMessage) -> None:
        """Send ``message`` to the peer."""
        await self._session.send(message)

    async def expect(self, *kinds: type[M]) -> M:
        """Return the next message of this block, which must be of one of ``kinds``.

        Raises:
            BlockLost: the peer discarded the block.
            ProtocolError: the peer sent another message.
        """
        message = await self._inbox.receive()
        if isinstance(message, kinds):
            return message
        if isinstance(message, BlockDiscarded):
            raise BlockLost(reason_from_peer(message.reason), printable(message.detail), told=True)
        wanted = " or ".join(kind.__name__ for kind in kinds)
        raise ProtocolError(f"block {self.block_id}: expected {wanted}, got {type(message).__name__}")

    def close(self) -> None:
        """Discard the rest of the inbox, and the transcripts."""
        self._deliver.close()
        self._inbox.close()
        self._session.drop_transcript(self.block_id)
