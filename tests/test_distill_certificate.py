"""What `three_state` rests on: enclosures, the martingale event, the generators, and the checker."""

import math
from collections.abc import Callable
from decimal import Decimal, getcontext, localcontext
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from three_state_support import link_inputs

from qnode.distill.counts import Pair
from qnode.distill.keylength.arm_ratio import Seen, pieces
from qnode.distill.keylength.certificate import ArmRatio, Values, Weights, holds_for_all, proven_sum
from qnode.distill.keylength.enclosure import LN2, binary_logarithm, exponential, logarithm
from qnode.distill.keylength.martingale import (
    CHOICES,
    Allowance,
    Counts,
    log_inverse_event,
    shapes,
    usual_shares,
)
from qnode.distill.keylength.yields import BOUNDARY, CLASSES, KINDS, Emission, class_index, generators

getcontext().prec = 120
SOURCE = (Pair(0.5, 0.2), Pair(0.7, 0.3), 0.5)
COUNTS = Counts(
    z=Pair(850e3, 150e3),
    wrong=Pair(12e3, 3e3),
    plus=Pair(850e3, 150e3),
    central=Pair(540e3, 94e3),
    dark=Pair(32e3, 7e3),
    boundary=1.27e6,
)


def decimal(x: Fraction) -> Decimal:
    return Decimal(x.numerator) / Decimal(x.denominator)


def near_and_far() -> list[Fraction]:
    rng = np.random.default_rng(1)
    values = [10.0 ** rng.uniform(-300, 300) for _ in range(100)]
    values += [1.0 + rng.uniform(-1, 1) * 10.0 ** rng.uniform(-15, 0) for _ in range(200)]
    return [Fraction(x) for x in [*values, 5e-324, 1.0, 2.0, 0.5, math.nextafter(1.0, 0.0)] if x > 0.0]


def test_logarithms_lie_within_their_enclosures_and_these_are_narrow() -> None:
    slip = Decimal(10) ** -110
    for x in near_and_far():
        found, true = logarithm(x), decimal(x).ln()
        assert decimal(found.lower) <= true + slip * abs(true)
        assert true - slip * abs(true) <= decimal(found.upper)
        assert found.upper - found.lower <= Fraction(1, 2**140)
        if x == 1:
            assert found.lower <= 0 <= found.upper
        if x < 1:
            binary = binary_logarithm(x)
            assert binary.lower * LN2.upper <= found.lower
            assert found.upper <= binary.upper * LN2.lower or found.upper <= binary.upper * LN2.upper
    with pytest.raises(ValueError, match="positive"):
        logarithm(Fraction(0))


def test_exponentials_lie_within_their_enclosures_and_these_are_narrow() -> None:
    rng = np.random.default_rng(2)
    slip = Decimal(10) ** -110
    for x in [0.0, 1.0, 2.0, 100.0, *(10.0 ** rng.uniform(-20, 2) for _ in range(200))]:
        found, true = exponential(Fraction(x)), decimal(Fraction(x)).exp()
        assert decimal(found.lower) <= true * (1 + slip)
        assert true * (1 - slip) <= decimal(found.upper)
        assert found.upper - found.lower <= found.lower / 2**130
    with pytest.raises(ValueError, match="negative"):
        exponential(Fraction(-1))


def log_poisson(n: int, mean: float) -> float:
    return n * math.log(mean) - mean - math.lgamma(n + 1)


def excess(count: float, expected: float, shape: float) -> float:
    """Return the left-hand side of the event at its best weight, less what the right-hand side allows."""
    weight = (count + shape) / (expected + shape)
    left = (count + shape) * math.log(weight) - (weight - 1.0) * (expected + shape)
    return left - 0.5 * math.log1p(count / shape) - 1.0 / (12.0 * shape)


@pytest.mark.parametrize("e", [1e-2, 1e-6, 1e-10, 1e-22])
@pytest.mark.parametrize("shape", [1.0, 10.0, 300.0])
def test_the_event_of_one_class_fails_no_more_often_than_it_says(e: float, shape: float) -> None:
    # Exactly summed, at constant chances; the tail beyond the sum is far below e.
    for mean in (0.1, 1.0, 7.0, 60.0, 1000.0):
        terms = [
            math.exp(log_poisson(n, mean))
            for n in range(int(mean + 60 * math.sqrt(mean) + 200))
            if excess(n, mean, shape) > -math.log(e)
        ]
        assert math.fsum(terms) <= e


def test_the_event_of_two_classes_fails_no_more_often_than_it_says() -> None:
    e, shape, means = 1e-4, (5.0, 20.0), (40.0, 90.0)
    counts = [np.arange(0, 260), np.arange(0, 320)]
    parts = [
        np.array([excess(float(n), mean, a) for n in n_all])
        for n_all, mean, a in zip(counts, means, shape, strict=True)
    ]
    chances = [
        np.exp([log_poisson(int(n), mean) for n in n_all]) for n_all, mean in zip(counts, means, strict=True)
    ]
    fails = parts[0][:, None] + parts[1][None, :] > -math.log(e)
    assert float((chances[0][:, None] * chances[1][None, :])[fails].sum()) <= e


@pytest.mark.parametrize("n_z", [1e4, 1e6])
@pytest.mark.parametrize("e", [1e-3, 1e-10, 1e-22, 1e-30])
def test_the_event_of_all_classes_fails_no_more_often_at_its_real_epsilon(e: float, n_z: float) -> None:
    # Importance sampling: weights are drawn from the gamma mixture, clicks from the chances times them. The
    # likelihood ratio is then the mixture's inverse, which a failing event bounds, so that nothing is missed.
    rng, runs = np.random.default_rng(7), 5_000
    mu, p, p_z = Pair(0.15, 0.05), Pair(0.6, 0.4), 0.5
    split = Pair(0.8 * n_z, 0.2 * n_z)
    counts = Counts(split, Pair(0, 0), split, Pair(0.5 * n_z, 0.1 * n_z), Pair(0, 0), 1.2 * n_z)
    a = np.array(shapes(counts, mu, p, p_z))
    usual = usual_shares(mu, p, p_z)
    x = [n_z * share[kind] * (0.6 if kind in "CD" else 1.0) for share in usual for kind in KINDS]
    expected = np.array([*x, counts.boundary])
    clicks = rng.poisson(rng.gamma(a, 1.0 / a, (runs, a.size)) * expected)
    log_gamma = np.vectorize(math.lgamma)
    mixture = expected + a * np.log(a) + log_gamma(clicks + a) - log_gamma(a)
    mixture -= (clicks + a) * np.log(expected + a)
    weights = (clicks + a) / (expected + a)
    left = (clicks + a) * np.log(weights) - (weights - 1.0) * (expected + a)
    allowed = 0.5 * np.log1p(clicks / a) + 1.0 / (12.0 * a)
    fails = (left - allowed).sum(axis=1) > -math.log(e)
    chance = np.where(fails, np.exp(-mixture.sum(axis=1)), 0.0)
    error = float(chance.std()) / math.sqrt(runs)
    assert float(chance.mean()) + 5.0 * error <= e
    assert float(chance.mean()) > 1e-4 * e  # and it is not needlessly wide


@pytest.mark.parametrize("target", [-1.0, 1.0])
def test_an_adaptive_adversary_who_stops_at_the_worst_moment_does_not_break_the_event(target: float) -> None:
    # Chances of 1/50 a slot until the deviation is large, then none: what hypergeometric bounds do not cover.
    rng = np.random.default_rng(9)
    runs, slots, chance, e, shape = 20_000, 5_000, 0.02, 1e-2, 10.0
    running = np.ones(runs, dtype=bool)
    counts, expected = np.zeros(runs), np.zeros(runs)
    for _ in range(slots // 10):
        counts += running * rng.binomial(10, chance, runs)
        expected += running * 10 * chance
        deviation = target * (counts - expected)
        running &= deviation < 2.3 * np.sqrt(expected + 1.0)
    weight = (counts + shape) / (expected + shape)
    left = (counts + shape) * np.log(weight) - (weight - 1.0) * (expected + shape)
    allowed = -math.log(e) + 0.5 * np.log1p(counts / shape) + 1.0 / (12.0 * shape)
    assert float(np.mean(left > allowed)) <= e
    # A bound for a fixed number of slots, 1.07 % on this side, is broken many times as often as it says.
    fixed = target * (counts - expected) > 2.3 * np.sqrt(expected)
    assert float(np.mean(fixed)) > 4 * 0.0107


def test_the_price_of_not_predicting_the_count_is_modest() -> None:
    # Freedman's bound (its form for indicators, Bennett's) with the count known beforehand needs the least.
    e, expected, shape = 1e-22, 1e6, 1e5
    predicted = optimum(lambda d: (expected + d) * math.log1p(d / expected) - d + math.log(e))
    ours = optimum(lambda d: excess(expected + d, expected, shape) + math.log(e))
    assert predicted < ours < 1.12 * predicted


def optimum(function: Callable[[float], float]) -> float:
    """Return where the function turns positive, between 0 and a million."""
    low, high = 0.0, 1e6
    for _ in range(60):
        middle = 0.5 * (low + high)
        low, high = (low, middle) if function(middle) > 0.0 else (middle, high)
    return high


def test_katos_inequality_with_the_count_predicted_allows_about_as_much() -> None:
    # Kato 2020 (arXiv:2002.04357): Pr[sum of chances - count >= (b + a (2 count/n - 1)) sqrt(n)] is at most
    # exp(-2 (b^2 - a^2) / (1 + 4 a / (3 sqrt n))^2), a chosen beforehand; here by a fine search.
    n, count, e, shape = 1e10, 1e6, 1e-22, 1e5
    best = math.inf
    for a in np.geomspace(1e-4, 0.5, 2_000) * math.sqrt(n):
        stretch = 1.0 + 4.0 * a / (3.0 * math.sqrt(n))
        b = math.sqrt(a * a - math.log(e) * stretch**2 / 2.0)
        best = min(best, (b + a * (2.0 * count / n - 1.0)) * math.sqrt(n))
    high = optimum(lambda x: excess(count, count + x, shape) + math.log(e))
    assert 0.9 * best < high < 1.15 * best


def test_the_shapes_are_one_of_the_choices_whatever_the_block() -> None:
    found = set()
    for scale in 10.0 ** np.linspace(-3, 9, 200):
        z, central = Pair(scale, scale), Pair(1e3 * scale, scale)
        counts = Counts(z, Pair(0, 0), z, central, Pair(0, 0), scale)
        found.add(shapes(counts, *SOURCE))
    assert len(found) < CHOICES
    assert all(min(shape) >= 1.0 for shape in found)
    assert float(log_inverse_event(Fraction(1e-10) / 3)) == pytest.approx(
        math.log(CHOICES) + 2.0 * math.log(3e10), rel=1e-12
    )


def test_the_decoy_shares_are_poissons() -> None:
    emission = Emission.of(*SOURCE)
    for n, share in enumerate(emission.decoy_share):
        true = 0.3 / 0.7 * math.exp(0.3) * 0.4**n
        assert float(share.lower) == pytest.approx(true, rel=1e-14)
        assert 0 < share.upper - share.lower < Fraction(1, 2**90)


def test_every_generator_is_a_physical_block_of_its_photon_number() -> None:
    emission = Emission.of(*SOURCE)
    ratio = Fraction(3, 5)
    assert len(generators(emission)) == 2 * (2 + 4 + 6)
    for generator in generators(emission):
        clicks = [generator.fixed.get(j, 0) + ratio * generator.scaled.get(j, 0) for j in range(len(CLASSES))]
        assert all(x >= 0 for x in clicks)
        z_arm = sum(clicks[class_index(kind, k)] for kind in "EGWRP" for k in (0, 1))
        assert clicks[BOUNDARY] == ratio * z_arm
        for k in (0, 1):
            found = {kind: clicks[class_index(kind, k)] for kind in "EGWRPCD"}
            bits = sum(found[kind] for kind in "EGWR")
            assert found["C"] <= 2 * ratio * bits
            assert found["D"] <= 2 * ratio * found["P"]
            if found["E"] or found["G"]:  # one photon: the exact relation of three states
                each = 1 / (2 * emission.plus_odds)
                phase = bits - each * found["P"] + (2 * each * found["D"] - found["C"]) / (2 * ratio)
                assert phase == found["E"]


def honest_weights() -> Weights:
    """Return weights that hold for every attack: they all speak against what was seen."""
    return Weights(tuple(0.999 - 1e-4 * j for j in range(len(CLASSES))), 0.01)


def test_the_checker_refuses_a_weight_that_some_attack_makes_grow() -> None:
    emission = Emission.of(*SOURCE)
    cone, ratio = generators(emission), ArmRatio(Fraction(1, 2), Fraction(2, 3))
    assert holds_for_all(honest_weights(), cone, ratio)
    one = Weights((1.0,) * len(CLASSES), 1.0)
    assert holds_for_all(one, cone, ratio)
    for j in range(len(CLASSES)):
        raised = list(one.classes)
        raised[j] = math.nextafter(1.0, 2.0)
        assert not holds_for_all(Weights(tuple(raised), 1.0), cone, ratio), CLASSES[j]


def test_the_checker_sees_a_condition_that_breaks_at_one_end_of_the_arm_ratio_only() -> None:
    emission = Emission.of(*SOURCE)
    cone = generators(emission)
    classes = [0.9] * BOUNDARY + [1.0 + 0.1 / 0.6]
    for kind in "CD":
        for k in (0, 1):
            classes[class_index(kind, k)] = 1.0
    weights = Weights(tuple(b * (1.0 - 1e-12) for b in classes), 1.0)
    assert holds_for_all(weights, cone, ArmRatio(Fraction(0), Fraction(6, 10)))
    assert not holds_for_all(weights, cone, ArmRatio(Fraction(0), Fraction(601, 1000)))
    assert not holds_for_all(weights, cone, ArmRatio(Fraction(1, 2), None))


def test_an_arm_ratio_is_only_excluded_where_that_is_proven() -> None:
    emission, shape = Emission.of(*SOURCE), shapes(COUNTS, *SOURCE)
    seen = [None] * 4 + [850e3, 540e3, 32e3] + [None] * 4 + [150e3, 94e3, 7e3] + [1.27e6]
    allowance = Allowance.of(Fraction(50), shape, seen, [1e5] * len(CLASSES))
    found = pieces(COUNTS, shape, emission, allowance)
    assert found[0].least < Fraction(1.27 / 2.0) < (found[-1].most or 0)
    for before, after in pairwise(found):
        assert before.most == after.least
    clicks = Seen(COUNTS, shape, emission, allowance)
    assert clicks.excludes(ArmRatio(Fraction(7, 10), None), at=0.7)
    assert clicks.excludes(ArmRatio(Fraction(0), Fraction(6, 10)), at=0.6)
    for beyond, at in (
        (ArmRatio(Fraction(64, 100), None), 0.64),  # too near to what is seen
        (ArmRatio(Fraction(0), Fraction(63, 100)), 0.63),
        (
            ArmRatio(Fraction(69, 100), None),
            0.7,
        ),  # weights against 0.7 do not speak against all
        (ArmRatio(Fraction(0), Fraction(61, 100)), 0.6),
        (ArmRatio(Fraction(0), None), 0.7),
    ):
        assert not clicks.excludes(beyond, at=at)


def test_what_is_proven_is_the_inequality_at_the_worst_division_of_the_bits() -> None:
    shape = shapes(COUNTS, *SOURCE)
    seen = [None] * 4 + [850e3, 540e3, 32e3] + [None] * 4 + [150e3, 94e3, 7e3] + [1.27e6]
    allowance = Allowance.of(Fraction(50), shape, seen, [100] * len(CLASSES))
    weights, values = honest_weights(), Values(Fraction(-2), Fraction(1, 2))
    proven = float(proven_sum(weights, values, COUNTS, shape, allowance))
    worst = math.inf
    with localcontext() as context:
        context.prec = 50
        logs = [Decimal(b).ln() for b in weights.classes]
        for first in ("E", "G", "R"):
            for second in ("E", "G", "R"):
                for wrong in ((0.0, 0.0), (0.0, 3e3), (12e3, 0.0), (12e3, 3e3)):
                    clicks = [0.0 if n is None else n for n in seen]
                    for k, (kind, bits) in enumerate(zip((first, second), (850e3, 150e3), strict=True)):
                        clicks[class_index("W", k)] += wrong[k]
                        clicks[class_index(kind, k)] += bits - wrong[k]
                    total = -Decimal(50)
                    for j, (n, a, b) in enumerate(zip(clicks, shape, weights.classes, strict=True)):
                        N, A = Decimal(n), Decimal(a)
                        total += (N + A) * logs[j] - (Decimal(b) - 1) * A - 1 / (12 * A)
                        at = Decimal(100) if seen[j] is None else N
                        total -= (1 + at / A).ln() / 2 + ((N - at) / (2 * (at + A)) if seen[j] is None else 0)
                        value = {"E": Decimal(-2), "G": Decimal("0.5")}.get(CLASSES[j][0], Decimal(0))
                        total += Decimal(weights.scale) * value * N
                    worst = min(worst, float(total))
    assert proven == pytest.approx(worst, rel=1e-14)
    assert Fraction(proven) <= Fraction(worst) + Fraction(1, 10**8)


def test_the_expected_clicks_of_any_attack_satisfy_the_event_with_equality_to_spare() -> None:
    # Where every count is what was to be expected, no weights that hold for all prove more than there is.
    inputs = link_inputs((0.3, 0.1), 0.7)
    emission = Emission.of(inputs.mu, inputs.p, inputs.p_z or 0.5)
    rng = np.random.default_rng(6)
    ratio = Fraction(3, 5)
    part = ArmRatio(ratio, ratio)
    cone = generators(emission)
    for _ in range(20):
        x = [0.0] * len(CLASSES)
        for generator in cone:
            yields = 10.0 ** rng.uniform(0, 6)
            for j in range(len(CLASSES)):
                x[j] += yields * float(generator.fixed.get(j, 0) + ratio * generator.scaled.get(j, 0))
        one = 0.0
        for k in (0, 1):
            one += x[class_index("E", k)] * -2.0 + x[class_index("G", k)] * 0.5
        bits = [sum(x[class_index(kind, k)] for kind in "EGWR") for k in (0, 1)]
        on_z, plus, central, dark = (Pair(*(x[class_index(kind, k)] for k in (0, 1))) for kind in "WPCD")
        counts = Counts(Pair(*bits), on_z, plus, central, dark, x[BOUNDARY])
        shape = shapes(counts, inputs.mu, inputs.p, inputs.p_z or 0.5)
        seen = [None if name[0] in "EGWR" else n for name, n in zip(CLASSES, x, strict=True)]
        allowance = Allowance.of(Fraction(50), shape, seen, x)
        weights = honest_weights()
        assert holds_for_all(weights, cone, part)
        proven = proven_sum(weights, Values(Fraction(-2), Fraction(1, 2)), counts, shape, allowance)
        assert proven <= Fraction(weights.scale) * Fraction(one)
