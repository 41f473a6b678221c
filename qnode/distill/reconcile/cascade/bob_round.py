"""One round of Bob's side: the effects of Alice's answers on the trees, and the next queries."""

from typing import NamedTuple

import numpy as np

from qnode.distill.reconcile.base.words import U
from qnode.distill.reconcile.cascade.bob_records import Levels, begin_segment, flip
from qnode.distill.reconcile.cascade.bob_searches import continue_searches, end_searches, start_searches
from qnode.distill.reconcile.cascade.nodes import Counts, Octets, Queries, Words, expected_bits, unpacked
from qnode.distill.reconcile.cascade.plan import MAX_DEPTH, MAX_LEAP
from qnode.distill.reconcile.cascade.shuffle import Table
from qnode.kernels import kernel


class Progress(NamedTuple):
    """The result of one round, and the form of the next one.

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
    packed_layout: Words,
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
) -> tuple[int, int, int, int, int, int, int, int]:
    """Process the parities for the queries ``before``: flip, learn, continue, and start new searches.

    In each segment the searches that have found their bit end first, so that the others do not go on where
    that has made a node even. If there are ``block_parities`` (``n_blocks`` of each segment), the pass of
    ``new_slot`` begins (slot 0 from ``key``, others from slot 0 as corrected so far). Writes the queries
    ``after``, the ``starts`` among them, what Bob says of the old ones (``codes``, zero before) and
    ``odd_blocks`` (zero before). ``found`` and ``places`` have room for the flips of one segment;
    ``leap_bits`` and ``round_budget_bits`` are the plan's. Returns the fields of a `Progress`.
    """
    layout = unpacked(packed_layout)
    # Not plain zeros, for which numba would compile the helpers once more.
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
        n_found = end_searches(answers, k, depth, leap, queries, records, layout, found)
        if n_found > 0:
            n_flips = flip(
                found, n_found, records, layers, forward, inverse, bitwise, begun, segment, layout,
                marks, places,
            )  # fmt: skip
            n_all_flips += n_flips
        k, n, k_code = continue_searches(
            answers, k, depth, leap, queries, records, layout, after, n, codes, k_code
        )
        if n_flips > 0:
            n_starts = start_searches(
                records, layers, begun, segment, layout, places, n_flips, starts, n_starts
            )
        for i in range(first_start, n_starts):
            after[U(n)] = starts[U(i)]
            n += 1
        if n_blocks > 0:
            n = begin_segment(
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
    return n, k_code, n_starts, n_all_flips, next_depth, next_leap, n_answers, n_to_say
