"""The plausibility checks of a block by name, and the result of one: part of public records and of a status.

`qnode.distill.plausibility` has the measures themselves. This module has few imports, so any command can use
it.
"""

from typing import Final

from msgspec import Struct

_BRIGHT: Final = "detectors controlled by bright light"
_STEERED: Final = (
    "an arm chosen by the light: steering of the splitter, or detectors controlled by bright light"
)
_YIELDS: Final = "yields that depend on the photon number, or intensities that are not the configured ones"
_NOT_STEADY: Final = "an attack, or a fault, that began or ended within the block"


class Check(Struct, frozen=True):
    """One check. ``low`` and ``high``: the possible causes of a value below or above the limits, in words."""

    name: str
    what: str
    low: str
    high: str


CHECKS: Final[tuple[Check, ...]] = (
    Check("qber_z", "bit errors m_Z / n_Z", _BRIGHT, "intercept and resend"),
    Check("e_vis", "errors of the interferometer, (1 - V) / 2", _BRIGHT, "intercept and resend"),
    Check(
        "boundary_error",
        "E_dark / E_same: bit errors in the X arm",
        _BRIGHT,
        "light in the X arm that does not depend on Alice's bit: " + _STEERED,
    ),
    Check(
        "errors_z",
        "decoy's share of m_Z",
        _YIELDS,
        _YIELDS,
    ),
    Check(
        "errors_x",
        "decoy's share of C_+",
        _YIELDS,
        _YIELDS,
    ),
    Check(
        "rho",
        "P(tot|+) / T from the Z arm, one half",
        "loss of |+>, or an arm that depends on the state",
        "more light on |+> than on Z states: " + _STEERED,
    ),
    Check(
        "t2",
        "[P(-|0) + P(-|1)] / T from all boundary clicks, one half",
        "damping towards |+>, or more boundary clicks than light gives",
        "fewer boundary clicks than light gives: " + _BRIGHT,
    ),
    Check(
        "boundary_plus",
        "t3 = rho + t4 from boundary classes",
        "boundary clicks that do not depend on the state",
        "boundary clicks that do not depend on the state",
    ),
    Check(
        "boundary_same",
        "E_same's share of boundary clicks",
        "boundary clicks that do not depend on the state",
        "boundary clicks that depend on more than the state",
    ),
    Check("intensity_z", "mu2 / mu1 from Z clicks, noise cancelled", _YIELDS, _YIELDS),
    Check("intensity_x", "mu2 / mu1 from X clicks, noise cancelled", _YIELDS, _YIELDS),
    Check(
        "intensity_plus",
        "decoy's share of Z-arm clicks on |+> less that on Z states",
        _YIELDS,
        _YIELDS,
    ),
    Check("yield_z", "detections over qubits with a photon", "", "light that Alice did not send"),
    Check("late_signal", "late share, signal", "time shift, double pulses", "time shift"),
    Check("late_decoy", "late share, decoy", "time shift, double pulses", "time shift"),
    Check(
        "cross_clicks",
        "slots with clicks in both arms",
        _STEERED,
        "light brighter than Alice's",
    ),
    Check(
        "double_clicks",
        "slots with two clicks at one detector",
        "",
        "light brighter than Alice's",
    ),
    Check(
        "out_of_gate",
        "share of tags outside the gates",
        "tags without the detectors' jitter: " + _BRIGHT,
        "light after the gates, time shift, or pulses that keep a detector dead",
    ),
    Check(
        "dead_time",
        "tags closer than the declared dead time",
        "",
        "clicks that no avalanche made, or a dead time that is not the declared one",
    ),
    Check(
        "live_share",
        "share of the span that was not cut",
        "an interruption, or darkness that hides an attack",
        "",
    ),
    Check(
        "occupancy",
        "clicks times declared dead time over live time",
        "",
        "more clicks than the dead time lets through",
    ),
    Check(
        "arm_ratio",
        "X-arm clicks for one Z-arm click",
        "a dead X detector, or " + _STEERED,
        "a dead Z detector, or " + _STEERED,
    ),
    Check(
        "steadiness_z",
        "spread of the Z arm's rate over the block, 1 by chance",
        "clicks more regular than chance",
        _NOT_STEADY,
    ),
    Check(
        "steadiness_x",
        "spread of the X arm's rate over the block, 1 by chance",
        "clicks more regular than chance",
        _NOT_STEADY,
    ),
)
BY_NAME: Final = {check.name: check for check in CHECKS}


class Finding(Struct, frozen=True, array_like=True):
    """The result of one check: ``value``, and the limits within which it is plausible (None: no limit).

    ``points_to``: the possible causes of a value beyond the limits; empty if the value is plausible.
    """

    check: str
    value: float
    least: float | None
    most: float | None
    points_to: str = ""

    @property
    def too_low(self) -> bool:
        """Return whether the value lies below its limits."""
        return self.least is not None and not self.value >= self.least

    @property
    def too_high(self) -> bool:
        """Return whether the value lies above its limits."""
        return self.most is not None and not self.value <= self.most

    @property
    def plausible(self) -> bool:
        """Return whether the value lies within the limits (NaN does not)."""
        return not (self.too_low or self.too_high)

    @property
    def limits(self) -> str:
        """The limits in words."""
        if self.least is None:
            return f"at most {self.most:.6g}"
        return f"at least {self.least:.6g}" if self.most is None else f"{self.least:.6g} to {self.most:.6g}"

    def __str__(self) -> str:
        text = f"{self.value:.6g}, plausible {self.limits}"
        return f"{text}: points to {self.points_to}" if self.points_to else text
