"""Estimator ``three_state``: the phase error of one photon from all public counts, as a certificate.

One program over the yields of all photon numbers (`qnode.distill.keylength.yields`) and one martingale event
(`qnode.distill.keylength.martingale`) bound the secret bits themselves: with d errors among s one-photon
detections there are s (1 - h(d/s)), which lies above each of its tangents

    (s - d)(1 + log2(1 - phi)) + d (1 + log2 phi).

What is claimed is what the checker (`qnode.distill.keylength.certificate`) proves in exact arithmetic. The
theorem, its proof, and what is still assumed: docs/three_state.md.
"""

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Final

import numpy as np

from qnode.distill.counts import Pair
from qnode.distill.keylength.arm_ratio import pieces
from qnode.distill.keylength.assumptions import Assumption, stated
from qnode.distill.keylength.certificate import ArmRatio, Values, Weights, holds_for_all, proven_sum
from qnode.distill.keylength.decoy import Source, WeightedLimits
from qnode.distill.keylength.enclosure import binary_logarithm
from qnode.distill.keylength.inputs import EstimatorInput
from qnode.distill.keylength.limits import CountLimits
from qnode.distill.keylength.martingale import Allowance, Counts, log_inverse_event, shapes, usual_shares
from qnode.distill.keylength.result import KeyLength, verification_overhead_bits
from qnode.distill.keylength.search import Array, Task, best_weights
from qnode.distill.keylength.yields import CLASSES, Emission, generators
from qnode.errors import CountsContradiction, FieldError

# Where the search for the phase error begins; only how near it comes depends on it.
_FIRST_GUESS: Final = Fraction(1, 10)
# A tangent beyond this has nothing to prove, and one below the other is too steep.
_LARGEST_PHASE: Final = Fraction(499, 1000)
_LEAST_PHASE: Final = Fraction(1, 10**6)
# The distances of the tangents of a parabola, as shares, and how many of them away its top may lie.
_TANGENT_STEPS: Final = (Fraction(1, 20), Fraction(1, 60))
_MOST_STEPS: Final = 6.0
# Where nothing is proven, the search ends this early.
_COARSE: Final = 1e-6
# Weights from floating point are shrunk until they hold exactly; each time by this.
_SHRINK: Final = 1.0 - 2.0**-40
_SHRINKS: Final = 4

ASSUMPTIONS: Final = stated(
    Assumption.MARTINGALE,
    Assumption.NO_EMPTY_CREDIT,
    Assumption.FIXED_CHANCE_OF_ARM,
    Assumption.NO_BOUNDARY_INTERFERENCE,
    Assumption.EQUAL_GATES,
    Assumption.EXACT_STATES,
    Assumption.CHANCE_LOSSES,
    Assumption.INDEPENDENT_DEAD_TIME,
    Assumption.NO_EFFICIENCY_MISMATCH,
    Assumption.RANDOM_PHASES,
    Assumption.NO_DETECTOR_MEMORY,
    Assumption.EXACT_INTENSITIES,
)


def key_length(inputs: EstimatorInput) -> KeyLength:
    """Return the (2 eps_AT + eps_PA)-secret length, eps_AT = eps_PA = eps_sec/3, from all counts.

    Bounds that this estimator does not make are the trivial ones: none and all.

    Raises:
        FieldError: a count that it needs is missing; another rule or statistics is asked for.
        CountsContradiction: the ``counts`` contradict the decoy model, which is proven like a bound.
    """
    block = _Block.of(inputs)
    parts = pieces(block.counts, block.shape, block.emission, block.allowance)
    whole = ArmRatio(parts[0].least, parts[-1].most)
    s_z1 = block.proven(Values(Fraction(1), Fraction(1)), whole)
    _refuse_contradiction(s_z1, inputs)
    phi, near = _phase_error(block, parts, s_z1)
    values = _tangent(_best_tangent(block, parts, near))
    secret = max(Fraction(0), min(block.proven(values, part) for part in parts))
    _refuse_contradiction(secret, inputs)
    return _result(inputs, block, s_z1=max(0.0, _down(s_z1)), phi=_up(phi), secret=_down(secret))


@dataclass(eq=False)
class _Block:
    """Everything about one block that does not depend on what is to be proven."""

    counts: Counts
    shape: tuple[float, ...]
    emission: Emission
    allowance: Allowance

    @classmethod
    def of(cls, inputs: EstimatorInput) -> "_Block":
        counts, p_z = _needed(inputs)
        shape = shapes(counts, inputs.mu, inputs.p, p_z)
        seen: list[float | None] = []
        guess: list[float] = []
        for k, usual in enumerate(usual_shares(inputs.mu, inputs.p, p_z)):
            bits, whole = _at(counts.z, k), sum(usual[kind] for kind in "EGWR")
            guess += [bits * usual[kind] / whole for kind in "EGWR"] + [0.0] * 3
            seen += [None] * 4 + [_at(pair, k) for pair in (counts.plus, counts.central, counts.dark)]
        log_inverse = log_inverse_event(Fraction(inputs.eps_sec) / 3)
        allowance = Allowance.of(log_inverse, shape, [*seen, counts.boundary], [*guess, 0.0])
        return cls(counts, shape, Emission.of(inputs.mu, inputs.p, p_z), allowance)

    def proven(self, values: Values, part: ArmRatio) -> Fraction:
        """Return a proven lower bound on the sum of values over E and G, for arm ratios in ``part``."""
        cone = generators(self.emission)
        # This holds without any proof: at worst every sifted bit is of the kind that counts least.
        bound = Fraction(self.counts.z.total) * min(Fraction(0), values.error, values.right)
        classes, scale, _ = best_weights(self._task(values, part))
        for _ in range(_SHRINKS):
            if not (math.isfinite(scale) and scale > 0.0 and all(0.0 < b < math.inf for b in classes)):
                break
            weights = Weights(classes, scale)
            if holds_for_all(weights, cone, part):
                found = proven_sum(weights, values, self.counts, self.shape, self.allowance) / Fraction(scale)
                return max(bound, found)
            classes = tuple(b * _SHRINK for b in classes)
        return bound

    def expected(self, values: Values, part: ArmRatio) -> float:
        """Return about what `proven` returns, without a proof."""
        return best_weights(self._task(values, part), smallest=_COARSE).quotient

    @cached_property
    def _cone(self) -> tuple[Array, Array]:
        """Return the generators in floating point, as rows: what is fixed, and what the arm ratio scales."""
        cone = generators(self.emission)
        found = np.zeros((2, len(cone), len(CLASSES)))
        for i, generator in enumerate(cone):
            for part, clicks in enumerate((generator.fixed, generator.scaled)):
                for j, x in clicks.items():
                    found[part, i, j] = float(x)
        return found[0], found[1]

    def _task(self, values: Values, part: ArmRatio) -> Task:
        fixed, scaled = self._cone
        ends = [fixed + float(part.least) * scaled]
        ends.append(scaled if part.most is None else fixed + float(part.most) * scaled)
        rows = np.concatenate(ends)
        cone = rows[rows.max(axis=1) > 0.0]
        counts = self.counts
        pairs = (counts.plus, counts.central, counts.dark)
        return Task(
            cone=cone / cone.max(axis=1, keepdims=True),
            sifted=(counts.z.signal, counts.z.decoy),
            wrong=(counts.wrong.signal, counts.wrong.decoy),
            seen=[_at(pair, k) for k in (0, 1) for pair in pairs],
            boundary=counts.boundary,
            shape=np.array(self.shape),
            slopes=np.array([float(slope) for slope in self.allowance.slopes]),
            constant=float(self.allowance.constant),
            values=(float(values.error), float(values.right)),
        )


def _phase_error(block: _Block, parts: tuple[ArmRatio, ...], s_z1: Fraction) -> tuple[Fraction, Fraction]:
    """Return an upper bound on the share of phase errors, at most 1/2, and a guess that lies nearer to it.

    If phi s - d >= v for s detections with d errors, then d/s <= phi - v/s. The second round begins where
    the first ends.
    """
    phi = guess = Fraction(1, 2)
    if s_z1 <= 0:
        return phi, guess
    whole, most = ArmRatio(parts[0].least, parts[-1].most), Fraction(block.counts.z.total)
    start = _FIRST_GUESS
    for over in ((whole,), parts):
        margin = min(block.proven(Values(start - 1, start), part) for part in over)
        phi = min(phi, max(Fraction(0), start - margin / (s_z1 if margin < 0 else most)))
        guess = min(phi, max(Fraction(0), start - 2 * margin / (s_z1 + most)))
        # A float in between, so that the numbers of the next round stay short.
        start = min(_LARGEST_PHASE, Fraction(float(phi)))
    return phi, guess


def _best_tangent(block: _Block, parts: tuple[ArmRatio, ...], near: Fraction) -> Fraction:
    """Return where the tangent touches that proves most, about: the top of parabolas, each nearer to it.

    They are for the arm ratios that prove least at ``near``.
    """
    near = max(_LEAST_PHASE, min(near, _LARGEST_PHASE))

    def expected(at: Fraction, part: ArmRatio) -> float:
        return block.expected(_tangent(min(at, _LARGEST_PHASE)), part)

    worst = min(parts, key=lambda part: expected(near, part))
    at = near
    for step in _TANGENT_STEPS:
        below, middle, above = (expected(at * (1 + side * step), worst) for side in (-1, 0, 1))
        bend = 2.0 * middle - below - above
        if not bend > 0.0:
            return near
        steps = max(-_MOST_STEPS, min(_MOST_STEPS, 0.5 * (above - below) / bend))
        at = min(_LARGEST_PHASE, Fraction(float(at * (1 + step * Fraction(steps)))))
    return at


def _tangent(phi: Fraction) -> Values:
    """Return what a one-photon detection counts in the tangent at ``phi``, rounded down."""
    least = max(phi, _LEAST_PHASE)
    at = Fraction(float(least))
    return Values(1 + binary_logarithm(at).lower, 1 + binary_logarithm(1 - at).lower)


def _refuse_contradiction(bound: Fraction, inputs: EstimatorInput) -> None:
    """Refuse counts of which more one-photon detections are proven than there are bits at all."""
    if bound > Fraction(inputs.n_z.total):
        raise CountsContradiction(
            "counts",
            "contradict the decoy model: no yields of the configured intensities lead to them but with "
            f"a chance of {(inputs.eps_sec / 3.0) ** 2:.1e}; look at mu, p, "
            "and the signals and decoys of each count",
        )


def _needed(inputs: EstimatorInput) -> tuple[Counts, float]:
    """Return the counts and p_Z, or refuse what is missing or asks for another estimator."""
    for name in ("p_z", "n_z_plus", "boundary", "e_same", "e_plus", "e_dark"):
        if getattr(inputs, name) is None:
            raise FieldError(name, "missing: three_state needs all counts of the X arm and the Z arm")
    for name, only in (("x_mode", "visibility + asymmetry"), ("statistics", "exact"), ("vacuum_rule", "min")):
        if getattr(inputs, name) not in (None, only):
            raise FieldError(name, f"three_state has one rule of its own, got {getattr(inputs, name)!r}")
    assert inputs.p_z is not None
    assert inputs.n_z_plus is not None
    assert inputs.boundary is not None
    return (
        Counts(inputs.n_z, inputs.m_z, inputs.n_z_plus, inputs.n_x, inputs.m_x, inputs.boundary),
        inputs.p_z,
    )


def _result(inputs: EstimatorInput, block: _Block, *, s_z1: float, phi: float, secret: float) -> KeyLength:
    eps_third = inputs.eps_sec / 3.0
    overhead = 2.0 * (math.log2(3.0) - math.log2(inputs.eps_sec)) - 2.0
    verification_bits = verification_overhead_bits(inputs)
    unfloored = secret - inputs.lambda_ec - overhead - verification_bits
    n_z, n_x = inputs.n_z.total, inputs.n_x.total
    return KeyLength(
        length=max(0, math.floor(unfloored)),
        length_unfloored=unfloored,
        mu=inputs.mu,
        weighted=_trivial(inputs),
        v_z0_upper=inputs.m_z.total,
        v_x0_upper=inputs.m_x.total,
        s_z0_lower=0.0,
        s_z0_upper=n_z,
        s_z1_lower=s_z1,
        s_x0_upper=inputs.x_scale * n_x,
        s_x1_lower=0.0,
        v_x1_upper=inputs.m_x.total,
        error_rate_x1=phi,
        phi_visibility_upper=phi,
        phi_z_upper=phi,
        lambda_ec_bits=inputs.lambda_ec,
        overhead_bits=overhead,
        verification_bits=verification_bits,
        estimator="three_state",
        x_mode="all counts",
        asymmetry=None,
        shares=None,
        asymmetry_bound=None,
        epsilons={
            "eps_sec": inputs.eps_sec,
            "eps_cor": inputs.eps_cor,
            "eps_at": eps_third,
            "eps_at_weight": 2.0,
            "eps_pa": eps_third,
            "eps_pa_weight": 1.0,
            "event": math.exp(-float(log_inverse_event(Fraction(inputs.eps_sec) / 3))),
            "events": 1.0,
        },
        assumptions=ASSUMPTIONS,
    )


def _trivial(inputs: EstimatorInput) -> WeightedLimits:
    source = Source(inputs.mu, inputs.p)

    def limits(counts: Pair, scale: float = 1.0) -> CountLimits:
        return CountLimits(0.0, counts.total, 0.0, counts.total).weighted(source.weight(scale))

    return WeightedLimits(
        n_z=limits(inputs.n_z),
        m_z=limits(inputs.m_z),
        n_x=limits(inputs.n_x, inputs.x_scale),
        m_x=limits(inputs.m_x),
    )


def _at(pair: Pair, k: int) -> float:
    return pair.decoy if k else pair.signal


def _down(x: Fraction) -> float:
    """Return a float not above ``x``."""
    value = float(x)
    return value if Fraction(value) <= x else math.nextafter(value, -math.inf)


def _up(x: Fraction) -> float:
    """Return a float not below ``x``."""
    return -_down(-x)
