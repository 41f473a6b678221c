"""What an estimator needs to know about one block, and what it refuses to believe."""

import math
from typing import Final, Literal

import msgspec

from qnode.distill.counts import Pair
from qnode.errors import FieldError

XMode = Literal["visibility", "visibility + asymmetry"]
AsymmetryBound = Literal["reference", "joint"]
Statistics = Literal["hoeffding", "exact"]
VacuumRule = Literal["min", "k1", "k2", "form_a", "min3", "max3"]

DEFAULT_EPS_SEC: Final = 1e-10
DEFAULT_EPS_COR: Final = 1e-15

# Counts are held as floats (a plan inserts expectations); below this every integer is exact.
LARGEST_COUNT: Final = 1e15
LARGEST_MEAN_PHOTON_NUMBER: Final = 100.0
EXACTLY_KNOWN: Final = Pair(0.0, 0.0)


class EstimatorInput(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The counts of one block, the source, and the security that is asked for.

    Pairs hold the signal intensity first. With one X detector ``n_x`` is the central-slot clicks of Alice's
    Z states, ``m_x`` those of her |+>, and ``x_scale`` is 2 p_X / p_Z: it multiplies the ``n_x`` terms and
    their deviation, never ``m_x`` (security reference 3.6). ``e_same``, ``e_plus``, ``e_dark`` and ``p_z``
    come together; ``x_mode`` None means "visibility + asymmetry" when they are given and "visibility"
    otherwise. ``verification_bits`` is the length of the verification tag, 0 when log2(2/eps_cor) shall pay
    for it. ``vacuum_rule`` says which bound on empty-qubit detections counts: form E with k = 1, k = 2 or
    the smaller of both (``min``), form A, or the smallest or largest of the three (``min3``, ``max3``).
    ``mu_uncertainty``: how far each intensity may be off what ``mu`` says, as a fraction of it; the key
    length is then the least over the corners of the two intervals. ``asymmetry_bound``: which upper bound
    on the asymmetry widens the phase error, the reference's or the one that holds (`AsymmetryTerms`).
    ``n_z_plus``: clicks of the Z arm on |+>; ``boundary``: all clicks in boundary slots, whatever the
    states around them.

    Raises:
        FieldError: an input is impossible; ``field`` names it.
    """

    n_z: Pair
    m_z: Pair
    n_x: Pair
    m_x: Pair
    mu: Pair
    p: Pair
    lambda_ec: float
    eps_sec: float = DEFAULT_EPS_SEC
    eps_cor: float = DEFAULT_EPS_COR
    x_scale: float = 1.0
    p_z: float | None = None
    e_same: Pair | None = None
    e_plus: Pair | None = None
    e_dark: Pair | None = None
    x_mode: XMode | None = None
    statistics: Statistics = "exact"
    vacuum_rule: VacuumRule = "min"
    verification_bits: int = 0
    mu_uncertainty: Pair = EXACTLY_KNOWN
    asymmetry_bound: AsymmetryBound = "reference"
    n_z_plus: Pair | None = None
    boundary: float | None = None

    def __post_init__(self) -> None:
        for name in ("n_z", "m_z", "n_x", "m_x", "e_same", "e_plus", "e_dark"):
            _check_counts(name, getattr(self, name))
        _check_source(self.mu, self.p)
        check_mu_uncertainty(self.mu, self.mu_uncertainty)
        for name in ("eps_sec", "eps_cor"):
            _check_open_unit(name, getattr(self, name))
        if self.p_z is not None:
            _check_open_unit("p_z", self.p_z)
        if not (math.isfinite(self.lambda_ec) and self.lambda_ec >= 0):
            raise FieldError(
                "lambda_ec", f"disclosed bits must be finite and not negative, got {self.lambda_ec}"
            )
        if not (math.isfinite(self.x_scale) and self.x_scale > 0):
            raise FieldError("x_scale", f"must be finite and positive, got {self.x_scale}")
        if self.verification_bits < 0:
            raise FieldError("verification_bits", f"must not be negative, got {self.verification_bits}")
        _check_errors("m_z", self.m_z, self.n_z)
        self._check_boundary_counts()
        if not self.one_x_detector:
            # One detector counts errors and detections on different states; either may be the larger.
            _check_errors("m_x", self.m_x, self.n_x)

    def _check_boundary_counts(self) -> None:
        needed = {"p_z": self.p_z, "e_same": self.e_same, "e_plus": self.e_plus, "e_dark": self.e_dark}
        present = [name for name, value in needed.items() if value is not None and name != "p_z"]
        if not present and self.x_mode != "visibility + asymmetry":
            return
        for name, value in needed.items():
            if value is None:
                reason = f"{present[0]} is given" if present else f"x_mode is {self.x_mode!r}"
                raise FieldError(name, f"missing, but {reason}: p_z, e_same, e_plus, e_dark come together")

    @property
    def one_x_detector(self) -> bool:
        """Tell whether the X counts are those of a single detector at the dark port."""
        return self.x_scale != 1.0 or self.e_same is not None

    @property
    def p_x(self) -> float:
        """Probability that Alice sends X: from ``p_z``, else from ``x_scale`` = 2 p_X / p_Z."""
        return 1.0 - self.p_z if self.p_z is not None else self.x_scale / (2.0 + self.x_scale)

    @property
    def uses_asymmetry(self) -> bool:
        """Tell whether the asymmetry term enters the phase error (and its six events the budget)."""
        return self.e_same is not None and self.x_mode != "visibility"


def _check_counts(name: str, counts: Pair | None) -> None:
    if counts is None:
        return
    for value in (counts.signal, counts.decoy):
        if not math.isfinite(value):
            raise FieldError(name, f"counts must be finite, got {value}")
        if value < 0:
            raise FieldError(name, f"counts must not be negative, got {value}")
        if value > LARGEST_COUNT:
            raise FieldError(name, f"counts must not exceed {LARGEST_COUNT:.0e}, got {value}")


def _check_errors(name: str, errors: Pair, detections: Pair) -> None:
    pairs = ((errors.signal, detections.signal, "signal"), (errors.decoy, detections.decoy, "decoy"))
    for wrong, total, intensity in pairs:
        if wrong > total:
            raise FieldError(
                name,
                f"more errors than detections at the {intensity} intensity: {wrong:.12g} of {total:.12g}",
            )


def _check_source(mu: Pair, p: Pair) -> None:
    for value in (mu.signal, mu.decoy):
        if not (math.isfinite(value) and 0 < value <= LARGEST_MEAN_PHOTON_NUMBER):
            limit = f"above 0 and not above {LARGEST_MEAN_PHOTON_NUMBER:g}"
            raise FieldError("mu", f"mean photon numbers must lie {limit}, got {value}")
    if mu.decoy >= mu.signal:
        raise FieldError(
            "mu", f"the signal (first) must be the larger intensity, got {mu.signal}, {mu.decoy}"
        )
    for value in (p.signal, p.decoy):
        _check_open_unit("p", value)
    if abs(p.total - 1.0) > 1e-9:
        raise FieldError("p", f"the two intensity probabilities must sum to one, got {p.total:.12g}")


def check_mu_uncertainty(mu: Pair, uncertainty: Pair) -> None:
    """Refuse relative uncertainties that are no fractions, or that let the two intensities meet.

    Raises:
        FieldError: saying which.
    """
    for value in (uncertainty.signal, uncertainty.decoy):
        if not 0.0 <= value < 1.0:  # also refuses NaN
            raise FieldError("mu_uncertainty", f"must be fractions from 0 to below 1, got {value}")
    least_signal = mu.signal * (1.0 - uncertainty.signal)
    most_decoy = mu.decoy * (1.0 + uncertainty.decoy)
    if most_decoy >= least_signal:
        raise FieldError(
            "mu_uncertainty",
            f"lets the intensities meet: signal at least {least_signal:.6g}, decoy at most {most_decoy:.6g}",
        )


def _check_open_unit(name: str, value: float) -> None:
    if not 0.0 < value < 1.0:  # also refuses NaN
        raise FieldError(name, f"must lie strictly between 0 and 1, got {value}")
