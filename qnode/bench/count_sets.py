"""Random counts of a block for soaks of the estimators: of possible links, of impossible ones, or unrelated.

A possible set is drawn from yields and error rates by photon number, honest or chosen by Eve, with the slots
of one X detector (security reference, sections 3.1 to 3.3) or two X detectors. Counts are Poisson.
"""

import math
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

import msgspec.structs
import numpy as np

from qnode.distill.counts import Pair
from qnode.distill.keylength import AsymmetryBound, EstimatorInput, VacuumRule, XMode, binary_entropy
from qnode.errors import FieldError

Kind = Literal["possible", "wrong intensities", "wrong counts", "noise"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
# Most sets are possible, because the figures concern sets that give key.
_SHARES: Final = (0.82, 0.06, 0.06, 0.06)
_MOST_PHOTONS: Final = 12
_BOUNDS: Final[tuple[AsymmetryBound, ...]] = get_args(AsymmetryBound)
_RULES: Final[tuple[VacuumRule, ...]] = get_args(VacuumRule)
_COUNTED: Final = ("n_z", "m_z", "n_x", "m_x", "n_z_plus", "e_same", "e_plus", "e_dark")


@dataclass(frozen=True)
class CountSet:
    """One set of counts. ``possible``: some link with these intensities and probabilities could give it."""

    kind: Kind
    inputs: EstimatorInput

    @property
    def possible(self) -> bool:
        """Return whether quantum mechanics and the configured source allow the set."""
        return self.kind == "possible"


def count_set(seed: int, index: int) -> CountSet:
    """Return set ``index`` of a seed; each set is drawn independently, in any process."""
    rng = np.random.default_rng((seed, index))
    while True:
        kind = KINDS[int(rng.choice(len(KINDS), p=_SHARES))]
        drawn = _noise(rng) if kind == "noise" else _link(rng)
        if kind == "wrong intensities":
            drawn["mu"] = _wrong_intensities(rng, drawn["mu"])
        elif kind == "wrong counts":
            name = str(rng.choice([name for name in _COUNTED if drawn.get(name) is not None]))
            drawn[name] = Pair(*(float(math.floor(n * 10 ** rng.uniform(-2, 2))) for n in _both(drawn[name])))
        try:
            return CountSet(kind, EstimatorInput(**drawn))
        except FieldError:
            continue  # refused by its fields alone, so no estimator sees it


def _both(pair: Pair) -> tuple[float, float]:
    return pair.signal, pair.decoy


def _wrong_intensities(rng: np.random.Generator, mu: Pair) -> Pair:
    signal, decoy = (value * 10 ** rng.uniform(-0.4, 0.4) for value in _both(mu))
    return Pair(max(signal, decoy), min(signal, decoy))


def _asked(rng: np.random.Generator) -> dict[str, Any]:
    """Draw the request to an estimator, besides counts and source."""
    usual = rng.random() < 0.7
    modes: tuple[XMode, ...] = get_args(XMode)
    return {
        "eps_sec": 10 ** (rng.uniform(-15, -6) if rng.random() < 0.85 else rng.uniform(-60, -0.5)),
        "eps_cor": 10 ** rng.uniform(-20, -6),
        "vacuum_rule": "min" if usual else str(rng.choice(_RULES)),
        "verification_bits": int(rng.choice([0, 64, 128])),
        "x_mode": str(rng.choice(modes)),
    }


def _link(rng: np.random.Generator) -> dict[str, Any]:
    """Draw the counts of one block of a possible link."""
    mu1 = float(rng.uniform(0.1, 0.7))
    mu2 = mu1 * rng.uniform(0.15, 0.5)
    p1, p_z = rng.uniform(0.3, 0.85), rng.uniform(0.35, 0.95)
    p_x = 1 - p_z
    n = np.arange(_MOST_PHOTONS + 1)
    factorial = np.cumprod(np.concatenate(([1.0], n[1:])))
    sent = [
        p * math.exp(-mu) * mu**n / factorial for mu, p in ((mu1, p1), (mu2, 1 - p1))
    ]  # of each photon number
    yields, wrong_z, wrong_x = _channel(rng)
    size = 10 ** rng.uniform(5.3, 7.2) / (p_z * float((sent[0] + sent[1]) @ yields))

    def counts(share: float, chance: np.ndarray) -> Pair:
        return Pair(*(float(rng.poisson(size * share * float(one @ chance))) for one in sent))

    def sum_of(one: Pair, other: Pair) -> Pair:
        return Pair(one.signal + other.signal, one.decoy + other.decoy)

    m_z = counts(p_z, yields * wrong_z)
    n_z = sum_of(m_z, counts(p_z, yields * (1 - wrong_z)))
    found: dict[str, Any] = {
        "n_z": n_z,
        "m_z": m_z,
        "mu": Pair(mu1, mu2),
        "p": Pair(p1, 1 - p1),
        "lambda_ec": rng.uniform(1.0, 1.3) * n_z.total * binary_entropy(m_z.total / max(1.0, n_z.total)),
        **_asked(rng),
    }
    if rng.random() < 0.05:
        found["mu_uncertainty"] = Pair(float(rng.uniform(0.0, 0.05)), float(rng.uniform(0.0, 0.05)))
    if rng.random() < 0.3:  # two X detectors
        scale = 10 ** rng.uniform(-1, 0.3)
        found["m_x"] = counts(scale * p_x, yields * wrong_x)
        found["n_x"] = sum_of(found["m_x"], counts(scale * p_x, yields * (1 - wrong_x)))
        found["x_mode"] = "visibility"
        return found
    light = yields.copy()
    light[0] = 0.0
    central, plus = 1.0, 1.0  # 2 t2 and 2 rho
    if rng.random() < 0.2:  # a channel that treats |-> and |+> differently
        central, plus = rng.uniform(0.95, 1.02, 2)
    dark = np.full(n.size, yields[0] / 4)  # of one slot, whatever the photon number
    found |= {
        "p_z": p_z,
        "x_scale": 2 * p_x / p_z,
        "asymmetry_bound": str(rng.choice(_BOUNDS)) if rng.random() < 0.8 else None,
        "m_x": counts(p_x, light * wrong_x * plus / 2 + dark),
        "n_x": counts(p_z, light * central / 4 + dark),
        "n_z_plus": counts(p_x, light * plus + 4 * dark * (n == 0)),
        "e_same": counts(p_z**2 / 2, light / 4 + dark),
        "e_plus": counts(p_z * p_x, light * plus / 8 + dark),
        "e_dark": counts(p_z**2 / 4, light * wrong_z / 2 + dark),
    }
    # The light of all slots; the three classes are a part of it.
    everywhere = counts(1.0, light / 2 * (p_z / 2 + p_x * plus / 2) + dark).total
    classes = sum(found[name].total for name in ("e_same", "e_plus", "e_dark"))
    found["boundary"] = max(classes, everywhere)
    return found


def _channel(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return yields and error rates in Z and X by photon number: a lossy fibre, or Eve's choice."""
    n = np.arange(_MOST_PHOTONS + 1)
    transmission = 10 ** rng.uniform(-4, -0.5)
    yields = 1 - (1 - transmission) ** n
    yields[0] = transmission * 10 ** rng.uniform(-5, -2)
    many = n > 1
    if rng.random() < 0.3:  # photon-number splitting: single photons held back, several let through
        yields[many] = np.minimum(1.0, yields[many] * 10 ** rng.uniform(0, 0.4))
        yields[1] *= rng.uniform(0.7, 1.0)
    elif rng.random() < 0.3:
        yields = np.minimum(1.0, yields * 10 ** rng.uniform(-0.2, 0.2, n.size))
    wrong_z = np.full(n.size, rng.uniform(0.0, 0.03))
    wrong_x = np.full(n.size, rng.uniform(0.0, 0.03))
    if rng.random() < 0.3:  # one- and multi-photon qubits treated differently
        wrong_z[many], wrong_x[many] = rng.uniform(0.0, 0.05), rng.uniform(0.0, 0.1)
    wrong_z[0] = wrong_x[0] = 0.5
    return yields, wrong_z, wrong_x


def _noise(rng: np.random.Generator) -> dict[str, Any]:
    """Draw unrelated counts of any size."""

    def anything() -> float:
        return float(math.floor(10 ** rng.uniform(0, rng.choice([3, 8, 12])))) if rng.random() < 0.95 else 0.0

    def some() -> Pair:
        return Pair(anything(), anything())

    def below(pair: Pair) -> Pair:
        return Pair(*(float(math.floor(n * rng.choice([0.0, 0.01, 0.5, 1.0]))) for n in _both(pair)))

    n_z, n_x = some(), some()
    mu1 = 10 ** rng.uniform(-3, 1.5)
    p1 = rng.uniform(0.01, 0.99)
    found: dict[str, Any] = {
        "n_z": n_z,
        "m_z": below(n_z),
        "n_x": n_x,
        "m_x": below(n_x),
        "mu": Pair(mu1, mu1 * 10 ** rng.uniform(-3, -0.001)),
        "p": Pair(p1, 1 - p1),
        "lambda_ec": anything() if rng.random() < 0.5 else 0.0,
        **_asked(rng),
    }
    if rng.random() < 0.7:
        p_z = rng.uniform(0.02, 0.98)
        found |= {"p_z": p_z, "x_scale": 2 * (1 - p_z) / p_z, "m_x": some()}
        found |= {name: some() for name in ("n_z_plus", "e_same", "e_plus", "e_dark")}
        classes = sum(found[name].total for name in ("e_same", "e_plus", "e_dark"))
        found["boundary"] = classes + anything()
    else:
        found["x_mode"] = "visibility"
    return found


def worsened(rng: np.random.Generator, inputs: EstimatorInput) -> dict[str, EstimatorInput]:
    """Return the same block with more errors, more leak, smaller epsilons, and less certain intensities.

    X errors of the decoy alone are omitted: they are evidence of vacuum pulses and may lower the bound on
    errors. Errors of one photon grow in both intensities by the source's share of one photon, rounded up.
    """
    replace = msgspec.structs.replace
    more = float(math.ceil(10 ** rng.uniform(0, 4)))
    m_z, n_z, m_x, n_x, off = inputs.m_z, inputs.n_z, inputs.m_x, inputs.n_x, inputs.mu_uncertainty
    x_most, x_most_decoy = (math.inf, math.inf) if inputs.one_x_detector else _both(n_x)
    one_photon = [p * math.exp(-mu) * mu for p, mu in zip(_both(inputs.p), _both(inputs.mu), strict=True)]
    decoys = math.ceil(more * one_photon[1] / one_photon[0])
    found = {
        "errors Z signal": replace(inputs, m_z=Pair(min(n_z.signal, m_z.signal + more), m_z.decoy)),
        "errors Z decoy": replace(inputs, m_z=Pair(m_z.signal, min(n_z.decoy, m_z.decoy + more))),
        "errors X": replace(inputs, m_x=Pair(min(x_most, m_x.signal + more), m_x.decoy)),
        "errors X of one photon": replace(
            inputs, m_x=Pair(min(x_most, m_x.signal + more), min(x_most_decoy, m_x.decoy + decoys))
        ),
        "leak": replace(inputs, lambda_ec=inputs.lambda_ec + more),
        "eps_sec": replace(inputs, eps_sec=inputs.eps_sec * 10 ** rng.uniform(-6, 0)),
        "eps_cor": replace(inputs, eps_cor=inputs.eps_cor * 10 ** rng.uniform(-6, 0)),
    }
    wider = Pair(*(before + rng.uniform(0, 0.02) for before in _both(off)))
    if inputs.mu.decoy * (1 + wider.decoy) < inputs.mu.signal * (1 - wider.signal):
        found["uncertainty"] = replace(inputs, mu_uncertainty=wider)
    return found
