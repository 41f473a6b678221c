"""How the nodes of the parity trees are named, on both sides and in messages.

Each pass has a binary tree over the bits of a segment. It is kept in *records* of 64 children: a record of
layer 0 is a word of 64 bits; a record of layer 1 has the parities of 64 words as its children, a record of
layer 2 those of 64 records of layer 1. Inside a record the nodes are a heap: node 1 is the whole, node ``h``
has the children ``2h`` and ``2h + 1``, nodes 64 to 127 are the bits of layer 0, or stand for node 1 of the
records below.

A *query* ``record << 7 | h`` names an odd node, one whose parity is known and differs. It asks for one of:

* a *search* by halves: the parity of its left child; the right child's follows. A round of *depth* d
  asks the same of all nodes d - 1 levels below, as far as the record reaches: 2^d - 1 parities in the
  order of the heap.
* a *leap*, if 2^leap bits or fewer lie under the node: as if there were one error, its place in binary. For
  each binary digit of the place, highest first, the parity of the bits whose place has a zero there. It
  costs as many parities as the search by halves, but one round. The first is the left child's, too.
"""

from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from qnode.distill.reconcile.base.words import U, leading_zeros
from qnode.distill.reconcile.cascade.plan import MAX_DEPTH, Plan
from qnode.kernels import inline_kernel, kernel

Words = npt.NDArray[np.uint64]
Queries = npt.NDArray[np.uint32]
Octets = npt.NDArray[np.uint8]
Counts = npt.NDArray[np.int64]


class Layout(NamedTuple):
    """Where records lie: layer by layer, in a layer slot by slot, in a slot segment by segment.

    ``words``, ``groups``, ``heads``: records of layer 0, 1 and 2 for one segment in one slot; layer 1 begins
    at record ``layer_1``, layer 2 at ``layer_2``, and there are ``n_records`` in all.
    """

    n_segments: np.uint64
    segment_words: np.uint64
    words: np.uint64
    groups: np.uint64
    heads: np.uint64
    layer_1: np.uint64
    layer_2: np.uint64
    n_records: np.uint64

    @classmethod
    def of(cls, plan: Plan) -> "Layout":
        """Return the layout for ``plan``."""
        groups = -(-plan.segment_words // 64)
        heads = -(-groups // 64)
        n_sets = plan.n_slots * plan.n_segments
        layer_1 = n_sets * 64 * groups
        layer_2 = layer_1 + n_sets * groups
        return cls(
            n_segments=U(plan.n_segments),
            segment_words=U(plan.segment_words),
            words=U(64 * groups),
            groups=U(groups),
            heads=U(heads),
            layer_1=U(layer_1),
            layer_2=U(layer_2),
            n_records=U(layer_2 + n_sets * heads),
        )

    def packed(self) -> Words:
        """Return an array of the fields, which a call of a kernel unpacks much faster than a tuple."""
        return np.array(self, np.uint64)


@inline_kernel
def unpacked(layout: Words) -> Layout:
    """Undo `Layout.packed`."""
    return Layout(layout[0], layout[1], layout[2], layout[3], layout[4], layout[5], layout[6], layout[7])


class QueryList:
    """The queries of one request, segment after segment; ``counts`` says how many each segment has.

    The buffer is reused from round to round: most rounds are short, and there are many of them.
    """

    def __init__(self, n_segments: int) -> None:
        self.nodes: Queries = np.empty(1024, np.uint32)
        self.counts: Counts = np.zeros(n_segments, np.int64)
        self.n = 0

    def reserve(self, n_queries: int) -> None:
        """Make room for ``n_queries``; what the buffer held is lost."""
        if n_queries > self.nodes.shape[0]:
            self.nodes = np.empty(n_queries, np.uint32)

    def clear(self) -> None:
        """Forget all queries."""
        self.n = 0
        self.counts[:] = 0


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


NODE_MASK: Final = _node_masks()  # children of a record under node h
POSITIONS: Final = np.array(  # bits of a word whose number has a zero in binary place j
    [sum(1 << b for b in range(64) if not b >> j & 1) for j in range(6)], np.uint64
)
ANCESTORS: Final = _ancestor_masks()  # nodes of a record above a child, as a set of heap numbers


@inline_kernel
def read_bit(octets: Octets, t: int) -> np.uint64:
    """Return bit ``t`` of packed bits."""
    return U((octets[U(t) >> U(3)] >> (U(t) & U(7))) & U(1))


@inline_kernel
def block_layer(level: int) -> int:
    """Return in which layer blocks of ``2**level`` bits are nodes."""
    return (level - 1) // MAX_DEPTH


@inline_kernel
def first_record(layer: int, slot: np.uint64, segment: np.uint64, layout: Layout) -> np.uint64:
    """Return the first record of ``layer`` for a segment in a slot."""
    which = slot * layout.n_segments + segment
    if layer == 0:
        return which * layout.words
    if layer == 1:
        return layout.layer_1 + which * layout.groups
    return layout.layer_2 + which * layout.heads


@inline_kernel
def block_heap(level: int, i: np.uint64) -> np.uint64:
    """Return the heap number, in its record, of block ``i`` of ``2**level`` children (level 1 to 6)."""
    per_record = U(1) << U(6 - level)
    return per_record + (i & (per_record - U(1)))


@inline_kernel
def record_below(record: np.uint64, child: np.uint64, layout: Layout) -> np.uint64:
    """Return the record that child ``child`` of a record above layer 0 stands for.

    ``n_records``, which is none, where the child lies behind the end of its segment.
    """
    if record < layout.layer_2:
        return ((record - layout.layer_1) << U(6)) + child
    which = (record - layout.layer_2) // layout.heads
    group = ((record - layout.layer_2 - which * layout.heads) << U(6)) + child
    if group >= layout.groups:
        return layout.n_records
    return layout.layer_1 + which * layout.groups + group


@inline_kernel
def levels_below(heap: np.uint64) -> int:
    """Return how many levels node ``heap`` is above the children of its record."""
    return int(leading_zeros(heap)) - 57


@inline_kernel
def height_of(query: np.uint64, layout: Layout) -> int:
    """Return log2 of the number of bits under the node of a query."""
    record = query >> U(7)
    layer = int(record >= layout.layer_1) + int(record >= layout.layer_2)
    return levels_below(query & U(127)) + MAX_DEPTH * layer


@kernel
def expected_bits(nodes: Queries, n_queries: int, depth: int, leap: int, layout: Layout) -> tuple[int, int]:
    """Return how many parities answer the queries, and how many bits Bob then says about them."""
    n_answers = 0
    n_codes = 0
    for t in range(n_queries):
        query = U(nodes[U(t)])
        height = height_of(query, layout)
        if height <= leap:
            n_answers += height
            continue
        levels = levels_below(query & U(127))
        asked = min(depth, levels)
        n_answers += (1 << asked) - 1
        if asked < levels or height > levels:
            n_codes += 1 << asked
    return n_answers, n_codes
