"""The estimator of the world: key from blocks far too small for any that bounds an eavesdropper.

It is entered among the estimators while a run lasts. No configuration can name it, and its keys are as little
secret as those of any simulated link: what it stands for is *a* bound that both sites come to and that counts
every disclosed bit.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import qnode.distill.keylength as keylength
from qnode.distill.keylength import EstimatorInput, KeyLength
from qnode.distill.keylength.decoy import WeightedLimits
from qnode.distill.keylength.limits import CountLimits
from qnode.distill.keylength.result import verification_overhead_bits

NAME = "world"
SHARE = 0.9
"""So much of the sifted bits the key may be, less what was disclosed."""
_LIMITS = WeightedLimits(
    n_z=CountLimits(0.0, 0.0, 0.0, 0.0),
    m_z=CountLimits(0.0, 0.0, 0.0, 0.0),
    n_x=CountLimits(0.0, 0.0, 0.0, 0.0),
    m_x=CountLimits(0.0, 0.0, 0.0, 0.0),
)


def most_secret_bits(n_z: float, disclosed_bits: float, verification_bits: float) -> int:
    """Return the bound that no block's key may exceed."""
    return max(0, math.floor(SHARE * n_z - disclosed_bits - verification_bits))


def key_length(inputs: EstimatorInput) -> KeyLength:
    """Return the key length of a block of the world."""
    verification_bits = verification_overhead_bits(inputs)
    length = most_secret_bits(inputs.n_z.total, inputs.lambda_ec, verification_bits)
    nothing: dict[str, Any] = dict.fromkeys(
        (
            "v_z0_upper",
            "v_x0_upper",
            "s_z0_lower",
            "s_z0_upper",
            "s_z1_lower",
            "s_x0_upper",
            "s_x1_lower",
            "v_x1_upper",
            "error_rate_x1",
            "phi_visibility_upper",
            "phi_z_upper",
            "overhead_bits",
        ),
        0.0,
    )
    return KeyLength(
        length=length,
        length_unfloored=float(length),
        mu=inputs.mu,
        weighted=_LIMITS,
        lambda_ec_bits=inputs.lambda_ec,
        verification_bits=verification_bits,
        estimator=NAME,
        x_mode="visibility",
        asymmetry=None,
        shares=None,
        asymmetry_bound=None,
        epsilons={},
        assumptions={},
        **nothing,
    )


@contextmanager
def entered() -> Iterator[None]:
    """Have the estimator among the others."""
    owner: Any = keylength
    before = owner.ESTIMATORS
    owner.ESTIMATORS = MappingProxyType({**before, NAME: key_length})
    try:
        yield
    finally:
        owner.ESTIMATORS = before
