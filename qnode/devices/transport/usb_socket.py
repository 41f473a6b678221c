"""A backend for pyusb whose one device answers at a Unix socket: an emulator, perhaps in another process.

A connection begins with one byte: `?` asks for the device's description, one line of JSON; `!` opens the
device, which answers `O` and then carries the bytes of both bulk endpoints, or `B` if it is in use.
"""

import errno
import json
import os
import select
import socket
from array import array
from collections.abc import Iterator
from contextlib import suppress
from types import SimpleNamespace
from typing import Any, Final

import usb.backend
import usb.core

CONNECT_LIMIT_S: Final = 2.0
LONGEST_DESCRIPTION_BYTES: Final = 4096
_GET_DESCRIPTOR: Final = 0x06
_ENGLISH: Final = 0x0409
_SERIAL_INDEX: Final = 1
_BULK: Final = 2
_VENDOR_CLASS: Final = 0xFF


class SocketBackend(usb.backend.IBackend):  # type: ignore[misc]
    """One device with one interface and two bulk endpoints."""

    def __init__(self, path: str) -> None:
        self._path = path

    def enumerate_devices(self) -> Iterator[dict[str, Any]]:
        """Yield the device's description while it is plugged in."""
        try:
            with self._connection(b"?") as connection:
                line = b""
                while not line.endswith(b"\n") and len(line) < LONGEST_DESCRIPTION_BYTES:
                    piece = connection.recv(LONGEST_DESCRIPTION_BYTES)
                    if not piece:
                        return
                    line += piece
                described = json.loads(line)
        except (OSError, ValueError):
            return
        yield described

    def get_device_descriptor(self, dev: dict[str, Any]) -> Any:
        """Return what pyusb reads of a device."""
        return SimpleNamespace(
            bLength=18,
            bDescriptorType=1,
            bcdUSB=0x0200,
            bDeviceClass=_VENDOR_CLASS,
            bDeviceSubClass=0,
            bDeviceProtocol=0,
            bMaxPacketSize0=64,
            idVendor=dev["vendor"],
            idProduct=dev["product"],
            bcdDevice=0x0100,
            iManufacturer=0,
            iProduct=0,
            iSerialNumber=_SERIAL_INDEX,
            bNumConfigurations=1,
            address=1,
            bus=0,
            port_number=1,
            port_numbers=(1,),
            speed=3,
        )

    def get_configuration_descriptor(self, dev: dict[str, Any], config: int) -> Any:
        """Return the one configuration."""
        return SimpleNamespace(
            bLength=9,
            bDescriptorType=2,
            wTotalLength=32,
            bNumInterfaces=1,
            bConfigurationValue=1,
            iConfiguration=0,
            bmAttributes=0x80,
            bMaxPower=50,
            extra_descriptors=[],
        )

    def get_interface_descriptor(self, dev: dict[str, Any], intf: int, alt: int, config: int) -> Any:
        """Return the one interface; pyusb asks until IndexError."""
        if (intf, alt) != (0, 0):
            raise IndexError
        return SimpleNamespace(
            bLength=9,
            bDescriptorType=4,
            bInterfaceNumber=0,
            bAlternateSetting=0,
            bNumEndpoints=2,
            bInterfaceClass=_VENDOR_CLASS,
            bInterfaceSubClass=0,
            bInterfaceProtocol=0,
            iInterface=0,
            extra_descriptors=[],
        )

    def get_endpoint_descriptor(self, dev: dict[str, Any], ep: int, intf: int, alt: int, config: int) -> Any:
        """Return one of the two endpoints."""
        return SimpleNamespace(
            bLength=7,
            bDescriptorType=5,
            bEndpointAddress=(dev["bulk_out"], dev["bulk_in"])[ep],
            bmAttributes=_BULK,
            wMaxPacketSize=dev["packet_bytes"],
            bInterval=0,
            bRefresh=0,
            bSynchAddress=0,
            extra_descriptors=[],
        )

    def open_device(self, dev: dict[str, Any]) -> "_Handle":
        """Return a handle; only claiming the interface opens the device."""
        return _Handle(dev)

    def close_device(self, dev_handle: "_Handle") -> None:
        """Close the connection."""
        self.release_interface(dev_handle, 0)

    def get_configuration(self, dev_handle: "_Handle") -> int:
        """Return the number of the configuration."""
        return 1

    def set_configuration(self, dev_handle: "_Handle", config_value: int) -> None:
        """Accept the configuration."""

    def is_kernel_driver_active(self, dev_handle: "_Handle", intf: int) -> bool:
        """Return that no driver of the kernel knows it."""
        return False

    def claim_interface(self, dev_handle: "_Handle", intf: int) -> None:
        """Open the device for this user alone."""
        try:
            connection = self._connection(b"!")
            answer = connection.recv(1)
        except OSError as error:
            raise _error(errno.ENODEV) from error
        if answer != b"O":
            connection.close()
            raise _error(errno.EBUSY if answer else errno.ENODEV)
        connection.setblocking(False)
        dev_handle.connection = connection

    def release_interface(self, dev_handle: "_Handle", intf: int) -> None:
        """Close the device."""
        if dev_handle.connection is not None:
            dev_handle.connection.close()
            dev_handle.connection = None

    def bulk_write(self, dev_handle: "_Handle", ep: int, intf: int, data: Any, timeout: int) -> int:
        """Send at least one byte within ``timeout`` milliseconds."""
        connection = dev_handle.opened()
        if not select.select([], [connection], [], timeout / 1000)[1]:
            raise _timed_out()
        try:
            return connection.send(data)
        except OSError:
            raise _error(errno.ENODEV) from None

    def bulk_read(self, dev_handle: "_Handle", ep: int, intf: int, buff: "array[int]", timeout: int) -> int:
        """Receive at least one byte within ``timeout`` milliseconds."""
        connection = dev_handle.opened()
        if not select.select([connection], [], [], timeout / 1000)[0]:
            raise _timed_out()
        number = 0
        with suppress(OSError):
            number = connection.recv_into(buff)
        if not number:
            raise _error(errno.ENODEV)
        return number

    def ctrl_transfer(
        self,
        dev_handle: "_Handle",
        bmRequestType: int,
        bRequest: int,
        wValue: int,
        wIndex: int,
        data: "array[int]",
        timeout: int,
    ) -> int:
        """Answer requests for string descriptors: the languages, and the serial number."""
        if bRequest != _GET_DESCRIPTOR:
            raise _error(errno.EPIPE)
        if wValue & 0xFF == 0:
            text = _ENGLISH.to_bytes(2, "little")
        else:
            text = str(dev_handle.described["serial"]).encode("utf-16-le")
        answer = bytes([2 + len(text), 3]) + text
        number = min(len(answer), len(data))
        data[:number] = array("B", answer[:number])
        return number

    def _connection(self, asked: bytes) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.settimeout(CONNECT_LIMIT_S)
            connection.connect(self._path)
            connection.sendall(asked)
        except OSError:
            connection.close()
            raise
        return connection


class _Handle:
    """An opened device."""

    def __init__(self, described: dict[str, Any]) -> None:
        self.described = described
        self.connection: socket.socket | None = None

    def opened(self) -> socket.socket:
        """Return the connection of a claimed interface."""
        if self.connection is None:
            raise _error(errno.ENODEV)
        return self.connection


def _error(number: int) -> Exception:
    found: Exception = usb.core.USBError(os.strerror(number), None, number)
    return found


def _timed_out() -> Exception:
    found: Exception = usb.core.USBTimeoutError("Operation timed out", None, errno.ETIMEDOUT)
    return found
