"""The estimator `three_state`: its figures on the link of the field trial, and what it refuses."""

import math
from fractions import Fraction
from typing import Any

import msgspec
import numpy as np
import pytest
from three_state_support import link_inputs

from qnode.bench.count_sets import count_set
from qnode.bench.keylength_soak import variants
from qnode.config import LinkParameters, check_link_parameters, convert
from qnode.distill.counts import Pair
from qnode.distill.keylength import (
    ESTIMATORS,
    Assumption,
    EstimatorInput,
    binary_entropy,
    estimate,
    three_state,
)
from qnode.distill.keylength.arm_ratio import pieces
from qnode.distill.keylength.search import Found, best_weights
from qnode.errors import FieldError


def replaced(inputs: EstimatorInput, **changes: Any) -> EstimatorInput:
    return msgspec.structs.replace(inputs, **changes)


def times(inputs: EstimatorInput, factor: float) -> EstimatorInput:
    names = ("n_z", "m_z", "n_x", "m_x", "e_same", "e_plus", "e_dark", "n_z_plus")
    pairs = {name: getattr(inputs, name) for name in names}
    scaled = {name: Pair(pair.signal * factor, pair.decoy * factor) for name, pair in pairs.items()}
    assert inputs.boundary is not None
    return replaced(inputs, **scaled, boundary=inputs.boundary * factor, lambda_ec=inputs.lambda_ec * factor)


@pytest.mark.parametrize(
    ("mu", "p_signal", "prototype", "found"),
    [
        ((0.5, 0.2), 0.7, 39_800, 55_857),
        ((0.3, 0.1), 0.7, 202_000, 213_964),
        ((0.2, 0.06), 0.6, 309_000, 315_823),
        ((0.15, 0.05), 0.6, 341_500, 349_683),
    ],
)
def test_the_key_of_a_million_bits_is_at_least_the_prototypes(
    mu: tuple[float, float], p_signal: float, prototype: int, found: int
) -> None:
    # The prototype sums Gaussian deviations of 9.9 sigma at their worst; here one event weighs them together.
    result = estimate(link_inputs(mu, p_signal), "three_state")
    assert result.length >= prototype
    assert result.length == pytest.approx(found, abs=300)


def test_longer_blocks_give_more_key_for_a_bit() -> None:
    result = estimate(link_inputs((0.5, 0.2), 0.7, 1e7), "three_state")
    assert 105_000 <= result.length / 10.0 <= 115_000  # the prototype: 105,000 a million
    rates = []
    for n_z in (3e4, 1e5, 1e6, 1e8):
        rates.append(estimate(link_inputs((0.15, 0.05), 0.6, n_z), "three_state").length / n_z)
    assert rates == sorted(rates)
    assert rates[0] < rates[-1] / 10.0


def test_a_result_adds_up_and_its_bounds_fit_each_other() -> None:
    inputs = link_inputs((0.2, 0.06), 0.6)
    result = estimate(inputs, "three_state")
    spent = result.lambda_ec_bits + result.overhead_bits + result.verification_bits
    secret = result.length_unfloored + spent
    # The joint bound lies above what the two single bounds together say, and below what they leave possible.
    assert result.s_z1_lower * (1.0 - binary_entropy(result.phi_z_upper)) <= secret
    assert secret <= inputs.n_z.total * (1.0 - binary_entropy(result.phi_z_upper)) + 0.02 * inputs.n_z.total
    assert result.length == math.floor(result.length_unfloored)
    assert result.overhead_bits == pytest.approx(-2.0 * math.log2(2.0 * inputs.eps_sec / 3.0))
    assert result.epsilons["event"] <= (inputs.eps_sec / 3.0) ** 2 / 600.0
    assert result.estimator == "three_state"
    assert Assumption.FIXED_CHANCE_OF_ARM in result.assumptions
    assert Assumption.ONE_X_DETECTOR not in result.assumptions


def test_whatever_the_search_proposes_the_claim_is_proven(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = link_inputs((0.2, 0.06), 0.6)
    honest = estimate(inputs, "three_state")
    rng = np.random.default_rng(5)
    search = best_weights

    def spoiled(task: Any, **_: float) -> Found:
        classes, scale, quotient = search(task)
        wrong = tuple(b * math.exp(rng.normal(0.0, 3e-4)) for b in classes)
        return Found(wrong, scale * rng.uniform(0.5, 2.0), quotient * rng.uniform(0.5, 2.0))

    def senseless(task: Any, **_: float) -> Found:
        return Found((math.nan,) * 15, math.nan, math.nan)

    def too_good(task: Any, **_: float) -> Found:
        classes, scale, quotient = search(task)
        return Found(tuple(b * 1.01 for b in classes), scale, 2.0 * quotient)

    for proposal in (spoiled, senseless, too_good):
        monkeypatch.setattr(three_state, "best_weights", proposal)
        for _ in range(5):
            result = estimate(inputs, "three_state")
            assert result.length <= honest.length
            assert result.s_z1_lower <= honest.s_z1_lower + 1.0
            assert result.phi_z_upper >= honest.phi_z_upper - 1e-4


def test_the_tangent_is_the_best_one_to_a_millionth_of_the_sifted_bits() -> None:
    (_, inputs), *_ = variants(count_set(25, 1920).inputs, ("three_state",))
    length = estimate(inputs, "three_state").length
    block = three_state._Block.of(inputs)
    parts = pieces(block.counts, block.shape, block.emission, block.allowance)
    best = 0.0
    for phi in np.linspace(0.15, 0.23, 33):
        values = three_state._tangent(Fraction(phi))
        best = max(best, float(min(block.proven(values, part) for part in parts)))
    overhead = inputs.lambda_ec + 2.0 * math.log2(3.0 / inputs.eps_sec) - 2.0 + inputs.verification_bits
    assert 0 < best - overhead < length + 1e-6 * inputs.n_z.total + 1.0


def test_no_detection_at_all_and_very_few_give_no_key() -> None:
    inputs = link_inputs((0.2, 0.06), 0.6)
    for factor in (0.0, 1e-6, 1e-4, 1e-3):
        result = estimate(times(inputs, factor), "three_state")
        assert result.length == 0
        assert result.length_unfloored < 0.0
        assert 0.0 <= result.s_z1_lower <= inputs.n_z.total * factor
        assert result.phi_z_upper <= 0.5
    none = Pair(0, 0)
    silent = replaced(inputs, n_x=none, m_x=none, boundary=0.0, e_same=none, e_plus=none, e_dark=none)
    assert estimate(silent, "three_state").length == 0


def test_more_leak_stricter_epsilons_and_longer_tags_never_give_more_key() -> None:
    inputs = link_inputs((0.2, 0.06), 0.6, verification_bits=0)
    before = estimate(inputs, "three_state").length
    for eps in (3e-11, 1e-12, 1e-15, 1e-40, 1e-100):
        after = estimate(replaced(inputs, eps_sec=eps), "three_state").length
        assert after < before
        before = after
    loose = estimate(inputs, "three_state")
    for changes in ({"lambda_ec": inputs.lambda_ec + 1}, {"eps_cor": 1e-18}, {"verification_bits": 128}):
        assert estimate(replaced(inputs, **changes), "three_state").length < loose.length


def test_more_errors_never_give_more_key() -> None:
    inputs = link_inputs((0.2, 0.06), 0.6)
    best = estimate(inputs, "three_state").length
    for name in ("m_z", "m_x"):
        pair = getattr(inputs, name)
        for more in (0.01, 0.1, 1.0):
            worse = replaced(inputs, **{name: Pair(pair.signal * (1 + more), pair.decoy * (1 + more))})
            assert estimate(worse, "three_state").length < best


def test_the_same_counts_give_the_same_result() -> None:
    inputs = link_inputs((0.3, 0.1), 0.7, 3e5)
    assert estimate(inputs, "three_state") == estimate(inputs, "three_state")


def test_no_intensity_within_its_interval_gives_less_key_than_the_worst_corner() -> None:
    inputs = link_inputs((0.3, 0.1), 0.7)
    worst = estimate(replaced(inputs, mu_uncertainty=Pair(0.02, 0.02)), "three_state")
    assert "2.000%" in worst.assumptions[Assumption.CALIBRATED_INTENSITIES]
    for signal in (-0.02, -0.01, 0.0, 0.013, 0.02):
        for decoy in (-0.02, 0.0, 0.01):
            mu = Pair(0.3 * (1 + signal), 0.1 * (1 + decoy))
            assert worst.length <= estimate(replaced(inputs, mu=mu), "three_state").length + 50


@pytest.mark.parametrize("name", ["n_z_plus", "boundary"])
def test_a_missing_count_is_refused_by_name(name: str) -> None:
    with pytest.raises(FieldError, match="missing") as refused:
        estimate(replaced(link_inputs((0.2, 0.06), 0.6), **{name: None}), "three_state")
    assert refused.value.field == name


def test_blocks_of_two_x_detectors_are_refused() -> None:
    changes = {"p_z": None, "e_same": None, "e_plus": None, "e_dark": None, "x_scale": 1.0}
    with pytest.raises(FieldError, match="missing") as refused:
        estimate(replaced(link_inputs((0.2, 0.06), 0.6), **changes), "three_state")
    assert refused.value.field == "p_z"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("boundary", -1.0),
        ("boundary", math.nan),
        ("boundary", 1.0),  # fewer than its classes
        ("n_z_plus", Pair(math.inf, 0.0)),
        ("x_mode", "visibility"),
        ("statistics", "hoeffding"),
        ("vacuum_rule", "k2"),
    ],
)
def test_impossible_counts_and_rules_it_does_not_have_are_refused(name: str, value: object) -> None:
    with pytest.raises(FieldError) as refused:
        estimate(replaced(link_inputs((0.2, 0.06), 0.6), **{name: value}), "three_state")
    assert refused.value.field == name


def test_counts_that_contradict_the_intensities_are_refused() -> None:
    inputs = link_inputs((0.5, 0.2), 0.7)
    swapped = replaced(
        inputs,
        n_z=Pair(inputs.n_z.decoy, inputs.n_z.signal),
        m_z=Pair(inputs.m_z.decoy, inputs.m_z.signal),
    )
    # The smallest input of the issue: no signal click at all.
    none = replaced(inputs, n_z=Pair(0, 1e6), m_z=Pair(0, 15e3), n_x=Pair(0, 6e5), m_x=Pair(0, 18e3))
    for impossible in (swapped, none, replaced(inputs, mu=Pair(0.5, 0.1))):
        with pytest.raises(FieldError, match="contradict the decoy model") as refused:
            estimate(impossible, "three_state")
        assert refused.value.field == "counts"


def test_a_small_excess_of_decoy_clicks_is_no_contradiction() -> None:
    inputs = link_inputs((0.5, 0.2), 0.7, 1e5)
    more = math.sqrt(inputs.n_z.decoy) * 4.0
    estimate(replaced(inputs, n_z=Pair(inputs.n_z.signal - more, inputs.n_z.decoy + more)), "three_state")


def test_random_counts_never_give_more_bits_than_were_sifted_and_never_a_crash() -> None:
    rng = np.random.default_rng(8)
    keys = 0
    refused: list[str] = []
    for _ in range(100):
        base = link_inputs((0.3, 0.1), 0.7, 10.0 ** rng.uniform(0, 9), f_ec=0.0)
        spread = 10.0 ** rng.uniform(-4, 0.5)

        def shaken(pair: Pair, spread: float = spread) -> Pair:
            first, second = np.exp(rng.normal(0.0, spread, 2))
            return Pair(float(round(pair.signal * first)), float(round(pair.decoy * second)))

        names = ("n_z", "n_x", "m_x", "n_z_plus")
        pairs = {name: shaken(getattr(base, name)) for name in names}
        shares = rng.uniform(0.0, 0.1, 2)
        n_z = pairs["n_z"]
        m_z = Pair(math.floor(n_z.signal * shares[0]), math.floor(n_z.decoy * shares[1]))
        assert base.boundary is not None
        boundary = float(round(base.boundary * np.exp(rng.normal(0.0, spread))))
        few = {name: Pair(0, 0) for name in ("e_same", "e_plus", "e_dark")}
        counts = replaced(base, **pairs, **few, m_z=m_z, boundary=boundary)
        try:
            result = estimate(counts, "three_state")
        except FieldError as contradiction:
            refused.append(contradiction.field)
            continue
        keys += result.length > 0
        assert 0 <= result.length <= pairs["n_z"].total
        assert 0.0 <= result.s_z1_lower <= pairs["n_z"].total
        assert 0.0 <= result.phi_z_upper <= 0.5
    assert refused.count("counts") == len(refused) > 10
    assert keys > 10


def test_a_link_file_chooses_it_and_may_not_ask_it_for_rules_that_it_does_not_have() -> None:
    assert "three_state" in ESTIMATORS
    chosen = {"estimator": "three_state"}
    check_link_parameters(convert({"estimation": chosen}, LinkParameters, where="link"))
    for name, value in (("x_mode", "visibility"), ("statistics", "hoeffding"), ("vacuum_rule", "k2")):
        link = convert({"estimation": {**chosen, name: value}}, LinkParameters, where="link")
        with pytest.raises(ValueError, match=rf"link\.estimation\.{name}: three_state"):
            check_link_parameters(link)
