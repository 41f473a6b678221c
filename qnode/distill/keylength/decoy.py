"""One-decoy bounds on empty and one-photon detections (Rusca 2018, appendix A), the same for all estimators.

The estimators differ in how counts become limits on their means and in the bound on empty-qubit detections;
everything here takes limits that are already weighted with e^mu_k / p_k: the n+-_k and m+-_k of the paper.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from qnode.choices import VacuumRule
from qnode.distill.counts import Pair
from qnode.distill.keylength.inputs import EstimatorInput
from qnode.distill.keylength.limits import CountLimits, clip
from qnode.errors import CountsContradiction

Limits = Callable[[Pair, float], CountLimits]

# What sums of rounded numbers may be off, as a fraction of the counts.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Source:
    """Alice's two intensities (mean photons per qubit, signal first) and the probability of each."""

    mu: Pair
    p: Pair

    def tau(self, n: int) -> float:
        """Return the probability that a qubit leaves with exactly ``n`` photons."""
        return math.fsum(
            p * math.exp(-mu) * mu**n / math.factorial(n)
            for mu, p in ((self.mu.signal, self.p.signal), (self.mu.decoy, self.p.decoy))
        )

    def weight(self, scale: float = 1.0) -> Pair:
        """Return scale e^mu_k / p_k, which turns counts into the n+-_k of the paper."""
        return Pair(
            scale * math.exp(self.mu.signal) / self.p.signal, scale * math.exp(self.mu.decoy) / self.p.decoy
        )

    @property
    def gap(self) -> float:
        """Return mu1 - mu2."""
        return self.mu.signal - self.mu.decoy


class WeightedLimits(msgspec.Struct, frozen=True, kw_only=True):
    """The n+-_k and m+-_k of both bases: limits on the counts times e^mu_k / p_k, in X times ``x_scale`` too.

    ``x_scale`` multiplies detections alone, never errors.
    """

    n_z: CountLimits
    m_z: CountLimits
    n_x: CountLimits
    m_x: CountLimits


class EmptyBound(msgspec.Struct, frozen=True):
    """Upper bounds on the empty qubits of one basis: their errors, and their detections before clipping."""

    errors_upper: float
    detections_upper: float


class EmptyBounds(msgspec.Struct, frozen=True):
    """The same of both bases."""

    z: EmptyBound
    x: EmptyBound


class PhotonBounds(msgspec.Struct, frozen=True, kw_only=True):
    """The photon-number bounds of one block, clipped to possible values, and their inputs.

    ``v_z0_upper``, ``v_x0_upper``: errors of empty qubits, of which the s_0 upper bounds follow.
    """

    weighted: WeightedLimits
    v_z0_upper: float
    v_x0_upper: float
    s_z0_lower: float
    s_z0_upper: float
    s_z1_lower: float
    s_x0_upper: float
    s_x1_lower: float
    v_x1_upper: float

    @property
    def empty(self) -> bool:
        """Return whether no one-photon detection is guaranteed, so that nothing bounds the phase error."""
        return self.s_z1_lower <= 0.0 or self.s_x1_lower <= 0.0

    @property
    def b(self) -> float:
        """Return the one-photon X error rate v/s, at most 1/2."""
        return 0.5 if self.empty else min(0.5, self.v_x1_upper / self.s_x1_lower)


def weighted_limits(inputs: EstimatorInput, limits: Limits, log_inverse_eps: float) -> WeightedLimits:
    """Return the n+-_k and m+-_k of a block by the given limits, each failing with eps (section 2.1)."""
    source = Source(inputs.mu, inputs.p)
    plain = source.weight()
    return WeightedLimits(
        n_z=limits(inputs.n_z, log_inverse_eps).weighted(plain),
        m_z=limits(inputs.m_z, log_inverse_eps).weighted(plain),
        n_x=limits(inputs.n_x, log_inverse_eps).weighted(source.weight(inputs.x_scale)),
        m_x=limits(inputs.m_x, log_inverse_eps).weighted(plain),
    )


def photon_bounds(
    inputs: EstimatorInput,
    weighted: WeightedLimits,
    empty: EmptyBounds,
    *,
    most_errors: float = math.inf,
) -> PhotonBounds:
    """Return all bounds of a block; ``most_errors`` caps those of one photon in X.

    Raises:
        CountsContradiction: no yields give these counts with this source.
    """
    source = Source(inputs.mu, inputs.p)
    n_z, n_x = inputs.n_z.total, inputs.x_scale * inputs.n_x.total
    s_z0_lower, s_z0_upper, s_z1_lower = _basis(source, "z", weighted.n_z, empty.z.detections_upper, n_z)
    _, s_x0_upper, s_x1_lower = _basis(source, "x", weighted.n_x, empty.x.detections_upper, n_x)
    v_x1_upper = one_photon_errors_upper(source, weighted.m_x)
    if v_x1_upper < -_ROUNDING * (inputs.m_x.total + 1.0):
        raise CountsContradiction(
            "v_x1_upper",
            f"X errors {inputs.m_x.signal:.12g} (signal), {inputs.m_x.decoy:.12g} (decoy) leave at most "
            f"{v_x1_upper:.6g} of one photon: the decoy has more than its intensity allows",
        )
    return PhotonBounds(
        weighted=weighted,
        v_z0_upper=empty.z.errors_upper,
        v_x0_upper=empty.x.errors_upper,
        s_z0_lower=s_z0_lower,
        s_z0_upper=s_z0_upper,
        s_z1_lower=s_z1_lower,
        s_x0_upper=s_x0_upper,
        s_x1_lower=s_x1_lower,
        v_x1_upper=min(most_errors, max(0.0, v_x1_upper)),
    )


def _basis(
    source: Source, basis: str, limits: CountLimits, empty_upper: float, n: float
) -> tuple[float, float, float]:
    """Return lower and upper limit on empty, lower limit on one-photon detections of a basis, in [0, n].

    A lower limit below 0, or an upper one above ``n``, says nothing and is moved to what is certain. Limits
    that exclude each other say that the counts are not of this source.
    """
    upper = clip(empty_upper, n)
    lower = max(0.0, empty_lower(source, limits))
    one = max(0.0, one_photon_lower(source, limits, upper))
    slack = _ROUNDING * (n + 1.0)
    if lower > upper + slack:
        raise CountsContradiction(
            f"s_{basis}0_lower",
            f"at least {lower:.6g} detections of empty qubits by the intensities, at most {upper:.6g} by "
            "the errors: the counts contradict mu or p",
        )
    if lower + one > n + slack:
        raise CountsContradiction(
            f"s_{basis}1_lower",
            f"at least {lower:.6g} detections of empty qubits and {one:.6g} of one photon, but {n:.6g} in "
            "all: the counts contradict mu or p",
        )
    return min(lower, upper), upper, min(one, n - min(lower, upper))


def empty_lower(source: Source, n: CountLimits) -> float:
    """Return the lower bound on empty-qubit detections (A19), before clipping."""
    difference = source.mu.signal * n.decoy_lower - source.mu.decoy * n.signal_upper
    return source.tau(0) / source.gap * difference


def one_photon_lower(source: Source, n: CountLimits, empty_upper: float) -> float:
    """Return the lower bound on one-photon detections (A17), before clipping."""
    mu1, mu2 = source.mu.signal, source.mu.decoy
    square = (mu2 / mu1) ** 2
    bracket = n.decoy_lower - square * n.signal_upper - (1.0 - square) * empty_upper / source.tau(0)
    return source.tau(1) * mu1 / (mu2 * source.gap) * bracket


def one_photon_errors_upper(source: Source, m: CountLimits) -> float:
    """Return the upper bound on one-photon errors (A22); negative where counts are not of ``source``."""
    return source.tau(1) / source.gap * (m.signal_upper - m.decoy_lower)


def empty_errors_upper(source: Source, m: CountLimits, m_total: float, rule: VacuumRule) -> float:
    """Return the upper bound on errors of empty qubits by the rule (A16 for form E, A14 for form A)."""
    k1 = source.tau(0) * m.signal_upper
    k2 = source.tau(0) * m.decoy_upper
    match rule:
        case "min":
            return min(k1, k2)
        case "k1":
            return k1
        case "k2":
            return k2
        case "form_a":
            return m_total
        case "min3":
            return min(k1, k2, m_total)
        case "max3":
            return max(k1, k2, m_total)
