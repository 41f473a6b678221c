"""Runs one front end: store, key delivery, and the interfaces for operators."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import structlog
import trio
from msgspec.structs import replace

import qnode
from qnode import etsi014
from qnode.accepting import open_listeners
from qnode.addresses import host_and_port
from qnode.delivery import ApiLimits, Delivery
from qnode.delivery_server import connection_limits, etsi014_status
from qnode.http import Limits, Server, TlsSettings, read_server_tls
from qnode.operate.control.information import serve_information
from qnode.operate.events.log import set_log_level
from qnode.operate.status.metrics_app import figures_app
from qnode.serve.config import FrontEndConfig, load_front_end
from qnode.serve.status import FrontEndStatus, render_front_end_metrics
from qnode.serve.supply import FrontEndSupply
from qnode.tls import TrustingContext
from qnode.tls_files import refuse_weaker, validities
from qnode.tls_validity import Validity
from qnode.units import CHUNK_BITS

if TYPE_CHECKING:
    from qnode.keys import FrontEndStore

# The store answers within this time, or is given up by its own connection.
LONGEST_CALL_S: Final = 25.0

log = structlog.get_logger()


class RunningFrontEnd:
    """A front end with everything around it; make it inside trio.

    Raises:
        ConfigError: a file that ``config`` names cannot be used.
    """

    def __init__(
        self,
        config: FrontEndConfig,
        path: Path,
        store: "FrontEndStore",
        events: Callable[[int], list[dict[str, Any]]] = lambda count: [],
    ) -> None:
        self.config = config
        self._path = path
        self._events = events
        self.supply = FrontEndSupply(store, config.directory())
        settings, context, self._trust = _read_trust(config)
        # A front end has what the node has agreed ahead: keys of one size, each for one slave.
        limits = ApiLimits(min_key_size_bits=CHUNK_BITS, max_key_size_bits=CHUNK_BITS, max_sae_id_count=0)
        self._delivery = Delivery(
            self.supply.directory, self.supply, limits=limits, simulated=config.front_end.allow_simulated
        )
        self._server = Server(
            etsi014.application(self._delivery), settings, connection_limits(config.etsi014)
        )
        self._server.renew(settings, context)
        self._away: str | None = "starting"
        self._since, self._was_because = time.time(), self.supply.because

    async def start(self, nursery: trio.Nursery) -> None:
        """Run in ``nursery`` until that is cancelled; return when the control socket answers.

        A task raises StoreUnusable if the anchor cannot be written, or knows more than the database.

        Raises:
            ConfigError: the control socket cannot be made.
        """
        operate = self.config.operate
        await nursery.start(
            serve_information, operate.control_socket, "a front end", self.status, self._events
        )
        nursery.start_soon(self.supply.run)
        nursery.start_soon(self._delivery.unsent.run)
        nursery.start_soon(self._serve, self._server, self.config.etsi014.listen, "etsi014.listen")
        if operate.metrics_listen is not None:
            metrics = Server(figures_app(self.status, render_front_end_metrics), None, Limits())
            nursery.start_soon(self._serve, metrics, operate.metrics_listen, "operate.metrics_listen")

    @property
    def is_alive(self) -> bool:
        """Whether the store answers calls, be it by refusing."""
        return trio.current_time() - self.supply.answered_at_s < LONGEST_CALL_S

    def headline(self) -> str:
        """Return the state of the front end in one line."""
        because = self.supply.because
        node = ", the node is away" if self.supply.node_is_away else ""
        return f"waiting: {because}" if because else f"serving{node}"

    def renew(self) -> None:
        """Read the file, encryptors and certificates again, and use them; other changes wait for a restart.

        Raises:
            ConfigError: something cannot be used, or has expired in the place of a valid one; nothing
                changes.
        """
        config = load_front_end(self._path)
        settings, context, trust = _read_trust(config)
        refuse_weaker(self._trust, trust)
        old = self.config
        wanted = {
            "front_end": (config.front_end, old.front_end),
            "store": (config.store, old.store),
            "etsi014.listen": (config.etsi014.listen, old.etsi014.listen),
            "operate.control_socket": (config.operate.control_socket, old.operate.control_socket),
            "operate.metrics_listen": (config.operate.metrics_listen, old.operate.metrics_listen),
        }
        waiting = [name for name, (new, in_force) in wanted.items() if new != in_force]
        directory = config.directory() if config.front_end == old.front_end else self.supply.directory
        self._trust = trust
        self.config = replace(
            old,
            etsi014=replace(config.etsi014, listen=old.etsi014.listen),
            operate=replace(old.operate, log_level=config.operate.log_level),
        )
        self.supply.directory = directory
        self._delivery.renew(directory, max_key_count=self._delivery.limits.max_key_count)
        self._server.renew(settings, context)
        self._server.limit(connection_limits(config.etsi014))
        set_log_level(config.operate.log_level)
        log.info("front_end.reloaded", restart_needed=waiting)

    def status(self) -> FrontEndStatus:
        """Return what the front end says of itself."""
        site, because = self.config.front_end, self.supply.because
        if because != self._was_because:
            self._since, self._was_because = time.time(), because
        return FrontEndStatus(
            version=qnode.__version__,
            at=time.time(),
            name=site.name,
            kme_id=site.kme_id,
            peer_kme_id=site.peer_kme_id,
            since=self._since,
            because=because,
            node_is_away=self.supply.node_is_away,
            etsi014=etsi014_status(self._delivery, self._server, self.config.etsi014.listen, self._away),
            certificates=self._trust,
        )

    async def _serve(self, server: Server, address: str, where: str) -> None:
        host, port = host_and_port(address, where)

        def note(because: str | None) -> None:
            told = because and f"cannot listen on {address}: {because}"
            if told:
                log.warning("listener.waiting", where=where, reason=told)
            if server is self._server:
                self._away = told

        await server.run(await open_listeners(host, port, note))


def _read_trust(config: FrontEndConfig) -> tuple[TlsSettings, TrustingContext, list[Validity]]:
    files = config.etsi014.tls
    settings, context = read_server_tls(files, "etsi014.tls")
    held = validities("etsi014.tls", ca=files.ca, certificate=files.certificate, crl=files.crl)
    return settings, context, held
