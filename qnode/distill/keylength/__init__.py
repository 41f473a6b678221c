"""Secret key length of one block: three estimators over the same counts.

``rusca2018`` reproduces what published one-decoy systems report, ``eur`` is the recommended one, and
``wiesemann2024`` reproduces the constants of the consolidated proof. None is a complete proof for a receiver
with three states, one X detector, passive choice and long dead time; ``KeyLength.assumptions`` says what is
left open.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final, Literal

from qnode.distill.keylength import eur, rusca2018, wiesemann2024
from qnode.distill.keylength.asymmetry import AsymmetryTerms, asymmetry_terms
from qnode.distill.keylength.inputs import (
    DEFAULT_EPS_COR,
    DEFAULT_EPS_SEC,
    EstimatorInput,
    Statistics,
    VacuumRule,
    XMode,
)
from qnode.distill.keylength.result import KeyLength, binary_entropy
from qnode.errors import FieldError

EstimatorName = Literal["rusca2018", "eur", "wiesemann2024"]
Estimator = Callable[[EstimatorInput], KeyLength]

ESTIMATORS: Final[Mapping[str, Estimator]] = MappingProxyType(
    {
        "rusca2018": rusca2018.key_length,
        "eur": eur.key_length,
        "wiesemann2024": wiesemann2024.key_length,
    }
)
DEFAULT_ESTIMATOR: Final[EstimatorName] = "eur"

__all__ = [
    "DEFAULT_EPS_COR",
    "DEFAULT_EPS_SEC",
    "DEFAULT_ESTIMATOR",
    "ESTIMATORS",
    "AsymmetryTerms",
    "Estimator",
    "EstimatorInput",
    "EstimatorName",
    "KeyLength",
    "Statistics",
    "VacuumRule",
    "XMode",
    "asymmetry_terms",
    "binary_entropy",
    "estimate",
]


def estimate(inputs: EstimatorInput, estimator: str = "rusca2018") -> KeyLength:
    """Return the key length of one block by the named estimator; the shipped default is DEFAULT_ESTIMATOR.

    Raises:
        FieldError: the estimator is unknown or does not offer what ``inputs`` asks for.
    """
    chosen = ESTIMATORS.get(estimator)
    if chosen is None:
        raise FieldError("estimator", f"unknown estimator {estimator!r}; there are {', '.join(ESTIMATORS)}")
    return chosen(inputs)
