"""Time-to-digital converter that speaks the open device protocol, over serial, TCP or USB."""

import secrets
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Annotated, ClassVar, Final, Literal

import trio
from msgspec import Struct

from qnode.config.description import Described, Limits, Rule, check_limits
from qnode.devices.protocols import DeviceIdentity
from qnode.devices.transport import check_address
from qnode.errors import DeviceError, TransientDeviceError
from qnode.tags.open_protocol import ByteArray, ScannedFrame
from qnode.tags.types import X_CHANNEL, Z_CHANNEL, TagBlock
from qnode.units import PS_PER_S
from qnode_drivers.open_protocol import (
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
from qnode_drivers.open_protocol_tags import TagStream

# Blocks are this long at least, so that their costs do not matter.
BLOCK_S: Final = 0.02
_CHANNEL: Final = Limits(0, 15)
_TICK: Final = range(1, 1 << 16)
_CLOCKS: Final = ("internal", "external")


class OpenTdcConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where the converter is, and which of its inputs have the detectors."""

    address: Annotated[
        str, Described("address of the device: serial:///dev/serial/by-id/..., tcp://HOST:PORT, usb://...")
    ]
    baud: Annotated[int, Described("speed of a serial line", "baud", limits=Limits(9600, 12_000_000))] = (
        3_000_000
    )
    serial_number: Annotated[str, Described("serial number that the device must have; empty: any")] = ""
    z_input: Annotated[int, Described("input of the Z detector", "number", limits=_CHANNEL)] = 0
    x_input: Annotated[int, Described("input of the X detector", "number", limits=_CHANNEL)] = 1
    thresholds_v: Annotated[
        tuple[float, float] | None,
        Described(
            "threshold of both inputs, Z first; default: as the device has it",
            limits=Rule("two voltages from -5 to 5", lambda pair: all(-5.0 <= one <= 5.0 for one in pair)),
        ),
    ] = None
    clock: Annotated[
        Literal["internal", "external"] | None,
        Described("reference of the device's clock; default: as the device has it"),
    ] = None

    def __post_init__(self) -> None:
        check_limits(self)
        check_address(self.address, "serial", "tcp", "usb")
        if self.z_input == self.x_input:
            raise ValueError(f"z_input, x_input: expected two different inputs, got {self.z_input} for both")


class OpenTdc:
    """A time-to-digital converter; it counts its tags, so that each lost one is known."""

    Config: ClassVar[type[Struct]] = OpenTdcConfig

    def __init__(
        self,
        port: OpenProtocolPort,
        hello: Hello,
        config: OpenTdcConfig,
        tick: tuple[int, int],
        origin_s: float,
    ) -> None:
        self._port = port
        self._identity = DeviceIdentity(hello.model, hello.serial, simulated=hello.simulated)
        self._tick = tick
        self.phase: AnalogueSetting | None = None
        self._origin_s = origin_s
        self._channels = {config.z_input: Z_CHANNEL, config.x_input: X_CHANNEL}
        self._stream: TagStream | None = None
        self._running = False
        self._arrived = trio.Event()
        self._counts = dict[str, float]()
        port.on_data = self._on_data
        port.after_frames = self._after_frames
        port.on_event = self._on_event
        port.on_failure = self._wake

    @classmethod
    @asynccontextmanager
    async def open(cls, config: OpenTdcConfig) -> AsyncIterator["OpenTdc"]:
        """Open and configure the device; tags come once they are asked for.

        Raises:
            DeviceError: it is another device, or it refuses a setting.
        """
        async with open_port(config.address, config.baud, DeviceKind.TDC, config.serial_number) as (
            port,
            hello,
        ):
            tick = await _configure(port, config)
            position, at_s = await port.now(times=5)
            phase = await AnalogueSetting.find(port, Parameter.PHASE_MICRORADIAN, "phase_rad")
            kind = cls if phase is None else TdcWithPhase
            device = kind(port, hello, config, tick, at_s - _seconds(position.position, tick))
            device.phase = phase
            with single_errors():
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(poll, port, device._note)
                    yield device
                    nursery.cancel_scope.cancel()

    @property
    def identity(self) -> DeviceIdentity:
        """The identity that the device reports."""
        return self._identity

    @property
    def paced(self) -> bool:
        """True: tags come at their own rate."""
        return True

    @property
    def origin_s(self) -> float:
        """Unix time at tag time zero, as exact as half a round trip to the device."""
        return self._origin_s

    async def tags(self) -> AsyncGenerator[TagBlock, None]:
        """Start the stream and yield its blocks; it is stopped when the generator is closed.

        Raises:
            TransientDeviceError: the device counts or times anew, or is silent.
            DeviceGone: it was unplugged.
        """
        epoch = secrets.randbits(32)
        self._stream = TagStream(epoch, self._tick, self._channels)  # its first tags come with the answer
        try:
            await self._port.start(epoch)
            self._running = self._port.gathers = True
            while True:
                await self._arrived.wait()
                self._port.check()
                await trio.sleep(BLOCK_S)  # what comes in this time belongs to one block
                self._arrived = trio.Event()
                for block in self._stream.take():
                    yield block
                self._port.check()
        finally:
            self._stream, self._running, self._port.gathers = None, False, False
            with trio.move_on_after(1.0, shield=True), suppress(DeviceError):
                await self._port.ask(Kind.STOP)

    async def readings(self) -> dict[str, float]:
        """Return what the device measures, and what was wrong with the bytes that it sent."""
        readings = readings_of(read_entries(await self._port.ask(Kind.HEALTH)))
        return readings | self._port.counts() | self._counts

    def _on_data(self, data: ByteArray, one: ScannedFrame) -> None:
        if self._stream is not None and one.kind == Kind.TAGS and self._port.failure is None:
            self._stream.feed(data, one)

    def _after_frames(self) -> None:
        """Say that something has come."""
        if self._stream is not None:
            self._counts = self._stream.counts()
            self._arrived.set()

    def _wake(self) -> None:
        self._arrived.set()

    def _note(self, position: Position, _at_s: float) -> None:
        """Compare the device's epoch with that of the stream.

        Raises:
            TransientDeviceError: it began again, or stopped.
        """
        if not self._running or self._stream is None:
            return
        if position.epoch != self._stream.epoch or not position.running:
            raise TransientDeviceError("the device has begun to count anew or has stopped")

    def _on_event(self, event: Event) -> None:
        what = "began to count anew" if event.code == EventCode.BEGAN_AGAIN else "stopped by itself"
        if self._stream is not None:
            self._port.fail(TransientDeviceError(f"the device {what}: {event.text}"))


class TdcWithPhase(OpenTdc):
    """A converter that also sets the phase of the interferometer: `PhaseControl`."""

    @property
    def phase_limits_rad(self) -> tuple[float, float]:
        """The least and the most phase."""
        assert self.phase is not None
        return self.phase.limits

    async def phase_rad(self) -> float:
        """Return the phase that is set."""
        assert self.phase is not None
        return await self.phase.read()

    async def set_phase_rad(self, phase_rad: float) -> None:
        """Set the phase.

        Raises:
            DeviceError: outside its limits, or it reads back differently.
        """
        assert self.phase is not None
        await self.phase.set(phase_rad)


def _seconds(ticks: int, tick: tuple[int, int]) -> float:
    return ticks * tick[0] / tick[1] / PS_PER_S


async def _configure(port: OpenProtocolPort, config: OpenTdcConfig) -> tuple[int, int]:
    """Set inputs, thresholds and clock; return the tick.

    Raises:
        DeviceError: the device refuses, or has no sensible tick.
    """
    values = await port.get((Parameter.TICK_NUMERATOR, 0), (Parameter.TICK_DENOMINATOR, 0))
    numerator, denominator = (
        values.get((name, 0), 0) for name in (Parameter.TICK_NUMERATOR, Parameter.TICK_DENOMINATOR)
    )
    if numerator not in _TICK or denominator not in _TICK:
        raise DeviceError(
            f"the tick of the device is {numerator}/{denominator} ps, expected numbers from 1 to {_TICK[-1]}"
        )
    settings = [Entry(Parameter.CHANNELS, 0, 1 << config.z_input | 1 << config.x_input)]
    if config.clock is not None:
        settings.append(Entry(Parameter.CLOCK_SOURCE, 0, _CLOCKS.index(config.clock)))
    await port.set(*settings)
    if config.thresholds_v is not None:
        await port.set(
            *(
                Entry(Parameter.THRESHOLD_MICROVOLT, number, round(threshold_v * 1e6))
                for number, threshold_v in zip(
                    (config.z_input, config.x_input), config.thresholds_v, strict=True
                )
            ),
            most_apart=5000,
        )
    return numerator, denominator
