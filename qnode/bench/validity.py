"""The real failure probability of each bound of the estimators, which claims an event's epsilon.

The bounds are the node's own functions. The truth is a channel with known yields, error rates and shares.
Then the intensity of a detected qubit, the errors of vacuum pulses, the choice of the sample and the states
that Alice sent are independent random events; their probabilities differ where Eve treats qubits differently.
`qnode.bench.large_deviations` gives the probability that a bound lies on the wrong side of the truth.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from qnode.bench.large_deviations import (
    Binomial,
    Law,
    Poisson,
    Rare,
    border_tilts,
    log_hypergeometric_at_most,
    probability,
    sum_at_least,
    sum_at_most,
)
from qnode.distill.counts import Pair
from qnode.distill.keylength.asymmetry import asymmetry_terms
from qnode.distill.keylength.coin import coin_trials_upper
from qnode.distill.keylength.limits import exact_limits
from qnode.distill.keylength.sampling import exact_phase_error
from qnode.distill.keylength.shares import ShareTerms, odds_lower, rho_of, t2_of

SAMPLES = 40_000
# Bounds on several counts are computed for each sample; the bound on shares needs two quantiles each time.
SAMPLES_JOINT = 4000
SAMPLES_COMPOSED = 600
# The least asymmetry of a channel in a check of the asymmetry's limit; at 0 the limit cannot fail.
LEAST_ASYMMETRY = 1e-4


@dataclass(frozen=True)
class Part:
    """A kind of light: its share of all clicks, its rho and t2, and its amount of light in boundary slots.

    ``boundary`` is 1 if central and boundary slots are equally efficient; Eve, or a mismatch of the detector,
    changes it.
    """

    share: float
    rho: float
    t2: float
    boundary: float = 1.0


@dataclass(frozen=True)
class Family:
    """A channel. ``photons``: shares of 0, 1, 2, 3 photons among clicks; ``wrong``: their X error rates."""

    name: str
    photons: tuple[float, float, float, float]
    wrong: tuple[float, float, float, float]
    parts: tuple[Part, ...]


# Vacuum pulses are wrong half of the time. Damping causes no X error, but a smaller t2.
FAMILIES = (
    Family("honest", (0.004, 0.72, 0.22, 0.056), (0.5, 0.025, 0.025, 0.025), (Part(1.0, 0.5, 0.5),)),
    Family("damping", (0.004, 0.72, 0.22, 0.056), (0.5, 0.001, 0.001, 0.001), (Part(1.0, 0.5, 0.45),)),
    Family(
        "opposite on one and on several photons",
        (0.004, 0.72, 0.22, 0.056),
        (0.5, 0.002, 0.09, 0.09),
        (Part(0.724, 0.42, 0.44), Part(0.276, 0.71, 0.66)),
    ),
    Family(
        "photon-number splitting",
        (0.01, 0.25, 0.55, 0.19),
        (0.5, 0.05, 0.005, 0.005),
        (Part(0.26, 0.5, 0.5), Part(0.74, 0.49, 0.5)),
    ),
    Family(
        "unequal efficiency and noise",
        (0.06, 0.68, 0.21, 0.05),
        (0.5, 0.01, 0.01, 0.01),
        (Part(0.5, 0.8, 0.3, 0.7), Part(0.44, 0.2, 0.7, 1.3), Part(0.06, 0.5, 0.5, 4.0)),
    ),
)


@dataclass(frozen=True)
class Block:
    """The expected counts of an honest block, and the source."""

    n_z: float
    n_z_plus: float
    c_z: float
    boundary: float
    e_same: float
    e_dark: float
    mu: Pair
    p: Pair
    p_z: float

    @property
    def p_x(self) -> float:
        """Return the chance that Alice sends |+>."""
        return 1.0 - self.p_z

    def signal_share(self, photons: int) -> float:
        """Return the chance that a qubit of so many photons was of the signal intensity."""
        signal, decoy = (
            p * math.exp(-mu) * mu**photons
            for mu, p in ((self.mu.signal, self.p.signal), (self.mu.decoy, self.p.decoy))
        )
        return signal / (signal + decoy)


@dataclass(frozen=True)
class Found:
    """One bound at one epsilon: its claimed and its real failure probability."""

    bound: str
    family: str
    claimed: float
    real: Rare


def validity(block: Block, log_inverse: float, seed: int) -> list[Found]:
    """Return every bound for every family, at an event epsilon of exp(-log_inverse)."""
    rng = np.random.default_rng(seed)
    found = []
    e = math.exp(-log_inverse)
    for family in FAMILIES:
        for name, events, check in _CHECKS:
            real = check(block, family, log_inverse, rng)
            found.append(Found(name, family.name, events * e, real))
    return found


def _labels(block: Block, family: Family, n: float, *, errors: bool) -> list[Binomial]:
    """Return the laws of the signal labels of ``n`` detections, or of their errors, by photon number."""
    laws = []
    for photons, share in enumerate(family.photons):
        wrong = family.wrong[photons] if errors else 1.0
        laws.append(Binomial(round(n * share * wrong), block.signal_share(photons)))
    return laws


def _labels_up(laws: list[Binomial], log_inverse: float, rng: np.random.Generator) -> Rare:
    """Return how often the mean of the labels lies above its upper limit: too few were seen."""
    n = sum(law.n for law in laws)
    mean = math.fsum(law.mean for law in laws)
    most = _last(lambda x: exact_limits(Pair(x, n - x), log_inverse).signal_upper < mean, 0, n)
    return sum_at_most(laws, most, rng, SAMPLES)


def _labels_down(laws: list[Binomial], log_inverse: float, rng: np.random.Generator) -> Rare:
    """Return how often the mean lies below its lower limit: too many labels were seen."""
    n = sum(law.n for law in laws)
    mean = math.fsum(law.mean for law in laws)
    within = _last(lambda x: exact_limits(Pair(x, n - x), log_inverse).signal_lower <= mean, 0, n)
    return sum_at_least(laws, within + 1, rng, SAMPLES)


def _last(holds: Callable[[float], bool], low: int, high: int) -> int:
    """Return the last integer from ``low`` to ``high`` for which it ``holds``, low - 1 if it never does."""
    if not holds(float(low)):
        return low - 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(float(middle)) else (low, middle)
    return low


def _z_up(block: Block, family: Family, log_inverse: float, rng: np.random.Generator) -> Rare:
    return _labels_up(_labels(block, family, block.n_z, errors=False), log_inverse, rng)


def _z_down(block: Block, family: Family, log_inverse: float, rng: np.random.Generator) -> Rare:
    return _labels_down(_labels(block, family, block.n_z, errors=False), log_inverse, rng)


def _x_down(block: Block, family: Family, log_inverse: float, rng: np.random.Generator) -> Rare:
    return _labels_down(_labels(block, family, block.c_z, errors=False), log_inverse, rng)


def _x_errors_up(block: Block, family: Family, log_inverse: float, rng: np.random.Generator) -> Rare:
    effective = 2 * block.p_x / block.p_z * block.c_z
    return _labels_up(_labels(block, family, effective, errors=True), log_inverse, rng)


def _coin(n: float, p: float, log_inverse: float, rng: np.random.Generator) -> Rare:
    trials = round(n)
    most = _last(lambda v: coin_trials_upper(v, p, log_inverse) < trials, 0, trials)
    return sum_at_most([Binomial(trials, p)], most, rng, SAMPLES)


def _coin_z(block: Block, family: Family, log_inverse: float, rng: np.random.Generator) -> Rare:
    return _coin(block.n_z * family.photons[0], 0.5, log_inverse, rng)


def _coin_x(block: Block, family: Family, log_inverse: float, rng: np.random.Generator) -> Rare:
    # For vacuum clicks in central slots, Alice sent |+> with p_X.
    return _coin(block.c_z / block.p_z * family.photons[0], block.p_x, log_inverse, rng)


def _sampling(block: Block, family: Family, log_inverse: float, rng: np.random.Generator) -> Rare:
    unseen = round(block.n_z * family.photons[1])
    sample = round(2 * block.p_x / block.p_z * block.c_z * family.photons[1])
    marked = round(family.wrong[1] * (unseen + sample))

    def fails(v: float) -> bool:
        return exact_phase_error(v, unseen, sample, log_inverse) < (marked - v) / unseen

    most = _last(fails, 0, marked)
    log_real = log_hypergeometric_at_most(most, marked, sample, unseen + sample)
    return Rare(math.exp(log_real), 0.0)


def _z_shares(block: Block, family: Family) -> list[Binomial]:
    """Return the laws of "Alice sent |+>" for the clicks of the Z arm, by kind of light."""
    n = block.n_z + block.n_z_plus
    weights = [part.share * (block.p_x * part.rho + block.p_z / 2) for part in family.parts]
    return [
        Binomial(
            round(n * weight / sum(weights)),
            block.p_x * part.rho / (block.p_x * part.rho + block.p_z / 2),
        )
        for part, weight in zip(family.parts, weights, strict=True)
    ]


def _x_shares(block: Block, family: Family) -> list[Binomial]:
    """Return the laws of "a central slot of a Z state" for those clicks and all boundary clicks."""
    n = block.c_z + block.boundary
    central = [part.share * block.p_z * part.t2 for part in family.parts]
    outer = [part.share * part.boundary * (block.p_z / 2 + block.p_x * part.rho) for part in family.parts]
    whole = sum(central) + sum(outer)
    return [Binomial(round(n * (c + b) / whole), c / (c + b)) for c, b in zip(central, outer, strict=True)]


def _share(laws: list[Binomial], log_inverse: float, rng: np.random.Generator) -> Rare:
    n = sum(law.n for law in laws)
    mean = math.fsum(law.mean for law in laws) / n
    within = _last(lambda x: odds_lower(x, n, log_inverse) <= mean / (1.0 - mean), 0, n)
    return sum_at_least(laws, within + 1, rng, SAMPLES)


def _share_q(block: Block, family: Family, log_inverse: float, rng: np.random.Generator) -> Rare:
    return _share(_z_shares(block, family), log_inverse, rng)


def _share_s(block: Block, family: Family, log_inverse: float, rng: np.random.Generator) -> Rare:
    return _share(_x_shares(block, family), log_inverse, rng)


def shares_asymmetry(block: Block, family: Family, log_inverse: float, rng: np.random.Generator) -> Rare:
    """Return how often 1 - rho_L - t2_L lies below the asymmetry of the channel."""
    z_laws, x_laws = _z_shares(block, family), _x_shares(block, family)
    n_z, n_x = sum(law.n for law in z_laws), sum(law.n for law in x_laws)

    def upper(plus: float, central: float) -> float:
        rho = rho_of(plus, block.p_z)
        t2 = t2_of(central, rho, block.p_z)
        return ShareTerms(rho=None, t2=None, rho_lower=rho, t2_lower=t2).asymmetry_upper

    plus, central = math.fsum(law.mean for law in z_laws), math.fsum(law.mean for law in x_laws)
    asymmetry = upper(plus / (n_z - plus), central / (n_x - central))
    q_lower = cache(lambda x: odds_lower(x, n_z, log_inverse))
    s_lower = cache(lambda x: odds_lower(x, n_x, log_inverse))

    def margin(counts: Sequence[float]) -> float:
        split = len(z_laws)
        return upper(q_lower(math.fsum(counts[:split])), s_lower(math.fsum(counts[split:]))) - asymmetry

    return _by_margin([*z_laws, *x_laws], margin, rng, SAMPLES_COMPOSED)


def _classes(block: Block, family: Family) -> tuple[list[Poisson], float]:
    """Return the laws of C_Z, E_same, E_plus, E_dark, and the true asymmetry of all light together."""
    rho = math.fsum(part.share * part.rho for part in family.parts)
    t2 = min(math.fsum(part.share * part.t2 for part in family.parts), 1.0 - rho - LEAST_ASYMMETRY)
    t4 = block.e_dark / block.e_same
    same = block.e_same
    means = [
        4 / block.p_z * t2 * same,
        same,
        2 * block.p_x / block.p_z * (rho + t4) * same,
        t4 * same,
    ]
    return [Poisson(mean) for mean in means], 1.0 - t2 - rho


def joint_asymmetry(block: Block, family: Family, log_inverse: float, rng: np.random.Generator) -> Rare:
    """Return how often the true asymmetry lies above the joint (Bernstein) bound."""
    laws, asymmetry = _classes(block, family)

    def margin(counts: Sequence[float]) -> float:
        central, same, plus, dark = (Pair(n, 0.0) for n in counts)
        upper = asymmetry_terms(
            Pair(0.0, 0.0), central, same, plus, dark, p_z=block.p_z, log_inverse_eps=log_inverse
        ).asymmetry_upper
        return 1.0 if upper is None else upper - asymmetry

    return _by_margin(laws, margin, rng, SAMPLES_JOINT)


def removed_reference(block: Block, family: Family, log_inverse: float, rng: np.random.Generator) -> Rare:
    """Return the same for the removed bound: sqrt(n ln(1/e)/2) on each count (reference 3.6).

    A^u = 1 + t4^u - t2^l - t3^l, each count deviating by as much as a share among that many events would.
    """
    laws, asymmetry = _classes(block, family)

    def margin(counts: Sequence[float]) -> float:
        central, same, plus, dark = counts

        def deviation(n: float) -> float:
            return math.sqrt(0.5 * n * log_inverse)

        most, least = same + deviation(same), same - deviation(same)
        t2 = block.p_z / 4 * (central - deviation(central)) / most
        t3 = block.p_z / (2 * block.p_x) * (plus - deviation(plus)) / most
        t4 = (dark + deviation(dark)) / least
        return 1.0 + t4 - t2 - t3 - asymmetry

    return _by_margin(laws, margin, rng, SAMPLES)


def _by_margin(
    laws: Sequence[Law],
    margin: Callable[[Sequence[float]], float],
    rng: np.random.Generator,
    samples: int,
) -> Rare:
    tilts = border_tilts(laws, margin)
    return probability(
        laws, tilts, lambda rows: np.array([margin(row) < 0.0 for row in rows.tolist()]), rng, samples
    )


# The check of a bound: its failure probability for a block, a family, a ln(1/e), and random numbers.
Check = Callable[[Block, Family, float, np.random.Generator], Rare]
# Name, number of one-sided events in the budget, and check.
_CHECKS: tuple[tuple[str, int, Check], ...] = (
    ("labels Z, upper", 1, _z_up),
    ("labels Z, lower", 1, _z_down),
    ("labels X, lower", 1, _x_down),
    ("labels of X errors, upper", 1, _x_errors_up),
    ("coin in Z", 1, _coin_z),
    ("coin in X", 1, _coin_x),
    ("sampling", 1, _sampling),
    ("share q", 1, _share_q),
    ("share s", 1, _share_s),
    ("asymmetry by shares", 2, shares_asymmetry),
    ("asymmetry, joint", 2, joint_asymmetry),
)
