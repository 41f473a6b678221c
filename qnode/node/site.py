"""One site put together: store, devices, link, key delivery, and the ways to look at it."""

import dataclasses
import math
import time
from collections.abc import AsyncIterator, MutableMapping, Sequence
from functools import partial
from pathlib import Path

import msgspec
import structlog
import trio

from qnode.block.running_rate import RunningRate
from qnode.config import DeviceSection, SiteConfig
from qnode.devices.protocols import Device, Sensor, TagSource, Transmitter
from qnode.devices.status import DeviceStatus
from qnode.devices.supervisor import supervise
from qnode.distill.selftest import self_test
from qnode.errors import ConfigError, LinkDown, LinkError, StoreError, StoreUnusable
from qnode.etsi014 import ApiLimits, Delivery, application
from qnode.http import Limits, Server
from qnode.keys import Assignment, KeyStore, Loss
from qnode.link.hello import LocalEnd, Standing
from qnode.link.messages import SaesRegistered
from qnode.link.peers import FailureLog, LinkFailure, connect_to_peer, serve_peer
from qnode.link.protocol import link_for_protocol
from qnode.link.session import Session
from qnode.link.tls import TlsTransport
from qnode.node.dialogue.context import BlockContext
from qnode.node.dialogue.tag_order import TagOrder
from qnode.node.listening import start_serving
from qnode.node.quantum.alice import AliceSide
from qnode.node.quantum.bob import BobSide
from qnode.node.quantum.receiver import Receiver
from qnode.node.quantum.recorder import AliceRecorder, BobRecorder
from qnode.node.quantum.transmitter_port import TransmitterPort
from qnode.node.reload import (
    Reload,
    connection_limits,
    encryptor_identities,
    read_again,
    read_directory,
    read_trust,
)
from qnode.node.session.restore_gate import RestoreGate
from qnode.node.session.router import Conversation
from qnode.node.session.sae_tables import SaeTables
from qnode.node.status.figures import Figures
from qnode.node.status.liveness import Liveness
from qnode.node.supply.async_store import STALL_S, AsyncStore, PeerMemory, runs_of
from qnode.node.supply.key_supply import LinkKeySupply
from qnode.node.supply.rebalance import Demand, rebalance
from qnode.operate.control.server import Answers, serve_control
from qnode.operate.events.log import EventLog, set_log_level
from qnode.operate.notify import Notifier, feed_watchdog, from_environment
from qnode.operate.recording.recordings import Recordings
from qnode.operate.status.alarms import AlarmName
from qnode.operate.status.metrics_app import metrics_app
from qnode.operate.status.model import EtsiStatus, HttpStatus, PeerStatus, SaeStatus, State

log = structlog.get_logger()

REFRESH_S = 0.5
EXPIRY_PERIOD_S = 60.0
WITNESS_PERIOD_S = 1.0
STORE_RETRY_S = 1.0


class SiteNode:
    """The running site. One conversation at a time connects it with its peer."""

    def __init__(
        self, config: SiteConfig, store: KeyStore, events: EventLog, config_file: Path | None = None
    ) -> None:
        self._config = config
        self._config_file = config_file
        self._store = store
        self._events = events
        self._storage = AsyncStore(store, config.store.most_chunks)
        self._storage.key_lifetime_s = config.store.key_lifetime_s
        # A site that admits simulated devices never passes its keys off as real ones.
        self._simulated = config.node.allow_simulated
        self._figures = Figures(config, simulated=self._simulated)
        self._board: MutableMapping[str, DeviceStatus] = {}
        self._figures.devices = lambda: list(self._board.values())
        self._figures.log_lines_dropped = lambda: events.dropped_lines
        self._conversation: Conversation | None = None
        self._tested = trio.Event()  # devices open and the peer is greeted meanwhile, but no block begins
        self._liveness = Liveness()
        self._source = TransmitterPort(self._liveness)
        self._rate = RunningRate(config.link.source.p_z)
        self._recordings = Recordings(
            allowed=config.operate.allow_recording, changed=self._figures.note_recording
        )
        self._bob_recorder = BobRecorder(config, self._recordings, simulated=self._simulated)
        self._alice_recorder = AliceRecorder(config, self._recordings, simulated=self._simulated)
        self._receiver = Receiver(config, self._figures, self._bob_recorder, self._liveness)
        self._supply = LinkKeySupply(self._storage, self)
        self._gate = RestoreGate(self._storage)
        self._storage.on_loss = self._note_loss
        self._demand = Demand()
        self._failure_log = FailureLog()
        self._saes = SaeTables(read_directory(config), config.peer.kme_id, self._figures.note_sae_differences)
        peer = config.peer
        self._transport = TlsTransport(peer.address, peer.tls, peer.kme_id, encryptor_identities(config))

    async def run(self, hangups: AsyncIterator[int]) -> None:
        """Run everything until cancelled; each of ``hangups`` reloads.

        Raises:
            ConfigError: an address or file cannot be used.
        """
        config, notifier = self._config, from_environment()
        self._trust = read_trust(config)
        self._note_certificates()
        async with trio.open_nursery() as nursery:
            await self._refresh()
            answers = Answers(
                self._figures.status,
                self._events.recent,
                self._figures.decided.latest,
                self._recordings,
                self._gate.restore,
            )
            await nursery.start(serve_control, config.operate.control_socket, answers)
            await self._serve_keys(nursery)
            if config.operate.metrics_listen is not None:
                metrics = Server(metrics_app(self._figures.status), None, Limits())
                address = config.operate.metrics_listen
                await start_serving(nursery, metrics, address, "operate.metrics_listen", self._figures)
            for name, section in config.devices.items():
                nursery.start_soon(
                    partial(
                        supervise,
                        name,
                        section,
                        partial(self._use_device, section),
                        board=self._board,
                        allow_simulated=config.node.allow_simulated,
                    )
                )
            nursery.start_soon(self._keep_session)
            nursery.start_soon(self._keep_fresh, notifier)
            nursery.start_soon(self._expire)
            nursery.start_soon(self._watch_store)
            if config.store.witness is not None:
                nursery.start_soon(self._keep_witness)
            nursery.start_soon(feed_watchdog, notifier, self._liveness.is_alive)
            nursery.start_soon(self._look_after_lock)
            await trio.to_thread.run_sync(self_test)
            self._tested.set()
            self._figures.state = State("running", time.time())
            log.info("node.started", role=config.node.role, kme_id=config.node.kme_id, link=config.link.name)
            notifier.ready(self._figures.headline())
            async for _ in hangups:
                await self._reload(notifier)

    # Devices

    async def _use_device(self, section: DeviceSection, device: Device) -> None:
        """Give a device to the part of the node that works with it."""
        if self._config.node.role == "alice" and isinstance(device, Transmitter):
            await self._source.use(device)
        elif self._config.node.role == "bob" and isinstance(device, TagSource):
            await self._receiver.use(device, section.silence_limit_s)
        elif isinstance(device, Sensor):
            await trio.sleep_forever()  # its supervisor reads it
        else:
            needed = "transmitter" if self._config.node.role == "alice" else "tag source"
            raise ConfigError(
                f"[devices] driver {section.driver} is of no use at {self._config.node.role}: expected a "
                f"{needed} or a sensor, got a {type(device).__name__} (docs/drivers.md says what each has)"
            )

    # The link

    async def _keep_session(self) -> None:
        node, peer = self._config.node, self._config.peer
        local = LocalEnd(
            role=node.role,
            kme_id=node.kme_id,
            peer_kme_id=peer.kme_id,
            parameters=self._config.link,
            secrets=self._store,
            standing=self._read_standing,
            simulated=self._simulated,
        )
        self._transport.renew(self._trust.link_contexts, encryptor_identities(self._config))
        keep = (
            partial(serve_peer, connects_from=peer.connects_from) if node.role == "alice" else connect_to_peer
        )
        await keep(local, self._transport, self._hold_session, on_failure=self._note_failure)

    def _read_standing(self) -> Standing:
        """Return how far this site has come, read anew for each hello (in a thread)."""
        positions = self._store.positions()
        standing = msgspec.structs.replace(self._store.standing(), time_of_day_s=time.time())
        memory = PeerMemory(self._store.view_of_peer(), runs_of(self._store.pad_segments()))
        return Standing(
            last_block_id=positions.last_block_id,
            generation=positions.generation,
            pool_epoch=positions.pool_epoch,
            positions=msgspec.msgpack.encode(memory),
            store=msgspec.msgpack.encode(standing),
        )

    async def _hold_session(self, session: Session) -> None:
        """Converse for the length of one session.

        Raises:
            LinkError: the session ended, also because the disk is full: the node waits for space, connecting
                anew now and then.
        """
        try:
            await self._gate.hold(session, self._converse)
        except* StoreUnusable:
            raise
        except* StoreError as errors:
            text = str(_first(errors))
            self._figures.raise_alarm(AlarmName.STORE_FAILED, text)
            raise LinkError(f"the key store refused: {text}") from None

    async def _converse(self, session: Session) -> None:
        await self._tested.wait()
        log.info(
            "link.connected",
            peer=session.peer.kme_id,
            software=session.peer.software,
            protocol=session.protocol,
        )
        async with trio.open_nursery() as nursery:
            context = BlockContext(
                role=self._config.node.role,
                link=link_for_protocol(self._config.link, session.protocol),
                session=session,
                store=self._storage,
                tag_order=TagOrder(),
                simulated=self._simulated,
            )
            conversation = Conversation(context, self._figures, nursery)
            conversation.saes_told = partial(self._saes.hear, conversation.peer_saes)
            self._figures.peer = msgspec.structs.replace(
                self._figures.peer, connection=State("connected", time.time()), software=session.peer.software
            )
            try:
                if context.role == "alice":
                    nursery.start_soon(self._serve_conversation, conversation, nursery)
                    await conversation.run(
                        AliceSide(conversation, self._source, self._figures, nursery, self._alice_recorder)
                    )
                else:
                    part = BobSide(conversation, self._figures, self._rate, nursery, self._bob_recorder)
                    nursery.start_soon(self._receiver.serve, part)
                    nursery.start_soon(self._serve_conversation, conversation, nursery)
                    await conversation.run(part)
            finally:
                self._conversation = None
                if context.role == "alice":
                    self._figures.note_lock("searching", "not connected to Bob")

    async def _serve_conversation(self, conversation: Conversation, nursery: trio.Nursery) -> None:
        """Let encryptors' requests use the conversation once what came before is settled."""
        await conversation.settled.wait()
        if conversation.context.session.knows(SaesRegistered):
            nursery.start_soon(self._saes.tell, conversation.context.session)
            await conversation.peer_saes.told.wait()
        else:
            self._saes.hear(None)
        self._conversation = conversation
        nursery.start_soon(rebalance, self._storage, conversation, self._supply, self._demand)
        await self._supply.keep_stock(self._saes.stocked_pairs, lambda: self._config.etsi014.stock_per_pair)

    # The peer's store, for the key supply (`PeerAssignments`)

    @property
    def connected(self) -> bool:
        """Tell whether a session stands in which what came before is settled, and the peer answers."""
        return self._conversation is not None and not self._conversation.assignments.stalled

    @property
    def round_trip_s(self) -> float:
        """The latest measured round trip, queues included; nan while unknown."""
        return math.nan if self._conversation is None else self._conversation.context.session.round_trip_s

    @property
    def can_release(self) -> bool:
        """Tell whether the peer can free what was assigned."""
        return self._conversation is not None and self._conversation.assignments.can_release

    async def announce(self, assignment: Assignment) -> None:
        """Return once the peer holds ``assignment``; raises LinkError, ShareUsedUp."""
        if self._conversation is None:
            raise LinkError("not connected")
        await self._conversation.assignments.announce(assignment)

    def take_back(self, assignment_ids: Sequence[int], *, late: bool = False) -> trio.Event:
        """Have assignments that were not delivered become free again, in this session if it lives."""
        if self._conversation is not None:
            return self._conversation.assignments.take_back(assignment_ids, late=late)
        left_to_the_next = trio.Event()
        left_to_the_next.set()
        return left_to_the_next

    def _note_failure(self, failure: LinkFailure) -> None:
        self._failure_log.write(failure)
        connection = self._figures.peer.connection
        # Of those who came and were not the peer, only what may be his own fault says why he is missing.
        anybodys = failure.address is not None and type(failure.error) is LinkError
        if failure.proven or (connection.state == "disconnected" and not anybodys):
            self._figures.peer = PeerStatus(
                kme_id=self._config.peer.kme_id,
                connection=connection.to("disconnected", str(failure.error), at=time.time()),
            )

    def _note_loss(self, loss: Loss) -> None:
        """Say what the store could not open and gave up, and have the peer do the same."""
        self._figures.note_loss(loss)
        if self._conversation is not None:
            self._conversation.loss_found()

    # Key delivery

    async def _serve_keys(self, nursery: trio.Nursery) -> None:
        limits = ApiLimits(max_key_count=self._config.store.most_chunks)
        delivery = Delivery(
            self._saes.directory,
            self._supply,
            limits=limits,
            simulated=self._simulated,
            peer_shares=self._saes.peer_shares,
        )
        server = Server(application(delivery), self._trust.key_delivery, connection_limits(self._config))
        self._delivery, self._server = delivery, server
        self._figures.etsi014 = lambda: self._etsi_status(delivery)
        await start_serving(nursery, server, self._config.etsi014.listen, "etsi014.listen", self._figures)

    # Reload

    async def _reload(self, notifier: Notifier) -> None:
        """Apply what the file and the certificates say now, or go on as before and say why."""
        notifier.reloading()
        try:
            assert self._config_file is not None
            found = await trio.to_thread.run_sync(
                read_again, self._config_file, self._config, self._trust, abandon_on_cancel=True
            )
        except ConfigError as error:
            log.error("node.reload_failed", reason=str(error))
            self._figures.raise_alarm(
                AlarmName.NODE_RELOAD_FAILED, f"all goes on as before the reload: {error}"
            )
        else:
            self._apply(found)
            log.info("node.reloaded", applied=found.applied, restart_needed=found.waiting)
        notifier.ready(self._figures.headline())

    def _apply(self, found: Reload) -> None:
        """Put what a reload has read into force; nothing of it can fail."""
        config, trust, figures = found.config, found.trust, self._figures
        self._config, self._trust = config, trust
        self._saes.renew(found.directory)
        self._server.renew(trust.key_delivery, trust.key_delivery_context)
        self._server.limit(connection_limits(config))
        self._transport.renew(trust.link_contexts, encryptor_identities(config))
        self._storage.most_chunks = config.store.most_chunks
        self._delivery.renew(found.directory, max_key_count=config.store.most_chunks)
        set_log_level(config.operate.log_level)
        self._note_certificates()
        figures.clear_alarm(AlarmName.NODE_RELOAD_FAILED)
        if found.waiting:
            figures.raise_alarm(
                AlarmName.NODE_RESTART_NEEDED, f"changed, but not applied: {', '.join(found.waiting)}"
            )
        else:
            figures.clear_alarm(AlarmName.NODE_RESTART_NEEDED)

    def _etsi_status(self, delivery: Delivery) -> EtsiStatus:
        saes = [
            SaeStatus(
                sae_id=sae.sae_id,
                peers=list(sae.peers),
                kme_id=sae.kme_id,
                keys_delivered_total=delivery.usage[sae.sae_id].keys_delivered,
                last_key_at=delivery.usage[sae.sae_id].last_key_at,
                requests_refused_total=delivery.usage[sae.sae_id].requests_refused,
            )
            for sae in self._saes.directory.local
        ]
        counters = self._server.counters
        http = HttpStatus(
            connections_open=self._server.open_connections,
            requests_unauthorised_total=delivery.requests_unauthorised,
            **{f"{name}_total": value for name, value in dataclasses.asdict(counters).items()},
        )
        return EtsiStatus(
            url=f"https://{self._config.etsi014.listen}",
            saes=saes,
            http=http,
            differences=self._figures.sae_differences,
            keys_unsent_total=delivery.unsent.held_total,
            keys_lost_total=delivery.unsent.lost_total,
        )

    # Housekeeping

    def _note_certificates(self) -> None:
        self._figures.certificates = self._trust.validities
        self._figures.look_at_certificates(time.time())

    async def _keep_fresh(self, notifier: Notifier) -> None:
        told = ""
        while True:
            await trio.sleep(REFRESH_S)
            await self._refresh()
            self._delivery.unsent.forget_old()
            if (headline := self._figures.headline()) != told:
                notifier.status(headline)
                told = headline

    async def _look_after_lock(self) -> None:
        """Take back what is not so any more; apart from `_keep_fresh`, which waits for the store."""
        while True:
            await trio.sleep(REFRESH_S)
            if self._config.node.role == "bob":
                self._receiver.look_after()
            else:
                self._figures.look_after_lock()

    async def _refresh(self) -> None:
        """Bring figures that live in the store up to date."""
        figures = self._figures
        counts = await self._storage.counts()
        pads = await self._storage.pads_left()
        figures.note_store(counts, pads, await self._storage.positions())
        self._liveness.store_answered()
        condition = await self._storage.condition()
        if not condition.serves:
            figures.raise_alarm(AlarmName.STORE_WAITING, f"no key is served: {condition.reason}")
        else:
            figures.clear_alarm(AlarmName.STORE_WAITING)
        if self._conversation is not None:
            round_trip_s = self._conversation.context.session.round_trip_s
            figures.peer = msgspec.structs.replace(figures.peer, rtt_s=round_trip_s)

    async def _keep_witness(self) -> None:
        """Let the witness on another machine follow the store; where it hangs, nothing else does."""
        while True:
            await trio.sleep(WITNESS_PERIOD_S)
            try:
                await trio.to_thread.run_sync(self._store.tell_witness, abandon_on_cancel=True)
            except OSError as error:
                text = f"the witness cannot be written ({error.strerror or error}); mend its mount"
                self._figures.raise_alarm(AlarmName.STORE_WITNESS, text)
            else:
                self._figures.clear_alarm(AlarmName.STORE_WITNESS)

    async def _watch_store(self) -> None:
        """Say that the store hangs, let those go who wait for it, and settle later what they left."""
        while True:
            await trio.sleep(REFRESH_S)
            if (stalled_s := self._storage.stalled_s) >= STALL_S:
                text = (
                    f"the key store has not answered for {stalled_s:.0f} s: its disk hangs, no key is served"
                )
                self._figures.raise_alarm(AlarmName.STORE_STALLED, text)
                self._storage.let_go()
                continue
            self._figures.clear_alarm(AlarmName.STORE_STALLED)
            if self._storage.unsettled:
                self._storage.unsettled = False
                self._gate.end_sessions("the key store hung; the sites settle anew what was under way")

    async def _expire(self) -> None:
        while True:
            for _ in range(round(EXPIRY_PERIOD_S / STORE_RETRY_S)):
                await trio.sleep(STORE_RETRY_S)
                if self._figures.has_alarm(AlarmName.STORE_FAILED):
                    break  # any write shows that it has healed
            self._note_certificates()
            try:
                while expired := await self._storage.expire(self._config.store.key_lifetime_s):
                    log.info("key.expired", keys=expired)
            except StoreUnusable:
                raise
            except LinkDown:
                continue  # a restored store waits for the peer before anything changes
            except StoreError as error:
                self._figures.raise_alarm(AlarmName.STORE_FAILED, str(error))
            else:
                self._figures.clear_alarm(AlarmName.STORE_FAILED)
                self._figures.note_uncleared(self._storage.uncleared)


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
