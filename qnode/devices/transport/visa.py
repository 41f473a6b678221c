"""Instruments behind any VISA resource. Needs the extra `visa`, and a VISA library."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, ClassVar, Final

import pyvisa
import trio
from pyvisa.constants import InterfaceType, Parity, StatusCode, StopBits
from pyvisa.resources import MessageBasedResource

from qnode.devices.transport.address import Address, SerialSettings
from qnode.devices.transport.base import Transport
from qnode.devices.transport.transcript import Transcript
from qnode.devices.transport.worker import Worker
from qnode.errors import DeviceError, DeviceGone, TransientDeviceError

OPEN_LIMIT_MS: Final = 5000
WAIT_LIMITS_S: Final = (0.05, 1.0)  # of one call; a longer wait is made of several
MOST_LATE_ANSWERS: Final = 10
_GONE: Final = (
    StatusCode.error_resource_not_found,
    StatusCode.error_connection_lost,
    StatusCode.error_io,
    StatusCode.error_system_error,
    StatusCode.error_input_protocol_violation,
    StatusCode.error_no_listeners,
    StatusCode.error_invalid_object,
)
_BUSY: Final = (StatusCode.error_resource_busy, StatusCode.error_resource_locked)
_PARITIES: Final = {"N": Parity.none, "E": Parity.even, "O": Parity.odd}
_STOP_BITS: Final = {1: StopBits.one, 2: StopBits.two}
_BYTE_STREAMS: Final = (InterfaceType.asrl,)


@asynccontextmanager
async def open_visa(
    address: Address, settings: SerialSettings, transcript: Transcript, *, secret: bool
) -> AsyncIterator[Transport]:
    """Open the resource in a thread of its own; see `open_transport`."""
    worker = Worker(f"visa {address.place}")
    session = _Session(address, settings)
    try:
        await worker.run(session.open)
        yield VisaTransport(address.text, transcript, worker, session, secret=secret)
    finally:
        await worker.end(session.close)


class VisaTransport(Transport):
    """Whole messages of an instrument."""

    keeps_messages: ClassVar[bool] = True

    def __init__(
        self, address: str, transcript: Transcript, worker: Worker, session: "_Session", *, secret: bool
    ) -> None:
        super().__init__(address, transcript, secret=secret)
        self._worker = worker
        self._session = session
        self._unanswered = True  # an earlier user may have left an answer in the instrument

    async def _send(self, data: bytes) -> None:
        await self._worker.run(self._session.write, data, _wait_s())

    async def _receive(self, most_bytes: int) -> bytes:
        self._unanswered = True  # until it is here: a wait that is cancelled leaves an answer behind
        while True:
            data = await self._worker.run(self._session.read, _wait_s())
            if data is not None:
                self._unanswered = False
                return data

    async def _receive_now(self) -> bytes | None:
        """Clear an instrument that owes an answer; others send nothing unasked."""
        if self._unanswered:
            self._unanswered = False
            await self._worker.run(self._session.clear)
        return None


def _wait_s() -> float:
    """Return how long one call may wait, from the caller's deadline."""
    shortest, longest = WAIT_LIMITS_S
    return min(max(trio.current_effective_deadline() - trio.current_time(), shortest), longest)


class _Session:
    """The calls of the library; each runs in the worker."""

    def __init__(self, address: Address, settings: SerialSettings) -> None:
        self._address = address
        self._settings = settings
        self._manager: pyvisa.ResourceManager | None = None
        self._resource: Any = None

    def open(self) -> None:
        try:
            self._manager = pyvisa.ResourceManager(self._address.options.get("library", ""))
        except (OSError, ValueError) as error:
            raise DeviceError(
                f"{self._address.text}: no VISA library ({error}): install the maker's or pyvisa-py"
            ) from None
        try:
            self._resource = self._manager.open_resource(self._address.place, open_timeout=OPEN_LIMIT_MS)
            if not isinstance(self._resource, MessageBasedResource):
                raise DeviceError(f"{self._address.text}: takes no messages: name an INSTR or SOCKET")
            self._configure()
        except (pyvisa.errors.Error, OSError, ValueError) as error:
            raise self._fault(error) from None

    def _configure(self) -> None:
        resource = self._resource
        if self._address.place.upper().endswith("SOCKET") or resource.interface_type in _BYTE_STREAMS:
            resource.read_termination = "\n"  # a stream of bytes has no messages of its own
        if resource.interface_type == InterfaceType.asrl:
            resource.baud_rate = self._settings.baud
            resource.data_bits = self._settings.data_bits
            resource.parity = _PARITIES[self._settings.parity]
            resource.stop_bits = _STOP_BITS[self._settings.stop_bits]

    def write(self, data: bytes, wait_s: float) -> None:
        try:
            self._resource.timeout = wait_s * 1000
            self._resource.write_raw(data)
        except (pyvisa.errors.Error, OSError) as error:
            raise self._fault(error) from None

    def read(self, wait_s: float) -> bytes | None:
        """Return a message, None if none came in time."""
        try:
            self._resource.timeout = wait_s * 1000
            return bytes(self._resource.read_raw())
        except (pyvisa.errors.Error, OSError) as error:
            if getattr(error, "error_code", None) == StatusCode.error_timeout:
                return None
            raise self._fault(error) from None

    def clear(self) -> None:
        """Make the instrument forget its answer, or take it away where the interface cannot clear."""
        try:
            self._resource.clear()
        except (pyvisa.errors.Error, OSError, NotImplementedError):
            for _ in range(MOST_LATE_ANSWERS):
                if self.read(WAIT_LIMITS_S[0]) is None:
                    break

    def close(self) -> None:
        with suppress(pyvisa.errors.Error, OSError):
            if self._resource is not None:
                self._resource.close()

    def _fault(self, error: Exception) -> DeviceError:
        text, code = self._address.text, getattr(error, "error_code", None)
        if code in _GONE:
            return DeviceGone(f"{text}: not there ({error}): switch it on and check the resource's name")
        if code in _BUSY:
            return TransientDeviceError(f"{text}: in use by another program: end it ({error})")
        if code == StatusCode.error_no_permission:
            return DeviceError(
                f"{text}: no permission: install systemd/99-qnode.rules, give the group access"
            )
        if code == StatusCode.error_timeout:
            return TransientDeviceError(f"{text}: takes nothing ({error})")
        return DeviceError(f"{text}: {error}: check the resource's name")
