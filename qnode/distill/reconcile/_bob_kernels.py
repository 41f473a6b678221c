"""Bob's trees: what he knows of Alice's parities, and what an answer changes.

One record of four words per word of each pass: ``BITS`` his bits; ``KNOWN`` the heap nodes whose parity Alice
has disclosed; ``ODD`` those of them where his parity differs now; ``PENDING`` those about which a query is
under way. Nodes above the words have one octet of the same flags. Known nodes come in pairs of siblings, so a
known node is odd exactly if one of its known children is: it is enough that each odd known node *without*
known children has a query under way, and only flips and answers can change that.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

from qnode.distill.reconcile._nodes import (
    ANCESTORS,
    LEFT,
    NODE_MASK,
    RIGHT,
    Octets,
    Queries,
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
from qnode.distill.reconcile._shuffle import Table, place_before_slot, place_in_slot
from qnode.distill.reconcile._words import U, leading_zeros, parity
from qnode.kernels import inline_kernel, kernel

Records = npt.NDArray[np.uint64]
Levels = npt.NDArray[np.int64]

BITS: Final = np.uint64(0)  # columns of a record
KNOWN: Final = np.uint64(1)
ODD: Final = np.uint64(2)
PENDING: Final = np.uint64(3)
TREE_ODD: Final = np.uint8(1)  # flags of a tree node
TREE_KNOWN: Final = np.uint8(2)
TREE_PENDING: Final = np.uint8(4)


@inline_kernel
def _tree_node(slot: np.uint64, height: np.uint64, i: np.uint64, stride: np.uint64) -> np.uint64:
    """Return the place of a tree node: heights follow one another inside the slot's ``stride`` octets."""
    return slot * stride + stride - (stride >> (height - U(1))) + i


@inline_kernel
def _folded(records: Records, first: np.uint64, n_words: np.uint64) -> np.uint64:
    folded = U(0)
    for w in range(n_words):
        folded ^= records[first + U(w), BITS]
    return folded


@inline_kernel
def _flip(
    records: Records,
    tree: Octets,
    levels: Levels,
    gather: Table,
    inverse: Table,
    rotation: Table,
    stride: np.uint64,
    n_words: np.uint64,
    bitwise: bool,
    started: int,
    base: np.uint64,
    bit: np.uint64,
    places: Table,
    n_flips: int,
) -> int:
    """Flip one bit in all started passes, note its places, and turn the oddness of the nodes above it.

    Returns how many flips are noted. Zeros behind the last word are in no pass: a peer that calls them
    wrong changes nothing.
    """
    slot = base // stride
    x = (base - slot * stride) * U(64) + bit
    if x >= n_words * U(64):
        return n_flips
    if slot != U(0):
        x = place_before_slot(x, slot, gather, rotation, n_words, bitwise)
    for s in range(started):
        y = x
        if s > 0:
            y = place_in_slot(x, U(s), inverse, rotation, n_words, bitwise)
        places[U(n_flips), U(s)] = y
        w = y >> U(6)
        record = U(s) * stride + w
        records[record, BITS] ^= U(1) << (y & U(63))
        records[record, ODD] ^= records[record, KNOWN] & ANCESTORS[y & U(63)]
        for height in range(1, levels[s] - 5):
            tree[_tree_node(U(s), U(height), w >> U(height), stride)] ^= TREE_ODD
    return n_flips + 1


@kernel
def absorb_answers(
    answers: Octets,
    word_queries: Queries,
    n_word_queries: int,
    tree_queries: Queries,
    n_tree_queries: int,
    records: Records,
    tree: Octets,
    levels: Levels,
    gather: Table,
    inverse: Table,
    rotation: Table,
    stride_words: int,
    frame_words: int,
    bitwise: bool,
    started: int,
    words: Queries,
    trees: Queries,
    codes: Octets,
    places: Table,
) -> tuple[int, int, int, int]:
    """Take one answer bit for each query: learn two children, go on in the odd ones, flip wrong bits.

    Outputs: queries that go on (``words``, ``trees``), their direction ``codes``, ``places`` of flipped bits.
    Returns how many there are of each.
    """
    stride = U(stride_words)
    n_words = 0
    n_trees = 0
    n_flips = 0
    k = 0
    for t in range(n_word_queries):
        query = U(word_queries[U(t)])
        base = query >> U(7)
        heap = query & U(127)
        child = heap << U(1)
        bits = records[base, BITS]
        parent = (records[base, ODD] >> heap) & U(1)
        records[base, PENDING] &= ~(U(1) << heap)
        left = parity(bits & NODE_MASK[child]) ^ answer_bit(answers, t)
        right = left ^ parent
        if is_bottom(query):
            bit = child - U(64)
            for side in range(2):
                if (right if side else left) != U(0):
                    n_flips = _flip(
                        records, tree, levels, gather, inverse, rotation, stride, U(frame_words), bitwise,
                        started, base, bit + U(side), places, n_flips,
                    )  # fmt: skip
            continue
        records[base, KNOWN] |= U(3) << child
        records[base, ODD] |= (left | (right << U(1))) << child
        records[base, PENDING] |= (left | (right << U(1))) << child
        code = left | (right << U(1))
        n_words = go_on(words, n_words, left_child(query), code)
        _write_code(codes, k, code)
        k += 1
    for t in range(n_tree_queries):
        query = U(tree_queries[U(t)])
        slot, height, i = tree_slot(query), tree_height(query), tree_index(query)
        node = _tree_node(slot, height, i, stride)
        tree[node] &= ~TREE_PENDING
        parent = U(tree[node] & TREE_ODD)
        height -= U(1)
        i <<= U(1)
        half = _folded(records, slot * stride + (i << height), U(1) << height)
        left = parity(half) ^ answer_bit(answers, n_word_queries + t)
        right = left ^ parent
        for side in range(2):
            odd = right if side else left
            if height == U(0):
                base = slot * stride + i + U(side)
                records[base, KNOWN] |= U(2)
                records[base, ODD] |= odd << U(1)
                records[base, PENDING] |= odd << U(1)
                if odd:
                    words[U(n_words)] = (base << U(7)) | U(1)
                    n_words += 1
            else:
                child_node = _tree_node(slot, height, i + U(side), stride)
                tree[child_node] = TREE_KNOWN
                if odd:
                    tree[child_node] = TREE_KNOWN | TREE_ODD | TREE_PENDING
                    trees[U(n_trees)] = tree_query(slot, height, i + U(side))
                    n_trees += 1
        _write_code(codes, k, left | (right << U(1)))
        k += 1
    return n_words, n_trees, k, n_flips


@inline_kernel
def _write_code(codes: Octets, k: int, code: np.uint64) -> None:
    assert LEFT == 1 and RIGHT == 2  # noqa: PT018
    if k & 3 == 0:
        codes[k >> 2] = code
    else:
        codes[k >> 2] |= np.uint8(code << U(2 * (k & 3)))


@kernel
def examine_flips(
    records: Records,
    tree: Octets,
    levels: Levels,
    stride_words: int,
    started: int,
    places: Table,
    n_flips: int,
    words: Queries,
    n_words: int,
    trees: Queries,
    n_trees: int,
) -> tuple[int, int]:
    """Begin a search in the deepest known node above each flipped bit, in each pass, where that node is odd.

    Done after all flips of a round, so that two flips in one node cancel before they cost a parity.
    Returns how many word and tree queries there are then.
    """
    stride = U(stride_words)
    for t in range(n_flips):
        for s in range(started):
            y = U(places[U(t), U(s)])
            w = y >> U(6)
            base = U(s) * stride + w
            known = records[base, KNOWN] & ANCESTORS[y & U(63)]
            if known:
                heap = U(63) - leading_zeros(known)
                if ((records[base, ODD] & ~records[base, PENDING]) >> heap) & U(1):
                    records[base, PENDING] |= U(1) << heap
                    words[U(n_words)] = (base << U(7)) | heap
                    n_words += 1
                continue
            for height in range(1, levels[s] - 5):
                node = _tree_node(U(s), U(height), w >> U(height), stride)
                if tree[node] & TREE_KNOWN:
                    if tree[node] == TREE_KNOWN | TREE_ODD:
                        tree[node] |= TREE_PENDING
                        trees[U(n_trees)] = tree_query(U(s), U(height), w >> U(height))
                        n_trees += 1
                    break
    return n_words, n_trees


@kernel
def begin_blocks(
    records: Records,
    tree: Octets,
    level: int,
    slot: int,
    stride_words: int,
    alice: Octets,
    odd_blocks: npt.NDArray[np.uint8],
    words: Queries,
    n_words: int,
    trees: Queries,
    n_trees: int,
) -> tuple[int, int]:
    """Learn Alice's block parities (packed) of a pass; search in the odd blocks, told in ``odd_blocks``.

    Nothing else is known of the pass. Returns how many word and tree queries there are then.
    """
    stride = U(stride_words)
    first = U(slot) * stride
    for w in range(stride_words):
        records[first + U(w), KNOWN] = U(0)
        records[first + U(w), ODD] = U(0)
        records[first + U(w), PENDING] = U(0)
        tree[first + U(w)] = 0
    for i in range(odd_blocks.size):
        if level <= 6:
            base = first + (U(i) >> U(6 - level))
            heap = block_heap(level, U(i))
            odd = parity(records[base, BITS] & NODE_MASK[heap]) ^ answer_bit(alice, i)
            records[base, KNOWN] |= U(1) << heap
            records[base, ODD] |= odd << heap
            records[base, PENDING] |= odd << heap
            if odd:
                words[U(n_words)] = block_query(U(slot), level, U(i), stride)
                n_words += 1
        else:
            n_folded = U(1) << U(level - 6)
            odd = parity(_folded(records, first + U(i) * n_folded, n_folded)) ^ answer_bit(alice, i)
            node = _tree_node(U(slot), U(level - 6), U(i), stride)
            tree[node] = TREE_KNOWN
            if odd:
                tree[node] = TREE_KNOWN | TREE_ODD | TREE_PENDING
                trees[U(n_trees)] = block_query(U(slot), level, U(i), stride)
                n_trees += 1
        odd_blocks[i] = odd
    return n_words, n_trees
