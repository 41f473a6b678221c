"""Write an event as a line for people: ``info     block.done  block=812 qber_z=0.0162 took_s=0.84``."""

import json
import math
import re
from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache
from typing import Any

_COLOURS = {"debug": "2", "warning": "33", "error": "31", "critical": "31;1"}
# Text that ends where a space comes.
_PLAIN = re.compile(r'[^\s"=]+')
_quoted = json.JSONEncoder(ensure_ascii=False, default=str, separators=(",", ":")).encode
_NOT_FIELDS = ("at", "level", "event", "exception")


def render_line(event: Mapping[str, Any], *, coloured: bool = False) -> str:
    """Return the event's line without a time, for a log that adds the time; see `render_dated_line`."""
    level = str(event.get("level", "info"))
    shown = f"{level:<8}"
    if coloured and level in _COLOURS:
        shown = f"\x1b[{_COLOURS[level]}m{shown}\x1b[0m"
    words = [f"{printable(key)}={_value(value)}" for key, value in event.items() if key not in _NOT_FIELDS]
    return f"{shown} {printable(str(event.get('event', '')))}  {' '.join(words)}".rstrip()


def render_dated_line(event: Mapping[str, Any], *, coloured: bool = False) -> str:
    """Return the local time to the millisecond, then the event's line."""
    at = float(event.get("at", 0.0))
    second = math.floor(at)
    time, zone = _local_time(second)
    milliseconds = min(round(1e6 * (at - second)) // 1000, 999)
    return f"{time}.{milliseconds:03d}{zone} {render_line(event, coloured=coloured)}"


@lru_cache(maxsize=2)
def _local_time(second: int) -> tuple[str, str]:
    """Return the local time of a second, and its difference from UTC; made once a second."""
    at = datetime.fromtimestamp(second).astimezone()
    text = at.isoformat(sep=" ", timespec="seconds")
    return text[:19], text[19:]


def printable(text: str) -> str:
    """Replace control characters, which a device or an unknown host may send, by their escapes."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _value(value: Any) -> str:
    """Write one field: numbers short, text quoted if its end would be unclear."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, str):
        return printable(value if _PLAIN.fullmatch(value) else _quoted(value))
    if value is None or isinstance(value, bool | int):
        return str(value).lower()
    return printable(_quoted(value))
