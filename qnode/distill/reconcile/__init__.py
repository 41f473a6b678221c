"""Error reconciliation: Bob corrects his frame towards Alice's. No I/O, no clock, no randomness of its own.

The link layer carries the messages. The only method so far is ``cascade``.

What is counted. Every parity that Alice discloses, those of the closing check included, is in
``disclosed_bits``; f_ec is made from that number alone. Bob's requests say which of his parities differ, so
an eavesdropper learns about his string too (Tupkary and Luetkenhaus, PR Applied 20, 064040,
arXiv:2307.00576). ``leak_count`` chooses what ``leaked_bits``, the frame's part of lambda_EC, makes of it:

* ``alice``: Alice's parities alone. Bob's messages are a function of those and of the error string, so this
  is the count of an analysis that gives the eavesdropper the whole error string: the key's list of
  assumptions must say "error positions are public".
* ``both``: each parity of Alice is charged once more for Bob's parity of the same set. No further assumption,
  at about twice the cost.
"""

from qnode.distill.bits import Bits
from qnode.distill.reconcile._alice import CascadeResponder
from qnode.distill.reconcile._bob import CascadeCorrector
from qnode.distill.reconcile._interface import (
    Corrector,
    LeakCount,
    ReconciliationFailed,
    ReconciliationStatistics,
    Responder,
    leaked_bits,
)
from qnode.distill.reconcile._plan import MAX_FRAME_BITS, MIN_FRAME_BITS, make_plan
from qnode.errors import FieldError

__all__ = [
    "MAX_FRAME_BITS",
    "METHODS",
    "MIN_FRAME_BITS",
    "Corrector",
    "LeakCount",
    "ReconciliationFailed",
    "ReconciliationStatistics",
    "Responder",
    "corrector",
    "leaked_bits",
    "responder",
]

METHODS = ("cascade",)
SEED_BYTES = 32


def responder(
    method: str, frame: Bits, *, seed: bytes, qber_estimate: float, leak_count: LeakCount = "alice"
) -> Responder:
    """Return Alice's side for ``frame``.

    ``seed``: 32 public octets, drawn at random by one side for this frame after its bits are measured.
    ``qber_estimate``: the fraction both sides share; a wrong one costs parities, not correctness.

    Raises:
        FieldError: unknown method, impossible length, seed or estimate.
    """
    _validate(method, seed, leak_count)
    return CascadeResponder(frame, make_plan(frame.n_bits, qber_estimate), seed, leak_count)


def corrector(
    method: str, frame: Bits, *, seed: bytes, qber_estimate: float, leak_count: LeakCount = "alice"
) -> Corrector:
    """Return Bob's side for ``frame``; the arguments are those of ``responder``.

    Raises:
        FieldError: unknown method, impossible length, seed or estimate.
    """
    _validate(method, seed, leak_count)
    return CascadeCorrector(frame, make_plan(frame.n_bits, qber_estimate), seed, leak_count)


def _validate(method: str, seed: bytes, leak_count: str) -> None:
    if method not in METHODS:
        raise FieldError("method", f"{method!r} is unknown; known: {', '.join(METHODS)}")
    if len(seed) != SEED_BYTES:
        raise FieldError("seed", f"{len(seed)} octets; {SEED_BYTES} are needed")
    if leak_count not in ("alice", "both"):
        raise FieldError("leak_count", f"{leak_count!r} is unknown; known: alice, both")
