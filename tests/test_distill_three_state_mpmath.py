"""`three_state` beside the best attack that its public counts allow, worked out to 50 digits."""

import msgspec
import numpy as np
import pytest
from mpmath_three_state import Compared, compare, inputs_of_case, reference

from qnode.bench.count_sets import count_set, worsened
from qnode.distill.keylength import EstimatorInput, estimate, three_state
from qnode.distill.keylength.arm_ratio import pieces
from qnode.distill.keylength.certificate import ArmRatio
from qnode.distill.keylength.yields import generators


@pytest.mark.parametrize("index", range(8))
def test_the_certified_bound_lies_just_below_the_best_attack(index: int) -> None:
    found = compare(inputs_of_case(index))
    assert found.agrees, found


def test_a_bound_that_forgets_an_attack_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    # Empty qubits, which are the first generators, are forgotten.
    monkeypatch.setattr(three_state, "generators", lambda emission: generators(emission)[4:])
    assert not all(compare(inputs_of_case(index)).agrees for index in (1, 2, 4, 5))


def test_a_bound_that_forgets_an_arm_ratio_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def first_alone(*of: object) -> tuple[ArmRatio, ...]:
        return pieces(*of)[3:]  # type: ignore[arg-type]

    monkeypatch.setattr(three_state, "pieces", first_alone)
    assert not all(compare(inputs_of_case(index)).agrees for index in (1, 2, 4, 5))


def test_agreement_is_neither_above_the_attack_nor_far_below() -> None:
    good = Compared(
        node_refused=False, attack_found=True, searched=True, n_z=1e6, s_z1_gap=1.0, secret_gap=1.0
    )
    assert good.agrees
    for changes in (
        {"secret_gap": -2.0},
        {"s_z1_gap": -2.0},
        {"secret_gap": 30.0},
        {"node_refused": True},
        {"attack_found": False},
    ):
        assert not Compared(**{**vars(good), **changes}).agrees


@pytest.mark.parametrize("index", [64, 192])
def test_x_errors_that_only_signals_make_are_evidence_and_not_a_loose_bound(index: int) -> None:
    """With fewer errors there is an attack that leaves less than what is certified with more."""

    def asked(inputs: EstimatorInput) -> EstimatorInput:
        return msgspec.structs.replace(inputs, statistics="exact", vacuum_rule="min")

    before = count_set(3, index).inputs
    after = asked(worsened(np.random.default_rng((3, index, 1)), before)["errors X"])
    assert after.m_x.signal > before.m_x.signal
    attack = reference(msgspec.to_builtins(asked(before)))
    assert float(attack["length_unfloored"]) < estimate(after, "three_state").length_unfloored
