"""Error correction: Bob's key is corrected towards Alice's. No I/O, no clock, no own randomness.

The unit is the whole block; the link layer transfers one request and one answer per round. ``METHODS`` has
the methods: a new one is a module that makes a ``Method``, and an entry here. ``choose_method`` chooses by
the round trip.

**Disclosure.** ``disclosed_bits`` counts every parity that Alice discloses, including those of the final
check; f_ec is computed from this number alone. Bob's requests disclose which of Bob's parities differ, so an
eavesdropper learns about Bob's string too (Tupkary and Luetkenhaus, PR Applied 20, 064040,
arXiv:2307.00576). ``leak_count`` determines ``leaked_bits``, the block's part of lambda_EC:

* ``alice``: Alice's parities alone. Bob's messages are a function of those and of the error string. This is
  the count of an analysis that gives the whole error string to the eavesdropper: the key's list of
  assumptions must say "error positions are public".
* ``both``: each parity of Alice counts once more for Bob's parity of the same set. This needs no further
  assumption, at about twice the cost.
"""

from typing import Final

from qnode.choices import LeakCount, choices_of
from qnode.distill.bits import Bits
from qnode.distill.reconcile.base.interface import (
    Corrector,
    Method,
    ReconciliationFailed,
    ReconciliationStatistics,
    Responder,
    leaked_bits,
)
from qnode.distill.reconcile.cascade import CASCADE
from qnode.distill.reconcile.cascade.plan import MAX_BLOCK_BITS, MIN_BLOCK_BITS
from qnode.distill.reconcile.choose import choose_method
from qnode.distill.reconcile.ldpc import LDPC
from qnode.errors import FieldError

__all__ = [
    "MAX_BLOCK_BITS",
    "METHODS",
    "MIN_BLOCK_BITS",
    "SEED_BYTES",
    "Corrector",
    "LeakCount",
    "Method",
    "ReconciliationFailed",
    "ReconciliationStatistics",
    "Responder",
    "choose_method",
    "corrector",
    "leaked_bits",
    "responder",
]

METHODS: Final = {method.name: method for method in (CASCADE, LDPC)}
SEED_BYTES: Final = 32


def responder(
    method: str, key: Bits, *, seed: bytes, qber_estimate: float, leak_count: LeakCount = "alice"
) -> Responder:
    """Return Alice's side for ``key``, the sifted bits of a whole block.

    ``seed``: 32 public octets, drawn at random by one side for this block after its bits are measured.
    ``qber_estimate``: the fraction known to both sides; a wrong one costs parities, not correctness.

    Raises:
        FieldError: unknown method, impossible length, seed or estimate.
    """
    return _method(method, seed, leak_count).responder(key, seed, qber_estimate, leak_count)


def corrector(
    method: str, key: Bits, *, seed: bytes, qber_estimate: float, leak_count: LeakCount = "alice"
) -> Corrector:
    """Return Bob's side for ``key``; the arguments are those of ``responder``.

    Raises:
        FieldError: unknown method, impossible length, seed or estimate.
    """
    return _method(method, seed, leak_count).corrector(key, seed, qber_estimate, leak_count)


def _method(name: str, seed: bytes, leak_count: str) -> Method:
    if name not in METHODS:
        raise FieldError("method", f"{name!r} is unknown; known: {', '.join(METHODS)}")
    if len(seed) != SEED_BYTES:
        raise FieldError("seed", f"{len(seed)} octets; {SEED_BYTES} are needed")
    known = choices_of(LeakCount)
    if leak_count not in known:
        raise FieldError("leak_count", f"{leak_count!r} is unknown; known: {', '.join(known)}")
    return METHODS[name]
