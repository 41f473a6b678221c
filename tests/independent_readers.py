"""Other projects' readers of tag files, where they are installed, with our times and channel numbers."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Columns = tuple[Any, Any]
"""Times in picoseconds, and channels: sync 0, input n = n."""


@dataclass(frozen=True)
class Reader:
    """A reader. ``read`` gives all tags; ``records`` what the package itself gives, where that is less."""

    package: str
    formats: tuple[str, ...]
    read: Callable[[Any, Path, str], Columns]
    records: Callable[[Any, Path], object] | None = None

    def library(self) -> Any:
        """Return the package; None where it is not installed."""
        try:
            return importlib.import_module(self.package)
        except ImportError:
            return None

    def version(self) -> str:
        """Return the version of the installed package, or ""."""
        return str(getattr(importlib.import_module(self.package.split(".")[0]), "__version__", ""))


def _t3_ps(syncs: Any, period_s: float, dtimes: Any, dtime_s: float) -> Any:
    wide = np.longdouble
    times = syncs.astype(wide) * (wide(period_s) * wide(10) ** 12) + dtimes.astype(np.int64) * round(
        dtime_s * 1e12
    )
    return np.floor(times + wide(0.5)).astype(np.int64)


def _ptufile(library: Any, path: Path, _format: str) -> Columns:
    with library.PtuFile(path) as file:
        records = file.decode_records()
        records = records[records["channel"] >= 0]
        if file.is_t3:
            times = _t3_ps(records["time"], file.global_resolution, records["dtime"], file.tcspc_resolution)
        else:
            times = records["time"].astype(np.int64) * round(file.global_resolution * 1e12)
        has_sync_channel = file.record_type == 0x0001_0203  # PicoHarp 300
        return times, records["channel"].astype(np.int16) + (0 if has_sync_channel else 1)


def _ptufile_records(library: Any, path: Path) -> object:
    with library.PtuFile(path) as file:
        return file.decode_records()


def _tttrlib(library: Any, path: Path, _format: str) -> Columns:
    tags = library.TTTR(str(path), "PTU")
    is_tag = np.asarray(tags.event_types) == 0
    times, channels = np.asarray(tags.macro_times)[is_tag], np.asarray(tags.routing_channels)[is_tag]
    period_s = tags.header.macro_time_resolution
    if period_s > 1e-9:
        dtimes = np.asarray(tags.micro_times)[is_tag]
        return _t3_ps(times, period_s, dtimes, tags.header.micro_time_resolution), channels + 1
    return times.astype(np.int64) * round(period_s * 1e12), channels.astype(np.int16) + 1


def _tttrlib_records(library: Any, path: Path) -> object:
    return library.TTTR(str(path), "PTU")


def _patterns(events: tuple[Any, Any], numerator: int, denominator: int) -> Columns:
    """Return a tag for each bit of the pattern of an event, and its ticks in picoseconds."""
    ticks, patterns = events
    inputs = (patterns[:, None] >> np.arange(4, dtype=patterns.dtype) & 1).astype(bool)
    times = (ticks.astype(np.int64) * numerator + denominator // 2) // denominator
    return np.repeat(times, inputs.sum(axis=1)), (np.nonzero(inputs)[1] + 1).astype(np.int16)


def _fpfind(library: Any, path: Path, name: str) -> Columns:
    how = {"resolution": library.TSRES.PS4, "fractional": False, "ignore_rollover": True}
    read = {"a0": library.read_a0, "a2": library.read_a2}.get(name, library.read_a1)
    return _patterns(read(str(path), legacy=name == "a1-swapped", **how), 125, 32)


def _fpfind_records(library: Any, path: Path) -> object:
    return library.read_a1(
        str(path), legacy=False, resolution=library.TSRES.PS4, fractional=False, ignore_rollover=True
    )


def _s15lib(library: Any, path: Path, _format: str) -> Columns:
    tagger = library.TimestampTDC1
    return _patterns(tagger.read_timestamps_bin(tagger, path.read_bytes(), legacy=False), 1000, 1)


def _numpy_qutag(library: Any, path: Path, _format: str) -> Columns:
    records = library.fromfile(path, np.dtype([("time", "<i8"), ("channel", "<i2")]), offset=40)
    return np.ascontiguousarray(records["time"]), np.ascontiguousarray(records["channel"])


def _numpy_tdc1(library: Any, path: Path, _format: str) -> Columns:
    words = library.fromfile(path, "<u4")
    counts = (words >> 5).astype(np.int64)
    counts[1:] += np.cumsum(counts[1:] < counts[:-1], dtype=np.int64) << 27
    is_event = words & 0x10 == 0
    return _patterns((counts[is_event], words[is_event] & 0xF), 2000, 1)


READERS = (
    Reader("ptufile", ("ptu",), _ptufile, _ptufile_records),
    Reader("tttrlib", ("ptu",), _tttrlib, _tttrlib_records),
    Reader("fpfind.lib.parse_timestamps", ("a1", "a1-swapped", "a0", "a2"), _fpfind, _fpfind_records),
    Reader("S15lib.instruments.usb_counter_fpga", ("tdc1",), _s15lib),
    Reader("numpy", ("qutag",), _numpy_qutag),
    Reader("numpy", ("tdc1",), _numpy_tdc1),
)
