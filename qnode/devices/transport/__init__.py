"""Transports: bytes to and from a device whose configuration names it by an address.

    async with open_transport("serial:///dev/serial/by-id/usb-...", serial=SerialSettings(baud=9600)) as port:
        await port.send(b"*IDN?\\r\\n")
        answer = await port.receive()

`qnode.devices.transport.lines` has lines of text with deadlines over any transport.
"""

from qnode.devices.transport.address import SerialSettings, check_address
from qnode.devices.transport.base import Transport
from qnode.devices.transport.opening import open_transport
from qnode.devices.transport.transcript import Transcript

__all__ = ["SerialSettings", "Transcript", "Transport", "check_address", "open_transport"]
