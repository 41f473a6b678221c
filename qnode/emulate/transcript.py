"""Transcripts of devices as text files, and an emulator that replays one byte by byte.

A line begins with `>` and a space for bytes that were sent to the device, with `<` for bytes from it. Bytes
are written as printable ASCII, `\\n`, `\\r`, `\\t`, `\\\\` or `\\xNN`. Lines that begin with `#` are remarks.
"""

import re
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import trio
from msgspec import Struct

from qnode.errors import ConfigError

MOST_BYTES: Final = 1 << 24
_ESCAPES: Final = {"n": b"\n", "r": b"\r", "t": b"\t", "\\": b"\\"}
_NAMED: Final = {value[0]: f"\\{name}" for name, value in _ESCAPES.items()}
_PART: Final = re.compile(r"\\x([0-9A-Fa-f]{2})|\\([nrt\\])|([ -\[\]-~])")
_BYTES_OF_A_LINE: Final = 64


class Said(Struct, frozen=True):
    """Bytes in one direction: ``sent`` to the device, or received from it."""

    sent: bool
    data: bytes


def read_transcript(path: Path) -> list[Said]:
    """Read a transcript.

    Raises:
        ConfigError: naming file and line.
    """
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ConfigError(f"{path}: more than {MOST_BYTES:,} bytes, expected a transcript")
        lines = path.read_text("ascii").split("\n")
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not ASCII: write other bytes as \\xNN") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    found: list[Said] = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        if line[:2] not in ("> ", "< "):
            raise ConfigError(f"{path}: line {number}: expected '> ', '< ' or '#' at its beginning")
        try:
            found.append(Said(line[0] == ">", _bytes(line[2:])))
        except ValueError as error:
            raise ConfigError(f"{path}: line {number}: {error}") from None
    return joined(found)


def write_transcript(path: Path, said: Iterable[Said], remark: str) -> None:
    """Write a transcript; ``remark``: its first line."""
    lines = [f"# {remark}"]
    for one in joined(said):
        mark = ">" if one.sent else "<"
        # A line of the device begins a line of the file; bytes without line ends are wrapped.
        for part in one.data.splitlines(keepends=True):
            for at in range(0, len(part), _BYTES_OF_A_LINE):
                lines.append(f"{mark} {_text(part[at : at + _BYTES_OF_A_LINE])}")
    path.write_text("\n".join([*lines, ""]), "ascii")


def joined(said: Iterable[Said]) -> list[Said]:
    """Return the bytes with one entry for each change of direction."""
    found: list[Said] = []
    for one in said:
        if found and found[-1].sent == one.sent:
            found[-1] = Said(one.sent, found[-1].data + one.data)
        else:
            found.append(one)
    return found


class TranscriptEmulator:
    """Expects what was sent in a transcript, byte by byte, and answers what was received.

    It says nothing more after a difference; `check` tells it.
    """

    def __init__(self, said: Iterable[Said]) -> None:
        self._left = deque(joined(said))
        self._difference = ""

    async def serve(self, stream: trio.abc.Stream) -> None:
        """Serve one connection; a later one goes on where the transcript was left."""
        while self._left and not self._difference:
            one = self._left[0]
            if not one.sent:
                await stream.send_all(one.data)
            elif not await self._expect(stream, one.data):
                return
            self._left.popleft()
        await trio.sleep_forever()

    async def _expect(self, stream: trio.abc.Stream, data: bytes) -> bool:
        came = b""
        while len(came) < len(data):
            part = await stream.receive_some(len(data) - len(came))
            if not part:
                return False
            came += bytes(part)
            if not data.startswith(came):
                self._difference = f"expected {data!r}, {came!r} came"
                break
        return True

    def check(self) -> None:
        """Fail unless all of the transcript was said, and nothing else.

        Raises:
            AssertionError: naming what was expected, and what came.
        """
        if self._difference:
            raise AssertionError(self._difference)
        if self._left:
            raise AssertionError(
                f"not said: {self._left[0].data!r}, and {len(self._left) - 1} parts after it"
            )


def _text(data: bytes) -> str:
    text = "".join(_NAMED.get(byte) or (chr(byte) if 32 <= byte < 127 else f"\\x{byte:02x}") for byte in data)
    # A space at the end of a line would be lost in an editor.
    return text[:-1] + "\\x20" if text.endswith(" ") else text


def _bytes(text: str) -> bytes:
    found, at = b"", 0
    while at < len(text):
        part = _PART.match(text, at)
        if part is None:
            raise ValueError(
                f"expected printable ASCII, \\n, \\r, \\t, \\\\ or \\xNN, got {text[at : at + 4]!r}"
            )
        value, name, plain = part.groups()
        found += bytes.fromhex(value) if value else _ESCAPES[name] if name else plain.encode()
        at = part.end()
    return found
