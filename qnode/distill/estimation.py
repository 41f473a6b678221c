"""From the public record of one block to the inputs of the estimators (security reference 3.3, 3.4, 3.6)."""

from qnode.distill.counts import Pair, XCounts
from qnode.distill.keylength import (
    DEFAULT_EPS_COR,
    DEFAULT_EPS_SEC,
    EXACTLY_KNOWN,
    AsymmetryBound,
    AsymmetryTerms,
    EstimatorInput,
    Statistics,
    VacuumRule,
    XMode,
    asymmetry_terms,
)


def inputs_from_block(
    n_z: Pair,
    m_z: Pair,
    x: XCounts,
    *,
    mu: Pair,
    p: Pair,
    p_z: float,
    lambda_ec: float,
    mu_uncertainty: Pair = EXACTLY_KNOWN,
    eps_sec: float = DEFAULT_EPS_SEC,
    eps_cor: float = DEFAULT_EPS_COR,
    x_mode: XMode = "visibility + asymmetry",
    statistics: Statistics = "exact",
    vacuum_rule: VacuumRule = "min",
    asymmetry_bound: AsymmetryBound | None = None,
    n_z_plus: Pair | None = None,
    boundary: float | None = None,
    error_positions_public: bool = False,
    verification_bits: int = 0,
) -> EstimatorInput:
    """Return the inputs of one block of a receiver with one X detector at the dark port.

    Clicks of |+> are the errors, clicks of Z states the detections, scaled by f_X = 2 p_X / p_Z; ``p_z`` is
    the probability that Alice sends Z, ``mu`` and ``p`` the intensities and their probabilities, signal
    first, ``mu_uncertainty`` the largest error of each intensity, as a fraction of it. ``lambda_ec`` counts
    every disclosed bit except the verification tag, whose length is ``verification_bits``.

    Raises:
        FieldError: a count or parameter is impossible.
    """
    return EstimatorInput(
        n_z=n_z,
        m_z=m_z,
        n_x=x.c_z,
        m_x=x.c_plus,
        mu=mu,
        p=p,
        lambda_ec=lambda_ec,
        mu_uncertainty=mu_uncertainty,
        eps_sec=eps_sec,
        eps_cor=eps_cor,
        x_scale=2.0 * (1.0 - p_z) / p_z if p_z > 0 else 1.0,  # an impossible p_z is refused by its own name
        p_z=p_z,
        e_same=x.e_same,
        e_plus=x.e_plus,
        e_dark=x.e_dark,
        x_mode=x_mode,
        statistics=statistics,
        vacuum_rule=vacuum_rule,
        asymmetry_bound=asymmetry_bound,
        n_z_plus=n_z_plus,
        boundary=boundary,
        error_positions_public=error_positions_public,
        verification_bits=verification_bits,
    )


def visibility_error(x: XCounts, p_z: float) -> float | None:
    """Return e_vis = (1 - V)/2 = p_Z/(2 p_X) C_+/C_Z over both intensities, None without clicks in C_Z."""
    if x.c_z.total == 0:
        return None
    return p_z / (2.0 * (1.0 - p_z)) * x.c_plus.total / x.c_z.total


def boundary_terms(x: XCounts, p_z: float) -> AsymmetryTerms:
    """Return the point values t1 .. t4 and A = 1 + t4 - t2 - t3 from the classes of boundary slots."""
    return asymmetry_terms(x.c_plus, x.c_z, x.e_same, x.e_plus, x.e_dark, p_z=p_z, log_inverse_eps=0.0)
