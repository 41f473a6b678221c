"""A USB device without a serial class, through its bulk endpoints: pyusb reads in a thread of its own.

The thread hands on what it reads through a socket pair. While that is full the thread does not read, and the
device waits: nothing is lost, and nothing grows.
"""

import errno
import os
import socket
import threading
from array import array
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final

import trio
import usb.backend.libusb1
import usb.core
import usb.util

from qnode.devices.transport.address import Address
from qnode.devices.transport.base import Transport
from qnode.devices.transport.descriptor import DescriptorTransport
from qnode.devices.transport.transcript import Transcript
from qnode.devices.transport.usb_socket import SocketBackend
from qnode.devices.transport.worker import Worker
from qnode.errors import DeviceError, DeviceGone, TransientDeviceError

READ_BYTES: Final = 16384
WRITE_BYTES: Final = 16384
WAIT_MS: Final = 100  # of one transfer; then the thread looks whether it shall end
JOIN_LIMIT_S: Final = 1.0
_NO_PERMISSION: Final = (errno.EACCES, errno.EPERM)


@asynccontextmanager
async def open_usb(address: Address, transcript: Transcript, *, secret: bool) -> AsyncIterator[Transport]:
    """Claim the device's interface with bulk endpoints; see `open_transport`."""
    worker = Worker(f"usb {address.place}")
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    bulk = _Bulk(address, theirs)
    try:
        await worker.run(bulk.open)
        yield UsbTransport(address.text, transcript, worker, bulk, ours.fileno(), secret=secret)
    finally:
        bulk.stop.set()
        trio.lowlevel.notify_closing(ours)
        ours.close()
        await worker.end(bulk.close)


class UsbTransport(DescriptorTransport):
    """Reads the socket pair, writes through the worker."""

    def __init__(
        self,
        address: str,
        transcript: Transcript,
        worker: Worker,
        bulk: "_Bulk",
        descriptor: int,
        *,
        secret: bool,
    ) -> None:
        super().__init__(address, transcript, descriptor, secret=secret, why_gone=lambda: bulk.why_gone)
        self._worker = worker
        self._bulk = bulk

    async def _send(self, data: bytes) -> None:
        given_up = threading.Event()
        try:
            await self._worker.run(self._bulk.write, data, given_up)
        except usb.core.USBError as error:
            raise self.gone(error.strerror or str(error)) from None
        finally:
            given_up.set()


class _Bulk:
    """The calls of pyusb; all but `_read_on` run in the worker."""

    def __init__(self, address: Address, pipe: socket.socket) -> None:
        self.stop = threading.Event()
        self.why_gone = ""
        self._address = address
        self._pipe = pipe
        self._device: Any = None
        self._in: Any = None
        self._out: Any = None
        self._reader: threading.Thread | None = None
        self._detached: int | None = None

    def open(self) -> None:
        try:
            self._device = _found(self._address)
            interface = self._configured()
            self._in, self._out = (_endpoint(interface, way) for way in _WAYS)
            usb.util.claim_interface(self._device, interface.bInterfaceNumber)
        except usb.core.USBError as error:
            raise _refusal(self._address, error) from None
        self._reader = threading.Thread(target=self._read_on, name="usb reader", daemon=True)
        self._reader.start()

    def _configured(self) -> Any:
        """Return the interface to use, set up if it is not, and free of a driver of the kernel."""
        try:
            configuration = self._device.get_active_configuration()
        except usb.core.USBError:
            self._device.set_configuration()
            configuration = self._device.get_active_configuration()
        asked = self._address.options.get("interface")
        text = self._address.text
        usable = [one for one in configuration if all(_endpoint(one, way) is not None for way in _WAYS)]
        if asked is None:
            free = [one for one in usable if not self._has_driver(one)]
            if usable and not free:
                raise DeviceError(
                    f"{text}: a driver of the kernel has it: name its serial line with serial://, or take it "
                    f"from the driver with ?interface={usable[0].bInterfaceNumber}"
                )
            usable = free
        else:
            usable = [one for one in usable if one.bInterfaceNumber == int(asked)]
        if not usable:
            which = "no interface has" if asked is None else f"interface {asked} is not there, or has not"
            raise DeviceError(f"{text}: {which} bulk endpoints both ways: correct the address")
        if self._has_driver(usable[0]):
            self._device.detach_kernel_driver(usable[0].bInterfaceNumber)
            self._detached = usable[0].bInterfaceNumber
        return usable[0]

    def _has_driver(self, interface: Any) -> bool:
        try:
            return bool(self._device.is_kernel_driver_active(interface.bInterfaceNumber))
        except NotImplementedError:
            return False

    def _read_on(self) -> None:
        """Hand on what the device sends, until it is gone or `stop` is set."""
        buffer = array("B", bytes(READ_BYTES))
        self._pipe.settimeout(WAIT_MS / 1000)
        try:
            while not self.stop.is_set():
                try:
                    number = self._in.read(buffer, WAIT_MS)
                except usb.core.USBTimeoutError:
                    continue
                self._hand_on(memoryview(buffer)[:number])
        except usb.core.USBError as error:
            self.why_gone = error.strerror or str(error)
        except OSError:  # the other end of the pair is closed
            pass
        finally:
            self._pipe.close()

    def _hand_on(self, data: memoryview) -> None:
        while data and not self.stop.is_set():
            with suppress(TimeoutError):
                data = data[self._pipe.send(data) :]

    def write(self, data: bytes, given_up: threading.Event) -> None:
        """Send all of ``data`` unless the sender gives up."""
        left = memoryview(data)
        while left and not (given_up.is_set() or self.stop.is_set()):
            with suppress(usb.core.USBTimeoutError):
                left = left[self._out.write(left[:WRITE_BYTES], WAIT_MS) :]

    def close(self) -> None:
        if self._reader is None:
            self._pipe.close()
        else:
            self._reader.join(JOIN_LIMIT_S)
        if self._device is not None:
            with suppress(usb.core.USBError, NotImplementedError):  # it may be gone
                if self._detached is not None:
                    usb.util.release_interface(self._device, self._detached)
                    self._device.attach_kernel_driver(self._detached)
                usb.util.dispose_resources(self._device)


_WAYS: Final = (usb.util.ENDPOINT_IN, usb.util.ENDPOINT_OUT)


def _endpoint(interface: Any, way: int) -> Any:
    """Return the first bulk endpoint of ``interface`` in one direction, None if there is none."""
    for endpoint in interface:
        is_bulk = usb.util.endpoint_type(endpoint.bmAttributes) == usb.util.ENDPOINT_TYPE_BULK
        if is_bulk and usb.util.endpoint_direction(endpoint.bEndpointAddress) == way:
            return endpoint
    return None


def _found(address: Address) -> Any:
    """Return the one device that the address names."""
    vendor, product, serial = address.usb_ids()
    backend = SocketBackend(address.options["socket"]) if "socket" in address.options else _libusb(address)
    devices = list(usb.core.find(find_all=True, idVendor=vendor, idProduct=product, backend=backend))
    name = f"{vendor:04x}:{product:04x}"
    if not devices:
        raise DeviceGone(f"{address.text}: no USB device {name}: plug it in or correct the address")
    serials = [_serial(address, device) for device in devices]
    if serial and serial not in serials:
        there = ", ".join(one or "none" for one in serials)
        raise DeviceGone(
            f"{address.text}: expected the serial number {serial}, found {there}: plug in the right device "
            "or correct the address"
        )
    if not serial and len(devices) > 1:
        there = " or ".join(f"usb://{name}/{one}" for one in serials)
        raise DeviceError(f"{address.text}: {len(devices)} such devices: name one, {there}")
    return devices[serials.index(serial) if serial else 0]


def _libusb(address: Address) -> usb.backend.IBackend:
    """Return a new context of libusb: an old one learns of new devices only while udev runs beside it."""
    shared = usb.backend.libusb1.get_backend()
    if shared is None:
        raise DeviceError(f"{address.text}: no libusb: apt-get install libusb-1.0-0")
    return type(shared)(shared.lib)


def _serial(address: Address, device: Any) -> str:
    if not device.iSerialNumber:
        return ""
    try:
        return str(device.serial_number)
    except ValueError:  # pyusb could not even read the languages, and does not say why
        node = Path(f"/dev/bus/usb/{device.bus:03}/{device.address:03}")
        is_barred = node.exists() and not os.access(node, os.R_OK | os.W_OK, effective_ids=True)
        number = errno.EACCES if is_barred else errno.ENODEV
        error = usb.core.USBError(os.strerror(number), None, number)
    except usb.core.USBError as found:
        error = found
    raise _refusal(address, error)


def _refusal(address: Address, error: usb.core.USBError) -> DeviceError:
    text = address.text
    if error.errno in _NO_PERMISSION:
        return DeviceError(
            f"{text}: no permission: install systemd/99-qnode.rules with the line of this device, and plug "
            "it in again"
        )
    if error.errno == errno.EBUSY:
        return TransientDeviceError(f"{text}: in use by another program: end it")
    return DeviceGone(f"{text}: does not answer ({error.strerror or error}): plug it in again")
