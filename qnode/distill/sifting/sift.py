"""Sifting: from announced clicks to the sifted bits of both sites and Alice's counts of one block.

While a block runs, Alice looks up the symbols of each announced batch at once (`SiftRecord.add`) and
discloses nothing. When Bob has announced the whole block, `SiftRecord.finish` returns the data to disclose
(the clicks to keep, their intensities, totals) and the secret data (Alice's bits).

The light of a boundary slot E_i, between qubits i-1 and i, comes from both (security reference, 3.2):
the slot collects the early bin of qubit i and the late bin of qubit i-1. With a = (state of i-1, state of i):

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

These counts depend on both qubits' bits, so qubits i-1 and i of every boundary click leave the key, even if
Bob has a Z click on one of them (only i-1 can have one: a slot has one click, and E_i is that of slot i).

Two more totals are for the share bound (security reference, S2). ``boundary`` counts every boundary click
whose two qubits Alice knows, in any state. ``n_z_plus`` counts the Z clicks on |+>, without those followed by
a boundary click in the next slot: exactly the clicks that would be kept if Alice had sent Z. So kept clicks
and these form one set, which depends on the positions of Bob's clicks only, and Alice's basis alone divides
it.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from qnode.distill.bits import Bits
from qnode.distill.bits.array import Words
from qnode.distill.bits.planes import chosen, plane
from qnode.distill.bits.words import trailing_zeros
from qnode.distill.counts import Pair, XCounts
from qnode.distill.sifting.codec import (
    CLASS_BOUNDARY,
    CLASS_Z,
    Announced,
    decode_announcement,
    encode_announcement,
)
from qnode.errors import ProtocolError
from qnode.kernels import kernel
from qnode.tags.types import (
    DECOY,
    OUTCOME_CENTRAL,
    OUTCOME_LATE,
    UNKNOWN_SYMBOL,
    X_PLUS,
    Z_EARLY,
    Z_LATE,
    Codes,
    Slots,
    SymbolLookup,
)

__all__ = [
    "Announced", "SiftRecord", "SiftedBlock", "decode_announcement", "encode_announcement",
    "errors_by_intensity", "keep_bits", "late_by_intensity",
]  # fmt: skip

Places = npt.NDArray[np.uint64]

# One byte a click until the block ends: the symbol of a Z click that neighbours no boundary click, or this.
# It has the bit that distinguishes |+> and unknown symbols from the kept ones.
_NOT_KEPT: Final = 255
_STATE_UNKNOWN: Final = UNKNOWN_SYMBOL & 3
_FIRST_ROOM: Final = 1 << 12

# Rows of the counts of X clicks, two for each class (signal, decoy), and one for what is not counted.
_C_PLUS, _C_Z, _E_SAME, _E_PLUS, _E_DARK, _UNKNOWN, _NOT_COUNTED = range(0, 14, 2)


def _rows() -> Codes:
    """Return where a click of the X arm is counted, by (boundary, symbol before, symbol): 1, 3 and 3 bits."""
    rows = np.empty(128, np.uint8)
    for index in range(128):
        boundary, before, symbol = index >> 6, (index >> 3) & 7, index & 7
        state, decoy = symbol & 3, symbol >> 2
        if state == _STATE_UNKNOWN or (boundary and before & 3 == _STATE_UNKNOWN):
            rows[index] = _UNKNOWN
        elif boundary:
            rows[index] = _boundary_row((before & 3, state), before >> 2, decoy)
        else:
            rows[index] = (_C_PLUS if state == X_PLUS else _C_Z) + decoy
    return rows


def _boundary_row(states: tuple[int, int], decoy_before: int, decoy: int) -> int:
    """Return the row of a boundary click between qubits of these states; see the module's table."""
    own_light = {(Z_EARLY, Z_EARLY): _E_SAME, (Z_EARLY, X_PLUS): _E_PLUS, (Z_EARLY, Z_LATE): _E_DARK}
    light_before = {(Z_LATE, Z_LATE): _E_SAME, (X_PLUS, Z_LATE): _E_PLUS}
    if states in own_light:
        return own_light[states] + decoy
    if states in light_before:
        return light_before[states] + decoy_before
    return _NOT_COUNTED


_ROWS: Final = _rows()


@dataclass(frozen=True, eq=False)
class SiftedBlock:
    """Alice's side of a finished block.

    ``keep``: one bit for each announced click; only Z clicks are ever kept. ``decoy``: one bit for each kept
    click. ``n_z``, ``x_counts``, ``n_z_plus`` and ``boundary``: the disclosed totals (see the module).
    ``unknown``: clicks whose symbol was no longer in the record. ``bits``: Alice's sifted bits, secret; the
    rest is disclosed.
    """

    keep: Bits
    decoy: Bits
    n_z: Pair
    x_counts: XCounts
    n_z_plus: Pair
    boundary: int
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
        self._unknown = 0
        self._x_kinds = np.zeros(_ROWS.size, np.int64)

    def __repr__(self) -> str:
        return f"SiftRecord({self._n} clicks)"

    def __len__(self) -> int:
        return self._n

    def add(self, announced: Announced, lookup: SymbolLookup) -> None:
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
        is_x = Bits.pack(announced.classes)
        n_x = int(np.bitwise_count(is_x.words).sum())
        x_clicks, slots_before = np.empty(n_x, np.uint64), np.empty(n_x + 1, np.int64)
        n_boundary = int(_x_arm(announced.slots, announced.classes, is_x.words, x_clicks, slots_before))
        slots_before = slots_before[:n_boundary]
        before = lookup(np.maximum(slots_before, 0))
        if n_boundary and slots_before[0] < self._first_slot:
            before[0] = UNKNOWN_SYMBOL  # of the block before, whose key it may be in; or before slot 0
        codes = self._codes[: self._n + n]
        self._unknown += int(_note_z(announced.classes, symbols, codes[self._n :]))
        _count_x(
            announced.slots, announced.classes, symbols, x_clicks, np.append(before, np.uint8(0)),
            self._last_slot, codes, self._x_kinds,
        )  # fmt: skip
        self._n += n
        self._last_slot = int(announced.slots[-1])

    def finish(self) -> SiftedBlock:
        """Close the block: what to disclose and what to keep. The record is not to be used further."""
        n = self._n
        codes = self._codes[:n]
        keep = Bits.pack(((codes & X_PLUS) == 0).view(np.uint8))
        bits, decoy = (chosen(plane(codes, place), keep) for place in (Z_LATE, DECOY))
        n_z_plus = Pair(*(float(np.count_nonzero(codes == X_PLUS | place)) for place in (0, DECOY)))
        codes[:] = 0
        n_decoy = int(np.bitwise_count(decoy.words).sum())
        c = np.zeros(_NOT_COUNTED + 1, np.int64)
        np.add.at(c, _ROWS, self._x_kinds)
        rows = (Pair(float(c[row]), float(c[row + 1])) for row in (_C_PLUS, _C_Z, _E_SAME, _E_PLUS, _E_DARK))
        return SiftedBlock(
            keep=keep,
            decoy=decoy,
            n_z=Pair(float(len(decoy) - n_decoy), float(n_decoy)),
            x_counts=XCounts(*rows),
            n_z_plus=n_z_plus,
            boundary=int(c[_E_SAME : _E_DARK + 2].sum() + c[_NOT_COUNTED]),
            unknown=self._unknown + int(c[_UNKNOWN]),
            bits=bits,
        )

    def _reserve(self, n: int) -> None:
        if self._n + n > self._codes.size:
            room = np.empty(max(2 * self._codes.size, self._n + n), np.uint8)
            room[: self._n] = self._codes[: self._n]
            self._codes[:] = 0
            self._codes = room


def keep_bits(outcomes: Codes, keep: Bits) -> Bits:
    """Return Bob's sifted bits: those of ``outcomes`` (uint8, one per announced click) that ``keep`` selects.

    Raises:
        ProtocolError: the mask has another length, or selects a click of the X arm (the mask comes from the
        peer).
    """
    n = outcomes.shape[0]
    if keep.n_bits != n:
        raise ProtocolError(f"keep mask of {keep.n_bits} bits for {n} announced clicks")
    if np.any(plane(outcomes, OUTCOME_CENTRAL).words & keep.words):
        raise ProtocolError("keep mask names a click of the X arm")
    return chosen(plane(outcomes, OUTCOME_LATE), keep)


def errors_by_intensity(before: Bits, after: Bits, decoy: Bits) -> Pair:
    """Count the bits that error correction changed, by intensity (``decoy``: one bit each sifted bit).

    Raises:
        ValueError: the three lengths differ.
    """
    if not before.n_bits == after.n_bits == decoy.n_bits:
        raise ValueError(f"{before.n_bits} bits before, {after.n_bits} after, {decoy.n_bits} intensities")
    changed = before.words ^ after.words
    in_decoy = int(np.bitwise_count(changed & decoy.words).sum())
    return Pair(float(int(np.bitwise_count(changed).sum()) - in_decoy), float(in_decoy))


def late_by_intensity(key: Bits, decoy: Bits) -> Pair:
    """Count the late bits of a key by intensity (``decoy``: one bit each bit of it).

    Raises:
        ValueError: the two lengths differ.
    """
    if key.n_bits != decoy.n_bits:
        raise ValueError(f"{key.n_bits} bits, {decoy.n_bits} intensities")
    in_decoy = int(np.bitwise_count(key.words & decoy.words).sum())
    return Pair(float(int(np.bitwise_count(key.words).sum()) - in_decoy), float(in_decoy))


# The passes below take no branch on what a click or a symbol is: those are random, and a wrong guess costs
# more than all the rest.
@kernel
def _x_arm(slots: Slots, classes: Codes, is_x: Words, x_clicks: Places, slots_before: Slots) -> np.uint64:
    """List the clicks of the X arm, and the slots before boundary clicks; return how many of the latter."""
    n_x = np.uint64(0)
    n_boundary = np.uint64(0)
    for w in range(is_x.size):
        word = is_x[w]
        while word != np.uint64(0):
            i = (np.uint64(w) << np.uint64(6)) + trailing_zeros(word)
            word &= word - np.uint64(1)
            x_clicks[n_x] = i
            slots_before[n_boundary] = slots[i] - 1
            n_x += np.uint64(1)
            n_boundary += np.uint64(classes[i] == CLASS_BOUNDARY)
    return n_boundary


@kernel
def _note_z(classes: Codes, symbols: Codes, codes: Codes) -> np.int64:
    """Keep the symbols of Z clicks; return how many are not known."""
    unknown = np.int64(0)
    for i in range(classes.size):
        is_z = classes[i] == CLASS_Z
        codes[i] = (symbols[i] & 7) if is_z else _NOT_KEPT
        unknown += np.int64(is_z and (symbols[i] & 3) == _STATE_UNKNOWN)
    return unknown


@kernel
def _count_x(
    slots: Slots, classes: Codes, symbols: Codes, x_clicks: Places, before: Codes, last_slot: int,
    codes: Codes, kinds: npt.NDArray[np.int64],
) -> None:  # fmt: skip
    """Count the clicks of the X arm by kind (see `_rows`). ``codes`` end with those of the batch."""
    one, seven = np.uint64(1), np.uint64(7)
    first = np.uint64(codes.size - slots.size)
    b = np.uint64(0)
    for i in x_clicks:
        is_boundary = np.uint64(classes[i] == CLASS_BOUNDARY)
        symbol, symbol_before = np.uint64(symbols[i]) & seven, np.uint64(before[b]) & seven
        b += is_boundary
        kinds[(is_boundary << np.uint64(6)) | (symbol_before << np.uint64(3)) | symbol] += 1
        # The qubit before a boundary click leaves the key; the click itself is not in it.
        previous = slots[i - one] if i else np.int64(last_slot)
        adjacent = is_boundary & np.uint64(previous == slots[i] - 1) & np.uint64(first + i != 0)
        codes[first + i - adjacent] = _NOT_KEPT
