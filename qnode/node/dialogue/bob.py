"""Bob's side of a block: announces slot and arm of clicks, corrects towards Alice, checks Alice's counts."""

import math
import secrets
from collections.abc import Iterable
from functools import partial

import numpy as np
import trio

from qnode.block.decision import check_size, decide, verification_bits
from qnode.block.outcome import BlockLost, Reason
from qnode.block.span import BlockSpan
from qnode.distill.amplification.amplify import seed_length_bytes
from qnode.distill.bits import Bits
from qnode.distill.bits.planes import joined, plane
from qnode.distill.block_counts import BlockCounts
from qnode.distill.counts import Pair, TagCounts, XCounts
from qnode.distill.sifting.announced import Announced
from qnode.distill.sifting.sift import errors_by_intensity, keep_bits, late_by_intensity
from qnode.distill.sifting.span_counts import SpanCounts
from qnode.distill.verify import verification_tag
from qnode.errors import LinkError, ProtocolError
from qnode.link.messages import (
    Amplify,
    BlockAgreed,
    BlockProposed,
    ClickBatch,
    ClicksEnded,
    Sifted,
    Verified,
    VerifyBegin,
    VerifyChallenge,
)
from qnode.node.dialogue.announcement import announcement_codec
from qnode.node.dialogue.channel import BlockChannel
from qnode.node.dialogue.claimed_counts import AnnouncedClicks, check_sifted
from qnode.node.dialogue.commit import authenticate, block_epsilon, check_refill, check_room, commit
from qnode.node.dialogue.context import BlockContext
from qnode.node.dialogue.observer import BlockObserver
from qnode.node.dialogue.reconciliation import correct
from qnode.operate.recording.recordings import Recording
from qnode.tags.marks import Marks
from qnode.tags.types import OUTCOME_LATE, Clicks, SlotRange

NONCE_BYTES = 16


class BobBlock:
    """A block from its proposal on. One task announces clicks; another distils after `ended`."""

    def __init__(
        self,
        context: BlockContext,
        channel: BlockChannel,
        span: BlockSpan,
        observer: BlockObserver,
        recording: Recording | None = None,
    ) -> None:
        self.span = span
        self.recording = recording
        self.channel = channel
        self.proposed = False
        self.opened = False
        """The number of the block is used up, so the block must be decided."""
        self.withdrawn = False
        self.agreed = trio.Event()
        self.decided = trio.Event()
        self._context = context
        self._observer = observer
        self._late: list[Bits] = []
        self._x_arm: list[Bits] = []
        self._announced = AnnouncedClicks()
        self._began = math.inf
        self._counts = SpanCounts(span.first_slot, span.n_slots)

    async def propose(self) -> None:
        """Agree on the span with Alice, before it starts; nothing is announced before Alice agrees.

        Raises:
            LinkError: Alice refuses.
        """
        await self._context.store.record_block_opened(
            self.channel.block_id, block_epsilon(self._context.link)
        )
        self.opened = True
        span = self.span
        await self.channel.send(
            BlockProposed(
                block_id=self.channel.block_id,
                run_id=span.run_id,
                first_slot=span.first_slot,
                n_slots=span.n_slots,
            )
        )
        try:
            await self.channel.expect(BlockAgreed)
        except BlockLost as lost:
            # Alice refuses only if the run has just ended; a new session states the present run.
            raise LinkError(f"block {self.channel.block_id} was not agreed: {lost}") from None
        self.agreed.set()

    async def announce(self, clicks: Clicks, arrived_s: float = math.inf) -> None:
        """Announce slot and arm of ``clicks``, all within the span and later than those before.

        ``arrived_s``: when they arrived by trio's clock; they may have waited for the block's agreement.
        """
        if not len(clicks):
            return
        self._began = min(self._began, arrived_s, trio.current_time())
        first_slot = int(clicks.slots[0])
        # One or two nanoseconds per click: less than the transfer of a batch to a thread and back.
        announced = Announced.of(clicks)
        payload = announcement_codec(self.channel.protocol).encode(announced, first_slot)
        self._late.append(plane(clicks.outcomes, OUTCOME_LATE))
        self._x_arm.append(announced.x_arm)
        self._announced.add(announced)
        self._counts.add_clicks(announced)
        await self.channel.send(
            ClickBatch(block_id=self.channel.block_id, first_slot=first_slot, payload=payload)
        )

    def note(self, marks: Marks, cuts: Iterable[SlotRange]) -> None:
        """Count the ``marks`` in the span, each reported once, and its slots that were cut."""
        self._counts.add_marks(marks)
        self._counts.add_cuts(cuts)

    def tag_counts(self) -> TagCounts:
        """Return the counts of tags of the announced part of the span."""
        return self._counts.tag_counts()

    async def distil(self, dropped: int, qber_estimate: float | None) -> None:
        """End the announcement, and distil the block to key together with Alice.

        ``qber_estimate``: see `qnode.block.error_rate`; without it a sample is disclosed first.

        Raises:
            BlockLost: the block gives no key.
            LinkError: the peer violated the protocol or its authentication; the session must end.
        """
        context, channel = self._context, self.channel
        ended = trio.current_time()
        await check_room(context)
        began = min(self._began, ended)
        context.watch.check_now(began)
        tags = self.tag_counts() if context.session.knows(ClicksEnded, "tags") else None
        await channel.send(
            ClicksEnded(
                block_id=channel.block_id,
                n_clicks=self._announced.total,
                dropped=dropped,
                nonce=secrets.token_bytes(NONCE_BYTES),
                recorded=self.recording is not None,
                tags=tags,
            )
        )
        sifted = await channel.expect(Sifted)
        received, decoy = await trio.to_thread.run_sync(self._keep, sifted)
        x = XCounts(*(Pair(*pair) for pair in sifted.x_counts))
        try:
            check_sifted(sifted, x, self._announced)
        except ProtocolError as error:
            raise ProtocolError(f"block {channel.block_id}: {error}") from None
        n_z = _pair_of(decoy)
        self._observer.dropped(sifted.dropped)
        self._observer.sifted(channel.block_id, n_z, x, self.span)
        check_size(len(received), context.link)
        filled_in_s = self.span.n_slots / context.link.source.qubit_rate_hz
        correction = await correct(context, channel, received, filled_in_s, qber_estimate, self._observer)
        corrected, disclosed = correction.key, correction.disclosed
        m_z = await self._verify(received, corrected, decoy)
        counts = BlockCounts(
            n_z=n_z,
            m_z=m_z,
            x=x,
            alice_parities=disclosed.parities,
            reconciliation_leak_bits=disclosed.leak_bits,
            method=disclosed.method,
            n_z_plus=Pair(*sifted.n_z_plus) if sifted.n_z_plus is not None else None,
            boundary=sifted.boundary,
            tags=tags,
            n_slots=self.span.n_slots,
            late=late_by_intensity(corrected, decoy) if tags is not None else None,
        )
        self._observer.verified(channel.block_id, counts)
        await context.watch.check(began, ended)
        recorded = self.recording is not None or sifted.recorded
        result = await trio.to_thread.run_sync(partial(decide, counts, context.link, recorded=recorded))
        amplify = await channel.expect(Amplify)
        if amplify.length != result.length or amplify.lambda_ec_bits != counts.lambda_ec_bits:
            raise BlockLost(
                Reason.DISAGREEMENT,
                f"Alice counts {amplify.length} secret and {amplify.lambda_ec_bits} disclosed bits, "
                f"Bob {result.length} and {counts.lambda_ec_bits}",
            )
        if len(amplify.seed) != seed_length_bytes(len(corrected)):
            raise ProtocolError(f"block {channel.block_id}: amplification seed of a wrong length")
        try:
            check_refill(amplify.refill_pads, context.link)
        except ProtocolError as error:
            raise ProtocolError(f"block {channel.block_id}: {error}") from None
        await authenticate(context, channel)
        self._observer.distilled(channel.block_id, counts, result, self.span, trio.current_time() - ended)
        await commit(context, channel, corrected, amplify.seed, result, amplify.refill_pads)
        self._observer.accepted(channel.block_id, counts, result, self.span, trio.current_time() - ended)

    def _keep(self, sifted: Sifted) -> tuple[Bits, Bits]:
        late, x_arm = joined(self._late), joined(self._x_arm)
        self._late.clear()
        self._x_arm.clear()
        try:
            keep = Bits.from_bytes(sifted.keep_mask, self._announced.total)
            decoy = Bits.from_bytes(sifted.decoy_bits, sifted.n_kept)
        except ValueError as error:
            raise ProtocolError(f"block {self.channel.block_id}: {error}") from None
        received = keep_bits(late, x_arm, keep)
        if len(received) != sifted.n_kept:
            raise ProtocolError(f"block {self.channel.block_id}: the keep mask does not fit its count")
        return received, decoy

    async def _verify(self, received: Bits, corrected: Bits, decoy: Bits) -> Pair:
        await self.channel.send(
            VerifyBegin(block_id=self.channel.block_id, nonce=secrets.token_bytes(NONCE_BYTES))
        )
        challenge = await self.channel.expect(VerifyChallenge)
        tag_bits = verification_bits(self._context.link, len(corrected))
        if 8 * len(challenge.seed) != tag_bits:
            raise ProtocolError(f"block {self.channel.block_id}: verification seed of a wrong length")
        tag = await trio.to_thread.run_sync(verification_tag, corrected, challenge.seed, tag_bits)
        equal = secrets.compare_digest(tag, challenge.tag)
        m_z = await trio.to_thread.run_sync(errors_by_intensity, received, corrected, decoy)
        await self.channel.send(
            Verified(
                block_id=self.channel.block_id,
                equal=equal,
                m_z_signal=int(m_z.signal),
                m_z_decoy=int(m_z.decoy),
                nonce=secrets.token_bytes(NONCE_BYTES),
            )
        )
        if not equal:
            raise BlockLost(Reason.VERIFICATION, "the two sides differ after correction", told=True)
        return m_z


def _pair_of(decoy: Bits) -> Pair:
    n_decoy = int(np.bitwise_count(decoy.words).sum())
    return Pair(len(decoy) - n_decoy, n_decoy)
