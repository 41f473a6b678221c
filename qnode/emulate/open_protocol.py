"""The device's side of the open device protocol (docs/device-protocol.md): frames, requests, settings.

`OpenDevice` is what a transmitter and a time-to-digital converter have in common. Like every emulator, it is
written from the specification and shares no code with the driver.
"""

import struct
import time
import zlib
from collections.abc import Iterator
from typing import Final

import trio

SILENT_HOST_S: Final = 10.0

FRAME_START: Final = bytes([0xC5, 0x9A])
LARGEST_PAYLOAD: Final = 1024

# Requests of the host; a device answers with 0x80 added.
HELLO, SAFE, GET, SET, START, STOP, NOW, HEALTH, LOOK_UP, READ = range(1, 11)
TAGS, EVENT, ERROR = 0x40, 0x41, 0xFF

UNKNOWN_REQUEST, UNKNOWN_SETTING, OUT_OF_RANGE, NOT_NOW, MALFORMED = range(1, 6)
BEGAN_AGAIN, STOPPED = 1, 2

TRANSMITTER, TDC = 1, 2

Setting = tuple[int, int]


class Refusal(Exception):
    """A request that the device answers with ERROR."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


def built_frame(kind: int, request: int, payload: bytes) -> bytes:
    """Return a frame: start, kind, request, length, its inverse, payload, CRC-32."""
    head = bytes([kind, request]) + len(payload).to_bytes(2, "little")
    body = head + (0xFFFF - len(payload)).to_bytes(2, "little") + payload
    return FRAME_START + body + zlib.crc32(body).to_bytes(4, "little")


class FrameReader:
    """Finds the requests in what the host sends."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def frames(self, data: bytes) -> Iterator[tuple[int, int, bytes]]:
        """Yield kind, request number and payload of each whole frame so far."""
        self._buffer += data
        while True:
            at = self._buffer.find(FRAME_START)
            if at < 0:
                del self._buffer[: max(0, len(self._buffer) - 1)]
                return
            del self._buffer[:at]
            if len(self._buffer) < 8:
                return
            kind, request, length, inverse = struct.unpack_from("<BBHH", self._buffer, 2)
            if length + inverse != 0xFFFF or length > LARGEST_PAYLOAD:
                del self._buffer[:1]
                continue
            if len(self._buffer) < 12 + length:
                return
            body = bytes(self._buffer[2 : 8 + length])
            if self._buffer[8 + length : 12 + length] != zlib.crc32(body).to_bytes(4, "little"):
                del self._buffer[:1]
                continue
            del self._buffer[: 12 + length]
            yield kind, request, body[6:]


class OpenDevice:
    """A device behind a port. Tests read and set its plain attributes.

    ``settings``: by name and number. ``limits``: of those that can be set. ``running``: whether it emits or
    streams. Faults: ``silent`` (it does nothing at all), ``refuses`` (kinds of requests).
    """

    kind = 0

    def __init__(self, model: str, serial: str, *, simulated: bool) -> None:
        self.model, self.serial, self.firmware = model, serial, "emulator 1"
        self.simulated = simulated
        self.versions = (1, 1)
        self.window = 8
        self.settings: dict[Setting, int] = {}
        self.limits: dict[Setting, tuple[int, int]] = {}
        self.health: dict[Setting, int] = {(1, 0): 31_500, (2, 0): 3_300_000, (4, 0): 1, (6, 0): 1}
        self.running = False
        self.epoch = 0
        self.silent = False
        self.refuses: set[int] = set()
        self.requests: list[int] = []
        self.silent_host_s = SILENT_HOST_S
        self._asked_at_s = time.monotonic()
        self._stream: trio.abc.Stream | None = None
        self._sending = trio.Lock()

    async def serve(self, stream: trio.abc.Stream) -> None:
        """Answer one connection until it ends."""
        self._stream = stream
        reader = FrameReader()
        try:
            while data := await stream.receive_some(65536):
                for kind, request, payload in reader.frames(bytes(data)):
                    await self._serve_request(kind, request, payload)
        finally:
            if self._stream is stream:
                self._stream = None

    async def watch_host(self) -> None:
        """Become safe when the host is silent for too long: it may have crashed."""
        while True:
            await trio.sleep(self.silent_host_s / 10)
            if time.monotonic() - self._asked_at_s > self.silent_host_s:
                await self.stop()
                await self.make_safe()

    async def send(self, data: bytes) -> None:
        """Send to whoever is connected; a host that has left is not waited for."""
        async with self._sending:
            if self._stream is None or self.silent:
                return
            try:
                await self._stream.send_all(data)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                self._stream = None

    async def tell(self, code: int, text: str) -> None:
        """Send an event."""
        head = struct.pack("<HHIQ", code, 0, self.epoch, self.position())
        await self.send(built_frame(EVENT, 0, head + text.encode()))

    async def _serve_request(self, kind: int, request: int, payload: bytes) -> None:
        if self.silent:
            return
        self._asked_at_s = time.monotonic()
        self.requests.append(kind)
        del self.requests[:-1000]
        try:
            if kind in self.refuses:
                raise Refusal(NOT_NOW, "refused by the test")
            answers = await self.answer(kind, payload)
        except Refusal as refusal:
            text = refusal.code.to_bytes(2, "little") + str(refusal).encode()
            await self.send(built_frame(ERROR, request, text))
        except struct.error:
            text = MALFORMED.to_bytes(2, "little") + b"too short"
            await self.send(built_frame(ERROR, request, text))
        else:
            await self.send(b"".join(built_frame(kind | 0x80, request, answer) for answer in answers))

    async def answer(self, kind: int, payload: bytes) -> list[bytes]:
        """Return the payloads of the answers.

        Raises:
            Refusal: the request cannot be met.
        """
        if kind == HELLO:
            return [self._identity(payload)]
        if kind in (SAFE, STOP):
            await self.stop()
            if kind == SAFE:
                await self.make_safe()
            return [b""]
        if kind == GET:
            names = struct.iter_unpack("<HH", payload[: len(payload) // 4 * 4])
            return [_entries({name: self.settings[name] for name in names if name in self.settings})]
        if kind == SET:
            wanted = {(name, number): value for name, number, value in struct.iter_unpack("<HHq", payload)}
            self.check_settings(wanted)
            self.settings.update(wanted)
            await self.settings_changed()
            return [_entries({name: self.settings[name] for name in wanted})]
        if kind == START:
            (epoch,) = struct.unpack_from("<I", payload)
            if not (self.running and epoch == self.epoch):
                await self.start(epoch)
            return [self._where()]
        if kind == NOW:
            return [self._where()]
        if kind == HEALTH:
            return [_entries(self.health)]
        raise Refusal(UNKNOWN_REQUEST, f"request {kind} is unknown")

    def check_settings(self, wanted: dict[Setting, int]) -> None:
        """Refuse what cannot be set; nothing is set then."""
        for name, value in wanted.items():
            if name not in self.limits:
                raise Refusal(UNKNOWN_SETTING, f"setting {name[0]}/{name[1]} cannot be set")
            least, most = self.limits[name]
            if not least <= value <= most:
                raise Refusal(OUT_OF_RANGE, f"setting {name[0]}/{name[1]}: {least} to {most}")

    async def settings_changed(self) -> None:
        """Apply what was set."""

    async def start(self, epoch: int) -> None:
        """Start, numbered by ``epoch``."""
        self.epoch, self.running = epoch, True

    async def stop(self) -> None:
        """Stop."""
        self.running = False

    async def make_safe(self) -> None:
        """Switch everything off that can do harm."""

    def position(self) -> int:
        """Return where the device is: slots sent, or ticks."""
        return 0

    def _where(self) -> bytes:
        return struct.pack("<IIQ", self.epoch, int(self.running), self.position())

    def _identity(self, payload: bytes) -> bytes:
        least, most = struct.unpack_from("<BB", payload)
        common = min(most, self.versions[1])
        version = common if common >= max(least, self.versions[0]) else 0
        head = bytes([version, *self.versions, self.kind, int(self.simulated), self.window, 0, 0])
        texts = (self.model, self.serial, self.firmware)
        return head + b"".join(bytes([len(text)]) + text.encode() for text in texts)


def _entries(values: dict[Setting, int]) -> bytes:
    return b"".join(struct.pack("<HHq", *name, value) for name, value in values.items())
