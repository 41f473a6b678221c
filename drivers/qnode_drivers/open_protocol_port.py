"""The conversation with a device of the open protocol: requests and their answers over one transport.

Symbols and tags are key material. The transport is opened as secret, and only frames without them are noted
in its record of the last bytes.
"""

import itertools
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Final

import numpy as np
import structlog
import trio

from qnode.devices.settings import kept_safe
from qnode.devices.transport import SerialSettings, Transport, open_transport
from qnode.errors import DeviceError, DeviceGone, TransientDeviceError
from qnode.tags.open_protocol import FRAMES_AT_ONCE, LONGEST_FRAME_BYTES, ByteArray, ScannedFrame, scan, warm
from qnode_drivers.open_protocol import (
    ANSWER,
    FIRST_HARMLESS_EVENT,
    SYMBOL_ANSWERS,
    DeviceKind,
    Entry,
    Event,
    Hello,
    Kind,
    Parameter,
    Position,
    encode_entries,
    encode_names,
    frame,
    hello,
    read_entries,
    read_error,
    read_event,
    read_hello,
    read_position,
    start,
)

ANSWER_S: Final = 0.5
ATTEMPTS: Final = 4
POLL_S: Final = 1.0
MOST_EVENTS_LOGGED: Final = 100  # of one opening
# Requests have the numbers 1 to 15, those for symbols the rest, so that a late answer is not mistaken.
_CONTROL_REQUESTS: Final = range(1, 16)
_SECRET: Final = (*SYMBOL_ANSWERS, Kind.TAGS)
# What the record of the last bytes may hold: a kind that is not known may have symbols in it.
_NOTED: Final = (*(kind | ANSWER for kind in Kind if kind < Kind.LOOK_UP), Kind.EVENT, Kind.ERROR)
_RECEIVE_BYTES: Final = 1 << 18
# During a stream of tags, a receiver that got little waits for more: each receiving has its cost.
_LITTLE_BYTES: Final = 3072
_GATHER_S: Final = 0.005
_GATHER_SERIAL_S: Final = 0.001  # a terminal holds 4095 bytes: a longer pause would hold up its device

FrameHandler = Callable[[ByteArray, ScannedFrame], None]

log = structlog.get_logger()


class OpenProtocolPort:
    """One opened device. ``on_data`` gets tags and symbols, ``on_event`` what the device tells unasked.

    ``after_frames`` is called when all frames of what has come were distributed, ``on_failure`` when the
    device has failed. ``gathers``: it streams, and a delay of answers by 5 ms does no harm.

    Counts since the opening: ``noise_bytes`` outside of frames, ``broken_frames`` of wrong CRC,
    ``unknown_frames`` of a kind that this driver does not know.
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._sending = trio.Lock()
        self._asking = trio.Lock()
        self._numbers = itertools.cycle(_CONTROL_REQUESTS)
        self._answers: dict[int, tuple[trio.Event, list[tuple[int, bytes]]]] = {}
        self._rest = np.empty(0, np.uint8)
        self.failure: DeviceError | None = None
        self.on_failure: Callable[[], None] = _nothing
        self.on_data: FrameHandler = _nobody
        self.after_frames: Callable[[], None] = _nothing
        self.on_event: Callable[[Event], None] = _no_event
        self.name = "device of the open protocol"
        self.gathers = False
        self._events = 0
        self.noise_bytes = self.broken_frames = self.unknown_frames = 0

    async def send(self, data: bytes) -> None:
        """Send frames that have symbols' places in them; they are not noted."""
        async with self._sending:
            await self._transport.send(data)

    async def ask(self, kind: Kind, payload: bytes = b"") -> bytes:
        """Send a request and return its answer; asked again when it does not come.

        Raises:
            DeviceError: the device refuses, or it has failed before.
            TransientDeviceError: it does not answer.
        """
        for _ in range(ATTEMPTS):
            answer = await self._try(kind, payload)
            self.check()
            if answer is not None:
                return answer
        raise TransientDeviceError(f"{kind.name}: no answer within {ATTEMPTS * ANSWER_S:g} s")

    async def make_safe(self) -> None:
        """Ask for the safe state, also of a device that has failed.

        Raises:
            DeviceGone: it is no longer there.
            TransientDeviceError: it does not confirm.
        """
        for _ in range(ATTEMPTS):
            if isinstance(self.failure, DeviceGone):
                raise self.failure
            if await self._try(Kind.SAFE, b"") is not None:
                return
        raise TransientDeviceError(f"SAFE: no answer within {ATTEMPTS * ANSWER_S:g} s")

    async def _try(self, kind: Kind, payload: bytes) -> bytes | None:
        """Send a request once; None if there is no answer in time."""
        async with self._asking:
            number = next(self._numbers)
            answered, answers = self._answers[number] = (trio.Event(), [])
            data = frame(kind, number, payload)
            try:
                with trio.move_on_after(ANSWER_S):
                    self._transport.transcript.note_sent(data)
                    await self.send(data)
                    await answered.wait()
            finally:
                del self._answers[number]
        for answer_kind, answer in answers:
            if answer_kind == kind | ANSWER:
                return answer
            if answer_kind == Kind.ERROR:
                raise DeviceError(f"{kind.name} was refused with {read_error(answer)}")
        return None

    def check(self) -> None:
        """Raise the error that ended the reading, if one has."""
        if self.failure is not None:
            raise self.failure

    def fail(self, failure: DeviceError) -> None:
        """End the use of the device with an error; the first one counts."""
        if self.failure is None:
            self.failure = failure
        self.on_failure()

    async def read(self) -> None:
        """Receive and distribute frames until cancelled or until the device is gone."""
        is_serial = self._transport.address.startswith("serial:")
        gather_s = _GATHER_SERIAL_S if is_serial else _GATHER_S
        try:
            while True:
                data = await self._transport.receive(_RECEIVE_BYTES)
                self._take(data)
                if self.gathers and len(data) < _LITTLE_BYTES:
                    await trio.sleep(gather_s)
        except DeviceError as failure:
            self.failure = None  # of what failed before: nothing can be asked of it any more
            self.fail(failure)

    def _take(self, data: bytes) -> None:
        buffer = np.concatenate((self._rest, np.frombuffer(data, np.uint8)))
        while True:
            found = scan(buffer)
            self.noise_bytes += found.noise_bytes
            self.broken_frames += found.broken
            for one in found.frames:
                self._distribute(buffer, one)
            buffer = buffer[found.consumed :]
            if len(found.frames) < FRAMES_AT_ONCE:
                break
        assert buffer.size < LONGEST_FRAME_BYTES
        self._rest = buffer.copy()
        self.after_frames()

    def _distribute(self, buffer: ByteArray, one: ScannedFrame) -> None:
        if one.kind in _SECRET:
            try:
                self.on_data(buffer, one)
            except DeviceError as failure:
                self.fail(failure)  # and read on: the way out needs answers
            return
        payload = buffer[one.start : one.start + one.length].tobytes()
        if one.kind in _NOTED:
            self._transport.transcript.note_received(frame(one.kind, one.request, payload))
        else:
            self.unknown_frames += 1
        if one.kind == Kind.EVENT:
            event = read_event(payload)
            if event is not None:
                self._tell(event)
        elif one.request in self._answers:
            answered, answers = self._answers[one.request]
            answers.append((one.kind, payload))
            answered.set()
        elif one.kind == Kind.ERROR and one.request not in _CONTROL_REQUESTS:
            self.fail(DeviceError(f"a request for symbols was refused with {read_error(payload)}"))

    def _tell(self, event: Event) -> None:
        self._events += 1
        if self._events <= MOST_EVENTS_LOGGED:
            log.info("device.event", code=event.code, text=event.text)
        if event.code < FIRST_HARMLESS_EVENT:
            self.on_event(event)

    def counts(self) -> dict[str, float]:
        """Return what was wrong with the received bytes since the opening, as readings."""
        return {
            "noise_bytes": float(self.noise_bytes),
            "broken_frames_count": float(self.broken_frames),
            "unknown_frames_count": float(self.unknown_frames),
        }

    async def get(self, *names: tuple[Parameter, int]) -> dict[tuple[int, int], int]:
        """Return settings by name and index; the device leaves out those that it does not have."""
        answer = await self.ask(Kind.GET, encode_names([(int(name), index) for name, index in names]))
        return {(entry.name, entry.number): entry.value for entry in read_entries(answer)}

    async def set(self, *entries: Entry, most_apart: int = 0) -> None:
        """Set and compare what is read back.

        Raises:
            DeviceError: the device refuses, or a value reads back differently.
        """
        answer = await self.ask(Kind.SET, encode_entries(list(entries)))
        back = {(entry.name, entry.number): entry.value for entry in read_entries(answer)}
        for name, index, value in entries:
            got = back.get((name, index))
            if got is None or abs(got - value) > most_apart:
                raise DeviceError(
                    f"{Parameter(name).name.lower()} {index}: {value} was set, {got} reads back; choose a "
                    "value that the device can hold"
                )

    async def start(self, epoch: int) -> Position:
        """Start emission or tags; ``epoch`` distinguishes them from those before.

        Raises:
            DeviceError: the device refuses, or it does not start.
        """
        position = read_position(await self.ask(Kind.START, start(epoch)))
        if position.epoch != epoch or not position.running:
            raise TransientDeviceError("the device does not start")
        return position

    async def now(self, times: int = 1) -> tuple[Position, float]:
        """Return the present position and the Unix time at which it was true, the best of some ``times``."""
        answers = [await self._timed_trip(Kind.NOW) for _ in range(times)]
        _, position, at_s = min(answers, key=lambda answer: answer[0])
        return position, at_s

    async def _timed_trip(self, kind: Kind, payload: bytes = b"") -> tuple[float, Position, float]:
        asked_s, began_s = time.time(), trio.current_time()
        answer = await self.ask(kind, payload)
        trip_s = trio.current_time() - began_s
        return trip_s, read_position(answer), asked_s + trip_s / 2


def _nobody(_data: ByteArray, _frame: ScannedFrame) -> None:
    """Drop data that nobody waits for."""


def _nothing() -> None:
    """Do nothing."""


def _no_event(_event: Event) -> None:
    """Ignore an event before anybody listens."""


@contextmanager
def single_errors() -> Iterator[None]:
    """Raise a single error of a nursery without the group around it."""
    try:
        yield
    except BaseExceptionGroup as group:
        if len(group.exceptions) > 1:
            raise
        error = group.exceptions[0]
        raise error from error.__cause__


@asynccontextmanager
async def open_port(
    address: str, baud: int, kind: DeviceKind, serial_number: str
) -> AsyncIterator[tuple[OpenProtocolPort, Hello]]:
    """Open the device at ``address`` in its safe state, and leave it in it, however it is left.

    ``serial_number``: the one that the device must have; "" for any.

    Raises:
        DeviceGone: nothing is there, or another kind of device, or one with another serial number.
        DeviceError: no common version.
    """
    await trio.to_thread.run_sync(warm)
    async with open_transport(address, serial=SerialSettings(baud=baud), secret=True) as transport:
        port = OpenProtocolPort(transport)
        with single_errors():
            async with trio.open_nursery() as nursery:
                reading = trio.CancelScope(shield=True)  # the way out needs answers too

                async def read() -> None:
                    with reading:
                        await port.read()

                nursery.start_soon(read)
                try:
                    found = await _identify(port, kind, serial_number)
                    port.name = f"{found.model} {found.serial}"
                    async with kept_safe(port.name, port.make_safe):
                        yield port, found
                finally:
                    port.fail(DeviceGone("the device was closed"))
                    reading.cancel()


async def _identify(port: OpenProtocolPort, kind: DeviceKind, serial_number: str) -> Hello:
    """Return who answers.

    Raises:
        DeviceGone: another device is in its place.
    """
    found = read_hello(await port.ask(Kind.HELLO, hello()))
    if found.kind != kind:
        is_kind = DeviceKind(found.kind).name if found.kind in set(DeviceKind) else f"of kind {found.kind}"
        raise DeviceGone(
            f"expected a {kind.name}, {found.model} {found.serial} is {is_kind}: is the address that of the "
            "other device?"
        )
    if serial_number not in ("", found.serial):
        raise DeviceGone(
            f"expected serial number {serial_number}, {found.model} has {found.serial}: correct the address "
            "or serial_number"
        )
    return found


async def poll(port: OpenProtocolPort, check: Callable[[Position, float], None]) -> None:
    """Ask every second where the device is, so that a silent or changed one is noticed."""
    while True:
        await trio.sleep(POLL_S)
        try:
            check(*await port.now())
        except DeviceError as failure:
            port.fail(failure)
            return
