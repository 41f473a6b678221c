"""The tables that both sites of a link must have in common; the sites compare them when they connect."""

from collections.abc import Iterator
from typing import Annotated, Final, Literal

from msgspec import Struct

from qnode.choices import (
    AsymmetryBound,
    DeadTime,
    EstimatorName,
    LeakCount,
    ReconciliationMethod,
    Statistics,
    TagBits,
    VacuumRule,
    XMode,
)
from qnode.config.description import FRACTION, Described, Limits, Rule, fault, limit_faults
from qnode.config.reading import Impossible
from qnode.units import PS_PER_S


class Table(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A TOML table: immutable, unknown keys refused."""


_POSITIVE_RATE: Final = Rule("a positive rate", lambda rate_hz: rate_hz > 0)
_FALLING: Final = Rule("mu1 > mu2 > 0", lambda mu: 0.0 < mu[1] < mu[0])
_FRACTIONS_BELOW_1: Final = Rule(
    "two fractions from 0 to below 1", lambda fractions: all(0.0 <= one < 1.0 for one in fractions)
)
_SUM_TO_1: Final = Rule(
    "two probabilities that sum to 1", lambda p: abs(sum(p) - 1.0) <= 1e-9 and all(one > 0.0 for one in p)
)


def _least_and_most(limit: float) -> Rule:
    text = f"two numbers, 0 <= least < most <= {limit:g}"
    return Rule(text, lambda pair: bool(0.0 <= pair[0] < pair[1] <= limit))


class SourceParameters(Table, frozen=True):
    """The qubits that Alice sends."""

    qubit_rate_hz: Annotated[
        int,
        Described("qubits per second; a slot is one period of this rate", limits=_POSITIVE_RATE),
    ] = 600_000_000
    bin_spacing_ps: Annotated[
        float, Described("time from the early to the late bin", limits="about half a slot")
    ] = 800.0
    mu: Annotated[
        tuple[float, float],
        Described("mean photon number of signal and decoy", "photons a qubit", limits=_FALLING),
    ] = (0.5, 0.2)
    mu_uncertainty: Annotated[
        tuple[float, float],
        Described(
            "greatest error of each calibrated intensity, as a fraction of it; the key length is the "
            "smallest one within these intervals",
            "fraction",
            limits=_FRACTIONS_BELOW_1,
        ),
    ] = (0.01, 0.01)
    p: Annotated[
        tuple[float, float],
        Described("probability of signal and of decoy", "probability", limits=_SUM_TO_1),
    ] = (0.7, 0.3)
    p_z: Annotated[
        float, Described("probability that Alice sends in the key basis Z", "probability", limits=FRACTION)
    ] = 0.5

    @property
    def period_ps(self) -> float:
        """Duration of a slot."""
        return PS_PER_S / self.qubit_rate_hz


class ReceiverParameters(Table, frozen=True):
    """How Bob accepts clicks. Gates depend on these values only, never on the data of a block."""

    p_z: Annotated[
        float,
        Described("share of the light that the splitter sends to the Z arm", "fraction", limits=FRACTION),
    ] = 0.5
    gate_width_ps: Annotated[
        float, Described("width of the accepted window of a bin", limits="at most half a slot")
    ] = 400.0
    jitter_ps: Annotated[
        float,
        Described(
            "timing jitter of detectors and TDC together; it sets the width of the boundary gate",
            limits=Limits(0.0, 1e5),
        ),
    ] = 92.0
    dead_time: Annotated[
        DeadTime, Described("whether a click blanks its own detector (independent) or both (joint)")
    ] = "independent"
    dead_time_s: Annotated[
        float,
        Described(
            "the shortest dead time that the hardware guarantees; the tags of each block are checked "
            "against it. 0: not declared, nothing is checked",
            limits=Limits(0.0, 1.0, text="0 to 1 second"),
        ),
    ] = 0.0
    # Tags wait this long. Ten milliseconds are far below the second that Alice's record of symbols covers.
    order_window_ps: Annotated[
        int,
        Described(
            "greatest disorder of the tags: a tag may lie this much before an earlier received tag. A "
            "tag beyond it is dropped and counted (`tags.malformed`, `qkd_tags_out_of_order_total`). "
            "Where the hardware lost tags, this much of the stream is dropped on either side",
            limits=Limits(0, 10_000_000_000),
        ),
    ] = 1_000_000


class BlockParameters(Table, frozen=True):
    """The block is the unit of the security statement. A block beyond one of these limits is discarded."""

    sifted_bits: Annotated[
        int | Literal["auto"],
        Described(
            'sifted bits of a block; "auto": the number that gives the most secret bits per second '
            "within `longest_s`",
            limits=Limits(1000, 50_000_000),
        ),
    ] = 1_000_000
    longest_s: Annotated[
        float, Described("longest time that a block covers", limits=Limits(0.01, 86_400.0))
    ] = 3600.0
    minimum_secret_bits: Annotated[
        int, Described("a block with fewer secret bits is discarded", limits=Limits(2048, 1 << 30))
    ] = 4096
    qber_z_limit: Annotated[
        float, Described("highest error rate in Z", "fraction", limits=Limits(0.0, 1.0))
    ] = 0.11
    e_vis_limit: Annotated[
        float,
        Described(
            "highest error rate of the interferometer, (1 - visibility) / 2",
            "fraction",
            limits=Limits(0.0, 1.0),
        ),
    ] = 0.15
    asymmetry_limit: Annotated[
        float,
        Described(
            "highest upper bound on the asymmetry between |+> and |->, if the key length includes it",
            "fraction",
            limits=Limits(0.0, 1.0),
        ),
    ] = 0.05


class EstimationParameters(Table, frozen=True):
    """Which bound gives the key length: [estimators side by side](keylength.md), [formulas](security.md)."""

    estimator: Annotated[EstimatorName, Described("the bound on the key length")] = "eur"
    statistics: Annotated[Statistics, Described("tail bounds of the counts, for the estimator `eur`")] = (
        "exact"
    )
    x_mode: Annotated[
        XMode,
        Described(
            'the measured figures behind the phase error; "visibility" alone assumes that the channel '
            "treats |+> and |-> alike"
        ),
    ] = "visibility + asymmetry"
    vacuum_rule: Annotated[VacuumRule, Described("bound on the detections of vacuum pulses")] = "min"
    asymmetry_bound: Annotated[
        AsymmetryBound,
        Described(
            'bound on the asymmetry: "shares" of clicks, or "joint" over classes of boundary slots; a '
            'peer of protocol 1 has the counts for "joint" only'
        ),
    ] = "shares"
    eps_sec: Annotated[
        float,
        Described(
            "secrecy: greatest failure probability of a block", "probability", limits=Limits(1e-30, 0.5)
        ),
    ] = 1e-10
    eps_cor: Annotated[
        float,
        Described(
            "correctness: greatest failure probability of a block", "probability", limits=Limits(1e-28, 0.5)
        ),
    ] = 1e-15


class PlausibilityParameters(Table, frozen=True):
    """Limits on the public counts of a block, compared with the expectation: [checks](plausibility.md).

    Each check allows for chance, and for the tolerances of optics and electronics.
    """

    false_alarms_per_year: Annotated[
        float,
        Described(
            "false alarms of all checks together, by chance alone, at an honest link",
            "1/year",
            limits=Limits(1e-6, 1e6),
        ),
    ] = 1.0
    least_error_z: Annotated[
        float,
        Described(
            "lowest credible error rate in Z; no modulator is better", "fraction", limits=Limits(0.0, 0.5)
        ),
    ] = 0.001
    least_error_x: Annotated[
        float,
        Described(
            "lowest credible error rate in X; no interferometer is better",
            "fraction",
            limits=Limits(0.0, 0.5),
        ),
    ] = 0.001
    balance_tolerance: Annotated[
        float,
        Described(
            "greatest deviation from one half, for the two shares that should be one half",
            "fraction",
            limits=Limits(0.0, 0.25),
        ),
    ] = 0.05
    arm_ratio: Annotated[
        tuple[float, float],
        Described(
            "least and most clicks of the X arm per click of the Z arm",
            "ratio",
            limits=_least_and_most(1e6),
        ),
    ] = (0.02, 50.0)
    late_tolerance: Annotated[
        float,
        Described(
            "greatest deviation of the share of late bits from one half", "fraction", limits=Limits(0.0, 0.5)
        ),
    ] = 0.02
    cross_click_factor: Annotated[
        float,
        Described(
            "greatest factor by which the cross clicks may exceed the accidental ones, or fall below them",
            "ratio",
            limits=Limits(1.0, 1e6),
        ),
    ] = 1.25
    out_of_gate: Annotated[
        tuple[float, float],
        Described(
            "least and greatest share of tags outside the gates, without the noise",
            "fraction",
            limits=_least_and_most(1.0),
        ),
    ] = (0.0, 0.2)
    drift: Annotated[
        float,
        Described(
            "greatest change of a click rate within a block, as a fraction of it",
            "fraction",
            limits=Limits(0.0, 1.0),
        ),
    ] = 0.2
    repeats: Annotated[
        float,
        Described(
            "how often a block holds the same tags, for recordings played in a loop; the allowance for "
            "chance grows with its square root. More than 1 needs `allow_simulated`",
            "times",
            limits=Limits(1.0, 1e9),
        ),
    ] = 1.0


class ReconciliationParameters(Table, frozen=True):
    """Error correction and the verification after it."""

    method: Annotated[
        Literal["auto"] | ReconciliationMethod,
        Described('"auto" chooses by the round trip between the sites'),
    ] = "auto"
    leak_count: Annotated[
        LeakCount,
        Described("the disclosed parities that are subtracted from the key: Alice's, or those of both sites"),
    ] = "alice"
    verification_bits: Annotated[
        TagBits, Described("length of the verification hash; longer if `eps_cor` requires it")
    ] = 64


class KeyParameters(Table, frozen=True):
    """How the key of a block is divided: pads for the authentication pool, then keys for encryptors.

    A block gives the pool as many one-time pads as it uses itself, and more while few are left.
    """

    refill_pads_per_direction: Annotated[
        int,
        Described(
            "one-time pads that a block adds to the pool while few are left; with a peer of protocol 1 "
            "always",
            "pads",
            limits=Limits(2, 64),
        ),
    ] = 3
    reserve_pads_per_direction: Annotated[
        int, Described("below this number, few pads are left", "pads", limits=Limits(8, 4096))
    ] = 128
    direction_share_alice: Annotated[
        float,
        Described(
            "first share of the keys of a block that Alice's site may assign; it then follows the demand",
            "fraction",
            limits=FRACTION,
        ),
    ] = 0.5


class LinkParameters(Table, frozen=True):
    """The parameters that both sites must have in common."""

    name: Annotated[str, Described("name of the link in status and log")] = "link"
    source: SourceParameters = SourceParameters()
    receiver: ReceiverParameters = ReceiverParameters()
    block: BlockParameters = BlockParameters()
    estimation: EstimationParameters = EstimationParameters()
    plausibility: PlausibilityParameters = PlausibilityParameters()
    reconciliation: ReconciliationParameters = ReconciliationParameters()
    keys: KeyParameters = KeyParameters()


def check_link_parameters(link: LinkParameters) -> None:
    """Refuse impossible parameters of a link.

    Raises:
        Impossible: naming table, key and what was expected of each.
    """
    Impossible.check(link_faults(link))


def link_faults(link: LinkParameters) -> Iterator[str]:
    """Find the impossible parameters of a link, each in one line."""
    yield from _source_faults(link.source)
    receiver, source = link.receiver, link.source
    yield from limit_faults(receiver, "link.receiver")
    if source.qubit_rate_hz > 0 and not 0.0 < receiver.gate_width_ps <= source.period_ps / 2:
        yield fault(receiver, "link.receiver", "gate_width_ps", f" ({source.period_ps / 2:.1f})")
    yield from limit_faults(link.block, "link.block")
    yield from limit_faults(link.keys, "link.keys")
    block_secret_and_pads = 8 * (32 + 2 * 16 * link.keys.refill_pads_per_direction)
    if link.block.minimum_secret_bits < block_secret_and_pads:
        yield (
            f"link.block.minimum_secret_bits: a block's secret and its refill of "
            f"{link.keys.refill_pads_per_direction} pads a direction take {block_secret_and_pads} bits; "
            f"expected at least as many, got {link.block.minimum_secret_bits}"
        )
    yield from limit_faults(link.estimation, "link.estimation")
    yield from limit_faults(link.plausibility, "link.plausibility")
    if link.estimation.estimator == "three_state":
        yield from _three_state_faults(link.estimation)


def _source_faults(source: SourceParameters) -> Iterator[str]:
    where = "link.source"
    yield from limit_faults(source, where)
    if source.mu[1] * (1.0 + source.mu_uncertainty[1]) >= source.mu[0] * (1.0 - source.mu_uncertainty[0]):
        yield (
            f"link.source.mu_uncertainty: {list(source.mu_uncertainty)} lets the intensities meet, "
            f"calibrate them better or choose them further apart"
        )
    if source.qubit_rate_hz > 0:
        period_ps = source.period_ps
        if not 0.3 * period_ps < source.bin_spacing_ps < 0.7 * period_ps:
            yield fault(source, where, "bin_spacing_ps", f" ({period_ps / 2:.1f})")


def _three_state_faults(estimation: EstimationParameters) -> Iterator[str]:
    """Find rules that the estimator does not have, before any block meets them."""
    own = EstimationParameters()
    for name in ("x_mode", "statistics", "vacuum_rule"):
        if getattr(estimation, name) != getattr(own, name):
            yield (
                f"link.estimation.{name}: three_state has one rule of its own, expected "
                f"{getattr(own, name)!r} or nothing, got {getattr(estimation, name)!r}"
            )
