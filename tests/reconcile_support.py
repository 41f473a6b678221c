"""Frames with errors, a dialogue driver, and a plain Alice."""

import struct
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qnode.distill.bits import Bits
from qnode.distill.reconcile import Corrector, Responder, corrector, responder
from qnode.distill.reconcile._check import check_parities
from qnode.distill.reconcile._plan import make_plan
from qnode.distill.reconcile._shuffle import Shuffles

BitArray = npt.NDArray[np.uint8]
SEED = bytes(range(32))


@dataclass(frozen=True)
class Pair:
    """Alice's frame, Bob's frame, and in how many bits they differ."""

    alice: Bits
    bob: Bits
    n_errors: int


def make_pair(errors: BitArray, rng: np.random.Generator) -> Pair:
    """Return a random frame and the same with ``errors``."""
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
    """Run both sides; check that they count the same, and that Bob now has Alice's frame."""
    alice = responder("cascade", pair.alice, seed=seed, qber_estimate=qber_estimate)
    bob = corrector("cascade", pair.bob, seed=seed, qber_estimate=qber_estimate)
    dialogue(alice, bob)
    assert bob.corrected.equals(pair.alice)
    assert bob.statistics.disclosed_bits == alice.disclosed_bits
    return bob


@dataclass(frozen=True)
class Node:
    """A stretch of one pass whose parity Bob knows."""

    slot: int
    first: int
    size: int

    def half(self, side: int) -> "Node":
        return Node(self.slot, self.first + side * self.size // 2, self.size // 2)


class PlainAlice:
    """Answers as ``_message`` describes it, on unpacked bits and stretches, counting every bit she sends.

    Codec, order of queries, parities and count are her own; plan, permutations and check parities are the
    real ones (tested by themselves).
    """

    def __init__(self, frame: Bits, qber_estimate: float, seed: bytes = SEED) -> None:
        self.plan = make_plan(frame.n_bits, qber_estimate)
        self.seed = seed
        self.shuffles = Shuffles.of(self.plan)
        self.shuffles.draw(seed, 0)
        self.pass_0 = self.shuffles.apply(0, frame.words)
        self.passes: dict[int, BitArray] = {}
        self.queries: list[Node] = []
        self.begun = 0
        self.checks = 0
        self.blocks_told: list[Node] = []
        self.disclosed_bits = 0
        self.leaked_bits = 0

    def respond(self, message: bytes) -> bytes:
        if message == b"\x02":
            self.queries, self.blocks_told = [], []
            self.checks += 1
            answer = check_parities(self.pass_0, self.seed, self.checks)
            self.disclosed_bits += 8 * len(answer)
            return answer
        kind, n_words, n_trees = struct.unpack_from("<BII", message)
        self.queries = self._follow(message[9:], n_words, n_trees)
        answer = _pack([self._parity(node.half(0)) for node in self.queries])
        self.disclosed_bits += len(self.queries)
        self.blocks_told = []
        if kind == 1:
            self._begin()
            answer += _pack([self._parity(node) for node in self.blocks_told])
            self.disclosed_bits += len(self.blocks_told)
        return answer

    def _follow(self, body: bytes, n_words: int, n_trees: int) -> list[Node]:
        asked = [node for node in self.queries if node.size > 2]
        n_codes = (len(asked) + 3) // 4
        codes = _unpack(body[:n_codes], 2 * len(asked))
        goes_on = [
            node.half(side) for k, node in enumerate(asked) for side in range(2) if codes[2 * k + side]
        ]
        starts = struct.unpack_from(f"<{n_words + n_trees}I", body, n_codes)
        begun = [self._word_node(query) for query in starts[:n_words]]
        begun += [self._tree_node(query) for query in starts[n_words:]]
        odd = _unpack(body[n_codes + 4 * (n_words + n_trees) :], len(self.blocks_told))
        blocks = [node for node, is_odd in zip(self.blocks_told, odd, strict=True) if is_odd]
        # Whatever lies inside a word comes before whatever is longer.
        return sorted(goes_on + begun + blocks, key=lambda node: node.size > 64)

    def _word_node(self, query: int) -> Node:
        base, heap = query >> 7, query & 127
        depth = heap.bit_length() - 1
        size = 64 >> depth
        slot, word = divmod(base, self.plan.stride_words)
        return Node(slot, 64 * word + (heap - (1 << depth)) * size, size)

    def _tree_node(self, query: int) -> Node:
        slot, height, i = query >> 29, (query >> 24) & 31, query & 0xFFFFFF
        return Node(slot, (i << height) * 64, 64 << height)

    def _begin(self) -> None:
        slot = self.plan.slot(self.begun)
        words = self.pass_0
        if self.begun:
            self.shuffles.draw(self.seed, self.begun)
            words = self.shuffles.apply(slot, words)
        self.begun += 1
        bits = np.zeros(64 * self.plan.stride_words, np.uint8)
        bits[: 64 * self.plan.n_words] = np.unpackbits(words.view(np.uint8), bitorder="little")
        self.passes[slot] = bits
        size = 1 << self.plan.level(slot)
        self.blocks_told = [Node(slot, size * i, size) for i in range(self.plan.n_blocks(slot))]

    def _parity(self, node: Node) -> int:
        return int(self.passes[node.slot][node.first : node.first + node.size].sum()) & 1


def _pack(bits: list[int]) -> bytes:
    return np.packbits(np.array(bits, np.uint8), bitorder="little").tobytes()


def _unpack(data: bytes, count: int) -> list[int]:
    if not data:
        return [0] * count
    bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")[:count]
    return [int(bit) for bit in bits]
