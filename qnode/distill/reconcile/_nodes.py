"""How the nodes of the parity trees are named, on both sides and in messages.

Each pass has a tree over its bits. Inside a 64-bit word the nodes are a heap: node 1 is the word, node ``h``
has the children ``2h`` and ``2h + 1``, nodes 64 to 127 are the bits. Above the words, node ``(height, i)``
covers the words from ``i << height`` to ``(i + 1) << height``.

A *word query* ``base << 7 | h`` (``base = slot * stride + word``) and a *tree query*
``slot << 29 | height << 24 | i`` both name a node whose parity is known and ask for the parity of its left
child; the right child's follows.
"""

from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from qnode.distill.reconcile._words import U
from qnode.kernels import inline_kernel

Words = npt.NDArray[np.uint64]
Queries = npt.NDArray[np.uint32]
Octets = npt.NDArray[np.uint8]

NO_QUERIES: Final[Queries] = np.empty(0, np.uint32)


@dataclass(eq=False, repr=False)
class QueryLists:
    """The queries of one request: the first ``n_words`` of ``words`` and ``n_trees`` of ``trees``.

    The buffers are reused from round to round: most rounds are short, and there are hundreds of them.
    """

    words: Queries = field(default_factory=lambda: np.empty(1024, np.uint32))
    trees: Queries = field(default_factory=lambda: np.empty(1024, np.uint32))
    n_words: int = 0
    n_trees: int = 0

    def reserve(self, n_queries: int) -> None:
        """Make room for ``n_queries`` in each buffer; what they held is lost."""
        if n_queries > self.words.shape[0]:
            self.words = np.empty(2 * n_queries, np.uint32)
            self.trees = np.empty(2 * n_queries, np.uint32)

    @property
    def n_queries(self) -> int:
        """Words and trees together."""
        return self.n_words + self.n_trees

    def clear(self) -> None:
        """Forget all queries."""
        self.n_words = self.n_trees = 0


def _node_masks() -> Words:
    masks = np.zeros(128, np.uint64)
    for h in range(1, 128):
        depth = h.bit_length() - 1
        size = 64 >> depth
        masks[h] = ((1 << size) - 1) << ((h - (1 << depth)) * size)
    return masks


def _ancestor_masks() -> Words:
    masks = np.zeros(64, np.uint64)
    for bit in range(64):
        masks[bit] = sum(1 << ((1 << depth) + (bit >> (6 - depth))) for depth in range(6))
    return masks


NODE_MASK: Final = _node_masks()  # bits of a word under node h
ANCESTORS: Final = _ancestor_masks()  # nodes of a word above a bit, as a set of heap numbers

LEFT: Final = 1  # what Bob says to each answer: in which children he goes on (both is possible)
RIGHT: Final = 2


@inline_kernel
def answer_bit(answers: Octets, t: int) -> np.uint64:
    """Return bit ``t`` of packed answers."""
    return U((answers[U(t) >> U(3)] >> (U(t) & U(7))) & U(1))


@inline_kernel
def is_bottom(query: np.uint64) -> bool:
    """Tell whether a word query asks for a single bit: it ends there, no direction code follows."""
    return bool(query & U(127) >= U(32))


@inline_kernel
def left_child(query: np.uint64) -> np.uint64:
    """Return the word query about the left child (the right child's is one more)."""
    return query + (query & U(127))


@inline_kernel
def go_on(words: Queries, n_words: int, left: np.uint64, code: np.uint64) -> int:
    """Append the children named by a direction code to ``words``; return how many there are then.

    Left or right is a coin's toss, so it is computed and not branched upon.
    """
    words[U(n_words)] = left + ((code >> U(1)) & ~code)
    n_words += int(code != U(0))
    if code == U(3):
        words[U(n_words)] = left + U(1)
        n_words += 1
    return n_words


@inline_kernel
def tree_query(slot: np.uint64, height: np.uint64, i: np.uint64) -> np.uint32:
    """Return the number of a tree query."""
    return np.uint32((slot << U(29)) | (height << U(24)) | i)


@inline_kernel
def tree_slot(query: np.uint64) -> np.uint64:
    """Return the slot of a tree query."""
    return query >> U(29)


@inline_kernel
def tree_height(query: np.uint64) -> np.uint64:
    """Return the height above the words of a tree query's node."""
    return (query >> U(24)) & U(31)


@inline_kernel
def tree_index(query: np.uint64) -> np.uint64:
    """Return which node of its height a tree query names."""
    return query & U(0xFFFFFF)


@inline_kernel
def block_heap(level: int, i: np.uint64) -> np.uint64:
    """Return the heap number, in its word, of block ``i`` of ``2**level`` bits (level up to 6)."""
    per_word = U(1) << U(6 - level)
    return per_word + (i & (per_word - U(1)))


@inline_kernel
def block_query(slot: np.uint64, level: int, i: np.uint64, stride: np.uint64) -> np.uint32:
    """Return the query about block ``i`` of a pass: a word query up to level 6, else a tree query."""
    if level <= 6:
        return np.uint32(((slot * stride + (i >> U(6 - level))) << U(7)) | block_heap(level, i))
    return tree_query(slot, U(level - 6), i)
