"""The initiator: decides when the key changes, and leads both ends through the steps of a change."""

from typing import TYPE_CHECKING, Final

import structlog
import trio

from qnode.agent.messages import (
    Activate,
    Alive,
    Cancel,
    Confirm,
    Done,
    Failed,
    Held,
    Load,
    Message,
    Offer,
    Prepare,
    Refused,
    Request,
    Retire,
    short,
)
from qnode.agent.proof import proof, proves
from qnode.errors import KeyManagerError, PeerRefused, ProtocolError, QnodeError, TunnelError

if TYPE_CHECKING:
    from qnode.agent.core import Agent, Session

# Longer than any step of the responder: its key manager's answer, or a call to its encryptor.
ANSWER_LIMIT_S: Final = 30.0
_DIFFERENT_SIGNS: Final = 3

log = structlog.get_logger()


class StepFailed(QnodeError):
    """The other end could not do its part of a change; the message is its reason."""


async def lead(agent: "Agent", session: "Session") -> None:
    """Change the key whenever it is due, until the line is lost (LinkError)."""
    leader = _Leader(agent, session)
    await leader.settle()
    while True:
        await leader.wait_until_due()
        await leader.change()


class _Leader:
    def __init__(self, agent: "Agent", session: "Session") -> None:
        self._agent = agent
        self._session = session
        self._number = 0
        self._different = 0

    async def settle(self) -> None:
        """Decide what becomes of a change that the last line left unfinished; both ends then agree."""
        agent, holding = self._agent, self._agent.holding
        theirs, pending = self._session.peer.active, holding.pending
        if pending is not None:
            agent.schedule.ask(trio.current_time())
            if theirs == pending.key.key_id:
                log.info("key.resumed", key_id=theirs)
                await self._from(self._activate_here)
                if (holding.age_s() or 0.0) >= agent.schedule.stretched_period_s:
                    agent.schedule.ask(trio.current_time())  # the line was away for longer
            elif pending.stage == "activated" and theirs is None:
                # The other agent was restarted after it had activated this key.
                holding.commit()
                await self._retire_here()
            else:
                await holding.unload()
        if holding.active is None or holding.active != theirs:
            agent.schedule.ask(trio.current_time(), surprised=True)
        else:
            await self._retire_there(holding.active)  # the last line may have been lost before that

    async def wait_until_due(self) -> None:
        """Return when a change is to be begun."""
        schedule = self._agent.schedule
        while True:
            now = trio.current_time()
            if now >= schedule.look_at():
                stored = await self._stored()
                now = trio.current_time()
                schedule.looked(now, stored)
                if now >= schedule.begin_at():
                    return
            await self._listen(max(0.0, schedule.look_at() - trio.current_time()))

    async def change(self) -> None:
        """Make one change of key; a failure is kept as the agent's trouble, and pauses the next attempt."""
        await self._from(self._whole)

    async def _from(self, steps: "Steps") -> None:
        """Do the rest of a change from ``steps`` on; if it fails, both ends give up its key."""
        agent = self._agent
        began, agent.changing = trio.current_time(), True
        changes = agent.figures.changes
        try:
            await steps()
            await self._finish(began)
        except (KeyManagerError, TunnelError, StepFailed) as error:
            reason, wish_s = str(error), None
            if isinstance(error, KeyManagerError):
                wish_s = error.retry_after_s
                # Some key managers count in their own way, so one that says 0 was asked all the same.
                if agent.schedule.stored == 0:
                    reason += "; it has no key stored for this pair"
            self._failed(wish_s)
            key_id = agent.holding.pending.key.key_id if agent.holding.pending is not None else None
            log.warning("key.change_failed", key_id=key_id, reason=reason)
            agent.note_trouble("change", reason)
            agent.judge()
            await self._cancel(reason)
        except BaseException:  # the line is lost: a line that breaks at each change must not use up keys
            if agent.figures.changes == changes:
                self._failed(None)
            raise
        finally:
            agent.changing = False

    def _failed(self, wish_s: float | None) -> None:
        self._agent.schedule.failed(trio.current_time(), wish_s)
        self._agent.figures.changes_failed += 1

    async def _whole(self) -> None:
        agent, holding = self._agent, self._agent.holding
        await self._ask(Prepare(number=self._next()))
        await holding.prepare()
        key = await agent.key_manager.new_key(holding.tunnel.key_size_bits)
        agent.figures.keys += 1
        holding.hold(key)
        held = await self._ask(Offer(number=self._next(), key_id=key.key_id))
        name = self._session.name
        if not isinstance(held, Held) or not proves(held.proof, key, name, "responder"):
            raise StepFailed(
                f"the two key managers gave different keys for {key.key_id}; look at both of them"
            )
        own = proof(key, name, "initiator")
        await self._ask(Load(number=self._next(), key_id=key.key_id, proof=own))
        await holding.load()
        await self._activate_both()

    async def _activate_both(self) -> None:
        holding, began = self._agent.holding, trio.current_time()
        pending = holding.of_change()
        pending.stage = "activating"  # from here on the other end may use it
        await self._ask(Activate(number=self._next(), key_id=pending.key.key_id))
        await holding.activate()
        self._agent.figures.note_differed(trio.current_time() - began)

    async def _activate_here(self) -> None:
        if self._agent.holding.of_change().stage != "activated":
            await self._agent.holding.activate()

    async def _finish(self, began: float) -> None:
        """Both ends use the key: have both encryptors confirm it, and remove what came before."""
        agent, holding = self._agent, self._agent.holding
        key_id = holding.of_change().key.key_id
        await self._ask(Confirm(number=self._next(), key_id=key_id))
        await holding.confirm()
        holding.commit()
        agent.figures.last_change_s = trio.current_time() - began
        agent.changed()
        log.info(
            "key.changed",
            key_id=key_id,
            took_s=agent.figures.last_change_s,
            differed_s=agent.figures.last_differed_s,
            proof=holding.proof_of_use,
        )
        await self._retire_here()
        await self._retire_there(key_id)

    async def _retire_there(self, key_id: str) -> None:
        try:
            await self._ask(Retire(number=self._next(), key_id=key_id))
        except StepFailed as error:  # the key has changed; the next change removes more
            log.warning("tunnel.failed", step="retire", key_id=key_id, reason=str(error))

    async def _retire_here(self) -> None:
        try:
            await self._agent.holding.retire()
        except TunnelError as error:
            log.warning("tunnel.failed", step="retire", reason=str(error))

    async def _cancel(self, reason: str) -> None:
        """Have both ends give up the key of the change."""
        pending = self._agent.holding.pending
        key_id = pending.key.key_id if pending is not None else None
        try:
            await self._ask(Cancel(number=self._next(), key_id=key_id, reason=short(reason)))
        except StepFailed as error:
            log.warning("tunnel.failed", step="unload", key_id=key_id, reason=str(error))
        finally:
            await self._agent.holding.unload()

    async def _stored(self) -> int | None:
        try:
            return await self._agent.key_manager.stored_key_count()
        except KeyManagerError as error:
            log.warning("kme.failed", call="status", reason=str(error))
            return None

    def _next(self) -> int:
        self._number += 1
        return self._number

    async def _ask(self, request: Request) -> Message:
        """Send ``request`` and return its answer.

        Raises:
            StepFailed: the other end failed, or did not answer in time.
            LinkError: the line is lost.
        """
        await self._session.line.send(request)
        deadline = trio.current_time() + ANSWER_LIMIT_S
        while (left_s := deadline - trio.current_time()) > 0:
            message = await self._session.receive(left_s)
            match message:
                case Alive():
                    self._agent.note_alive(message)
                case Failed(number=request.number, reason=reason):
                    raise StepFailed(f"{self._agent.terms.peer_name}: {reason}")
                case Done(number=request.number) | Held(number=request.number):
                    return message
                case Done() | Held() | Failed() | None:
                    pass  # the late answer to a step that was given up
                case _:
                    raise self._unexpected(message)
        name = type(request).__name__.lower()
        raise StepFailed(f"{self._agent.terms.peer_name} did not answer {name} within {ANSWER_LIMIT_S:g} s")

    async def _listen(self, longest_s: float) -> None:
        """Take one message, or wait for ``longest_s``."""
        message = await self._session.receive(longest_s)
        match message:
            case Alive():
                self._note_alive(message)
            case Done() | Held() | Failed() | None:
                pass
            case _:
                raise self._unexpected(message)

    def _note_alive(self, message: Alive) -> None:
        """Ask for a change if the other end uses another key; a single sign may be older than the change."""
        agent = self._agent
        agent.note_alive(message)
        if message.active is None and agent.holding.active is None:
            agent.schedule.ask(trio.current_time())  # the first key, or the next one
        agrees = message.active == agent.holding.active
        self._different = 0 if agrees else self._different + 1
        if self._different == _DIFFERENT_SIGNS:
            log.warning("key.differs", here=agent.holding.active, there=message.active)
            agent.schedule.ask(trio.current_time(), surprised=True)

    def _unexpected(self, message: Message | None) -> QnodeError:
        if isinstance(message, Refused):
            return PeerRefused(f"{self._agent.terms.peer_name} refuses: {message.reason}")
        return ProtocolError(f"the responder sent {type(message).__name__}")


if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Steps = Callable[[], Awaitable[None]]
