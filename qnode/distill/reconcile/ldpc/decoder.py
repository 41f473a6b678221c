"""The decoder: finds errors that explain a syndrome, by layered min-sum in eight bits.

It decodes the difference of two syndromes, so its results are a function of the error string
alone. Reliabilities are those of "no error"; all begin alike. Min-sum overestimates a check of
many bits (Chen, Dholakia, Eleftheriou, Fossorier and Hu, IEEE Transactions on Communications 53, 2005),
most of all while many checks are unmet: the correcting factor follows the share of unmet checks in the
previous sweep.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

from qnode.distill.bits.words import popcount
from qnode.distill.reconcile.base.words import U
from qnode.distill.reconcile.ldpc.code import Code, Edges
from qnode.distill.reconcile.ldpc.row import (
    KEPT_PER_CHECK,
    KEPT_PER_EDGE_DIVISOR,
    MIRROR,
    SCRATCH_PER_CHECK,
    sign_word,
    update_row,
)
from qnode.distill.reconcile.ldpc.syndrome import Words, add_syndromes
from qnode.kernels import inline_kernel, kernel

Lanes = npt.NDArray[np.int8]

MAX_SWEEPS: Final = 80
STALLED_SWEEPS: Final = 10  # stop after this many sweeps without fewer unmet checks
START_RELIABILITY: Final = 12  # of a received bit
_CERTAIN: Final = 127


@inline_kernel
def normalisation(unmet: int, n_checks: int) -> int:
    """Return the factor, in 64ths, for the next sweep: measured, near what density evolution finds best.

    When few checks are unmet they lie at the ends of chains of columns of degree two, which a smaller factor
    would not get through.
    """
    if 512 * unmet < n_checks:
        return 60
    return max(14, 56 - 109 * (64 * unmet // n_checks) // 64)


def largest_message(code: Code) -> int:
    """Return the bound of the messages from checks to bits.

    A sum saturates at 127 and forgets what was added beyond; large messages that are then taken off again
    turn the sign of a column of high degree. Columns of degree two want large ones, which they pass on in
    chains. Codes of few rows have more of the former, codes of many rows of the latter.
    """
    return 32 if code.n_rows < 0.28 * code.n_columns else 42


class Decoder:
    """Decodes frames of one code, one after the other, in the same memory.

    ``n_sweeps``: over all layers, in the last frame.
    """

    def __init__(self, code: Code) -> None:
        self.n_sweeps = 0
        self._code = code
        lifting, n_edges = code.lifting, code.n_pieces
        stride = lifting + MIRROR
        # A column is kept turned as its last layer used it, so that a layer reads turned and writes straight.
        by_column = np.argsort(code.columns, kind="stable")
        shifts = code.shifts[by_column]
        begins = np.searchsorted(code.columns[by_column], np.arange(code.n_columns + 1))
        self._turned = shifts[begins[1:] - 1]
        before = np.roll(shifts, 1)
        before[begins[:-1]] = self._turned
        self._turns = np.empty(n_edges, np.int32)
        self._turns[by_column] = (shifts - before) % lifting
        self._places = (code.columns * stride).astype(np.int32)
        longest = int(np.max(code.end - code.first))
        self._sums = np.empty(code.n_columns * stride, np.int8)
        self._masks = np.empty(n_edges * lifting // KEPT_PER_EDGE_DIVISOR, np.int8)
        self._scratch = np.empty((longest + SCRATCH_PER_CHECK) * lifting, np.int8)

    def decode(self, syndromes: Words, n_pieces: int, n_known: int) -> Words | None:
        """Return errors (words, column by column) that explain ``syndromes``, or None if none were found.

        ``syndromes``: those of the pieces between ``code.borders(n_pieces)``, shape ``(n_pieces, lifting /
        64)``. The last ``n_known`` bits of the last column are known to be right.
        """
        code = self._code
        self._sums[:] = START_RELIABILITY
        self._set_known(n_known)
        self._masks[:] = 0
        kept = np.zeros(KEPT_PER_CHECK * n_pieces * code.lifting, np.int8)
        errors = np.zeros((code.n_columns, code.lifting // 64), np.uint64)
        check = np.empty_like(syndromes)
        signs = np.empty(64 * syndromes.size, np.int8)
        _spread(syndromes.reshape(-1), signs)
        sweeps = _decode(
            syndromes, signs, code.borders(n_pieces), code.columns, code.shifts, self._places, self._turns,
            self._turned, code.lifting, largest_message(code), MAX_SWEEPS, STALLED_SWEEPS,
            self._sums, kept, self._masks, self._scratch, errors, check,
        )  # fmt: skip
        self.n_sweeps = abs(sweeps)
        return errors.reshape(-1) if sweeps > 0 else None

    def _set_known(self, n_known: int) -> None:
        code = self._code
        lanes = self._sums[-(code.lifting + MIRROR) :]
        known = np.arange(code.lifting) >= code.lifting - n_known
        turned = np.roll(known, -int(self._turned[-1]))
        lanes[: code.lifting][turned] = _CERTAIN
        lanes[code.lifting :] = lanes[:MIRROR]


@kernel
def _spread(words: Words, signs: Lanes) -> None:
    for i in range(words.size):
        word = words[i]
        for b in range(64):
            signs[64 * i + b] = -np.int8((word >> U(b)) & U(1)) << 7


@kernel
def _decode(
    syndromes: Words, signs: Lanes, borders: Edges, columns: Edges, shifts: Edges, places: Edges,
    turns: Edges, turned: Edges, lifting: int, bound: int, max_sweeps: int, stalled_sweeps: int,
    sums: Lanes, kept: Lanes, masks: Lanes, scratch: Lanes, errors: Words, check: Words,
) -> int:  # fmt: skip
    """Return the number of sweeps taken, negative if they found nothing."""
    n_checks = (borders.size - 1) * lifting
    unmet = U(0)
    for piece in range(syndromes.shape[0]):
        for w in range(syndromes.shape[1]):
            unmet += popcount(syndromes[piece, w])
    least = np.int64(unmet)
    least_at = 0
    for sweep in range(max_sweeps):
        factor = normalisation(int(unmet), n_checks)
        unmet = U(0)
        for piece in range(borders.size - 1):
            e = np.int64(borders[piece])
            n = np.int64(borders[piece + 1]) - e
            unmet += update_row(
                sums, kept, masks, signs, scratch, places, turns, e, n, piece, lifting, factor, bound
            )
        if unmet == U(0):
            for c in range(errors.shape[0]):
                for w in range(errors.shape[1]):
                    place = c * (lifting + MIRROR) + ((64 * w - turned[c]) & (lifting - 1))
                    errors[c, w] = sign_word(sums, place)
            check[:] = U(0)
            add_syndromes(errors, columns, shifts, borders[:-1], borders[1:], check)
            if np.array_equal(check, syndromes):
                return sweep + 1
        if np.int64(unmet) < least:
            least = np.int64(unmet)
            least_at = sweep
        elif sweep - least_at > stalled_sweeps:
            return -(sweep + 1)
    return -max_sweeps
