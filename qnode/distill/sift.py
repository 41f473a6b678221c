"""Sifting: from announced clicks to the sifted bits of both sites and Alice's counts of one block.

While a block runs, Alice looks up her symbols for each announced batch at once (`SiftRecord.add`) and
discloses nothing. When Bob has announced the whole block, `SiftRecord.finish` gives what she then says (which
clicks to keep, their intensities, totals) and what she keeps (her bits).

Which qubit carries the light of a boundary slot E_i, between qubits i-1 and i (docs: security model, 3.2):
the
slot collects the early bin of qubit i and the late bin of qubit i-1. With a = (state of i-1, state of i):

====================  ============  ==========================================
class                 a             intensity counted
====================  ============  ==========================================
``e_same``            (0, 0)        of qubit i: its early pulse
``e_same``            (1, 1)        of qubit i-1: its late pulse
``e_plus``            (0, +)        of qubit i: the early half of its |+>
``e_plus``            (+, 1)        of qubit i-1: the late half of its |+>
``e_dark``            (0, 1)        of qubit i, by convention: there is no light
(not counted)         all others    light of both qubits, or (+, +)
====================  ============  ==========================================

Counting these classes needs both qubits' bits, so qubits i-1 and i of every boundary click leave the key,
also when Bob has a Z click on one of them (only i-1 can have one: a slot has one click, and E_i is that of
slot i).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from qnode.distill.bits import Bits, Words
from qnode.distill.counts import Pair, XCounts
from qnode.distill.sift_codec import (
    CLASS_BOUNDARY,
    CLASS_CENTRAL,
    CLASS_Z,
    Announced,
    decode_announcement,
    encode_announcement,
)
from qnode.errors import ProtocolError
from qnode.kernels import inline_kernel, kernel
from qnode.tags.types import OUTCOME_LATE, UNKNOWN_SYMBOL, X_PLUS, Z_EARLY, Z_LATE, Codes, Slots

__all__ = [
    "Announced", "SiftRecord", "SiftedBlock", "decode_announcement", "encode_announcement",
    "errors_by_intensity", "keep_bits",
]  # fmt: skip

Lookup = Callable[[Slots], Codes]

# One byte a click until the block ends: the symbol of a Z click that may be kept, or this.
_NOT_KEPT: Final = 255
_FIRST_ROOM: Final = 1 << 12

# Rows of the counts, two for each class (signal, decoy), and one for what is not counted.
_C_PLUS, _C_Z, _E_SAME, _E_PLUS, _E_DARK, _UNKNOWN, _NOT_COUNTED = range(0, 14, 2)


@dataclass(frozen=True, eq=False)
class _Tables:
    """What a click means, by (class of the click, symbol of the qubit before, symbol of the qubit), 3 bits
    each.

    ``rows``: where it is counted; ``codes``: what is kept of it. Symbols of state 3 are unknown (255 is one).
    """

    rows: npt.NDArray[np.uint8]
    codes: Codes

    @classmethod
    def build(cls) -> "_Tables":
        rows, codes = np.full(256, _NOT_COUNTED, np.uint8), np.full(256, _NOT_KEPT, np.uint8)
        for index in range(192):
            kind, before, symbol = index >> 6, (index >> 3) & 7, index & 7
            state, decoy = symbol & 3, symbol >> 2
            if state == 3 or (kind == CLASS_BOUNDARY and before & 3 == 3):
                rows[index] = _UNKNOWN
            elif kind == CLASS_Z and state != X_PLUS:
                codes[index] = symbol
            elif kind == CLASS_CENTRAL:
                rows[index] = (_C_PLUS if state == X_PLUS else _C_Z) + decoy
            elif kind == CLASS_BOUNDARY:
                rows[index] = _boundary_row((before & 3, state), before >> 2, decoy)
        return cls(rows, codes)


def _boundary_row(states: tuple[int, int], decoy_before: int, decoy: int) -> int:
    """Return the row of a boundary click between qubits of these states; see the module's table."""
    own_light = {(Z_EARLY, Z_EARLY): _E_SAME, (Z_EARLY, X_PLUS): _E_PLUS, (Z_EARLY, Z_LATE): _E_DARK}
    light_before = {(Z_LATE, Z_LATE): _E_SAME, (X_PLUS, Z_LATE): _E_PLUS}
    if states in own_light:
        return own_light[states] + decoy
    if states in light_before:
        return light_before[states] + decoy_before
    return _NOT_COUNTED


_TABLES: Final = _Tables.build()


@dataclass(frozen=True, eq=False)
class SiftedBlock:
    """Alice's side of a finished block.

    ``keep``: one bit for each announced click; only Z clicks are ever kept. ``decoy``: one bit for each kept
    click. ``n_z`` and ``x_counts``: the totals she sends. ``unknown``: clicks whose symbol she no longer had.
    ``bits``: her sifted bits, secret; all else is disclosed.
    """

    keep: Bits
    decoy: Bits
    n_z: Pair
    x_counts: XCounts
    unknown: int
    bits: Bits


class SiftRecord:
    """Alice's record of one running block that begins at ``first_slot``.

    A boundary click in that slot is not counted: its light may come from the last qubit of the block before.
    """

    def __init__(self, first_slot: int = 0) -> None:
        self._first_slot = first_slot
        self._codes: Codes = np.empty(_FIRST_ROOM, np.uint8)
        self._n = 0
        self._last_slot = -1
        self._counts = np.zeros(14, np.int64)

    def __repr__(self) -> str:
        return f"SiftRecord({self._n} clicks)"

    def __len__(self) -> int:
        return self._n

    def add(self, announced: Announced, lookup: Lookup) -> None:
        """Look up the symbols of a batch and keep what they say.

        ``lookup`` is called for the clicks' slots and for those before boundary clicks.

        Raises:
            ProtocolError: the batch does not come after the one before.
        """
        n = len(announced)
        if not n:
            return
        if int(announced.slots[0]) <= self._last_slot:
            raise ProtocolError(
                f"announcement of slot {int(announced.slots[0])} after slot {self._last_slot}: not ascending"
            )
        self._reserve(n)
        symbols = lookup(announced.slots)
        boundary = np.flatnonzero(announced.classes == CLASS_BOUNDARY)
        slots_before = announced.slots[boundary] - 1
        before = lookup(np.maximum(slots_before, 0))
        if slots_before.size and slots_before[0] < self._first_slot:
            before[0] = UNKNOWN_SYMBOL  # of the block before, whose key it may be in; or before slot 0
        _look_up(
            announced.slots, announced.classes, symbols, np.append(before, np.uint8(UNKNOWN_SYMBOL)),
            self._last_slot, _TABLES.rows, _TABLES.codes, self._codes, self._n, self._counts,
        )  # fmt: skip
        self._n += n
        self._last_slot = int(announced.slots[-1])

    def finish(self) -> SiftedBlock:
        """Close the block: what to disclose and what to keep. The record is not to be used further."""
        n = self._n
        codes = self._codes[:n]
        keep = np.zeros((n + 63) // 64, np.uint64)
        bits, decoy = np.zeros_like(keep), np.zeros_like(keep)
        packed, decoys = _pack(codes, keep, bits, decoy)
        n_kept, n_decoy = int(packed), int(decoys)
        codes[:] = 0
        kept_words = (n_kept + 63) // 64
        c = self._counts
        rows = (Pair(float(c[row]), float(c[row + 1])) for row in (_C_PLUS, _C_Z, _E_SAME, _E_PLUS, _E_DARK))
        return SiftedBlock(
            keep=Bits(keep, n),
            decoy=Bits(decoy[:kept_words], n_kept),
            n_z=Pair(float(n_kept - n_decoy), float(n_decoy)),
            x_counts=XCounts(*rows),
            unknown=int(c[_UNKNOWN]),
            bits=Bits(bits[:kept_words], n_kept),
        )

    def _reserve(self, n: int) -> None:
        if self._n + n > self._codes.size:
            room = np.empty(max(2 * self._codes.size, self._n + n), np.uint8)
            room[: self._n] = self._codes[: self._n]
            self._codes[:] = 0
            self._codes = room


def keep_bits(outcomes: Codes, keep: Bits) -> Bits:
    """Return Bob's sifted bits: those of his ``outcomes`` (uint8, one each announced click) that ``keep``
    names.

    Raises:
        ProtocolError: the mask has another length, or names a click of the X arm (it comes from the peer).
    """
    n = outcomes.shape[0]
    if keep.n_bits != n:
        raise ProtocolError(f"keep mask of {keep.n_bits} bits for {n} announced clicks")
    bits = np.zeros((n + 63) // 64, np.uint64)
    n_kept = int(_keep(outcomes, keep.words, bits))
    if n_kept < 0:
        raise ProtocolError("keep mask names a click of the X arm")
    return Bits(bits[: (n_kept + 63) // 64], n_kept)


def errors_by_intensity(before: Bits, after: Bits, decoy: Bits) -> Pair:
    """Count the bits that error correction changed, by intensity (``decoy``: one bit each sifted bit).

    Raises:
        ValueError: the three lengths differ.
    """
    if not before.n_bits == after.n_bits == decoy.n_bits:
        raise ValueError(f"{before.n_bits} bits before, {after.n_bits} after, {decoy.n_bits} intensities")
    changed = before.words ^ after.words
    in_decoy = int(_count_ones(changed & decoy.words))
    return Pair(float(int(_count_ones(changed)) - in_decoy), float(in_decoy))


# The three passes below take no branch on what a click or a symbol is: those are random, and a wrong guess
# costs more than all the rest.
@kernel
def _look_up(
    slots: Slots, classes: Codes, symbols: Codes, before: Codes, last_slot: int, rows: Codes,
    kept_codes: Codes, codes: Codes, n: int, counts: npt.NDArray[np.int64],
) -> None:  # fmt: skip
    b = np.int64(0)
    previous = np.int64(last_slot)
    for i in range(slots.size):
        kind = np.int64(classes[i])
        is_boundary = np.int64(kind == CLASS_BOUNDARY)
        index = (kind << 6) | ((np.int64(before[b]) & 7) << 3) | (np.int64(symbols[i]) & 7)
        b += is_boundary
        # The qubit before a boundary click leaves the key.
        if previous == slots[i] - 1 and is_boundary and n + i > 0:
            codes[n + i - 1] = _NOT_KEPT
        previous = slots[i]
        counts[rows[index]] += 1
        codes[n + i] = kept_codes[index]


@kernel
def _pack(codes: Codes, keep: Words, bits: Words, decoy: Words) -> tuple[np.int64, np.int64]:
    """Pack the keep mask, and bit and intensity of the kept clicks; return how many kept, how many decoys."""
    n_kept = np.int64(0)
    n_decoy = np.int64(0)
    mask = np.uint64(0)
    bit_word = np.uint64(0)
    decoy_word = np.uint64(0)
    for i in range(codes.size):
        code = np.uint64(codes[i])
        kept = np.uint64(code != np.uint64(_NOT_KEPT))
        place = np.uint64(n_kept & 63)
        # At a word's first place nothing is pending, whether or not the last click was kept.
        fresh = np.uint64(place != 0) * np.uint64(0xFFFF_FFFF_FFFF_FFFF)
        bit_word = (bit_word & fresh) | ((code & kept) << place)
        is_decoy = (code >> np.uint64(2)) & kept
        decoy_word = (decoy_word & fresh) | (is_decoy << place)
        bits[n_kept >> 6] = bit_word
        decoy[n_kept >> 6] = decoy_word
        n_decoy += np.int64(is_decoy)
        n_kept += np.int64(kept)
        mask |= kept << np.uint64(i & 63)
        if i & 63 == 63:
            keep[i >> 6] = mask
            mask = np.uint64(0)
    if codes.size & 63:
        keep[codes.size >> 6] = mask
    return n_kept, n_decoy


@kernel
def _keep(outcomes: Codes, keep: Words, bits: Words) -> np.int64:
    n_kept = np.int64(0)
    word = np.uint64(0)
    wrong = np.uint64(0)
    for i in range(outcomes.size):
        kept = (keep[i >> 6] >> np.uint64(i & 63)) & np.uint64(1)
        outcome = np.uint64(outcomes[i])
        wrong |= kept & np.uint64(outcome > np.uint64(OUTCOME_LATE))
        place = np.uint64(n_kept & 63)
        fresh = np.uint64(place != 0) * np.uint64(0xFFFF_FFFF_FFFF_FFFF)
        word = (word & fresh) | ((outcome & kept) << place)
        bits[n_kept >> 6] = word
        n_kept += np.int64(kept)
    return np.int64(-1) if wrong else n_kept


@inline_kernel
def _ones(x: Any) -> Any:
    x = x - ((x >> np.uint64(1)) & np.uint64(0x5555_5555_5555_5555))
    x = (x & np.uint64(0x3333_3333_3333_3333)) + ((x >> np.uint64(2)) & np.uint64(0x3333_3333_3333_3333))
    x = (x + (x >> np.uint64(4))) & np.uint64(0x0F0F_0F0F_0F0F_0F0F)
    return (x * np.uint64(0x0101_0101_0101_0101)) >> np.uint64(56)


@kernel
def _count_ones(words: Words) -> np.int64:
    total = np.int64(0)
    for i in range(words.size):
        total += np.int64(_ones(words[i]))
    return total
