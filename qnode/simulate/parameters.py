"""What the simulated link is made of, and what happens to it: the ``[simulation]`` table.

The defaults are a set that reproduces the published figures of a 12.7 km, 10.8 dB field trial (the reference
set of the link model). They are fitted, not measured.
"""

from typing import Any, Literal

import msgspec
from msgspec import Struct

from qnode.choices import Arm, DeadTime


def _expect(name: str, value: Any, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ValueError(f"{name}: expected a value from {low:g} to {high:g}, got {value}")


class _Table(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A TOML table: immutable, unknown keys refused."""


class DetectorParameters(_Table, frozen=True, kw_only=True):
    """One single-photon detector.

    ``afterpulse_probability``: the chance that a click causes one more click after recovery. Its delay is
    exponential with ``afterpulse_lifetime_s`` and counts live time only: the release clock stands still while
    the detector is blanked, so that the probability means what the link model means by it at any click rate
    (a trap that were emptied unseen during the dead time would make it depend on the rate).
    ``dead_time_s``: non-paralysable, from the avalanche; a detector clicks at most once a slot in any case.
    """

    efficiency: float = 0.20
    dark_rate_hz: float = 3500.0
    afterpulse_probability: float = 0.02
    afterpulse_lifetime_s: float = 2e-6
    dead_time_s: float = 62.5e-6

    def __post_init__(self) -> None:
        _expect("efficiency", self.efficiency, 0.0, 1.0)
        _expect("dark_rate_hz", self.dark_rate_hz, 0.0, 1e9)
        _expect("afterpulse_probability", self.afterpulse_probability, 0.0, 0.5)
        _expect("afterpulse_lifetime_s", self.afterpulse_lifetime_s, 1e-9, 1.0)
        _expect("dead_time_s", self.dead_time_s, 0.0, 1.0)


class JitterParameters(_Table, frozen=True, kw_only=True):
    """Timing of all parts together: a Gaussian and, for some of the clicks, an exponential delay on top.

    With the defaults a gate of 400 ps accepts 97.0 % of the clicks.
    """

    sigma_ps: float = 80.0
    tail_fraction: float = 0.06
    tail_ps: float = 150.0

    def __post_init__(self) -> None:
        _expect("sigma_ps", self.sigma_ps, 0.001, 1e5)
        _expect("tail_fraction", self.tail_fraction, 0.0, 1.0)
        _expect("tail_ps", self.tail_ps, 0.001, 1e5)


class Settings(_Table, frozen=True, kw_only=True):
    """What a schedule or an operator can change while the link runs; applies to whole knots of 10 ms.

    ``interferometer_phase_rad`` and ``modulator_bias_rad`` are added to what drifts. ``mu_sent``: the mean
    photons a qubit that really leave Alice, signal and decoy; None: what ``link.source.mu`` says.

    What Eve does. ``eve_intercept``: fraction of the qubits that are measured (Z or X, half each) and sent
    again as found. ``eve_pns``: fraction of the qubits under photon-number splitting: one photon of several
    is kept, the rest goes on without loss as far as the signal's mean detection rate allows, single photons
    are blocked. ``eve_damping``: strength g of amplitude damping towards |+>. ``eve_added_loss_db``: she
    takes light out.

    The next three measure every qubit, Z or X, half each, and know the key; of several the first one holds.
    ``eve_blinding``: the detectors obey bright light alone, and click exactly where her own measurement tells
    them to. ``eve_careful_blinding``: so she does, but fakes an honest receiver's clicks: from Z results the
    Z arm's, with its light in the wrong bin, and the boundary slots'; from X results the central slot's, with
    its visibility; noise, jitter and intensities as they were. One thing she leaves out: each pulse is made
    for one arm, so that both never click in one slot. ``eve_steering``: what she found goes on as faint as
    it was, at a wavelength at which Bob's splitter sends all of it into the arm of her basis.

    ``eve_time_shift_ps``: each qubit comes earlier or later by so much, at random. ``eve_after_gate``:
    fraction of the light that comes a quarter of a slot late, between Bob's gates, where a detector that is
    gated in hardware would obey bright light. ``eve_burst_hz``: rate of bright pulses, at random slots,
    midway between the late bin and the next qubit, into the arm ``eve_burst_arm``: that detector clicks, if
    it is live, and is dead for the qubits that follow.
    """

    source_on: bool = True
    attenuation_db: float = 10.8
    interferometer_phase_rad: float = 0.0
    modulator_bias_rad: float = 0.0
    eve_intercept: float = 0.0
    eve_pns: float = 0.0
    eve_damping: float = 0.0
    eve_added_loss_db: float = 0.0
    eve_blinding: bool = False
    eve_careful_blinding: bool = False
    eve_steering: bool = False
    eve_time_shift_ps: float = 0.0
    eve_after_gate: float = 0.0
    eve_burst_hz: float = 0.0
    eve_burst_arm: Arm = "x"
    mu_sent: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        _expect("attenuation_db", self.attenuation_db, 0.0, 200.0)
        _expect("eve_added_loss_db", self.eve_added_loss_db, 0.0, 200.0)
        for name in ("eve_intercept", "eve_pns", "eve_damping", "eve_after_gate"):
            _expect(name, getattr(self, name), 0.0, 1.0)
        _expect("eve_time_shift_ps", self.eve_time_shift_ps, 0.0, 1e4)
        _expect("eve_burst_hz", self.eve_burst_hz, 0.0, 1e8)
        for mean in self.mu_sent or ():
            _expect("mu_sent", mean, 1e-6, 10.0)


class Change(_Table, frozen=True, kw_only=True):
    """New values of some `Settings`; what is None stays as it is."""

    source_on: bool | None = None
    attenuation_db: float | None = None
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
        self.applied(Settings())  # a value that no setting can have is refused here

    def applied(self, settings: Settings) -> Settings:
        """Return ``settings`` with the values that are given here."""
        given = {name: getattr(self, name) for name in Settings.__struct_fields__}
        return msgspec.structs.replace(settings, **{k: v for k, v in given.items() if v is not None})

    def merged(self, later: "Change") -> "Change":
        """Return one change that does what this and then ``later`` do."""
        given = {name: getattr(later, name) for name in Settings.__struct_fields__}
        return msgspec.structs.replace(self, **{k: v for k, v in given.items() if v is not None})


class ScheduledChange(Change, frozen=True, kw_only=True):
    """A change at ``at_s`` seconds of simulated time after the simulated world began."""

    at_s: float

    def __post_init__(self) -> None:
        _expect("at_s", self.at_s, 0.0, 1e9)
        super().__post_init__()


class SimulationParameters(_Table, frozen=True, kw_only=True):
    """The simulated fibre, receiver and clocks; source and splitter shares are the link's own parameters.

    ``wrong_bin_fraction``: light of a Z state in the wrong bin (extinction). ``hold_off``: whether a click
    blanks its own detector or both. Drifts are random walks. ``clock_offset_ppm``: how fast Bob's clock runs,
    compared with Alice's. ``start_offset_limit_s``: how far each site's time of day may be off.
    ``speed``: tag seconds a wall second; "max": as fast as they can be made. ``mu_sent``: see `Settings`.
    """

    attenuation_db: float = 10.8
    fibre_delay_s: float = 62.2e-6
    fibre_delay_drift_ns_per_hour: float = 0.5
    z_arm_loss_db: float = 1.3
    x_arm_loss_db: float = 2.3
    z_detector: DetectorParameters = DetectorParameters()
    x_detector: DetectorParameters = DetectorParameters()
    hold_off: DeadTime = "independent"
    jitter: JitterParameters = JitterParameters()
    mu_sent: tuple[float, float] | None = None
    wrong_bin_fraction: float = 0.0087
    visibility: float = 0.95
    interferometer_drift_rad_per_root_s: float = 0.0
    modulator_drift_rad_per_root_s: float = 0.0
    clock_offset_ppm: float = 7.3
    clock_walk_per_root_s: float = 1e-9
    start_offset_limit_s: float = 0.005
    seed: int = 1
    speed: float | Literal["max"] = 1.0
    schedule: tuple[ScheduledChange, ...] = ()

    def __post_init__(self) -> None:
        self.settings_at(0.0)
        _expect("fibre_delay_s", self.fibre_delay_s, 0.0, 1.0)
        _expect("z_arm_loss_db", self.z_arm_loss_db, 0.0, 200.0)
        _expect("x_arm_loss_db", self.x_arm_loss_db, 0.0, 200.0)
        _expect("wrong_bin_fraction", self.wrong_bin_fraction, 0.0, 0.5)
        _expect("visibility", self.visibility, 0.0, 1.0)
        _expect("interferometer_drift_rad_per_root_s", self.interferometer_drift_rad_per_root_s, 0.0, 10.0)
        _expect("modulator_drift_rad_per_root_s", self.modulator_drift_rad_per_root_s, 0.0, 10.0)
        _expect("clock_offset_ppm", self.clock_offset_ppm, -1000.0, 1000.0)
        _expect("clock_walk_per_root_s", self.clock_walk_per_root_s, 0.0, 1e-6)
        _expect("start_offset_limit_s", self.start_offset_limit_s, 0.0, 1.0)
        _expect("seed", self.seed, 0, 2**63 - 1)
        if self.speed != "max":
            _expect("speed", self.speed, 1e-3, 1e6)

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
