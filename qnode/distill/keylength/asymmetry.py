"""The asymmetry of the channel between |+> and |->, which the visibility alone does not see.

By linearity the phase error of one photon is t1 + max(0, 1 + t1 + t4 - t2 - t3), security reference 3.3, with

    t1 = p_Z^2/(8 p_X) C_+/E_same         t2 = p_Z/4 C_Z/E_same
    t3 = p_Z/(2 p_X) E_plus/E_same        t4 = E_dark/E_same

For a channel that treats |-> like |+> the asymmetry A = 1 + t4 - t2 - t3 vanishes; the phase error is 2 t1
then.

The reference lets each count deviate by sqrt(n ln(1/eps)/2), and so do the limits here. That is Hoeffding's
deviation of a share among n events; the number n of events itself scatters twice as much, so that these
limits fail more often than eps (docs/security.md). The ``joint`` bound holds: Bernstein's inequality for the
one sum that matters.
"""

import math

import msgspec

from qnode.distill.counts import Pair
from qnode.distill.keylength.inputs import AsymmetryBound, EstimatorInput
from qnode.distill.keylength.limits import deviation


class AsymmetryTerms(msgspec.Struct, frozen=True, kw_only=True):
    """The four terms from all intensities together, their limits, and the asymmetry they make.

    A value is None where ``e_same`` is empty, a limit where the deviation leaves nothing of ``e_same``.
    ``asymmetry_upper`` is the reference's limit; ``asymmetry_upper_joint`` and ``t2_upper_joint`` together
    fail with at most 4 eps. ``charged`` says which of them widen the phase error.
    """

    t1: float | None
    t2: float | None
    t3: float | None
    t4: float | None
    t2_lower: float
    t2_upper: float | None
    t3_lower: float
    t4_upper: float | None
    asymmetry: float | None
    asymmetry_upper: float | None
    t2_upper_joint: float | None
    asymmetry_upper_joint: float | None
    charged: AsymmetryBound

    @property
    def charged_upper(self) -> float | None:
        """Return the upper bound on the asymmetry that is charged."""
        return self.asymmetry_upper_joint if self.charged == "joint" else self.asymmetry_upper

    @property
    def bracket(self) -> float | None:
        """Return 1 + t1 + t4 - t2 - t3, the part of the phase error that e_vis misses (3.3)."""
        return None if self.asymmetry is None or self.t1 is None else self.asymmetry + self.t1

    @property
    def phase_error(self) -> float | None:
        """Return the point value t1 + max(0, bracket); all photon numbers together, no bound."""
        return None if self.bracket is None or self.t1 is None else self.t1 + max(0.0, self.bracket)

    def widen(self, phi_visibility: float) -> float:
        """Return phi_visibility max(1, 2 t2^u) + max(0, A^u), at most 1/2 (3.6)."""
        t2_upper = self.t2_upper_joint if self.charged == "joint" else self.t2_upper
        if t2_upper is None or self.charged_upper is None:
            return 0.5
        return min(0.5, phi_visibility * max(1.0, 2.0 * t2_upper) + max(0.0, self.charged_upper))


def asymmetry_terms(
    c_plus: Pair,
    c_z: Pair,
    e_same: Pair,
    e_plus: Pair,
    e_dark: Pair,
    *,
    p_z: float,
    log_inverse_eps: float,
    charged: AsymmetryBound = "reference",
) -> AsymmetryTerms:
    """Return the terms, with Hoeffding's deviation sqrt(n ln(1/eps)/2) on each count (3.6) and jointly."""
    p_x = 1.0 - p_z
    central, same, plus, dark = c_z.total, e_same.total, e_plus.total, e_dark.total

    def delta(n: float) -> float:
        return deviation(n, log_inverse_eps)

    most = same + delta(same)
    least = same - delta(same)
    t2_lower = p_z / 4.0 * max(0.0, central - delta(central)) / most if most > 0 else 0.0
    t3_lower = p_z / (2.0 * p_x) * max(0.0, plus - delta(plus)) / most if most > 0 else 0.0
    t2_upper = p_z / 4.0 * (central + delta(central)) / least if least > 0 else None
    t4_upper = (dark + delta(dark)) / least if least > 0 else None
    t1 = p_z**2 / (8.0 * p_x) * c_plus.total / same if same > 0 else None
    t2 = p_z / 4.0 * central / same if same > 0 else None
    t3 = p_z / (2.0 * p_x) * plus / same if same > 0 else None
    t4 = dark / same if same > 0 else None
    same_lower = _mean_lower(same, log_inverse_eps)
    t2_joint = joint = None
    if same_lower > 0.0:
        t2_joint = p_z / 4.0 * _mean_upper(central, log_inverse_eps) / same_lower
        weighted = ((1.0, same), (1.0, dark), (-p_z / 4.0, central), (-p_z / (2.0 * p_x), plus))
        # A negative sum says no more than that the asymmetry is not positive.
        joint = max(0.0, _sum_upper(weighted, log_inverse_eps)) / same_lower
    return AsymmetryTerms(
        t1=t1,
        t2=t2,
        t3=t3,
        t4=t4,
        t2_lower=t2_lower,
        t2_upper=t2_upper,
        t3_lower=t3_lower,
        t4_upper=t4_upper,
        asymmetry=None if t2 is None or t3 is None or t4 is None else 1.0 + t4 - t2 - t3,
        asymmetry_upper=None if t4_upper is None else 1.0 + t4_upper - t2_lower - t3_lower,
        t2_upper_joint=t2_joint,
        asymmetry_upper_joint=joint,
        charged=charged,
    )


def _sum_upper(weighted: tuple[tuple[float, float], ...], log_inverse_eps: float) -> float:
    """Return an upper limit on the mean of sum(weight count) by Bernstein's inequality.

    Each count is a sum of independent rare events of unknown number. Two events may fail, each with eps: the
    limit on the variance (which is estimated from the counts), and the sum.
    """
    largest = max(abs(weight) for weight, _ in weighted)
    seen = math.fsum(weight * count for weight, count in weighted)
    half = 0.5 * largest**2 * log_inverse_eps
    variance = (math.sqrt(half) + math.sqrt(half + math.fsum(w * w * n for w, n in weighted))) ** 2
    third = largest * log_inverse_eps / 3.0
    return seen + third + math.sqrt(third**2 + 2.0 * variance * log_inverse_eps)


def _mean_lower(count: float, log_inverse_eps: float) -> float:
    """Return a lower limit on the mean of such a count (Chernoff's bound of its upper tail)."""
    step = 2.0 * log_inverse_eps / 3.0
    return max(0.0, count + step - math.sqrt(step**2 + 2.0 * count * log_inverse_eps))


def _mean_upper(count: float, log_inverse_eps: float) -> float:
    """Return an upper limit on the mean of such a count (Chernoff's bound of its lower tail)."""
    return count + log_inverse_eps + math.sqrt(log_inverse_eps**2 + 2.0 * count * log_inverse_eps)


def asymmetry_of(inputs: EstimatorInput, log_inverse_eps: float) -> AsymmetryTerms | None:
    """Return the terms of a block, or None when its boundary counts are not given."""
    if inputs.p_z is None or inputs.e_same is None or inputs.e_plus is None or inputs.e_dark is None:
        return None
    return asymmetry_terms(
        inputs.m_x,
        inputs.n_x,
        inputs.e_same,
        inputs.e_plus,
        inputs.e_dark,
        p_z=inputs.p_z,
        log_inverse_eps=log_inverse_eps,
        charged=inputs.asymmetry_bound,
    )
