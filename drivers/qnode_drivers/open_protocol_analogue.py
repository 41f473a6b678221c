"""Voltages and phases that a device of the open protocol sets, if it has a converter for them."""

from typing import Final

from qnode.devices.settings import check_within
from qnode.errors import DeviceError
from qnode_drivers.open_protocol import Entry, Parameter
from qnode_drivers.open_protocol_port import OpenProtocolPort

_MICRO: Final = 1e-6
_VALUE, _LEAST, _MOST = range(3)


class AnalogueSetting:
    """One setting with its limits, in volts or radians; on the wire in millionths.

    ``what``: its name, which ends with the unit.
    """

    def __init__(
        self, port: OpenProtocolPort, name: Parameter, what: str, limits: tuple[float, float], step: float
    ) -> None:
        self._port = port
        self._name = name
        self._what = what
        self._most_apart = max(1, round(step / _MICRO))
        self.limits = limits

    @classmethod
    async def find(cls, port: OpenProtocolPort, name: Parameter, what: str) -> "AnalogueSetting | None":
        """Return the setting; None if the device has none of this name.

        Raises:
            DeviceError: its limits make no sense.
        """
        values = await port.get(*((name, number) for number in (_VALUE, _LEAST, _MOST)))
        if (name, _VALUE) not in values:
            return None
        least, most = (values.get((name, number), 0) * _MICRO for number in (_LEAST, _MOST))
        if not least < most:
            raise DeviceError(f"{what}: the device says that its limits are {least:g} and {most:g}")
        return cls(port, name, what, (least, most), (most - least) / 1000)

    async def read(self) -> float:
        """Return what the device reports.

        Raises:
            DeviceError: it does not.
        """
        values = await self._port.get((self._name, _VALUE))
        if (self._name, _VALUE) not in values:
            raise DeviceError(f"the device does not report {self._what}")
        return values[self._name, _VALUE] * _MICRO

    async def set(self, value: float) -> None:
        """Set the value, and compare what reads back, to a thousandth of the range.

        Raises:
            DeviceError: outside the limits, refused, or it reads back differently.
        """
        check_within(self._port.name, self._what, value, self.limits)
        await self._port.set(Entry(self._name, _VALUE, round(value / _MICRO)), most_apart=self._most_apart)
