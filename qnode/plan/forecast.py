"""The expected block of a link, and the node's decision about it.

The counts are those of the analytic link model (`qnode.simulate.model`); span, limits and key length are the
node's own (`qnode.block.decision`, `qnode.block.span_policy`), so a plan and a running link differ by
chance only.
"""

import math
from contextlib import suppress

import msgspec.structs
from msgspec import Struct

from qnode.block.decision import check_size, decide, key_length
from qnode.block.outcome import BlockLost, Reason
from qnode.block.span_policy import BlockRates, best_span, choose_span_s
from qnode.config import LinkParameters
from qnode.distill.block_counts import BlockCounts
from qnode.distill.estimation import boundary_terms, visibility_error
from qnode.distill.keylength import KeyLength, binary_entropy
from qnode.distill.reconcile import leaked_bits
from qnode.simulate.model import LinkRates, expected_rates
from qnode.simulate.parameters import Settings, SimulationParameters

# The efficiency of Cascade on blocks of 10^5 bits and more.
USUAL_F_EC = 1.045


class Forecast(Struct, frozen=True, kw_only=True):
    """One operating point. ``lost``: why its block would be discarded; None if it gives key.

    ``detail`` explains it. ``result`` is the estimator's result, also for a discarded block; None if the
    estimator refuses the counts.
    """

    rates: LinkRates
    counts: BlockCounts
    span_s: float
    f_ec: float
    result: KeyLength | None
    lost: str | None
    detail: str
    e_vis: float | None
    asymmetry: float | None

    @property
    def why_no_key(self) -> str | None:
        """Reason and detail in one line; None if there is key."""
        return None if self.lost is None else f"{self.lost}: {self.detail}"

    @property
    def secret_bits(self) -> int:
        """Secret bits of the block, before the pool's refill; 0 if it would be discarded."""
        return 0 if self.lost is not None or self.result is None else self.result.length

    @property
    def secret_bits_per_s(self) -> float:
        """Secret bits a second."""
        return self.secret_bits / self.span_s

    @property
    def sifted_bits_per_s(self) -> float:
        """Sifted bits a second."""
        return self.rates.n_z.total

    @property
    def margin_bits_per_s(self) -> float:
        """Secret bits a second; without key the negative of the missing bits, as objective of a search.

        A block beyond a limit other than its length counts as if all of its bits were disclosed.
        """
        margin = self.result.length_unfloored / self.span_s if self.result is not None else 0.0
        if self.lost is None or self.lost == Reason.KEY_LENGTH:
            return margin
        return min(margin, 0.0) - self.sifted_bits_per_s


def forecast(
    simulation: SimulationParameters,
    link: LinkParameters,
    f_ec: float = USUAL_F_EC,
    settings: Settings | None = None,
) -> Forecast:
    """Return the expected block if correction discloses ``f_ec`` times the Shannon limit.

    Raises:
        ValueError: the link gives no sifted bits at all.
    """
    rates = expected_rates(simulation, link, settings)
    if rates.n_z.total <= 0.0:
        raise ValueError("no sifted bits are expected: no light and no noise")
    disclosed = f_ec * rates.n_z.total * binary_entropy(rates.qber_z)
    expected = BlockRates(
        n_z=rates.n_z,
        m_z=rates.m_z,
        x=rates.x,
        n_z_plus=rates.n_z_plus,
        boundary=rates.boundary,
        alice_parities=disclosed,
        leak_bits=disclosed * leaked_bits(1, link.reconciliation.leak_count),
    )
    if link.block.sifted_bits == "auto":
        span_s = best_span(expected, link).span_s
    else:
        span_s = choose_span_s(link, rates.n_z.total, None)
    counts = expected.counts(span_s, link.source.qubit_rate_hz)
    lost = result = None
    detail = ""
    try:
        check_size(math.floor(counts.n_z.total), link)
        result = decide(counts, link)
    except BlockLost as reason:
        lost, detail = reason.reason, reason.detail
        with suppress(BlockLost):
            result = key_length(counts, link)
    return Forecast(
        rates=rates,
        counts=counts,
        span_s=span_s,
        f_ec=f_ec,
        result=result,
        lost=lost,
        detail=detail,
        e_vis=visibility_error(counts.x, link.source.p_z),
        asymmetry=boundary_terms(counts.x, link.source.p_z).asymmetry,
    )


def at_loss(simulation: SimulationParameters, loss_db: float) -> SimulationParameters:
    """Return the same link with another attenuation and without scheduled changes.

    Raises:
        ValueError: no link has this attenuation.
    """
    return msgspec.structs.replace(simulation, attenuation_db=loss_db, schedule=())


def reach_db(
    simulation: SimulationParameters, link: LinkParameters, f_ec: float, most_db: float = 100.0
) -> float | None:
    """Return the largest attenuation that still gives key, to 0.01 dB; None when none gives key.

    A link may give key only above a certain attenuation: with little loss, saturated detectors make the
    counts implausible. So the search starts at the least attenuation with key, in steps of 1 dB.
    """

    def gives_key(loss_db: float) -> bool:
        return forecast(at_loss(simulation, loss_db), link, f_ec).lost is None

    low = next((float(loss_db) for loss_db in range(math.ceil(most_db)) if gives_key(loss_db)), None)
    if low is None:
        return None
    high = most_db
    while high - low > 0.01:
        middle = 0.5 * (low + high)
        if gives_key(middle):
            low = middle
        else:
            high = middle
    return low
