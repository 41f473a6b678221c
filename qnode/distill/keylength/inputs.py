"""The inputs of an estimator for one block, and the checks of these inputs."""

import math
from typing import Final

import msgspec

from qnode.choices import AsymmetryBound, Statistics, VacuumRule, XMode
from qnode.distill.counts import Pair
from qnode.errors import FieldError

DEFAULT_EPS_SEC: Final = 1e-10
DEFAULT_EPS_COR: Final = 1e-15

# No proof is about smaller ones, and their squares would leave the range of floating point.
LEAST_EPSILON: Final = 1e-100
# Counts are held as floats (a plan inserts expectations); below this every integer is exact.
LARGEST_COUNT: Final = 1e15
LARGEST_MEAN_PHOTON_NUMBER: Final = 100.0
# Beyond these no link exists, and products of theirs would leave the range of floating point.
LEAST_MEAN_PHOTON_NUMBER: Final = 1e-6
LEAST_BASIS_PROBABILITY: Final = 1e-6
LARGEST_X_SCALE: Final = 1e7
EXACTLY_KNOWN: Final = Pair(0.0, 0.0)


class EstimatorInput(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The counts of one block, the source, and the required security.

    Pairs hold the signal intensity first. With one X detector ``n_x`` is the central-slot clicks of Alice's
    Z states, ``m_x`` those of |+>, and ``x_scale`` is 2 p_X / p_Z: it multiplies the ``n_x`` terms and
    their deviation, never ``m_x`` (security reference 3.6).

    Two sets of counts show the asymmetry between |+> and |->: ``n_z_plus`` (clicks of the Z arm on |+>) and
    ``boundary`` (all clicks in boundary slots, for all states), or the classes ``e_same``,
    ``e_plus``, ``e_dark``. Each set comes together with ``p_z``. ``asymmetry_bound`` says which of them
    widens the phase error; None means the first that is given. ``x_mode`` None means "visibility +
    asymmetry" when either is given and "visibility" otherwise.

    ``verification_bits`` is the length of the verification tag, 0 if log2(2/eps_cor) covers it.
    ``vacuum_rule`` selects the bound on empty-qubit detections: form E with k = 1, k = 2 or the
    smaller of both (``min``), form A, or the smallest or largest of the three (``min3``, ``max3``).
    ``error_positions_public``: whether everybody knows which bits correction changed. Then no entropy of
    empty qubits is credited, because Eve, who may have caused Bob's bit of such a qubit, knows Alice's bit
    from it. ``mu_uncertainty``: the largest deviation of each intensity from ``mu``, as a fraction of it; the
    key length is then the least over the corners of the two intervals.

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
    asymmetry_bound: AsymmetryBound | None = None
    n_z_plus: Pair | None = None
    boundary: float | None = None
    error_positions_public: bool = False

    def __post_init__(self) -> None:
        for name in ("n_z", "m_z", "n_x", "m_x", "e_same", "e_plus", "e_dark", "n_z_plus"):
            _check_counts(name, getattr(self, name))
        if self.boundary is not None:
            _check_count("boundary", self.boundary)
        _check_source(self.mu, self.p)
        check_mu_uncertainty(self.mu, self.mu_uncertainty)
        for name in ("eps_sec", "eps_cor"):
            check_epsilon(name, getattr(self, name))
        least = LEAST_BASIS_PROBABILITY
        if self.p_z is not None and not least <= self.p_z <= 1.0 - least:
            raise FieldError("p_z", f"must lie between {least:g} and 1 - {least:g}, got {self.p_z}")
        if not (math.isfinite(self.lambda_ec) and self.lambda_ec >= 0):
            raise FieldError(
                "lambda_ec", f"disclosed bits must be finite and not negative, got {self.lambda_ec}"
            )
        if not 1.0 / LARGEST_X_SCALE <= self.x_scale <= LARGEST_X_SCALE:
            limits = f"{1.0 / LARGEST_X_SCALE:g} and {LARGEST_X_SCALE:g}"
            raise FieldError("x_scale", f"must lie between {limits}, got {self.x_scale}")
        if self.verification_bits < 0:
            raise FieldError("verification_bits", f"must not be negative, got {self.verification_bits}")
        _check_errors("m_z", self.m_z, self.n_z)
        self._check_together("e_same", "e_plus", "e_dark")
        self._check_together("n_z_plus", "boundary")
        self._check_asymmetry()
        if not self.one_x_detector:
            # One detector counts errors and detections on different states; either may be the larger.
            _check_errors("m_x", self.m_x, self.n_x)

    def _check_together(self, *names: str) -> None:
        given = [name for name in names if getattr(self, name) is not None]
        if not given:
            return
        for name in ("p_z", *names):
            if getattr(self, name) is None:
                together = ", ".join(("p_z", *names))
                raise FieldError(name, f"missing, but {given[0]} is given: {together} come together")

    def _check_asymmetry(self) -> None:
        """Refuse a mode or a bound whose counts are not there, and classes that exceed their sum."""
        has = {"shares": self.boundary is not None, "joint": self.e_same is not None}
        if self.x_mode == "visibility + asymmetry" and not any(has.values()):
            missing = "p_z" if self.p_z is None else "n_z_plus"
            raise FieldError(
                missing,
                f"missing, but x_mode is {self.x_mode!r}: it needs p_z with n_z_plus and boundary, "
                "or with e_same, e_plus and e_dark",
            )
        if self.asymmetry_bound is not None and not has[self.asymmetry_bound] and self.x_mode != "visibility":
            field = "n_z_plus" if self.asymmetry_bound == "shares" else "e_same"
            raise FieldError(field, f"missing, but asymmetry_bound is {self.asymmetry_bound!r}")
        if self.boundary is not None and self.e_same is not None:
            assert self.e_plus is not None  # the classes come together
            assert self.e_dark is not None
            classes = self.e_same.total + self.e_plus.total + self.e_dark.total
            if classes > self.boundary:
                raise FieldError(
                    "boundary",
                    f"must count all clicks in boundary slots, {self.boundary:.12g} is fewer than "
                    f"the {classes:.12g} of the classes e_same, e_plus, e_dark",
                )

    @property
    def one_x_detector(self) -> bool:
        """Return whether the X counts are those of a single detector at the dark port."""
        return self.x_scale != 1.0 or self.e_same is not None or self.boundary is not None

    @property
    def p_x(self) -> float:
        """Probability that Alice sends X: from ``p_z``, else from ``x_scale`` = 2 p_X / p_Z."""
        return 1.0 - self.p_z if self.p_z is not None else self.x_scale / (2.0 + self.x_scale)

    @property
    def charged(self) -> AsymmetryBound | None:
        """The bound on the asymmetry that enters the phase error (and its events the budget)."""
        if self.x_mode == "visibility":
            return None
        if self.asymmetry_bound is not None:
            return self.asymmetry_bound
        if self.boundary is not None:
            return "shares"
        return "joint" if self.e_same is not None else None


def _check_counts(name: str, counts: Pair | None) -> None:
    if counts is None:
        return
    for value in (counts.signal, counts.decoy):
        _check_count(name, value)


def _check_count(name: str, value: float) -> None:
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
        if not LEAST_MEAN_PHOTON_NUMBER <= value <= LARGEST_MEAN_PHOTON_NUMBER:
            limits = f"{LEAST_MEAN_PHOTON_NUMBER:g} and {LARGEST_MEAN_PHOTON_NUMBER:g}"
            raise FieldError("mu", f"mean photon numbers must lie between {limits}, got {value}")
    if mu.decoy >= mu.signal:
        raise FieldError(
            "mu", f"the signal (first) must be the larger intensity, got {mu.signal}, {mu.decoy}"
        )
    for value in (p.signal, p.decoy):
        _check_open_unit("p", value)
    if abs(p.total - 1.0) > 1e-9:
        raise FieldError("p", f"the two intensity probabilities must sum to one, got {p.total:.12g}")


def check_mu_uncertainty(mu: Pair, uncertainty: Pair) -> None:
    """Refuse relative uncertainties that are not fractions, or with which the two intensities could be equal.

    Raises:
        FieldError: states which.
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


def check_epsilon(name: str, value: float) -> None:
    """Refuse an epsilon that is not a probability, or too small for the calculation.

    Raises:
        FieldError: states the limit.
    """
    if not LEAST_EPSILON <= value < 1.0:  # also refuses NaN
        raise FieldError(name, f"must be at least {LEAST_EPSILON:g} and below 1, got {value}")


def _check_open_unit(name: str, value: float) -> None:
    if not 0.0 < value < 1.0:  # also refuses NaN
        raise FieldError(name, f"must lie strictly between 0 and 1, got {value}")
