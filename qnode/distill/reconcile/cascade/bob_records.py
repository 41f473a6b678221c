"""Bob's trees: the known parities of Alice, and the effects of a flipped bit.

Each record has four words: ``BITS`` are Bob's parities of its children (layer 0: Bob's bits); ``KNOWN`` the
nodes whose parity Alice has disclosed; ``ODD`` those of them where Bob's parity differs now; ``PENDING``
those with an open query. Known nodes come in pairs of siblings, so a known node is odd exactly if one of its
known children is. It is enough that each odd known node *without* known children has an open query; only
flips and answers can change that.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

from qnode.distill.reconcile.base.words import U, parity
from qnode.distill.reconcile.cascade.nodes import (
    ANCESTORS,
    NODE_MASK,
    Layout,
    Octets,
    Queries,
    Words,
    block_heap,
    block_layer,
    first_record,
    read_bit,
    unpacked,
)
from qnode.distill.reconcile.cascade.shuffle import (
    Table,
    permute_segment,
    place_before_slot,
    place_in_slot,
    restore_segment,
)
from qnode.kernels import inline_kernel, kernel

Levels = npt.NDArray[np.int64]

RECORD_WORDS: Final = 4
BITS: Final = np.uint64(0)  # words of a record
KNOWN: Final = np.uint64(1)
ODD: Final = np.uint64(2)
PENDING: Final = np.uint64(3)


@inline_kernel
def _toggle(records: Words, record: np.uint64, child: np.uint64) -> None:
    """Flip one child of a record, and turn the oddness of the known nodes above it."""
    place = record << U(2)
    records[place | BITS] ^= U(1) << child
    records[place | ODD] ^= records[place | KNOWN] & ANCESTORS[child]


@kernel
def flip(
    found: Table,
    n_found: int,
    records: Words,
    layers: Levels,
    forward: Table,
    inverse: Table,
    bitwise: bool,
    begun: int,
    segment: np.uint64,
    layout: Layout,
    marks: Words,
    places: Table,
) -> int:
    """Flip the bits ``found`` in one segment (``record << 6 | bit``) in all begun passes.

    Writes their ``places`` (shape ``(slots, flips)``) and returns how many were flipped: a bit that searches
    in two passes have found is flipped once. Bits after the end of the segment are in no pass: a peer that
    declares them wrong changes nothing. ``marks`` has a word for each of the segment's, all zero.
    """
    slot_bits = layout.words * layout.n_segments << U(6)
    segment_bits = layout.words << U(6)
    n_words = layout.segment_words
    origins = places[U(0)]
    n = 0
    for f in range(n_found):
        slot = U(found[U(f)]) // slot_bits
        x = U(found[U(f)]) - slot * slot_bits - segment * segment_bits
        if x >= n_words << U(6):
            continue
        if slot != U(0):
            x = place_before_slot(x, slot, forward, n_words, bitwise)
        mark = U(1) << (x & U(63))
        origins[U(n)] = x
        n += int((marks[x >> U(6)] & mark) == U(0))
        marks[x >> U(6)] |= mark
    for f in range(n):
        marks[origins[U(f)] >> U(6)] = U(0)
    for s in range(begun):
        slot = U(s)
        words = first_record(0, slot, segment, layout)
        groups = first_record(1, slot, segment, layout)
        heads = first_record(2, slot, segment, layout)
        for f in range(n):
            x = U(origins[U(f)])
            if s > 0:
                x = place_in_slot(x, slot, inverse, n_words, bitwise)
                places[slot, U(f)] = x
            _toggle(records, words + (x >> U(6)), x & U(63))
            if layers[slot] > 0:
                _toggle(records, groups + (x >> U(12)), (x >> U(6)) & U(63))
                if layers[slot] > 1:
                    _toggle(records, heads + (x >> U(18)), (x >> U(12)) & U(63))
    return n


@kernel
def begin_segment(
    key: Words,
    records: Words,
    slot: int,
    level: int,
    n_blocks: int,
    alice: Octets,
    odd_blocks: Octets,
    forward: Table,
    bitwise: bool,
    segment: np.uint64,
    layout: Layout,
    spare: Words,
    permuted: Words,
    queries: Queries,
    n: int,
) -> int:
    """Permute a segment into ``slot``, learn Alice's block parities, search in the odd blocks.

    Nothing else is known of the pass. Returns the new number of queries.
    """
    if slot == 0:
        permute_segment(key, layout.n_segments, segment, forward, bitwise, spare, permuted)
    else:
        origin = records[first_record(0, U(0), segment, layout) << U(2) :]
        origin = origin[: layout.segment_words << U(2)]
        permute_segment(origin, U(RECORD_WORDS), BITS, forward, bitwise, spare, permuted)
    first = first_record(0, U(slot), segment, layout)
    for w in range(layout.words):
        place = (first + U(w)) << U(2)
        records[place | BITS] = permuted[U(w)] if U(w) < layout.segment_words else U(0)
        records[place | KNOWN] = U(0)
        records[place | ODD] = U(0)
        records[place | PENDING] = U(0)
    layer = block_layer(level)
    block_level = level - 6 * layer
    below, n_below = first, layout.words
    for above in range(1, layer + 1):
        record = first_record(above, U(slot), segment, layout)
        n_above = layout.groups if above == 1 else layout.heads
        for r in range(n_above):
            folded = U(0)
            for child in range(min(U(64), n_below - (U(r) << U(6)))):
                bits = records[((below + (U(r) << U(6)) + U(child)) << U(2)) | BITS]
                folded |= parity(bits) << U(child)
            place = (record + U(r)) << U(2)
            records[place | BITS] = folded
            records[place | KNOWN] = U(0)
            records[place | ODD] = U(0)
            records[place | PENDING] = U(0)
        below, n_below = record, n_above
    k = int(segment) * n_blocks
    for i in range(n_blocks):
        record = below + (U(i) >> U(6 - block_level))
        place = record << U(2)
        heap = block_heap(block_level, U(i))
        odd = parity(records[place | BITS] & NODE_MASK[heap]) ^ read_bit(alice, k)
        records[place | KNOWN] |= U(1) << heap
        records[place | ODD] |= odd << heap
        records[place | PENDING] |= odd << heap
        queries[U(n)] = (record << U(7)) | heap
        n += int(odd)
        odd_blocks[U(k) >> U(3)] |= np.uint8(odd << (U(k) & U(7)))
        k += 1
    return n


@kernel
def restore_key(records: Words, forward: Table, bitwise: bool, packed_layout: Words, key: Words) -> None:
    """Write the bits of pass 0 in the order of the key."""
    layout = unpacked(packed_layout)
    permuted = np.empty(layout.segment_words, np.uint64)
    spare = np.empty_like(permuted)
    for segment in range(layout.n_segments):
        first = first_record(0, U(0), U(segment), layout)
        for w in range(layout.segment_words):
            permuted[U(w)] = records[((first + U(w)) << U(2)) | BITS]
        restore_segment(permuted, forward, bitwise, spare, key, layout.n_segments, U(segment))
