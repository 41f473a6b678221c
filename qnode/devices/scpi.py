"""Instruments that speak SCPI: one question at a time, a number as answer, an identity to compare."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Final, Literal

import trio
from msgspec import Struct

from qnode.config.description import Described
from qnode.devices.protocols import DeviceIdentity
from qnode.devices.settings import figure
from qnode.devices.transport import check_address, open_transport
from qnode.devices.transport.lines import Lines
from qnode.errors import DeviceError

ANSWER_LIMIT_S: Final = 5.0
ERRORS_READ: Final = 20
_LINE_ENDS: Final = {"lf": b"\n", "crlf": b"\r\n", "cr": b"\r"}


class ScpiConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where an instrument is and how it identifies itself; drivers add their keys."""

    address: Annotated[
        str,
        Described("address of the device: tcp://HOST:PORT, serial:///dev/serial/by-id/..., visa://RESOURCE"),
    ]
    identity: Annotated[
        str,
        Described("a text in the answer to `*IDN?`, such as the serial number; another device is refused"),
    ] = ""
    line_end: Annotated[Literal["lf", "crlf", "cr"], Described("what ends a line in both directions")] = "lf"
    identify: Annotated[
        str | None,
        Described("question for the identity; empty: none is asked; default: `*IDN?`, or the preset's"),
    ] = None

    def __post_init__(self) -> None:
        check_address(self.address, "serial", "tcp", "visa")
        if self.identity and self.identify == "":
            raise ValueError("identity: there is no question for it, set identify")


class Scpi:
    """One instrument; several tasks may use it. ``device`` is its name in messages."""

    def __init__(self, lines: Lines, device: str) -> None:
        self._lines = lines
        self._lock = trio.Lock()
        self.device = device

    async def ask(self, question: str) -> str:
        """Return the answer to a question.

        Raises:
            TransientDeviceError: none within 5 s, or no line of text.
        """
        async with self._lock:
            return (await self._lines.ask(question, limit_s=ANSWER_LIMIT_S)).strip()

    async def number(self, question: str) -> float:
        """Return the number that answers a question.

        Raises:
            DeviceError: the instrument has no value.
            TransientDeviceError: no answer, or one that is no number.
        """
        return figure(self.device, question, await self.ask(question))

    def field(self, question: str, answer: str, place: int) -> float:
        """Return one of the numbers between the commas of an answer, the first has place 0.

        Raises:
            DeviceError: the answer has fewer, or the instrument has no value.
            TransientDeviceError: it is no number.
        """
        fields = answer.split(",")
        if place >= len(fields):
            raise DeviceError(
                f"{self.device}: expected {place + 1} fields or more from {question}, {answer[:60]!r} came"
            )
        return figure(self.device, question, fields[place])

    async def tell(self, command: str, errors: str = "") -> None:
        """Send a command; with ``errors`` (`SYST:ERR?`) read the instrument's errors after it.

        Raises:
            DeviceError: the instrument reports an error.
        """
        async with self._lock:
            await self._lines.tell(command, limit_s=ANSWER_LIMIT_S)
            first = await self._empty(errors) if errors else ""
        if first:
            raise DeviceError(f"{self.device}: refused {command!r}: {first}")

    async def make_ready(self, commands: tuple[str, ...], errors: str) -> None:
        """Send commands to an instrument that is just opened; ``errors`` as in `tell`.

        Raises:
            DeviceError: the instrument reports an error.
        """
        if commands:
            await self.forget(errors)
        for command in commands:
            await self.tell(command, errors)

    async def forget(self, errors: str) -> None:
        """Take the errors of earlier users out of the instrument's list; ``errors`` is the question."""
        if errors:
            async with self._lock:
                await self._empty(errors)

    async def _empty(self, errors: str) -> str:
        """Read the list of errors to its end, and return the first; "" if there is none."""
        first = ""
        for _ in range(ERRORS_READ):
            said = (await self._lines.ask(errors, limit_s=ANSWER_LIMIT_S)).strip()
            if said.split(",")[0].strip("+ ") == "0":
                break
            first = first or said
        return first

    async def identify(self, config: ScpiConfig, question: str = "*IDN?") -> DeviceIdentity:
        """Ask who it is, and compare with the configuration; ``question``: unless that names another.

        Raises:
            DeviceError: it is another device.
        """
        question = question if config.identify is None else config.identify
        if not question:
            return DeviceIdentity("unknown", "unknown")
        answer = await self.ask(question)
        check_identity_text(self.device, answer, config.identity)
        fields = [field.strip() for field in answer.split(",")]
        known = len(fields) >= 3 and fields[2]
        return DeviceIdentity(model=" ".join(fields[:2]).strip() or "unknown", serial=known or "unknown")


@asynccontextmanager
async def open_scpi(config: ScpiConfig, kind: str) -> AsyncIterator[Scpi]:
    """Open the way to an instrument; ``kind`` and its address name it in messages.

    Raises:
        DeviceGone: it is not there.
        DeviceError: it cannot be opened.
    """
    end = _LINE_ENDS[config.line_end]
    async with open_transport(config.address) as port:
        yield Scpi(Lines(port, line_end=end, command_end=end), f"{kind} at {config.address}")


def check_identity_text(device: str, said: str, expected: str) -> None:
    """Compare what a device says of itself with the text that the configuration expects in it.

    Raises:
        DeviceError: it is another device.
    """
    if expected.lower() not in said.lower():
        raise DeviceError(
            f"{device}: expected a device with {expected!r} in its identity, {said[:80]!r} came: another "
            "device is on this port, correct address or identity"
        )
