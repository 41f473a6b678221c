"""The figures of a link that are kept over time."""

import math
from typing import Final

from qnode.operate.status.model import NodeStatus

# Their order is that of the file; a change of it makes new files.
FIGURES: Final = (
    "secret_bits_per_s",
    "qber_z",
    "qber_x",
    "visibility",
    "loss_db",
    "clicks_z_hz",
    "clicks_x_hz",
)
UNKNOWN: Final = math.nan


def figures_of(status: NodeStatus) -> tuple[float, ...]:
    """Return the present `FIGURES` of a link, `UNKNOWN` where a figure is not known."""
    quantum = status.quantum
    # Without lock the figures of the last block say nothing about the present.
    e_vis = quantum.e_vis if quantum.locked else None
    known = (
        status.block.secret_bits_per_s,
        quantum.qber_z if quantum.locked else None,
        e_vis,
        None if e_vis is None else 1.0 - 2.0 * e_vis,
        quantum.loss_db,
        quantum.click_rates_hz.get("z"),
        quantum.click_rates_hz.get("x"),
    )
    return tuple(UNKNOWN if value is None else value for value in known)
