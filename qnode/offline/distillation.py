"""From a sifted block to key at both sides: the dialogue of two nodes as one function."""

import secrets
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from qnode.block.decision import check_qber, check_size, decide, verification_bits
from qnode.block.disclosed import Disclosed
from qnode.block.error_rate import ErrorRate
from qnode.block.outcome import BlockLost, Reason
from qnode.block.sample import sample_of
from qnode.block.span_policy import RecentBlocks
from qnode.config import LinkParameters
from qnode.distill.amplification.amplify import amplify, seed_length_bytes
from qnode.distill.bits import Bits
from qnode.distill.block_counts import BlockCounts
from qnode.distill.keylength import KeyLength
from qnode.distill.reconcile import SEED_BYTES, ReconciliationFailed, corrector, responder
from qnode.distill.sifting.sift import errors_by_intensity, late_by_intensity
from qnode.distill.verify import verification_tag
from qnode.offline.sifting import BothSides, Span, sifted_blocks
from qnode.tags.synchroniser import SyncResult
from qnode.tags.types import SymbolLookup

RandomBytes = Callable[[int], bytes]


@dataclass(frozen=True, eq=False)
class DistilledBlock:
    """The outcome of one block.

    ``counts`` is None if it was lost before the end of correction; ``key`` (secret, the same at both sites)
    and ``result`` are None if it gave no key, for the reason ``lost``.
    """

    number: int
    span: Span
    clicks: int
    sifted_bits: int
    rounds: int = 0
    counts: BlockCounts | None = None
    result: KeyLength | None = None
    key: Bits | None = None
    lost: str = ""
    detail: str = ""

    def __repr__(self) -> str:
        return f"DistilledBlock({self.number}, {self.secret_bits} secret bits, lost={self.lost!r})"

    @property
    def secret_bits(self) -> int:
        """Length of the key."""
        return len(self.key) if self.key is not None else 0


@dataclass(frozen=True, eq=False)
class Corrected:
    """Bob's corrected key, the disclosure, and the number of round trips."""

    key: Bits
    disclosed: Disclosed
    rounds: int

    def __repr__(self) -> str:
        return f"Corrected({len(self.key)} bits, {self.disclosed}, {self.rounds} rounds)"


def distilled(
    results: Iterable[SyncResult],
    lookup: SymbolLookup,
    link: LinkParameters,
    random_bytes: RandomBytes = secrets.token_bytes,
) -> Iterator[DistilledBlock]:
    """Yield the outcome of each block of synchronised clicks, in order.

    The spans follow `qnode.block.span_policy`.
    """
    recent = RecentBlocks()
    blocks = enumerate(sifted_blocks(results, lookup, link, recent), 1)
    return distilled_blocks(blocks, link, recent, random_bytes)


def distilled_blocks(
    blocks: Iterable[tuple[int, BothSides]],
    link: LinkParameters,
    recent: RecentBlocks,
    random_bytes: RandomBytes = secrets.token_bytes,
) -> Iterator[DistilledBlock]:
    """Yield the outcome of each block by its number, and add it to ``recent``.

    The estimate of the error rate follows `qnode.block.error_rate`.
    """
    error_rate = ErrorRate(link.block.qber_z_limit)
    for number, block in blocks:
        done = distil(number, block, link, error_rate.value, random_bytes)
        if done.counts is not None:
            error_rate.counted(done.counts.qber_z)
        if done.counts is not None and not done.lost:
            recent.accepted((block.span.end - block.span.first) / link.source.qubit_rate_hz, done.counts)
        else:
            recent.lost(done.lost)
            error_rate.lost(done.lost)
        yield done


def distil(
    number: int,
    block: BothSides,
    link: LinkParameters,
    qber_estimate: float | None,
    random_bytes: RandomBytes,
) -> DistilledBlock:
    """Correct, verify and amplify one block at both sides.

    Without ``qber_estimate`` a sample is disclosed first, and counted.
    """
    alice, received = block.alice, block.received
    base = DistilledBlock(number, block.span, block.clicks, len(received))
    counts: BlockCounts | None = None
    rounds = 0
    try:
        check_size(len(received), link)
        corrected = correct(alice.bits, received, link, qber_estimate, random_bytes)
        rounds = corrected.rounds
        counts = BlockCounts(
            n_z=alice.n_z,
            m_z=errors_by_intensity(received, corrected.key, alice.decoy),
            x=alice.x_counts,
            alice_parities=corrected.disclosed.parities,
            reconciliation_leak_bits=corrected.disclosed.leak_bits,
            n_z_plus=alice.n_z_plus,
            boundary=alice.boundary,
            tags=block.tags,
            n_slots=block.span.end - block.span.first,
            late=late_by_intensity(corrected.key, alice.decoy),
        )
        verify(alice.bits, corrected.key, link, random_bytes)
        result = decide(counts, link)
    except BlockLost as lost:
        return replace(base, rounds=rounds, counts=counts, lost=lost.reason, detail=lost.detail)
    except ReconciliationFailed as failed:
        return replace(base, lost="reconciliation", detail=str(failed))
    seed = random_bytes(seed_length_bytes(len(received)))
    ours, theirs = (amplify(bits, seed, result.length) for bits in (alice.bits, corrected.key))
    if not ours.equals(theirs):
        raise AssertionError(f"block {number} was verified, but its keys differ")
    return replace(base, rounds=rounds, counts=counts, result=result, key=ours)


def verify(ours: Bits, corrected: Bits, link: LinkParameters, random_bytes: RandomBytes) -> None:
    """Compare the two sites' hashes of the block.

    Raises:
        BlockLost: they differ.
    """
    tag_bits = verification_bits(link, len(ours))
    seed = random_bytes(tag_bits // 8)
    if verification_tag(ours, seed, tag_bits) != verification_tag(corrected, seed, tag_bits):
        raise BlockLost(Reason.VERIFICATION, "the two sides differ after correction")


def correct(
    ours: Bits, received: Bits, link: LinkParameters, qber_estimate: float | None, random_bytes: RandomBytes
) -> Corrected:
    """Correct ``received`` (Bob's) towards ``ours`` (Alice's), by the messages of the configured method.

    Raises:
        BlockLost: the disclosed sample has too many errors.
        ReconciliationFailed: there are too many errors to correct.
    """
    settings = link.reconciliation
    disclosed = Disclosed()
    if qber_estimate is None:
        one, other = sample_of(ours), sample_of(received)
        qber_estimate = int(np.bitwise_count(one.words ^ other.words).sum()) / max(1, len(one))
        check_qber(qber_estimate, link)
        disclosed = disclosed.and_sample(len(one), link)
    seed = random_bytes(SEED_BYTES)
    # In one process there is no round trip to save.
    method = "cascade" if settings.method == "auto" else settings.method
    leak_count = settings.leak_count
    alice = responder(method, ours, seed=seed, qber_estimate=qber_estimate, leak_count=leak_count)
    bob = corrector(method, received, seed=seed, qber_estimate=qber_estimate, leak_count=leak_count)
    request: bytes | None = bob.start()
    while request is not None:
        request = bob.receive(alice.respond(request))
    disclosed = disclosed.and_reconciled(alice.disclosed_bits, alice.leaked_bits, method)
    return Corrected(bob.corrected, disclosed, bob.statistics.rounds)
