"""Writes lines of the log to a file descriptor in a separate thread: logging never waits and never fails.

The destination of stderr may be full or dead, or have no reader. Lines that cannot be written are counted.
The next written line follows a line with their number.
"""

import atexit
import io
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable

MOST_WAITING_BYTES = 4 << 20
_MOST_AT_ONCE_BYTES = 64 << 10
_AT_EXIT_S = 1.0
# Lines of a busy time are written together: to wake the thread for each costs more than to write it.
_PAUSE_S = 0.02


class LogWriter:
    """Writes lines to ``number``, a file descriptor; ``tell_dropped`` makes the line about lost lines."""

    def __init__(self, number: int, tell_dropped: Callable[[int], str]) -> None:
        self._number = number
        self._tell_dropped = tell_dropped
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._writing = 0
        self._dropped = 0
        self._untold = 0
        self._torn = False
        self._changed = threading.Condition()
        threading.Thread(target=self._work, name="log", daemon=True).start()
        atexit.register(self.flush, _AT_EXIT_S)

    @property
    def dropped_lines(self) -> int:
        """The number of lines dropped since the start."""
        return self._dropped

    def put(self, line: str | bytes) -> None:
        """Queue ``line``, or count it as dropped if the queue is full; this never blocks.

        Bytes are written as they are.
        """
        data = line if isinstance(line, bytes) else f"{line}\n".encode(errors="backslashreplace")
        with self._changed:
            if self._waiting_bytes + len(data) > MOST_WAITING_BYTES:
                self._count(1)
                return
            self._waiting.append(data)
            self._waiting_bytes += len(data)
            self._changed.notify_all()

    def flush(self, longest_s: float) -> bool:
        """Wait until the queue is empty, for ``longest_s`` at most; return whether it is."""
        with self._changed:
            return self._changed.wait_for(lambda: not (self._waiting or self._writing), longest_s)

    def _work(self) -> None:
        while True:
            time.sleep(_PAUSE_S)
            with self._changed:
                self._changed.wait_for(lambda: self._waiting)
                lines = self._take()
                self._writing = len(lines)
            written = self._write(lines)
            with self._changed:
                self._count(len(lines) - written)
                self._writing = 0
                self._changed.notify_all()

    def _take(self) -> list[bytes]:
        lines: list[bytes] = []
        size = 0
        while self._waiting and (not lines or size + len(self._waiting[0]) <= _MOST_AT_ONCE_BYTES):
            lines.append(self._waiting.popleft())
            size += len(lines[-1])
        self._waiting_bytes -= size
        return lines

    def _count(self, lines: int) -> None:
        self._dropped += lines
        self._untold += lines

    def _write(self, lines: list[bytes]) -> int:
        """Return the number of ``lines`` that were written completely."""
        try:
            if self._torn:
                self._write_all(b"\n")
                self._torn = False
            if untold := self._untold:
                self._write_all(f"{self._tell_dropped(untold)}\n".encode())
                with self._changed:
                    self._untold -= untold
        except OSError:
            return 0
        for number, line in enumerate(lines):
            try:
                self._write_all(line)
            except OSError:
                return number
        return len(lines)

    def _write_all(self, data: bytes) -> None:
        while data:
            try:
                written = os.write(self._number, data)
            except BlockingIOError:  # another user of the descriptor made it non-blocking
                select.select([], [self._number], [], 1.0)
                continue
            data = data[written:]
            self._torn = bool(data)


class LineLogger:
    """The last step of structlog: each method takes the text of an event."""

    def __init__(self, writer: LogWriter) -> None:
        self._writer = writer

    def msg(self, line: str | bytes) -> None:
        """Queue ``line``."""
        self._writer.put(line)

    log = debug = info = warn = warning = error = critical = exception = fatal = failure = err = msg


class LineStream(io.TextIOBase):
    """A text stream into the log, line by line, for direct output to stderr."""

    encoding = "utf-8"
    errors = "backslashreplace"

    def __init__(self, writer: LogWriter) -> None:
        self._writer = writer
        self._begun = ""

    def writable(self) -> bool:
        """Return True: the stream is writable."""
        return True

    def write(self, text: str) -> int:
        """Queue complete lines; the rest waits for the end of its line."""
        *lines, self._begun = (self._begun + text).split("\n")
        for line in lines:
            self._writer.put(line)
        return len(text)

    def flush(self) -> None:
        """Queue an unfinished line as it is."""
        begun, self._begun = self._begun, ""
        if begun:
            self._writer.put(begun)
