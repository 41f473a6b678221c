"""The end of a block, the same at both sites: authenticate, amplify, commit.

Nothing derived from the block leaves the node before both transcript tags have verified. The commit has two
steps: each side stores the block durably as prepared, then states this under a one-time tag. A block is
available at a site when its own copy is prepared and the peer's statement is verified. If a crash comes in
between, the next session settles the block (`Conversation`).
"""

import time

import trio

from qnode.block.decision import assumptions
from qnode.block.outcome import BlockLost, Reason
from qnode.config import LinkParameters
from qnode.distill.amplification.amplify import amplify
from qnode.distill.bits import Bits
from qnode.distill.keylength import Assumption, KeyLength
from qnode.errors import ProtocolError
from qnode.keys import BlockRecord, KeyLayout, PadsLeft, PreparedBlock
from qnode.link.authentication import AuthenticationTag
from qnode.link.messages import Prepared, TranscriptTag
from qnode.node.dialogue.channel import BlockChannel
from qnode.node.dialogue.context import BlockContext

# One for the tag of the transcript of a block, one for the tag of its commit.
PADS_OF_A_BLOCK = 2


def refill_pads(left: PadsLeft, link: LinkParameters) -> int:
    """Return the number of pads per direction by which a block's key refills the pool.

    It is the number that the block uses, and more if discarded blocks and lost sessions have used up the
    reserve.
    """
    if min(left.send, left.receive) >= link.keys.reserve_pads_per_direction:
        return PADS_OF_A_BLOCK
    return link.keys.refill_pads_per_direction


def check_refill(pads: int | None, link: LinkParameters) -> None:
    """Refuse a refill by Alice that the link does not allow; None: protocol 1 does not state it.

    Raises:
        ProtocolError: states the expected value.
    """
    most = link.keys.refill_pads_per_direction
    if pads is not None and not PADS_OF_A_BLOCK <= pads <= most:
        raise ProtocolError(f"refill_pads: {pads}, expected {PADS_OF_A_BLOCK} to {most}")


def key_layout(link: LinkParameters, pads: int | None) -> KeyLayout:
    """Return the division of a block's final key; ``pads``: the refill, None if protocol 1 fixes it."""
    return KeyLayout(
        pads_per_direction=link.keys.refill_pads_per_direction if pads is None else pads,
        direction_share_alice=link.keys.direction_share_alice,
    )


def block_epsilon(link: LinkParameters) -> float:
    """Return the failure probability of a block's key if accepted: eps_sec + eps_cor, without its tags."""
    return link.estimation.eps_sec + link.estimation.eps_cor


async def check_room(context: BlockContext) -> None:
    """Discard a block if the store is full, before one-time pads are used for it.

    Each site checks its own store: Bob before the end of the announcement, Alice before any disclosure.

    Raises:
        BlockLost: the keys of earlier blocks must be fetched first.
    """
    here = (await context.store.counts()).here
    if here >= context.store.most_chunks:
        raise BlockLost(Reason.STORE_FULL, f"{here} chunks wait to be fetched, the most that [store] allows")


async def authenticate(context: BlockContext, channel: BlockChannel) -> None:
    """Exchange and verify the transcript tags of a block, one per direction.

    Raises:
        AuthenticationError: the peer's tag does not fit the received transcript.
        PoolExhausted: no one-time pad is left.
    """
    block_id = channel.block_id
    outgoing = context.session.transcript_hash(block_id, outgoing=True)
    async with context.tag_order.sending:
        ours = await context.store.make_tag(outgoing)
        await channel.send(
            TranscriptTag(
                block_id=block_id, pad_segment=ours.pad_segment, pad_index=ours.pad_index, tag=ours.tag
            )
        )
    theirs = await channel.expect(TranscriptTag)
    incoming = context.session.transcript_hash(block_id, outgoing=False)
    async with context.tag_order.turn(block_id):
        await context.store.verify_tag(
            incoming, AuthenticationTag(theirs.pad_segment, theirs.pad_index, theirs.tag)
        )


async def commit(
    context: BlockContext,
    channel: BlockChannel,
    sifted: Bits,
    seed: bytes,
    result: KeyLength,
    pads: int | None,
) -> None:
    """Amplify the block's key and commit it in two steps; ``pads``: the refill that Alice stated."""
    key = await trio.to_thread.run_sync(amplify, sifted, seed, result.length)
    layout = key_layout(context.link, pads)
    content = key.to_bytes()[: result.length // 8]
    record = BlockRecord(
        estimator=result.estimator,
        eps_sec=context.link.estimation.eps_sec,
        eps_cor=context.link.estimation.eps_cor,
        x_mode=result.x_mode,
        assumptions=tuple(assumptions(result, context.link).values()),
        recorded=Assumption.RECORDED in result.assumptions,
        simulated=context.simulated,
        n_chunks=layout.n_chunks(len(content)),
        secret_bits=result.length,
        created_at=time.time(),
    )
    await context.store.prepare(PreparedBlock(channel.block_id, content, record, layout))
    channel.prepared = True
    block_id = channel.block_id
    statement = _statement(block_id, result.length)
    hashed = context.session.statement_hash(block_id, statement, outgoing=True)
    async with context.tag_order.sending:
        ours = await context.store.make_tag(hashed)
        await channel.send(
            Prepared(block_id=block_id, pad_segment=ours.pad_segment, pad_index=ours.pad_index, tag=ours.tag)
        )
    theirs = await channel.expect(Prepared)
    expected = context.session.statement_hash(block_id, statement, outgoing=False)
    async with context.tag_order.turn(block_id):
        await context.store.verify_tag(
            expected, AuthenticationTag(theirs.pad_segment, theirs.pad_index, theirs.tag)
        )
    await context.store.confirm(block_id)


def _statement(block_id: int, length: int) -> bytes:
    """Encode "I hold block ``block_id`` of ``length`` bits, durably" for its one-time tag."""
    return b"prepared" + block_id.to_bytes(8, "big") + length.to_bytes(8, "big")
