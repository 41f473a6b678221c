"""Cascade: parities of public permutations, binary search, and new searches after each found error.

G. Brassard and L. Salvail, EUROCRYPT '93; block lengths as in J. Martinez-Mateo et al., "Demystifying the
information reconciliation protocol Cascade", arXiv:1407.3257. Each round has one request and one answer
for all searches of the block.
"""

from qnode.choices import LeakCount
from qnode.distill.bits import Bits
from qnode.distill.reconcile.base.interface import Corrector, Method, Responder
from qnode.distill.reconcile.cascade.alice import CascadeResponder
from qnode.distill.reconcile.cascade.bob import CascadeCorrector
from qnode.distill.reconcile.cascade.plan import make_plan


def _responder(key: Bits, seed: bytes, qber_estimate: float, leak_count: LeakCount) -> Responder:
    return CascadeResponder(key, make_plan(len(key), qber_estimate), seed, leak_count)


def _corrector(key: Bits, seed: bytes, qber_estimate: float, leak_count: LeakCount) -> Corrector:
    return CascadeCorrector(key, make_plan(len(key), qber_estimate), seed, leak_count)


CASCADE = Method("cascade", _responder, _corrector)
