"""Values at the edges of what is accepted end in a number or in a refusal, never in another error."""

import math
from typing import Any

import msgspec.structs
import numpy as np
import pytest

from qnode.bench.count_sets import count_set
from qnode.bench.keylength_soak import CLOSED_FORMS, variants
from qnode.distill.counts import Pair
from qnode.distill.keylength import EstimatorInput, estimate
from qnode.errors import FieldError

SETS = 600
NONE = Pair(0.0, 0.0)


def extremes(rng: np.random.Generator, inputs: EstimatorInput) -> dict[str, Any]:
    def anything(low: float, high: float) -> float:
        return float(10 ** rng.uniform(low, high))

    def counts() -> Pair:
        return Pair(anything(-300, 15), anything(-300, 15))

    mu, p, far = anything(-300, 2), anything(-16, -1), anything(0, 2)
    choices: list[dict[str, Any]] = [
        {"x_scale": anything(-308, 308)},
        {"x_scale": anything(-7.5, 7.5)},
        {"p_z": anything(-308, -0.001)},
        {"p_z": 1 - anything(-16, -1)},
        {"p": Pair(p, 1 - p)},
        {"mu": Pair(mu, mu * (1 - anything(-15, -0.01)))},
        {"mu": Pair(far, anything(-7, -1))},
        {"eps_sec": anything(-100, -0.001)},
        {"n_z": counts(), "m_z": NONE},
        {"n_x": counts(), "m_x": NONE},
    ]
    if inputs.boundary is not None:
        edges = {"n_z_plus": counts(), "boundary": anything(-300, 15)}
        choices.append(edges | dict.fromkeys(("e_same", "e_plus", "e_dark"), NONE))
    found: dict[str, Any] = {}
    for _ in range(int(rng.integers(1, 4))):
        found |= choices[int(rng.integers(len(choices)))]
    return found


def test_extreme_values_give_a_number_or_a_refusal() -> None:
    rng = np.random.default_rng(1)
    numbers = 0
    for index in range(SETS):
        inputs = count_set(7, index).inputs
        try:
            inputs = msgspec.structs.replace(inputs, **extremes(rng, inputs))
        except FieldError:
            continue
        for estimator, asked in variants(inputs, CLOSED_FORMS):
            try:
                result = estimate(asked, estimator)
            except FieldError:
                continue
            assert 0 <= result.length <= asked.n_z.total
            assert math.isfinite(result.length_unfloored)
            numbers += 1
    assert numbers > SETS / 4


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("mu", Pair(1e-7, 1e-8)),
        ("p_z", 1e-7),
        ("p_z", 1 - 1e-9),
        ("x_scale", 1e300),
        ("x_scale", 1e-200),
    ],
)
def test_what_no_link_has_is_refused_by_its_name(field: str, value: float | Pair) -> None:
    inputs = count_set(1, 0).inputs
    with pytest.raises(FieldError) as refused:
        msgspec.structs.replace(inputs, **{field: value})
    assert refused.value.field == field
