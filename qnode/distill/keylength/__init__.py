"""Secret key length of one block: four estimators over the same counts.

``rusca2018`` reproduces what published one-decoy systems report, ``eur`` is the recommended one, and
``wiesemann2024`` reproduces the constants of the consolidated proof, ``three_state`` bounds the one-photon
phase error from all counts by a certificate (docs/three_state.md). None is a complete proof for a receiver
with three states, one X detector, passive choice and long dead time; ``KeyLength.assumptions`` says what is
left open. Where the intensities are known within intervals, the key length is the least over their corners.
"""

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Final

import msgspec

from qnode.choices import AsymmetryBound, EstimatorName, Statistics, VacuumRule, XMode
from qnode.distill.counts import Pair
from qnode.distill.keylength import eur, rusca2018, three_state, wiesemann2024
from qnode.distill.keylength.assumptions import Assumption, Assumptions, stated
from qnode.distill.keylength.asymmetry import AsymmetryTerms, asymmetry_terms
from qnode.distill.keylength.inputs import (
    DEFAULT_EPS_COR,
    DEFAULT_EPS_SEC,
    EXACTLY_KNOWN,
    EstimatorInput,
)
from qnode.distill.keylength.result import KeyLength, binary_entropy
from qnode.distill.keylength.shares import ShareTerms, shares_of
from qnode.errors import CountsContradiction, FieldError

Estimator = Callable[[EstimatorInput], KeyLength]

ESTIMATORS: Final[Mapping[str, Estimator]] = MappingProxyType(
    {
        "rusca2018": rusca2018.key_length,
        "eur": eur.key_length,
        "wiesemann2024": wiesemann2024.key_length,
        "three_state": three_state.key_length,
    }
)
DEFAULT_ESTIMATOR: Final[EstimatorName] = "eur"

__all__ = [
    "DEFAULT_EPS_COR",
    "DEFAULT_EPS_SEC",
    "DEFAULT_ESTIMATOR",
    "ESTIMATORS",
    "EXACTLY_KNOWN",
    "Assumption",
    "Assumptions",
    "AsymmetryBound",
    "AsymmetryTerms",
    "Estimator",
    "EstimatorInput",
    "EstimatorName",
    "KeyLength",
    "ShareTerms",
    "Statistics",
    "VacuumRule",
    "XMode",
    "asymmetry_terms",
    "binary_entropy",
    "estimate",
    "shares_of",
    "stated",
]


def estimate(inputs: EstimatorInput, estimator: str = DEFAULT_ESTIMATOR) -> KeyLength:
    """Return the key length of one block by the named estimator, the least over the intensities' corners.

    Raises:
        FieldError: the estimator is unknown or does not offer what ``inputs`` asks for.
        CountsContradiction: the counts exclude the corner of the weakest signal and the strongest decoy,
            whose bounds are the least.
    """
    chosen = ESTIMATORS.get(estimator)
    if chosen is None:
        raise FieldError("estimator", f"unknown estimator {estimator!r}; there are {', '.join(ESTIMATORS)}")
    results = []
    for corner in _corners(inputs):
        try:
            results.append(chosen(corner))
        except CountsContradiction:
            # Bounds fall with a weaker signal and a stronger decoy, the corner that comes first. Where the
            # counts exclude that one, the least key lies somewhere inside, and no corner gives it. Where
            # they exclude another, the intensities do not lie there.
            if not results:
                raise
    worst = min(results, key=lambda result: result.length_unfloored)
    return worst if inputs.mu_uncertainty == EXACTLY_KNOWN else _with_intervals(worst, inputs.mu_uncertainty)


def _corners(inputs: EstimatorInput) -> Iterator[EstimatorInput]:
    """Yield the inputs at each corner of the calibrated intervals, as exactly known intensities.

    The first has the weakest signal and the strongest decoy.
    """
    mu, off = inputs.mu, inputs.mu_uncertainty
    for signal in sorted({mu.signal * (1.0 - off.signal), mu.signal * (1.0 + off.signal)}):
        for decoy in sorted({mu.decoy * (1.0 - off.decoy), mu.decoy * (1.0 + off.decoy)}, reverse=True):
            yield msgspec.structs.replace(inputs, mu=Pair(signal, decoy), mu_uncertainty=EXACTLY_KNOWN)


def _with_intervals(result: KeyLength, uncertainty: Pair) -> KeyLength:
    """Return ``result`` with what is assumed of the intensities when they are known within intervals."""
    within = Assumption.CALIBRATED_INTENSITIES.stated(
        signal=uncertainty.signal,
        decoy=uncertainty.decoy,
        worst_signal=result.mu.signal,
        worst_decoy=result.mu.decoy,
    )
    assumptions: dict[Assumption, str] = {}
    for one, text in result.assumptions.items():
        assumptions |= within if one is Assumption.EXACT_INTENSITIES else {one: text}
    return msgspec.structs.replace(result, assumptions=assumptions)
