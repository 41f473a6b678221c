"""The three estimators: published numbers, published tables, and what must never happen."""

import math
import subprocess
import sys
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from turin_model import seconds, turin_inputs

from qnode.distill.counts import Pair
from qnode.distill.keylength import (
    ESTIMATORS,
    Assumption,
    EstimatorInput,
    KeyLength,
    binary_entropy,
    estimate,
)
from qnode.distill.keylength.asymmetry import AsymmetryTerms
from qnode.distill.keylength.sampling import GAMMA_LEAST_ERRORS, rusca_phase_error
from qnode.errors import CountsContradiction, FieldError

EXAMPLE: dict[str, Any] = {
    "n_z": Pair(8875913, 1124087),
    "m_z": Pair(185856, 26055),
    "n_x": Pair(165048, 20902),
    "m_x": Pair(3456, 484),
    "mu": Pair(0.51, 0.15),
    "p": Pair(0.7, 0.3),
    "eps_sec": 1e-9,
    "eps_cor": 1e-15,
    "lambda_ec": 1776924,
}
# `three_state` needs more counts than these inputs have; tests/test_distill_three_state.py has its own.
BOUNDED_CLASS_BY_CLASS = [name for name in ESTIMATORS if name != "three_state"]
ASYMMETRIC = {"x_mode": "visibility + asymmetry"}
VARIANTS = [
    ("rusca2018", {}),
    ("rusca2018", ASYMMETRIC),
    ("eur", {}),
    ("eur", {"statistics": "hoeffding"}),
    ("eur", ASYMMETRIC),
    ("wiesemann2024", {}),
]


def example(**changes: Any) -> EstimatorInput:
    return EstimatorInput(**{**EXAMPLE, **changes})


def test_rusca2018_gives_the_published_worked_example_to_all_published_digits() -> None:
    # The figures of formal-qkd (test/ExampleValuesSKL.lean), which holds them to 1e-8 by interval arithmetic.
    result = estimate(example(vacuum_rule="k2"), "rusca2018")
    weighted = result.weighted
    found = [
        (weighted.n_z.signal_upper, 2.1141564840596016e7),
        (weighted.n_z.signal_lower, 2.1089805919420347e7),
        (weighted.n_z.decoy_upper, 4.395472030980807e6),
        (weighted.n_z.decoy_lower, 4.31121309172391e6),
        (weighted.n_x.signal_upper, 396176.12935093784),
        (weighted.n_x.decoy_lower, 75203.94317833845),
        (weighted.m_x.signal_upper, 8735.473153448527),
        (weighted.m_x.decoy_lower, 1038.1798167212369),
        (result.s_z0_upper, 167020.1792587285),
        (result.s_x0_upper, 6645.523136846764),
        (result.v_x1_upper, 5411.812583855381),
        (result.s_z0_lower, 0.0),
        (result.s_z1_lower, 5.396516268816283e6),
        (result.s_x1_lower, 76462.2755485758),
        (result.phi_z_upper, 0.07917365937798954),
        (result.length_unfloored, 1.4647190887320058e6),
    ]
    for ours, published in found:
        assert ours == pytest.approx(published, rel=0.0, abs=1e-8)
    assert result.length == 1464719
    assert result.error_rate_x1 == result.v_x1_upper / result.s_x1_lower


def test_every_result_adds_up_from_the_bounds_it_carries() -> None:
    for estimator, chosen in VARIANTS:
        result = estimate(turin_inputs(10.8, 1e6, **chosen), estimator)
        credited = result.s_z0_lower if estimator == "rusca2018" else 0.0
        secret = credited + result.s_z1_lower * (1 - binary_entropy(result.phi_z_upper))
        spent = result.lambda_ec_bits + result.overhead_bits + result.verification_bits
        assert result.length_unfloored == pytest.approx(secret - spent, rel=1e-12)
        assert result.error_rate_x1 < result.phi_visibility_upper <= result.phi_z_upper
        assert 0 < 2 * result.v_z0_upper < result.s_z0_upper
        assert result.weighted.n_z.signal_lower < result.weighted.n_z.signal_upper


@pytest.mark.parametrize(
    ("n_z", "rusca", "hoeffding", "exact"),
    [
        (1e5, 62, 203, 719),
        (3e5, 829, 934, 1265),
        (1e6, 1315, 1402, 1596),
        (3e6, 1566, 1648, 1763),
        (1e7, 1722, 1801, 1866),
    ],
)
def test_estimators_reproduce_the_rates_of_the_reference_link(
    n_z: float, rusca: int, hoeffding: int, exact: int
) -> None:
    def rate(estimator: str, **chosen: Any) -> float:
        return estimate(turin_inputs(10.8, n_z, **chosen), estimator).length / seconds(10.8, n_z)

    assert rate("rusca2018") == pytest.approx(rusca, abs=1.1)
    assert rate("eur", statistics="hoeffding") == pytest.approx(hoeffding, abs=1.1)
    assert rate("eur") == pytest.approx(exact, abs=1.1)


# Secret bits of a block by the bound on the asymmetry.
@pytest.mark.parametrize(
    ("n_z", "shares", "joint"), [(3e5, 33_954, 19_718), (1e6, 174_393, 144_482), (1e7, 2.311e6, 2.200e6)]
)
def test_asymmetry_costs_what_the_reference_says_and_is_pure_statistics(
    n_z: float, shares: float, joint: float
) -> None:
    for bound, length in (("shares", shares), ("joint", joint)):
        chosen: dict[str, Any] = {"asymmetry_bound": bound, "eps_sec": 1e-10, **ASYMMETRIC}
        result = estimate(turin_inputs(10.8, n_z, **chosen), "eur")
        assert result.asymmetry_bound == bound
        assert result.length == pytest.approx(length, rel=0.045)
        for terms in (result.asymmetry, result.shares):
            assert terms is not None
            assert terms.asymmetry == pytest.approx(0.0, abs=1e-4)


@pytest.mark.parametrize(("attenuation_db", "rate"), [(5.5, 1380), (13.5, 1251), (19.0, 934), (21.8, 596)])
def test_rusca2018_follows_the_attenuation_table(attenuation_db: float, rate: int) -> None:
    result = estimate(turin_inputs(attenuation_db, 1e6), "rusca2018")
    assert result.length / seconds(attenuation_db, 1e6) == pytest.approx(rate, abs=1.1)


def test_wiesemann2024_is_the_formula_written_out() -> None:
    inputs = example()
    result = estimate(inputs, "wiesemann2024")
    c, d, eps0 = result.s_z1_lower, result.s_x1_lower, 1e-9 / 15
    b = result.v_x1_upper / d
    phi = b + math.sqrt((c + d) / (c * d) * (d + 1) / d * math.log(1 / eps0))
    entropy = -phi * math.log2(phi) - (1 - phi) * math.log2(1 - phi)
    length = c * (1 - entropy) - 1776924 - math.log2(2 / 1e-15) - 4 * math.log2(15 / 1e-9) + 1
    assert result.phi_z_upper == pytest.approx(phi, rel=1e-12)
    assert result.length == math.floor(length)
    assert result.v_x1_upper < estimate(inputs, "rusca2018").v_x1_upper  # fewer terms, smaller deviations


def test_eur_spends_its_budget_on_nine_events_and_those_of_the_charged_asymmetry() -> None:
    plain = estimate(turin_inputs(10.8, 1e6), "eur").epsilons
    shares = estimate(turin_inputs(10.8, 1e6, **ASYMMETRIC), "eur").epsilons
    joint = estimate(turin_inputs(10.8, 1e6, asymmetry_bound="joint", **ASYMMETRIC), "eur").epsilons
    assert (plain["events"], shares["events"], joint["events"]) == (9.0, 11.0, 15.0)
    for budget in (plain, shares, joint):
        assert budget["event"] * budget["events"] == pytest.approx(budget["eps_at"] ** 2, rel=1e-12)


@pytest.mark.parametrize(("estimator", "chosen"), VARIANTS)
def test_weighted_epsilons_sum_to_eps_sec(estimator: str, chosen: dict[str, Any]) -> None:
    budget = estimate(turin_inputs(10.8, 1e6, **chosen), estimator).epsilons
    names = [name for name in budget if f"{name}_weight" in budget]
    assert sum(budget[name] * budget[f"{name}_weight"] for name in names) == pytest.approx(1e-9, rel=1e-12)
    assert budget["eps_sec"] == 1e-9
    assert budget["eps_cor"] == 1e-15


def test_few_errors_take_the_exact_tail_and_say_so() -> None:
    result = estimate(example(m_x=Pair(0, 0)), "rusca2018")
    assert result.v_x1_upper == 0.0
    assert result.phi_z_upper > 0.0
    assert result.epsilons["sampling_tail"] == pytest.approx((1e-9 / 19) ** 2)
    assert "(eps_sec/19)^2" in result.assumptions[Assumption.EXACT_TAIL]
    assert "sampling_tail" not in estimate(example(), "rusca2018").epsilons


def test_phase_error_does_not_jump_down_where_gamma_takes_over() -> None:
    eps = 1e-10 / 19
    values = [
        rusca_phase_error(v, 5e6, 1e5, eps).value for v in (90, 99, 99.9, 100, 100.1, 110, 120, 130, 200)
    ]
    assert values == sorted(values)
    assert not rusca_phase_error(2 * GAMMA_LEAST_ERRORS, 5e6, 1e5, eps).by_exact_tail


def test_length_is_zero_and_never_negative_when_nothing_remains() -> None:
    for estimator in BOUNDED_CLASS_BY_CLASS:
        leaked = estimate(example(lambda_ec=1e9), estimator)
        assert leaked.length == 0
        assert leaked.length_unfloored < 0
        nothing = estimate(
            example(n_z=Pair(0, 0), m_z=Pair(0, 0), n_x=Pair(0, 0), m_x=Pair(0, 0), lambda_ec=0), estimator
        )
        assert (nothing.length, nothing.phi_z_upper) == (0, 0.5)


def test_without_x_data_vacuum_alone_gives_no_key() -> None:
    counts = example(
        n_x=Pair(0, 0), m_x=Pair(0, 0), lambda_ec=0, n_z=Pair(8.26e6, 1.74e6), m_z=Pair(1.22e6, 506e3)
    )
    result = estimate(counts, "rusca2018")
    assert result.s_z0_lower > 1000
    assert result.length == 0


def test_entropy_of_empty_qubits_is_credited_only_while_error_positions_are_secret() -> None:
    counts = example(n_z=Pair(8.26e6, 1.74e6), m_z=Pair(1.22e6, 506e3), lambda_ec=0)
    secret, public = (
        estimate(msgspec.structs.replace(counts, error_positions_public=known), "rusca2018")
        for known in (False, True)
    )
    assert secret.s_z0_lower > 10_000
    assert secret.length_unfloored - public.length_unfloored == pytest.approx(secret.s_z0_lower)
    assert Assumption.NO_EMPTY_CREDIT_PUBLIC_ERRORS in public.assumptions


# The smallest input for which formulas that clip each bound alone give more secret bits than sifted ones.
IMPOSSIBLE = {
    "n_z": Pair(0, 1_000_000),
    "m_z": Pair(0, 15_000),
    "n_x": Pair(0, 600_000),
    "m_x": Pair(0, 18_000),
    "mu": Pair(0.5, 0.2),
    "p": Pair(0.7, 0.3),
    "lambda_ec": 0,
}


@pytest.mark.parametrize("estimator", BOUNDED_CLASS_BY_CLASS)
@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({}, "s_z0_lower"),
        ({"n_z": Pair(850_000, 150_000), "n_x": Pair(510_000, 90_000)}, "v_x1_upper"),
        (
            {
                "n_z": Pair(850_000, 150_000),
                "n_x": Pair(300_000, 300_000),
                "m_x": Pair(9_000, 1_500),
            },
            "s_x0_lower",
        ),
    ],
)
def test_counts_that_contradict_the_intensities_are_refused_by_the_bound_that_shows_it(
    estimator: str, changes: dict[str, Any], field: str
) -> None:
    with pytest.raises(CountsContradiction) as refused:
        estimate(EstimatorInput(**{**IMPOSSIBLE, **changes}), estimator)
    assert refused.value.field == field


def test_counts_are_refused_when_they_exclude_the_weakest_signal_with_the_strongest_decoy() -> None:
    # As a decoy of 0.32 gives them, where 0.20 is configured.
    n, m = Pair(8_500_000, 2_330_000), Pair(90_000, 24_000)
    counts = example(n_z=n, m_z=m, n_x=n, m_x=m, mu=Pair(0.5, 0.2), p=Pair(0.7, 0.3), lambda_ec=0)
    for off, refused in ((0.0, True), (0.001, True), (0.3, False)):
        uncertain = msgspec.structs.replace(counts, mu_uncertainty=Pair(off, off))
        if refused:
            with pytest.raises(CountsContradiction):
                estimate(uncertain, "eur")
        else:  # other corners are excluded, and make no key longer
            worst = msgspec.structs.replace(counts, mu=Pair(0.5 * (1 - off), 0.2 * (1 + off)))
            assert estimate(uncertain, "eur").length == estimate(worst, "eur").length > 0


@pytest.mark.parametrize("estimator", BOUNDED_CLASS_BY_CLASS)
def test_counts_that_exclude_the_worst_corner_give_no_key_by_the_others(estimator: str) -> None:
    # Many X errors of the decoy: the worst corner cannot give them, while little key is left just inside it.
    counts = example(m_x=Pair(3456, 2600))
    other = msgspec.structs.replace(counts, mu=Pair(0.51 * 1.12, 0.15 * 0.88))
    assert estimate(other, estimator).length > 4_000_000
    with pytest.raises(CountsContradiction) as refused:
        estimate(msgspec.structs.replace(counts, mu_uncertainty=Pair(0.12, 0.12)), estimator)
    assert refused.value.field == "v_x1_upper"


def test_shares_that_no_channel_gives_are_refused() -> None:
    inputs = turin_inputs(10.8, 1e6, **ASYMMETRIC)
    assert inputs.n_z_plus is not None
    flooded = msgspec.structs.replace(inputs, n_z_plus=Pair(3e6, 1e6))
    with pytest.raises(CountsContradiction) as refused:
        estimate(flooded, "eur")
    assert refused.value.field == "n_z_plus"
    silent = msgspec.structs.replace(inputs, boundary=100.0, e_same=None, e_plus=None, e_dark=None)
    with pytest.raises(CountsContradiction) as refused:
        estimate(silent, "eur")
    assert refused.value.field == "boundary"


def test_x_scale_multiplies_detections_and_their_deviation_but_never_errors() -> None:
    scaled = estimate(example(x_scale=2.0), "rusca2018")
    plain = estimate(example(), "rusca2018")
    assert scaled.v_x1_upper == plain.v_x1_upper
    # Twice the counts with twice their deviation, minus less than twice the empty ones: more than twice.
    assert scaled.s_x1_lower > 2 * plain.s_x1_lower
    inserted = estimate(example(n_x=Pair(2 * 165048, 2 * 20902)), "rusca2018")
    assert scaled.s_x1_lower < inserted.s_x1_lower


def test_verification_tag_is_paid_by_the_larger_of_tag_and_eps_cor() -> None:
    lengths = [estimate(example(verification_bits=bits), "eur").length_unfloored for bits in (0, 50, 64, 128)]
    assert lengths[0] == lengths[1]
    assert lengths[2] - lengths[3] == pytest.approx(64)
    assert lengths[0] - lengths[2] == pytest.approx(64 - math.log2(2 / 1e-15))


def test_vacuum_rules_are_ordered() -> None:
    lengths = {
        rule: estimate(example(vacuum_rule=rule), "rusca2018").length
        for rule in ("min3", "min", "k1", "k2", "form_a", "max3")
    }
    assert lengths["min"] == max(lengths["k1"], lengths["k2"])
    assert lengths["min3"] >= max(lengths["min"], lengths["form_a"])
    assert lengths["max3"] <= min(lengths["k1"], lengths["k2"], lengths["form_a"])


def test_the_charged_bound_widens_the_phase_error_as_it_says() -> None:
    joint = estimate(turin_inputs(10.8, 1e6, asymmetry_bound="joint", **ASYMMETRIC), "eur")
    assert joint.asymmetry is not None
    assert joint.asymmetry_upper == pytest.approx(0.0289, abs=1e-4)
    widened = joint.phi_visibility_upper * max(1.0, 2.0 * (joint.asymmetry.t2_upper or 0.0))
    assert joint.phi_z_upper == pytest.approx(widened + 0.0289, abs=1e-4)
    shares = estimate(turin_inputs(10.8, 1e6, **ASYMMETRIC), "eur")
    assert shares.shares is not None
    remains = shares.shares.t2_lower * (1.0 - 2.0 * shares.phi_visibility_upper)
    assert shares.phi_z_upper == pytest.approx(1.0 - shares.shares.rho_lower - remains)
    assert shares.length > joint.length


def test_asymmetry_is_reported_but_not_charged_in_visibility_mode() -> None:
    silent = estimate(turin_inputs(10.8, 1e6), "rusca2018")
    charged = estimate(turin_inputs(10.8, 1e6, **ASYMMETRIC), "rusca2018")
    assert silent.asymmetry is not None
    assert silent.shares is not None
    assert silent.asymmetry_bound is None
    assert charged.asymmetry_upper is not None
    assert charged.phi_z_upper > silent.phi_z_upper + 0.5 * charged.asymmetry_upper
    assert Assumption.VISIBILITY_ONLY in silent.assumptions
    assert Assumption.ONE_X_DETECTOR in charged.assumptions


@pytest.mark.parametrize(("estimator", "chosen"), VARIANTS)
def test_uncertain_intensities_cost_what_the_worst_corner_costs(
    estimator: str, chosen: dict[str, Any]
) -> None:
    exact = turin_inputs(10.8, 1e6, **chosen)
    uncertain = msgspec.structs.replace(exact, mu_uncertainty=Pair(0.03, 0.02))
    result = estimate(uncertain, estimator)
    corners = {
        Pair(exact.mu.signal * signal, exact.mu.decoy * decoy)
        for signal in (1 - 0.03, 1 + 0.03)
        for decoy in (1 - 0.02, 1 + 0.02)
    }
    lengths = {mu: estimate(msgspec.structs.replace(exact, mu=mu), estimator).length for mu in corners}
    assert result.length == min(lengths.values()) == lengths[result.mu]
    assert result.length < 0.85 * estimate(exact, estimator).length
    assert f"{result.mu.signal:.6g}" in result.assumptions[Assumption.CALIBRATED_INTENSITIES]
    assert Assumption.EXACT_INTENSITIES not in result.assumptions


def test_importing_the_estimators_brings_no_compiler_along() -> None:
    code = "import sys, qnode.distill.keylength; print(*{'numba', 'trio', 'matplotlib'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == ""


REFUSED: list[tuple[str, dict[str, Any]]] = [
    ("m_z", {"m_z": Pair(8875914, 0)}),
    ("m_z", {"m_z": Pair(0, 1124088)}),
    ("m_x", {"m_x": Pair(165049, 0)}),
    ("n_z", {"n_z": Pair(-1, 1)}),
    ("n_x", {"n_x": Pair(math.inf, 1)}),
    ("n_x", {"n_x": Pair(math.nan, 1)}),
    ("n_z", {"n_z": Pair(1e16, 1)}),
    ("mu", {"mu": Pair(0.15, 0.51)}),
    ("mu", {"mu": Pair(0.5, 0.5)}),
    ("mu", {"mu": Pair(0.5, 0.0)}),
    ("mu", {"mu": Pair(math.nan, 0.1)}),
    ("mu", {"mu": Pair(1e6, 0.1)}),
    ("p", {"p": Pair(0.7, 0.2)}),
    ("p", {"p": Pair(1.0, 0.0)}),
    ("eps_sec", {"eps_sec": 0.0}),
    ("eps_sec", {"eps_sec": 1.0}),
    ("eps_cor", {"eps_cor": math.nan}),
    ("lambda_ec", {"lambda_ec": -1.0}),
    ("lambda_ec", {"lambda_ec": math.inf}),
    ("x_scale", {"x_scale": 0.0}),
    ("p_z", {"p_z": 1.0}),
    ("verification_bits", {"verification_bits": -1}),
    ("mu_uncertainty", {"mu_uncertainty": Pair(-0.1, 0.0)}),
    ("mu_uncertainty", {"mu_uncertainty": Pair(0.0, 1.0)}),
    ("mu_uncertainty", {"mu_uncertainty": Pair(math.nan, 0.0)}),
    ("mu_uncertainty", {"mu_uncertainty": Pair(0.6, 0.5)}),
    ("p_z", {"x_mode": "visibility + asymmetry"}),
    ("e_plus", {"p_z": 0.5, "e_same": Pair(1, 1)}),
    ("e_dark", {"p_z": 0.5, "e_same": Pair(1, 1), "e_plus": Pair(1, 1), "e_dark": Pair(-1, 1)}),
]


@pytest.mark.parametrize(("field", "changes"), REFUSED)
def test_impossible_input_is_refused_by_the_name_of_its_field(field: str, changes: dict[str, Any]) -> None:
    with pytest.raises(FieldError) as refused:
        example(**changes)
    assert refused.value.field == field


def test_unknown_estimator_and_fixed_rule_are_refused() -> None:
    with pytest.raises(FieldError) as unknown:
        estimate(example(), "rusca2019")
    assert unknown.value.field == "estimator"
    with pytest.raises(FieldError) as fixed:
        estimate(example(vacuum_rule="k2"), "wiesemann2024")
    assert fixed.value.field == "vacuum_rule"


def test_one_detector_may_count_more_errors_than_detections() -> None:
    result = estimate(example(x_scale=2.0, m_x=Pair(200000, 30000)), "eur")
    assert (result.length, result.phi_z_upper) == (0, 0.5)


@st.composite
def blocks(draw: st.DrawFn) -> EstimatorInput:
    """Draw a block that looks like a link: any size, intensities, error rates, epsilons, with X classes."""
    mu1 = draw(st.floats(0.2, 1.0))
    mu2 = mu1 * draw(st.floats(0.1, 0.7))
    p1, p_z = draw(st.floats(0.2, 0.9)), draw(st.floats(0.3, 0.95))
    n_z = 10 ** draw(st.floats(3, 8))
    # Most blocks give key, so that comparing lengths says something; the rest has poor X data.
    n_x = n_z * draw(st.floats(0.2, 1.0)) if draw(st.integers(0, 4)) else 10 ** draw(st.floats(2, 7))
    e_z, e_x = draw(st.floats(0, 0.05)), draw(st.floats(0, 0.06))
    share = p1 * mu1 / (p1 * mu1 + (1 - p1) * mu2)

    def split(n: float) -> Pair:
        return Pair(math.floor(n * share), math.floor(n * (1 - share)))

    def part(pair: Pair, rate: float) -> Pair:
        return Pair(math.floor(pair.signal * rate), math.floor(pair.decoy * rate))

    scale = 2 * (1 - p_z) / p_z
    detections, central = split(n_z), split(n_x)
    return EstimatorInput(
        n_z=detections,
        m_z=part(detections, e_z),
        n_x=central,
        m_x=part(central, e_x * scale),
        mu=Pair(mu1, mu2),
        p=Pair(p1, 1 - p1),
        lambda_ec=n_z * draw(st.floats(0, 0.3)),
        eps_sec=10 ** draw(st.floats(-30, -1)),
        eps_cor=10 ** draw(st.floats(-30, -1)),
        x_scale=scale,
        p_z=p_z,
        e_same=split(n_x * p_z / 2),
        e_plus=split(n_x * (1 - p_z) / 2),
        e_dark=part(split(n_x), 0.005),
        n_z_plus=split(n_z * (1 - p_z) / p_z),
        boundary=math.floor(n_x / p_z) + 2.0,
        asymmetry_bound=draw(st.sampled_from(["shares", "joint"])),
        x_mode=draw(st.sampled_from(["visibility", "visibility + asymmetry"])),
        statistics=draw(st.sampled_from(["exact", "hoeffding"])),
    )


def _one_step_bits(result: KeyLength) -> float:
    """Return what one unseen error more or less is worth: the exact tail counts errors in integers."""
    c, phi = result.s_z1_lower, result.phi_z_upper
    if c < 1 or result.length == 0:
        return 0.0
    return c * (binary_entropy(min(0.5, phi + 1 / math.floor(c))) - binary_entropy(phi)) + 1


def _all(inputs: EstimatorInput) -> list[KeyLength]:
    return [estimate(inputs, estimator) for estimator in BOUNDED_CLASS_BY_CLASS]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(inputs=blocks(), more=st.integers(1, 500), decoy=st.booleans())
def test_more_errors_never_give_more_key(inputs: EstimatorInput, more: int, decoy: bool) -> None:
    # Errors of the decoy in X count as evidence for empty qubits and may lower v_X1, so they are left out.
    m_z = inputs.m_z
    worse_z = Pair(m_z.signal, min(inputs.n_z.decoy, m_z.decoy + more))
    if not decoy:
        worse_z = Pair(min(inputs.n_z.signal, m_z.signal + more), m_z.decoy)
    worse_x = Pair(inputs.m_x.signal + more, inputs.m_x.decoy)
    for changes in ({"m_z": worse_z}, {"m_x": worse_x}):
        for before, after in zip(_all(inputs), _all(msgspec.structs.replace(inputs, **changes)), strict=True):
            assert after.length <= before.length + _one_step_bits(after)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(inputs=blocks(), factor=st.floats(1e-6, 0.99), leak=st.floats(1, 1e5))
def test_smaller_epsilon_and_larger_leak_never_give_more_key(
    inputs: EstimatorInput, factor: float, leak: float
) -> None:
    stricter: list[dict[str, Any]] = [
        {"eps_sec": inputs.eps_sec * factor},
        {"eps_cor": inputs.eps_cor * factor},
        {"lambda_ec": inputs.lambda_ec + leak},
        {"verification_bits": 128},
    ]
    before = _all(inputs)
    for changes in stricter:
        for loose, strict in zip(before, _all(msgspec.structs.replace(inputs, **changes)), strict=True):
            assert strict.length <= loose.length


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    inputs=blocks(),
    off=st.tuples(st.floats(0.0, 0.08), st.floats(0.0, 0.08)),
    place=st.tuples(st.floats(-1.0, 1.0), st.floats(-1.0, 1.0)),
)
def test_no_intensity_within_its_interval_gives_less_key_than_the_worst_corner(
    inputs: EstimatorInput, off: tuple[float, float], place: tuple[float, float]
) -> None:
    mu = Pair(inputs.mu.signal * (1 + off[0] * place[0]), inputs.mu.decoy * (1 + off[1] * place[1]))
    uncertain = msgspec.structs.replace(inputs, mu_uncertainty=Pair(*off))
    for within, worst in zip(_all(msgspec.structs.replace(inputs, mu=mu)), _all(uncertain), strict=True):
        assert worst.length <= within.length + _one_step_bits(within)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(inputs=blocks())
def test_a_block_twice_as_long_gives_at_least_twice_the_key(inputs: EstimatorInput) -> None:
    def doubled(pair: Pair | None) -> Pair | None:
        return pair and Pair(2 * pair.signal, 2 * pair.decoy)

    names = ("n_z", "m_z", "n_x", "m_x", "e_same", "e_plus", "e_dark", "n_z_plus")
    changes: dict[str, Any] = {name: doubled(getattr(inputs, name)) for name in names}
    assert inputs.boundary is not None
    changes["boundary"] = 2.0 * inputs.boundary
    longer = msgspec.structs.replace(inputs, **changes, lambda_ec=2 * inputs.lambda_ec)
    for once, twice in zip(_all(inputs), _all(longer), strict=True):
        assert twice.length + _one_step_bits(twice) >= 2 * once.length


@settings(max_examples=40, deadline=None, derandomize=True)
@given(inputs=blocks(), share=st.floats(0.0, 0.2))
def test_a_larger_asymmetry_never_gives_more_key(inputs: EstimatorInput, share: float) -> None:
    charged = msgspec.structs.replace(inputs, x_mode="visibility + asymmetry", asymmetry_bound="joint")
    assert charged.e_plus is not None
    assert charged.e_dark is not None
    fewer = Pair(charged.e_plus.signal * (1 - share), charged.e_plus.decoy * (1 - share))
    more = Pair(charged.e_dark.signal * (1 + share) + 1, charged.e_dark.decoy * (1 + share))
    assert charged.n_z_plus is not None
    assert charged.boundary is not None
    arrived = Pair(charged.n_z_plus.signal * (1 - share), charged.n_z_plus.decoy * (1 - share))
    for bound, changes in (
        ("joint", {"e_plus": fewer}),
        ("joint", {"e_dark": more}),
        ("shares", {"n_z_plus": arrived}),
        ("shares", {"boundary": charged.boundary * (1 + share) + 10.0}),
    ):
        honest = msgspec.structs.replace(charged, asymmetry_bound=bound)
        worse = msgspec.structs.replace(honest, **changes)
        for before, after in zip(_all(honest), _all(worse), strict=True):
            assert after.length <= before.length


@settings(max_examples=40, deadline=None, derandomize=True)
@given(inputs=blocks())
def test_exact_statistics_never_give_less_key_than_hoeffdings(inputs: EstimatorInput) -> None:
    lengths = [
        estimate(msgspec.structs.replace(inputs, statistics=statistics), "eur").length
        for statistics in ("exact", "hoeffding")
    ]
    assert lengths[0] >= lengths[1]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(inputs=blocks())
def test_bounds_stay_within_what_is_possible(inputs: EstimatorInput) -> None:
    n_x = inputs.x_scale * inputs.n_x.total
    for result in _all(inputs):
        assert 0 <= result.length <= inputs.n_z.total
        assert 0.0 <= result.s_z1_lower <= inputs.n_z.total
        assert 0.0 <= result.s_z0_lower <= inputs.n_z.total
        assert 0.0 <= result.s_x1_lower <= n_x
        assert 0.0 <= result.phi_z_upper <= 0.5
        assert result.v_x1_upper >= 0.0


@pytest.mark.parametrize(
    ("t2", "asymmetry", "expected"),
    [(0.3, -0.2, 0.04), (0.6, -0.2, 0.048), (0.6, 0.01, 0.058), (0.6, 0.9, 0.5), (None, 0.0, 0.5)],
)
def test_widening_never_lowers_the_phase_error(t2: float | None, asymmetry: float, expected: float) -> None:
    terms = AsymmetryTerms(
        t1=0.04, t2=0.5, t3=0.5, t4=0.0, asymmetry=0.0, t2_upper=t2, asymmetry_upper=asymmetry
    )
    assert terms.widen(0.04) == pytest.approx(expected)
