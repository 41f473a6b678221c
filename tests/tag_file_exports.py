"""Recorded tags as the files of time taggers, with the formats' own numbers of inputs."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from qnode.tags.types import Channels, Times


def write_qutag(path: Path, times_ps: Times, inputs: "np.ndarray") -> Path:
    records = np.empty(times_ps.size, [("time_ps", "<i8"), ("channel", "<i2")])
    records["time_ps"], records["channel"] = times_ps, inputs
    path.write_bytes(bytes(40) + records.tobytes())
    return path


def export_qutag(folder: Path, times_ps: Times, channels: Channels) -> Path:
    """Write Z at input 3, X at input 1 and 350 ps early, a sync at input 5; the counter is at 72 hours."""
    sync = np.arange(0, int(times_ps.max()), 10**9)
    times = np.concatenate((times_ps - 350 * channels.astype(np.int64), sync))
    inputs = np.concatenate((np.where(channels == 0, 3, 1), np.full(sync.size, 5)))
    # The order of recorded tags is the order of the file; a sync follows the tags before it.
    places = np.searchsorted(np.maximum.accumulate(times_ps), sync)
    order = np.argsort(np.concatenate((np.arange(times_ps.size), places - 0.5)), kind="stable")
    return write_qutag(folder / "tags.qutag", times[order] + 72 * 3600 * 10**12, inputs[order])


EXPORTS: dict[str, tuple[Callable[[Path, Times, Channels], Path], str]] = {
    "qutag": (export_qutag, "z=3,x=1+350ps"),
}
"""How to write a file of each format, and the map of its channels."""
