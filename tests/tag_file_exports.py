"""Recorded tags as the files of time taggers, written without the readers."""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qnode.tags.types import Channels, Times

PTU_T2 = {"TTResultFormat_TTTRRecType": 0x01010204, "TTResult_NumberOfRecords": 0}


@dataclass(frozen=True)
class Export:
    """A file, its map of channels, and the tags as this format can hold them."""

    path: Path
    channels: str
    times_ps: Times
    file_channels: Channels


def write_qutag(path: Path, times_ps: Times, inputs: "np.ndarray") -> Path:
    records = np.empty(times_ps.size, [("time_ps", "<i8"), ("channel", "<i2")])
    records["time_ps"], records["channel"] = times_ps, inputs
    path.write_bytes(bytes(40) + records.tobytes())
    return path


def export_qutag(folder: Path, times_ps: Times, channels: Channels) -> Export:
    """Write Z at input 3, X at input 1 and 350 ps early, a sync at input 5; the counter is at 72 hours."""
    sync = np.arange(0, int(times_ps.max()), 10**9)
    times = np.concatenate((times_ps - 350 * channels.astype(np.int64), sync))
    inputs = np.concatenate((np.where(channels == 0, 3, 1), np.full(sync.size, 5)))
    # The order of recorded tags is the order of the file; a sync follows the tags before it.
    places = np.searchsorted(np.maximum.accumulate(times_ps), sync)
    order = np.argsort(np.concatenate((np.arange(times_ps.size), places - 0.5)), kind="stable")
    path = write_qutag(folder / "tags.qutag", times[order] + 72 * 3600 * 10**12, inputs[order])
    return Export(path, "z=3,x=1+350ps", times_ps, channels)


def export_ptu(folder: Path, times_ps: Times, channels: Channels) -> Export:
    """Write T2 records of a HydraHarp 400 (version 2), which are in order; Z is its sync input, X input 2."""
    order = np.argsort(times_ps, kind="stable")
    times, sorted_channels = times_ps[order], channels[order]
    special = np.where(sorted_channels == 0, 1 << 31, 1 << 25)
    wraps = np.diff(times >> 25, prepend=0)
    first = np.flatnonzero(wraps)  # before these tags the counter began again so many times
    words = np.insert(special | (times & (1 << 25) - 1), first, (1 << 31 | 63 << 25) | wraps[first])
    content = b"PQTTTR\0\0" + b"1.0.00\0\0"
    for name, value in (PTU_T2 | {"TTResult_NumberOfRecords": words.size}).items():
        content += name.encode().ljust(32, b"\0") + struct.pack("<iIq", -1, 0x10000008, value)
    for name, seconds in (("MeasDesc_GlobalResolution", 1e-12), ("MeasDesc_Resolution", 1e-12)):
        content += name.encode().ljust(32, b"\0") + struct.pack("<iId", -1, 0x20000008, seconds)
    content += b"Header_End".ljust(32, b"\0") + struct.pack("<iIq", -1, 0xFFFF0008, 0)
    path = folder / "tags.ptu"
    path.write_bytes(content + words.astype("<u4").tobytes())
    return Export(path, "z=0,x=2", times, sorted_channels)


def export_a1(folder: Path, times_ps: Times, channels: Channels) -> Export:
    """Write words of S-Fifteen's TDC2, in steps of 1/256 ns; Z is input 1, X input 4."""
    ticks = (times_ps * 32 + 62) // 125
    path = folder / "tags.a1"
    path.write_bytes((ticks << 10 | np.where(channels == 0, 1, 8)).astype("<u8").tobytes())
    return Export(path, "z=1,x=4", (ticks * 125 + 16) // 32, channels)


def export_npy(folder: Path, times_ps: Times, channels: Channels) -> Export:
    """Write an array of two columns."""
    path = folder / "tags.npy"
    np.save(path, np.stack((times_ps, channels.astype(np.int64) + 7), axis=1))
    return Export(path, "z=7,x=8", times_ps, channels)


EXPORTS: dict[str, Callable[[Path, Times, Channels], Export]] = {
    "qutag": export_qutag,
    "ptu": export_ptu,
    "a1": export_a1,
    "npy": export_npy,
}
"""How to write a file of each format."""
