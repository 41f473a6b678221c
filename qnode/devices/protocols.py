"""The protocols of drivers: small capabilities that the node recognises by type.

A driver is a class with a frozen msgspec struct ``Config`` and an ``open(config)`` class method that is an
asynchronous context manager: entered, the device is identified and ready; left, the hardware is safe.
"""

from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager
from typing import Any, ClassVar, Protocol, runtime_checkable

import msgspec

from qnode.tags.types import Codes, Slots, TagBlock


class DeviceIdentity(msgspec.Struct, frozen=True):
    """The identity that the device reports."""

    model: str
    serial: str
    simulated: bool = False


class EmissionRun(msgspec.Struct, frozen=True):
    """One uninterrupted emission of qubits, slots numbered from 0.

    ``run_id``: random number of 63 bits, different for each run. ``started_at_s``: the time of slot 0 by
    Alice's wall clock (Unix time, seconds).
    """

    run_id: int
    started_at_s: float


class Device(Protocol):
    """Every opened device."""

    @property
    def identity(self) -> DeviceIdentity:
        """The identity that the device reports."""
        ...


class Driver(Protocol):
    """The class a driver entry point names."""

    Config: ClassVar[type[msgspec.Struct]]

    @classmethod
    def open(cls, config: Any) -> AbstractAsyncContextManager[Device]:
        """Open the device; see the module's text."""
        ...


@runtime_checkable
class Transmitter(Protocol):
    """Alice's qubit source with its record of sent symbols."""

    @property
    def identity(self) -> DeviceIdentity:
        """The identity that the device reports."""
        ...

    def runs(self) -> AsyncGenerator[EmissionRun, None]:
        """Yield the present emission run, then each later one (after a restart of the source)."""
        ...

    def symbols(self, run_id: int, slots: Slots) -> Codes:
        """Return the symbols sent in ``slots``; `UNKNOWN_SYMBOL` for slots older than the record.

        Thread-safe: worker threads call it, outside of any event loop.
        """
        ...


@runtime_checkable
class TagSource(Protocol):
    """Bob's time-to-digital converter."""

    @property
    def identity(self) -> DeviceIdentity:
        """The identity that the device reports."""
        ...

    @property
    def paced(self) -> bool:
        """True when tags come at their own rate (hardware): then a full channel is an overrun."""
        ...

    @property
    def origin_s(self) -> float:
        """Bob's wall-clock time (Unix time, seconds) at tag time zero, as exact as the site's clock."""
        ...

    def tags(self) -> AsyncGenerator[TagBlock, None]:
        """Yield tag blocks in time order; tags may be out of order by ``link.receiver.order_window_ps``."""
        ...


@runtime_checkable
class Sensor(Protocol):
    """A device with named readings (temperature, bias voltage, ...)."""

    @property
    def identity(self) -> DeviceIdentity:
        """The identity that the device reports."""
        ...

    async def readings(self) -> dict[str, float]:
        """Return the present readings, units in the names."""
        ...
