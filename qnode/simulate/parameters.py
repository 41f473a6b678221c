"""The parts of the simulated link and their changes: the ``[simulation]`` table.

The defaults are a set that reproduces the published figures of a 12.7 km, 10.8 dB field trial (the reference
set of the link model). They are fitted, not measured.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import Struct

from qnode.choices import Arm, DeadTime
from qnode.config.description import Described, Limits, Rule, check_limits
from qnode.simulate.drift import DriftParameters


class _Table(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A TOML table: immutable, unknown keys refused."""


_SHARE = Limits(0.0, 1.0)
_LOSS = Limits(0.0, 200.0)
_PHASE = Limits(-1e3, 1e3)
_Attenuation = Annotated[
    float, Described("loss of the fibre and everything else between the sites", limits=_LOSS)
]
_MuSent = Annotated[
    tuple[float, float] | None,
    Described(
        "mean photon number of signal and decoy that really leave Alice; default: `link.source.mu`",
        "photons a qubit",
        limits=Rule(
            "two mean photon numbers from 1e-06 to 10",
            lambda means: all(1e-6 <= mean <= 10.0 for mean in means),
        ),
    ),
]


class DetectorParameters(_Table, frozen=True, kw_only=True):
    """One single-photon detector.

    The delay of an afterpulse counts live time only: it stands still during the dead time. So the probability
    agrees with the link model at every click rate. If traps emptied during the dead time, the probability
    would depend on the rate.
    """

    efficiency: Annotated[float, Described("chance that a photon clicks", "probability", limits=_SHARE)] = (
        0.20
    )
    dark_rate_hz: Annotated[float, Described("rate of clicks without light", limits=Limits(0.0, 1e9))] = (
        3500.0
    )
    afterpulse_probability: Annotated[
        float,
        Described(
            "chance that a click causes one more after the dead time", "probability", limits=Limits(0.0, 0.5)
        ),
    ] = 0.02
    afterpulse_lifetime_s: Annotated[
        float, Described("mean of the exponential delay of an afterpulse", limits=Limits(1e-9, 1.0))
    ] = 2e-6
    dead_time_s: Annotated[
        float,
        Described(
            "time without clicks after an avalanche, not prolonged by photons; a detector clicks at "
            "most once a slot in any case",
            limits=Limits(0.0, 1.0),
        ),
    ] = 62.5e-6

    def __post_init__(self) -> None:
        check_limits(self)


class JitterParameters(_Table, frozen=True, kw_only=True):
    """Timing of all parts together: a Gaussian and, for some of the clicks, an exponential delay on top.

    With the defaults a gate of 400 ps accepts 97.0 % of the clicks.
    """

    sigma_ps: Annotated[float, Described("standard deviation of the Gaussian", limits=Limits(0.001, 1e5))] = (
        80.0
    )
    tail_fraction: Annotated[
        float, Described("share of the clicks with the exponential delay", "fraction", limits=_SHARE)
    ] = 0.06
    tail_ps: Annotated[float, Described("mean of this delay", limits=Limits(0.001, 1e5))] = 150.0

    def __post_init__(self) -> None:
        check_limits(self)


class Settings(_Table, frozen=True, kw_only=True):
    """Settings that a schedule or an operator can change while the link runs, in whole knots of 10 ms.

    With `eve_blinding`, `eve_careful_blinding` or `eve_steering` Eve measures every qubit in Z or X, half
    each, and knows the key. If several are set, the first one applies.
    """

    source_on: Annotated[bool, Described("whether Alice sends light")] = True
    attenuation_db: _Attenuation = 10.8
    source_attenuation_db: Annotated[
        float,
        Described(
            "attenuation at the end of Alice's source, beyond that which gives the mean photon numbers",
            limits=Limits(-20.0, 200.0),
        ),
    ] = 0.0
    attenuator_db: Annotated[
        float,
        Described(
            "attenuation of Alice's variable attenuator, beyond that which gives the mean photon numbers",
            limits=Limits(-20.0, 200.0),
        ),
    ] = 0.0
    interferometer_phase_rad: Annotated[
        float, Described("added to the phase of the interferometer and its drift", limits=_PHASE)
    ] = 0.0
    modulator_bias_rad: Annotated[
        float, Described("added to the bias of the modulator and its drift", limits=_PHASE)
    ] = 0.0
    eve_intercept: Annotated[
        float,
        Described(
            "fraction of the qubits that Eve measures (Z or X, half each) and sends again with the result",
            "fraction",
            limits=_SHARE,
        ),
    ] = 0.0
    eve_pns: Annotated[
        float,
        Described(
            "fraction of the qubits under photon-number splitting: Eve keeps one photon of several and "
            "sends the others on without loss, as far as the mean detection rate of the signal allows; "
            "single photons are blocked",
            "fraction",
            limits=_SHARE,
        ),
    ] = 0.0
    eve_damping: Annotated[
        float, Described("strength of Eve's amplitude damping towards |+>", "fraction", limits=_SHARE)
    ] = 0.0
    eve_added_loss_db: Annotated[float, Described("loss by light that Eve takes out", limits=_LOSS)] = 0.0
    eve_blinding: Annotated[
        bool,
        Described(
            "bright light of Eve alone makes the detectors click, exactly according to the results of "
            "Eve's measurement"
        ),
    ] = False
    eve_careful_blinding: Annotated[
        bool,
        Described(
            "as `eve_blinding`, but Eve imitates the clicks of an honest receiver. Z results give "
            "those of the Z arm, with its light in the wrong bin, and of the boundary slots. X results "
            "give those of the central slot, with its visibility. Noise, jitter and intensities stay "
            "as they were. Each pulse is made for one arm, so both never click in one slot"
        ),
    ] = False
    eve_steering: Annotated[
        bool,
        Described(
            "Eve sends the results on, as faint as before, at a wavelength for which Bob's splitter "
            "sends all the light into the arm of Eve's basis"
        ),
    ] = False
    eve_time_shift_ps: Annotated[
        float, Described("each qubit comes earlier or later by this time, at random", limits=Limits(0.0, 1e4))
    ] = 0.0
    eve_after_gate: Annotated[
        float,
        Described(
            "fraction of the light that comes a quarter of a slot late, between Bob's gates; there, "
            "bright light would control a detector that is gated in hardware",
            "fraction",
            limits=_SHARE,
        ),
    ] = 0.0
    eve_burst_hz: Annotated[
        float,
        Described(
            "rate of bright pulses at random slots, midway between the late bin and the next qubit, "
            "into the arm `eve_burst_arm`. The detector clicks if it is live, and is then dead for the "
            "next qubits",
            limits=Limits(0.0, 1e8),
        ),
    ] = 0.0
    eve_burst_arm: Annotated[Arm, Described("the arm of these pulses")] = "x"
    mu_sent: _MuSent = None

    def __post_init__(self) -> None:
        check_limits(self)


class Change(_Table, frozen=True, kw_only=True, omit_defaults=True):
    """New values of some `Settings`; a value of None changes nothing.

    Only values that are given are sent, so that the two ends of a fibre may be of different versions.
    """

    source_on: bool | None = None
    attenuation_db: float | None = None
    source_attenuation_db: float | None = None
    attenuator_db: float | None = None
    interferometer_phase_rad: float | None = None
    modulator_bias_rad: float | None = None
    eve_intercept: float | None = None
    eve_pns: float | None = None
    eve_damping: float | None = None
    eve_added_loss_db: float | None = None
    eve_blinding: bool | None = None
    eve_careful_blinding: bool | None = None
    eve_steering: bool | None = None
    eve_time_shift_ps: float | None = None
    eve_after_gate: float | None = None
    eve_burst_hz: float | None = None
    eve_burst_arm: Arm | None = None
    mu_sent: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        self.applied(Settings())  # an impossible value is refused here

    def applied(self, settings: Settings) -> Settings:
        """Return ``settings`` with the values given here."""
        given = {name: getattr(self, name) for name in Settings.__struct_fields__}
        return msgspec.structs.replace(settings, **{k: v for k, v in given.items() if v is not None})

    def merged(self, later: "Change") -> "Change":
        """Return one change with the effect of this one followed by ``later``."""
        given = {name: getattr(later, name) for name in Settings.__struct_fields__}
        return msgspec.structs.replace(self, **{k: v for k, v in given.items() if v is not None})


class ScheduledChange(Change, frozen=True, kw_only=True):
    """A change at ``at_s`` seconds of simulated time after the simulated world began."""

    at_s: Annotated[
        float, Described("seconds of simulated time after the simulated world began", limits=Limits(0.0, 1e9))
    ]

    def __post_init__(self) -> None:
        check_limits(self)
        super().__post_init__()


class SimulationParameters(_Table, frozen=True, kw_only=True):
    """The simulated fibre, receiver and clocks. Source and splitter are those of the link.

    The drifts here are random walks; `drift` has those with a period.
    """

    attenuation_db: _Attenuation = 10.8
    fibre_delay_s: Annotated[float, Described("delay of the fibre", limits=Limits(0.0, 1.0))] = 62.2e-6
    fibre_delay_drift_ns_per_hour: Annotated[
        float, Described("drift of the delay in an hour", "ns", limits=Limits(0.0, 1e6))
    ] = 0.5
    z_arm_loss_db: Annotated[float, Described("loss of Bob's Z arm", limits=_LOSS)] = 1.3
    x_arm_loss_db: Annotated[float, Described("loss of Bob's X arm", limits=_LOSS)] = 2.3
    z_detector: DetectorParameters = DetectorParameters()
    x_detector: DetectorParameters = DetectorParameters()
    hold_off: Annotated[
        DeadTime, Described("whether a click blanks its own detector (independent) or both (joint)")
    ] = "independent"
    jitter: JitterParameters = JitterParameters()
    mu_sent: _MuSent = None
    wrong_bin_fraction: Annotated[
        float,
        Described(
            "share of the light of a Z state in the wrong bin (extinction)",
            "fraction",
            limits=Limits(0.0, 0.5),
        ),
    ] = 0.0087
    visibility: Annotated[
        float, Described("visibility of Bob's interferometer", "fraction", limits=_SHARE)
    ] = 0.95
    interferometer_drift_rad_per_root_s: Annotated[
        float, Described("drift of the interferometer's phase", "rad/√s", limits=Limits(0.0, 10.0))
    ] = 0.0
    modulator_drift_rad_per_root_s: Annotated[
        float, Described("drift of the modulator's bias", "rad/√s", limits=Limits(0.0, 10.0))
    ] = 0.0
    modulator_half_wave_v: Annotated[
        float, Described("change of the modulator's bias voltage by π", "V", limits=Limits(0.1, 100.0))
    ] = 5.0
    drift: DriftParameters = DriftParameters()
    clock_offset_ppm: Annotated[
        float,
        Described("how much faster Bob's clock runs than Alice's", limits=Limits(-1000.0, 1000.0)),
    ] = 7.3
    clock_walk_per_root_s: Annotated[
        float, Described("drift of this offset", "1/√s", limits=Limits(0.0, 1e-6))
    ] = 1e-9
    start_offset_limit_s: Annotated[
        float, Described("greatest error of the wall clock of each site", limits=Limits(0.0, 1.0))
    ] = 0.005
    seed: Annotated[int, Described("the same seed gives the same noise", limits=Limits(0, 2**63 - 1))] = 1
    speed: Annotated[
        float | Literal["max"],
        Described(
            'seconds of tags per second of the wall clock; "max": as fast as the simulation can',
            "ratio",
            limits=Limits(1e-3, 1e6),
        ),
    ] = 1.0
    schedule: tuple[ScheduledChange, ...] = ()

    def __post_init__(self) -> None:
        self.settings_at(0.0)
        check_limits(self)

    def first_settings(self) -> Settings:
        """Return the settings before any scheduled change."""
        return Settings(attenuation_db=self.attenuation_db, mu_sent=self.mu_sent)

    def settings_at(self, world_s: float) -> Settings:
        """Return the settings after every scheduled change up to ``world_s`` of simulated time."""
        settings = self.first_settings()
        for change in sorted(self.schedule, key=lambda change: change.at_s):
            if change.at_s <= world_s:
                settings = change.applied(settings)
        return settings
