"""A random number generator that sends bytes as long as somebody reads them.

Many are: a USB serial line or a character device that needs no command (TrueRNG), or one command to begin
(OneRNG). The bytes are seeds of keys, so no record of the transport holds them.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Annotated, ClassVar, Final

import trio
from msgspec import Struct

from qnode.config.description import Described
from qnode.devices.protocols import DeviceIdentity
from qnode.devices.transport import Transport, check_address, open_transport
from qnode.errors import DeviceError, TransientDeviceError

SILENCE_LIMIT_S: Final = 5.0
STOP_LIMIT_S: Final = 1.0
QUIET_S: Final = 0.1  # so long without a byte, the stream has ended


class RandomStreamConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where the generator is, and how its stream begins and ends."""

    address: Annotated[
        str, Described("serial:///dev/serial/by-id/NAME, tcp://HOST:PORT, usb://VENDOR:PRODUCT/SERIAL")
    ]
    model: Annotated[str, Described("its name: the stream has no identity")] = "random number generator"
    start: Annotated[str, Described("command that begins the stream, with its line end; empty: none")] = ""
    stop: Annotated[str, Described("command that ends the stream, with its line end; empty: none")] = ""

    def __post_init__(self) -> None:
        check_address(self.address, "serial", "tcp", "usb")
        for name in ("start", "stop"):
            if not getattr(self, name).isascii():
                raise ValueError(f"{name}: expected ASCII text")


class RandomStream:
    """A `RandomSource`."""

    Config: ClassVar[type[Struct]] = RandomStreamConfig

    def __init__(self, port: Transport, config: RandomStreamConfig) -> None:
        self._port = port
        self._lock = trio.Lock()
        self._device = f"{config.model} at {config.address}"
        self.identity = DeviceIdentity(config.model, config.address.rpartition("/")[2])

    @classmethod
    @asynccontextmanager
    async def open(cls, config: RandomStreamConfig) -> AsyncIterator["RandomStream"]:
        """Begin the stream; at the end it is ended.

        Raises:
            DeviceError: there is no device, or it cannot be opened.
        """
        async with open_transport(config.address, secret=True) as port:
            try:
                await _tell(port, config.start)
                yield cls(port, config)
            finally:
                with trio.move_on_after(STOP_LIMIT_S, shield=True), suppress(DeviceError):
                    await _end(port, config.stop)

    async def random_bytes(self, number: int) -> bytes:
        """Return ``number`` bytes of the stream that were not there before; nothing is kept.

        Raises:
            DeviceGone: it was unplugged.
            TransientDeviceError: it is silent.
        """
        found = bytearray()
        async with self._lock:
            # What waited may be the answer to a command, or bytes that an earlier reader has seen.
            await self._port.discard()
            while len(found) < number:
                with trio.move_on_after(SILENCE_LIMIT_S) as silence:
                    found += await self._port.receive(number - len(found))
                if silence.cancelled_caught:
                    raise TransientDeviceError(f"{self._device}: no byte for {SILENCE_LIMIT_S:g} s")
        return bytes(found[:number])


async def _tell(port: Transport, command: str) -> None:
    if command:
        port.transcript.note_sent(command.encode())
        await port.send(command.encode())


async def _end(port: Transport, command: str) -> None:
    """Send the command that ends the stream, and read until it has ended.

    A TCP connection that is closed with unread bytes is reset, and the command may be lost with it.
    """
    if not command:
        return
    await _tell(port, command)
    quiet = False
    while not quiet:
        with trio.move_on_after(QUIET_S) as wait:
            await port.receive()
        quiet = wait.cancelled_caught
