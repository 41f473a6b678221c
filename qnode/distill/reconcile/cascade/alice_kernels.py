"""Alice's kernels. Alice has no tree: Bob's message alone turns an answered query into the next ones."""

from enum import IntEnum

import numpy as np
import numpy.typing as npt

from qnode.distill.reconcile.base.words import U, parity
from qnode.distill.reconcile.cascade.nodes import (
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
    unpacked,
)
from qnode.distill.reconcile.cascade.plan import MAX_DEPTH
from qnode.distill.reconcile.cascade.shuffle import Table, permute_segment
from qnode.kernels import inline_kernel, kernel

Levels = npt.NDArray[np.int64]


class FollowStatus(IntEnum):
    """The result of ``follow_request`` for a request."""

    GOOD = 0
    NO_SUCH_NODE = 1
    NOT_IN_ORDER = 2
    PADDING_IS_SET = 3


_GOOD = int(FollowStatus.GOOD)
_NO_SUCH_NODE = int(FollowStatus.NO_SUCH_NODE)
_NOT_IN_ORDER = int(FollowStatus.NOT_IN_ORDER)
_PADDING_IS_SET = int(FollowStatus.PADDING_IS_SET)


@kernel
def follow_request(
    body: Octets,
    n_said: int,
    n_starts: int,
    depth: int,
    leap: int,
    block_slot: int,
    n_blocks: int,
    levels: Levels,
    begun: int,
    packed_layout: Words,
    before: Queries,
    before_counts: Counts,
    after: Queries,
    after_counts: Counts,
    next_depth: int,
    next_leap: int,
) -> tuple[int, int, int, int]:
    """Write the queries of this request, which asks ``next_depth`` and ``next_leap`` levels deep.

    Returns a ``FollowStatus``, how many queries there are, how many parities answer them, and how many bits
    Bob will say about them.

    ``depth`` and ``leap`` are those of the last request, whose queries are ``before``. ``body`` (see
    ``message``) begins with the ``n_said`` bits about them that ``expected_bits`` says, and has ``n_starts``
    starts. ``n_blocks`` blocks of each segment in ``block_slot`` were disclosed last time (or none).
    ``after`` has room for a query per code bit, all starts and all blocks.
    """
    layout = unpacked(packed_layout)
    starts_begin = (n_said + 7) >> 3
    starts_end = starts_begin + 4 * n_starts
    codes, odd_blocks = body[:starts_begin], body[starts_end:]
    if _padding_is_set(codes, n_said) or _padding_is_set(odd_blocks, int(layout.n_segments) * n_blocks):
        return _PADDING_IS_SET, 0, 0, 0
    starts = body[starts_begin:starts_end]
    n = 0
    t = 0
    k = 0
    n_started = 0
    block_level = int(levels[block_slot])
    layer = block_layer(block_level)
    block_level -= 6 * layer
    for segment in range(layout.n_segments):
        first = n
        for _ in range(before_counts[U(segment)]):
            query = U(before[U(t)])
            t += 1
            record, heap = query >> U(7), query & U(127)
            if height_of(query, layout) <= leap:
                continue
            asked = min(depth, levels_below(heap))
            lowest = heap << U(asked)
            if lowest < U(64):
                if asked == 1:
                    code = U(codes[U(k) >> U(3)] >> (U(k) & U(7))) & U(3)
                    k += 2
                    # Left or right is random, so it is computed without a branch.
                    after[U(n)] = (query - heap + lowest) | ((code >> U(1)) & ~code)
                    n += int(code != U(0))
                    if code == U(3):
                        after[U(n)] = (query - heap + lowest) | U(1)
                        n += 1
                    continue
                for i in range(1 << asked):
                    if read_bit(codes, k):
                        after[U(n)] = query - heap + lowest + U(i)
                        n += 1
                    k += 1
            elif record >= layout.layer_1:
                for i in range(1 << asked):
                    if read_bit(codes, k):
                        below = record_below(record, lowest + U(i) - U(64), layout)
                        if below == layout.n_records:
                            return _NO_SUCH_NODE, 0, 0, 0
                        after[U(n)] = (below << U(7)) | U(1)
                        n += 1
                    k += 1
        while n_started < n_starts:
            query = _start_at(starts, n_started)
            its_segment = _segment_of_start(query, levels, begun, layout)
            if its_segment == layout.n_segments:
                return _NO_SUCH_NODE, 0, 0, 0
            if its_segment != U(segment):
                break
            after[U(n)] = query
            n += 1
            n_started += 1
        if n_blocks > 0:
            record = first_record(layer, U(block_slot), U(segment), layout)
            for i in range(n_blocks):
                above = record + (U(i) >> U(6 - block_level))
                after[U(n)] = (above << U(7)) | block_heap(block_level, U(i))
                n += int(read_bit(odd_blocks, int(segment) * n_blocks + i))
        after_counts[U(segment)] = n - first
    if n_started != n_starts:
        return _NOT_IN_ORDER, 0, 0, 0
    n_answers, n_codes = expected_bits(after, n, next_depth, next_leap, layout)
    return _GOOD, n, n_answers, n_codes


@inline_kernel
def _padding_is_set(octets: Octets, n_bits: int) -> bool:
    """Return whether bits behind ``n_bits`` are set in the last octet."""
    return n_bits & 7 != 0 and U(octets[U(n_bits) >> U(3)]) >> (U(n_bits) & U(7)) != U(0)


@inline_kernel
def _start_at(starts: Octets, i: int) -> np.uint64:
    """Return a start, which has four octets, the lowest one first."""
    query = U(0)
    for octet in range(4):
        query |= U(starts[U(4 * i + octet)]) << U(8 * octet)
    return query


@inline_kernel
def _segment_of_start(query: np.uint64, levels: Levels, begun: int, layout: Layout) -> np.uint64:
    """Return the segment of a node that has children and is not above its pass's blocks, of a begun pass.

    ``n_segments`` if there is no such node.
    """
    record, heap = query >> U(7), query & U(127)
    if record >= layout.n_records or heap < U(1) or heap >= U(64):
        return layout.n_segments
    if record < layout.layer_1:
        which = record // layout.words
    elif record < layout.layer_2:
        which = (record - layout.layer_1) // layout.groups
    else:
        which = (record - layout.layer_2) // layout.heads
    slot = which // layout.n_segments
    if slot >= U(begun):
        return layout.n_segments
    if height_of(query, layout) > levels[slot]:
        return layout.n_segments
    return which - slot * layout.n_segments


@kernel
def answer_queries(
    words: Words, nodes: Queries, n_queries: int, depth: int, leap: int, packed_layout: Words, answers: Words
) -> None:
    """Write the parities that the queries ask for, packed (``answers`` has just the words they need)."""
    layout = unpacked(packed_layout)
    gathered = U(0)
    n_gathered = U(0)
    n_words = U(0)
    for t in range(n_queries):
        query = U(nodes[U(t)])
        record, heap = query >> U(7), query & U(127)
        word = words[record]
        levels = levels_below(heap)
        if height_of(query, layout) <= leap:
            bits = _digits(word & NODE_MASK[heap], levels)
            n_bits = U(levels)
            if record >= layout.layer_1:
                first = record_below(record, (heap << U(levels)) - U(64), layout)
                folded = U(0)
                for w in range(1 << levels):
                    folded ^= words[first + U(w)]
                bits |= _digits(folded, MAX_DEPTH) << n_bits
                n_bits += U(MAX_DEPTH)
        elif depth == 1:
            bits = parity(word & NODE_MASK[heap << U(1)])
            n_bits = U(1)
        else:
            bits = U(0)
            n_bits = U(0)
            for level in range(min(depth, levels)):
                for i in range(1 << level):
                    node = ((heap << U(level)) + U(i)) << U(1)
                    bits |= parity(word & NODE_MASK[node]) << n_bits
                    n_bits += U(1)
        gathered |= bits << n_gathered
        n_gathered += n_bits
        if n_gathered >= U(64):
            answers[n_words] = gathered
            n_words += U(1)
            n_gathered -= U(64)
            gathered = (bits >> U(1)) >> (n_bits - n_gathered - U(1))
    if n_gathered:
        answers[n_words] = gathered


@inline_kernel
def _digits(bits: np.uint64, levels: int) -> np.uint64:
    """Return the parities of the bits whose place has a zero in each binary digit, highest digit first."""
    parities = U(0)
    for j in range(levels):
        parities |= parity(bits & POSITIONS[U(levels - 1 - j)]) << U(j)
    return parities


@kernel
def begin_pass(
    key: Words,
    words: Words,
    slot: int,
    level: int,
    n_blocks: int,
    forward: Table,
    bitwise: bool,
    packed_layout: Words,
    parities: Octets,
) -> None:
    """Permute all segments into ``slot``, fill the layers above, and write the block parities, packed.

    Slot 0 permutes ``key``, dealt to the segments; the others permute slot 0. ``parities`` is zero.
    """
    layout = unpacked(packed_layout)
    spare = np.empty(layout.segment_words, np.uint64)
    permuted = np.empty(layout.segment_words, np.uint64)
    layer = block_layer(level)
    block_level = level - 6 * layer
    for segment in range(layout.n_segments):
        if slot == 0:
            permute_segment(key, layout.n_segments, U(segment), forward, bitwise, spare, permuted)
        else:
            origin = words[first_record(0, U(0), U(segment), layout) :][: layout.segment_words]
            permute_segment(origin, U(1), U(0), forward, bitwise, spare, permuted)
        first = first_record(0, U(slot), U(segment), layout)
        for w in range(layout.words):
            words[first + U(w)] = permuted[U(w)] if U(w) < layout.segment_words else U(0)
        if layer > 0:
            below, n_below = first, layout.words
            for above in range(1, layer + 1):
                record = first_record(above, U(slot), U(segment), layout)
                n_above = layout.groups if above == 1 else layout.heads
                for r in range(n_above):
                    folded = U(0)
                    for child in range(min(U(64), n_below - (U(r) << U(6)))):
                        folded |= parity(words[below + (U(r) << U(6)) + U(child)]) << U(child)
                    words[record + U(r)] = folded
                below, n_below = record, n_above
        record = first_record(layer, U(slot), U(segment), layout)
        for i in range(n_blocks):
            word = words[record + (U(i) >> U(6 - block_level))]
            bit = parity(word & NODE_MASK[block_heap(block_level, U(i))])
            k = U(segment) * U(n_blocks) + U(i)
            parities[k >> U(3)] |= np.uint8(bit << (k & U(7)))
