"""The open transcripts of a session: two for each block in progress.

`BlockProposed` opens a block, in either direction; block numbers grow within a session, so no block is
opened twice. A message about a block that was dropped is stale: the end of a block is a race between the
sites, and such a message reaches neither the peer nor the node.
"""

from qnode.errors import ProtocolError
from qnode.link.authentication import HashKeyPair, Transcript, TranscriptHash
from qnode.link.directions import Direction
from qnode.link.messages import BlockProposed, DialogueMessage

OPEN_BLOCKS_LIMIT = 64


class Transcripts:
    """Running transcripts by block and direction."""

    def __init__(self, hash_keys: HashKeyPair, outgoing: Direction, hellos: bytes) -> None:
        self._hash_keys = hash_keys
        self._outgoing = outgoing
        self._hellos = hellos
        self._open: dict[int, _Pair] = {}
        self._latest_block_id = -1
        self.stale_messages = 0
        """The number of messages dropped with their block."""

    def enter(self, message: DialogueMessage, payload: bytes | memoryview, *, outgoing: bool) -> bool:
        """Append ``payload`` to the transcript of its block and direction; False when the message is stale.

        Raises:
            ProtocolError: the block was never opened, is opened again or out of order, its transcript is
                finished or too long, or too many blocks are open.
        """
        if isinstance(message, BlockProposed):
            self._open_block(message.block_id)
        pair = self._open.get(message.block_id)
        if pair is None:
            if message.block_id > self._latest_block_id:
                raise ProtocolError(
                    f"{type(message).__name__} for block {message.block_id}, which was not proposed"
                )
            self.stale_messages += 1
            return False
        (pair.outgoing if outgoing else pair.incoming).enter(payload)
        return True

    def finish(self, block_id: int, *, outgoing: bool) -> TranscriptHash:
        """Close one direction of a block and return its hash.

        Raises:
            ProtocolError: the block is not open.
        """
        pair = self._open.get(block_id)
        if pair is None:
            raise ProtocolError(f"block {block_id} has no open transcript")
        return (pair.outgoing if outgoing else pair.incoming).finish()

    def drop(self, block_id: int) -> None:
        """Forget both transcripts of a block; nothing if it is not open."""
        self._open.pop(block_id, None)

    def statement(self, block_id: int, statement: bytes, *, outgoing: bool) -> TranscriptHash:
        """Return the hash of a statement outside the dialogue, such as "prepared".

        It does not depend on the session, so that a statement can be repeated with its tag after a
        reconnection. No pad is ever used for two different texts.
        """
        return self._new(block_id, (statement,), b"statement", outgoing=outgoing).finish()

    def _open_block(self, block_id: int) -> None:
        if block_id <= self._latest_block_id:
            raise ProtocolError(f"block {block_id} was proposed after block {self._latest_block_id}")
        if len(self._open) >= OPEN_BLOCKS_LIMIT:
            raise ProtocolError(f"more than {OPEN_BLOCKS_LIMIT} blocks are open")
        self._latest_block_id = block_id
        self._open[block_id] = _Pair(
            outgoing=self._new(block_id, (self._hellos,), b"dialogue", outgoing=True),
            incoming=self._new(block_id, (self._hellos,), b"dialogue", outgoing=False),
        )

    def _new(
        self, block_id: int, context: tuple[bytes, ...], purpose: bytes, *, outgoing: bool
    ) -> Transcript:
        direction = self._outgoing if outgoing else self._outgoing.reverse
        hash_key = self._hash_keys.send if outgoing else self._hash_keys.receive
        return Transcript(hash_key, direction, block_id, context, purpose)


class _Pair:
    def __init__(self, outgoing: Transcript, incoming: Transcript) -> None:
        self.outgoing = outgoing
        self.incoming = incoming
