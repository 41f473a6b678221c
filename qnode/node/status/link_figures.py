"""The figures of one link; `LinkFigures.status` is the only view of them."""

import time
from collections.abc import Callable

import msgspec.structs
import structlog

from qnode.block.history import BlockHistory
from qnode.choices import ConnectionState
from qnode.config import SiteConfig
from qnode.devices.status import DeviceStatus
from qnode.distill.check_table import Finding
from qnode.keys import AuditStanding, Counts, Loss, PadsLeft, Positions
from qnode.link.authentication import epsilon_of_tag
from qnode.node.status.alarms import Alarms
from qnode.node.status.block_figures import BlockFigures
from qnode.node.status.key_use import KeyUse
from qnode.node.status.loss import loss_of
from qnode.node.status.quantum_figures import QuantumFigures
from qnode.operate.status.alarms import AlarmName
from qnode.operate.status.model import (
    AuditStatus,
    AuthenticationStatus,
    ControllerStatus,
    ExpectedStatus,
    KeyStatus,
    LinkStatus,
    PeerStatus,
    QuantumStatus,
    State,
)
from qnode.units import CHUNK_BITS

log = structlog.get_logger()

MOST_TOLD = 3


class LinkFigures:
    """Counters and states of one link. Only the event loop's thread touches them."""

    def __init__(self, config: SiteConfig, alarms: Alarms | None = None) -> None:
        self._config = config
        self._use = KeyUse()
        self.alarms = alarms or Alarms()
        self.history = BlockHistory(config.link)
        self.quantum = QuantumFigures()
        self.blocks = BlockFigures(config.link, self.quantum, self.alarms, self.history)
        self.peer = PeerStatus(
            kme_id=config.peer.kme_id, connection=State(ConnectionState.DISCONNECTED, time.time())
        )
        self.keys = KeyStatus()
        self.audit = AuditStatus()
        self.authentication = AuthenticationStatus()
        self.devices: Callable[[], list[DeviceStatus]] = list
        self.monitors: Callable[[], dict[str, Finding]] = dict
        self.controllers: Callable[[], list[ControllerStatus]] = list
        self.sae_differences: list[str] = []
        self.recorded_since_s: float | None = None
        self._lost_chunks = self._lost_pads = 0

    def status(self) -> LinkStatus:
        """Return the present view."""
        return LinkStatus(
            name=self._config.link.name,
            role=self._config.node.role,
            recorded_since=self.recorded_since_s,
            peer=self.peer,
            quantum=self._quantum(),
            block=self.blocks.status(),
            totals=self.quantum.totals,
            keys=self.keys,
            audit=self.audit,
            authentication=self.authentication,
            devices=self.devices(),
            monitors=self.monitors(),
            controllers=self.controllers(),
            alarms=self.alarms.all(),
            expected=ExpectedStatus(
                secret_bits_per_s=self._config.expected.secret_bits_per_s,
                loss_db=self._config.expected.loss_db,
            ),
        )

    def renew(self, config: SiteConfig) -> None:
        """Use the configuration after a reload."""
        self._config = config

    def _quantum(self) -> QuantumStatus:
        """Return the figures of the quantum channel, with the loss if it is known."""
        status = self.quantum.status
        out_of_gate = status.folded.out_of_gate if status.folded is not None else None
        if out_of_gate is None or out_of_gate >= 1.0:
            return status
        efficiency = self._config.expected.z_arm_efficiency
        loss = loss_of(status.click_rates_hz, out_of_gate, self._config.link, efficiency)
        if loss is None:
            return status
        return msgspec.structs.replace(status, loss_db=loss.loss_db, loss_error_db=loss.error_db)

    def note_connected(self, software: str) -> None:
        """Note a session with the peer, which runs ``software``."""
        self.peer = msgspec.structs.replace(
            self.peer, connection=State(ConnectionState.CONNECTED, time.time()), software=software
        )

    def note_disconnected(self, because: str) -> None:
        """Note that there is no session with the peer, and the obstacle."""
        connection = self.peer.connection.to(ConnectionState.DISCONNECTED, because, at=time.time())
        self.peer = PeerStatus(kme_id=self._config.peer.kme_id, connection=connection)

    def note_round_trip(self, round_trip_s: float) -> None:
        """Note the latest measured round trip to the peer."""
        self.peer = msgspec.structs.replace(self.peer, rtt_s=round_trip_s)

    def note_sae_differences(self, number: int, first: list[str]) -> None:
        """Note how many pairs of encryptors one site alone has, and the ``first`` of them."""
        if not first:
            self.alarms.clear_alarm(AlarmName.SAES_DIFFER)
        elif first != self.sae_differences:
            more = f"; and {number - MOST_TOLD} more" if number > MOST_TOLD else ""
            self.alarms.raise_alarm(AlarmName.SAES_DIFFER, "; ".join(first[:MOST_TOLD]) + more)
        self.sae_differences = first

    def note_recording(self, since_s: float | None) -> None:
        """Note since when this site is recorded; None: it is not recorded."""
        self.recorded_since_s = since_s

    def note_store(self, counts: Counts, pads: PadsLeft, positions: Positions) -> None:
        """Take over the counts of the store."""
        self._use.see(time.monotonic(), counts.delivered)
        used_bits_per_s = self._use.bits_per_s()
        ready_bits = (counts.available_own + counts.available_peer + counts.stock) * CHUNK_BITS
        self.keys = KeyStatus(
            available_own=counts.available_own,
            available_peer=counts.available_peer,
            prepared=counts.prepared,
            assigned=counts.assigned - counts.stock,
            stock=counts.stock,
            delivered_total=counts.delivered,
            void_total=counts.void,
            expired_total=counts.expired,
            # Counted separately, because the tags' part is too small to be added one by one to the blocks'
            # part.
            epsilon_total=positions.epsilon + pads.used * epsilon_of_tag(),
            used_bits_per_s=used_bits_per_s,
            lasts_s=ready_bits / used_bits_per_s if used_bits_per_s else None,
        )
        self.authentication = AuthenticationStatus(pads_left_send=pads.send, pads_left_receive=pads.receive)

    def note_audit(self, standing: AuditStanding) -> None:
        """Take over the extent of the audit."""
        self.audit = AuditStatus(
            head=str(standing.head),
            entries_total=standing.entries_total,
            entries_kept=standing.entries_kept,
            chains=standing.chains,
        )
        if standing.damage:
            text = f"the audit was cut or changed: {standing.damage}; see qnodectl audit verify"
            self.alarms.raise_alarm(AlarmName.AUDIT_DAMAGED, text)

    def note_monitors(self, tripped: str | None) -> None:
        """Note what the monitors over devices find at present; None: nothing."""
        if tripped is None:
            self.alarms.clear_alarm(AlarmName.MONITOR_TRIPPED)
        else:
            self.alarms.raise_alarm(AlarmName.MONITOR_TRIPPED, tripped)

    def note_uncleared(self, times: int) -> None:
        """Note how many times in a row the store's log could not be cleared of destroyed keys."""
        if times:
            text = f"sealed traces of destroyed keys stay in the store's log ({times} tries in a row)"
            self.alarms.raise_alarm(AlarmName.STORE_UNCLEARED, text)
        else:
            self.alarms.clear_alarm(AlarmName.STORE_UNCLEARED)

    def note_loss(self, loss: Loss) -> None:
        """Note an entry that the store could not decrypt; the alarm stays until the next start."""
        self._lost_chunks += loss.n_chunks
        self._lost_pads += loss.pads
        blocks = sorted({item.block_id for item in loss.ranges})
        log.error("store.damaged", chunks=loss.n_chunks, pads=loss.pads, blocks=blocks)
        self.alarms.raise_alarm(
            AlarmName.STORE_DAMAGED,
            f"{self._lost_chunks} chunks and {self._lost_pads} one-time pads could not be opened and were "
            "given up at both sites: check the disk and the memory of this machine",
        )
