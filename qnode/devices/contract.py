"""Faults in the data of a driver that the node cannot use: wrong types, shapes and figures.

Each function returns one sentence with the fault and its remedy, or "" if there is none. The checks are
cheap: the node checks all data, refuses wrong data with a `DeviceError`, and its supervisor opens the device
again. `qnode.devices.conformance` checks the same, and more.
"""

import math
from typing import Any, Final

import numpy as np

from qnode.devices.protocols import EmissionRun, TagSource
from qnode.tags.types import Slots, TagBlock

# A paced source yields a block at least this often, if necessary an empty one: else its lock is lost.
LONGEST_SILENCE_S: Final = 5.0


def tag_source_fault(source: TagSource) -> str:
    """Check the properties of a source."""
    paced: object = source.paced
    if type(paced) is not bool:
        return f"paced is {_shown(paced)}, expected True or False"
    if not _is_finite(source.origin_s):
        return f"origin_s is {_shown(source.origin_s)}, expected seconds of Bob's time of day, a finite float"
    return ""


def tag_block_fault(block: object) -> str:
    """Check a block's types and shapes, ``until_ps`` and ``lost``."""
    if not isinstance(block, TagBlock):
        return f"tags() yielded {_shown(block)}, expected a TagBlock"
    for name, array, dtype in (
        ("times_ps", block.times_ps, np.int64),
        ("channels", block.channels, np.int8),
    ):
        if fault := _array_fault(name, array, dtype):
            return fault
    if block.times_ps.shape != block.channels.shape:
        return (
            f"times_ps has {block.times_ps.shape[0]} tags and channels {block.channels.shape[0]}, expected "
            "as many: each tag has a channel"
        )
    until_ps: object = block.until_ps
    if type(until_ps) is not int:
        return f"until_ps is {_shown(until_ps)}, expected an int of picoseconds"
    if type(block.lost) is not int or block.lost < 0:
        return f"lost is {_shown(block.lost)}, expected an int, 0 or more: how many tags were lost"
    return ""


def emission_run_fault(run: object) -> str:
    """Check a run's number and start time."""
    if not isinstance(run, EmissionRun):
        return f"runs() yielded {_shown(run)}, expected an EmissionRun"
    if type(run.run_id) is not int or not 0 <= run.run_id < 2**63:
        return f"run_id is {_shown(run.run_id)}, expected a random int from 0 to 2**63 - 1"
    if not _is_finite(run.started_at_s):
        return (
            f"started_at_s is {_shown(run.started_at_s)}, expected seconds of Alice's time of day, a finite "
            "float"
        )
    return ""


def symbols_fault(slots: Slots, symbols: Any) -> str:
    """Check the answer to a look-up of ``slots``."""
    if fault := _array_fault("what symbols() returned", symbols, np.uint8):
        return fault
    if symbols.shape != slots.shape:
        return (
            f"symbols() returned {symbols.shape[0]} symbols for {slots.shape[0]} slots, expected one for "
            "each slot: UNKNOWN_SYMBOL where there is no record"
        )
    return ""


def readings_fault(readings: object) -> str:
    """Check a sensor's readings."""
    if not isinstance(readings, dict) or not readings:
        return f"readings() returned {_shown(readings)}, expected a dict with a figure or more"
    for name, value in readings.items():
        if not isinstance(name, str) or not name.isidentifier():
            return f"a reading is named {_shown(name)}, expected an identifier that ends in its unit"
        if not _is_finite(value):
            return f"reading {name} is {_shown(value)}, expected a finite float; leave out what is not known"
        if name.endswith("_k") and value <= 0:
            return f"reading {name} is {_shown(value)}, expected kelvins, above 0"
    return ""


def _array_fault(name: str, array: Any, dtype: type[np.generic]) -> str:
    if isinstance(array, np.ndarray) and array.dtype == dtype and array.ndim == 1:
        return ""
    expected = f"expected a numpy array of {np.dtype(dtype)}, shape (n,)"
    if not isinstance(array, np.ndarray):
        return f"{name} is {_shown(array)}, {expected}"
    if array.dtype != dtype:
        return f"{name} is an array of {array.dtype}, {expected}"
    return f"{name} has {array.ndim} dimensions, {expected}"


def _is_finite(value: Any) -> bool:
    """Return whether ``value`` is a finite number; numpy's types except float64 do not fit into JSON."""
    return isinstance(value, float | int) and not isinstance(value, bool) and math.isfinite(value)


def _shown(value: Any) -> str:
    """Show a number as it is, and only the type of other values: they may be key."""
    if isinstance(value, bool | int | float | np.number | np.bool_ | None):
        return f"{value} ({type(value).__name__})"
    return f"a {type(value).__name__}"
