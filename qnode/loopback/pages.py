"""The pages of `qnode report`, made from the measurements of its runs. This module starts no run."""

import math
from collections.abc import Sequence
from typing import Any

from msgspec import Struct

from qnode.choices import LockState
from qnode.loopback.compare import Measured
from qnode.loopback.markdown import (
    C_PLUS,
    C_Z,
    E_VIS,
    F_EC,
    KEYS,
    NOTHING,
    PHI,
    QBER,
    SECRET,
    SIFTED,
    Case,
    compared_keys,
    comparison,
    table,
    why_no_keys,
)

_HOW = (
    "Each run has two daemons on one machine, simulated hardware behind the driver interface, and a fresh "
    "folder. Rates are per second of tag time. The first block of each run is not counted: the error rate is "
    "not known before it, so a sample is disclosed. The row of the model is the expected block of the "
    "analytic link model, taken through the node's own decision at the error-correction efficiency f_EC of "
    "the run. ± is one standard deviation: for secret bits from the differences between blocks, otherwise "
    "that of independent clicks, which dead time can only reduce. The seed is fixed, but Alice's symbols are "
    "new in every run. Simulated seconds per wall second count from the first lock."
)


class LockTimes(Struct, frozen=True, kw_only=True):
    """Simulated seconds: from a cold start to lock, and from the return of light to the first click used."""

    cold_s: float
    relock_s: float
    outage_s: float
    resolution_s: float


class LockLook(Struct, frozen=True, kw_only=True):
    """The lock in one reading of Bob's status."""

    locked: bool
    cut_s: float


def attenuation_page(made: str, blocks: int, cases: Sequence[Case]) -> str:
    """Return `docs/attenuation.md`."""
    columns = (KEYS, SECRET, QBER, E_VIS, PHI, SIFTED, C_Z, C_PLUS, F_EC)
    parts = [
        "# The link over attenuation: measurement and model",
        made,
        f"{_HOW} Each row has at least {blocks} blocks.",
        comparison("attenuation", cases, columns),
        why_no_keys(cases),
        compared_keys(cases),
    ]
    return _page(parts)


def clock_page(
    made: str, blocks: int, ideal: Measured, real: Measured, cuts_s: tuple[float, float], times: LockTimes
) -> str:
    """Return `docs/clock.md`; ``cuts_s``: tag time without lock, ideal and real."""
    rows = []
    for name, run, cut_s in (("ideal", ideal, cuts_s[0]), ("real", real, cuts_s[1])):
        rows.append(
            [
                name,
                f"{run.accepted} accepted",
                *(column.cell(run.row) for column in (SIFTED, SECRET, QBER, E_VIS)),
                f"{cut_s:.3f} s of {run.simulated_s:.0f} s",
            ]
        )
    costs = [_cost(ideal, real, column.field) for column in (SIFTED, SECRET)]
    rows.append(["cost", "", *costs, "", "", ""])
    titles = ["clocks", "blocks", SIFTED.title, SECRET.title, QBER.title, E_VIS.title, "cut"]
    lock_rows = [
        ["from a cold start to lock", "", f"{times.cold_s:.1f} s", "at most 5 s"],
        [
            f"from the return of light after {times.outage_s:.0f} s to the first click used",
            "",
            f"{times.relock_s:.1f} s",
            NOTHING,
        ],
    ]
    parts = [
        "# The cost of clocks and fibre",
        made,
        "Real clocks: Bob's clock deviates by 30 ppm, its rate has a random walk of 1e-9 per root second, "
        "and the delay of the fibre drifts by 10 ns an hour. Ideal clocks have none of these. Rates are per "
        f"second of Bob's tag time, over at least {blocks} blocks, after a first block that is not counted. "
        "± is one standard deviation: for secret bits from the differences between blocks, for sifted bits "
        "that of independent clicks.",
        table(titles, rows),
        "## Lock",
        f"The table is for the real clocks, in simulated seconds. The start is known to "
        f"{times.resolution_s:.1f} s; the time is rounded up.",
        table(["event", "", "time", "required"], lock_rows),
    ]
    return _page(parts)


def lock_times(
    events: Sequence[dict[str, Any]], looks: Sequence[LockLook], outage_s: float, resolution_s: float
) -> LockTimes:
    """Return the times to lock, from Bob's events and from readings of the status around one outage.

    The time to lock again is the time without lock beyond the outage itself.

    Raises:
        ValueError: there was no lock, or none after the outage.
    """
    locks = [
        float(event["tag_time_s"])
        for event in events
        if event.get("event") == "quantum.lock" and event.get("state") == LockState.LOCKED
    ]
    used = [look.cut_s for look in looks if look.locked and look.cut_s > 0.0]
    if len(locks) < 2 or not used or not looks[-1].locked:
        raise ValueError("Bob did not lock, lose lock in the outage and lock again")
    relock_s = used[-1] - used[0] - outage_s
    return LockTimes(cold_s=locks[0], relock_s=relock_s, outage_s=outage_s, resolution_s=resolution_s)


def _cost(ideal: Measured, real: Measured, field: str) -> str:
    before, after = getattr(ideal.row, field), getattr(real.row, field)
    if not before:
        return NOTHING
    scatters = [getattr(run.scatter, field) for run in (ideal, real)]
    allowed = f" ± {100 * math.hypot(*scatters):.2f}" if None not in scatters else ""
    return f"{100 * (1.0 - after / before):+.2f}{allowed} %"


def _page(parts: Sequence[str]) -> str:
    return "\n\n".join(part for part in parts if part) + "\n"
