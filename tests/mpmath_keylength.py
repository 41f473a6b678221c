"""The key length of every estimator to 50 digits, written from the references, not from the node.

Inputs are plain dictionaries (pairs are lists, signal first). `reference` returns every bound by the name
that the node gives it, or raises `Refused` with the fields that may be blamed. Numbers in comments
are sections of the security reference; S2 and S3 are those of its supplement on shares.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

from mpmath import mp, mpf
from mpmath_tails import binomial_upper, sampling_bound

Inputs = Mapping[str, Any]
HALF = mpf("0.5")
DEFAULTS: dict[str, Any] = {
    "eps_sec": 1e-10,
    "eps_cor": 1e-15,
    "x_scale": 1.0,
    "statistics": "exact",
    "vacuum_rule": "min",
    "verification_bits": 0,
    "mu_uncertainty": [0.0, 0.0],
    "asymmetry_bound": None,
    "error_positions_public": False,
}
BOUNDARY = ("e_same", "e_plus", "e_dark")
# Own one-sided events of the estimators, and those that each bound on the asymmetry adds (2.3, 4.2, 4.3, S2).
EVENTS = {"rusca2018": 19, "wiesemann2024": 15, "eur": 9}
ASYMMETRY_EVENTS = {"joint": 6, "shares": 2}
ROUNDING = mpf("1e-9")


class Refused(Exception):
    """The reference gives no number; each of ``fields`` may be blamed."""

    def __init__(self, fields: set[str]) -> None:
        super().__init__(", ".join(sorted(fields)))
        self.fields = fields


@dataclass
class Limits:
    """Limits on the means of one kind of count, times e^mu / p: (lower, upper) of signal and decoy."""

    signal: tuple[Any, Any]
    decoy: tuple[Any, Any]


def reference(inputs: Inputs, estimator: str) -> dict[str, Any]:
    """Return the bounds and the length, the least over the corners of the intensities' intervals.

    Raises:
        Refused: the inputs are impossible or contradict each other.
    """
    full = {**DEFAULTS, **inputs}
    wrong = impossible_fields(full, estimator)
    if wrong:
        raise Refused(wrong)
    (mu1, off1), (mu2, off2) = zip(map(mpf, full["mu"]), map(mpf, full["mu_uncertainty"]), strict=True)
    signals, decoys = (sorted({mu * (1 - off), mu * (1 + off)}) for mu, off in ((mu1, off1), (mu2, off2)))
    # The weakest signal with the strongest decoy comes first; its bounds are the least.
    found: list[dict[str, Any]] = []
    for signal, decoy in product(signals, reversed(decoys)):
        try:
            found.append(_at_corner(full, estimator, signal, decoy))
        except Refused:
            if not found:  # what is least lies inside, where no corner tells it
                raise
    return min(found, key=lambda one: one["length_unfloored"])


def _total(inputs: Inputs, name: str) -> Any:
    return mpf(inputs[name][0]) + mpf(inputs[name][1])


def charged(inputs: Inputs) -> str | None:
    """Return the bound that widens the phase error: as asked for, else as counts are there."""
    if inputs.get("x_mode") == "visibility":
        return None
    if inputs["asymmetry_bound"] is not None:
        return str(inputs["asymmetry_bound"])
    if inputs.get("boundary") is not None:
        return "shares"
    return "joint" if inputs.get("e_same") is not None else None


def one_detector(inputs: Inputs) -> bool:
    counts = (inputs.get("e_same"), inputs.get("boundary"))
    return inputs["x_scale"] != 1.0 or any(count is not None for count in counts)


def _at_corner(inputs: Inputs, estimator: str, mu1: Any, mu2: Any) -> dict[str, Any]:
    p1, p2 = map(mpf, inputs["p"])
    eps_sec, scale = mpf(inputs["eps_sec"]), mpf(inputs["x_scale"])
    bound = charged(inputs)
    events = EVENTS[estimator] + (ASYMMETRY_EVENTS[bound] if bound else 0)
    log_inverse = mp.log(events / eps_sec)
    if estimator == "eur":
        log_inverse = mp.log(events * 9 / eps_sec**2)
    exact = estimator == "eur" and inputs["statistics"] == "exact"

    def tau(n: int) -> Any:
        return (p1 * mp.exp(-mu1) * mu1**n + p2 * mp.exp(-mu2) * mu2**n) / mp.factorial(n)

    def limits(name: str, factor: Any) -> Limits:
        counts, both = [mpf(count) for count in inputs[name]], _total(inputs, name)
        if exact:
            upper = [clopper_pearson_upper(count, both, log_inverse) for count in counts]
            pairs = [(both - upper[1], upper[0]), (both - upper[0], upper[1])]
        else:
            delta = mp.sqrt(both * log_inverse / 2)
            pairs = [(count - delta, count + delta) for count in counts]
            if estimator == "wiesemann2024":
                pairs = [tuple(min(max(end, mpf(0)), both) for end in pair) for pair in pairs]
        weights = [factor * mp.exp(mu1) / p1, factor * mp.exp(mu2) / p2]
        signal, decoy = (
            (weight * pair[0], weight * pair[1]) for weight, pair in zip(weights, pairs, strict=True)
        )
        return Limits(signal, decoy)

    n_z, m_z, m_x = limits("n_z", 1), limits("m_z", 1), limits("m_x", 1)
    n_x = limits("n_x", scale)
    rule = inputs["vacuum_rule"]

    def empty_errors(m: Limits, total: Any) -> Any:
        e1, e2, all_errors = tau(0) * m.signal[1], tau(0) * m.decoy[1], total
        return {
            "min": min(e1, e2),
            "k1": e1,
            "k2": e2,
            "form_a": all_errors,
            "min3": min(e1, e2, all_errors),
            "max3": max(e1, e2, all_errors),
        }[rule]

    v_z0, v_x0 = empty_errors(m_z, _total(inputs, "m_z")), empty_errors(m_x, _total(inputs, "m_x"))
    if estimator == "eur":
        v_z0, v_x0 = min(v_z0, _total(inputs, "m_z")), min(v_x0, _total(inputs, "m_x"))
        s_z0_upper = coin(v_z0, HALF, log_inverse)
        if one_detector(inputs):
            s_x0_upper = scale * (coin(v_x0, alice_x(inputs), log_inverse) - v_x0)
        else:
            s_x0_upper = coin(v_x0, HALF, log_inverse)
    else:
        s_z0_upper = 2 * (v_z0 + mp.sqrt(_total(inputs, "n_z") * log_inverse / 2))
        s_x0_upper = 2 * (v_x0 + scale * mp.sqrt(_total(inputs, "n_x") * log_inverse / 2))

    found: dict[str, Any] = {"v_z0_upper": v_z0, "v_x0_upper": v_x0}
    found["size"] = {}  # of the terms that the bounds are differences of: rounding is measured by them
    gap = mu1 - mu2
    contradictions: list[str] = []  # in the order of Z, X, errors, shares
    for basis, n, s0_upper, factor in (("z", n_z, s_z0_upper, 1), ("x", n_x, s_x0_upper, scale)):
        count = factor * _total(inputs, f"n_{basis}")
        s0_lower = max(mpf(0), tau(0) / gap * (mu1 * n.decoy[0] - mu2 * n.signal[1]))
        s0_upper = min(s0_upper, count)
        square = (mu2 / mu1) ** 2
        front = tau(1) * mu1 / (mu2 * gap)
        bracket = n.decoy[0] - square * n.signal[1] - (1 - square) * s0_upper / tau(0)
        s1_lower = max(mpf(0), front * bracket)
        # What rounding may do to limits that touch is no contradiction.
        if s0_lower > s0_upper + ROUNDING * (count + 1):
            contradictions.append(f"s_{basis}0_lower")
        if s0_lower + s1_lower > count + ROUNDING * (count + 1):
            contradictions.append(f"s_{basis}1_lower")
        s0_lower = min(s0_lower, s0_upper)
        found[f"s_{basis}0_lower"] = s0_lower
        found[f"s_{basis}0_upper"] = s0_upper
        found[f"s_{basis}1_lower"] = min(s1_lower, count - s0_lower)
        found["size"][f"s_{basis}0_lower"] = tau(0) / gap * mu1 * (abs(n.decoy[0]) + abs(n.signal[1]))
        found["size"][f"s_{basis}1_lower"] = front * (
            abs(n.decoy[0]) + square * abs(n.signal[1]) + s0_upper / tau(0)
        )
    v_x1 = tau(1) / gap * (m_x.signal[1] - m_x.decoy[0])
    found["size"]["v_x1_upper"] = tau(1) / gap * (abs(m_x.signal[1]) + abs(m_x.decoy[0]))
    if v_x1 < -ROUNDING * (_total(inputs, "m_x") + 1):
        contradictions.append("v_x1_upper")
    if inputs.get("boundary") is not None:
        contradictions += share_limits(inputs, log_inverse, found)
    if contradictions:
        raise Refused({contradictions[0]})
    v_x1 = max(v_x1, mpf(0))
    if estimator == "eur":
        v_x1 = min(v_x1, _total(inputs, "m_x"))
    found["v_x1_upper"] = v_x1

    c, d = found["s_z1_lower"], found["s_x1_lower"]
    usable = c > 0 and d > 0
    phi_visibility = HALF
    if usable:
        phi_visibility = sampled(estimator, exact, v_x1, c, d, log_inverse, eps_sec / events)
    found["phi_visibility_upper"] = phi_visibility
    phi = phi_visibility
    if bound == "shares":
        rho, t2 = found["shares.rho_lower"], found["shares.t2_lower"]
        phi = min(HALF, max(phi, 1 - rho - t2 * (1 - 2 * phi)))  # S2
    elif bound == "joint":
        phi = widened_jointly(inputs, phi_visibility, log_inverse, found)
    found["phi_z_upper"] = phi

    credited = mpf(0)
    if estimator == "rusca2018" and not inputs["error_positions_public"]:
        credited = found["s_z0_lower"]
    overhead = {
        "rusca2018": 6 * mp.log(events / eps_sec, 2),
        "wiesemann2024": 4 * mp.log(events / eps_sec, 2) - 1,
        "eur": 2 * mp.log(3 / (2 * eps_sec), 2),
    }[estimator]
    verification = max(mp.log(2 / mpf(inputs["eps_cor"]), 2), mpf(inputs["verification_bits"]))
    entropy = mpf(0) if phi in (0, 1) else -(phi * mp.log(phi, 2) + (1 - phi) * mp.log(1 - phi, 2))
    secret = credited + c * (1 - entropy)
    length = secret - mpf(inputs["lambda_ec"]) - overhead - verification
    usable = usable and phi < HALF
    found["overhead_bits"], found["verification_bits"] = overhead, verification
    found["length_unfloored"] = length if usable else min(mpf(0), length)
    found["length"] = max(0, int(mp.floor(length))) if usable else 0
    found["mu"] = [mu1, mu2]
    return found


def alice_x(inputs: Inputs) -> Any:
    """Return p_X: from p_Z, else from x_scale = 2 p_X / p_Z with p_X + p_Z = 1."""
    if inputs.get("p_z") is not None:
        return 1 - mpf(inputs["p_z"])
    scale = mpf(inputs["x_scale"])
    return scale / (2 + scale)


def clopper_pearson_upper(x: Any, n: Any, log_inverse: Any) -> Any:
    """Return U(x) of 4.3: the Clopper-Pearson limit, at least one event above x, at most n."""
    if x >= n:
        return mpf(n)
    return min(mpf(n), max(n * binomial_upper(mpf(x), mpf(n), log_inverse), mpf(x) + 1))


def coin(v: Any, p: Any, log_inverse: Any) -> Any:
    """Return the N at which N p - sqrt(N ln(1/e)/2) = v (3.6, 4.3)."""
    c = mp.sqrt(log_inverse / 2)
    return ((c + mp.sqrt(c * c + 4 * p * v)) / (2 * p)) ** 2


def sampled(estimator: str, exact: bool, v: Any, c: Any, d: Any, log_inverse: Any, eps: Any) -> Any:
    """Return the phase error of the unseen c from v errors in a sample of d, before the asymmetry."""
    if exact:
        return sampling_bound(v, c, d, log_inverse)
    if estimator == "rusca2018":
        few = sampling_bound(min(v, mpf(100)), c, d, 2 * mp.log(1 / eps))
        return few if v < 100 else max(few, gamma(min(v / d, HALF), c, d, eps))
    # Serfling (4.2, 4.3): at e for `eur`, at eps_0^2 for `wiesemann2024`.
    tail = log_inverse if estimator == "eur" else 2 * log_inverse
    return min(HALF, min(v / d, HALF) + mp.sqrt(tail / 2 * (c + d) * (d + 1) / (c * d * d)))


def gamma(b: Any, c: Any, d: Any, eps: Any) -> Any:
    """Return b + gamma of (A21), its logarithm not below 1/ln 2."""
    spread, variance = (c + d) / (c * d), (1 - b) * b
    logarithm = max(mp.log(spread / variance / eps**2, 2), 1 / mp.log(2))
    return min(HALF, b + mp.sqrt(spread * variance / mp.log(2) * logarithm))


def share_limits(inputs: Inputs, log_inverse: Any, found: dict[str, Any]) -> list[str]:
    """Put the lower limits of rho and t2 into ``found`` (S2); return which exceed 1, as nothing can (S3)."""
    p_z, p_x = mpf(inputs["p_z"]), 1 - mpf(inputs["p_z"])

    def odds_lower(x: Any, other: Any) -> Any:
        n = x + other
        most_of_others = clopper_pearson_upper(other, n, log_inverse)
        return (n - most_of_others) / most_of_others if n > 0 else mpf(0)

    plus, central = _total(inputs, "n_z_plus"), _total(inputs, "n_x")
    rho = odds_lower(plus, _total(inputs, "n_z")) * p_z / (2 * p_x)
    t2 = odds_lower(central, mpf(inputs["boundary"])) * (p_z / 2 + p_x * rho) / p_z
    found["shares.rho_lower"], found["shares.t2_lower"] = rho, t2
    found["size"]["shares.rho_lower"] = p_z / (2 * p_x)  # of a share of one
    found["size"]["shares.t2_lower"] = (p_z / 2 + p_x * rho) / p_z
    return [name for name, limit in (("n_z_plus", rho), ("boundary", t2)) if limit > 1]


def widened_jointly(inputs: Inputs, phi: Any, log_inverse: Any, found: dict[str, Any]) -> Any:
    """Return phi max(1, 2 t2^u) + max(0, A^u), at most 1/2 (3.6), by Bernstein's inequality.

    Events: the variance of the weighted sum, its mean, E_same down (for both limits), C_Z up.
    """
    p_z, p_x = mpf(inputs["p_z"]), 1 - mpf(inputs["p_z"])
    same, plus, dark = (_total(inputs, name) for name in BOUNDARY)
    central = _total(inputs, "n_x")
    # Bernstein for a sum of rare events: a mean m is undercut by t with exp(-t^2 / 2m), exceeded with
    # exp(-t^2 / (2m + 2t/3)); solved for m.
    same_lower = same + 2 * log_inverse / 3 - mp.sqrt((2 * log_inverse / 3) ** 2 + 2 * same * log_inverse)
    central_upper = central + log_inverse + mp.sqrt(log_inverse**2 + 2 * central * log_inverse)
    if same_lower <= 0:
        return HALF
    weights = [(mpf(1), same), (mpf(1), dark), (-p_z / 4, central), (-p_z / (2 * p_x), plus)]
    largest = max(abs(weight) for weight, _ in weights)
    seen = sum(weight * count for weight, count in weights)
    squares = sum(weight**2 * count for weight, count in weights)
    half = largest**2 * log_inverse / 2
    variance = (mp.sqrt(half) + mp.sqrt(half + squares)) ** 2
    third = largest * log_inverse / 3
    most = seen + third + mp.sqrt(third**2 + 2 * variance * log_inverse)
    asymmetry = max(mpf(0), most) / same_lower
    t2 = p_z / 4 * central_upper / same_lower
    found["asymmetry.asymmetry_upper"], found["asymmetry.t2_upper"] = asymmetry, t2
    found["size"]["asymmetry.asymmetry_upper"] = (sum(abs(w) * n for w, n in weights) + third) / same_lower
    return min(HALF, phi * max(1, 2 * t2) + asymmetry)


def impossible_fields(inputs: Inputs, estimator: str) -> set[str]:
    """Return the fields that are impossible by themselves or beside others, before any bound is computed."""
    wrong: set[str] = set()

    def number(value: Any) -> bool:
        return math.isfinite(value)

    counts = ("n_z", "m_z", "n_x", "m_x", "n_z_plus", *BOUNDARY)
    for name in counts:
        if inputs.get(name) is not None and not all(number(n) and 0 <= n <= 1e15 for n in inputs[name]):
            wrong.add(name)
    if inputs.get("boundary") is not None and not (
        number(inputs["boundary"]) and 0 <= inputs["boundary"] <= 1e15
    ):
        wrong.add("boundary")
    mu1, mu2 = inputs["mu"]
    if not (1e-6 <= mu2 < mu1 <= 100):
        wrong.add("mu")
    if not (all(0 < p < 1 for p in inputs["p"]) and abs(sum(inputs["p"]) - 1) <= 1e-9):
        wrong.add("p")
    for name in ("eps_sec", "eps_cor"):
        if not 1e-100 <= inputs[name] < 1:
            wrong.add(name)
    off = inputs["mu_uncertainty"]
    meet = "mu" not in wrong and mu2 * (1 + off[1]) >= mu1 * (1 - off[0])
    if meet or not all(0 <= one < 1 for one in off):
        wrong.add("mu_uncertainty")
    if inputs.get("p_z") is not None and not 1e-6 <= inputs["p_z"] <= 1 - 1e-6:
        wrong.add("p_z")
    if not (number(inputs["lambda_ec"]) and inputs["lambda_ec"] >= 0):
        wrong.add("lambda_ec")
    if not 1e-7 <= inputs["x_scale"] <= 1e7:
        wrong.add("x_scale")
    if inputs["verification_bits"] < 0:
        wrong.add("verification_bits")
    pairs = [("m_z", "n_z")] + ([] if one_detector(inputs) else [("m_x", "n_x")])
    wrong |= {m for m, n in pairs if any(a > b for a, b in zip(inputs[m], inputs[n], strict=True))}
    sets = {"joint": ("p_z", *BOUNDARY), "shares": ("p_z", "n_z_plus", "boundary")}
    missing = {bound: {name for name in names if inputs.get(name) is None} for bound, names in sets.items()}
    for bound, names in sets.items():
        if any(inputs.get(name) is not None for name in names[1:]):
            wrong |= missing[bound]
    if inputs.get("x_mode") == "visibility + asymmetry" and all(missing.values()):
        wrong |= missing["joint"] | missing["shares"]
    if charged(inputs) is not None:
        wrong |= missing[str(charged(inputs))]
    if not any(missing.values()) and inputs["boundary"] < sum(sum(inputs[name]) for name in BOUNDARY):
        wrong.add("boundary")
    if estimator == "wiesemann2024" and inputs["vacuum_rule"] != "min":
        wrong.add("vacuum_rule")
    return wrong
