"""The asymmetry of the channel between |+> and |-> from classes of boundary slots (bound ``joint``).

By linearity the phase error of one photon is t1 + max(0, 1 + t1 + t4 - t2 - t3), security reference 3.3, with

    t1 = p_Z^2/(8 p_X) C_+/E_same         t2 = p_Z/4 C_Z/E_same
    t3 = p_Z/(2 p_X) E_plus/E_same        t4 = E_dark/E_same

For a channel that treats |-> like |+> the asymmetry A = 1 + t4 - t2 - t3 vanishes; the phase error is 2 t1
then.

Each count is a sum of rare events of unknown number, whose variance is the count itself; Bernstein's
inequality bounds the one sum that matters. (The deviation sqrt(n ln(1/eps)/2) of security reference 3.6 is
that of a share among n events, and fails more often than its eps: docs/validity.md.) The bound by shares
(`shares`) uses eight times as many clicks; this one is what protocol 1 has the counts for.
"""

import math

import msgspec

from qnode.distill.counts import Pair
from qnode.distill.keylength.inputs import EstimatorInput


class AsymmetryTerms(msgspec.Struct, frozen=True, kw_only=True):
    """The four terms from all intensities together, and the limits of the asymmetry they make.

    A value is None where ``e_same`` is empty, a limit where the deviation leaves nothing of ``e_same``.
    ``t2_upper`` and ``asymmetry_upper`` together fail with at most 4 eps.
    """

    t1: float | None
    t2: float | None
    t3: float | None
    t4: float | None
    asymmetry: float | None
    t2_upper: float | None
    asymmetry_upper: float | None

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
        if self.t2_upper is None or self.asymmetry_upper is None:
            return 0.5
        return min(0.5, phi_visibility * max(1.0, 2.0 * self.t2_upper) + max(0.0, self.asymmetry_upper))


def asymmetry_terms(
    c_plus: Pair,
    c_z: Pair,
    e_same: Pair,
    e_plus: Pair,
    e_dark: Pair,
    *,
    p_z: float,
    log_inverse_eps: float,
) -> AsymmetryTerms:
    """Return the terms of the five classes of X-arm clicks; ``p_z``: the chance that Alice sends Z."""
    p_x = 1.0 - p_z
    central, same, plus, dark = c_z.total, e_same.total, e_plus.total, e_dark.total
    t1 = p_z**2 / (8.0 * p_x) * c_plus.total / same if same > 0 else None
    t2 = p_z / 4.0 * central / same if same > 0 else None
    t3 = p_z / (2.0 * p_x) * plus / same if same > 0 else None
    t4 = dark / same if same > 0 else None
    same_lower = _mean_lower(same, log_inverse_eps)
    t2_upper = upper = None
    if same_lower > 0.0:
        t2_upper = p_z / 4.0 * _mean_upper(central, log_inverse_eps) / same_lower
        weighted = ((1.0, same), (1.0, dark), (-p_z / 4.0, central), (-p_z / (2.0 * p_x), plus))
        # A negative sum says no more than that the asymmetry is not positive.
        upper = max(0.0, _sum_upper(weighted, log_inverse_eps)) / same_lower
    return AsymmetryTerms(
        t1=t1,
        t2=t2,
        t3=t3,
        t4=t4,
        asymmetry=None if t2 is None or t3 is None or t4 is None else 1.0 + t4 - t2 - t3,
        t2_upper=t2_upper,
        asymmetry_upper=upper,
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
    )
