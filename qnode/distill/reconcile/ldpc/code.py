"""The parity-check matrices: quasi-cyclic, irregular, drawn from a fixed stream, extended by splitting rows.

A code is a small table of edges. Each edge puts a cyclic shift of ``lifting`` places between one block row
(``lifting`` checks) and one block column (``lifting`` bits): check ``z`` of the row holds bit ``(z + shift)
mod lifting`` of the column. The table is drawn column by column as in progressive edge growth (Hu,
Eleftheriou and Arnold, IEEE Transactions on Information Theory 51, 2005): rows of least degree first, pairs
of rows seldom met again, shifts such that no two columns close a cycle of four where there are shifts enough;
columns of degree two form one open chain. All of it is integer arithmetic on an own stream, so that both
sites draw the same table whatever their libraries.

Rate. A frame is first described by the syndromes of the whole rows. Each further step splits a row in two
and discloses the syndrome of one half; that of the other half follows (Varodayan, Aaron and Girod, Signal
Process. 86, 2006). Nothing disclosed is wasted: when all rows are split, the code is one of twice as many
rows and half the check degree. In the end every piece is one edge, and its syndrome is bits of the key
themselves.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Final

import numpy as np
import numpy.typing as npt

from qnode.distill.reconcile.base.words import U, stream_word
from qnode.kernels import kernel

Edges = npt.NDArray[np.int32]

MAX_COLUMNS: Final = 800
COLUMN_COUNTS: Final = (25, 50, 100, 200, 400, MAX_COLUMNS)
LIFTINGS: Final = (64, 128)
_KEY: Final = U(0x716E6F6465)  # any constant; a change is a change of the protocol

# Parts per thousand of block columns of each degree, up to so many rows per column; the remaining columns
# have degree 3. Found by density evolution with the decoder's own arithmetic, the borders between them by
# simulation.
_PROFILES: Final[tuple[tuple[float, Mapping[int, int]], ...]] = (
    (0.07, MappingProxyType({2: 39, 7: 21, 8: 77, 9: 60, 10: 126, 24: 117})),
    (0.1, MappingProxyType({2: 89, 5: 24, 8: 47, 10: 185, 12: 22, 20: 6, 30: 78})),
    (0.15, MappingProxyType({2: 130, 8: 50, 9: 17, 10: 169, 30: 85})),
    (0.19, MappingProxyType({2: 171, 5: 84, 9: 35, 12: 49, 14: 97, 20: 12, 24: 33, 30: 8})),
    (0.25, MappingProxyType({2: 181, 5: 95, 12: 67, 14: 75, 20: 12, 24: 39})),
    (0.305, MappingProxyType({2: 311, 6: 37, 8: 112, 10: 17, 12: 8, 16: 32, 20: 57})),
    (0.42, MappingProxyType({2: 328, 4: 52, 7: 14, 8: 62, 14: 16, 16: 99})),
    (math.inf, MappingProxyType({2: 423, 4: 12, 6: 10, 7: 62, 14: 25, 16: 70})),
)


@dataclass(frozen=True, eq=False)
class Code:
    """One table of edges, sorted by row, and the pieces of rows in the order of their disclosure.

    ``columns``, ``shifts``: shape ``(n_edges,)``. Piece ``k`` is the edges from ``first[k]`` up to
    ``end[k]``: the whole rows, then the left halves; what is left of a split piece begins at ``end[k]``.
    """

    n_rows: int
    n_columns: int
    lifting: int
    columns: Edges
    shifts: Edges
    first: Edges
    end: Edges

    @property
    def n_pieces(self) -> int:
        """How many pieces can be disclosed in all: one for each edge."""
        return int(self.columns.shape[0])

    def borders(self, n_pieces: int) -> Edges:
        """Return where each piece begins when ``n_pieces`` are disclosed; then where the last ends."""
        begins = np.concatenate((self.first[: self.n_rows], self.end[self.n_rows : n_pieces]))
        return np.append(np.sort(begins), np.int32(self.n_pieces)).astype(np.int32)


@lru_cache(maxsize=64)
def make_code(n_rows: int, n_columns: int, lifting: int) -> Code:
    """Return the code of ``n_rows`` whole rows over ``n_columns`` columns.

    The table is drawn for the next of COLUMN_COUNTS and cut, so that few tables serve all lengths of frames;
    a row that the cut leaves empty is dropped.
    """
    n_drawn = min(count for count in COLUMN_COUNTS if count >= n_columns)
    degrees = _column_degrees(n_rows, n_drawn)
    rows = np.zeros((n_drawn, int(degrees.max())), np.int32)
    shifts = np.zeros_like(rows)
    _draw_edges(degrees, n_rows, lifting, _KEY, rows, shifts)
    column_of = _permutation(_KEY + U(1), n_drawn)  # degrees mixed, so that a cut keeps the profile
    columns, places = np.nonzero(np.arange(rows.shape[1]) < degrees[:, np.newaxis])
    edges = np.stack((rows[columns, places], column_of[columns], shifts[columns, places]))
    edges = edges[:, edges[1] < n_columns]
    edges = edges[:, _permutation(_KEY + U(2), edges.shape[1])]
    edges = edges[:, np.argsort(edges[0], kind="stable")]
    rows_begin = np.unique(np.searchsorted(edges[0], np.arange(n_rows + 1)))
    first, end = _pieces(rows_begin)
    return Code(
        n_rows=rows_begin.size - 1,
        n_columns=n_columns,
        lifting=lifting,
        columns=edges[1].astype(np.int32),
        shifts=edges[2].astype(np.int32),
        first=first,
        end=end,
    )


def _column_degrees(n_rows: int, n_columns: int) -> Edges:
    """Return the degree of each column, ascending."""
    profile = next(shares for limit, shares in _PROFILES if n_rows <= limit * n_columns)
    degrees: list[int] = []
    for degree, share in profile.items():
        count = (share * n_columns + 500) // 1000
        degrees += [degree] * (min(count, n_rows - 1) if degree == 2 else count)
    degrees += [3] * (n_columns - len(degrees))
    sorted_degrees: Edges = np.minimum(np.sort(degrees), n_rows).astype(np.int32)
    return sorted_degrees


def _pieces(rows_begin: npt.NDArray[np.int64]) -> tuple[Edges, Edges]:
    """Return the pieces in the order of disclosure: whole rows, left halves, left halves of halves, ..."""
    whole = list(zip(rows_begin[:-1].tolist(), rows_begin[1:].tolist(), strict=True))
    disclosed = list(whole)
    while whole:
        halves = []
        for begin, end in whole:
            if end - begin > 1:
                middle = (begin + end) // 2
                disclosed.append((begin, middle))
                halves += [(begin, middle), (middle, end)]
        whole = halves
    pieces = np.array(disclosed, np.int32)
    return np.ascontiguousarray(pieces[:, 0]), np.ascontiguousarray(pieces[:, 1])


@kernel
def _draw_edges(
    degrees: Edges, n_rows: int, lifting: int, key: np.uint64, rows: Edges, shifts: Edges
) -> None:
    """Choose the rows of each column, then its shifts; ``degrees`` ascend."""
    used = np.zeros((n_rows, n_rows, lifting), np.uint8)  # differences of shifts between two rows
    n_met = np.zeros((n_rows, n_rows), np.int64)
    row_degrees = np.zeros(n_rows, np.int64)
    spread = min(8, n_rows // 8)  # no short loop of one column and a stretch of the chain
    drawn = U(0)
    for c in range(degrees.size):
        degree = degrees[c]
        for k in range(degree):
            best_cost = np.int64(1) << np.int64(62)
            best = 0
            for r in range(n_rows):
                cost = row_degrees[r] * 64
                for j in range(k):
                    cost += n_met[rows[c, j], r] * 16
                    if rows[c, j] == r:
                        cost += np.int64(1) << np.int64(40)
                    elif min(abs(rows[c, j] - r), n_rows - abs(rows[c, j] - r)) < spread:
                        cost += np.int64(1) << np.int64(20)
                cost += np.int64(stream_word(key, drawn) >> U(59))
                drawn += U(1)
                if cost < best_cost:
                    best_cost, best = cost, r
            rows[c, k] = best
        if degree == 2 and n_rows > 2:
            rows[c, 0], rows[c, 1] = c % n_rows, (c + 1) % n_rows  # at most n_rows - 1 of them: an open chain
        for k in range(degree):
            row_degrees[rows[c, k]] += 1
            for _ in range(8 * lifting):
                shift = np.int64(stream_word(key, drawn) & U(lifting - 1))
                drawn += U(1)
                is_new = True
                for j in range(k):
                    if used[rows[c, k], rows[c, j], (shift - shifts[c, j]) & (lifting - 1)]:
                        is_new = False
                shifts[c, k] = shift
                if is_new:
                    break
            for j in range(k):
                difference = (shifts[c, k] - shifts[c, j]) & (lifting - 1)
                used[rows[c, k], rows[c, j], difference] = 1
                used[rows[c, j], rows[c, k], (lifting - difference) & (lifting - 1)] = 1
                n_met[rows[c, k], rows[c, j]] += 1
                n_met[rows[c, j], rows[c, k]] += 1


@kernel
def _permutation(key: np.uint64, n: int) -> npt.NDArray[np.int64]:
    """Return a permutation drawn from a stream (Fisher and Yates)."""
    permutation = np.arange(n)
    for k in range(n - 1, 0, -1):
        chosen = np.int64((stream_word(key, U(k)) >> U(32)) * U(k + 1) >> U(32))
        permutation[k], permutation[chosen] = permutation[chosen], permutation[k]
    return permutation
