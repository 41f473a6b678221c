"""How wide what people read may be, and how lines that are wider go on below."""

import os
from contextlib import suppress

USUAL_COLUMNS = 80


def columns() -> int:
    """Return the width of the terminal, or what the environment says; 80 for a pipe."""
    with suppress(KeyError, ValueError):
        return max(1, int(os.environ["COLUMNS"]))
    with suppress(OSError):
        return os.get_terminal_size(1).columns or USUAL_COLUMNS
    return USUAL_COLUMNS


def fitted(line: str, width: int, indent: int) -> list[str]:
    """Return ``line`` as lines of at most ``width``, all but the first indented.

    A line ends in a gap of two spaces or more where it has one, else in a space that is not within a number
    (``1 924``). A word that is longer than a line stays whole.
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
