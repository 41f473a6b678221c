"""Instruments of the library pymeasure as sensors, attenuators and bias controls, by class and property.

Each instrument lives in a child process: a library that hangs or crashes is a dead child, and the device is
opened again. The child needs no qnode, so ``python`` may be that of an environment with pymeasure alone.
"""

import functools
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final

import msgspec
import trio
from msgspec import Struct

from qnode.config_description import Described, Limits, check_limits
from qnode.devices.contract import readings_fault
from qnode.devices.protocols import DeviceIdentity
from qnode.devices.scpi import check_identity_text
from qnode.devices.settings import check_within, confirm, figure, kept_safe
from qnode.errors import DeviceError, DeviceGone

CHILD: Final = Path(__file__).with_name("pymeasure_child.py")
STARTING_LIMIT_S: Final = 60.0  # importing the library, opening the instrument
ENDING_LIMIT_S: Final = 0.6
LONGEST_LINE: Final = 65536


class BridgedReading(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One figure: a property, times ``scale``, plus ``offset``."""

    property: Annotated[str, Described("a property of the class, such as power, or of a channel: voa.power")]
    scale: Annotated[float, Described("factor from the library's unit to that of the name")] = 1.0
    offset: Annotated[float, Described("added afterwards, such as 273.15 from °C to K")] = 0.0


class BridgedSetting(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A property that is set, and read back."""

    property: Annotated[str, Described("the property that is set")]
    read: Annotated[str, Described("the property that is read back; default: the same")] = ""
    limits: Annotated[tuple[float, float], Described("the least and the most, in dB or V")]
    scale: Annotated[float, Described("the library's figure for 1 dB or 1 V")] = 1.0
    tolerance: Annotated[float, Described("how far it may read back from its value", limits=Limits(0, 1))] = (
        0.05
    )
    settling_s: Annotated[float, Described("the time to reach a setting", limits=Limits(0.1, 60.0))] = 3.0

    def __post_init__(self) -> None:
        check_limits(self)
        if not self.limits[0] < self.limits[1] or not self.scale:
            raise ValueError(f"limits: expected two figures, the least first, got {list(self.limits)}")


class PymeasureConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which class drives which instrument, and what of it is used."""

    instrument: Annotated[
        str, Described("module:Class, such as pymeasure.instruments.thorlabs:ThorlabsPM100USB")
    ]
    resource: Annotated[str, Described("what PyVISA calls the instrument, such as TCPIP::HOST::5025::SOCKET")]
    arguments: Annotated[
        dict[str, bool | int | float | str], Described("further arguments of the class, such as visa_library")
    ] = {}
    python: Annotated[
        str, Described("a Python that has pymeasure installed; default: the one that runs the node")
    ] = ""
    identity: Annotated[str, Described("a text in the answer to *IDN?; another device is refused")] = ""
    ready: Annotated[
        dict[str, bool | int | float | str], Described("properties that are set when it is opened, by name")
    ] = {}
    answer_limit_s: Annotated[float, Described("the time for one answer", limits=Limits(0.1, 60.0))] = 5.0
    readings: Annotated[dict[str, BridgedReading], Described("figures by name with the unit at the end")] = {}
    attenuation: Annotated[BridgedSetting | None, Described("what sets the attenuation in dB")] = None
    bias: Annotated[BridgedSetting | None, Described("what sets the bias in V")] = None

    def __post_init__(self) -> None:
        check_limits(self)
        module, _, name = self.instrument.partition(":")
        if not name.isidentifier() or not all(part.isidentifier() for part in module.split(".")):
            raise ValueError(f"instrument: expected module:Class, got {self.instrument!r}")
        if self.readings and (fault := readings_fault(dict.fromkeys(self.readings, 0.0))):
            raise ValueError(f"readings: {fault}")
        if not (self.readings or self.attenuation or self.bias):
            raise ValueError("expected readings, attenuation or bias: there is nothing to use")
        if self.attenuation and self.attenuation.limits[0] < 0:
            raise ValueError("attenuation.limits: an attenuation is not negative")


class Child:
    """The process of one instrument: a question and its answer at a time."""

    def __init__(self, device: str, process: trio.Process, answer_limit_s: float) -> None:
        self.device = device
        self._process = process
        self._answer_limit_s = answer_limit_s
        self._lock = trio.Lock()
        self._number = 0
        self._pending = b""

    async def ask(self, limit_s: float | None = None, **request: Any) -> Any:
        """Return the answer to a request.

        Raises:
            DeviceGone: the process has ended, or hung and was ended.
            DeviceError: the library raised an error.
        """
        async with self._lock:
            limit_s = self._answer_limit_s if limit_s is None else limit_s
            if self._process.returncode is not None:
                raise DeviceGone(f"{self.device}: its process has ended")
            self._number += 1
            with trio.move_on_after(limit_s) as scope:
                said = await self._exchange({**request, "number": self._number})
            if scope.cancelled_caught:
                self._process.kill()
                await self._process.wait()
                raise DeviceGone(f"{self.device}: the library hung for {limit_s:g} s, its process was ended")
        if "error" in said:
            raise DeviceError(f"{self.device}: {request.get('path', 'opening')}: {said['error']}")
        return said["value"]

    async def _exchange(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            await self._process.stdin.send_all(msgspec.json.encode(request) + b"\n")
            while True:
                line, end, rest = self._pending.partition(b"\n")
                if not end:
                    data = await self._process.stdout.receive_some()
                    self._pending += data
                    if not data or len(self._pending) > LONGEST_LINE:
                        break
                    continue
                self._pending = rest
                said: dict[str, Any] = msgspec.json.decode(line)
                if said["number"] == request["number"]:  # an earlier one was cancelled
                    return said
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        raise DeviceGone(f"{self.device}: its process has ended, the journal has its last words")


class Bridge:
    """An open instrument; what of it is used follows from the configuration."""

    def __init__(self, child: Child, config: PymeasureConfig, identity: DeviceIdentity) -> None:
        self._child = child
        self._config = config
        self.identity = identity

    async def _get(self, path: str) -> float:
        return figure(self._child.device, path, str(await self._child.ask(path=path)))

    async def _set(self, setting: BridgedSetting, what: str, value: float) -> None:
        check_within(self._child.device, f"a value of {what}", value, setting.limits)
        await self._child.ask(path=setting.property, value=value * setting.scale)
        await confirm(
            self._child.device,
            what,
            value,
            functools.partial(self._read, setting),
            near=setting.tolerance,
            limit_s=setting.settling_s,
        )

    async def _read(self, setting: BridgedSetting) -> float:
        return await self._get(setting.read or setting.property) / setting.scale


class _WithReadings(Bridge):
    async def readings(self) -> dict[str, float]:
        """Return the figures of the configuration."""
        return {
            name: await self._get(one.property) * one.scale + one.offset
            for name, one in self._config.readings.items()
        }


class _WithAttenuation(Bridge):
    @property
    def _setting(self) -> BridgedSetting:
        assert self._config.attenuation is not None
        return self._config.attenuation

    @property
    def attenuation_limits_db(self) -> tuple[float, float]:
        """The least and the most attenuation."""
        return self._setting.limits

    async def attenuation_db(self) -> float:
        """Return the attenuation that is read."""
        return await self._read(self._setting)

    async def set_attenuation_db(self, attenuation_db: float) -> None:
        """Set the attenuation; returns when it reads back."""
        await self._set(self._setting, "attenuation_db", attenuation_db)


class _WithBias(Bridge):
    @property
    def _bias(self) -> BridgedSetting:
        assert self._config.bias is not None
        return self._config.bias

    @property
    def bias_limits_v(self) -> tuple[float, float]:
        """The least and the most bias voltage."""
        return self._bias.limits

    async def bias_v(self) -> float:
        """Return the bias that is read."""
        return await self._read(self._bias)

    async def set_bias_v(self, bias_v: float) -> None:
        """Set the bias; returns when it reads back."""
        await self._set(self._bias, "bias_v", bias_v)


@functools.cache
def bridged(readings: bool, attenuation: bool, bias: bool) -> type[Bridge]:
    """Return the class of a device with these capabilities."""
    parts = ((_WithReadings, readings), (_WithAttenuation, attenuation), (_WithBias, bias))
    return type("BridgedInstrument", tuple(part for part, wanted in parts if wanted), {})


class PymeasureInstrument:
    """The driver; its devices have the capabilities that their configuration names."""

    Config: ClassVar[type[Struct]] = PymeasureConfig

    @classmethod
    @asynccontextmanager
    async def open(cls, config: PymeasureConfig) -> AsyncIterator[Bridge]:
        """Start the process, open the instrument in it, and set an attenuator to its most.

        Raises:
            DeviceError: the class cannot be imported, or does not open the instrument.
        """
        device = f"{config.instrument.partition(':')[2]} at {config.resource}"
        async with _process(config, device) as child:
            said = await child.ask(
                STARTING_LIMIT_S,
                instrument=config.instrument,
                resource=config.resource,
                arguments=config.arguments,
            )
            check_identity_text(device, said, config.identity)
            fields = [field.strip() for field in said.split(",")]
            serial = fields[2] if len(fields) > 2 and fields[2] else "unknown"
            kind = bridged(bool(config.readings), config.attenuation is not None, config.bias is not None)
            bridge = kind(child, config, DeviceIdentity(" ".join(fields[:2]) or "unknown", serial))

            async def make_safe() -> None:
                if isinstance(bridge, _WithAttenuation):
                    await bridge.set_attenuation_db(bridge.attenuation_limits_db[1])

            async with kept_safe(device, make_safe):
                for path, value in config.ready.items():
                    await child.ask(path=path, value=value)
                yield bridge


@asynccontextmanager
async def _process(config: PymeasureConfig, device: str) -> AsyncIterator[Child]:
    try:
        process = await trio.lowlevel.open_process(
            [config.python or sys.executable, str(CHILD)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
    except OSError as error:
        raise DeviceError(
            f"{device}: cannot start {config.python or sys.executable}: {error.strerror}"
        ) from error
    assert process.stdin is not None
    try:
        yield Child(device, process, config.answer_limit_s)
    finally:
        with trio.CancelScope(shield=True):
            await process.stdin.aclose()
            with trio.move_on_after(ENDING_LIMIT_S):
                await process.wait()
            if process.returncode is None:
                process.kill()
                await process.wait()
            if process.stdout is not None:
                await process.stdout.aclose()
