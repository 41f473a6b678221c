"""Alice's side of a block: discloses nothing before the whole block is announced, answers Bob, decides."""

import math
from collections.abc import Callable
from functools import partial

import trio

from qnode.block.decision import check_clicks, check_size, decide, verification_bits
from qnode.block.outcome import BlockLost, Reason
from qnode.block.span import BlockSpan
from qnode.distill.amplification.amplify import seed_length_bytes
from qnode.distill.bits import Bits
from qnode.distill.block_counts import BlockCounts
from qnode.distill.counts import Pair, XCounts
from qnode.distill.sifting.sift import SiftRecord, late_by_intensity
from qnode.distill.sifting.span_parts import PartCounts
from qnode.distill.verify import verification_tag
from qnode.errors import ProtocolError
from qnode.link.messages import (
    Amplify,
    BlockAgreed,
    ClickBatch,
    ClicksEnded,
    CountPair,
    Sifted,
    Verified,
    VerifyChallenge,
)
from qnode.node.dialogue.announcement import announcement_codec
from qnode.node.dialogue.channel import BlockChannel
from qnode.node.dialogue.claimed_counts import check_tags
from qnode.node.dialogue.commit import authenticate, block_epsilon, check_room, commit, refill_pads
from qnode.node.dialogue.context import BlockContext
from qnode.node.dialogue.observer import BlockObserver
from qnode.node.dialogue.reconciliation import answer_corrections
from qnode.operate.recording.frames import WholeBlock
from qnode.operate.recording.recordings import Recording
from qnode.tags.site_recording import RecordedBlock
from qnode.tags.types import Slots, SymbolLookup

Note = Callable[[Slots], None]


async def run_alice_block(
    context: BlockContext,
    channel: BlockChannel,
    span: BlockSpan,
    lookup: SymbolLookup,
    note: Note,
    observer: BlockObserver,
    recording: Recording | None = None,
) -> None:
    """Take part in one block from its proposal to its commit.

    ``lookup`` returns the symbols of slots. ``note`` registers the announced slots, and
    refuses slots that must not be sifted. ``recording`` is notified when the block is complete.

    Raises:
        BlockLost: the block gives no key.
        LinkError: the peer violated the protocol or its authentication; the session must end.
    """
    await context.store.record_block_opened(channel.block_id, block_epsilon(context.link))
    await channel.send(BlockAgreed(channel.block_id))
    record = SiftRecord(span.first_slot)
    announced, began = await _listen(channel, span, record, lookup, note)
    tags = announced.tags
    ended = trio.current_time()
    if recording is not None:
        recording.put(WholeBlock(RecordedBlock(channel.block_id, span.first_slot, span.n_slots)))
    await check_room(context)
    context.watch.check_now(began)
    sifted = await trio.to_thread.run_sync(record.finish)
    n_z = sifted.n_z
    await channel.send(
        Sifted(
            block_id=channel.block_id,
            keep_mask=sifted.keep.to_bytes(),
            decoy_bits=sifted.decoy.to_bytes(),
            n_kept=len(sifted.bits),
            x_counts=_pairs(sifted.x_counts),
            dropped=sifted.unknown,
            recorded=recording is not None,
            n_z_plus=_pair(sifted.n_z_plus) if tags is not None else None,
            boundary=sifted.boundary if tags is not None else None,
        )
    )
    observer.dropped(announced.dropped + sifted.unknown)
    observer.sifted(channel.block_id, n_z, sifted.x_counts, span)
    check_size(len(sifted.bits), context.link)
    disclosed = await answer_corrections(context, channel, sifted.bits)
    m_z = await _verify(context, channel, sifted.bits, n_z)
    counts = BlockCounts(
        n_z=n_z,
        m_z=m_z,
        x=sifted.x_counts,
        alice_parities=disclosed.parities,
        reconciliation_leak_bits=disclosed.leak_bits,
        method=disclosed.method,
        n_z_plus=sifted.n_z_plus if tags is not None else None,
        boundary=sifted.boundary if tags is not None else None,
        tags=tags,
        n_slots=span.n_slots,
        late=late_by_intensity(sifted.bits, sifted.decoy) if tags is not None else None,
    )
    observer.verified(channel.block_id, counts)
    await context.watch.check(began, ended)
    recorded = recording is not None or announced.recorded
    result = await trio.to_thread.run_sync(partial(decide, counts, context.link, recorded=recorded))
    seed = await context.draw(seed_length_bytes(len(sifted.bits)))
    pads = None
    if context.session.knows(Amplify, "refill_pads"):
        pads = refill_pads(await context.store.pads_left(), context.link)
    await channel.send(
        Amplify(
            block_id=channel.block_id,
            length=result.length,
            seed=seed,
            lambda_ec_bits=counts.lambda_ec_bits,
            refill_pads=pads,
        )
    )
    await authenticate(context, channel)
    observer.distilled(channel.block_id, counts, result, span, trio.current_time() - ended)
    await commit(context, channel, sifted.bits, seed, result, pads)
    observer.accepted(channel.block_id, counts, result, span, trio.current_time() - ended)


def _pairs(x: XCounts) -> tuple[CountPair, CountPair, CountPair, CountPair, CountPair]:
    return (_pair(x.c_plus), _pair(x.c_z), _pair(x.e_same), _pair(x.e_plus), _pair(x.e_dark))


def _pair(counts: Pair) -> CountPair:
    return int(counts.signal), int(counts.decoy)


async def _listen(
    channel: BlockChannel, span: BlockSpan, record: SiftRecord, lookup: SymbolLookup, note: Note
) -> tuple[ClicksEnded, float]:
    """Look up the symbols of each announced batch at once: Alice's record reaches back about a second.

    Returns Bob's final message, and when the first one came, by trio's clock.
    """
    parts = PartCounts(span.first_slot, span.n_slots)
    decode = announcement_codec(channel.protocol).decode

    def take(batch: ClickBatch) -> int:
        announced = decode(batch.payload, batch.first_slot, span.end_slot - batch.first_slot)
        note(announced.slots)
        record.add(announced, lookup)
        parts.add(announced)
        return len(announced)

    n_clicks, began = 0, math.inf
    while True:
        message = await channel.expect(ClickBatch, ClicksEnded, within_s=math.inf)  # as clicks come
        began = min(began, trio.current_time())
        if isinstance(message, ClicksEnded):
            break
        assert isinstance(message, ClickBatch)
        if not span.first_slot <= message.first_slot < span.end_slot:
            raise ProtocolError(f"block {channel.block_id}: clicks outside its span")
        n_clicks += await trio.to_thread.run_sync(take, message)
        check_clicks(n_clicks)
    if message.n_clicks != n_clicks:
        raise ProtocolError(f"block {channel.block_id}: {message.n_clicks} clicks said, not {n_clicks}")
    try:
        if message.tags is not None:
            check_tags(message.tags, n_clicks, parts)
    except ProtocolError as error:
        raise ProtocolError(f"block {channel.block_id}: {error}") from None
    return message, began


async def _verify(context: BlockContext, channel: BlockChannel, key: Bits, n_z: Pair) -> Pair:
    """Verify Bob's key by a hash with a seed drawn now; return Bob's error counts."""
    tag_bits = verification_bits(context.link, len(key))
    seed = await context.draw(tag_bits // 8)
    tag = await trio.to_thread.run_sync(verification_tag, key, seed, tag_bits)
    await channel.send(VerifyChallenge(block_id=channel.block_id, seed=seed, tag=tag))
    verified = await channel.expect(Verified)
    if not verified.equal:
        raise BlockLost(Reason.VERIFICATION, "the two sides differ after correction")
    m_z = Pair(verified.m_z_signal, verified.m_z_decoy)
    if m_z.signal > n_z.signal or m_z.decoy > n_z.decoy:
        raise ProtocolError(f"block {channel.block_id}: more errors than bits")
    return m_z
