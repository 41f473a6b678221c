"""What a device can do beside sending qubits and yielding tags: capabilities, recognised by their methods.

A device may have several. Every name says its unit. Each setter returns when the device has confirmed the
value that it reads back; it raises `DeviceError` for a value outside the device's limits, and for one that
reads back differently.
"""

from typing import Literal, Protocol, runtime_checkable

from msgspec import Struct

from qnode.devices.protocols import Device


class LaserState(Struct, frozen=True):
    """Whether the laser emits; ``interlock_closed`` is None where there is no interlock."""

    on: bool
    interlock_closed: bool | None = None


@runtime_checkable
class Laser(Device, Protocol):
    """A laser that can be switched; `open()` switches it off first, and so does leaving it."""

    async def laser_state(self) -> LaserState:
        """Return the state that the laser reports."""
        ...

    async def set_laser(self, on: bool) -> None:
        """Switch the laser.

        Raises:
            DeviceError: the interlock is open, or the laser reports another state.
        """
        ...


@runtime_checkable
class VariableAttenuator(Device, Protocol):
    """An optical attenuator; `open()` sets the maximum first, and so does leaving it."""

    @property
    def attenuation_limits_db(self) -> tuple[float, float]:
        """The least and the most attenuation."""
        ...

    async def attenuation_db(self) -> float:
        """Return the present attenuation."""
        ...

    async def set_attenuation_db(self, attenuation_db: float) -> None:
        """Set the attenuation; returns when it is reached."""
        ...


@runtime_checkable
class BiasControl(Device, Protocol):
    """The bias voltage of an intensity modulator."""

    @property
    def bias_limits_v(self) -> tuple[float, float]:
        """The least and the most bias voltage."""
        ...

    async def bias_v(self) -> float:
        """Return the present bias voltage."""
        ...

    async def set_bias_v(self, bias_v: float) -> None:
        """Set the bias voltage; a device that holds a point by itself stops doing so."""
        ...


BiasPoint = Literal["quadrature_rising", "quadrature_falling", "maximum", "minimum", "manual"]


@runtime_checkable
class BiasLock(Device, Protocol):
    """A controller that holds a modulator at a point of its curve by itself."""

    async def bias_point(self) -> BiasPoint:
        """Return the point that is held."""
        ...

    async def set_bias_point(self, point: BiasPoint) -> None:
        """Hold ``point`` from now on; `manual` holds the present voltage."""
        ...


@runtime_checkable
class PowerMonitor(Device, Protocol):
    """A photodiode or power meter."""

    async def power_w(self) -> float:
        """Return the optical power; a calibrated zero may read slightly negative."""
        ...


class DetectorState(Struct, frozen=True, kw_only=True):
    """What a single-photon detector reports; None where it does not."""

    bias_v: float | None = None
    dead_time_s: float | None = None
    temperature_k: float | None = None
    photocurrent_a: float | None = None


@runtime_checkable
class DetectorControl(Device, Protocol):
    """One or more single-photon detectors, by tag channel (`Z_CHANNEL`, `X_CHANNEL`)."""

    @property
    def detector_channels(self) -> tuple[int, ...]:
        """The tag channels whose detectors this device controls."""
        ...

    async def detector_state(self, channel: int) -> DetectorState:
        """Return what the detector of ``channel`` reports."""
        ...

    async def set_detector(self, channel: int, wanted: DetectorState) -> None:
        """Set what is not None in ``wanted``; a photocurrent cannot be set.

        Raises:
            DeviceError: a value outside its limits, or one that this detector cannot set.
        """
        ...


@runtime_checkable
class PhaseControl(Device, Protocol):
    """The phase of the interferometer, by heater, piezo or modulator."""

    @property
    def phase_limits_rad(self) -> tuple[float, float]:
        """The least and the most phase; at least 2 π apart."""
        ...

    async def phase_rad(self) -> float:
        """Return the phase that is set."""
        ...

    async def set_phase_rad(self, phase_rad: float) -> None:
        """Set the phase."""
        ...


@runtime_checkable
class RandomSource(Device, Protocol):
    """A physical generator of random bits."""

    async def random_bytes(self, number: int) -> bytes:
        """Return ``number`` fresh bytes as the generator makes them, before any conditioning if it can.

        They are key material: a driver never logs or keeps them.
        """
        ...


class PulsePattern(Struct, frozen=True, kw_only=True):
    """What a transmitter sends: rate and shape of its qubits, and how it chooses symbols.

    ``probabilities``: of the intensities, signal first, sum 1; ``p_z``: of a Z state; ``levels``: the drive
    of each intensity, a fraction of full scale (the mean photon number follows from the attenuator).
    """

    qubit_rate_hz: float
    bin_spacing_ps: int
    p_z: float
    probabilities: tuple[float, ...]
    levels: tuple[float, ...]


@runtime_checkable
class PatternControl(Device, Protocol):
    """A transmitter whose pattern can be chosen, and whose emission can be started and stopped."""

    async def pattern(self) -> PulsePattern:
        """Return the pattern that the device reports."""
        ...

    async def set_pattern(self, pattern: PulsePattern) -> None:
        """Set the pattern; the emission must be stopped."""
        ...

    async def start_emission(self) -> None:
        """Begin a new emission run with slot 0."""
        ...

    async def stop_emission(self) -> None:
        """End the emission run."""
        ...


CAPABILITIES: tuple[type, ...] = (
    Laser,
    VariableAttenuator,
    BiasControl,
    BiasLock,
    PowerMonitor,
    DetectorControl,
    PhaseControl,
    RandomSource,
    PatternControl,
)
"""Every capability of this module; those of the data path are in `qnode.devices.protocols`."""


def capabilities_of(device: object) -> tuple[str, ...]:
    """Return the names of the capabilities of this module that ``device`` has."""
    return tuple(one.__name__ for one in CAPABILITIES if isinstance(device, one))
