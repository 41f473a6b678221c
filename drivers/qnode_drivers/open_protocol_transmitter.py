"""Transmitter that speaks the open device protocol (docs/device-protocol.md), over serial, TCP or USB."""

import math
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, ClassVar, Final, NamedTuple

import numpy as np
import trio
from msgspec import Struct

from qnode.config.description import FRACTION, Described, Limits, Rule, check_limits
from qnode.devices.capabilities import LaserState, PulsePattern
from qnode.devices.protocols import DeviceIdentity, EmissionRun
from qnode.devices.transport import check_address
from qnode.errors import DeviceError, DeviceGone, TransientDeviceError
from qnode.tags.types import UNKNOWN_SYMBOL, Codes, Slots
from qnode_drivers.open_protocol import (
    FRACTION_ONE,
    DeviceKind,
    Entry,
    Event,
    EventCode,
    Hello,
    Kind,
    Parameter,
    Position,
    read_entries,
    readings_of,
)
from qnode_drivers.open_protocol_analogue import AnalogueSetting
from qnode_drivers.open_protocol_port import OpenProtocolPort, open_port, poll, single_errors
from qnode_drivers.open_protocol_symbols import SymbolReader

_SHORTEST_RECORD_S: Final = 1.0
_MOST_FRACTION_APART: Final = FRACTION_ONE // 10_000
_SAME_FRACTIONS: Final = Rule(
    "fractions that sum to 1", lambda p: abs(sum(p) - 1.0) <= 1e-6 and all(0.0 < one <= 1.0 for one in p)
)
_LEVELS: Final = Rule("fractions of full scale", lambda levels: all(0.0 <= one <= 1.0 for one in levels))


class OpenTransmitterConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where the transmitter is, and the pattern that it sends. The pattern is that of `[link.source]`."""

    address: Annotated[
        str, Described("address of the device: serial:///dev/serial/by-id/..., tcp://HOST:PORT, usb://...")
    ]
    baud: Annotated[int, Described("speed of a serial line", "baud", limits=Limits(9600, 12_000_000))] = (
        3_000_000
    )
    serial_number: Annotated[str, Described("serial number that the device must have; empty: any")] = ""
    qubit_rate_hz: Annotated[
        float, Described("qubits per second, as in `[link.source]`", limits=Limits(1e3, 1e11))
    ] = 600e6
    bin_spacing_ps: Annotated[
        int, Described("time from the early to the late bin", limits=Limits(1, 1_000_000))
    ] = 800
    p_z: Annotated[float, Described("probability of a Z state", "probability", limits=FRACTION)] = 0.5
    p: Annotated[
        tuple[float, ...],
        Described("probability of each intensity, signal first", "probability", limits=_SAME_FRACTIONS),
    ] = (0.7, 0.3)
    levels: Annotated[
        tuple[float, ...],
        Described("drive of each intensity as a fraction of full scale", "fraction", limits=_LEVELS),
    ] = (1.0, 0.4)
    start: Annotated[
        bool,
        Described(
            "switch the laser on and start the emission as soon as the node uses the device; false: somebody "
            "does both by hand"
        ),
    ] = True

    def __post_init__(self) -> None:
        check_limits(self)
        check_address(self.address, "serial", "tcp", "usb")
        _check_pattern(self.pattern)

    @property
    def pattern(self) -> PulsePattern:
        """The pattern to send."""
        return PulsePattern(
            qubit_rate_hz=self.qubit_rate_hz,
            bin_spacing_ps=self.bin_spacing_ps,
            p_z=self.p_z,
            probabilities=self.p,
            levels=self.levels,
        )


def _check_pattern(pattern: PulsePattern) -> None:
    """Refuse a pattern that no device can send.

    Raises:
        ValueError: naming what is wrong.
    """
    if not len(pattern.probabilities) == len(pattern.levels) == 2:
        raise ValueError("p, levels: expected two of each, those of signal and decoy")
    numbers = (pattern.qubit_rate_hz, pattern.p_z, *pattern.probabilities, *pattern.levels)
    if not all(math.isfinite(number) and number >= 0.0 for number in numbers):
        raise ValueError("expected finite figures, none negative")
    if not 0 < pattern.bin_spacing_ps * pattern.qubit_rate_hz < 1e12:
        raise ValueError(
            f"bin_spacing_ps: expected less than the slot, {1e12 / pattern.qubit_rate_hz:g} ps, got "
            f"{pattern.bin_spacing_ps}"
        )
    if not (0.0 < pattern.p_z < 1.0 and _SAME_FRACTIONS.holds(pattern.probabilities)):
        raise ValueError("p_z, p: expected probabilities, those of the intensities with sum 1")
    if not _LEVELS.holds(pattern.levels):
        raise ValueError("levels: expected fractions of full scale")


class _Present(NamedTuple):
    """The device's number of the present emission, and the node's."""

    epoch: int
    run: EmissionRun


class OpenTransmitter:
    """A transmitter with its record of symbols in a ring of its own, from which it looks them up."""

    Config: ClassVar[type[Struct]] = OpenTransmitterConfig

    def __init__(self, port: OpenProtocolPort, hello: Hello, config: OpenTransmitterConfig) -> None:
        self._port = port
        self._config = config
        self._identity = DeviceIdentity(hello.model, hello.serial, simulated=hello.simulated)
        self._reader = SymbolReader(port, hello.window)
        self._present: _Present | None = None
        self._rate_hz = config.qubit_rate_hz
        self.bias: AnalogueSetting | None = None
        self._changed = trio.Event()
        port.on_event = self._on_event
        wake = port.on_failure

        def failed() -> None:
            wake()
            self._changed.set()

        port.on_failure = failed

    @classmethod
    @asynccontextmanager
    async def open(cls, config: OpenTransmitterConfig) -> AsyncIterator["OpenTransmitter"]:
        """Open the device with the laser off and the pattern set; left, the laser is off again.

        Raises:
            DeviceError: it is another device, it refuses the pattern, or its record is too short.
        """
        async with open_port(config.address, config.baud, DeviceKind.TRANSMITTER, config.serial_number) as (
            port,
            hello,
        ):
            bias = await AnalogueSetting.find(port, Parameter.BIAS_MICROVOLT, "bias_v")
            has_monitor = bool(await port.get((Parameter.POWER_FEMTOWATT, 0)))
            device = _KINDS[bias is not None, has_monitor](port, hello, config)
            device.bias = bias
            await device.set_pattern(config.pattern)
            await device._check_ring()
            with single_errors():
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(poll, port, device._note)
                    yield device
                    nursery.cancel_scope.cancel()

    @property
    def identity(self) -> DeviceIdentity:
        """The identity that the device reports."""
        return self._identity

    async def runs(self) -> AsyncGenerator[EmissionRun, None]:
        """Switch the light on if the configuration says so, and yield the runs."""
        if self._config.start and self._present is None:
            await self.set_laser(True)
            await self.start_emission()
        told: _Present | None = None
        while True:
            self._changed = trio.Event()
            self._port.check()
            if self._present is not None and self._present is not told:
                told = self._present
                yield told.run
            else:
                await self._changed.wait()

    def symbols(self, run_id: int, slots: Slots) -> Codes:
        """Look the symbols up in the device's ring, from any thread but that of the event loop.

        Raises:
            DeviceError: the device has failed, was closed, or does not answer.
        """
        present = self._present  # at once: another thread may change it
        if present is None or present.run.run_id != run_id or not slots.size:
            return np.full(slots.size, UNKNOWN_SYMBOL, np.uint8)
        try:
            return self._reader.symbols(present.epoch, slots)
        except (trio.RunFinishedError, trio.Cancelled):
            raise DeviceGone("the device was closed during a look-up of symbols") from None

    async def laser_state(self) -> LaserState:
        """Return the state that the laser reports."""
        values = await self._port.get((Parameter.LASER, 0), (Parameter.INTERLOCK, 0))
        interlock = values.get((Parameter.INTERLOCK, 0))
        return LaserState(
            on=values.get((Parameter.LASER, 0)) == 1,
            interlock_closed=None if interlock is None else interlock == 1,
        )

    async def set_laser(self, on: bool) -> None:
        """Switch the laser.

        Raises:
            DeviceError: the device refuses, as with an open interlock.
        """
        await self._port.set(Entry(Parameter.LASER, 0, int(on)))

    async def pattern(self) -> PulsePattern:
        """Return the pattern that the device reports.

        Raises:
            DeviceError: it leaves a part of it out.
        """
        values = await self._port.get(
            (Parameter.QUBIT_RATE_MILLIHERTZ, 0),
            (Parameter.BIN_SPACING_FS, 0),
            (Parameter.P_Z, 0),
            *((name, index) for name in (Parameter.PROBABILITY, Parameter.LEVEL) for index in (0, 1)),
        )
        try:
            return PulsePattern(
                qubit_rate_hz=values[Parameter.QUBIT_RATE_MILLIHERTZ, 0] / 1000,
                bin_spacing_ps=round(values[Parameter.BIN_SPACING_FS, 0] / 1000),
                p_z=values[Parameter.P_Z, 0] / FRACTION_ONE,
                probabilities=tuple(values[Parameter.PROBABILITY, i] / FRACTION_ONE for i in (0, 1)),
                levels=tuple(values[Parameter.LEVEL, i] / FRACTION_ONE for i in (0, 1)),
            )
        except KeyError as missing:
            raise DeviceError(
                f"the device does not report its pattern: setting {missing} is missing"
            ) from None

    async def set_pattern(self, pattern: PulsePattern) -> None:
        """Set the pattern and compare what reads back; the emission must be stopped.

        Raises:
            DeviceError: it is impossible, the device refuses it, or it reads back differently.
        """
        try:
            _check_pattern(pattern)
        except ValueError as error:
            raise DeviceError(f"pattern: {error}") from None
        await self._port.set(
            Entry(Parameter.QUBIT_RATE_MILLIHERTZ, 0, round(pattern.qubit_rate_hz * 1000)),
            Entry(Parameter.BIN_SPACING_FS, 0, 1000 * pattern.bin_spacing_ps),
            most_apart=500,
        )
        self._rate_hz = pattern.qubit_rate_hz
        fractions = [(Parameter.P_Z, 0, pattern.p_z)]
        fractions += [(Parameter.PROBABILITY, i, share) for i, share in enumerate(pattern.probabilities)]
        fractions += [(Parameter.LEVEL, i, level) for i, level in enumerate(pattern.levels)]
        await self._port.set(
            *(Entry(name, index, round(share * FRACTION_ONE)) for name, index, share in fractions),
            most_apart=_MOST_FRACTION_APART,
        )

    async def start_emission(self) -> None:
        """Begin a new emission run with slot 0."""
        await self._port.start(secrets.randbits(32))
        position, at_s = await self._port.now(times=5)
        self._begin(position.epoch, position.position, at_s)

    async def stop_emission(self) -> None:
        """End the emission run."""
        self._present = None
        await self._port.ask(Kind.STOP)

    async def readings(self) -> dict[str, float]:
        """Return what the device measures, and what was wrong with the bytes that it sent."""
        readings = readings_of(read_entries(await self._port.ask(Kind.HEALTH)))
        return readings | self._port.counts()

    async def _check_ring(self) -> None:
        """Check that the record reaches back long enough.

        Raises:
            DeviceError: it does not, or the device does not say.
        """
        values = await self._port.get((Parameter.RING_SLOTS, 0))
        slots = values.get((Parameter.RING_SLOTS, 0), 0)
        if slots < _SHORTEST_RECORD_S * self._rate_hz:
            raise DeviceError(
                f"the record of symbols covers {slots / self._rate_hz:.3f} s, expected "
                f"{_SHORTEST_RECORD_S:g} s or more: give its ring more memory"
            )

    def _note(self, position: Position, at_s: float) -> None:
        """Compare where the device says it is with the present run.

        Raises:
            TransientDeviceError: the emission has stopped by itself.
        """
        if self._present is None:
            return
        if not position.running:
            raise TransientDeviceError("the emission has stopped")
        self._begin(position.epoch, position.position, at_s)

    def _begin(self, epoch: int, position: int, at_s: float) -> None:
        if self._present is not None and self._present.epoch == epoch:
            return
        run = EmissionRun(secrets.randbits(63), at_s - position / self._rate_hz)
        self._present = _Present(epoch, run)
        self._changed.set()

    def _on_event(self, event: Event) -> None:
        if self._present is None:
            return
        if event.code == EventCode.BEGAN_AGAIN:
            self._begin(event.epoch, event.position, time.time())
        else:
            self._port.fail(TransientDeviceError(f"the device stopped by itself: {event.text}"))


class TransmitterWithBias(OpenTransmitter):
    """A transmitter that sets the bias of its modulator: `BiasControl`."""

    @property
    def bias_limits_v(self) -> tuple[float, float]:
        """The least and the most bias voltage."""
        assert self.bias is not None
        return self.bias.limits

    async def bias_v(self) -> float:
        """Return the present bias voltage."""
        assert self.bias is not None
        return await self.bias.read()

    async def set_bias_v(self, bias_v: float) -> None:
        """Set the bias voltage.

        Raises:
            DeviceError: outside its limits, or it reads back differently.
        """
        assert self.bias is not None
        await self.bias.set(bias_v)


class TransmitterWithMonitor(OpenTransmitter):
    """A transmitter that measures its light: `PowerMonitor`."""

    async def power_w(self) -> float:
        """Return the optical power.

        Raises:
            DeviceError: the device does not report it any more.
        """
        values = await self._port.get((Parameter.POWER_FEMTOWATT, 0))
        if not values:
            raise DeviceError("the device does not report its optical power")
        return values[Parameter.POWER_FEMTOWATT, 0] * 1e-15


class TransmitterWithBoth(TransmitterWithBias, TransmitterWithMonitor):
    """A transmitter with both."""


_KINDS: Final[dict[tuple[bool, bool], type[OpenTransmitter]]] = {
    (False, False): OpenTransmitter,
    (True, False): TransmitterWithBias,
    (False, True): TransmitterWithMonitor,
    (True, True): TransmitterWithBoth,
}
