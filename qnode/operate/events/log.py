"""The event log: one line an event, ``noun.verb`` with fields, to stderr; the latest are kept for `qnodectl`.

The log never contains bytes: a processor before every output replaces them by their number. It replaces
values of unknown types by the type's name. So key material cannot enter a log by accident.
"""

import json
import logging
import os
import re
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import Path, PurePath
from typing import Any, TextIO
from uuid import UUID

import structlog
from structlog.typing import EventDict, WrappedLogger

from qnode.choices import LogFormat, LogLevel
from qnode.operate.events.journal import JOURNAL_SOCKET, PRIORITIES, JournalWriter, entry_of, has_journal
from qnode.operate.events.line import render_dated_line, render_line
from qnode.operate.events.writer import LineLogger, LineStream, LogWriter

KEPT_EVENTS = 1000
LONGEST_TEXT_CHARACTERS = 20_000  # of a traceback; a field with text of a driver ends earlier
LONGEST_FIELD_CHARACTERS = 1000
MOST_ITEMS = 64
DEEPEST_NESTING = 3
LARGEST_NUMBER_BITS = 64  # a longer number may be a key or a tag

# Messages of exceptions quote their arguments: bytes and arrays in them may be key material too.
_QUOTED_BYTES = re.compile(r"""\bb(?:'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*")""", re.DOTALL)
_QUOTED_ARRAY = re.compile(r"\barray\(\[.*?\](?:,[^()]*)?\)", re.DOTALL)


class EventLog:
    """The latest events, oldest first, and the number of lines that could not be written."""

    def __init__(self, kept: int = KEPT_EVENTS) -> None:
        self._events: deque[dict[str, Any]] = deque(maxlen=kept)
        self._writer: LogWriter | None = None

    @property
    def dropped_lines(self) -> int:
        """The number of lines dropped since the start because no reader took them."""
        return self._writer.dropped_lines if self._writer is not None else 0

    def flush(self, longest_s: float = 1.0) -> None:
        """Wait until all lines are written or dropped, for ``longest_s`` at most."""
        if self._writer is not None:
            self._writer.flush(longest_s)

    def take_stderr(self) -> None:
        """Make all other output to stderr, such as a last traceback, neither wait nor fail."""
        if self._writer is not None:
            sys.stderr = LineStream(self._writer)

    def write_to(self, writer: LogWriter) -> None:
        """Set the writer of these events' lines."""
        self._writer = writer

    def recent(self, count: int = KEPT_EVENTS) -> list[dict[str, Any]]:
        """Return the latest ``count`` events: `at` (unix seconds), `level`, `event`, then the fields."""
        events = list(self._events)
        return events[-count:] if count > 0 else []

    def keep(self, _logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        """Keep a copy of the event (a structlog processor)."""
        self._events.append(dict(event))
        return event


def configure_log(
    level: LogLevel = "info",
    log_format: LogFormat = "auto",
    *,
    stream: TextIO | None = None,
    journal_socket: Path = JOURNAL_SOCKET,
) -> EventLog:
    """Set structlog up for the whole process and return the log of recent events.

    ``auto`` chooses `journal` when the stream is journald's (entries with fields to ``journal_socket``, or a
    priority before each line if there is no such socket), `terminal`
    (coloured) on a terminal, else `plain`; `json` is one JSON object a line. ``stream``: stderr if None. A
    stream that leads out of the process is written by a thread (`LogWriter`), so that logging neither waits
    nor fails.
    """
    output = stream or sys.stderr
    if output is None:  # Python found descriptor 2 closed; no other file may get its number
        output = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
    events = EventLog()
    log_format = _format_of(output) if log_format == "auto" else log_format
    render = _renderer(log_format)
    journal = journal_socket if log_format == "journal" and _has_journal(output, journal_socket) else None
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            # The plain formatter: formatters that show local variables would show keys.
            structlog.processors.format_exc_info,
            redact,
            _in_order,
            events.keep,
            render if journal is None else _as_entry,
        ],
        wrapper_class=_logger_of(level),
        logger_factory=_logger_factory(output, events, render, journal),
        cache_logger_on_first_use=False,
    )
    return events


def set_log_level(level: LogLevel) -> None:
    """Write and keep events of ``level`` and above from now on."""
    structlog.configure(wrapper_class=_logger_of(level))


def _logger_of(level: LogLevel) -> type[structlog.typing.BindableLogger]:
    return structlog.make_filtering_bound_logger(getattr(logging, level.upper()))


Render = Callable[[WrappedLogger, str, EventDict], str]


def _logger_factory(
    output: TextIO, events: EventLog, render: Render, journal: Path | None
) -> Callable[..., Any]:
    try:
        number = output.fileno()
    except (OSError, ValueError):
        return structlog.PrintLoggerFactory(file=output)  # in memory

    def tell_dropped(lines: int) -> str:
        event = {"at": time.time(), "level": "warning", "event": "log.dropped", "lines": lines}
        return render(None, "warning", event)

    writer = (
        LogWriter(number, tell_dropped) if journal is None else JournalWriter(number, tell_dropped, journal)
    )
    events.write_to(writer)
    return lambda *_: LineLogger(writer)


def redact(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Replace everything that may hold key material (a structlog processor); see the module's text."""
    return {
        str(key): _redacted_text(value, LONGEST_TEXT_CHARACTERS) if key == "exception" else _safe(value)
        for key, value in event.items()
    }


def _safe(value: Any, depth: int = 0) -> Any:
    """Return ``value`` as plain data that may be shown: an allowed type, or a note on the removed value."""
    if type(value) is str:
        return _redacted_text(value, LONGEST_FIELD_CHARACTERS)
    if isinstance(value, Enum):
        value = value.value
    if value is None or isinstance(value, bool | float):
        return value if not isinstance(value, float) else float(value)
    if isinstance(value, int):
        return (
            int(value) if value.bit_length() <= LARGEST_NUMBER_BITS else f"<{value.bit_length()}-bit number>"
        )
    if isinstance(value, str):
        return _redacted_text(value, LONGEST_FIELD_CHARACTERS)
    if isinstance(value, bytes | bytearray | memoryview):
        return f"<{len(value)} bytes>"
    if isinstance(value, UUID | PurePath):
        return str(value)
    if isinstance(value, BaseException):
        return _redacted_text(f"{type(value).__name__}: {value}", LONGEST_FIELD_CHARACTERS)
    if depth < DEEPEST_NESTING and isinstance(value, Mapping):
        return {
            str(_safe(key, depth + 1)): _safe(item, depth + 1)
            for key, item in list(value.items())[:MOST_ITEMS]
        }
    if depth < DEEPEST_NESTING and isinstance(value, list | tuple | set | frozenset):
        return [_safe(item, depth + 1) for item in list(value)[:MOST_ITEMS]]
    if type(value).__module__ == "numpy" and getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        return _safe(value.item(), depth + 1)  # one figure; arrays fall through
    return f"<{type(value).__name__}>"


def _redacted_text(text: str, longest: int) -> str:
    """Remove quoted bytes and arrays, and shorten text that is too long."""
    clean = text
    if "b'" in text or 'b"' in text or "array(" in text:
        clean = _QUOTED_ARRAY.sub("<array>", _QUOTED_BYTES.sub("<bytes>", text))
    return clean if len(clean) <= longest else f"{clean[:longest]}… ({len(clean) - longest} more)"


def _in_order(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Put time, level and name first."""
    head = {"at": round(time.time(), 6), "level": event.pop("level"), "event": event.pop("event")}
    return {**head, **{key: value for key, value in event.items() if key not in head}}


def _as_entry(_logger: WrappedLogger, _method: str, event: EventDict) -> bytes:
    return entry_of(event)


def _has_journal(stream: TextIO, path: Path) -> bool:
    try:
        return has_journal(stream.fileno(), path)
    except (OSError, ValueError):
        return False


def _format_of(stream: TextIO) -> LogFormat:
    """Choose the format by the destination of the stream (systemd.exec(5), JOURNAL_STREAM)."""
    try:
        number = stream.fileno()
        where = os.fstat(number)
    except (OSError, ValueError):
        return "plain"  # closed, or in memory
    if os.environ.get("JOURNAL_STREAM") == f"{where.st_dev}:{where.st_ino}":
        return "journal"
    return "terminal" if os.isatty(number) else "plain"


def _renderer(log_format: LogFormat) -> Render:
    """Return the last structlog processor, which makes an event's text."""

    def with_traceback(line: str, event: EventDict) -> str:
        return f"{line}\n{event['exception']}" if "exception" in event else line

    def journal(_logger: WrappedLogger, _method: str, event: EventDict) -> str:
        priority = f"<{PRIORITIES.get(event['level'], 6)}>"
        # Each line is a separate entry for journald and needs its priority.
        return "\n".join(priority + line for line in with_traceback(render_line(event), event).splitlines())

    def dated(_logger: WrappedLogger, _method: str, event: EventDict) -> str:
        return with_traceback(render_dated_line(event, coloured=log_format == "terminal"), event)

    def as_json(_logger: WrappedLogger, _method: str, event: EventDict) -> str:
        return json.dumps(event, ensure_ascii=False, separators=(",", ":"))

    return {"journal": journal, "json": as_json}.get(log_format, dated)
