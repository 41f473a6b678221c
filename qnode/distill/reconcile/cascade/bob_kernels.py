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
    expected_bits,
    first_record,
    height_of,
    levels_below,
    read_bit,
    record_below,
)
from qnode.distill.reconcile.cascade.plan import MAX_DEPTH, MAX_LEAP
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
    """What one round has led to, and how the next one asks.

    ``n_said`` and ``n_to_say`` count bits about the queries before and now, ``n_answers`` the parities that
    those now ask for.
    """

    n_queries: int
    n_said: int
    n_starts: int
    n_flips: int
    depth: int
    leap: int
    n_answers: int
    n_to_say: int


@inline_kernel
def _toggle(records: Words, record: np.uint64, child: np.uint64) -> None:
    """Flip one child of a record, and turn the oddness of the known nodes above it."""
    place = record << U(2)
    records[place | BITS] ^= U(1) << child
    records[place | ODD] ^= records[place | KNOWN] & ANCESTORS[child]


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
def _flip(
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
    in two passes have found is flipped once. Bits behind the end of the segment are in no pass: a peer
    that calls them wrong changes nothing. ``marks`` has a word for each of the segment's, all zero.
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
def _start_searches(
    records: Words,
    layers: Levels,
    begun: int,
    segment: np.uint64,
    layout: Layout,
    places: Table,
    n_flips: int,
    starts: Queries,
    n_starts: int,
) -> int:
    """Start a search in the deepest known node above each flipped bit, in each pass, where that is odd.

    Done after all flips of the segment, so that two flips in one node cancel before they cost a parity.
    Returns how many starts there are then.
    """
    for s in range(begun):
        slot = U(s)
        words = first_record(0, slot, segment, layout)
        groups = first_record(1, slot, segment, layout)
        heads = first_record(2, slot, segment, layout)
        for f in range(n_flips):
            x = U(places[slot, U(f)])
            query = _start(records, words + (x >> U(6)), x & U(63))
            if query == _UNKNOWN and layers[slot] > 0:
                query = _start(records, groups + (x >> U(12)), (x >> U(6)) & U(63))
                if query == _UNKNOWN and layers[slot] > 1:
                    query = _start(records, heads + (x >> U(18)), (x >> U(12)) & U(63))
            starts[U(n_starts)] = query
            n_starts += int(query - U(1) < _UNKNOWN - U(1))
    return n_starts


@kernel
def _end_searches(
    answers: Octets,
    k: int,
    depth: int,
    leap: int,
    queries: Queries,
    records: Words,
    layout: Layout,
    found: Table,
) -> int:
    """Take the answers (from bit ``k`` on) to those ``queries`` that reach single bits.

    Their nodes are odd: since they were asked, nothing has been flipped. Writes the bits ``found`` wrong
    (``record << 6 | bit``) and returns how many there are.
    """
    n_found = 0
    for t in range(queries.size):
        query = U(queries[U(t)])
        record, heap = query >> U(7), query & U(127)
        levels = levels_below(heap)
        leaps = height_of(query, layout) <= leap
        if not leaps and (record >= layout.layer_1 or levels > depth):
            k += 1 if depth == 1 else (1 << min(depth, levels)) - 1
            continue
        place = record << U(2)
        records[place | PENDING] &= ~(U(1) << heap)
        lowest = heap << U(levels)
        if leaps:
            # One error under the node: its place in binary. If there are three, a right bit may be flipped;
            # then nodes of other passes become odd.
            below = heap << U(1)
            left = parity(records[place | BITS] & NODE_MASK[below]) ^ read_bit(answers, k)
            odd = left | ((left ^ U(1)) << U(1))
            child = lowest - U(64) + _position(records[place | BITS] & NODE_MASK[heap], levels, answers, k)
            k += levels
            if levels > 1:
                records[place | KNOWN] |= U(3) << below
                records[place | ODD] |= odd << below
            if record >= layout.layer_1:
                first = record_below(record, lowest - U(64), layout)
                if levels == 1:
                    for side in range(2):
                        records[((first + U(side)) << U(2)) | KNOWN] |= U(2)
                        records[((first + U(side)) << U(2)) | ODD] |= ((odd >> U(side)) & U(1)) << U(1)
                folded = U(0)
                for w in range(1 << levels):
                    folded ^= records[((first + U(w)) << U(2)) | BITS]
                record = first + child - (lowest - U(64))
                child = _position(folded, MAX_DEPTH, answers, k)
                k += MAX_DEPTH
            found[U(n_found)] = (record << U(6)) | child
            n_found += 1
            continue
        odd_lowest = _learn_below(answers, k, levels, heap, records, place)
        k += (1 << levels) - 1
        while odd_lowest != U(0):
            which = U(63) - leading_zeros(odd_lowest)
            odd_lowest ^= U(1) << which
            found[U(n_found)] = (record << U(6)) | (lowest - U(64) + which)
            n_found += 1
    return n_found


@inline_kernel
def _position(bits: np.uint64, levels: int, answers: Octets, k: int) -> np.uint64:
    """Return the place of the one difference among ``2**levels`` children, from the answers at ``k`` on."""
    place = U(0)
    for j in range(levels):
        alice = read_bit(answers, k + levels - 1 - j)
        place |= (parity(bits & POSITIONS[U(j)]) ^ alice ^ U(1)) << U(j)
    return place


@inline_kernel
def _learn_below(
    answers: Octets, k: int, asked: int, heap: np.uint64, records: Words, place: np.uint64
) -> np.uint64:
    """Learn the parities of all nodes down to ``asked`` levels below ``heap``.

    Returns the set of the lowest that are odd; these are not noted as known where they are in no heap.
    """
    bits, known, odd = records[place | BITS], records[place | KNOWN], records[place | ODD]
    odd_lowest = U(0)
    for level in range(asked):
        odd_lowest = U(0)
        for i in range(1 << level):
            node = (heap << U(level)) + U(i)
            left = parity(bits & NODE_MASK[node << U(1)]) ^ read_bit(answers, k)
            k += 1
            right = left ^ ((odd >> node) & U(1))
            odd_lowest |= (left | (right << U(1))) << U(2 * i)
        below = heap << U(level + 1)
        if below < U(64):
            known |= ((U(1) << U(2 << level)) - U(1)) << below
            odd |= odd_lowest << below
    records[place | KNOWN] = known
    records[place | ODD] = odd
    return odd_lowest


@kernel
def _continue_searches(
    answers: Octets,
    k: int,
    depth: int,
    leap: int,
    queries: Queries,
    records: Words,
    layout: Layout,
    after: Queries,
    n: int,
    codes: Octets,
    k_code: int,
) -> tuple[int, int, int]:
    """Take the answers to the other queries: learn the parities below, go on in the odd nodes.

    Writes the queries that go on to ``after`` and what is said of the old ones to ``codes``. Returns the next
    bit of the answers, how many queries and how many bits of codes there are then.
    """
    for t in range(queries.size):
        query = U(queries[U(t)])
        record, heap = query >> U(7), query & U(127)
        place = record << U(2)
        height = height_of(query, layout)
        if height <= leap:
            k += height
            continue
        if depth == 1 and heap < U(32):
            # Most queries: one level inside a record.
            left = parity(records[place | BITS] & NODE_MASK[heap << U(1)]) ^ read_bit(answers, k)
            k += 1
            odd = left | ((left ^ ((records[place | ODD] >> heap) & U(1))) << U(1))
            below = heap << U(1)
            records[place | KNOWN] |= U(3) << below
            records[place | ODD] |= odd << below
            records[place | PENDING] = (records[place | PENDING] & ~(U(1) << heap)) | (odd << below)
            # Left or right is a coin's toss, so it is computed and not branched upon.
            after[U(n)] = (query + heap) | ((odd >> U(1)) & ~odd)
            n += int(odd != U(0))
            if odd == U(3):
                after[U(n)] = (query + heap) | U(1)
                n += 1
            codes[U(k_code) >> U(3)] |= np.uint8(odd << (U(k_code) & U(7)))
            k_code += 2
            continue
        levels = levels_below(heap)
        asked = min(depth, levels)
        if record < layout.layer_1 and asked == levels:
            k += (1 << asked) - 1
            continue
        odd_lowest = _learn_below(answers, k, asked, heap, records, place)
        k += (1 << asked) - 1
        lowest = heap << U(asked)
        records[place | PENDING] &= ~(U(1) << heap)
        if lowest < U(64):
            records[place | PENDING] |= odd_lowest << lowest
        for i in range(1 << asked):
            odd = (odd_lowest >> U(i)) & U(1)
            node = (query & ~U(127)) | (lowest + U(i))
            if lowest >= U(64):
                below = record_below(record, lowest - U(64) + U(i), layout)
                if below == layout.n_records:
                    k_code += 1
                    continue
                records[(below << U(2)) | KNOWN] |= U(2)
                records[(below << U(2)) | ODD] |= odd << U(1)
                records[(below << U(2)) | PENDING] |= odd << U(1)
                node = (below << U(7)) | U(1)
            after[U(n)] = node
            n += int(odd)
            codes[U(k_code) >> U(3)] |= np.uint8(odd << (U(k_code) & U(7)))
            k_code += 1
    return k, n, k_code


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
    found: Table,
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
    leap_bits: int,
    round_budget_bits: int,
) -> Progress:
    """Take the parities that the queries ``before`` asked for: flip, learn, go on, and start anew.

    In each segment the searches that have found their bit end first, so that the others do not go on where
    that has made a node even. If there are ``block_parities`` (``n_blocks`` of each segment), the pass of
    ``new_slot`` begins (slot 0 from ``key``, others from slot 0 as corrected so far). Writes the queries
    ``after``, the ``starts`` among them, what Bob says of the old ones (``codes``, zero before) and
    ``odd_blocks`` (zero before). ``found`` and ``places`` have room for the flips of one segment;
    ``leap_bits`` and ``round_budget_bits`` are the plan's.
    """
    # Not plain zeros, which numba would compile the helpers for once more.
    n = t = k = k_code = n_starts = n_all_flips = int(np.int64(0))
    spare = np.empty(layout.segment_words if n_blocks > 0 else U(0), np.uint64)
    permuted = np.empty_like(spare)
    marks = np.zeros(layout.segment_words, np.uint64)
    for this_segment in range(layout.n_segments):
        segment = U(this_segment)
        first, first_start = n, n_starts
        queries = before[U(t) : U(t + before_counts[segment])]
        t += before_counts[segment]
        n_flips = 0
        n_found = _end_searches(answers, k, depth, leap, queries, records, layout, found)
        if n_found > 0:
            n_flips = _flip(
                found, n_found, records, layers, forward, inverse, bitwise, begun, segment, layout,
                marks, places,
            )  # fmt: skip
            n_all_flips += n_flips
        k, n, k_code = _continue_searches(
            answers, k, depth, leap, queries, records, layout, after, n, codes, k_code
        )
        if n_flips > 0:
            n_starts = _start_searches(
                records, layers, begun, segment, layout, places, n_flips, starts, n_starts
            )
        for i in range(first_start, n_starts):
            after[U(n)] = starts[U(i)]
            n += 1
        if n_blocks > 0:
            n = _begin_segment(
                key, records, new_slot, new_level, n_blocks, block_parities, odd_blocks, forward[new_slot],
                bitwise, segment, layout, spare, permuted, after, n,
            )  # fmt: skip
        after_counts[segment] = n - first
    next_leap = 1
    while next_leap < MAX_LEAP and n << (next_leap + 1) <= leap_bits:
        next_leap += 1
    next_depth = 1
    while next_depth < MAX_DEPTH and n * ((2 << next_depth) - 1) <= round_budget_bits:
        next_depth += 1
    n_answers, n_to_say = expected_bits(after, n, next_depth, next_leap, layout)
    return Progress(n, k_code, n_starts, n_all_flips, next_depth, next_leap, n_answers, n_to_say)


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
def restore_key(records: Words, forward: Table, bitwise: bool, layout: Layout, key: Words) -> None:
    """Write the bits of pass 0 in the order of the key."""
    permuted = np.empty(layout.segment_words, np.uint64)
    spare = np.empty_like(permuted)
    for segment in range(layout.n_segments):
        first = first_record(0, U(0), U(segment), layout)
        for w in range(layout.segment_words):
            permuted[U(w)] = records[((first + U(w)) << U(2)) | BITS]
        restore_segment(permuted, forward, bitwise, spare, key, layout.n_segments, U(segment))
