"""Bob's searches: from an odd node of the trees down to the wrong bits."""

from typing import Final

import numpy as np

from qnode.distill.reconcile.base.words import U, leading_zeros, parity
from qnode.distill.reconcile.cascade.bob_records import BITS, KNOWN, ODD, PENDING, Levels
from qnode.distill.reconcile.cascade.nodes import (
    ANCESTORS,
    NODE_MASK,
    POSITIONS,
    Layout,
    Octets,
    Queries,
    Words,
    first_record,
    height_of,
    levels_below,
    read_bit,
    record_below,
)
from qnode.distill.reconcile.cascade.plan import MAX_DEPTH
from qnode.distill.reconcile.cascade.shuffle import Table
from qnode.kernels import inline_kernel, kernel

_UNKNOWN: Final = np.uint64(1 << 32)


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
def start_searches(
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
def end_searches(
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
def continue_searches(
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
    """Take the answers to the other queries: learn the parities below, continue in the odd nodes.

    Writes the continued queries to ``after``, and the message about the old ones to ``codes``. Returns the
    next bit of the answers, how many queries and how many bits of codes there are then.
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
            # Left or right is random, so it is computed without a branch.
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
