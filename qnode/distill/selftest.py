"""The self-test: distils a small block at both sides in memory, to check that this machine computes right.

Run at start, in a thread: a processor or an installation that computes wrongly must not make keys. Missing
kernels are compiled here, and not while a block waits.
"""

import numpy as np

from qnode.choices import TagBits
from qnode.distill.amplification.amplify import amplify, seed_length_bytes
from qnode.distill.bits import Bits
from qnode.distill.bits.planes import joined, plane
from qnode.distill.reconcile import METHODS, corrector, responder
from qnode.distill.sifting.announced import Announced
from qnode.distill.sifting.codec import decode_announcement, encode_announcement
from qnode.distill.sifting.gap_codec import decode_gaps, encode_gaps
from qnode.distill.sifting.sift import (
    SiftRecord,
    errors_by_intensity,
    keep_bits,
)
from qnode.distill.verify import verification_tag
from qnode.errors import QnodeError
from qnode.tags.types import OUTCOME_BOUNDARY, OUTCOME_CENTRAL, OUTCOME_LATE, Clicks, Codes, Slots

N_CLICKS = 20_000
ERROR_EVERY = 70


class SelfTestFailed(QnodeError):
    """This machine computes wrongly; the message states the step."""


def self_test() -> None:
    """Distil a synthetic block at both sides and compare.

    Raises:
        SelfTestFailed: a step gave a wrong result.
    """
    slots = np.cumsum(1 + np.arange(N_CLICKS, dtype=np.int64) % 7)
    sent = (np.arange(slots[-1] + 1, dtype=np.int64) * 2654435761 >> 7 & 5).astype(np.uint8)

    def lookup(asked: Slots) -> Codes:
        return sent[asked]

    outcomes = sent[slots] & np.uint8(1)
    outcomes[::ERROR_EVERY] ^= np.uint8(1)
    outcomes[3::11] = OUTCOME_CENTRAL
    outcomes[5::13] = OUTCOME_BOUNDARY
    first_slot = int(slots[0])
    n_slots = int(slots[-1])
    said = Announced.of(Clicks(slots, outcomes))
    heard = (
        decode_gaps(encode_gaps(said, first_slot), first_slot, n_slots),
        decode_announcement(encode_announcement(said, first_slot), first_slot, n_slots),
    )
    expect("both announcements", all(announced.equals(said) for announced in heard))
    record = SiftRecord(first_slot)
    record.add(heard[0], lookup)
    sifted = record.finish()
    late = joined([plane(outcomes, OUTCOME_LATE)])
    received = keep_bits(late, said.x_arm, sifted.keep)
    corrected = received
    for method in METHODS:
        corrected = _corrected(method, sifted.bits, received)
        expect(f"error correction by {method}", corrected.equals(sifted.bits))
    errors = int(np.bitwise_count(received.words ^ sifted.bits.words).sum())
    expect("error count", errors_by_intensity(received, corrected, sifted.decoy).total == errors)
    sizes: tuple[TagBits, TagBits] = (64, 128)
    for tag_bits in sizes:
        seed = bytes(range(tag_bits // 8))
        same = verification_tag(corrected, seed, tag_bits) == verification_tag(sifted.bits, seed, tag_bits)
        differs = verification_tag(received, seed, tag_bits) != verification_tag(sifted.bits, seed, tag_bits)
        expect("verification", same and differs)
    expect("privacy amplification", _amplifies(sifted.bits))


def _corrected(method: str, ours: Bits, theirs: Bits) -> Bits:
    seed = bytes(32)
    alice = responder(method, ours, seed=seed, qber_estimate=1 / ERROR_EVERY)
    bob = corrector(method, theirs, seed=seed, qber_estimate=1 / ERROR_EVERY)
    request: bytes | None = bob.start()
    while request is not None:
        request = bob.receive(alice.respond(request))
    return bob.corrected


def _amplifies(key: Bits) -> bool:
    """Compare some bits of the hash with the definition."""
    length = len(key) // 5
    n = len(key)
    seed = (bytes(range(1, 252)) * (n // 251 + 1))[: seed_length_bytes(n)]
    hashed = amplify(key, seed, length).unpack()
    bits, coefficients = key.unpack(), Bits.from_bytes(seed, n - 1).unpack()
    tail = bits[length:]
    for i in (0, 1, length // 2, length - 1):
        row = coefficients[n - length - 1 + i - np.arange(n - length)]
        if hashed[i] != (int(bits[i]) + int(np.count_nonzero(row & tail))) % 2:
            return False
    return True


def expect(step: str, right: bool) -> None:
    """Raise SelfTestFailed, which names the step, unless its result is right."""
    if not right:
        raise SelfTestFailed(f"self-test: {step} gives a wrong result on this machine; it must not make keys")
