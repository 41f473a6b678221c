"""Markdown of reports: tables of figures, with a measured row, the model's row and their deviation."""

import os
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from qnode import __version__
from qnode.loopback.compare import LinkRow, Measured, Predicted, deviation

NOTHING = "–"


@dataclass(frozen=True)
class Column:
    """A figure of `LinkRow`: a cell shows the field times ``factor``, then ``unit``."""

    title: str
    field: str
    digits: int
    factor: float = 1.0
    unit: str = ""
    compared: bool = True

    def cell(self, row: LinkRow) -> str:
        """Return the figure of ``row``."""
        value = getattr(row, self.field)
        return NOTHING if value is None else f"{value * self.factor:.{self.digits}f}{self.unit}"

    def deviation_cell(self, measured: Measured, model: LinkRow) -> str:
        """Return the deviation of the measured figure from the model, and its standard deviation."""
        above = deviation(getattr(measured.row, self.field), getattr(model, self.field))
        if above is None or not self.compared:
            return ""
        scatter = getattr(measured.scatter, self.field, None)
        allowed = f" ± {100 * scatter:.2f}" if scatter is not None else ""
        return f"{100 * above:+.2f}{allowed} %"


def _percent(title: str, field: str) -> Column:
    return Column(title, field, 2, 100.0, " %")


KEYS = Column("keys/s", "secret_bits_per_s", 2, 1 / 256, compared=False)
SECRET = Column("secret bit/s", "secret_bits_per_s", 0)
QBER = _percent("QBER_Z", "qber_z")
E_VIS = _percent("e_vis", "e_vis")
PHI = _percent("phi_Z^u", "phi_z_upper")
SIFTED = Column("sifted bit/s (n_Z)", "sifted_bits_per_s", 0)
C_Z = Column("C_Z /s", "c_z_per_s", 0)
C_PLUS = Column("C_+ /s", "c_plus_per_s", 1)
F_EC = Column("f_EC", "f_ec", 3, compared=False)
# A relative deviation of a figure near zero means nothing.
ASYMMETRY = Column("asymmetry", "asymmetry", 4, compared=False)


def table(titles: Sequence[str], rows: Sequence[Sequence[str]], *, words: Sequence[int] = (0, 1)) -> str:
    """Return a Markdown table; all columns except those numbered ``words`` are right-aligned.

    Raises:
        ValueError: the number of cells in a row is not the number of titles.
    """
    marks = ["---" if place in words else "---:" for place in range(len(titles))]
    lines = [_line(titles), _line(marks)]
    for row in rows:
        if len(row) != len(titles):
            raise ValueError(f"a row of {len(row)} cells in a table of {len(titles)}")
        lines.append(_line(row))
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


@dataclass(frozen=True)
class Case:
    """One run and the model's row for it."""

    name: str
    measured: Measured
    model: Predicted


def comparison(what: str, cases: Sequence[Case], columns: Sequence[Column]) -> str:
    """Return a table with three lines per case: measured, model, and the deviation."""
    titles = [
        what,
        "",
        *(column.title for column in columns),
        "accepted",
        "discarded",
        "simulated s per wall s",
    ]
    rows: list[list[str]] = []
    for case in cases:
        found, model = case.measured, case.model.row
        speed = NOTHING if found.times_real_time is None else f"{found.times_real_time:.0f}"
        rows.append(
            [
                case.name,
                "measured",
                *(column.cell(found.row) for column in columns),
                str(found.accepted),
                _counted(found.discarded),
                speed,
            ]
        )
        reason = case.model.discarded or "0"
        rows.append(["", "model", *(column.cell(model) for column in columns), "", reason, ""])
        rows.append(
            ["", "deviation", *(column.deviation_cell(found, model) for column in columns), "", "", ""]
        )
    return table(titles, rows)


def beside_the_model(what: str, cases: Sequence[Case], columns: Sequence[Column]) -> str:
    """Return a table with one line per case: the measured figure, and the model's figure in brackets."""
    titles = [what, *(column.title for column in columns), "accepted", "discarded"]
    rows = []
    for case in cases:
        found, model = case.measured, case.model
        figures = [f"{column.cell(found.row)} ({column.cell(model.row)})" for column in columns]
        reason = model.discarded or "0"
        rows.append([case.name, *figures, str(found.accepted), f"{_counted(found.discarded)} ({reason})"])
    return table(titles, rows, words=(0,))


def where_key_ends(cases: Sequence[Case]) -> str:
    """Return a sentence about the first of ``cases``, by growing attack, whose blocks gave no key."""
    for before, case in pairwise(cases):
        if before.measured.accepted and not case.measured.accepted:
            return f"The key ends between {before.name} and {case.name}."
    return ""


def why_no_keys(cases: Sequence[Case]) -> str:
    """Return a list of the cases without key, with the reasons of the status and of the model."""
    lines = []
    for case in cases:
        if case.measured.accepted:
            continue
        said = case.measured.no_key_because or "keys of the first block remain"
        model = case.model.told or "key is expected"
        lines.append(f"* {case.name}: no key. Status: {said}. Model: {model}.")
    return "\n".join(lines)


def compared_keys(cases: Sequence[Case]) -> str:
    """Return a sentence about the keys that encryptors fetched from both ends."""
    compared = sum(case.measured.keys_compared for case in cases)
    different = sum(case.measured.keys_different for case in cases)
    return f"Encryptors fetched and compared {compared} keys from both ends over HTTPS; {different} differed."


def made_by(command: str) -> str:
    """Return the command, date and class of machine of a report."""
    made = time.strftime("%Y-%m-%d", time.gmtime())
    return (
        f"Made by `{command}` on {made} with qnode {__version__}, Python {platform.python_version()}, "
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs ({_processor()}). Do not edit."
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or "unknown")


def _counted(discarded: dict[str, int]) -> str:
    return ", ".join(f"{number} {reason}" for reason, number in discarded.items()) or "0"
