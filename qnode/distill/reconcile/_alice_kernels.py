"""Alice's kernels. She keeps no tree: an answered query becomes the next one by Bob's direction code alone.

The order of the queries of one request, the same on both sides. Word queries: those going on in words, those
coming down from trees, starts, odd blocks. Tree queries: those going on, starts, odd blocks.
"""

from enum import IntEnum

import numpy as np
import numpy.typing as npt

from qnode.distill.reconcile._nodes import (
    NODE_MASK,
    Octets,
    Queries,
    Words,
    answer_bit,
    block_heap,
    block_query,
    go_on,
    is_bottom,
    left_child,
    tree_height,
    tree_index,
    tree_query,
    tree_slot,
)
from qnode.distill.reconcile._words import U, parity
from qnode.kernels import inline_kernel, kernel

Levels = npt.NDArray[np.int64]


class FollowStatus(IntEnum):
    """What ``follow_request`` thinks of a request."""

    GOOD = 0
    WRONG_LENGTH = 1
    NO_SUCH_NODE = 2
    PADDING = 3


_GOOD = int(FollowStatus.GOOD)
_WRONG_LENGTH = int(FollowStatus.WRONG_LENGTH)
_NO_SUCH_NODE = int(FollowStatus.NO_SUCH_NODE)
_PADDING = int(FollowStatus.PADDING)


@inline_kernel
def _code(body: Octets, k: int) -> np.uint64:
    """Return direction code ``k``, none where the body is too short (its length is checked afterwards)."""
    if k >> 2 >= body.size:
        return U(0)
    return U(body[U(k) >> U(2)] >> U(2 * (k & 3))) & U(3)


@inline_kernel
def _start(body: Octets, octet: int) -> np.uint64:
    """Return the 32-bit start at ``octet``."""
    query = U(0)
    for k in range(4):
        query |= U(body[octet + k]) << U(8 * k)
    return query


@kernel
def follow_request(
    body: Octets,
    n_word_starts: int,
    n_tree_starts: int,
    block_slot: int,
    n_blocks: int,
    levels: Levels,
    begun: int,
    stride_words: int,
    old_words: Queries,
    n_old_words: int,
    old_trees: Queries,
    n_old_trees: int,
    words: Queries,
    trees: Queries,
) -> tuple[int, int, int]:
    """Write the queries of this request; return a ``FollowStatus`` and how many words and trees there are.

    ``n_blocks`` blocks of ``block_slot`` were disclosed last time (or none). ``words`` and ``trees`` have
    room for two queries per old one, all starts and all blocks.
    """
    stride = U(stride_words)
    n_words = 0
    n_trees = 0
    k = 0
    for t in range(n_old_words):
        query = U(old_words[U(t)])
        if is_bottom(query):
            continue
        code = _code(body, k)
        k += 1
        n_words = go_on(words, n_words, left_child(query), code)
    for t in range(n_old_trees):
        query = U(old_trees[U(t)])
        code = _code(body, k)
        k += 1
        slot, height, i = tree_slot(query), tree_height(query) - U(1), tree_index(query) << U(1)
        for side in range(2):
            if (code >> U(side)) & U(1) == U(0):
                continue
            if height == U(0):
                words[U(n_words)] = ((slot * stride + i + U(side)) << U(7)) | U(1)
                n_words += 1
            else:
                trees[U(n_trees)] = tree_query(slot, height, i + U(side))
                n_trees += 1
    octet = (k + 3) >> 2
    if body.size != octet + 4 * (n_word_starts + n_tree_starts) + ((n_blocks + 7) >> 3):
        return _WRONG_LENGTH, 0, 0
    for _ in range(n_word_starts):
        query = _start(body, octet)
        octet += 4
        if not _word_start_exists(query, levels, begun, stride):
            return _NO_SUCH_NODE, 0, 0
        words[U(n_words)] = query
        n_words += 1
    for _ in range(n_tree_starts):
        query = _start(body, octet)
        octet += 4
        if not _tree_start_exists(query, levels, begun, stride):
            return _NO_SUCH_NODE, 0, 0
        trees[U(n_trees)] = query
        n_trees += 1
    if n_blocks & 7 and body[body.size - 1] >> (n_blocks & 7):
        return _PADDING, 0, 0
    level = int(levels[block_slot])
    for block in range(n_blocks):
        if answer_bit(body, 8 * octet + block):
            if level <= 6:
                words[U(n_words)] = block_query(U(block_slot), level, U(block), stride)
                n_words += 1
            else:
                trees[U(n_trees)] = block_query(U(block_slot), level, U(block), stride)
                n_trees += 1
    return _GOOD, n_words, n_trees


@inline_kernel
def _word_start_exists(query: np.uint64, levels: Levels, begun: int, stride: np.uint64) -> bool:
    """Tell whether a word query names a node with children, not above its pass's blocks, of a begun pass."""
    base = query >> U(7)
    heap = query & U(127)
    if base >= U(begun) * stride or heap < U(1) or heap >= U(64):
        return False
    level = levels[base // stride]
    return bool(level >= 6 or heap >= U(1) << U(6 - level))


@inline_kernel
def _tree_start_exists(query: np.uint64, levels: Levels, begun: int, stride: np.uint64) -> bool:
    """Tell the same of a tree query."""
    slot, height = tree_slot(query), tree_height(query)
    if slot >= U(begun) or height < U(1):
        return False
    level = levels[slot]
    return bool(level > 6 and height <= U(level - 6) and tree_index(query) < stride >> height)


@kernel
def answer_queries(
    words: Words,
    prefixes: npt.NDArray[np.uint8],
    word_queries: Queries,
    n_words: int,
    tree_queries: Queries,
    n_trees: int,
    answers: Octets,
) -> None:
    """Write the parity of each query's left child, packed."""
    octet = U(0)
    for t in range(n_words + n_trees):
        if t < n_words:
            query = U(word_queries[U(t)])
            bit = parity(words[query >> U(7)] & NODE_MASK[(query & U(127)) << U(1)])
        else:
            query = U(tree_queries[U(t - n_words)])
            slot, height, i = tree_slot(query), tree_height(query) - U(1), tree_index(query) << U(1)
            bit = U(prefixes[slot, (i + U(1)) << height] ^ prefixes[slot, i << height])
        octet |= bit << (U(t) & U(7))
        if t & 7 == 7:
            answers[U(t) >> U(3)] = octet
            octet = U(0)
    if (n_words + n_trees) & 7:
        answers[answers.size - 1] = octet


@kernel
def prefix_parities(words: Words, prefix: npt.NDArray[np.uint8]) -> None:
    """Write the parity of the words before each word (shape ``(words + 1,)``)."""
    running = U(0)
    for w in range(words.size):
        prefix[w] = running
        running ^= parity(words[w])
    prefix[words.size] = running


@kernel
def block_parities(words: Words, level: int, parities: npt.NDArray[np.uint8]) -> None:
    """Write the parities of the first blocks of ``2**level`` bits of ``words``."""
    for i in range(parities.size):
        if level <= 6:
            parities[i] = parity(words[U(i) >> U(6 - level)] & NODE_MASK[block_heap(level, U(i))])
        else:
            folded = U(0)
            for w in range(i << (level - 6), (i + 1) << (level - 6)):
                folded ^= words[w]
            parities[i] = parity(folded)
