"""An attack on the pooled asymmetry: one photon is damped, and two photons are filtered to hide it.

On single photons Eve damps |-> towards |+> with strength g: no more X errors, little bit errors, and a phase
error of g/2 that only rho and t2 show (security reference 3.4). Two photons of a Z state are |00> or |11>,
those of |+> lie in the same space and in |01> + |10> as well. A filter that lets |00> and |11> through with
probability a, and the third state whole, leaves Z states as they are and makes |+> arrive more often:
rho = 1/4 + 1/(4 a). With the right a the asymmetry of all light together vanishes. Three photons and more are
blocked, and a better line makes up for the losses, so that the decoy bounds are tight. Counts: expectations.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from qnode.distill.counts import Pair
from qnode.distill.keylength import EstimatorInput, KeyLength, binary_entropy, estimate

_NOISE = 0.0003  # noise clicks of a slot, by the clicks of the Z arm
_BIT_ERRORS = 0.002
_X_ARM = 0.62  # clicks of the X arm by those of the Z arm, both ports together
_F_EC = 1.045


@dataclass(frozen=True)
class _Light:
    """The arriving light of one photon number: clicks on Z states, and the channel's figures."""

    yields: float
    rho: float
    t1: float
    t2: float
    bit_error: float


@dataclass(frozen=True)
class Attacked:
    """One attack: the node's claim and the truth. ``true_bits``: with known s_1 and phase error."""

    damping: float
    inputs: EstimatorInput
    claimed: KeyLength
    true_phase_error: float
    true_bits: float

    @property
    def rho_by_intensity(self) -> tuple[float, float, float]:
        """Return rho of signal and decoy, and the distance between them in standard deviations."""
        plus, z, p_z, p_x = self.inputs.n_z_plus, self.inputs.n_z, self.inputs.p_z, self.inputs.p_x
        assert plus is not None  # the attack fills them
        assert p_z is not None
        pairs = ((plus.signal, z.signal), (plus.decoy, z.decoy))
        rho = [p_z / (2 * p_x) * a / b for a, b in pairs]
        deviation = math.hypot(*(r * math.sqrt(1 / a + 1 / b) for r, (a, b) in zip(rho, pairs, strict=True)))
        return rho[0], rho[1], (rho[0] - rho[1]) / deviation


def attack(
    mu: Pair, p: Pair, n_z: float, damping: float, *, p_z: float = 0.5, visibility: float = 0.95
) -> Attacked:
    """Return the attack with ``damping`` on a block of ``n_z`` sifted bits, as ``eur`` with shares sees it.

    Raises:
        ValueError: two photons cannot hide so much damping.
    """
    p_x, wrong_port = 1.0 - p_z, (1.0 - visibility) / 2.0
    emitted = [
        [chance * math.exp(-mean) * mean**n / math.factorial(n) for n in (1, 2)]
        for mean, chance in ((mu.signal, p.signal), (mu.decoy, p.decoy))
    ]
    one_share, two_share = (emitted[0][i] + emitted[1][i] for i in (0, 1))
    one = _damped(damping, wrong_port)
    asymmetry = 1.0 - one.rho - one.t2
    two = _filtered(asymmetry * one_share * one.yields / (two_share * 2.0), wrong_port)

    def sums(value: Callable[[_Light], float], noise: float) -> tuple[float, float]:
        light = [
            sum(e * kind.yields * value(kind) for e, kind in zip(es, (one, two), strict=True))
            for es in emitted
        ]
        return light[0] + noise * p.signal * floor, light[1] + noise * p.decoy * floor

    floor = _NOISE * (one_share * one.yields + two_share * two.yields)
    counted = sums(lambda _: p_z, 2 * p_z)
    scale = n_z / sum(counted)

    def counts(pair: Sequence[float], arm: float = 1.0) -> Pair:
        return Pair(pair[0] * scale * arm, pair[1] * scale * arm)

    wrong = sums(lambda kind: p_z * (kind.bit_error + _BIT_ERRORS - 2 * kind.bit_error * _BIT_ERRORS), p_z)
    qber = sum(wrong) / sum(counted)
    inputs = EstimatorInput(
        n_z=counts(counted),
        m_z=counts(wrong),
        n_z_plus=counts(sums(lambda kind: 2 * p_x * kind.rho, 2 * p_x)),
        n_x=counts(sums(lambda kind: p_z * kind.t2 / 2, p_z), _X_ARM),
        m_x=counts(sums(lambda kind: p_x * kind.t1, p_x), _X_ARM),
        boundary=counts(sums(lambda kind: (p_z / 2 + p_x * kind.rho) / 2, 1.0), _X_ARM).total,
        mu=mu,
        p=p,
        p_z=p_z,
        x_scale=2 * p_x / p_z,
        lambda_ec=_F_EC * n_z * binary_entropy(qber),
    )
    claimed = estimate(inputs, "eur")
    phase_error = 2 * one.t1 + 1.0 - one.rho - one.t2
    spent = claimed.lambda_ec_bits + claimed.overhead_bits + claimed.verification_bits
    one_photon = one_share * one.yields * p_z * scale
    return Attacked(
        damping, inputs, claimed, phase_error, one_photon * (1.0 - binary_entropy(phase_error)) - spent
    )


def _damped(damping: float, wrong_port: float) -> _Light:
    minus = (1.0 - damping) / 2.0  # P(-|0) + P(-|1) by T, with a perfect interferometer
    return _Light(
        yields=1.0,
        rho=0.5,
        t1=wrong_port * 0.5,
        t2=(1.0 - 2.0 * wrong_port) * minus + wrong_port,
        bit_error=(1.0 - math.sqrt(1.0 - damping)) / 2.0,
    )


def _filtered(hidden: float, wrong_port: float) -> _Light:
    """Return two photons whose asymmetry is minus ``hidden``."""
    through = 0.25 / (0.25 + hidden)
    # Of |++>: amplitudes of |00>, |11> and of (|01> + |10>)/sqrt(2), and what one photon of it shows.
    outer, inner = math.sqrt(through) / 2.0, math.sqrt(0.5)
    minus = 0.5 - math.sqrt(2.0) * outer * inner / (2.0 * outer**2 + inner**2)
    if through < 0.05:
        raise ValueError(f"a filter of {through:.3g} hides what was asked for, but hardly any light is left")
    rho = 0.25 + 0.25 / through
    return _Light(
        yields=2.0, rho=rho, t1=rho * ((1.0 - 2.0 * wrong_port) * minus + wrong_port), t2=0.5, bit_error=0.0
    )
