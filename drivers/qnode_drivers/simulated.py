"""Simulated hardware: a transmitter and a time tagger, connected by a simulated fibre.

``fibre`` in their tables is its address: the path of a private Unix socket, or ``tcp://HOST:PORT`` for a
trial on two hosts (without host: this machine). At Alice, ``fibre_peer`` is the address or network from which
Bob's end may connect; by default only this machine. TCP is not encrypted: a warning and the status state
this.

Simulated keys protect nothing: both devices declare themselves simulated.
"""

import math
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, ClassVar

from msgspec import Struct

from qnode.config import LinkParameters, ReceiverParameters, SourceParameters
from qnode.config.description import FRACTION, Described, check_limits
from qnode.devices.capabilities import DetectorState
from qnode.devices.protocols import DeviceIdentity, EmissionRun
from qnode.errors import DeviceError
from qnode.simulate.drift import laser_power
from qnode.simulate.fibre_address import FibreAddress, fibre_at
from qnode.simulate.parameters import Change, DetectorParameters, SimulationParameters
from qnode.simulate.tdc import ReceiverEnd, open_receiver
from qnode.simulate.transmitter import TransmitterEnd, open_transmitter
from qnode.tags.types import X_CHANNEL, Z_CHANNEL, Codes, Slots, TagBlock
from qnode.units import transmission

# The power at Alice's monitor when the intensities are the nominal ones.
NOMINAL_POWER_W = 1e-6
# The temperature of the simulated detectors' diodes.
TEMPERATURE_K = 223.0


class TransmitterConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Alice's simulated source. The tables `source` and `simulation` are the same as on Bob's side."""

    fibre: Annotated[
        str,
        Described(
            "address of the simulated fibre: the path of a socket, or tcp://HOST:PORT with Alice's address"
        ),
    ]
    fibre_peer: Annotated[
        str | None,
        Described(
            "with tcp: the address or network from which Bob's end may connect; default: this machine only"
        ),
    ] = None
    source: SourceParameters = SourceParameters()
    simulation: SimulationParameters = SimulationParameters()

    def __post_init__(self) -> None:
        fibre_at(self.fibre, self.fibre_peer)


class TdcConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Bob's simulated detectors and time tagger. The tables are the same as on Alice's side."""

    fibre: Annotated[str, Described("the same address as at Alice")]
    source: SourceParameters = SourceParameters()
    receiver_p_z: Annotated[float, Described("as `link.receiver.p_z`", "fraction", limits=FRACTION)] = 0.5
    simulation: SimulationParameters = SimulationParameters()

    def __post_init__(self) -> None:
        check_limits(self)
        fibre_at(self.fibre)


def _serial(simulation: SimulationParameters, fibre: FibreAddress) -> str:
    """Return the properties of one simulated device, and whether others can read its fibre."""
    return f"seed-{simulation.seed}" + (" fibre in the clear" if fibre.in_the_clear else "")


def _limited(what: str, value: float, limits: tuple[float, float], unit: str) -> float:
    """Return a setting within its limits. Raises DeviceError outside, also for nan."""
    if not limits[0] <= value <= limits[1]:
        raise DeviceError(f"{what} {value:g} {unit}: expected {limits[0]:g} to {limits[1]:g}")
    return value


class SimulatedTransmitter:
    """Alice's qubit source, and Alice's end of the simulated fibre.

    It has a power monitor, and the bias of the modulator that makes the bins.
    """

    Config: ClassVar[type[Struct]] = TransmitterConfig
    bias_limits_v = (-10.0, 10.0)

    def __init__(self, end: TransmitterEnd, simulation: SimulationParameters, serial: str) -> None:
        self._end = end
        self._simulation = simulation
        self._identity = DeviceIdentity("simulated transmitter", serial, simulated=True)

    @classmethod
    @asynccontextmanager
    async def open(cls, config: TransmitterConfig) -> AsyncIterator["SimulatedTransmitter"]:
        """Begin a run and listen for the receiver; at the end the light is switched off.

        Raises:
            DeviceError: the socket's folder is open to others, or another transmitter uses the address.
        """
        fibre = fibre_at(config.fibre, config.fibre_peer)
        async with open_transmitter(fibre, config.simulation, config.source) as end:
            yield cls(end, config.simulation, _serial(config.simulation, fibre))

    @property
    def identity(self) -> DeviceIdentity:
        """The identity that the device reports."""
        return self._identity

    def runs(self) -> AsyncGenerator[EmissionRun, None]:
        """Yield the present emission run, then each later one."""
        return self._end.runs()

    def symbols(self, run_id: int, slots: Slots) -> Codes:
        """Return the symbols sent in ``slots``; `UNKNOWN_SYMBOL` for other runs than the present one."""
        return self._end.symbols(run_id, slots)

    async def change(self, change: Change) -> None:
        """Change laser, fibre or Eve, from the first slot on that the receiver has not yet generated."""
        await self._end.change(change)

    async def power_w(self) -> float:
        """Return the power before the fixed attenuation to single photons."""
        settings = self._end.in_force
        power_w = NOMINAL_POWER_W * laser_power(self._simulation.drift, self._end.world_s)
        return power_w * transmission(settings.source_attenuation_db) if settings.source_on else 0.0

    async def bias_v(self) -> float:
        """Return the bias of the modulator."""
        half_wave_v = self._simulation.modulator_half_wave_v
        return self._end.changed.modulator_bias_rad * half_wave_v / math.pi

    async def set_bias_v(self, bias_v: float) -> None:
        """Set the bias of the modulator.

        Raises:
            DeviceError: outside its limits.
        """
        bias_v = _limited("bias", bias_v, self.bias_limits_v, "V")
        await self.change(
            Change(modulator_bias_rad=math.pi * bias_v / self._simulation.modulator_half_wave_v)
        )


class SimulatedTdc:
    """Bob's time-to-digital converter, with the interferometer, the detectors and the fibre before it."""

    Config: ClassVar[type[Struct]] = TdcConfig
    phase_limits_rad = (-4.0, 4.0)
    detector_channels = (Z_CHANNEL, X_CHANNEL)

    def __init__(self, end: ReceiverEnd, simulation: SimulationParameters, serial: str) -> None:
        self._end = end
        self._simulation = simulation
        self._identity = DeviceIdentity("simulated TDC", serial, simulated=True)

    @classmethod
    @asynccontextmanager
    async def open(cls, config: TdcConfig) -> AsyncIterator["SimulatedTdc"]:
        """Start at tag time zero and follow the transmitter, even if it starts later."""
        link = LinkParameters(source=config.source, receiver=ReceiverParameters(p_z=config.receiver_p_z))
        fibre = fibre_at(config.fibre)
        async with open_receiver(fibre, config.simulation, link) as end:
            yield cls(end, config.simulation, _serial(config.simulation, fibre))

    @property
    def identity(self) -> DeviceIdentity:
        """The identity that the device reports."""
        return self._identity

    @property
    def paced(self) -> bool:
        """True at real time only."""
        return self._end.paced

    @property
    def origin_s(self) -> float:
        """Bob's wall-clock time at tag time zero."""
        return self._end.origin_s

    def tags(self) -> AsyncGenerator[TagBlock, None]:
        """Yield tag blocks of at most 32 seconds and 2^20 tags."""
        return self._end.tags()

    async def phase_rad(self) -> float:
        """Return what was set of the interferometer's phase."""
        return self._end.phase_rad

    async def set_phase_rad(self, phase_rad: float) -> None:
        """Set the interferometer's phase, from the first tags on that are not yet generated.

        Raises:
            DeviceError: outside its limits.
        """
        self._end.set_phase(_limited("phase", phase_rad, self.phase_limits_rad, "rad"))

    async def detector_state(self, channel: int) -> DetectorState:
        """Return the dead time, and the constant temperature of the simulation.

        Raises:
            DeviceError: there is no such detector.
        """
        return DetectorState(dead_time_s=self._detector(channel).dead_time_s, temperature_k=TEMPERATURE_K)

    async def set_detector(self, channel: int, wanted: DetectorState) -> None:
        """Accept what the detector has; a simulated detector cannot be set to anything else.

        Raises:
            DeviceError: there is no such detector, or ``wanted`` is not what it has.
        """
        state = await self.detector_state(channel)
        for name in wanted.__struct_fields__:
            value = getattr(wanted, name)
            if value is not None and value != getattr(state, name):
                raise DeviceError(f"{name} {value:g}: the simulated detectors cannot be set")

    def _detector(self, channel: int) -> DetectorParameters:
        if channel not in self.detector_channels:
            raise DeviceError(f"no detector of channel {channel}")
        return self._simulation.z_detector if channel == Z_CHANNEL else self._simulation.x_detector
