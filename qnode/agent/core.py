"""One agent: what it holds, its conversation with the other agent, and its state.

The initiator leads (`qnode.agent.initiator`), the responder follows (`qnode.agent.responder`). Nothing here
knows sockets, HTTP or a kind of tunnel.
"""

import os
import time
from collections.abc import Callable
from typing import Final, Protocol

import structlog
import trio
from msgspec import Struct

from qnode.agent.figures import Figures
from qnode.agent.holding import Holding
from qnode.agent.initiator import lead
from qnode.agent.key_age import KeyAge
from qnode.agent.messages import (
    NONCE_BYTES,
    VERSION,
    Alive,
    Hello,
    Line,
    Message,
    Refused,
    encode,
    short,
)
from qnode.agent.proof import conversation
from qnode.agent.responder import follow
from qnode.agent.schedule import Schedule
from qnode.agent.state import AgentState, Condition
from qnode.agent.tunnel import Role, Tunnel, TunnelKey
from qnode.errors import LinkError, PeerRefused, ProtocolError, TunnelError, first_of

ALIVE_S: Final = 0.5
LINE_SILENCE_S: Final = 8.0
HELLO_LIMIT_S: Final = 10.0
OVERDUE_S: Final = 5.0  # a change may take so long before its absence is a state
LONGEST_CHANGE_S: Final = 120.0
WATCH_S: Final = 1.0
LOOKS_EVERY: Final = 10  # of the watch: how often the encryptor is asked what it uses, and its bytes

log = structlog.get_logger()


class KeyManager(Protocol):
    """A key manager for one pair of encryptors. Each method raises KeyManagerError."""

    async def stored_key_count(self) -> int:
        """Return how many keys it has for this pair."""
        ...

    async def new_key(self, size_bits: int) -> TunnelKey:
        """Take a new key."""
        ...

    async def key(self, key_id: str, size_bits: int) -> TunnelKey:
        """Take the key that the other end has taken."""
        ...


class Terms(Struct, frozen=True, kw_only=True):
    """What an agent has been told to do; see `qnode.agent.config`."""

    name: str
    role: Role
    peer_name: str
    kind: str
    sae_id: str
    peer_sae_id: str
    period_s: float = 30.0
    volume_bytes: int = 0
    longest_s: float = 600.0
    take_down_when_too_old: bool = True
    first_key_required: bool = True


class Session:
    """A conversation with the other agent, after the hellos; ``name``: what names it in proofs."""

    def __init__(self, line: Line, name: bytes, peer: Hello) -> None:
        self.line = line
        self.name = name
        self.peer = peer
        self._heard_at = trio.current_time()

    async def receive(self, patience_s: float = LINE_SILENCE_S) -> Message | None:
        """Return the next message, None if there is none for ``patience_s``.

        Raises:
            LinkError: the line is lost, or silent for `LINE_SILENCE_S`.
        """
        # Messages may wait if this end was busy: look at least for a moment.
        left_s = max(1.0, self._heard_at + LINE_SILENCE_S - trio.current_time())
        with trio.move_on_after(min(patience_s, left_s)):
            message = await self.line.receive()
            self._heard_at = trio.current_time()
            return message
        if trio.current_time() - self._heard_at >= LINE_SILENCE_S:
            raise LinkError(f"the other agent is silent for {LINE_SILENCE_S:g} s")
        return None


class Agent:
    """One end of a tunnel. `run` watches the tunnel; `converse` holds one conversation at a time."""

    def __init__(
        self,
        terms: Terms,
        tunnel: Tunnel,
        key_manager: KeyManager,
        *,
        wall: Callable[[], float] = time.time,
        key_age: KeyAge | None = None,
    ) -> None:
        self._key_age = key_age or KeyAge(None)
        self.terms = terms
        self.key_manager = key_manager
        self.holding = Holding(tunnel, wall)
        self.schedule = Schedule(terms.period_s, terms.longest_s, trio.current_time())
        self.figures = Figures()
        self.wall = wall
        self.changing = False
        self.line_up_since: float | None = None
        self.line_trouble = "no line to the other agent yet"
        self.peer_trouble = ""
        self.peer_due_at = trio.current_time()
        self._troubles: dict[str, str] = {}
        self.watched_at = trio.current_time()
        self._begun = False
        self._is_down = False
        self._bytes = 0
        self._since_change_bytes = 0
        self._condition = Condition(AgentState.STARVED, wall(), "started, and no key yet")

    async def run(self) -> None:
        """Watch the tunnel until cancelled: its key's age, its bytes, and what the encryptor says."""
        looks = 0
        while True:
            asks = looks % LOOKS_EVERY == 0 or bool(self._troubles.get("tunnel"))
            try:
                if not self._begun:
                    await self._begin()
                elif asks:
                    await self._look()
                if self.terms.volume_bytes or asks:
                    await self._count()
                await self._take_down_when_too_old()
                self.note_trouble("tunnel", "")
            except TunnelError as error:
                self.note_trouble("tunnel", str(error))
            looks += 1
            self.watched_at = trio.current_time()
            self.judge()
            await trio.sleep(WATCH_S)

    async def converse(self, line: Line) -> None:
        """Agree on keys over ``line``, until it is lost or cancelled.

        Raises:
            LinkError: why it is lost; PeerRefused: the two agents do not fit.
        """
        try:
            try:
                with trio.fail_after(HELLO_LIMIT_S):
                    session = await self._greet(line)
            except trio.TooSlowError:
                raise LinkError(f"no hello within {HELLO_LIMIT_S:g} s") from None
            await self._converse(session)
        except LinkError as error:
            self.line_trouble = short(error)
            raise
        finally:
            self.line_up_since = None
            self.changing = False
            self.peer_trouble = ""
            self.judge()

    def note_trouble(self, of: str, reason: str) -> None:
        """Keep the ``reason`` why ``of`` ("tunnel", "change") fails; "": it no longer does."""
        if reason and self._troubles.get(of) != reason:
            log.warning(f"{of}.failed", reason=reason)
        elif not reason and self._troubles.get(of):
            log.info(f"{of}.recovered")
        self._troubles[of] = reason

    @property
    def trouble(self) -> str:
        """Why a change does not come, as this end knows it; "": nothing."""
        return next((reason for reason in self._troubles.values() if reason), "")

    def changed(self) -> None:
        """A change is done at this end."""
        self._is_down = False
        self._since_change_bytes = 0
        current = self.holding.current
        if current is not None and current.key_id is not None:
            self._key_age.remember(current.key_id, current.since_unix)
        self.schedule.changed(trio.current_time())
        # Until the initiator says when the next one is due, and what is wrong now.
        self.peer_due_at, self.peer_trouble = trio.current_time() + self.terms.period_s, ""
        self.figures.changes += 1
        self.note_trouble("change", "")
        self.judge()

    def due_at(self) -> float:
        """Return when the next change is due (`trio.current_time`)."""
        return self.schedule.due_at() if self.terms.role == "initiator" else self.peer_due_at

    def judge(self) -> Condition:
        """Return the present state, and log a new one."""
        found, because = self._judged()
        if found is not self._condition.state:
            log.log(
                20 if found is AgentState.READY else 30, "agent.state", state=found.value, because=because
            )
            self._condition = Condition(found, self.wall(), because)
        elif because != self._condition.because:
            self._condition = Condition(found, self._condition.since, because)
        return self._condition

    def _judged(self) -> tuple[AgentState, str]:
        why = self._why()
        age_s = self.holding.age_s()
        if age_s is None:
            down = "the tunnel is down until a key comes"
            held_down = self.terms.first_key_required or self._is_down
            if held_down and self.holding.last_age_s() is None:
                return AgentState.STARVED, f"no key is in use, {down}" + (f": {why}" if why else "")
            return AgentState.STARVED, "no key is in use" + (f": {why}" if why else "")
        if age_s > self.terms.longest_s:
            old = f"the key is {age_s:.0f} s old, and longest_s is {self.terms.longest_s:g}"
            return AgentState.STARVED, old + (f": {why}" if why else "")
        if tunnel_trouble := self._troubles.get("tunnel"):
            return AgentState.HOLDING, tunnel_trouble
        overdue_s = trio.current_time() - self.due_at()
        if overdue_s > OVERDUE_S or (overdue_s > 0 and why):
            return AgentState.HOLDING, why or "a change of key is overdue"
        stored = self.schedule.stored
        if self.terms.role == "initiator" and self.schedule.stretched_period_s > self.terms.period_s:
            longer = f"a change every {self.schedule.stretched_period_s:.0f} s"
            return AgentState.READY, f"{stored} keys are stored, so that there is {longer}"
        return AgentState.READY, ""

    def _why(self) -> str:
        if self.trouble:
            return self.trouble
        if self.line_up_since is None:
            return f"no line to {self.terms.peer_name}: {self.line_trouble}"
        return f"{self.terms.peer_name}: {self.peer_trouble}" if self.peer_trouble else ""

    async def _begin(self) -> None:
        found, since = await self.holding.look(), self._key_age.since()
        # What no earlier run remembers may have no QKD key; some kinds of tunnels cannot tell.
        if self.terms.first_key_required and (found is None or since is None):
            await self.holding.take_down()
            self._key_age.forget()
            self._is_down = True
        else:
            self.holding.age_from(since)
        self._bytes = await self.holding.transferred_bytes()
        self._begun = True

    async def _look(self) -> None:
        before = self.holding.current
        await self.holding.look()
        if self.holding.current is not before and not self.changing:
            log.warning("tunnel.changed", reason=self.holding.proof_of_use or "there is no tunnel")
            self.schedule.ask(trio.current_time(), surprised=True)

    async def _count(self) -> None:
        count = await self.holding.transferred_bytes()
        passed = count - self._bytes if count >= self._bytes else count
        self._bytes = count
        self.figures.transferred_bytes += passed
        self._since_change_bytes += passed
        if 0 < self.terms.volume_bytes <= self._since_change_bytes and not self.schedule.few:
            self.schedule.ask(trio.current_time())

    async def _take_down_when_too_old(self) -> None:
        age_s = self.holding.last_age_s()
        if age_s is None or age_s <= self.terms.longest_s:
            return
        if self.changing and age_s <= self.terms.longest_s + LONGEST_CHANGE_S:
            return  # the new key is about to come; a change that never ends keeps no old key
        if self.terms.take_down_when_too_old:
            await self.holding.take_down()
            self._key_age.forget()
            self._is_down = True
            log.warning("tunnel.taken_down", age_s=round(age_s), longest_s=self.terms.longest_s)
        self.schedule.ask(trio.current_time())

    async def _greet(self, line: Line) -> Session:
        terms = self.terms
        own = Hello(
            version=VERSION,
            name=terms.name,
            role=terms.role,
            kind=terms.kind,
            key_size_bits=self.holding.tunnel.key_size_bits,
            period_s=terms.period_s,
            sae_id=terms.sae_id,
            peer_sae_id=terms.peer_sae_id,
            nonce=os.urandom(NONCE_BYTES),
            active=self.holding.active,
        )
        await line.send(own)
        found = await line.receive()
        if isinstance(found, Refused):
            raise PeerRefused(f"{terms.peer_name} refuses: {found.reason}")
        if not isinstance(found, Hello):
            raise ProtocolError(f"expected a hello, got {type(found).__name__}")
        for difference in self._differences(own, found):
            await line.send(Refused(reason=short(difference)))
            raise PeerRefused(difference)
        first, second = (own, found) if terms.role == "initiator" else (found, own)
        return Session(line, conversation(encode(first), encode(second)), found)

    def _differences(self, own: Hello, found: Hello) -> list[str]:
        """Return why the two agents do not fit, in words for both sites."""
        pairs: list[tuple[str, object, object]] = [
            ("protocol", own.version, found.version),
            ("agent.name", self.terms.peer_name, found.name),
            ("tunnel.kind", own.kind, found.kind),
            ("a key size in bits of", own.key_size_bits, found.key_size_bits),
            ("rotation.period_s", own.period_s, found.period_s),
            ("kme.sae_id", own.peer_sae_id, found.sae_id),
            ("kme.peer_sae_id", own.sae_id, found.peer_sae_id),
        ]
        if found.role == own.role:
            return [f"{own.name} and {found.name} both have agent.role {own.role}; one must be the other"]
        return [
            f"{found.name} has {what} {theirs!r}, but {own.name} expects {expected!r}"
            for what, expected, theirs in pairs
            if theirs != expected
        ]

    async def _converse(self, session: Session) -> None:
        """Play this agent's role, and say twice a second that it is alive."""
        self.line_up_since, self.line_trouble = self.wall(), ""
        log.info("line.up", peer=session.peer.name)
        self.judge()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._say_alive, session)
                await (lead if self.terms.role == "initiator" else follow)(self, session)
        except BaseExceptionGroup as group:
            error = first_of(group)
            raise error from None
        finally:
            # What the other end cannot have activated is given up; the rest is settled at the next hello.
            pending = self.holding.pending
            kept = ("activating", "activated") if self.terms.role == "initiator" else ("activated",)
            if pending is not None and pending.stage not in kept:
                await self.holding.unload()

    async def _say_alive(self, session: Session) -> None:
        while True:
            due_in_s = None
            if self.terms.role == "initiator":
                due_in_s = max(-1e9, min(1e9, self.schedule.due_at() - trio.current_time()))
            await session.line.send(
                Alive(active=self.holding.active, trouble=short(self.trouble), due_in_s=due_in_s)
            )
            await trio.sleep(ALIVE_S)

    def note_alive(self, found: Alive) -> None:
        """Keep what the other end says of itself."""
        self.peer_trouble = found.trouble
        if found.due_in_s is not None:
            self.peer_due_at = trio.current_time() + found.due_in_s
