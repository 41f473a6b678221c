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
from qnode.distill.bits.planes import chosen, put_word, three_planes
from qnode.distill.bits.words import popcount, trailing_zeros
from qnode.distill.counts import Pair, XCounts
from qnode.distill.sifting.announced import Announced
from qnode.errors import ProtocolError
from qnode.kernels import kernel
from qnode.tags.types import UNKNOWN_SYMBOL, X_PLUS, Z_EARLY, Z_LATE, Codes, Slots, SymbolLookup

Planes = npt.NDArray[np.uint64]

# Four bits a click until the block ends, each in a row of its own: it would be kept, it would be if Alice had
# sent Z in its place; its bit, its intensity.
_KEEP, _PLUS, _LATE, _DECOY = range(4)
_STATE_UNKNOWN: Final = UNKNOWN_SYMBOL & 3
_FIRST_ROOM: Final = 1 << 6  # words

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
        self._planes: Planes = np.zeros((4, _FIRST_ROOM), np.uint64)
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
        x_arm, boundary = announced.x_arm.words, announced.boundary.words
        slots_before = np.empty(announced.n_boundary + 1, np.int64)
        _before_boundary(announced.slots, x_arm, boundary, slots_before)
        symbols = np.ascontiguousarray(lookup(announced.slots))  # a driver may return a part of something
        before = lookup(np.maximum(slots_before[:-1], 0))
        if before.shape[0] and slots_before[0] < self._first_slot:
            before[0] = UNKNOWN_SYMBOL  # of the block before, whose key it may be in; or before slot 0
        self._unknown += int(
            _sift(
                announced.slots, x_arm, boundary, symbols, np.append(before, np.uint8(0)), self._last_slot,
                self._n, self._planes, self._x_kinds,
            )
        )  # fmt: skip
        self._n += n
        self._last_slot = int(announced.slots[-1])

    def finish(self) -> SiftedBlock:
        """Close the block: what to disclose and what to keep. The record is not to be used further."""
        n = self._n
        n_words = (n + 63) // 64
        keep = Bits(self._planes[_KEEP, :n_words].copy(), n)
        bits, decoy = (chosen(Bits(self._planes[row, :n_words], n), keep) for row in (_LATE, _DECOY))
        n_plus = int(np.bitwise_count(self._planes[_PLUS]).sum())
        n_plus_decoy = int(np.bitwise_count(self._planes[_PLUS] & self._planes[_DECOY]).sum())
        n_z_plus = Pair(float(n_plus - n_plus_decoy), float(n_plus_decoy))
        self._planes[:] = 0
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
        needed, room = (self._n + n) // 64 + 2, self._planes.shape[1]
        if needed > room:
            planes = np.zeros((4, max(2 * room, needed)), np.uint64)
            planes[:, :room] = self._planes
            self._planes[:] = 0
            self._planes = planes


def keep_bits(late: Bits, x_arm: Bits, keep: Bits) -> Bits:
    """Return Bob's sifted bits: those of ``late`` (one for each announced click) that ``keep`` selects.

    ``x_arm``: the clicks of the X arm.

    Raises:
        ProtocolError: the mask has another length, or selects a click of the X arm (the mask comes from the
        peer).
    """
    if keep.n_bits != late.n_bits:
        raise ProtocolError(f"keep mask of {keep.n_bits} bits for {late.n_bits} announced clicks")
    if np.any(x_arm.words & keep.words):
        raise ProtocolError("keep mask names a click of the X arm")
    return chosen(late, keep)


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
def _before_boundary(slots: Slots, x_arm: Words, boundary: Words, slots_before: Slots) -> None:
    """List the slots before boundary clicks; ``slots_before`` has room for one more."""
    one, low_63 = np.uint64(1), np.uint64(63)
    x, n = np.uint64(0), np.uint64(0)
    for w in range(x_arm.size):
        word = x_arm[w]
        while word != np.uint64(0):
            i = (np.uint64(w) << np.uint64(6)) + trailing_zeros(word)
            word &= word - one
            slots_before[n] = slots[i] - 1
            n += boundary[x >> np.uint64(6)] >> (x & low_63) & one
            x += one


@kernel
def _sift(
    slots: Slots, x_arm: Words, boundary: Words, symbols: Codes, before: Codes, last_slot: int, n: int,
    planes: Planes, kinds: npt.NDArray[np.int64],
) -> np.uint64:  # fmt: skip
    """Append clicks to the first ``n`` of ``planes``; return how many of the Z arm have no known symbol.

    Those of the X arm are counted by kind (see `_rows`).
    """
    one, six, low_63, all_ones = np.uint64(1), np.uint64(6), np.uint64(63), ~np.uint64(0)
    unknown = np.uint64(0)
    x, b = np.uint64(0), np.uint64(0)
    for w in range(x_arm.size):
        n_here = min(64, slots.size - 64 * w)
        late, plus, decoy = three_planes(symbols, 64 * w, n_here)
        of_z = ~x_arm[w] & (all_ones >> np.uint64(64 - n_here))
        unknown += popcount(of_z & late & plus)
        at = np.uint64(n + 64 * w)
        word = x_arm[w]
        before_word = np.uint64(0)
        while word != np.uint64(0):
            place = trailing_zeros(word)
            word &= word - one
            i = (np.uint64(w) << six) + place
            is_boundary = boundary[x >> six] >> (x & low_63) & one
            x += one
            symbol = np.uint64(symbols[i]) & np.uint64(7)
            symbol_before = np.uint64(before[b]) & np.uint64(7)
            b += is_boundary
            kinds[is_boundary << six | symbol_before << np.uint64(3) | symbol] += 1
            # The qubit before a boundary click leaves the key; the click itself is not in it.
            previous = slots[i - one] if i else np.int64(last_slot)
            adjacent = is_boundary & np.uint64(previous == slots[i] - 1)
            of_z &= ~((adjacent << place) >> one)
            before_word |= adjacent & np.uint64(place == 0)
        if before_word != 0 and at != 0:
            gone = ~(one << ((at - one) & low_63))
            planes[_KEEP, (at - one) >> six] &= gone
            planes[_PLUS, (at - one) >> six] &= gone
        put_word(of_z & ~plus, planes[_KEEP], at)
        put_word(of_z & plus & ~late, planes[_PLUS], at)
        put_word(late, planes[_LATE], at)
        put_word(decoy, planes[_DECOY], at)
    return unknown
