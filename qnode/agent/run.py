"""Runs one agent: tunnel, key manager, line to the other agent, and the interfaces for operators."""

import math
import ssl
import time
from collections.abc import Callable
from typing import Any, Final, Never

import structlog
import trio
from msgspec import Struct

import qnode
from qnode.accepting import open_listeners
from qnode.addresses import host_and_port
from qnode.agent.config import AgentConfig
from qnode.agent.core import Agent, Terms
from qnode.agent.key_age import KeyAge
from qnode.agent.kme import Etsi014KeyManager, key_manager_context
from qnode.agent.line import LineKeeper
from qnode.agent.status import AgentStatus, KeyInUse, LineStatus, StateStatus, render_agent_metrics
from qnode.agent.tunnel import InUse, Tunnel, TunnelKey, TunnelKind
from qnode.errors import TunnelError
from qnode.http import Limits, serve_listeners
from qnode.operate.control.information import serve_information
from qnode.operate.status.metrics_app import figures_app
from qnode.peer_tls import PeerContexts, peer_contexts
from qnode.secret_files import read_secret
from qnode.tls_files import refuse_weaker, validities
from qnode.tls_validity import Validity

FIRST_PAUSE_S: Final = 1.0
LONGEST_PAUSE_S: Final = 30.0
# The watch of an agent goes round once a second; each call to a tunnel in it ends within 15 s.
LONGEST_ROUND_S: Final = 60.0

log = structlog.get_logger()


class LateTunnel:
    """A tunnel that is opened when its encryptor can be controlled; until then each step fails."""

    def __init__(self, kind: TunnelKind, *, first_key_required: bool) -> None:
        self._kind = kind
        self._first_key_required = first_key_required
        self._opened: Tunnel | None = None
        self._reason = "the tunnel is not open yet"

    @property
    def key_size_bits(self) -> int:
        """The size of the tunnel's key."""
        return self._kind.key_size_bits

    async def run(self) -> Never:
        """Open the tunnel, again and again until it can be, and hold it open until cancelled."""
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                async with self._kind.open(first_key_required=self._first_key_required) as self._opened:
                    log.info("tunnel.opened")
                    await trio.sleep_forever()
            except TunnelError as error:
                self._reason = str(error)
            finally:
                self._opened = None
            await trio.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def _tunnel(self) -> Tunnel:
        if self._opened is None:
            raise TunnelError(self._reason)
        return self._opened

    async def prepare(self) -> None:
        """See `Tunnel`."""
        await self._tunnel().prepare()

    async def load(self, key: TunnelKey) -> None:
        """See `Tunnel`."""
        await self._tunnel().load(key)

    async def activate(self, key: TunnelKey) -> None:
        """See `Tunnel`."""
        await self._tunnel().activate(key)

    async def in_use(self) -> InUse | None:
        """See `Tunnel`."""
        return await self._tunnel().in_use()

    async def retire(self, key: TunnelKey) -> None:
        """See `Tunnel`."""
        await self._tunnel().retire(key)

    async def unload(self, key: TunnelKey) -> None:
        """See `Tunnel`."""
        await self._tunnel().unload(key)

    async def take_down(self) -> None:
        """See `Tunnel`."""
        await self._tunnel().take_down()

    async def transferred_bytes(self) -> int:
        """See `Tunnel`."""
        return await self._tunnel().transferred_bytes()


class Trust(Struct, frozen=True):
    """The TLS contexts of an agent, and the validity of the files they were read from."""

    key_manager: ssl.SSLContext
    line: PeerContexts
    validities: list[Validity]


def read_trust(config: AgentConfig) -> Trust:
    """Read all TLS files of an agent. Raises ConfigError."""
    read_secret(config.line.key, "line.key")
    held = []
    for where, files in (("kme", config.kme.tls()), ("line", config.line.tls())):
        held += validities(where, ca=files.ca, certificate=files.certificate, crl=files.crl)
    return Trust(key_manager_context(config.kme), peer_contexts(config.line.tls(), "line"), held)


def terms_of(config: AgentConfig) -> Terms:
    """Return what the agent of ``config`` is told to do."""
    rotation = config.rotation
    return Terms(
        name=config.agent.name,
        role=config.agent.role,
        peer_name=config.line.peer_name,
        kind=config.kind,
        sae_id=config.kme.sae_id,
        peer_sae_id=config.kme.peer_sae_id,
        period_s=rotation.period_s,
        volume_bytes=rotation.volume_bytes,
        longest_s=rotation.longest_s,
        take_down_when_too_old=rotation.when_too_old == "take_down",
        first_key_required=rotation.first_key == "required",
    )


class RunningAgent:
    """An agent with everything around it; make it inside trio.

    Raises:
        ConfigError: a file that ``config`` names cannot be used.
    """

    def __init__(
        self, config: AgentConfig, events: Callable[[int], list[dict[str, Any]]] = lambda count: []
    ) -> None:
        self.config = config
        self._events = events
        self._trust = read_trust(config)
        self.tunnel = LateTunnel(
            config.make_tunnel(), first_key_required=config.rotation.first_key == "required"
        )
        self._key_manager = Etsi014KeyManager(config.kme, self._trust.key_manager)
        self.agent = Agent(
            terms_of(config),
            self.tunnel,
            self._key_manager,
            key_age=KeyAge(config.agent.run_dir / "key-in-use.json"),
        )
        self.line = LineKeeper(config.line, self._trust.line, self.agent)

    async def start(self, nursery: trio.Nursery) -> None:
        """Run in ``nursery`` until that is cancelled; return when the control socket answers.

        The tunnel stays as it is at the end.

        Raises:
            ConfigError: the control socket cannot be made.
        """
        await nursery.start(
            serve_information, self.config.control_socket, "an agent", self.status, self._events
        )
        nursery.start_soon(self.tunnel.run)
        nursery.start_soon(self.agent.run)
        nursery.start_soon(self.line.run)
        if self.config.metrics is not None:
            nursery.start_soon(self._serve_metrics, self.config.metrics.listen)

    @property
    def is_alive(self) -> bool:
        """Whether the watch of the agent goes round."""
        return trio.current_time() - self.agent.watched_at < LONGEST_ROUND_S

    def headline(self) -> str:
        """Return the state of the agent in one line."""
        condition, age_s = self.agent.judge(), self.agent.holding.age_s()
        key = "no key" if age_s is None else f"key {age_s:.0f} s old"
        because = f", {condition.because}" if condition.because else ""
        return f"{condition.state.value}, {key}{because}"

    def renew(self) -> None:
        """Read the TLS files again, and use them for later connections.

        Raises:
            ConfigError: one cannot be used, or has expired in the place of a valid one; nothing changes.
        """
        trust = read_trust(self.config)
        refuse_weaker(self._trust.validities, trust.validities)
        self._trust = trust
        self._key_manager.renew(trust.key_manager)
        self.line.renew(trust.line)
        log.info("agent.reloaded")

    def status(self) -> AgentStatus:
        """Return what the agent says of itself."""
        agent, terms, figures = self.agent, self.agent.terms, self.agent.figures
        condition, current, now = agent.judge(), agent.holding.current, time.time()
        left_s = max(-1e9, min(1e9, agent.due_at() - trio.current_time()))
        return AgentStatus(
            version=qnode.__version__,
            at=now,
            name=terms.name,
            role=terms.role,
            kind=terms.kind,
            state=StateStatus(state=condition.state.value, since=condition.since, because=condition.because),
            key=None
            if current is None
            else KeyInUse(key_id=current.key_id, since=current.since_unix, said=agent.holding.proof_of_use),
            line=LineStatus(
                peer=terms.peer_name,
                up_since=agent.line_up_since,
                trouble=agent.line_trouble,
                peer_trouble=agent.peer_trouble,
            ),
            kme_url=self.config.kme.url,
            period_s=terms.period_s,
            stretched_period_s=agent.schedule.stretched_period_s,
            longest_s=terms.longest_s,
            next_change_at=now + (left_s if math.isfinite(left_s) else 0.0),
            stored_key_count=agent.schedule.stored,
            changes_total=figures.changes,
            changes_failed_total=figures.changes_failed,
            keys_total=figures.keys,
            transferred_bytes_total=figures.transferred_bytes,
            last_change_s=figures.last_change_s,
            last_differed_s=figures.last_differed_s,
            longest_differed_s=figures.longest_differed_s,
            differed_counts=tuple(figures.differed),
            differed_sum_s=figures.differed_sum_s,
            certificates=tuple(self._trust.validities),
        )

    async def _serve_metrics(self, address: str) -> None:
        host, port = host_and_port(address, "metrics.listen")

        def note(because: str | None) -> None:
            if because:
                log.warning("listener.waiting", address=address, reason=because)

        listeners = await open_listeners(host, port, note)
        await serve_listeners(figures_app(self.status, render_agent_metrics), listeners, limits=Limits())
