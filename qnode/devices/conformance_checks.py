"""Checks of the conformance kit on the values of a driver, in addition to `qnode.devices.contract`."""

import math
import time
from typing import Any, Final

import numpy as np

from qnode.devices.capabilities import CAPABILITIES
from qnode.devices.contract import emission_run_fault, tag_block_fault, tag_source_fault
from qnode.devices.protocols import DeviceIdentity, EmissionRun, Sensor, TagSource, Transmitter
from qnode.tags.tag_time import FURTHEST_JUMP_PS, signed_64
from qnode.tags.types import (
    DECOY,
    UNKNOWN_SYMBOL,
    X_CHANNEL,
    X_PLUS,
    Z_CHANNEL,
    Z_EARLY,
    Z_LATE,
    Channels,
    Codes,
    TagBlock,
    Times,
)
from qnode.units import PS_PER_S

MOST_TAGS: Final = 1 << 20
# Every tag waits until ``until_ps`` has passed it, and Alice's record reaches back about a second.
MOST_AHEAD_PS: Final = PS_PER_S // 10
# Between a device's times and this machine's clock: more means another time scale, not a bad clock.
MOST_CLOCK_DIFFERENCE_S: Final = 3600.0
MOST_CLOCK_LEAD_S: Final = 60.0
EARLIEST_START_S: Final = 1_577_836_800.0  # the year 2020

_SYMBOLS = (Z_EARLY, Z_LATE, X_PLUS, Z_EARLY | DECOY, Z_LATE | DECOY, X_PLUS | DECOY, UNKNOWN_SYMBOL)
_MEMBERS: Final = {
    one.__name__: [name for name in vars(one) if not name.startswith("_") and name != "identity"]
    for one in (TagSource, Transmitter, Sensor, *CAPABILITIES)
}


def promise(kept: object, broken: str) -> None:
    """Fail with ``broken`` unless ``kept``; ``python -O`` would omit an assert.

    Raises:
        AssertionError: the promise is not kept.
    """
    if not kept:
        raise AssertionError(broken)


def sound(fault: str) -> None:
    """Fail with ``fault``, a text of `qnode.devices.contract`, if there is one."""
    promise(not fault, fault)


def check_identity(identity: DeviceIdentity) -> None:
    """Check that the device has an identity."""
    given: object = identity
    promise(
        isinstance(given, DeviceIdentity), f"identity is a {type(given).__name__}, expected a DeviceIdentity"
    )
    for name, word in (("model", identity.model), ("serial", identity.serial)):
        promise(isinstance(word, str) and word, f"identity.{name} is {word!r}, expected a text, not empty")
    promise(
        type(identity.simulated) is bool,
        f"identity.simulated is {identity.simulated!r}, expected True or False",
    )


def check_capabilities(device: object) -> None:
    """Check that the device has a known capability, and no incomplete one."""
    complete = False
    for name, members in _MEMBERS.items():
        there = [member for member in members if hasattr(device, member)]
        missing = ", ".join(member for member in members if member not in there)
        promise(
            not there or not missing,
            f"the device has {', '.join(there)} but no {missing}, which every {name} has: the node would not "
            "see that it is one",
        )
        complete = complete or bool(there)
    promise(complete, f"the device is neither {' nor '.join(_MEMBERS)}: the node has no use for it")


def check_tag_block(block: TagBlock, *, earlier_until_ps: int | None, order_window_ps: int) -> None:
    """Check one block's types and shapes, and that its time advances.

    ``earlier_until_ps``: the promise of the block before, None for the first block. ``order_window_ps``: the
    greatest disorder of the tags.
    """
    sound(tag_block_fault(block))
    times, channels, until_ps = block.times_ps, block.channels, block.until_ps
    promise(np.isin(channels, (Z_CHANNEL, X_CHANNEL)).all(), "a channel is neither 0 (Z) nor 1 (X): map it")
    promise(
        times.size <= MOST_TAGS, f"{times.size} tags in one block, expected at most {MOST_TAGS}: yield more"
    )
    for name, array in (("times_ps", times), ("channels", channels)):
        promise(
            array.flags.c_contiguous and array.flags.writeable,
            f"{name} is read-only or has gaps: yield a copy, compiled code takes whole arrays of its own",
        )
    if earlier_until_ps is not None:
        passed_ps = signed_64(until_ps - earlier_until_ps)
        promise(
            passed_ps >= 0,
            f"until_ps went back by {-passed_ps} ps: raise TransientDeviceError when the clock begins again",
        )
        promise(
            passed_ps <= FURTHEST_JUMP_PS,
            f"until_ps jumped by {passed_ps / PS_PER_S / 86_400:.0f} days: is it in picoseconds?",
        )
    if not times.size:
        return
    times = times - np.int64(signed_64(until_ps))  # a counter may wrap
    ahead_ps = int(times.max())
    promise(
        ahead_ps <= MOST_AHEAD_PS,
        f"a tag lies {ahead_ps} ps after until_ps, expected at most {MOST_AHEAD_PS}: tags wait until it has "
        "passed them, so let until_ps follow the last tag",
    )
    window = f"expected at most the order window of {order_window_ps} ps: sort tags before you yield them, or"
    wider = "state the hardware's disorder as link.receiver.order_window_ps"
    if earlier_until_ps is not None:
        late_ps = signed_64(earlier_until_ps - until_ps) - int(times.min())
        promise(
            late_ps <= order_window_ps,
            f"a tag came {late_ps} ps after until_ps had passed it, {window} promise less, or {wider}",
        )
    late_ps = int(np.max(np.maximum.accumulate(times) - times))
    promise(late_ps <= order_window_ps, f"a tag lies {late_ps} ps behind one before it, {window} {wider}")


class TagWatch:
    """Checks the tags of one opening, block by block. ``simulated``: its times need not be the present."""

    def __init__(self, source: TagSource, order_window_ps: int, *, simulated: bool) -> None:
        sound(tag_source_fault(source))
        self._source = source
        self._order_window_ps = order_window_ps
        self._simulated = simulated
        self._said = (source.paced, source.origin_s)
        self._kept: list[tuple[TagBlock, Times, Channels]] = []
        self._until_ps: int | None = None
        self._advanced = False
        self.blocks = 0

    def see(self, block: TagBlock) -> None:
        """Check a block, and that the constant values have not changed."""
        check_tag_block(block, earlier_until_ps=self._until_ps, order_window_ps=self._order_window_ps)
        said = (self._source.paced, self._source.origin_s)
        promise(
            said == self._said,
            f"paced and origin_s were {self._said} and are {said}: let them be while the device is open",
        )
        for earlier, times, channels in self._kept:
            promise(
                np.array_equal(earlier.times_ps, times) and np.array_equal(earlier.channels, channels),
                "the arrays of an earlier block have changed: yield arrays that are not used again",
            )
        if self._until_ps is None:
            self._check_clock(block)
        elif block.until_ps != self._until_ps:
            self._advanced = True
        self._kept = [*self._kept[-9:], (block, block.times_ps.copy(), block.channels.copy())]
        self._until_ps, self.blocks = block.until_ps, self.blocks + 1

    def check_progress(self) -> None:
        """Check, after several blocks, that the time has advanced."""
        promise(
            self._advanced or self.blocks < 2,
            f"until_ps stood still over {self.blocks} blocks: let it go on when there are no tags",
        )

    def _check_clock(self, block: TagBlock) -> None:
        if self._simulated or not self._source.paced:
            return
        there_s = self._source.origin_s + block.until_ps / PS_PER_S
        apart_s = math.remainder(there_s - time.time(), 2**64 / PS_PER_S)  # the counter may have wrapped
        promise(
            abs(apart_s) <= MOST_CLOCK_DIFFERENCE_S,
            f"by origin_s and until_ps the first block is {abs(apart_s):.0f} s from the present: origin_s is "
            "the Unix time, in seconds, of tag time zero",
        )


def check_emission_run(run: EmissionRun, *, simulated: bool) -> None:
    """Check a run's number and when it started."""
    sound(emission_run_fault(run))
    latest_s = time.time() + MOST_CLOCK_LEAD_S
    promise(
        simulated or EARLIEST_START_S <= run.started_at_s <= latest_s,
        f"started_at_s is {run.started_at_s:.0f}, before 2020 or in the future: it is the Unix time, in "
        "seconds, at which slot 0 left",
    )


def check_symbols(symbols: Codes) -> None:
    """Check that all symbols are valid."""
    wrong = symbols[~np.isin(symbols, _SYMBOLS)]
    promise(not wrong.size, "symbols() returned codes that are no symbols (see qnode.tags.types)")


def check_same(first: Codes, again: Codes, because: str) -> None:
    """Check that two look-ups of the same slots do not contradict each other."""
    known = (first != UNKNOWN_SYMBOL) & (again != UNKNOWN_SYMBOL)
    promise((first == again)[known].all(), f"a slot has another symbol {because}")


def missing_of_generator(items: Any) -> str:
    """Return the missing part of an async generator; "" if ``items`` is one."""
    return ", ".join(name for name in ("__aiter__", "__anext__", "aclose") if not hasattr(items, name))
