"""Opens the transport that an address names."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from qnode.devices.transport.address import Address, SerialSettings, WrongAddress, check_address
from qnode.devices.transport.base import Transport
from qnode.devices.transport.transcript import PRESENT, Transcript
from qnode.errors import DeviceError

SERIAL_DEFAULTS = SerialSettings()


@asynccontextmanager
async def open_transport(
    address: str, *, serial: SerialSettings = SERIAL_DEFAULTS, secret: bool = False
) -> AsyncIterator[Transport]:
    """Open the transport to the device at ``address``; leaving closes it.

    ``serial``: the settings of a serial line, unless the address names others. ``secret``: the bytes are
    key material, and the record of the last bytes holds only what the driver notes itself.

    Raises:
        DeviceGone: there is no device at ``address``.
        DeviceError: it cannot be opened (wrong address, permission, in use); the message says what to do.
    """
    try:
        parts = check_address(address)
        settings = serial.of_address(parts)
    except WrongAddress as error:  # one device without its package must not end the node
        raise DeviceError(str(error)) from None
    transcript = PRESENT.get() or Transcript()
    async with _opener(parts, settings, transcript, secret) as transport:
        yield transport


def _opener(
    address: Address, serial: SerialSettings, transcript: Transcript, secret: bool
) -> AbstractAsyncContextManager[Transport]:
    """Import only the kind of transport that is needed: extras may not be installed."""
    if address.kind == "serial":
        from qnode.devices.transport.serial_line import open_serial

        return open_serial(address, serial, transcript, secret=secret)
    if address.kind == "usb":
        from qnode.devices.transport.usb_bulk import open_usb

        return open_usb(address, transcript, secret=secret)
    if address.kind == "zmq":
        from qnode.devices.transport.zeromq import open_zmq

        return open_zmq(address, transcript, secret=secret)
    if address.kind == "visa":
        from qnode.devices.transport.visa import open_visa

        return open_visa(address, serial, transcript, secret=secret)
    from qnode.devices.transport.tcp import open_tcp

    return open_tcp(address, transcript, secret=secret)
