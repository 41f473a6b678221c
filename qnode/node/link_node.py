"""One link of a site: its store, its session with the peer, its devices, and its supply of keys.

It does not depend on a site: a site passes it a directory of encryptors, and requests status and keys from
it.
"""

import math
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Never

import msgspec
import structlog
import trio

from qnode.block.outcome import BlockLost
from qnode.block.running_rate import RunningRate
from qnode.choices import ConnectionState, LockState
from qnode.config import SiteConfig
from qnode.delivery import SaeDirectory
from qnode.errors import (
    DeviceError,
    LinkDown,
    LinkError,
    StoreError,
    StoreUnusable,
    first_of,
)
from qnode.keys import Assignment, KeyStore, Loss
from qnode.link.hello import LocalEnd, Standing
from qnode.link.messages import SaesRegistered, StreamRequest
from qnode.link.peers import FailureLog, LinkFailure, connect_to_peer, serve_peer
from qnode.link.protocol import link_for_protocol
from qnode.link.session import Session
from qnode.link.tls import TlsTransport, Transport
from qnode.node.backup import Backups
from qnode.node.calibration.controllers import Controllers
from qnode.node.dialogue.context import BlockContext
from qnode.node.dialogue.tag_order import TagOrder
from qnode.node.link_devices import LinkDevices
from qnode.node.monitoring.randomness import DeviceRandomness, Draw, system_bytes
from qnode.node.monitoring.watch import MonitorWatch
from qnode.node.quantum.alice import AliceSide
from qnode.node.quantum.bob import BobSide
from qnode.node.quantum.receiver import ClickReceiver, Receiver
from qnode.node.quantum.recorder import AliceRecorder, BobRecorder
from qnode.node.quantum.transmitter_port import TransmitterPort
from qnode.node.reload import encryptor_identities
from qnode.node.session.restore_gate import RestoreGate
from qnode.node.session.router import SessionRouter
from qnode.node.session.sae_tables import SaeTables
from qnode.node.status.alarms import Alarms
from qnode.node.status.link_figures import LinkFigures
from qnode.node.status.liveness import Liveness
from qnode.node.supply.async_store import AsyncStore, PeerMemory, runs_of
from qnode.node.supply.key_supply import LinkKeySupply
from qnode.node.supply.rebalance import Demand, rebalance
from qnode.node.supply.stalls import STALL_S, Stalls
from qnode.operate.recording.recordings import Recordings
from qnode.operate.status.alarms import AlarmName
from qnode.peer_tls import PeerContexts

log = structlog.get_logger()

REFRESH_S = 0.5
EXPIRY_PERIOD_S = 60.0
WITNESS_PERIOD_S = 1.0
STORE_RETRY_S = 1.0
FRONT_ENDS_PERIOD_S = 0.25
FRONT_ENDS_IDLE_PERIOD_S = 2.0
HELLO_THREADS = 4


class LinkNode:
    """A running link. One session at a time connects it with its peer.

    ``config``: the configuration of the site from the view of this link. ``others``: the sites at the ends of
    other links. No block begins before ``tested`` is set; until then devices open and the session begins.
    ``transport``: the way to the peer, TLS as configured if None. ``receiver``: the source of clicks at Bob's
    site, the tag source if None.
    """

    def __init__(
        self,
        config: SiteConfig,
        store: KeyStore,
        directory: SaeDirectory,
        alarms: Alarms | None = None,
        others: Collection[str] = (),
        *,
        transport: Transport | None = None,
        receiver: ClickReceiver | None = None,
    ) -> None:
        self._config = config
        self._key_store = store
        self.tested = trio.Event()
        self.store = AsyncStore(store, config.store.most_chunks)
        self.store.key_lifetime_s = config.store.key_lifetime_s
        self.store.on_loss = self._note_loss
        # A site that admits simulated devices always marks its keys as simulated.
        self._simulated = config.node.allow_simulated
        self.figures = LinkFigures(config, alarms)
        self.watch = MonitorWatch(config.monitors, self.figures.note_monitors)
        self.figures.monitors = lambda: self.watch.findings
        self._randomness = None
        if config.randomness is not None:
            failed = partial(self.figures.alarms.raise_alarm, AlarmName.RANDOMNESS_FAILED)
            self._randomness = DeviceRandomness(config.randomness, failed)
        self._draw: Draw = system_bytes if self._randomness is None else self._randomness.draw
        self.liveness = Liveness()
        self._router: SessionRouter | None = None
        self.port = TransmitterPort(self.liveness)
        self._rate = RunningRate(config.link.source.p_z)
        self.recordings = Recordings(
            allowed=config.operate.allow_recording, changed=self.figures.note_recording
        )
        self._bob_recorder = BobRecorder(config, self.recordings, simulated=self._simulated)
        self._alice_recorder = AliceRecorder(config, self.recordings, simulated=self._simulated)
        tag_receiver = Receiver(config, self.figures, self._bob_recorder, self.liveness, self.watch.tags)
        self._receiver: ClickReceiver = receiver or tag_receiver
        self.devices = LinkDevices(config, self.watch, self._randomness, self.port, self._receiver)
        self.figures.devices = lambda: list(self.devices.board.values())
        self.controllers = Controllers(
            config,
            self.figures,
            self.devices.instruments,
            adjustments=tag_receiver.adjustments,
            watch=self.watch,
            last_block=self._last_block,
        )
        self.supply = LinkKeySupply(self.store, self)
        self.gate = RestoreGate(self.store)
        self._demand = Demand()
        self._failure_log = FailureLog()
        self.saes = SaeTables(directory, config.peer.kme_id, self.figures.note_sae_differences, others)
        peer = config.peer
        self.serve_stream: Callable[[bytes], Awaitable[bytes]] | None = None
        """Answers the peer's requests about key streams, if this site has any."""
        self._transport = transport or TlsTransport(
            peer.address, peer.tls, peer.kme_id, encryptor_identities(config)
        )

    @property
    def config(self) -> SiteConfig:
        """The configuration of the site from the view of this link, after the last reload."""
        return self._config

    async def run(self, contexts: PeerContexts) -> Never:
        """Run everything until cancelled; ``contexts``: for TLS with the peer.

        Raises:
            StoreUnusable: the store can no longer be trusted.
        """
        self._transport.renew(contexts, encryptor_identities(self._config))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.devices.run)
            nursery.start_soon(self.keep_link)
            nursery.start_soon(self.controllers.run)
            nursery.start_soon(self._keep_fresh)
            nursery.start_soon(self._look_after_lock)
            nursery.start_soon(self.watch.run)
            if self._config.store.witness is not None:
                nursery.start_soon(self._keep_witness)
        raise AssertionError("its tasks never end by themselves")

    async def keep_link(self) -> Never:
        """Run sessions with the peer, one after another, and supervise the store, until cancelled.

        This is a running link without its devices and without the figures of the store.

        Raises:
            StoreUnusable: the store can no longer be trusted.
        """
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_session)
            nursery.start_soon(self._expire)
            nursery.start_soon(self._watch_store)
            if self._config.store.postgresql is not None:
                nursery.start_soon(self._tend_front_ends)
        raise AssertionError("its tasks never end by themselves")

    def renew(self, config: SiteConfig, directory: SaeDirectory, contexts: PeerContexts) -> None:
        """Apply the result of a reload; this cannot fail."""
        self._config = config
        self.figures.renew(config)
        self.saes.renew(directory)
        self._transport.renew(contexts, encryptor_identities(config))
        self.store.most_chunks = config.store.most_chunks
        self.store.key_lifetime_s = config.store.key_lifetime_s

    def note_stopped(self, because: str) -> None:
        """Show that this link has stopped because its store cannot be used, after the end of `run`."""
        log.error("link.failed", reason=because)
        self.figures.alarms.raise_alarm(
            AlarmName.LINK_FAILED,
            f"this link has stopped, restart the node once its store is mended: {because}",
        )
        self.figures.note_disconnected("the link has stopped")
        self.figures.quantum.lose_lock("the link has stopped")
        self.devices.board.clear()

    async def random_bytes(self, number: int) -> bytes:
        """Return random bytes from the source of the seeds of this link.

        Raises:
            DeviceError: the source is not healthy or not there.
        """
        try:
            return await self._draw(number)
        except BlockLost as because:
            raise DeviceError(str(because)) from None

    def backups(self, config_file: Path | None) -> Backups:
        """Return what makes backups of this link, with the site's file."""
        return Backups(self._key_store, self.store, self._config.link.name, config_file)

    # The link

    async def _keep_session(self) -> None:
        node, peer = self._config.node, self._config.peer
        local = LocalEnd(
            role=node.role,
            kme_id=node.kme_id,
            peer_kme_id=peer.kme_id,
            parameters=self._config.link,
            secrets=self._key_store,
            standing=self._read_standing,
            simulated=self._simulated,
            # A store that hangs must not take the threads that the other links of the site need as well.
            run_sync=partial(trio.to_thread.run_sync, limiter=trio.CapacityLimiter(HELLO_THREADS)),
        )
        keep = (
            partial(serve_peer, connects_from=peer.connects_from) if node.role == "alice" else connect_to_peer
        )
        await keep(local, self._transport, self.hold_session, on_failure=self._note_failure)

    def _read_standing(self) -> Standing:
        """Return the positions of this site, read again for each hello (in a thread)."""
        positions = self._key_store.positions()
        standing = msgspec.structs.replace(self._key_store.standing(), time_of_day_s=time.time())
        memory = PeerMemory(self._key_store.view_of_peer(), runs_of(self._key_store.pad_segments()))
        return Standing(
            last_block_id=positions.last_block_id,
            generation=positions.generation,
            pool_epoch=positions.pool_epoch,
            positions=msgspec.msgpack.encode(memory),
            store=msgspec.msgpack.encode(standing),
        )

    async def hold_session(self, session: Session) -> None:
        """Use one session until it ends.

        Raises:
            LinkError: the session ended, also because the disk is full: the node then tries a new session
                from time to time, until there is space.
        """
        try:
            await self.gate.hold(session, self._converse)
        except* StoreUnusable:
            raise
        except* StoreError as errors:
            text = str(first_of(errors))
            self.figures.alarms.raise_alarm(AlarmName.STORE_FAILED, text)
            raise LinkError(f"the key store refused: {text}") from None

    async def _converse(self, session: Session) -> None:
        await self.tested.wait()
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
                store=self.store,
                tag_order=TagOrder(),
                simulated=self._simulated,
                watch=self.watch,
                draw=self._draw,
            )
            router = SessionRouter(context, self.figures.blocks, nursery)
            router.saes_told = partial(self.saes.hear, router.peer_saes)
            router.serve_stream = self.serve_stream
            self.figures.note_connected(session.peer.software)
            try:
                if context.role == "alice":
                    nursery.start_soon(self._serve_requests, router, nursery)
                    await router.run(
                        AliceSide(router, self.port, self.figures, nursery, self._alice_recorder)
                    )
                else:
                    part = BobSide(router, self.figures, self._rate, nursery, self._bob_recorder)
                    nursery.start_soon(self._receiver.serve, part)
                    nursery.start_soon(self._serve_requests, router, nursery)
                    await router.run(part)
            finally:
                self._router = None
                if context.role == "alice":
                    self.figures.quantum.note_lock(LockState.SEARCHING, "not connected to Bob")

    async def _serve_requests(self, router: SessionRouter, nursery: trio.Nursery) -> None:
        """Let encryptors' requests use the router after earlier operations are settled."""
        await router.settled.wait()
        if router.context.session.knows(SaesRegistered):
            nursery.start_soon(self.saes.tell, router.context.session)
            await router.peer_saes.heard()
        else:
            self.saes.hear(None)
        self._router = router
        try:
            nursery.start_soon(rebalance, self.store, router.keys, self.supply, self._demand)
            await self.supply.keep_stock(self.saes.stocked_pairs, lambda: self._config.etsi014.stock_per_pair)
        finally:
            self._router = None  # also if the session ended just before the router was set

    # The peer's store, for the key supply (`PeerAssignments`)

    @property
    def connected(self) -> bool:
        """Whether there is a session with settled earlier operations, and the peer answers."""
        return self._router is not None and not self._router.keys.assignments.stalled

    @property
    def round_trip_s(self) -> float:
        """The latest measured round trip, queues included; nan while unknown."""
        return math.nan if self._router is None else self._router.context.session.round_trip_s

    @property
    def can_release(self) -> bool:
        """Whether the peer can free assignments."""
        return self._router is not None and self._router.keys.assignments.can_release

    async def announce(self, assignment: Assignment, taken_chunks: int = 0) -> None:
        """Return when the peer holds ``assignment``; raises LinkError, ShareUsedUp."""
        if self._router is None:
            raise LinkError("not connected")
        await self._router.keys.assignments.announce(assignment, taken_chunks)

    def take_back(self, assignment_ids: Sequence[int], *, late: bool = False) -> trio.Event:
        """Release undelivered assignments, in this session if possible."""
        if self._router is not None:
            return self._router.keys.assignments.take_back(assignment_ids, late=late)
        left_to_the_next = trio.Event()
        left_to_the_next.set()
        return left_to_the_next

    # The peer's key streams

    @property
    def peer_has_streams(self) -> bool:
        """Whether there is a session whose protocol knows key streams."""
        return self._router is not None and self._router.context.session.knows(StreamRequest)

    async def ask_about_stream(self, request: bytes) -> bytes:
        """Return the peer's answer about a key stream of its own; empty if it has none.

        Raises:
            LinkDown: the peer cannot be asked, or the session ended before its answer.
        """
        router = self._router
        if router is None or not self.peer_has_streams:
            raise LinkDown("the peer cannot be asked about key streams")
        try:
            return await router.ask_about_stream(request)
        except LinkError as error:
            raise LinkDown(str(error)) from None

    def _note_failure(self, failure: LinkFailure) -> None:
        self._failure_log.write(failure)
        connection = self.figures.peer.connection
        # If a client that was not the peer failed, show the failure only if it could be the peer's own.
        anybodys = failure.address is not None and type(failure.error) is LinkError
        if failure.proven or (connection.state == ConnectionState.DISCONNECTED and not anybodys):
            self.figures.note_disconnected(str(failure.error))

    def _note_loss(self, loss: Loss) -> None:
        """Report an entry that the store could not decrypt, and have the peer discard it too."""
        self.figures.note_loss(loss)
        if self._router is not None:
            self._router.keys.loss_found()

    # Housekeeping

    async def _last_block(self) -> int:
        while True:
            try:
                return (await self.store.positions()).last_block_id
            except StoreUnusable:
                raise
            except StoreError:  # its server is away
                await trio.sleep(STORE_RETRY_S)

    async def _keep_fresh(self) -> None:
        while True:
            await trio.sleep(REFRESH_S)
            await self.refresh()

    async def _look_after_lock(self) -> None:
        """Withdraw outdated figures; separate from `_keep_fresh`, which waits for the store."""
        while True:
            await trio.sleep(REFRESH_S)
            self.controllers.look_after()
            if self._config.node.role == "bob":
                self._receiver.look_after()
            else:
                self.figures.quantum.look_after_lock()

    async def refresh(self) -> None:
        """Update the figures of the store; while its server is away or refuses, show that."""
        try:
            await self._look_at_store()
        except StoreUnusable:
            raise
        except StoreError as error:
            self.liveness.store_answered()  # it did, and a restart of the node would not mend it
            self.figures.alarms.raise_alarm(AlarmName.STORE_FAILED, str(error))

    async def _look_at_store(self) -> None:
        figures = self.figures
        look = await self.store.look()
        self.liveness.store_answered()
        figures.note_store(look.counts, look.pads, look.positions)
        figures.note_audit(look.audit)
        if not look.condition.serves:
            reason = f"no key is served: {look.condition.reason}"
            figures.alarms.raise_alarm(AlarmName.STORE_WAITING, reason)
        else:
            figures.alarms.clear_alarm(AlarmName.STORE_WAITING)
        if self._router is not None:
            figures.note_round_trip(self._router.context.session.round_trip_s)

    async def _tend_front_ends(self) -> None:
        """Admit front ends, and keep keys ahead for what is asked of them."""
        names: tuple[str, ...] = ()
        while True:
            await trio.sleep(FRONT_ENDS_PERIOD_S if names else FRONT_ENDS_IDLE_PERIOD_S)
            try:
                told = await self.store.tend_front_ends()
            except StoreUnusable:
                raise
            except StoreError:
                continue  # `refresh` shows it
            if told.names != names:
                log.info("front_ends.changed", names=told.names, before=names)
                names = told.names
            self.supply.note_front_ends(told)

    async def _keep_witness(self) -> None:
        """Update the witness on another machine; if it hangs, nothing else does."""
        while True:
            await trio.sleep(WITNESS_PERIOD_S)
            try:
                await trio.to_thread.run_sync(self._key_store.tell_witness, abandon_on_cancel=True)
            except StoreUnusable:
                raise
            except StoreError:
                continue  # `refresh` shows it
            except OSError as error:
                text = f"the witness cannot be written ({error.strerror or error}); mend its mount"
                self.figures.alarms.raise_alarm(AlarmName.STORE_WITNESS, text)
            else:
                self.figures.alarms.clear_alarm(AlarmName.STORE_WITNESS)

    async def _watch_store(self) -> None:
        """Report a store that hangs, release the waiting tasks, and settle their operations later."""
        stalls = Stalls(self._config.store)
        while True:
            await trio.sleep(STALL_S / 3)
            stalled_s, alarms = self.store.stalled_s, self.figures.alarms
            if stalled_s < STALL_S and alarms.has_alarm(AlarmName.STORE_FAILED):
                stalls.forget()
            if text := stalls.look(stalled_s, trio.current_time()):
                alarms.raise_alarm(AlarmName.STORE_STALLED, text)
            else:
                alarms.clear_alarm(AlarmName.STORE_STALLED)
            if stalled_s >= STALL_S:
                self.store.let_go()
            elif self.store.unsettled:
                self.store.unsettled = False
                self.gate.end_sessions("the key store was away; the sites settle the open operations again")

    async def _expire(self) -> None:
        while True:
            for _ in range(round(EXPIRY_PERIOD_S / STORE_RETRY_S)):
                await trio.sleep(STORE_RETRY_S)
                if self.figures.alarms.has_alarm(AlarmName.STORE_FAILED):
                    break  # a successful write shows that the store works again
            try:
                while expired := await self.store.expire(self._config.store.key_lifetime_s):
                    log.info("key.expired", keys=expired)
                while pruned := await self.store.prune_audit(self._config.audit.keep_days):
                    log.info("audit.pruned", entries=pruned)
            except StoreUnusable:
                raise
            except LinkDown:  # a restored store changes nothing before the peer has confirmed it, but answers
                self.figures.alarms.clear_alarm(AlarmName.STORE_FAILED)
            except StoreError as error:
                self.figures.alarms.raise_alarm(AlarmName.STORE_FAILED, str(error))
            else:
                self.figures.alarms.clear_alarm(AlarmName.STORE_FAILED)
                self.figures.note_uncleared(self.store.uncleared)
