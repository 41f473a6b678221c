"""Instruments that speak SCPI: one question at a time, a number as answer, an identity to compare."""

from typing import Final

import trio

from qnode.devices.protocols import DeviceIdentity
from qnode.devices.settings import figure
from qnode.devices.transport.lines import Lines
from qnode.errors import DeviceError

ANSWER_LIMIT_S: Final = 5.0
ERRORS_READ: Final = 20


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

    async def number(self, question: str, field: int = 0) -> float:
        """Return a number of the answer, the one in ``field`` between commas.

        Raises:
            DeviceError: the answer has no such field, or the device has no value.
            TransientDeviceError: no answer, or the field is no number.
        """
        answer = await self.ask(question)
        fields = answer.split(",")
        if field >= len(fields):
            raise DeviceError(
                f"{self.device}: expected {field + 1} fields or more from {question}, {answer!r} came"
            )
        return figure(self.device, question, fields[field])

    async def tell(self, command: str, errors: str = "") -> None:
        """Send a command; with ``errors`` (`SYST:ERR?`) read the instrument's errors after it.

        Raises:
            DeviceError: the instrument reports an error.
        """
        async with self._lock:
            await self._lines.tell(command, limit_s=ANSWER_LIMIT_S)
            if not errors:
                return
            first = ""
            for _ in range(ERRORS_READ):
                said = (await self._lines.ask(errors, limit_s=ANSWER_LIMIT_S)).strip()
                if said.split(",")[0].strip("+ ") == "0":
                    break
                first = first or said
        if first:
            raise DeviceError(f"{self.device}: refused {command!r}: {first}")

    async def identify(self, question: str, expected: str) -> DeviceIdentity:
        """Ask who it is, and compare.

        ``expected``: a text that the answer must contain, "" for any.

        Raises:
            DeviceError: it is another device.
        """
        answer = await self.ask(question)
        check_identity_text(self.device, answer, expected)
        fields = [field.strip() for field in answer.split(",")]
        known = len(fields) >= 3 and fields[2]
        return DeviceIdentity(model=" ".join(fields[:2]).strip() or "unknown", serial=known or "unknown")


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
