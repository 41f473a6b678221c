"""The estimator `three_state` against channels of which the truth is known: it never claims more."""

from collections.abc import Callable

import msgspec
import numpy as np
import pytest
from three_state_support import (
    EARLY,
    LATE,
    MINUS,
    PLUS,
    Attack,
    Seen,
    Truth,
    attacked,
    clean,
    damping,
    intercept_resend,
    lossy,
    random_channel,
)

from qnode.distill.keylength import EstimatorInput, KeyLength, estimate
from qnode.errors import FieldError

UNIT = np.eye(2, dtype=complex)
DEPOLARISED = intercept_resend(0.04, (EARLY, LATE))


def blind_to_plus(photons: int, state: int) -> Seen:
    """Return several photons that hide |+> in the Z arm and overdo |-> in the X arm for Z states."""
    total = 1e-2 * photons
    return Seen(0.0, 0.0, 0.0) if state == 2 else Seen(total, 0.01 * total, total)


def only_plus(photons: int, state: int) -> Seen:
    """Return several photons that arrive as |+> alone, without an error."""
    return Seen(2e-2 * photons, 0.0, 0.0) if state == 2 else Seen(0.0, 0.0, 0.0)


def opposite(strength: float) -> Callable[[int, int], Seen]:
    """Return several photons treated the other way than damping treats one: the pooled counts look alike."""

    def seen(photons: int, state: int) -> Seen:
        total = 1e-2 * photons
        if state == 2:
            return Seen(total * (1.0 + strength), total * 0.01, 0.0)
        return Seen(total, 0.01 * total, total * (0.5 + strength))

    return seen


ATTACKS = {
    "honest": Attack(lossy(1e-2, UNIT), clean(error=0.01)),
    "honest with errors": Attack(lossy(1e-2, *DEPOLARISED), clean()),
    "damping": Attack(lossy(1e-2, *damping(0.06)), clean()),
    "damping to the dark port": Attack(lossy(1e-2, *damping(0.06, MINUS)), clean()),
    "damping hidden by several photons": Attack(lossy(1e-2, *damping(0.1)), opposite(0.1)),
    "damping overhidden": Attack(lossy(1e-2, *damping(0.1)), blind_to_plus),
    "strong damping, several photons only as plus": Attack(lossy(1e-2, *damping(0.3)), only_plus),
    "photon number splitting": Attack(lossy(2e-3, UNIT), clean(efficiency=0.1)),
    "photon number splitting, one photon blocked": Attack(lossy(1e-6, UNIT), clean(efficiency=0.1)),
    "intercept and resend Z": Attack(lossy(1e-2, *intercept_resend(0.2, (EARLY, LATE))), clean()),
    "intercept and resend X": Attack(lossy(1e-2, *intercept_resend(0.2, (PLUS, MINUS))), clean()),
    "intercept and resend all": Attack(lossy(1e-2, *intercept_resend(1.0, (EARLY, LATE))), clean()),
    "empty qubits click": Attack(lossy(1e-2, UNIT), clean(), Seen(2e-3, 1e-3, 0.0)),
    "empty qubits click as minus": Attack(lossy(1e-2, *damping(0.1)), clean(), Seen(1e-3, 5e-4, 1e-3)),
}


def claims_no_more_than_the_truth(inputs: EstimatorInput, truth: Truth) -> KeyLength:
    result = estimate(inputs, "three_state")
    spent = result.lambda_ec_bits + result.overhead_bits + result.verification_bits
    assert result.length <= max(0.0, truth.secret)
    assert result.length_unfloored + spent <= truth.secret
    assert result.s_z1_lower <= truth.detections
    assert result.phi_z_upper >= min(0.5, truth.errors / truth.detections)
    return result


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize(("mu", "n_z"), [((0.3, 0.1), 1e6), ((0.5, 0.2), 1e9), ((0.15, 0.05), 1e5)])
def test_no_attack_is_claimed_to_leave_more_than_it_does(
    name: str, mu: tuple[float, float], n_z: float
) -> None:
    claims_no_more_than_the_truth(*attacked(ATTACKS[name], n_z, mu=mu))


def test_a_sampled_block_under_attack_claims_no_more_either() -> None:
    rng = np.random.default_rng(20)
    for attack in ATTACKS.values():
        for n_z in (3e4, 1e6):
            claims_no_more_than_the_truth(*attacked(attack, n_z, rng=rng))


def test_the_exact_relation_of_one_photon_holds_for_random_channels() -> None:
    # e_ph = [2 P(-|+) + T - P(-|0) - P(-|1) - P(tot|+)] / T, from what is sent alone.
    rng = np.random.default_rng(3)
    for _ in range(200):
        attack = Attack(random_channel(rng), clean())
        early, late, plus = (attack.seen(1, state) for state in (0, 1, 2))
        total = early.total + late.total
        bracket = 2.0 * plus.minus + total - early.minus - late.minus - plus.total
        assert bracket / total == pytest.approx(attack.phase_error(), abs=1e-12)


def test_random_channels_are_never_overclaimed() -> None:
    rng = np.random.default_rng(4)
    keys = 0
    for _ in range(25):
        near = [UNIT + 0.15 * kraus for kraus in random_channel(rng)[:1]]
        for kraus in (random_channel(rng), near):
            strength = float(np.linalg.norm(sum(k.conj().T @ k for k in kraus), 2))
            attack = Attack(lossy(1e-2 / strength, *kraus), clean(efficiency=rng.uniform(0.002, 0.05)))
            inputs, truth = attacked(attack, 1e7, mu=(0.3, 0.1), p_z=float(rng.uniform(0.2, 0.8)))
            keys += claims_no_more_than_the_truth(inputs, truth).length > 0
    assert keys > 5


def test_damping_that_the_visibility_does_not_see_is_charged() -> None:
    phases = []
    for strength in (0.0, 0.05, 0.1, 0.2):
        attack = Attack(lossy(1e-2, *damping(strength)), clean(error=0.0), empty=Seen(0.0, 0.0, 0.0))
        inputs, _ = attacked(attack, 1e8)
        assert inputs.m_x.total == pytest.approx(0.0, abs=1e-6)
        phases.append(estimate(inputs, "three_state").phi_z_upper)
    for strength, phase in zip((0.05, 0.1, 0.2), phases[1:], strict=True):
        assert phase > phases[0] + 0.4 * strength


def test_a_one_photon_bound_is_not_fooled_where_the_pooled_asymmetry_is() -> None:
    # Several photons make up for the damping of one: the pooled counts show half of it, the bound all of it.
    inputs, truth = attacked(Attack(lossy(1e-2, *damping(0.1)), opposite(0.1)), 1e9, mu=(0.5, 0.2))
    result = claims_no_more_than_the_truth(inputs, truth)
    seen = inputs.n_z_plus.total / inputs.n_z.total * 0.5 if inputs.n_z_plus else 0.0
    ratio = 4.0 * (inputs.boundary or 0.0) / (2.0 * inputs.n_z.total * (1.0 + 2.0 * seen))
    pooled = 1.0 - seen - inputs.n_x.total / inputs.n_z.total / ratio
    assert pooled < 0.7 * truth.errors / truth.detections
    assert result.phi_z_upper > truth.errors / truth.detections


@pytest.mark.parametrize("decoy", [0.3, 0.4])
def test_a_stronger_decoy_than_configured_is_a_contradiction(decoy: float) -> None:
    # The transmitter sends another decoy than the link file says.
    attack = ATTACKS["honest with errors"]
    inputs, truth = attacked(attack, 1e7, mu=(0.5, decoy))
    told, _ = attacked(attack, 1e7, mu=(0.5, 0.2))
    assert truth.secret > 0.0
    with pytest.raises(FieldError, match="contradict the decoy model"):
        estimate(msgspec.structs.replace(inputs, mu=told.mu), "three_state")
