"""The status of a node: the only source of `qnodectl status`, its JSON and the metrics.

Times are Unix seconds. Rates and durations of the quantum side use tag time. Fractions are fractions, not
percent. An unknown figure is None. Nothing here is secret: there is no bit and no seed of a key.
"""

from typing import Any, Final

import msgspec.structs
from msgspec import Struct

from qnode.choices import ConnectionState, LockState, Role
from qnode.devices.status import DeviceStatus, State
from qnode.distill.check_table import Finding
from qnode.operate.status.interfaces import Etsi004Status, EtsiStatus, SkipStatus
from qnode.tls_validity import Validity

__all__ = [
    "Alarm",
    "AuditStatus",
    "AuthenticationStatus",
    "BlockStatus",
    "BlockSummary",
    "ControllerStatus",
    "DeviceStatus",
    "Discard",
    "ExpectedStatus",
    "FoldedStatus",
    "KeyStatus",
    "LinkStatus",
    "NodeStatus",
    "PeerStatus",
    "QuantumStatus",
    "SiteStatus",
    "State",
    "Totals",
    "Validity",
    "status_of_links",
]


class SiteStatus(Struct, frozen=True, kw_only=True):
    """The identity of the site."""

    role: Role
    kme_id: str
    link: str


class PeerStatus(Struct, frozen=True, kw_only=True):
    """The other site; ``connection`` is a `ConnectionState` (``because``: the last failure)."""

    kme_id: str
    connection: State
    rtt_s: float | None = None
    software: str | None = None

    @property
    def connected(self) -> bool:
        """True while there is an authenticated session."""
        return self.connection.state == ConnectionState.CONNECTED


class FoldedStatus(Struct, frozen=True, kw_only=True):
    """Bob's latest tags by their place: ``z_bins`` over half a slot, ``x_bins`` over a slot.

    ``visibility``: of the interferometer at its present phase, from the central share of the X clicks.
    """

    z_bins: list[int]
    x_bins: list[int]
    out_of_gate: float | None = None
    visibility: float | None = None


class QuantumStatus(Struct, frozen=True, kw_only=True):
    """The quantum channel; ``lock`` is a `LockState`.

    ``e_vis``: visibility error of the X arm. ``asymmetry``: of the X boundary classes. ``click_rates_hz``: by
    arm, over the last two seconds of tag time with lock; empty without lock. ``cut_s``: tag time without
    lock. ``tag_time_s``: the present tag time. ``checks``: the results of the plausibility checks of the last
    corrected block, ``checks_of_block``. ``loss_db``: loss between the sites by the clicks of the Z arm,
    within ``loss_error_db``; None where saturated detectors do not tell it, and at Alice's site.
    """

    lock: State
    qber_z: float | None = None
    e_vis: float | None = None
    asymmetry: float | None = None
    sifted_rate_bits_per_s: float | None = None
    click_rates_hz: dict[str, float] = {}
    clock_offset_ppm: float | None = None
    phase_residual_ps: float | None = None
    vector_strength: float | None = None
    cut_s: float = 0.0
    tag_time_s: float | None = None
    checks: tuple[Finding, ...] = ()
    checks_of_block: int | None = None
    folded: FoldedStatus | None = None
    loss_db: float | None = None
    loss_error_db: float | None = None

    @property
    def locked(self) -> bool:
        """True while clicks have slots."""
        return self.lock.state == LockState.LOCKED


class ControllerStatus(Struct, frozen=True, kw_only=True):
    """A controller that holds a setting; ``state`` is a `ControllerState`.

    ``setting``: the present one, in ``unit``; ``best``: the estimate of the best one, with its standard error
    ``sigma``. ``drift_per_hour``: of the best setting. ``moves``: settings since the start of the node.
    """

    name: str
    device: str
    state: State
    unit: str
    setting: float | None = None
    best: float | None = None
    sigma: float | None = None
    drift_per_hour: float | None = None
    moves: int = 0


class BlockSummary(Struct, frozen=True, kw_only=True):
    """An accepted block. ``span_s``: tag time it covers; ``took_s``: wall time from its end to its key."""

    block_id: int
    finished_at: float
    n_z: int
    qber_z: float
    e_vis: float | None
    asymmetry: float | None
    phi_z_upper: float
    secret_bits: int
    lambda_ec_bits: int
    f_ec: float
    reconciliation: str
    estimator: str
    assumptions: list[str]
    span_s: float
    took_s: float


class Discard(Struct, frozen=True, kw_only=True):
    """The latest block without key: ``reason`` is the counted word, ``detail`` explains it."""

    block_id: int
    at: float
    reason: str
    detail: str = ""


class BlockStatus(Struct, frozen=True, kw_only=True):
    """Blocks since the start. ``filled``: fraction of the present block; ``in_flight``: being distilled.

    ``decided_s``: tag time of the completely announced blocks that are accepted or discarded (Bob).
    ``secret_bits_per_s``: secret key over the blocks that were decided in the last hour, per second of tag
    time; discarded blocks count, and it is 0 if several blocks are overdue. None: no block was decided.
    """

    current: int | None = None
    filled: float | None = None
    in_flight: int = 0
    accepted: int = 0
    discarded: dict[str, int] = {}
    decided_s: float = 0.0
    last: BlockSummary | None = None
    last_discard: Discard | None = None
    secret_bits_per_s: float | None = None


class Totals(Struct, frozen=True, kw_only=True):
    """Counts since the daemon started; they only grow.

    ``error_bits`` were found among ``measured_bits``: all sifted bits of a corrected block, a sample of one
    that could not be corrected. ``c_plus_clicks``, ``c_z_clicks``: central-slot clicks of |+> and of Z
    states. ``ec_parities``: disclosed by Alice in corrected blocks whose Shannon limit was ``shannon_bits``.
    """

    tags: int = 0
    tags_lost: int = 0
    tags_out_of_order: int = 0
    tag_overruns: int = 0
    tags_dropped: int = 0
    clicks: int = 0
    clicks_dropped: int = 0
    sifted_bits: int = 0
    secret_bits: int = 0
    lambda_ec_bits: int = 0
    error_bits: int = 0
    measured_bits: int = 0
    c_plus_clicks: int = 0
    c_z_clicks: int = 0
    ec_parities: int = 0
    shannon_bits: float = 0.0


class KeyStatus(Struct, frozen=True, kw_only=True):
    """Chunks in the store by state, and totals of keys.

    ``available_own``: assignable by this site; ``available_peer``: by the other one. ``stock``: pre-assigned
    chunks for delivery while the link is down. The totals count since the first block of the
    link, across restarts. ``epsilon_total``: the bound on the distance of all its keys together from ideal
    ones (eps_sec + eps_cor of each opened block, and the bound of each used one-time tag).
    ``used_bits_per_s``: key delivered per second over the last hour; None in the first minute of the daemon.
    ``lasts_s``: how long the keys that are ready last at this use without new ones; None if none is used.
    """

    available_own: int = 0
    available_peer: int = 0
    prepared: int = 0
    assigned: int = 0
    stock: int = 0
    delivered_total: int = 0
    void_total: int = 0
    expired_total: int = 0
    epsilon_total: float = 0.0
    used_bits_per_s: float | None = None
    lasts_s: float | None = None


class ExpectedStatus(Struct, frozen=True, kw_only=True):
    """What the link should give by `qnode plan`, from the site's file; None: the file does not say it."""

    secret_bits_per_s: float | None = None
    loss_db: float | None = None


class AuditStatus(Struct, frozen=True, kw_only=True):
    """The record of deliveries: its last entry, the entries kept, the chains in which they are."""

    head: str = ""
    entries_total: int = 0
    entries_kept: int = 0
    chains: int = 0


class AuthenticationStatus(Struct, frozen=True, kw_only=True):
    """One-time authentication pads left for each direction."""

    pads_left_send: int | None = None
    pads_left_receive: int | None = None


class Alarm(Struct, frozen=True, kw_only=True):
    """A condition that needs attention; ``name`` is a noun and a verb as in the event log.

    ``link``: its link, if the site has several; None: of the site.
    """

    name: str
    since: float
    text: str
    link: str | None = None


class LinkStatus(Struct, frozen=True, kw_only=True):
    """One of the links of a site, with the fields that `NodeStatus` has for the first link."""

    name: str
    role: Role
    peer: PeerStatus
    quantum: QuantumStatus
    block: BlockStatus = BlockStatus()
    totals: Totals = Totals()
    keys: KeyStatus = KeyStatus()
    audit: AuditStatus = AuditStatus()
    authentication: AuthenticationStatus = AuthenticationStatus()
    expected: ExpectedStatus = ExpectedStatus()
    devices: list[DeviceStatus] = []
    monitors: dict[str, Finding] = {}
    controllers: list[ControllerStatus] = []
    alarms: list[Alarm] = []
    recorded_since: float | None = None


class TelemetryStatus(Struct, frozen=True, kw_only=True):
    """The writer to the database at ``url``. ``away``: why it does not take samples; None: it does.

    ``waiting``: samples on disk that it does not have. ``lost_total``: samples that were not written, or lost
    because their spool was full. ``refused_lines_total``: lines that it refused for good.
    """

    url: str
    away: str | None = None
    waiting: int = 0
    stored_total: int = 0
    lost_total: int = 0
    refused_lines_total: int = 0
    last_stored_at: float | None = None


class NodeStatus(Struct, frozen=True, kw_only=True):
    """One site at the moment ``at``.

    ``log_lines_dropped``: lines of the log that could not be written, because nothing read them.
    ``self_tested_at``: when the self-test last passed (Unix time).
    ``state`` is `starting` or `running`; `troubles.py` lists the warnings. ``recorded_since``: the start of a
    present recording of tags or symbols of this site; None: there is none. ``certificates``: the validity of
    each certificate and CRL in use. ``monitors``: the last reading of each monitor over devices, by its table
    below ``[monitors]``. ``alarms``: of the site and of all links.

    A site may have several ``links``. Then ``site.role``, ``site.link``, and the fields from ``peer`` to
    ``controllers`` are those of the first link; `each_link` has a view of each.
    """

    at: float
    version: str
    site: SiteStatus
    simulated: bool
    state: State
    peer: PeerStatus
    quantum: QuantumStatus
    block: BlockStatus = BlockStatus()
    totals: Totals = Totals()
    keys: KeyStatus = KeyStatus()
    audit: AuditStatus = AuditStatus()
    authentication: AuthenticationStatus = AuthenticationStatus()
    expected: ExpectedStatus = ExpectedStatus()
    devices: list[DeviceStatus] = []
    monitors: dict[str, Finding] = {}
    controllers: list[ControllerStatus] = []
    etsi014: EtsiStatus = EtsiStatus()
    skip: SkipStatus | None = None
    etsi004: Etsi004Status | None = None
    telemetry: TelemetryStatus | None = None
    alarms: list[Alarm] = []
    recorded_since: float | None = None
    log_lines_dropped: int = 0
    self_tested_at: float | None = None
    certificates: list[Validity] = []
    links: list[LinkStatus] = []

    @property
    def each_link(self) -> "list[NodeStatus]":
        """The status of each link, as if it were the only one."""
        if len(self.links) < 2:
            return [self]
        return [self._of(link) for link in self.links]

    def of_link(self, name: str) -> "NodeStatus":
        """Return the status as if the link ``name`` were the only one.

        Raises:
            KeyError: there is no link of this name.
        """
        for view in self.each_link:
            if view.site.link == name:
                return view
        raise KeyError(name)

    def _of(self, link: LinkStatus) -> "NodeStatus":
        return msgspec.structs.replace(
            self,
            site=SiteStatus(role=link.role, kme_id=self.site.kme_id, link=link.name),
            alarms=[alarm for alarm in self.alarms if alarm.link in (None, link.name)],
            links=[link],
            **{name: getattr(link, name) for name in _OF_THE_LINK},
        )


# The fields that `NodeStatus` has for its first link; alarms it has for all.
_OF_THE_LINK: Final = tuple(
    name for name in LinkStatus.__struct_fields__ if name not in ("name", "role", "alarms")
)


def status_of_links(
    links: list[LinkStatus], *, kme_id: str, alarms: list[Alarm], **of_the_site: Any
) -> NodeStatus:
    """Return the status of a site with these ``links``; ``alarms``: the site's own."""
    first = links[0]
    return NodeStatus(
        site=SiteStatus(role=first.role, kme_id=kme_id, link=first.name),
        alarms=[alarm for link in links for alarm in link.alarms] + alarms,
        links=links,
        **{name: getattr(first, name) for name in _OF_THE_LINK},
        **of_the_site,
    )
