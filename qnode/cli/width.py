"""The width of output for people, and the wrapping of wider lines."""

import os
from contextlib import suppress

USUAL_COLUMNS = 80


def columns() -> int:
    """Return the width of the terminal, or the width from the environment; 80 for a pipe."""
    with suppress(KeyError, ValueError):
        return max(1, int(os.environ["COLUMNS"]))
    with suppress(OSError):
        return os.get_terminal_size(1).columns or USUAL_COLUMNS
    return USUAL_COLUMNS


def fitted(line: str, width: int, indent: int) -> list[str]:
    """Return ``line`` as lines of at most ``width``; all lines after the first are indented.

    A line is broken at a gap of two or more spaces if it has one, else at a space that is not within a number
    (``1 924``). A word longer than a line stays whole.
    """
    lines = []
    while len(line) > width:
        cut = _place_to_cut(line, width, indent)
        if cut is None:
            break
        lines.append(line[:cut].rstrip())
        line = " " * indent + line[cut:].lstrip()
    return [*lines, line]


def _place_to_cut(line: str, width: int, indent: int) -> int | None:
    least = max(indent, len(line) - len(line.lstrip())) + 1
    gap = line.rfind("  ", least, width + 2)
    if gap >= 0:
        return gap
    spaces = [at for at in range(least, len(line) - 1) if line[at] == " "]
    spaces = [at for at in spaces if not (line[at - 1].isdigit() and line[at + 1].isdigit())]
    return max((at for at in spaces if at <= width), default=min(spaces, default=None))
