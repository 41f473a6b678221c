"""Instruments of the library pymeasure as sensors, attenuators and bias controls, by class and property.

Each instrument lives in a process of its own: a library that hangs or crashes is a dead process, and the
device is opened again.
"""

import functools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, ClassVar, Final

from msgspec import Struct

from qnode.config.description import Described, Limits, check_limits
from qnode.devices.child import FIRST_ANSWER_LIMIT_S, Child, open_child
from qnode.devices.contract import readings_fault
from qnode.devices.protocols import DeviceIdentity
from qnode.devices.scpi import check_identity_text
from qnode.devices.settings import check_plausible, check_within, confirm, figure, kept_safe

LIBRARY: Final = "qnode_drivers.pymeasure_library:PymeasureLibrary"
REMEDY: Final = "install qnode[pymeasure], or set packages to a folder that has it"
LEAVING_S: Final = 2.0  # afterwards the process has 2 s to close

FIGURE: Final = Limits(-1e30, 1e30)


class BridgedReading(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One figure: a property, times ``scale``, plus ``offset``."""

    property: Annotated[str, Described("a property of the class, such as power, or of a channel: voa.power")]
    scale: Annotated[
        float, Described("factor from the library's unit to that of the name", limits=FIGURE)
    ] = 1.0
    offset: Annotated[float, Described("added afterwards, such as 273.15 from °C to K", limits=FIGURE)] = 0.0

    def __post_init__(self) -> None:
        check_limits(self)


class BridgedSetting(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A property that is set, and read back."""

    property: Annotated[str, Described("the property that is set")]
    read: Annotated[str, Described("the property that is read back; default: the same")] = ""
    limits: Annotated[
        tuple[float, float], Described("the least and the most, in dB or V", limits="the least first")
    ]
    scale: Annotated[float, Described("the library's figure for 1 dB or 1 V", limits=FIGURE)] = 1.0
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
    packages: Annotated[
        str, Described("a folder of Python packages with pymeasure, searched after the node's own")
    ] = ""
    identity: Annotated[str, Described("a text in the answer to `*IDN?`; another device is refused")] = ""
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
        if self.readings and (fault := readings_fault(dict.fromkeys(self.readings, 1.0))):
            raise ValueError(f"readings: {fault}")
        if not (self.readings or self.attenuation or self.bias):
            raise ValueError("expected readings, attenuation or bias: there is nothing to use")
        if self.attenuation and self.attenuation.limits[0] < 0:
            raise ValueError("attenuation.limits: an attenuation is not negative")


class Bridge:
    """An open instrument; what of it is used follows from the configuration."""

    def __init__(self, device: str, child: Child, config: PymeasureConfig, identity: DeviceIdentity) -> None:
        self._device = device
        self._child = child
        self._config = config
        self.identity = identity

    async def _get(self, path: str) -> float:
        said = await self._child.ask("get", limit_s=self._config.answer_limit_s, path=path)
        return figure(self._device, path, str(said["value"]))

    async def put(self, path: str, value: bool | float | str) -> None:
        """Set a property, without reading it back."""
        await self._child.ask("set", limit_s=self._config.answer_limit_s, path=path, value=value)

    async def _set(self, setting: BridgedSetting, what: str, value: float) -> None:
        check_within(self._device, f"a value of {what}", value, setting.limits)
        await self.put(setting.property, value * setting.scale)
        await confirm(
            self._device,
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
        attenuation_db = await self._read(self._setting)
        return check_plausible(self._device, "an attenuation in dB", attenuation_db, self._setting.limits)

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
        async with open_child(device, LIBRARY, REMEDY) as child:
            answer = await child.ask(
                "open",
                limit_s=FIRST_ANSWER_LIMIT_S,
                instrument=config.instrument,
                resource=config.resource,
                options=config.arguments,
                packages=config.packages,
            )
            said: str = answer["identity"]
            check_identity_text(device, said, config.identity)
            fields = [field.strip() for field in said.split(",")]
            serial = fields[2] if len(fields) > 2 and fields[2] else "unknown"
            kind = bridged(bool(config.readings), config.attenuation is not None, config.bias is not None)
            bridge = kind(device, child, config, DeviceIdentity(" ".join(fields[:2]) or "unknown", serial))

            async def make_safe() -> None:
                if isinstance(bridge, _WithAttenuation):
                    await bridge.set_attenuation_db(bridge.attenuation_limits_db[1])

            async with kept_safe(device, make_safe, leaving_s=LEAVING_S):
                for path, value in config.ready.items():
                    await bridge.put(path, value)
                yield bridge
