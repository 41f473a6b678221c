"""Frame alignment: the offset between Bob's ticks and Alice's slots.

Bob's recovered bin clock has two ticks per slot. Bob reveals a stretch of Z-arm clicks, which never enter the
key, and sends their ticks, counted from an origin of Bob's choice. For each offset o in the search window,
tick t would be slot (t + o) // 2, early if t + o is even. Alice considers the clicks in slots where Alice
sent Z, and counts the bins that match and those that do not. The one offset with a significant surplus of
matches is the alignment. It also distinguishes early from late.

An uncertainty of twenty milliseconds is 24 million offsets. The search scores 64 of them at a time. Alice's
record becomes two bit planes over ticks (a click here matches; does not mismatch). Each click shifts both
planes, and a tree of carry-save adders counts down the columns. On a good link the first clicks of a probe
find the offset, and all clicks confirm it. Otherwise the search uses all clicks.

The answer reveals Alice's bits in the probed slots, and nothing about later slots. So no click in or before
`Alignment.last_slot` may ever be sifted.
"""

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from qnode.errors import ProtocolError
from qnode.kernels import inline_kernel, kernel
from qnode.tags.types import DECOY, UNKNOWN_SYMBOL, Z_EARLY, Z_LATE, SymbolLookup

Words = npt.NDArray[np.uint64]

MOST_PROBE_CLICKS: Final = 8192
LONGEST_PROBE_TICKS: Final = 1 << 29
MOST_OFFSETS: Final = 1 << 28
LOCK_SIGNIFICANCE: Final = 9.0  # -log10 of the probability of a false lock

_FIRST_CLICKS: Final = 128  # a quarter of a usual probe
_CHUNK_SLOTS: Final = 1 << 20
_ROW: Final = 256  # words of offsets scored together: the work area stays in the first-level cache
_PLANES: Final = 15  # counters up to 2 * MOST_PROBE_CLICKS


@dataclass(frozen=True, eq=False)
class AlignmentProbe:
    """Clicks that Bob reveals so that Alice can find the origin of Bob's ticks.

    ``number``: distinguishes later answers from earlier ones. ``start_ps``: Bob's tag time of tick 0.
    ``ticks``: int64, ascending from 0, shape ``(n,)``: the Z-arm clicks. ``expected_offset``: the offset
    that the last lock predicts; None without a last lock (then the wall clocks give a first guess).
    """

    number: int
    start_ps: int
    ticks: npt.NDArray[np.int64]
    expected_offset: int | None = None


@dataclass(frozen=True)
class Alignment:
    """The offset that Alice found: tick t of the probe is slot (t + offset) // 2, early when even.

    ``score``: matches less mismatches. ``significance``: -log10 of a bound on the probability that any wrong
    offset in the window has the same score. ``last_slot``: no click up to this slot may be sifted.
    """

    probe_number: int
    offset: int
    score: int
    significance: float
    last_slot: int


def offset_window(
    probe: AlignmentProbe, into_run_s: float, uncertainty_s: float, qubit_rate_hz: int
) -> range:
    """Return the offsets to search: the probe's start was ``into_run_s`` +- ``uncertainty_s`` into the run.

    The probe's ``expected_offset`` takes precedence over ``into_run_s``, because it does not contain the
    drift of the wall clocks. The window is at most the largest that one search can cover.
    """
    ticks_per_s = 2 * qubit_rate_hz
    reach = min(math.ceil(uncertainty_s * ticks_per_s), (MOST_OFFSETS - 1) // 2)
    centre = round(into_run_s * ticks_per_s) if probe.expected_offset is None else probe.expected_offset
    return range(centre - reach, centre + reach + 1)


def correlate(
    probe: AlignmentProbe,
    lookup: SymbolLookup,
    first_offset: int,
    last_offset: int,
    *,
    lock_significance: float = LOCK_SIGNIFICANCE,
) -> Alignment | None:
    """Find the offset in ``first_offset .. last_offset`` (inclusive) at which the probe fits Alice's symbols.

    ``lookup`` is called with ascending slots, contiguous ones in chunks of about a million and those of the
    clicks; slots before 0 and unknown symbols count neither way. Returns None if no offset is significant.

    The significance is rigorous for uniform random bits: at a wrong offset each of the m clicks that fall on
    Z symbols matches with probability 1/2, so that Pr(matches >= k) <= 2^(-m (1 - h(k/m))) (Chernoff), times
    the number of offsets.

    Raises:
        ProtocolError: the probe, a message from the peer, is not one that `Synchroniser` sends.
    """
    ticks = np.ascontiguousarray(probe.ticks, np.int64)
    _check(ticks)
    n_offsets = last_offset - first_offset + 1
    if not 0 < n_offsets <= MOST_OFFSETS:
        raise ProtocolError(f"{n_offsets} alignment offsets: expected 1 to {MOST_OFFSETS}")
    n = ticks.shape[0]
    for searched in (_FIRST_CLICKS, n) if n > _FIRST_CLICKS else (n,):
        offset = _best(ticks[:searched], lookup, first_offset, n_offsets)
        fit = _fit(ticks, lookup, offset)
        significance = _significance(fit.matches, fit.mismatches, n_offsets)
        if significance >= lock_significance:
            last_slot = (int(ticks[-1]) + offset) // 2
            return Alignment(probe.number, offset, fit.matches - fit.mismatches, significance, last_slot)
    return None


def _best(ticks: npt.NDArray[np.int64], lookup: SymbolLookup, first_offset: int, n_offsets: int) -> int:
    """Return the offset of the highest score."""
    # Planes begin at an even tick, so that pairs of bits are slots.
    base_slot = (first_offset + int(ticks[0])) // 2
    end_slot = (first_offset + n_offsets - 1 + int(ticks[-1])) // 2 + 1
    match, no_mismatch = _planes(lookup, base_slot, end_slot)
    shifts = ticks + (first_offset - 2 * base_slot)
    best = np.full(2, -1, np.int64)  # count and index
    _best_offset(match, no_mismatch, shifts, n_offsets, best)
    return first_offset + int(best[1])


@dataclass(frozen=True)
class _Fit:
    matches: int
    mismatches: int


def _fit(ticks: npt.NDArray[np.int64], lookup: SymbolLookup, offset: int) -> _Fit:
    """Count matches and mismatches at one offset."""
    absolute = ticks + offset
    absolute = absolute[absolute >= 0]
    kinds = lookup(absolute // 2) & np.uint8(0xFF ^ DECOY)
    late = absolute % 2 == 1
    z_late, z_early = kinds == Z_LATE, kinds == Z_EARLY
    return _Fit(
        int(np.count_nonzero(np.where(late, z_late, z_early))),
        int(np.count_nonzero(np.where(late, z_early, z_late))),
    )


def _check(ticks: npt.NDArray[np.int64]) -> None:
    if not 1 <= ticks.shape[0] <= MOST_PROBE_CLICKS:
        raise ProtocolError(f"alignment probe of {ticks.shape[0]} clicks: at most {MOST_PROBE_CLICKS}")
    if ticks[0] != 0 or ticks[-1] > LONGEST_PROBE_TICKS or np.any(ticks[1:] <= ticks[:-1]):
        raise ProtocolError(f"alignment probe: ticks must ascend from 0 to {LONGEST_PROBE_TICKS} at most")


def _significance(matches: int, mismatches: int, n_offsets: int) -> float:
    m = matches + mismatches
    if matches <= mismatches:
        return 0.0
    share = matches / m
    entropy = -sum(p * math.log2(p) for p in (share, 1.0 - share) if p > 0.0)
    return max(0.0, (m * (1.0 - entropy) - math.log2(n_offsets)) * math.log10(2.0))


@dataclass(frozen=True, eq=False)
class _SlotBits:
    """Two planes of bits by slot, as bytes: Alice sent early; Alice sent late."""

    early: npt.NDArray[np.uint8]
    late: npt.NDArray[np.uint8]


def _slot_bits(lookup: SymbolLookup, first: int, n_slots: int) -> _SlotBits:
    """Look up ``n_slots`` (a multiple of 8) slots; those before slot 0 are unknown."""
    known = min(n_slots, max(0, first + n_slots))
    codes = np.full(n_slots, UNKNOWN_SYMBOL, np.uint8)
    if known:
        last = first + n_slots
        codes[n_slots - known :] = lookup(np.arange(last - known, last, dtype=np.int64))
    kinds = codes & np.uint8(0xFF ^ DECOY)  # an unknown symbol stays different from every known one
    return _SlotBits(
        np.packbits(kinds == Z_EARLY, bitorder="little"), np.packbits(kinds == Z_LATE, bitorder="little")
    )


# Bit planes by tick: `match` has the bit of the bin that Alice sent; `no_mismatch` lacks the bit of the other
# bin.
def _planes(lookup: SymbolLookup, base_slot: int, end_slot: int) -> list[Words]:
    # The scan reads whole rows, so the planes extend beyond the last slot; that part is not used.
    n_words = (end_slot - base_slot + 31) // 32 + _ROW + 2
    match = np.zeros(n_words, np.uint64)
    no_mismatch = np.full(n_words, np.uint64(0xFFFF_FFFF_FFFF_FFFF))
    for first in range(base_slot, end_slot, _CHUNK_SLOTS):
        n_slots = min(_CHUNK_SLOTS, end_slot - first)
        n_slots += -n_slots % 32
        bits = _slot_bits(lookup, first, n_slots)
        word = (first - base_slot) // 32
        _interleave(bits.early.view(np.uint32), bits.late.view(np.uint32), match[word:], no_mismatch[word:])
    return [match, no_mismatch]


@inline_kernel
def _spread(x: Any) -> Any:
    """Move bit i of the low 32 bits to bit 2 i."""
    x = x & np.uint64(0xFFFF_FFFF)
    x = (x | (x << np.uint64(16))) & np.uint64(0x0000_FFFF_0000_FFFF)
    x = (x | (x << np.uint64(8))) & np.uint64(0x00FF_00FF_00FF_00FF)
    x = (x | (x << np.uint64(4))) & np.uint64(0x0F0F_0F0F_0F0F_0F0F)
    x = (x | (x << np.uint64(2))) & np.uint64(0x3333_3333_3333_3333)
    return (x | (x << np.uint64(1))) & np.uint64(0x5555_5555_5555_5555)


@kernel
def _interleave(
    early: npt.NDArray[np.uint32], late: npt.NDArray[np.uint32], match: Words, no_mismatch: Words
) -> None:
    for i in range(early.size):
        e = _spread(np.uint64(early[i]))
        l = _spread(np.uint64(late[i]))  # noqa: E741
        match[i] = e | (l << np.uint64(1))
        no_mismatch[i] = ~(l | (e << np.uint64(1)))


# One work area of rows of `_ROW` words, so that the compiler can prove that nothing overlaps and uses
# vectors: first the counters' bit planes, lowest first; then the planes of four clicks, shifted; then
# carries.
_SHIFTED: Final = _PLANES * _ROW
_CARRY: Final = (_PLANES + 8) * _ROW
_WORK_WORDS: Final = (_PLANES + 9) * _ROW


@kernel
def _best_offset(
    match: Words,
    no_mismatch: Words,
    shifts: npt.NDArray[np.int64],
    n_offsets: int,
    best: npt.NDArray[np.int64],
) -> None:
    """Score offsets 0 .. n_offsets - 1; ``best`` gets count and index of the best."""
    work = np.empty(_WORK_WORDS, np.uint64)
    n = shifts.size
    n_words = (n_offsets + 63) // 64
    for first in range(0, n_words, _ROW):
        work[:] = np.uint64(0)
        for click in range(0, n, 4):
            for k in range(4):
                row = _SHIFTED + 2 * k * _ROW
                if click + k < n:
                    word = (shifts[click + k] >> 6) + first
                    bit = np.uint64(shifts[click + k] & 63)
                    _copy_shifted(match[word : word + _ROW + 1], bit, work[row : row + _ROW])
                    _copy_shifted(no_mismatch[word : word + _ROW + 1], bit, work[row + _ROW : row + 2 * _ROW])
                else:
                    work[row : row + 2 * _ROW] = np.uint64(0)
            _add_shifted(work)
            _ripple(work)
        _keep_best(work, first, min(_ROW, n_words - first), n_offsets, best)


@kernel
def _copy_shifted(plane: Words, bit: Any, row: Words) -> None:
    """Copy a row of the plane from ``bit`` of its first word on (a shift by 64 is never formed)."""
    rest = np.uint64(63) - bit
    for i in range(_ROW):
        row[i] = (plane[i] >> bit) | ((plane[i + 1] << np.uint64(1)) << rest)


@inline_kernel
def _majority(a: Any, b: Any, c: Any) -> Any:
    return (a & b) | (c & (a ^ b))


@kernel
def _add_shifted(work: Words) -> None:
    """Add the eight shifted planes to the ones, twos and fours; the overflow becomes the carry."""
    for i in range(_ROW):
        a = work[_SHIFTED + i]
        b = work[_SHIFTED + _ROW + i]
        ones = work[i]
        t0 = _majority(ones, a, b)
        ones = ones ^ a ^ b
        a = work[_SHIFTED + 2 * _ROW + i]
        b = work[_SHIFTED + 3 * _ROW + i]
        t1 = _majority(ones, a, b)
        ones = ones ^ a ^ b
        a = work[_SHIFTED + 4 * _ROW + i]
        b = work[_SHIFTED + 5 * _ROW + i]
        t2 = _majority(ones, a, b)
        ones = ones ^ a ^ b
        a = work[_SHIFTED + 6 * _ROW + i]
        b = work[_SHIFTED + 7 * _ROW + i]
        t3 = _majority(ones, a, b)
        work[i] = ones ^ a ^ b
        twos = work[_ROW + i]
        f0 = _majority(twos, t0, t1)
        twos = twos ^ t0 ^ t1
        f1 = _majority(twos, t2, t3)
        work[_ROW + i] = twos ^ t2 ^ t3
        fours = work[2 * _ROW + i]
        work[_CARRY + i] = _majority(fours, f0, f1)
        work[2 * _ROW + i] = fours ^ f0 ^ f1


@kernel
def _ripple(work: Words) -> None:
    """Add the carry, of weight eight, to the planes above."""
    for p in range(3, _PLANES):
        plane = work[p * _ROW : (p + 1) * _ROW]
        carry = work[_CARRY : _CARRY + _ROW]
        left = np.uint64(0)
        for i in range(_ROW):
            old = plane[i]
            plane[i] = old ^ carry[i]
            carry[i] = old & carry[i]
            left |= carry[i]
        if left == 0:
            return


@kernel
def _keep_best(work: Words, first: int, n_words: int, n_offsets: int, best: npt.NDArray[np.int64]) -> None:
    for i in range(n_words):
        # Columns whose count exceeds the best so far, found for 64 at once from the top plane down.
        threshold = best[0]
        above = np.uint64(0)
        equal = ~np.uint64(0)
        if threshold < 0:
            above = equal
        else:
            for p in range(_PLANES - 1, -1, -1):
                bits = work[p * _ROW + i]
                if (threshold >> p) & 1:
                    equal &= bits
                else:
                    above |= equal & bits
                    equal &= ~bits
        if above == 0:
            continue
        for b in range(64):
            index = (first + i) * 64 + b
            if index >= n_offsets or (above >> np.uint64(b)) & np.uint64(1) == 0:
                continue
            count = np.int64(0)
            for p in range(_PLANES):
                count |= np.int64((work[p * _ROW + i] >> np.uint64(b)) & np.uint64(1)) << p
            if count > best[0]:
                best[0], best[1] = count, index
