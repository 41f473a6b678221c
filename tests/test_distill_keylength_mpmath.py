"""Every estimator agrees with an independent calculation to 50 digits, bound by bound, refusal by refusal."""

import json
import math
import operator
from typing import Any

import keylength_cases
import pytest
from mpmath import mp, mpf
from mpmath_keylength import clopper_pearson_upper, reference

from qnode.distill.counts import Pair
from qnode.distill.keylength import EstimatorInput, KeyLength, estimate
from qnode.distill.keylength.limits import exact_upper
from qnode.errors import FieldError

CASES: list[dict[str, Any]] = json.loads(keylength_cases.FILE.read_text())
RELATIVE = 1e-9
# Floating point cannot know a difference better than its terms.
OF_LARGEST_TERM = 1e-13
WORKED_OUT_ANEW = range(0, len(CASES), 9)


def node_input(inputs: dict[str, Any]) -> EstimatorInput:
    pairs: dict[str, Any] = {
        name: Pair(*value) if isinstance(value, list) else value for name, value in inputs.items()
    }
    return EstimatorInput(**pairs)


def found_by_node(case: dict[str, Any]) -> KeyLength | str:
    """Return the node's result, or the field that it refuses."""
    try:
        return estimate(node_input(case["inputs"]), case["estimator"])
    except FieldError as refused:
        return refused.field


def value_of(result: KeyLength, name: str) -> float:
    return float(operator.attrgetter(name)(result))


def test_there_are_300_cases_and_the_file_holds_the_inputs_of_today() -> None:
    assert len(CASES) == 300
    for index, case in enumerate(CASES):
        estimator, inputs = keylength_cases.inputs_of_case(index)
        assert case["estimator"] == estimator
        assert json.dumps(case["inputs"]) == json.dumps(inputs)
    bounded = [case["expected"] for case in CASES if "refused" not in case["expected"]]
    assert len(bounded) > 200
    assert sum(one["length"] > 0 for one in bounded) > 100


@pytest.mark.parametrize("index", range(len(CASES)))
def test_the_node_agrees_with_50_digits(index: int) -> None:
    case = CASES[index]
    expected, result = case["expected"], found_by_node(case)
    if "refused" in expected:
        assert isinstance(result, str), f"not refused: {expected['refused']}"
        assert result in expected["refused"]
        return
    assert isinstance(result, KeyLength), f"refused: {result}"
    sizes = {name: float(size) for name, size in expected["size"].items()}
    differences = ("s_z0_lower", "s_z1_lower", "s_x0_lower", "s_x1_lower", "v_x1_upper")
    # How well the least well known of the differences is known; what is made of them is known no better.
    known = (
        max(
            OF_LARGEST_TERM * sizes[name] / max(abs(float(expected[name])), 1e-300)
            for name in differences
            if float(expected[name])
        )
        if any(float(expected[name]) for name in differences)
        else 0.0
    )
    for name, text in expected.items():
        if name in ("size", "mu", "length", "length_unfloored", "s_x0_lower"):
            continue
        value, relative = float(text), RELATIVE
        absolute = OF_LARGEST_TERM * sizes.get(name, 0.0)
        if name.startswith("phi"):
            # The sampling bound moves in steps of one error.
            absolute = 1.0 / max(1.0, float(expected["s_z1_lower"])) * (1 + 1e-9)
            relative = max(RELATIVE, 4 * known)
        assert value_of(result, name) == pytest.approx(value, rel=relative, abs=absolute), name
    assert [result.mu.signal, result.mu.decoy] == pytest.approx([float(mu) for mu in expected["mu"]])
    _compare_lengths(result, expected, sizes)


def _compare_lengths(result: KeyLength, expected: dict[str, Any], sizes: dict[str, float]) -> None:
    """Compare the length with that of the node's own phase error step: one error is worth so many bits."""
    c, phi = float(expected["s_z1_lower"]), float(expected["phi_z_upper"])
    slope = math.log2((1 - phi) / phi) if 0 < phi < 0.5 else 0.0
    absolute = slope * c * abs(result.phi_z_upper - phi) * 1.01 + OF_LARGEST_TERM * (
        sizes["s_z1_lower"] + sizes["s_z0_lower"]
    )
    length = float(expected["length_unfloored"])
    largest = max(abs(length), c, float(expected["s_z0_lower"]))
    assert result.length_unfloored == pytest.approx(length, abs=absolute + RELATIVE * largest)
    assert abs(result.length - expected["length"]) <= math.ceil(absolute + RELATIVE * largest)


@pytest.mark.parametrize("index", WORKED_OUT_ANEW)
def test_the_file_holds_what_the_reference_says(index: int) -> None:
    case = CASES[index]
    assert keylength_cases.worked_out(case["estimator"], case["inputs"]) == case["expected"]


@pytest.mark.parametrize(("x", "n"), [(0, 1), (1, 2), (2, 3), (0, 5), (4, 5), (30, 40), (7.5, 900.25)])
@pytest.mark.parametrize("e", [0.01, 1e-12])
def test_the_exact_limit_lies_at_least_one_event_away(x: float, n: float, e: float) -> None:
    expected = float(clopper_pearson_upper(x, n, mp.log(1 / mpf(e))))
    assert exact_upper(x, n, -math.log(e)) == pytest.approx(expected, rel=1e-12)
    assert expected >= min(n, x + 1)


@pytest.mark.parametrize("public", [False, True])
def test_empty_qubits_are_credited_unless_the_positions_of_errors_are_public(public: bool) -> None:
    # Nearly half of the clicks are noise, so that the credit is most of what there is.
    inputs = {
        "n_z": [1_000_000.0, 360_000.0],
        "m_z": [250_000.0, 135_000.0],
        "n_x": [1_000_000.0, 360_000.0],
        "m_x": [250_000.0, 135_000.0],
        "mu": [0.5, 0.2],
        "p": [0.7, 0.3],
        "lambda_ec": 0.0,
        "error_positions_public": public,
    }
    expected, result = reference(inputs, "rusca2018"), estimate(node_input(inputs), "rusca2018")
    assert expected["s_z0_lower"] > 100_000
    assert result.length_unfloored == pytest.approx(float(expected["length_unfloored"]), rel=RELATIVE)
    assert expected["length"] > 0
