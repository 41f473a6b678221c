"""Keys with errors, a dialogue driver, and a plain Alice."""

import struct
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qnode.distill.bits import Bits
from qnode.distill.reconcile import Corrector, Responder, corrector, responder
from qnode.distill.reconcile.cascade.check import check_tag
from qnode.distill.reconcile.cascade.plan import Plan, make_plan
from qnode.distill.reconcile.cascade.shuffle import Shuffles

BitArray = npt.NDArray[np.uint8]
Places = npt.NDArray[np.int64]
SEED = bytes(range(32))


@dataclass(frozen=True)
class Pair:
    """Alice's key, Bob's key, and in how many bits they differ."""

    alice: Bits
    bob: Bits
    n_errors: int


def make_pair(errors: BitArray, rng: np.random.Generator) -> Pair:
    """Return a random key and the same with ``errors``."""
    alice = rng.integers(0, 2, errors.shape, dtype=np.uint8)
    return Pair(Bits.pack(alice), Bits.pack(np.bitwise_xor(alice, errors)), int(errors.sum()))


def independent_errors(n_bits: int, qber: float, rng: np.random.Generator) -> BitArray:
    return (rng.random(n_bits) < qber).astype(np.uint8)


def dialogue(alice: Responder, bob: Corrector) -> None:
    """Carry messages until Bob has finished."""
    request: bytes | None = bob.start()
    while request is not None:
        request = bob.receive(alice.respond(request))


def reconcile(pair: Pair, qber_estimate: float, seed: bytes = SEED) -> Corrector:
    """Run both sides; check that they count the same, and that Bob now has Alice's key."""
    alice = responder("cascade", pair.alice, seed=seed, qber_estimate=qber_estimate)
    bob = corrector("cascade", pair.bob, seed=seed, qber_estimate=qber_estimate)
    dialogue(alice, bob)
    assert bob.corrected.equals(pair.alice)
    assert bob.statistics.disclosed_bits == alice.disclosed_bits
    return bob


def plain_permutation(shuffles: Shuffles, slot: int) -> Places:
    """Return which bit of a segment comes to each place of it, from the tables and the definition."""
    plan = shuffles.plan
    n_places = 64 * plan.segment_words
    source: npt.NDArray[np.int64] = np.arange(n_places)
    table = shuffles.forward[slot].astype(np.int64)
    if plan.bitwise:
        return np.asarray(source[table[0]])
    for half in range(2):
        words, turns = table[half] >> 6, table[half] & 63
        place = np.arange(n_places)
        row, column = place // plan.segment_words, place % plan.segment_words
        source = source[64 * words[column] + (row + turns[column]) % 64]
    return source


@dataclass(frozen=True)
class Node:
    """A stretch of one pass of one segment whose parity Bob knows."""

    slot: int
    segment: int
    first: int
    size: int

    def part(self, index: int, count: int) -> "Node":
        size = self.size // count
        return Node(self.slot, self.segment, self.first + index * size, size)

    @property
    def levels_in_record(self) -> int:
        """How many halvings lead from here to the children of its record."""
        return (self.size.bit_length() - 2) % 6 + 1


class PlainAlice:
    """Answers as ``message`` describes it, on unpacked bits and stretches, and counts every sent bit.

    Codec, numbering, order of queries, parities and count are independent; plan, tables of the permutations
    and check tag are the real ones (tested by themselves).
    """

    def __init__(self, key: Bits, qber_estimate: float, seed: bytes = SEED) -> None:
        self.plan = make_plan(len(key), qber_estimate)
        self.key = key
        self.seed = seed
        self.shuffles = Shuffles.of(self.plan)
        self.passes: dict[tuple[int, int], BitArray] = {}
        self.queries: list[Node] = []
        self.depth = self.leap = 1
        self.begun = 0
        self.checks = 0
        self.blocks_told: list[Node] = []
        self.disclosed_bits = 0

    def respond(self, message: bytes) -> bytes:
        if message == b"\x02":
            self.queries, self.blocks_told = [], []
            self.checks += 1
            answer = check_tag(self.key, self.seed, self.checks)
            self.disclosed_bits += 8 * len(answer)
            return answer
        kind, depth, leap, n_starts = struct.unpack_from("<BBBI", message)
        self.queries = self._follow(message[7:], n_starts)
        self.depth, self.leap = depth, leap
        bits = [bit for node in self.queries for bit in self._answer(node)]
        answer = pack(bits)
        self.disclosed_bits += len(bits)
        self.blocks_told = []
        if kind == 1:
            self._begin()
            answer += pack([self._parity(node) for node in self.blocks_told])
            self.disclosed_bits += len(self.blocks_told)
        return answer

    def _leaps(self, node: Node) -> bool:
        return node.size <= 1 << self.leap

    def _lowest(self, node: Node) -> list[Node]:
        """The nodes for which Bob states whether the search continues."""
        count = 1 << min(self.depth, node.levels_in_record)
        if self._leaps(node) or node.size == count:  # a leap, or single bits
            return []
        return [node.part(index, count) for index in range(count)]

    def _follow(self, body: bytes, n_starts: int) -> list[Node]:
        candidates = [node for query in self.queries for node in self._lowest(query)]
        n_codes = (len(candidates) + 7) // 8
        goes_on = _chosen(candidates, body[:n_codes])
        starts = struct.unpack_from(f"<{n_starts}I", body, n_codes)
        begun = [self._node(query) for query in starts]
        blocks = _chosen(self.blocks_told, body[n_codes + 4 * n_starts :])
        return sorted(goes_on + begun + blocks, key=lambda node: node.segment)

    def _answer(self, node: Node) -> list[int]:
        if self._leaps(node):
            bits = self.passes[node.slot, node.segment][node.first : node.first + node.size]
            places = np.arange(node.size)
            return [
                int(bits[(places >> j & 1) == 0].sum()) & 1 for j in range(node.size.bit_length() - 2, -1, -1)
            ]
        return [
            self._parity(node.part(2 * index, 2 << level))
            for level in range(min(self.depth, node.levels_in_record))
            for index in range(1 << level)
        ]

    def _node(self, query: int) -> Node:
        record, heap = query >> 7, query & 127
        groups = -(-self.plan.segment_words // 64)
        n_sets = self.plan.n_slots * self.plan.n_segments
        unit = 1
        for n_records in (64 * groups, groups, -(-groups // 64)):
            if record < n_sets * n_records:
                break
            record -= n_sets * n_records
            unit *= 64
        which, index = divmod(record, n_records)
        slot, segment = divmod(which, self.plan.n_segments)
        level = heap.bit_length() - 1
        size = 64 * unit >> level
        return Node(slot, segment, 64 * unit * index + (heap - (1 << level)) * size, size)

    def _begin(self) -> None:
        plan = self.plan
        slot = plan.slot(self.begun)
        self.shuffles.draw(self.seed, self.begun)
        self.begun += 1
        source = plain_permutation(self.shuffles, slot)
        size = 1 << plan.level(slot)
        for segment in range(plan.n_segments):
            bits = deal(self.key, plan, segment) if slot == 0 else self.passes[0, segment][: source.size]
            padded = np.zeros(size * plan.n_blocks(slot) + source.size, np.uint8)
            padded[: source.size] = bits[source]
            self.passes[slot, segment] = padded
            self.blocks_told += [Node(slot, segment, size * i, size) for i in range(plan.n_blocks(slot))]

    def _parity(self, node: Node) -> int:
        return int(self.passes[node.slot, node.segment][node.first : node.first + node.size].sum()) & 1


def deal(key: Bits, plan: Plan, segment: int) -> BitArray:
    """Return the bits of a segment before any permutation: every ``n_segments``-th word of the key."""
    words = np.zeros(plan.n_segments * plan.segment_words, np.uint64)
    words[: key.words.size] = key.words
    dealt = np.ascontiguousarray(words[segment :: plan.n_segments])
    return np.unpackbits(dealt.view(np.uint8), bitorder="little")


def pack(bits: list[int]) -> bytes:
    return np.packbits(np.array(bits, np.uint8), bitorder="little").tobytes()


def _chosen(nodes: list[Node], data: bytes) -> list[Node]:
    """Return the nodes whose bit is set."""
    bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
    return [node for node, bit in zip(nodes, bits, strict=False) if bit]
