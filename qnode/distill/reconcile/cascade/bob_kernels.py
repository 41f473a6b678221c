"""Bob's trees: what he knows of Alice's parities, and what an answer changes.

He keeps four words for each record: ``BITS`` his parities of its children (layer 0: his bits); ``KNOWN`` the
nodes whose parity Alice has disclosed; ``ODD`` those of them where his parity differs now; ``PENDING`` those
about which a query is under way. Known nodes come in pairs of siblings, so a known node is odd exactly if one
of its known children is: it is enough that each odd known node *without* known children has a query under
way, and only flips and answers can change that.
"""

from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from qnode.distill.reconcile._words import U, leading_zeros, parity
from qnode.distill.reconcile.cascade.nodes import (
    ANCESTORS,
    NODE_MASK,
    POSITIONS,
    Counts,
    Layout,
    Octets,
    Queries,
    Words,
    block_heap,
    block_layer,
    first_record,
    levels_below,
    read_bit,
    record_below,
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
_UNKNOWN: Final = np.uint64(1 << 32)


class Progress(NamedTuple):
    """What one round has led to; ``n_codes`` counts bits."""

    n_queries: int
    n_codes: int
    n_starts: int
    n_flips: int


@inline_kernel
def _toggle(records: Words, record: np.uint64, child: np.uint64) -> None:
    """Flip one child of a record, and turn the oddness of the known nodes above it."""
    place = record << U(2)
    records[place | BITS] ^= U(1) << child
    records[place | ODD] ^= records[place | KNOWN] & ANCESTORS[child]


@inline_kernel
def _flip(
    records: Words,
    layers: Levels,
    forward: Table,
    inverse: Table,
    bitwise: bool,
    begun: int,
    segment: np.uint64,
    layout: Layout,
    record: np.uint64,
    bit: np.uint64,
    places: Table,
    n_flips: int,
) -> int:
    """Flip one bit in all begun passes and note its places; return how many flips are noted.

    Bits behind the end of a segment are in no pass: a peer that calls them wrong changes nothing.
    """
    slot = record // (layout.words * layout.n_segments)
    x = ((record - first_record(0, slot, segment, layout)) << U(6)) | bit
    if x >= layout.segment_words << U(6):
        return n_flips
    origin = x
    if slot != U(0):
        origin = place_before_slot(x, slot, forward, layout.segment_words, bitwise)
    for s in range(begun):
        y = x
        if U(s) != slot:
            y = origin
            if s > 0:
                y = place_in_slot(origin, U(s), inverse, layout.segment_words, bitwise)
        places[U(n_flips), U(s)] = y
        _toggle(records, first_record(0, U(s), segment, layout) + (y >> U(6)), y & U(63))
        if layers[s] > 0:
            _toggle(records, first_record(1, U(s), segment, layout) + (y >> U(12)), (y >> U(6)) & U(63))
            if layers[s] > 1:
                _toggle(records, first_record(2, U(s), segment, layout) + (y >> U(18)), (y >> U(12)) & U(63))
    return n_flips + 1


@inline_kernel
def _start(records: Words, record: np.uint64, child: np.uint64) -> np.uint64:
    """Return the query about the deepest known node above a child of a record, if it is odd and not pending.

    Returns 0, which is no node, if there is nothing to ask, and 2**32 if no node above the child is known.
    """
    place = record << U(2)
    known = records[place | KNOWN] & ANCESTORS[child]
    if known == U(0):
        return _UNKNOWN
    heap = U(63) - leading_zeros(known)
    if ((records[place | ODD] & ~records[place | PENDING]) >> heap) & U(1):
        records[place | PENDING] |= U(1) << heap
        return (record << U(7)) | heap
    return U(0)


@kernel
def absorb_answers(
    answers: Octets,
    depth: int,
    leap: int,
    before: Queries,
    before_counts: Counts,
    records: Words,
    layers: Levels,
    forward: Table,
    inverse: Table,
    bitwise: bool,
    begun: int,
    layout: Layout,
    places: Table,
    codes: Octets,
    starts: Queries,
    new_slot: int,
    new_level: int,
    n_blocks: int,
    block_parities: Octets,
    odd_blocks: Octets,
    key: Words,
    after: Queries,
    after_counts: Counts,
) -> Progress:
    """Take the parities that the queries ``before`` asked for: learn, go on, flip, and start anew.

    Then, where a flip has made the deepest known node above it odd, a search starts (after all flips of the
    segment, so that two flips in one node cancel before they cost a parity). If there are
    ``block_parities`` (``n_blocks`` of each segment), the pass of ``new_slot`` begins (slot 0 from ``key``,
    others from slot 0 as corrected so far). Writes the queries ``after``, the ``starts`` among them, what Bob
    says of the old ones (``codes``, zero before) and ``odd_blocks`` (zero before). ``places`` has room for
    the flips of one segment.
    """
    n = 0
    t = 0
    k = 0
    k_code = 0
    n_starts = 0
    n_all_flips = 0
    spare = np.empty(layout.segment_words if n_blocks > 0 else U(0), np.uint64)
    permuted = np.empty_like(spare)
    for this_segment in range(layout.n_segments):
        segment = U(this_segment)
        first = n
        first_start = n_starts
        n_flips = 0
        for _ in range(before_counts[segment]):
            query = U(before[U(t)])
            t += 1
            record, heap = query >> U(7), query & U(127)
            place = record << U(2)
            bits = records[place | BITS]
            height = levels_below(heap)
            if 1 < height <= leap and record < layout.layer_1:
                # One error under the node: its place in binary.
                within = bits & NODE_MASK[heap]
                bit = (heap << U(height)) - U(64)
                left = U(0)
                for j in range(height - 1, -1, -1):
                    differs = parity(within & POSITIONS[U(j)]) ^ read_bit(answers, k)
                    k += 1
                    if j == height - 1:
                        left = differs
                    bit |= (differs ^ U(1)) << U(j)
                odd = (records[place | ODD] >> heap) & U(1)
                below = heap << U(1)
                records[place | PENDING] &= ~(U(1) << heap)
                records[place | KNOWN] |= U(3) << below
                records[place | ODD] |= (left | ((left ^ odd) << U(1))) << below
                if odd:
                    n_flips = _flip(
                        records, layers, forward, inverse, bitwise, begun, segment, layout,
                        record, bit, places, n_flips,
                    )  # fmt: skip
                elif left:  # another search has found one error of two
                    records[place | PENDING] |= U(3) << below
                    for side in range(2):
                        starts[U(n_starts)] = query - heap + below + U(side)
                        n_starts += 1
                continue
            asked = min(depth, height)
            lowest = heap << U(asked)
            odd_lowest = U(0)
            if asked == 1:
                left = parity(bits & NODE_MASK[lowest]) ^ read_bit(answers, k)
                k += 1
                odd_lowest = left | ((left ^ ((records[place | ODD] >> heap) & U(1))) << U(1))
                records[place | PENDING] &= ~(U(1) << heap)
                if lowest < U(64):
                    records[place | KNOWN] |= U(3) << lowest
                    records[place | ODD] |= odd_lowest << lowest
                    records[place | PENDING] |= odd_lowest << lowest
                    # Left or right is a coin's toss, so it is computed and not branched upon.
                    after[U(n)] = (query - heap + lowest) | ((odd_lowest >> U(1)) & ~odd_lowest)
                    n += int(odd_lowest != U(0))
                    if odd_lowest == U(3):
                        after[U(n)] = (query - heap + lowest) | U(1)
                        n += 1
                    codes[U(k_code) >> U(3)] |= np.uint8(odd_lowest << (U(k_code) & U(7)))
                    k_code += 2
                    continue
            else:
                known, odd = records[place | KNOWN], records[place | ODD]
                for level in range(asked):
                    odd_lowest = U(0)
                    for i in range(1 << level):
                        node = (heap << U(level)) + U(i)
                        left = parity(bits & NODE_MASK[node << U(1)]) ^ read_bit(answers, k)
                        k += 1
                        right = left ^ ((odd >> node) & U(1))
                        odd_lowest |= (left | (right << U(1))) << U(2 * i)
                    if level < 5 and (heap << U(level + 1)) < U(64):
                        known |= ((U(1) << U(2 << level)) - U(1)) << (heap << U(level + 1))
                        odd |= odd_lowest << (heap << U(level + 1))
                records[place | KNOWN] = known
                records[place | ODD] = odd
                records[place | PENDING] &= ~(U(1) << heap)
                if lowest < U(64):
                    records[place | PENDING] |= odd_lowest << lowest
                    for i in range(1 << asked):
                        after[U(n)] = query - heap + lowest + U(i)
                        bit = (odd_lowest >> U(i)) & U(1)
                        n += int(bit)
                        codes[U(k_code) >> U(3)] |= np.uint8(bit << (U(k_code) & U(7)))
                        k_code += 1
                    continue
            if record < layout.layer_1:
                while odd_lowest != U(0):
                    which = U(63) - leading_zeros(odd_lowest)
                    odd_lowest ^= U(1) << which
                    n_flips = _flip(
                        records, layers, forward, inverse, bitwise, begun, segment, layout,
                        record, lowest - U(64) + which, places, n_flips,
                    )  # fmt: skip
                continue
            for i in range(1 << asked):
                below = record_below(record, lowest - U(64) + U(i), layout)
                k_code += 1
                if below == layout.n_records:
                    continue
                bit = (odd_lowest >> U(i)) & U(1)
                codes[U(k_code - 1) >> U(3)] |= np.uint8(bit << (U(k_code - 1) & U(7)))
                records[(below << U(2)) | KNOWN] |= U(2)
                records[(below << U(2)) | ODD] |= bit << U(1)
                records[(below << U(2)) | PENDING] |= bit << U(1)
                after[U(n)] = (below << U(7)) | U(1)
                n += int(bit)
        for i in range(first_start, n_starts):
            after[U(n)] = starts[U(i)]
            n += 1
        for f in range(n_flips):
            for s in range(begun):
                y = U(places[U(f), U(s)])
                query = _start(records, first_record(0, U(s), segment, layout) + (y >> U(6)), y & U(63))
                if query == _UNKNOWN and layers[s] > 0:
                    record = first_record(1, U(s), segment, layout) + (y >> U(12))
                    query = _start(records, record, (y >> U(6)) & U(63))
                    if query == _UNKNOWN and layers[s] > 1:
                        record = first_record(2, U(s), segment, layout) + (y >> U(18))
                        query = _start(records, record, (y >> U(12)) & U(63))
                if query - U(1) < _UNKNOWN - U(1):
                    after[U(n)] = query
                    n += 1
                    starts[U(n_starts)] = query
                    n_starts += 1
        n_all_flips += n_flips
        if n_blocks > 0:
            n = _begin_segment(
                key, records, new_slot, new_level, n_blocks, block_parities, odd_blocks, forward[new_slot],
                bitwise, segment, layout, spare, permuted, after, n,
            )  # fmt: skip
        after_counts[segment] = n - first
    return Progress(n, k_code, n_starts, n_all_flips)


@kernel
def _begin_segment(
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

    Nothing else is known of the pass. Returns how many queries there are then.
    """
    if slot == 0:
        permute_segment(key, int(layout.n_segments), int(segment), forward, bitwise, spare, permuted)
    else:
        origin = records[first_record(0, U(0), segment, layout) << U(2) :]
        origin = origin[: layout.segment_words << U(2)]
        permute_segment(origin, RECORD_WORDS, int(BITS), forward, bitwise, spare, permuted)
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
def restore_key(records: Words, forward: Table, bitwise: bool, layout: Layout, key: Words) -> None:
    """Write the bits of pass 0 in the order of the key."""
    permuted = np.empty(layout.segment_words, np.uint64)
    spare = np.empty_like(permuted)
    for segment in range(layout.n_segments):
        first = first_record(0, U(0), U(segment), layout)
        for w in range(layout.segment_words):
            permuted[U(w)] = records[((first + U(w)) << U(2)) | BITS]
        restore_segment(permuted, forward, bitwise, spare, key, int(layout.n_segments), int(segment))
