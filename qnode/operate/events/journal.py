"""Events for journald with their fields, so that `journalctl -u qnode@alice QKD_BLOCK=812` finds a block.

An entry is one datagram in journald's native format, or a sealed file in memory if it is too long for one.
Each value has its length in front, so no text in it can begin another field. While journald does not take
datagrams, the lines go to its stream with their priorities, as they do without its socket.
"""

import errno
import fcntl
import json
import os
import re
import socket
import stat
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from qnode.operate.events.line import printable, render_line
from qnode.operate.events.writer import LogWriter

JOURNAL_SOCKET: Final = Path("/run/systemd/journal/socket")
# syslog priorities
PRIORITIES: Final = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}
_NOT_FIELDS: Final = ("at", "level", "exception")
_LONGEST_NAME: Final = 64
_LENGTH: Final = struct.Struct("<Q")
_TOO_LONG: Final = (errno.EMSGSIZE, errno.ENOBUFS)
# fcntl(2), which the module of Python 3.11 does not name on every machine
_ADD_SEALS: Final = 1033
_ALL_SEALS: Final = 0b1111


def has_journal(number: int, path: Path = JOURNAL_SOCKET) -> bool:
    """Return whether the descriptor is a stream of journald's and its socket for entries is there."""
    try:
        return stat.S_ISSOCK(os.fstat(number).st_mode) and stat.S_ISSOCK(path.stat().st_mode)
    except OSError:
        return False


def entry_of(event: Mapping[str, Any]) -> bytes:
    """Return an event as an entry: the line as its message, and ``QKD_`` with each field's name."""
    message = render_line(event)
    if "exception" in event:
        message = "\n".join([message, *(printable(line) for line in str(event["exception"]).splitlines())])
    fields = {"MESSAGE": message, "PRIORITY": str(PRIORITIES.get(str(event.get("level")), 6))}
    fields["SYSLOG_IDENTIFIER"] = "qnode"
    for key, value in event.items():
        if key not in _NOT_FIELDS:
            fields.setdefault(_name(key), _text(value))
    return b"".join(_field(name, text) for name, text in fields.items())


def _name(key: str) -> str:
    return ("QKD_" + re.sub(r"[^A-Z0-9_]", "_", key.upper()))[:_LONGEST_NAME]


def _text(value: Any) -> str:
    if isinstance(value, str):
        return printable(value)
    return printable(json.dumps(value, ensure_ascii=False, default=str, separators=(",", ":")))


def _field(name: str, text: str) -> bytes:
    value = text.encode(errors="backslashreplace")
    return name.encode() + b"\n" + _LENGTH.pack(len(value)) + value + b"\n"


def _lines(entry: bytes) -> bytes:
    """Return an entry as lines for journald's stream: its message, each line with the priority."""
    start = len(b"MESSAGE\n") + _LENGTH.size
    (length,) = _LENGTH.unpack_from(entry, start - _LENGTH.size)
    after = start + length + len(b"\nPRIORITY\n") + _LENGTH.size
    priority = b"<" + entry[after : after + 1] + b">"
    return b"".join(priority + line + b"\n" for line in entry[start : start + length].splitlines())


class JournalWriter(LogWriter):
    """Sends entries to journald at ``path``; other lines, and entries if it is gone, to its stream."""

    def __init__(self, number: int, tell_dropped: Callable[[int], str], path: Path = JOURNAL_SOCKET) -> None:
        self._path = str(path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        super().__init__(number, tell_dropped)

    def _write_all(self, data: bytes) -> None:
        if not data.startswith(b"MESSAGE\n"):
            super()._write_all(data)
            return
        try:
            self._send(data)
        except OSError:
            super()._write_all(_lines(data))

    def _send(self, entry: bytes) -> None:
        try:
            self._socket.sendto(entry, self._path)
        except OSError as error:
            if error.errno not in _TOO_LONG:
                raise
            self._send_file(entry)

    def _send_file(self, entry: bytes) -> None:
        number = os.memfd_create("journal-entry", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            with open(number, "wb", closefd=False) as file:
                file.write(entry)
            fcntl.fcntl(number, _ADD_SEALS, _ALL_SEALS)
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", number))
            self._socket.sendmsg([], [rights], 0, self._path)
        finally:
            os.close(number)
