"""Syndromes on packed bits: a cyclic shift of a column is a shift of its words."""

import numpy as np
import numpy.typing as npt

from qnode.distill.reconcile.base.words import U
from qnode.distill.reconcile.ldpc.code import Code, Edges
from qnode.kernels import kernel

Words = npt.NDArray[np.uint64]


def piece_syndromes(code: Code, frame: Words, first_piece: int, n_pieces: int) -> Words:
    """Return the syndromes of pieces ``first_piece`` up to ``n_pieces``, shape ``(pieces, lifting / 64)``.

    ``frame``: ``n_columns * lifting / 64`` words, column by column.
    """
    n_words = code.lifting // 64
    syndromes = np.zeros((n_pieces - first_piece, n_words), np.uint64)
    begin, end = code.first[first_piece:n_pieces], code.end[first_piece:n_pieces]
    add_syndromes(frame.reshape(-1, n_words), code.columns, code.shifts, begin, end, syndromes)
    return syndromes


def rest_syndromes(code: Code, disclosed: Words) -> Words:
    """Return the syndromes of the pieces between ``code.borders`` from those ``disclosed``, in order.

    A split piece has become its left half, disclosed later, and the rest, whose syndrome is the difference.
    """
    by_begin = np.zeros((code.n_pieces, disclosed.shape[1]), np.uint64)
    _settle_pieces(code.first, code.end, code.n_rows, disclosed, by_begin)
    return by_begin[code.borders(disclosed.shape[0])[:-1]]


@kernel
def add_syndromes(
    frame: Words, columns: Edges, shifts: Edges, begin: Edges, end: Edges, syndromes: Words
) -> None:
    """Add to each of ``syndromes`` what ``frame`` gives over the edges from ``begin`` up to ``end``."""
    n_words = syndromes.shape[1]
    around = n_words - 1
    for piece in range(begin.size):
        for edge in range(begin[piece], end[piece]):
            column = np.int64(columns[edge])
            whole = np.int64(shifts[edge]) >> 6
            right = U(shifts[edge] & 63)
            left = U(63) - right
            for w in range(n_words):
                low = frame[column, (w + whole) & around]
                high = frame[column, (w + whole + 1) & around]
                syndromes[piece, w] ^= (low >> right) | ((high << U(1)) << left)


@kernel
def _settle_pieces(first: Edges, end: Edges, n_rows: int, disclosed: Words, by_begin: Words) -> None:
    for piece in range(disclosed.shape[0]):
        for w in range(disclosed.shape[1]):
            if piece >= n_rows:
                by_begin[end[piece], w] = by_begin[first[piece], w] ^ disclosed[piece, w]
            by_begin[first[piece], w] = disclosed[piece, w]
