"""Public records of blocks, drawn at random around the analytic model of a link, honest or attacked.

They replace a hundred thousand blocks of time tags. Each count is drawn independently with the mean of the
model. So the false-alarm probability of a check can be compared with real chance.
"""

import math
from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from qnode.block.span_policy import choose_span_s
from qnode.config import LinkParameters
from qnode.distill.block_counts import BlockCounts
from qnode.distill.counts import SPAN_PARTS, Pair, TagCounts, XCounts
from qnode.simulate.model import DetectorLoad, LinkRates, expected_rates
from qnode.simulate.parameters import Settings, SimulationParameters


class DrawnLink:
    """A link with the expected blocks for its parameters, at the given settings of the simulation."""

    def __init__(
        self, link: LinkParameters, simulation: SimulationParameters, settings: Settings | None = None
    ) -> None:
        self.link = link
        self._rates: LinkRates = expected_rates(simulation, link, settings)
        self._span_s = choose_span_s(link, self._rates.n_z.total, None)
        self._n_slots = round(self._span_s * link.source.qubit_rate_hz)

    def blocks(self, n: int, rng: np.random.Generator) -> Iterator[BlockCounts]:
        """Yield ``n`` blocks."""
        for _ in range(n):
            yield self._block(rng)

    def expected(self) -> BlockCounts:
        """Return the block without chance: every count is its mean."""
        return self._block(None)

    def _block(self, rng: np.random.Generator | None) -> BlockCounts:
        rates, span_s = self._rates, self._span_s

        def pair(mean: Pair) -> Pair:
            return Pair(_drawn(mean.signal * span_s, rng), _drawn(mean.decoy * span_s, rng))

        wrong = pair(rates.m_z)
        right = pair(Pair(rates.n_z.signal - rates.m_z.signal, rates.n_z.decoy - rates.m_z.decoy))
        n_z = Pair(wrong.signal + right.signal, wrong.decoy + right.decoy)
        late = [0.5 * n if rng is None else float(rng.binomial(int(n), 0.5)) for n in (n_z.signal, n_z.decoy)]
        x = XCounts(**{name: pair(getattr(rates.x, name)) for name in XCounts.__struct_fields__})
        rest = max(0.0, rates.boundary - rates.x.boundary) * span_s
        n_z_plus = pair(rates.n_z_plus)
        boundary = x.boundary + _drawn(rest, rng)
        z_clicks, x_clicks = int(n_z.total + n_z_plus.total), int(x.central + boundary)
        return BlockCounts(
            n_z=n_z,
            m_z=wrong,
            x=x,
            alice_parities=0,
            reconciliation_leak_bits=0,
            n_slots=float(self._n_slots),
            late=Pair(*late),
            n_z_plus=n_z_plus,
            boundary=boundary,
            tags=self._tags(z_clicks, x_clicks, rng),
        )

    def _tags(self, z_clicks: int, x_clicks: int, rng: np.random.Generator | None) -> TagCounts:
        edges = [-(-part * self._n_slots // SPAN_PARTS) for part in range(SPAN_PARTS + 1)]
        slots = tuple(end - first for first, end in pairwise(edges))
        return TagCounts(
            cross_clicks=round(_drawn(self._rates.cross_clicks * self._span_s, rng)),
            double_clicks=0,
            out_of_gate=round(_drawn(self._rates.out_of_gate * self._span_s, rng)),
            too_close=0,
            live_slots=slots,
            z_clicks=self._by_part(z_clicks, self._rates.z_detector, rng),
            x_clicks=self._by_part(x_clicks, self._rates.x_detector, rng),
        )

    def _by_part(
        self, clicks: int, detector: DetectorLoad, rng: np.random.Generator | None
    ) -> tuple[int, ...]:
        """Divide clicks over the parts: dead time makes them regular, gates thin them out by chance."""
        mean, off = clicks / SPAN_PARTS, np.zeros(SPAN_PARTS)
        if rng is not None:
            outside = self._rates.out_of_gate * self._span_s / (2.0 * clicks + 1.0)
            variance = min(1.0, detector.live_fraction**2 + outside) * mean
            off = rng.normal(0.0, math.sqrt(variance), SPAN_PARTS)
        # The parts add up to the whole: the fixed sum removes one degree of freedom.
        borders = np.rint(np.cumsum(mean + off - off.mean())).astype(int)
        return tuple(int(n) for n in np.maximum(np.diff(borders, prepend=0), 0))


def _drawn(mean: float, rng: np.random.Generator | None) -> float:
    return mean if rng is None else float(rng.poisson(mean))
