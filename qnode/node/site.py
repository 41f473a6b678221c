"""One site: its links, key delivery to encryptors, status and control."""

import time
from collections.abc import AsyncIterator, Sequence
from functools import partial
from pathlib import Path

import structlog
import trio

from qnode import etsi004, etsi014, skip
from qnode.audit.operator import acting
from qnode.choices import NodeState
from qnode.config import Etsi004Section, SiteConfig
from qnode.delivery import ApiLimits, Delivery
from qnode.delivery_server import connection_limits, etsi014_status, http_status
from qnode.errors import ConfigError, StoreError, first_of
from qnode.http import Limits, Server
from qnode.keys import KeyStore
from qnode.node.link_node import LinkNode
from qnode.node.listening import serve_at_socket, start_serving
from qnode.node.page import OperatorsPage, check_page, socket_path
from qnode.node.reload import (
    Reload,
    audited,
    encryptor_identities,
    read_again,
    read_directory,
    read_trust,
)
from qnode.node.self_test import SelfTest
from qnode.node.status.alarms import Alarms
from qnode.node.status.site_figures import SiteFigures
from qnode.node.supply.peer_streams import LinkedSites
from qnode.node.supply.site_supply import SiteKeySupply
from qnode.operate.control.answers import Answers, LinkAnswers
from qnode.operate.control.client import Reloaded
from qnode.operate.control.server import serve_control
from qnode.operate.events.log import EventLog, set_log_level
from qnode.operate.notify import Notifier, feed_watchdog, from_environment, tell_status
from qnode.operate.status.alarms import AlarmName
from qnode.operate.status.interfaces import (
    Etsi004Status,
    EtsiStatus,
    SkipStatus,
    StreamStatus,
)
from qnode.operate.status.metrics_app import metrics_app
from qnode.operate.status.model import State
from qnode.peer_tls import PeerContexts

log = structlog.get_logger()

CERTIFICATES_PERIOD_S = 60.0


class SiteNode:
    """The running site: one or more links behind one key delivery interface.

    ``configs``: the configuration of the site from the view of each link; ``stores``: the store of each link.
    """

    def __init__(
        self,
        configs: Sequence[SiteConfig],
        stores: Sequence[KeyStore],
        events: EventLog,
        config_file: Path | None = None,
    ) -> None:
        self._configs = tuple(configs)
        self._config_file = config_file
        self._reloading = trio.Lock()  # a reload on SIGHUP and one on request
        self._events = events
        self._page: Server | None = None
        self._self_test = SelfTest()
        directory = read_directory(configs)
        several = len(configs) > 1
        peers = {config.peer.kme_id for config in configs}
        self._links = [
            LinkNode(
                config,
                store,
                directory,
                Alarms(config.link.name if several else None),
                peers - {config.peer.kme_id},
            )
            for config, store in zip(configs, stores, strict=True)
        ]
        self._figures = SiteFigures(self._site.node, [link.figures for link in self._links])
        self._figures.log_lines_dropped = lambda: events.dropped_lines
        self._figures.self_tested_at = lambda: self._self_test.passed_at
        self._supply = SiteKeySupply(
            {link.config.peer.kme_id: link.supply for link in self._links},
            directory,
            self._links[0].store if self._site.store.postgresql is not None else None,
        )

    @property
    def _site(self) -> SiteConfig:
        """The configuration common to all links, from the view of the first one."""
        return self._configs[0]

    async def run(self, nursery: trio.Nursery, hangups: AsyncIterator[int]) -> None:
        """Run everything in ``nursery`` until that is cancelled; each of ``hangups`` reloads.

        Raises:
            ConfigError: an address or file cannot be used.
            SelfTestFailed: this machine computes wrongly.
        """
        site, notifier = self._site, from_environment()
        self._trust = read_trust(self._configs)
        self._note_certificates()
        for link in self._links:
            await self._look_first(link)
        answers = Answers(
            self._figures.status,
            self._events.recent,
            {
                link.config.link.name: LinkAnswers(
                    link.figures.blocks.table.latest,
                    link.recordings,
                    link.gate.restore,
                    link.controllers.command,
                    link.devices.exchanges,
                    link.store.audit_page,
                    link.store.record_changes,
                    link.backups(self._config_file).save,
                )
                for link in self._links
            },
            partial(self._reload_when_running, notifier),
            self._self_test.run,
        )
        await nursery.start(serve_control, site.operate.control_socket, answers)
        await self._serve_keys(nursery)
        if site.operate.metrics_listen is not None:
            metrics = Server(metrics_app(self._figures.status), None, Limits())
            address = site.operate.metrics_listen
            await start_serving(nursery, metrics, address, "operate.metrics_listen", self._figures)
        await self._serve_page(nursery)
        self._start_telemetry(nursery)
        for link, contexts in zip(self._links, self._trust.link_contexts, strict=True):
            nursery.start_soon(self._run_link, link, contexts)
        nursery.start_soon(tell_status, notifier, self._figures.headline)
        nursery.start_soon(self._delivery.unsent.run)
        nursery.start_soon(self._watch_certificates)
        nursery.start_soon(feed_watchdog, notifier, self._is_alive)
        await self._self_test.run()
        nursery.start_soon(self._self_test.repeat)
        for link in self._links:
            link.tested.set()
        self._figures.state = State(NodeState.RUNNING, time.time())
        names = [config.link.name for config in self._configs]
        log.info("node.started", role=site.node.role, kme_id=site.node.kme_id, link=", ".join(names))
        notifier.ready(self._figures.headline())
        async for _ in hangups:
            with acting("by SIGHUP"):
                await self._reload(notifier)

    async def _serve_page(self, nursery: trio.Nursery) -> None:
        section = self._site.page
        if section is None:
            return
        check_page(section)
        page = OperatorsPage(
            section,
            self._configs,
            self._figures.status,
            {link.config.link.name: link.figures.blocks.table.latest for link in self._links},
            self._may_look,
        )
        self._page = await page.start(nursery)
        path = socket_path(section)
        if path is None:
            await start_serving(nursery, self._page, section.listen, "page.listen", self._figures)
        else:
            await nursery.start(serve_at_socket, self._page, path, "page.listen")

    def _may_look(self, names: list[str]) -> bool:
        """Return whether a certificate with these names is for viewers of the page.

        Those of encryptors and sites are not; with `page.operators`, only those of the named ones are.
        """
        page = self._site.page
        sites = {self._site.node.kme_id, *(config.peer.kme_id for config in self._configs)}
        other_role = not (encryptor_identities(self._site) | sites).isdisjoint(names)
        named = page is None or not page.operators or not set(page.operators).isdisjoint(names)
        return bool(names) and named and not other_role

    def _start_telemetry(self, nursery: trio.Nursery) -> None:
        if self._site.telemetry is None:
            return
        # Imported when it is configured, so that the start of other sites does not wait for an HTTP client.
        from qnode.operate.telemetry.writer import Telemetry

        telemetry = Telemetry(self._site.telemetry, self._figures.status, self._figures.alarms)
        self._figures.telemetry = telemetry.status
        nursery.start_soon(telemetry.run)

    async def _look_first(self, link: LinkNode) -> None:
        """Have the figures of the store from the start; `_run_link` handles the store of one of several."""
        try:
            await link.refresh()
        except StoreError:
            if len(self._links) == 1:
                raise

    async def _run_link(self, link: LinkNode, contexts: PeerContexts) -> None:
        """Run one link. The failure of its store ends the site only if it is the only link.

        Raises:
            StoreError: the store of the only link cannot be used.
        """
        if len(self._links) == 1:
            await link.run(contexts)
        name = link.config.link.name
        structlog.contextvars.bind_contextvars(link=name)
        try:
            await link.run(contexts)
        except* StoreError as errors:
            link.note_stopped(str(first_of(errors)))

    def _is_alive(self) -> bool:
        """Return whether any link is alive: links that hang are shown, but end the node only if all hang."""
        return any(link.liveness.is_alive() for link in self._links)

    # Key delivery

    async def _serve_keys(self, nursery: trio.Nursery) -> None:
        delivery = Delivery(
            self._supply.directory,
            self._supply,
            limits=ApiLimits(max_key_count=self._most_chunks()),
            simulated=self._site.node.allow_simulated,
            peer_shares=self._peer_shares,
        )
        self._delivery = delivery
        interfaces = {"etsi014": (etsi014.application(delivery), self._site.etsi014.listen)}
        if self._site.skip is not None:
            application = skip.application(delivery, self._links[0].random_bytes)
            interfaces["skip"] = (application, self._site.skip.listen)
        tls, limits = self._trust.key_delivery, connection_limits(self._site.etsi014)
        self._servers = {
            name: Server(application, tls, limits) for name, (application, _) in interfaces.items()
        }
        self._figures.etsi014 = lambda: self._etsi_status(delivery)
        if self._site.skip is not None:
            self._figures.skip = self._skip_status
        addresses = {name: address for name, (_, address) in interfaces.items()}
        if self._site.etsi004 is not None:
            streams = self._streams(delivery, self._site.etsi004)
            self._servers["etsi004"] = etsi004.server(streams, tls, limits)
            addresses["etsi004"] = self._site.etsi004.listen
            self._figures.etsi004 = lambda: self._streams_status(streams)
            nursery.start_soon(streams.run)
        for name, address in addresses.items():
            await start_serving(nursery, self._servers[name], address, f"{name}.listen", self._figures)

    def _streams(self, delivery: Delivery, section: Etsi004Section) -> etsi004.StreamCalls:
        """Return the calls of key streams; the peers' requests about streams of this site go to them."""
        links = {link.config.peer.kme_id: link for link in self._links}
        streams = etsi004.StreamCalls(
            delivery,
            self._supply,
            LinkedSites(links),
            most_per_sae=section.most_streams_per_sae,
            idle_limit_s=section.idle_limit_s,
            link_bps=lambda kme_id: _secret_bits_per_s(links.get(kme_id)),
            uris=section.uris,
        )
        for kme_id, link in links.items():
            link.serve_stream = partial(streams.peer_calls.serve, kme_id)
        return streams

    def _most_chunks(self) -> int:
        return max(config.store.most_chunks for config in self._configs)

    def _peer_shares(self, master: str, slave: str) -> bool:
        """Return whether the site of ``slave`` would deliver our ``master``'s keys to it, if known."""
        kme_id = self._delivery.directory.kme_of(slave)
        return any(
            link.saes.peer_shares(master, slave) for link in self._links if link.config.peer.kme_id == kme_id
        )

    # Reload

    async def _reload_when_running(self, notifier: Notifier) -> Reloaded:
        """Reload on request. Raises ConfigError: the node does not run yet."""
        if self._figures.state.state != NodeState.RUNNING:
            raise ConfigError("the node is still starting; try again in a moment")
        return await self._reload(notifier)

    async def _reload(self, notifier: Notifier) -> Reloaded:
        """Apply the present file and certificates, or continue as before and report the reason."""
        async with self._reloading:
            return await self._reload_alone(notifier)

    async def _reload_alone(self, notifier: Notifier) -> Reloaded:
        notifier.reloading()
        try:
            reloaded = await self._reload_or_refuse()
        except ConfigError as error:
            log.error("node.reload_failed", reason=str(error))
            self._figures.alarms.raise_alarm(
                AlarmName.NODE_RELOAD_FAILED, f"the node continues as before the reload: {error}"
            )
            reloaded = Reloaded(fault=str(error))
        notifier.ready(self._figures.headline())
        return reloaded

    async def _reload_or_refuse(self) -> Reloaded:
        assert self._config_file is not None
        found = await trio.to_thread.run_sync(
            read_again, self._config_file, self._configs, self._trust, abandon_on_cancel=True
        )
        if refused := await self._record_reload(found):
            raise ConfigError(f"the audit cannot record it: {refused}")
        self._apply(found)
        log.info("node.reloaded", applied=found.applied, restart_needed=found.waiting)
        return Reloaded(applied=found.applied, waiting=found.waiting)

    async def _record_reload(self, found: Reload) -> str:
        """Record in the audit of each link what the reload is about to change; say why if none could."""
        changes = audited(self._site, found)
        reasons: list[str] = []
        for link in self._links:
            try:
                await link.store.record_changes(*changes)
            except StoreError as error:  # of one of several links, perhaps
                log.error("audit.failed", link=link.config.link.name, reason=str(error))
                reasons.append(str(error))
        return reasons[0] if len(reasons) == len(self._links) else ""

    def _apply(self, found: Reload) -> None:
        """Apply the result of a reload; this cannot fail."""
        trust, figures = found.trust, self._figures
        self._configs, self._trust = found.configs, trust
        for link, config, contexts in zip(self._links, found.configs, trust.link_contexts, strict=True):
            link.renew(config, found.directory, contexts)
        self._supply.directory = found.directory
        for server in self._servers.values():
            server.renew(trust.key_delivery, trust.key_delivery_context)
            server.limit(connection_limits(self._site.etsi014))
        if self._page is not None and trust.page is not None and trust.page_context is not None:
            self._page.renew(trust.page, trust.page_context)
        self._delivery.renew(found.directory, max_key_count=self._most_chunks())
        set_log_level(self._site.operate.log_level)
        self._note_certificates()
        figures.alarms.clear_alarm(AlarmName.NODE_RELOAD_FAILED)
        if found.waiting:
            figures.alarms.raise_alarm(
                AlarmName.NODE_RESTART_NEEDED, f"changed, but not applied: {', '.join(found.waiting)}"
            )
        else:
            figures.alarms.clear_alarm(AlarmName.NODE_RESTART_NEEDED)

    def _etsi_status(self, delivery: Delivery) -> EtsiStatus:
        return etsi014_status(
            delivery,
            self._servers["etsi014"],
            self._site.etsi014.listen,
            self._figures.obstacle("etsi014.listen"),
            [one for link in self._links for one in link.figures.sae_differences],
        )

    def _skip_status(self) -> SkipStatus:
        assert self._site.skip is not None
        return SkipStatus(
            url=f"https://{self._site.skip.listen}",
            away=self._figures.obstacle("skip.listen"),
            http=http_status(self._delivery, self._servers["skip"], "skip"),
        )

    def _streams_status(self, streams: etsi004.StreamCalls) -> Etsi004Status:
        assert self._site.etsi004 is not None
        home = streams.home
        return Etsi004Status(
            address=self._site.etsi004.listen,
            away=self._figures.obstacle("etsi004.listen"),
            http=http_status(self._delivery, self._servers["etsi004"], "etsi004"),
            streams=[
                StreamStatus(
                    stream_id=str(one.stream_id),
                    ends={sae_id: end.value for sae_id, end in one.ends.items()},
                    key_chunk_bytes=one.qos.key_chunk_bytes,
                    allocated_total=one.next_index,
                    waiting=one.waiting,
                )
                for one in home.streams
            ],
            chunks_allocated_total=home.chunks_allocated,
            chunks_left_total=home.chunks_left,
        )

    # Housekeeping

    def _note_certificates(self) -> None:
        self._figures.certificates = self._trust.validities
        self._figures.look_at_certificates(time.time())

    async def _watch_certificates(self) -> None:
        while True:
            await trio.sleep(CERTIFICATES_PERIOD_S)
            self._note_certificates()


def _secret_bits_per_s(link: LinkNode | None) -> float:
    """Return the rate at which a link yields key now; 0 if there is no such link."""
    return 0.0 if link is None else link.figures.blocks.secret_bits_per_s(time.time())
