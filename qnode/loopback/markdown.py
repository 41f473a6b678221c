"""Markdown of reports: tables of figures, a measured row above the model's row and their deviation."""

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
    """A figure of `LinkRow`: what a cell shows is the field times ``factor``, then ``unit``."""

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
        """Return by how many percent the measured figure is above the model's, and what scatter allows."""
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
# A relative deviation of a figure that is next to zero says nothing.
ASYMMETRY = Column("asymmetry", "asymmetry", 4, compared=False)


def table(titles: Sequence[str], rows: Sequence[Sequence[str]], *, words: Sequence[int] = (0, 1)) -> str:
    """Return a Markdown table; all columns but those numbered ``words`` are set to the right.

    Raises:
        ValueError: a row has not as many cells as there are titles.
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
    """One run beside the model's row for it."""

    name: str
    measured: Measured
    model: Predicted


def comparison(what: str, cases: Sequence[Case], columns: Sequence[Column]) -> str:
    """Return a table with three lines a case: measured, model, and the deviation."""
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
        reason = case.model.discarded.partition(":")[0] if case.model.discarded else "0"
        rows.append(["", "model", *(column.cell(model) for column in columns), "", reason, ""])
        rows.append(
            ["", "deviation", *(column.deviation_cell(found, model) for column in columns), "", "", ""]
        )
    return table(titles, rows)


def beside_the_model(what: str, cases: Sequence[Case], columns: Sequence[Column]) -> str:
    """Return a table with one line a case: what was measured, and in brackets what the model says."""
    titles = [what, *(column.title for column in columns), "accepted", "discarded"]
    rows = []
    for case in cases:
        found, model = case.measured, case.model
        figures = [f"{column.cell(found.row)} ({column.cell(model.row)})" for column in columns]
        reason = model.discarded.partition(":")[0] if model.discarded else "0"
        rows.append([case.name, *figures, str(found.accepted), f"{_counted(found.discarded)} ({reason})"])
    return table(titles, rows, words=(0,))


def where_key_ends(cases: Sequence[Case]) -> str:
    """Return a sentence about the first of ``cases``, by growing attack, whose blocks gave no key."""
    for before, case in pairwise(cases):
        if before.measured.accepted and not case.measured.accepted:
            return f"The key is gone somewhere between {before.name} and {case.name}."
    return ""


def why_no_keys(cases: Sequence[Case]) -> str:
    """Return a list of the cases without any key: what the status said, and what the model says."""
    lines = []
    for case in cases:
        if case.measured.accepted:
            continue
        said = case.measured.no_key_because or "keys of the first block are left"
        model = case.model.discarded or "there should be key"
        lines.append(f"* {case.name}: no key. The status says: {said}. The model says: {model}.")
    return "\n".join(lines)


def compared_keys(cases: Sequence[Case]) -> str:
    """Return a sentence about the keys that the encryptors fetched from both ends."""
    compared = sum(case.measured.keys_compared for case in cases)
    different = sum(case.measured.keys_different for case in cases)
    return f"{compared} keys were fetched from both ends over HTTPS and compared; {different} differed."


def made_by(command: str) -> str:
    """Return what made a report, when, and on which class of machine."""
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
