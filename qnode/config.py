"""Typed configuration: one TOML file a site, one for loopback, the same tables in both.

The tables of `LinkParameters` must be equal at both sites; their digest is compared when the sites
connect. Everything else belongs to one site. Unknown keys are refused with a near match.
"""

from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path
from typing import Any, Literal

from msgspec import Struct

from qnode.choices import (
    AsymmetryBound,
    DeadTime,
    EstimatorName,
    LeakCount,
    LogLevel,
    ReconciliationMethod,
    Statistics,
    TagBits,
    VacuumRule,
    XMode,
)
from qnode.choices import Role as Role
from qnode.config_reading import Impossible
from qnode.config_reading import convert as convert
from qnode.config_reading import load as load
from qnode.config_reading import tables as tables
from qnode.units import PS_PER_S

SAE_ID_CHARACTERS = 512
# Tags wait so long: ten milliseconds are far below the second that Alice's record of symbols reaches back.
LONGEST_ORDER_WINDOW_PS = 10_000_000_000


class _Table(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A TOML table: immutable, unknown keys refused."""


class SourceParameters(_Table, frozen=True):
    """What Alice sends: qubit rate, bins, intensities (mean photons a qubit) and their probabilities.

    ``mu_uncertainty``: how far each intensity may be off its calibration, as a fraction of it; the key length
    is the least that these intervals allow.
    """

    qubit_rate_hz: int = 600_000_000
    bin_spacing_ps: float = 800.0
    mu: tuple[float, float] = (0.5, 0.2)
    mu_uncertainty: tuple[float, float] = (0.01, 0.01)
    p: tuple[float, float] = (0.7, 0.3)
    p_z: float = 0.5

    @property
    def period_ps(self) -> float:
        """Duration of a slot."""
        return PS_PER_S / self.qubit_rate_hz


class ReceiverParameters(_Table, frozen=True):
    """How Bob accepts clicks. Gates depend on these values only, never on a block's data.

    ``dead_time``: whether a click blanks its own detector or both. ``dead_time_s``: for how long at least,
    as the hardware guarantees it; the tags of each block are held against it. 0: not declared, nothing is
    held against it. ``order_window_ps``: how much later than a tag after it a tag may come; one that comes
    later still is dropped and counted. Tags wait so long, and around an overflow so much more is lost.
    """

    p_z: float = 0.5
    gate_width_ps: float = 400.0
    jitter_ps: float = 92.0
    dead_time: DeadTime = "independent"
    dead_time_s: float = 0.0
    order_window_ps: int = 1_000_000


class BlockParameters(_Table, frozen=True):
    """The unit of the security statement and the limits beyond which it is discarded.

    ``sifted_bits``: how many a block shall have, or "auto": so many that the most secret bits a second are to
    be expected, within ``longest_s``.
    """

    sifted_bits: int | Literal["auto"] = 1_000_000
    longest_s: float = 3600.0
    minimum_secret_bits: int = 4096
    qber_z_limit: float = 0.11
    e_vis_limit: float = 0.15
    asymmetry_limit: float = 0.05


class EstimationParameters(_Table, frozen=True):
    """Which bound gives the key length, and its failure probabilities per block.

    ``asymmetry_bound``: by two shares of clicks, or by classes of boundary slots, which is what a peer of
    protocol 1 has the counts for (docs/security.md).
    """

    estimator: EstimatorName = "eur"
    statistics: Statistics = "exact"
    x_mode: XMode = "visibility + asymmetry"
    vacuum_rule: VacuumRule = "min"
    asymmetry_bound: AsymmetryBound = "shares"
    eps_sec: float = 1e-10
    eps_cor: float = 1e-15


class PlausibilityParameters(_Table, frozen=True):
    """How far the public counts of a block may lie from what the link's parameters let expect.

    ``false_alarms_per_year``: of all checks together, by chance alone, at an honest link. Beside chance,
    each check allows for what optics and electronics are not exact in: ``least_error_z``, ``least_error_x``
    (no modulator or interferometer is better), ``balance_tolerance`` (of the two shares that are one half),
    ``arm_ratio`` (least and most clicks of the X arm for one of the Z arm), ``late_tolerance`` (of the
    share of late bits around one half), ``cross_click_factor`` (more or fewer than accidental),
    ``out_of_gate`` (least and most share of tags outside the gates, beside noise), ``drift`` (of a click
    rate within a block, a fraction of it). ``repeats``: how often a block holds the same tags again, which a
    recording that is played in a loop makes it do; chance is wider by the square root of it.
    """

    false_alarms_per_year: float = 1.0
    least_error_z: float = 0.001
    least_error_x: float = 0.001
    balance_tolerance: float = 0.05
    arm_ratio: tuple[float, float] = (0.02, 50.0)
    late_tolerance: float = 0.02
    cross_click_factor: float = 1.25
    out_of_gate: tuple[float, float] = (0.0, 0.2)
    drift: float = 0.2
    repeats: float = 1.0


class ReconciliationParameters(_Table, frozen=True):
    """Error correction, and the verification after it; ``auto`` chooses the method by the round trip."""

    method: Literal["auto"] | ReconciliationMethod = "auto"
    leak_count: LeakCount = "alice"
    verification_bits: TagBits = 64


class KeyParameters(_Table, frozen=True):
    """How a block's key is divided: refill of the authentication pool, then chunks by direction.

    A block refills the pool by the pads that it uses itself, and by up to ``refill_pads_per_direction`` while
    fewer than ``reserve_pads_per_direction`` are left. A peer of protocol 1 always takes the larger number.
    """

    refill_pads_per_direction: int = 3
    reserve_pads_per_direction: int = 128
    direction_share_alice: float = 0.5


class LinkParameters(_Table, frozen=True):
    """All that both sites must have in common."""

    name: str = "link"
    source: SourceParameters = SourceParameters()
    receiver: ReceiverParameters = ReceiverParameters()
    block: BlockParameters = BlockParameters()
    estimation: EstimationParameters = EstimationParameters()
    plausibility: PlausibilityParameters = PlausibilityParameters()
    reconciliation: ReconciliationParameters = ReconciliationParameters()
    keys: KeyParameters = KeyParameters()


class TlsFiles(_Table, frozen=True):
    """PEM files of one TLS role."""

    ca: Path
    certificate: Path
    key: Path
    crl: Path | None = None


class PeerSection(_Table, frozen=True):
    """The other site. Alice listens and Bob connects, so that one address is enough.

    ``connects_from``: at Alice, IP addresses or networks from which Bob connects. He is preferred to
    strangers there, and where he came from last; others are not refused.
    """

    kme_id: str
    address: str
    tls: TlsFiles
    connects_from: tuple[str, ...] = ()


class StoreSection(_Table, frozen=True):
    """Where keys are kept, the secret that seals them, and the anchor that detects a restored database.

    ``witness``: a file on another machine (a network mount), which detects that this one was set back whole.
    ``most_chunks``: of 256 bits, 1 to 1e9; while so many are here, blocks are given up instead of stored.
    ``key_lifetime_s``: 1 s to 1e9 s; keys that nobody has fetched by then are destroyed.
    """

    path: Path
    anchor: Path
    store_key: Path
    preshared_key: Path
    witness: Path | None = None
    key_lifetime_s: float = 7 * 86400.0
    most_chunks: int = 1 << 20


class SaeSection(_Table, frozen=True):
    """One encryptor: where it is attached, with whom it shares keys, and how its certificate names it."""

    sae_id: str
    kme_id: str
    peers: tuple[str, ...]
    identities: tuple[str, ...] = ()


class Etsi014Section(_Table, frozen=True):
    """The key delivery interface of this site.

    ``most_connections``: open at a time, some 50 KB of memory each; ``most_connections_per_address``: of one
    IPv4 address or IPv6 /64, behind which many encryptors may stand. Beyond them idle connections give way,
    and where there are none a request is answered 503. ``stock_per_pair``: how many keys may be set aside for
    a pair that asks, for the time of a cut; all pairs together have an eighth of the site's keys.
    """

    listen: str
    tls: TlsFiles
    stock_per_pair: int = 256
    most_connections: int = 512
    most_connections_per_address: int = 256
    sae: tuple[SaeSection, ...] = ()


class OperateSection(_Table, frozen=True):
    """How operators look at this site.

    ``allow_recording``: let root and the daemon's own user record tags or symbols, which is to know the keys.
    """

    control_socket: Path
    metrics_listen: str | None = None
    allow_recording: bool = False
    log_level: LogLevel = "info"


class NodeSection(_Table, frozen=True):
    """Who this site is."""

    role: Role
    kme_id: str
    allow_simulated: bool = False
    start_uncertainty_s: float = 0.010


class DeviceSection(_Table, frozen=True):
    """One device: the driver's name (entry point) and the driver's own table, which the driver checks."""

    driver: str
    config: dict[str, Any] = {}
    silence_limit_s: float = 10.0


class SiteConfig(_Table, frozen=True):
    """The file of `qnode run`."""

    node: NodeSection
    link: LinkParameters
    peer: PeerSection
    store: StoreSection
    etsi014: Etsi014Section
    operate: OperateSection
    devices: dict[str, DeviceSection]

    def __post_init__(self) -> None:
        Impossible.check(self._faults())

    def _faults(self) -> Iterator[str]:
        yield from _link_faults(self.link)
        if self.link.plausibility.repeats > 1.0 and not self.node.allow_simulated:
            yield "link.plausibility.repeats: more than 1 is for recordings, set allow_simulated"
        for one in self.peer.connects_from:
            try:
                ip_network(one, strict=False)
            except ValueError:
                yield f"peer.connects_from: expected an IP address or network, got {one!r}"
        yield from _out_of_range("node.start_uncertainty_s", self.node.start_uncertainty_s, 1e-6, 0.1)
        for sae in self.etsi014.sae:
            if not 0 < len(sae.sae_id) <= SAE_ID_CHARACTERS:
                shown = sae.sae_id[:20]
                yield f"etsi014.sae: {shown!r}: sae_id: expected 1 to {SAE_ID_CHARACTERS} characters"
        yield from _out_of_range("store.key_lifetime_s", self.store.key_lifetime_s, 1.0, 1e9)
        yield from _out_of_range("store.most_chunks", self.store.most_chunks, 1, 1e9)
        yield from _out_of_range("etsi014.stock_per_pair", self.etsi014.stock_per_pair, 0, 4096)
        section = self.etsi014
        yield from _out_of_range("etsi014.most_connections", section.most_connections, 8, 4096)
        per_address = section.most_connections_per_address
        yield from _out_of_range("etsi014.most_connections_per_address", per_address, 4, 4096)


def check_link_parameters(link: LinkParameters) -> None:
    """Refuse parameters that no link can have.

    Raises:
        Impossible: naming table, key and what was expected of each.
    """
    Impossible.check(_link_faults(link))


def _link_faults(link: LinkParameters) -> Iterator[str]:
    source, receiver = link.source, link.receiver
    for where, value in (
        ("link.source.p_z", source.p_z),
        ("link.receiver.p_z", receiver.p_z),
        ("link.keys.direction_share_alice", link.keys.direction_share_alice),
    ):
        if not 0.0 < value < 1.0:
            yield (f"{where}: expected a fraction between 0 and 1, got {value}")
    if not 0.0 < source.mu[1] < source.mu[0]:
        yield (f"link.source.mu: expected mu1 > mu2 > 0, got {list(source.mu)}")
    if not all(0.0 <= off < 1.0 for off in source.mu_uncertainty):
        yield (
            f"link.source.mu_uncertainty: expected two fractions from 0 to below 1, "
            f"got {list(source.mu_uncertainty)}"
        )
    if source.mu[1] * (1.0 + source.mu_uncertainty[1]) >= source.mu[0] * (1.0 - source.mu_uncertainty[0]):
        yield (
            f"link.source.mu_uncertainty: {list(source.mu_uncertainty)} lets the intensities meet, "
            f"calibrate them better or choose them further apart"
        )
    if abs(sum(source.p) - 1.0) > 1e-9 or min(source.p) <= 0.0:
        yield (f"link.source.p: expected two probabilities that sum to 1, got {list(source.p)}")
    if source.qubit_rate_hz <= 0:
        yield (f"link.source.qubit_rate_hz: expected a positive rate, got {source.qubit_rate_hz}")
    elif not 0.3 * source.period_ps < source.bin_spacing_ps < 0.7 * source.period_ps:
        yield (
            f"link.source.bin_spacing_ps: expected about half a slot ({source.period_ps / 2:.1f}), "
            f"got {source.bin_spacing_ps}"
        )
    if source.qubit_rate_hz > 0 and not 0.0 < receiver.gate_width_ps <= source.period_ps / 2:
        yield (
            f"link.receiver.gate_width_ps: expected at most half a slot ({source.period_ps / 2:.1f}), "
            f"got {receiver.gate_width_ps}"
        )
    if link.block.sifted_bits != "auto":
        yield from _out_of_range("link.block.sifted_bits", link.block.sifted_bits, 1000, 50_000_000)
    yield from _out_of_range("link.block.longest_s", link.block.longest_s, 0.01, 86_400.0)
    yield from _out_of_range("link.block.minimum_secret_bits", link.block.minimum_secret_bits, 2048, 1 << 30)
    yield from _out_of_range(
        "link.keys.refill_pads_per_direction", link.keys.refill_pads_per_direction, 2, 64
    )
    yield from _out_of_range(
        "link.keys.reserve_pads_per_direction", link.keys.reserve_pads_per_direction, 8, 4096
    )
    block_secret_and_pads = 8 * (32 + 2 * 16 * link.keys.refill_pads_per_direction)
    if link.block.minimum_secret_bits < block_secret_and_pads:
        yield (
            f"link.block.minimum_secret_bits: a block's secret and its refill of "
            f"{link.keys.refill_pads_per_direction} pads a direction take {block_secret_and_pads} bits; "
            f"expected at least as many, got {link.block.minimum_secret_bits}"
        )
    yield from _out_of_range("link.estimation.eps_cor", link.estimation.eps_cor, 1e-28, 0.5)
    yield from _out_of_range("link.estimation.eps_sec", link.estimation.eps_sec, 1e-30, 0.5)
    yield from _plausibility_faults(link.plausibility)
    if link.estimation.estimator == "three_state":
        yield from _three_state_faults(link.estimation)
    if not 0.0 <= receiver.dead_time_s <= 1.0:
        yield (f"link.receiver.dead_time_s: expected 0 to 1 second, got {receiver.dead_time_s:g}")
    yield from _out_of_range(
        "link.receiver.order_window_ps", receiver.order_window_ps, 0, LONGEST_ORDER_WINDOW_PS
    )


def _plausibility_faults(plausibility: PlausibilityParameters) -> Iterator[str]:
    for name, least, most in (
        ("false_alarms_per_year", 1e-6, 1e6),
        ("least_error_z", 0.0, 0.5),
        ("least_error_x", 0.0, 0.5),
        ("balance_tolerance", 0.0, 0.25),
        ("late_tolerance", 0.0, 0.5),
        ("cross_click_factor", 1.0, 1e6),
        ("drift", 0.0, 1.0),
        ("repeats", 1.0, 1e9),
    ):
        yield from _out_of_range(f"link.plausibility.{name}", getattr(plausibility, name), least, most)
    for name, most in (("arm_ratio", 1e6), ("out_of_gate", 1.0)):
        low, high = getattr(plausibility, name)
        if not 0.0 <= low < high <= most:
            yield (
                f"link.plausibility.{name}: expected two numbers, 0 <= least < most <= {most:g}, "
                f"got {[low, high]}"
            )


def _three_state_faults(estimation: EstimationParameters) -> Iterator[str]:
    """Find rules that the estimator does not have, so that no block has to."""
    own = EstimationParameters()
    for name in ("x_mode", "statistics", "vacuum_rule"):
        if getattr(estimation, name) != getattr(own, name):
            yield (
                f"link.estimation.{name}: three_state has one rule of its own, expected "
                f"{getattr(own, name)!r} or nothing, got {getattr(estimation, name)!r}"
            )


def _out_of_range(where: str, value: float, least: float, most: float) -> Iterator[str]:
    if not least <= value <= most:
        yield f"{where}: expected {least:g} to {most:g}, got {value:g}"
