"""The page's view of a site: every text is a text of `qnodectl`; the browser only places it.

Drawings get states as words and figures as numbers. Nothing here is secret.
"""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from msgspec import Struct

from qnode.operate.blocks.row import DecidedBlock
from qnode.operate.status.alarms import to_do
from qnode.operate.status.model import NodeStatus
from qnode.operate.status.screen import (
    BLOCK_COLUMNS,
    RECORDED,
    SIMULATED,
    age,
    block_cells,
    controller_parts,
    count,
    device_parts,
    duration,
    keys_rows,
    lasts_text,
    loss_text,
    secret_rate_text,
    si,
    status_lines,
)
from qnode.operate.status.troubles import troubles, why_no_key

SHOWN_BLOCKS = 12

LatestBlocks = Callable[[str], Sequence[DecidedBlock]]
"""Returns the latest blocks of the link of this name, oldest first."""


class AlarmView(Struct, frozen=True):
    """An alarm: its name, link, age, details, and what to do."""

    name: str
    link: str
    age: str
    text: str
    to_do: str


class RowView(Struct, frozen=True):
    """A device or a controller: its name, `ok` or `WARN`, and the rest of its line."""

    name: str
    verdict: str
    text: str


class LinkView(Struct, frozen=True, kw_only=True):
    """One link. ``near``, ``far``: its sites; ``facts``: names and texts of the figures that stand out."""

    name: str
    role: str
    near: str
    far: str
    quantum_ok: bool
    quantum: str
    channel_ok: bool
    channel: str
    facts: list[tuple[str, str]]
    no_key: str
    recorded: str
    keys: list[tuple[str, str, str]]
    blocks: list[list[str]]
    devices: list[RowView]
    controllers: list[RowView]
    behind: list[tuple[str, str]]
    planned_bits_per_s: float | None
    planned_loss_db: float | None


class SiteView(Struct, frozen=True, kw_only=True):
    """A site at the moment ``at``. ``screen``: the lines of `qnodectl status`."""

    at: str
    at_s: float
    title: str
    state: str
    well: bool
    simulated: str
    alarms: list[AlarmView]
    links: list[LinkView]
    block_columns: tuple[str, ...]
    saes: list[list[str]]
    screen: list[str]


def view_of(status: NodeStatus, latest_blocks: LatestBlocks) -> SiteView:
    """Return the present view of a site."""
    at, alarms = status.at, troubles(status)
    return SiteView(
        at=f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S} UTC",
        at_s=at,
        title=status.site.kme_id,
        state=f"{status.state.state} {age(status.state.since, at)}, qnode {status.version}",
        well=not alarms,
        simulated=SIMULATED if status.simulated else "",
        alarms=[
            AlarmView(one.name, one.link or "", age(one.since, at), one.text, to_do(one.name))
            for one in alarms
        ],
        links=[_link(view, latest_blocks(view.site.link)) for view in status.each_link],
        block_columns=BLOCK_COLUMNS,
        saes=[
            [
                sae.sae_id,
                ", ".join(sae.peers),
                count(sae.keys_delivered_total),
                "no key yet" if sae.last_key_at is None else f"{age(sae.last_key_at, at)} ago",
                count(sae.requests_refused_total),
            ]
            for sae in status.etsi014.saes
        ],
        screen=[str(line) for line in status_lines(status)],
    )


def _link(status: NodeStatus, blocks: Sequence[DecidedBlock]) -> LinkView:
    at, quantum, peer, last = status.at, status.quantum, status.peer, status.block.last
    lock = quantum.lock
    lock_text = f"{lock.state} for {age(lock.since, at)}" + (f": {lock.because}" if lock.because else "")
    connection = peer.connection
    channel = f"{connection.state} for {age(connection.since, at)}"
    channel += f": {connection.because}" if connection.because else ""
    return LinkView(
        name=status.site.link,
        role=status.site.role,
        near=status.site.kme_id,
        far=peer.kme_id,
        quantum_ok=quantum.locked,
        quantum=lock_text,
        channel_ok=peer.connected,
        channel=channel + ("" if peer.rtt_s is None else f", rtt {1e3 * peer.rtt_s:.2f} ms"),
        facts=_facts(status),
        no_key=why_no_key(status) or "",
        recorded=""
        if status.recorded_since is None
        else f"BEING RECORDED for {age(status.recorded_since, at)}: {RECORDED}",
        keys=keys_rows(status),
        blocks=[block_cells(block, at) for block in reversed(blocks)],
        devices=[RowView(*device_parts(one, at)) for one in status.devices],
        controllers=[RowView(*controller_parts(one, at)) for one in status.controllers],
        behind=_behind(status)
        if last is not None
        else [("security statement", "known after the first block that gives key")],
        planned_bits_per_s=status.expected.secret_bits_per_s,
        planned_loss_db=status.expected.loss_db,
    )


def _facts(status: NodeStatus) -> list[tuple[str, str]]:
    quantum, keys = status.quantum, status.keys
    ready = keys.available_own + keys.available_peer
    e_vis = quantum.e_vis
    unused = "" if keys.used_bits_per_s is None else "none used at present"
    found = [
        ("secret key rate", secret_rate_text(status)),
        ("QBER Z", "" if quantum.qber_z is None else f"{100 * quantum.qber_z:.2f} %"),
        ("QBER X", "" if e_vis is None else f"{100 * e_vis:.2f} %"),
        ("visibility", "" if e_vis is None else f"{100 - 200 * e_vis:.1f} %"),
        ("loss", loss_text(status).removeprefix("loss ")),
        ("detectors", "  ".join(f"{arm} {si(rate)}cps" for arm, rate in quantum.click_rates_hz.items())),
        ("keys ready", count(ready)),
        ("keys", lasts_text(status) or unused),
    ]
    return [(name, text or "?") for name, text in found]


def _behind(status: NodeStatus) -> list[tuple[str, str]]:
    last = status.block.last
    assert last is not None
    return [
        ("estimator", last.estimator),
        ("phase error", f"at most {100 * last.phi_z_upper:.2f} % in block {last.block_id}"),
        ("epsilon", f"{status.keys.epsilon_total:.1e} for all keys together"),
        ("simulated", SIMULATED if status.simulated else "no"),
        ("last block", f"{duration(last.span_s)} long, {age(last.finished_at, status.at)} ago"),
        *(("assumption", one) for one in last.assumptions),
    ]
