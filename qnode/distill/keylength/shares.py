"""The asymmetry of the channel between |+> and |-> from two shares of clicks, each with an exact limit.

The exact relation for one photon (security reference 3.3) is e_ph = 2 t1 + 1 - rho - t2, with T = P(tot|0) +
P(tot|1),

    t1 = P(-|+)/T        t2 = [P(-|0) + P(-|1)]/T        rho = P(tot|+)/T        2 t1 = 2 t2 e_vis

**rho from the Z arm.** If the Z arm is as efficient for every time-bin state, its clicks on |+> and on Z
states are in the proportion p_X P(tot|+) : p_Z T/2. With q the share of |+> among them, rho = q/(1-q)
p_Z/(2 p_X).

**t2 from all boundary clicks.** A boundary slot collects the late light of one qubit and the early light of
the next: averaged over Alice's independent choices (T/4)(p_Z/2 + p_X rho), whatever the two states were.
The central slots of Z states give (T/4) p_Z t2. With s the share of the latter, t2 = s/(1-s) (p_Z/2 + p_X
rho)/p_Z.

Given which clicks there are, Alice's states are independent chances, so that both shares have the exact
limits of the intensity labels (`exact_upper`: Hoeffding 1956, theorem 4). Averaged over the key's clicks,
the rho of each weighs with 1 - q of its own, which is what q/(1-q) of the mean share says: unequal chances
need no further term. The phase error is then at most max(phi_vis, 1 - rho_L - t2_L (1 - 2 phi_vis)).

All photon numbers are taken together, as for every asymmetry with one decoy intensity.
"""

import msgspec

from qnode.distill.keylength.inputs import EstimatorInput
from qnode.distill.keylength.limits import exact_upper
from qnode.errors import CountsContradiction


class ShareTerms(msgspec.Struct, frozen=True, kw_only=True):
    """rho and t2 of a block with their lower limits, two events; both are 1/2 without an eavesdropper.

    A value is None where there are no clicks to take it from; a lower limit is 0 there.
    """

    rho: float | None
    t2: float | None
    rho_lower: float
    t2_lower: float

    @property
    def asymmetry(self) -> float | None:
        """Return the point value 1 - rho - t2."""
        return None if self.rho is None or self.t2 is None else 1.0 - self.rho - self.t2

    @property
    def asymmetry_upper(self) -> float:
        """Return the upper limit 1 - rho_L - t2_L, from -1 to 1."""
        return 1.0 - self.rho_lower - self.t2_lower

    def widen(self, phi_visibility: float) -> float:
        """Return max(phi_vis, 1 - rho_L - t2_L (1 - 2 phi_vis)), at most 1/2."""
        whole = 1.0 - self.rho_lower - self.t2_lower * (1.0 - 2.0 * phi_visibility)
        return min(0.5, max(phi_visibility, whole))


def shares_of(inputs: EstimatorInput, log_inverse_eps: float) -> ShareTerms | None:
    """Return the terms of a block, or None when the counts for them are not given.

    Raises:
        CountsContradiction: a lower limit exceeds 1, which no channel allows.
    """
    if inputs.n_z_plus is None or inputs.boundary is None or inputs.p_z is None:
        return None
    p_z = inputs.p_z
    plus, z_arm = inputs.n_z_plus.total, inputs.n_z_plus.total + inputs.n_z.total
    central, x_arm = inputs.n_x.total, inputs.n_x.total + inputs.boundary
    rho = rho_of(plus / inputs.n_z.total, p_z) if inputs.n_z.total > 0 else None
    t2 = t2_of(central / inputs.boundary, rho, p_z) if inputs.boundary > 0 and rho is not None else None
    rho_lower = rho_of(odds_lower(plus, z_arm, log_inverse_eps), p_z)
    t2_lower = t2_of(odds_lower(central, x_arm, log_inverse_eps), rho_lower, p_z)
    for name, seen, limit in (
        ("n_z_plus", "clicks of the Z arm on |+>", rho_lower),
        ("boundary", "central clicks beside boundary clicks", t2_lower),
    ):
        if limit > 1.0:
            raise CountsContradiction(
                name,
                f"more {seen} than any channel gives: the share is at least {limit:.6g}, the most is 1; "
                "look at p_z, the gates and the detectors, or for an attack",
            )
    return ShareTerms(rho=rho, t2=t2, rho_lower=rho_lower, t2_lower=t2_lower)


def rho_of(odds: float, p_z: float) -> float:
    """Return rho where there are so many Z-arm clicks on |+> for one on a Z state."""
    return odds * p_z / (2.0 * (1.0 - p_z))


def t2_of(odds: float, rho: float, p_z: float) -> float:
    """Return t2 where there are so many central clicks of Z states for one boundary click."""
    return odds * (0.5 * p_z + (1.0 - p_z) * rho) / p_z


def odds_lower(x: float, n: float, log_inverse_eps: float) -> float:
    """Return the exact lower limit on the mean share of which ``x`` of ``n`` were seen, as odds.

    Odds are share / (1 - share): they need no difference from one, which rounding would spoil.
    """
    if x <= 0.0 or n <= 0.0:
        return 0.0
    upper = exact_upper(n - x, n, log_inverse_eps)
    return max(0.0, n - upper) / upper if upper > 0.0 else 0.0
