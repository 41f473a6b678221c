"""The span policy: the duration of a block if the node chooses it (``sifted_bits = "auto"``).

A longer block loses less to statistics, but encryptors wait longer, and an interruption costs a whole block.
The policy chooses the span with the most expected secret bits a second. This is the result of the configured
estimator for counts at the present rates, times the probability that nothing interrupts the block. The span
is at most ``link.block.longest_s``.

The policy uses public counts of *earlier, decided* blocks and the rate of accepted clicks. It never uses bits
or errors of a running block, and a span is agreed before its first slot (security reference 6.6).
"""

import math
from collections import deque
from typing import Final

from msgspec import Struct

from qnode.block.decision import MOST_SIFTED_BITS, check_size, judge
from qnode.block.outcome import BlockLost, Reason
from qnode.config import LinkParameters
from qnode.distill.block_counts import BlockCounts
from qnode.distill.counts import Pair, XCounts

# The size of the blocks of a link that has not made key yet.
FIRST_SIFTED_BITS: Final = 1_000_000
# A limit that keeps the expected block well below the capacity of a message.
MOST_EXPECTED_BITS: Final = 0.9 * MOST_SIFTED_BITS
LEAST_EXPECTED_BITS: Final = 1_000
# For a link without interruptions so far: Jeffreys' estimate of a rate is (k + 1/2) / time.
PRIOR_INTERRUPTIONS: Final = 0.5
INTERRUPTED: Final = frozenset({Reason.EMISSION, Reason.LINK, Reason.LOCK})
REMEMBERED_BLOCKS: Final = 32

_SPANS: Final = 24
_REFINEMENTS: Final = 12
_GOLDEN: Final = (math.sqrt(5.0) - 1.0) / 2.0


class BlockRates(Struct, frozen=True, kw_only=True):
    """Public events per second; ``interruptions``: the rate at which blocks are interrupted.

    ``n_z_plus`` and ``boundary`` are None if no block has them: the peer speaks protocol 1.
    """

    n_z: Pair
    m_z: Pair
    x: XCounts
    alice_parities: float
    leak_bits: float
    interruptions: float = 0.0
    n_z_plus: Pair | None = None
    boundary: float | None = None

    def counts(self, span_s: float, qubit_rate_hz: float) -> BlockCounts:
        """Return the expected counts of a block of ``span_s``."""
        n_z = _times(self.n_z, span_s)
        return BlockCounts(
            n_z=n_z,
            m_z=_times(self.m_z, span_s),
            x=_x_times(self.x, span_s),
            n_slots=span_s * qubit_rate_hz,
            late=None if self.boundary is None else _times(n_z, 0.5),
            n_z_plus=None if self.n_z_plus is None else _times(self.n_z_plus, span_s),
            boundary=None if self.boundary is None else self.boundary * span_s,
            alice_parities=math.ceil(self.alice_parities * span_s),
            reconciliation_leak_bits=math.ceil(self.leak_bits * span_s),
        )

    def at(self, sifted_hz: float) -> "BlockRates":
        """Return the same ratios at another rate of sifted bits; interruptions do not change."""
        factor = sifted_hz / self.n_z.total
        return BlockRates(
            n_z=_times(self.n_z, factor),
            m_z=_times(self.m_z, factor),
            x=_x_times(self.x, factor),
            n_z_plus=None if self.n_z_plus is None else _times(self.n_z_plus, factor),
            boundary=None if self.boundary is None else self.boundary * factor,
            alice_parities=self.alice_parities * factor,
            leak_bits=self.leak_bits * factor,
            interruptions=self.interruptions,
        )


class SpanChoice(Struct, frozen=True):
    """A span and its expected secret bits a second (0: no span gives any)."""

    span_s: float
    secret_bits_per_s: float


class RecentBlocks:
    """The public counts of the latest blocks; earlier ones are forgotten."""

    def __init__(self) -> None:
        self._blocks: deque[tuple[float, BlockCounts | None]] = deque(maxlen=REMEMBERED_BLOCKS)

    def accepted(self, span_s: float, counts: BlockCounts) -> None:
        """Note a block that gave key."""
        self._blocks.append((span_s, counts))

    def lost(self, reason: str) -> None:
        """Note a block without key; an interruption that costs several blocks counts once."""
        if reason in INTERRUPTED and not (self._blocks and self._blocks[-1][1] is None):
            self._blocks.append((0.0, None))

    def rates(self) -> BlockRates | None:
        """Return the mean rates; None before the first block that gave key."""
        accepted = [(span_s, counts) for span_s, counts in self._blocks if counts is not None]
        seconds = math.fsum(span_s for span_s, _ in accepted)
        if seconds <= 0.0:
            return None
        cut = len(self._blocks) - len(accepted)

        def mean(pairs: list[Pair]) -> Pair:
            return Pair(sum(one.signal for one in pairs) / seconds, sum(one.decoy for one in pairs) / seconds)

        names = XCounts.__struct_fields__
        # Blocks before the peer's upgrade lack these counts; use those of the later blocks.
        n_z_plus = [(one.n_z_plus, span_s) for span_s, one in accepted if one.n_z_plus is not None]
        boundary = [(one.boundary, span_s) for span_s, one in accepted if one.boundary is not None]
        return BlockRates(
            n_z=mean([counts.n_z for _, counts in accepted]),
            m_z=mean([counts.m_z for _, counts in accepted]),
            x=XCounts(**{name: mean([getattr(counts.x, name) for _, counts in accepted]) for name in names}),
            alice_parities=sum(counts.alice_parities for _, counts in accepted) / seconds,
            leak_bits=sum(counts.reconciliation_leak_bits for _, counts in accepted) / seconds,
            interruptions=(cut + PRIOR_INTERRUPTIONS) / seconds,
            n_z_plus=_mean_of_some(n_z_plus),
            boundary=sum(n for n, _ in boundary) / sum(s for _, s in boundary) if boundary else None,
        )


def choose_span_s(link: LinkParameters, sifted_hz: float, recent: BlockRates | None) -> float:
    """Return the span of the next block in seconds: as configured, or the best one for ``recent`` rates.

    ``sifted_hz``: the running rate of sifted bits; 0 if it is not known.
    """
    longest_s, wanted = link.block.longest_s, link.block.sifted_bits
    if sifted_hz <= 0.0:
        return longest_s
    if wanted == "auto":
        if recent is not None:
            return best_span(recent.at(sifted_hz), link).span_s
        wanted = FIRST_SIFTED_BITS
    return min(longest_s, wanted / sifted_hz)


def best_span(rates: BlockRates, link: LinkParameters) -> SpanChoice:
    """Return the span with the most expected secret bits a second; the longest one if no span gives any."""
    longest_s = min(link.block.longest_s, MOST_EXPECTED_BITS / rates.n_z.total)
    shortest_s = min(longest_s, LEAST_EXPECTED_BITS / rates.n_z.total)
    step = (longest_s / shortest_s) ** (1.0 / (_SPANS - 1))
    spans = [shortest_s * step**i for i in range(_SPANS - 1)] + [longest_s]
    expected = [expected_bits_per_s(rates, span_s, link) for span_s in spans]
    best = max(range(_SPANS), key=lambda i: (expected[i], spans[i]))
    if expected[best] <= 0.0 or best == _SPANS - 1:
        return SpanChoice(spans[best], expected[best])
    return _refined(rates, link, math.log(spans[max(0, best - 1)]), math.log(spans[best + 1]))


def expected_bits_per_s(rates: BlockRates, span_s: float, link: LinkParameters) -> float:
    """Return the secret bits a second of blocks of ``span_s`` that are not interrupted."""
    return (
        math.exp(-rates.interruptions * span_s)
        * secret_bits(rates.counts(span_s, link.source.qubit_rate_hz), link)
        / span_s
    )


def secret_bits(counts: BlockCounts, link: LinkParameters) -> int:
    """Return the secret bits of a block by the node's own decision; 0 if it would be discarded."""
    try:
        check_size(math.floor(counts.n_z.total), link)
        return judge(counts, link).length
    except BlockLost:
        return 0


def _refined(rates: BlockRates, link: LinkParameters, low: float, high: float) -> SpanChoice:
    """Search the best span by golden sections between two logarithms of spans."""

    def value(x: float) -> float:
        return expected_bits_per_s(rates, math.exp(x), link)

    left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    at_left, at_right = value(left), value(right)
    for _ in range(_REFINEMENTS):
        if at_left > at_right:
            high, right, at_right = right, left, at_left
            left = high - _GOLDEN * (high - low)
            at_left = value(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + _GOLDEN * (high - low)
            at_right = value(right)
    best = max((at_left, left), (at_right, right))
    return SpanChoice(math.exp(best[1]), best[0])


def _mean_of_some(pairs: list[tuple[Pair, float]]) -> Pair | None:
    """Return the mean rate of pairs with their durations in seconds; None without pairs."""
    if not pairs:
        return None
    seconds = math.fsum(span_s for _, span_s in pairs)
    return Pair(sum(one.signal for one, _ in pairs) / seconds, sum(one.decoy for one, _ in pairs) / seconds)


def _times(pair: Pair, factor: float) -> Pair:
    return Pair(pair.signal * factor, pair.decoy * factor)


def _x_times(x: XCounts, factor: float) -> XCounts:
    return XCounts(**{name: _times(getattr(x, name), factor) for name in XCounts.__struct_fields__})
