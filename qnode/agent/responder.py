"""The responder: does its part of each change that the initiator leads."""

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
from qnode.errors import KeyManagerError, PeerRefused, ProtocolError, TunnelError

if TYPE_CHECKING:
    from qnode.agent.core import Agent, Session
    from qnode.agent.holding import Pending, Stage

CHANGE_SILENCE_S: Final = 2.0
# A key manager may learn of a key a little later than the one at the other site.
FETCH_PAUSES_S: Final = (0.2, 0.5, 1.0, 2.0)
FETCH_LIMIT_S: Final = 20.0

log = structlog.get_logger()


class _OutOfStep(TunnelError):
    """The initiator asks for a step that does not fit: the change is gone at this end."""


async def follow(agent: "Agent", session: "Session") -> None:
    """Answer the initiator until the line is lost (LinkError)."""
    follower = _Follower(agent, session)
    await agent.holding.unload_unless_activated()  # of a line that was replaced in the middle of a step
    while True:
        await follower.next()


class _Follower:
    def __init__(self, agent: "Agent", session: "Session") -> None:
        self._agent = agent
        self._session = session

    async def next(self) -> None:
        """Answer one message; give the key of a change up if none comes for `CHANGE_SILENCE_S`."""
        pending = self._agent.holding.pending
        in_change = pending is not None and pending.stage != "activated"
        message = await (self._session.receive(CHANGE_SILENCE_S) if in_change else self._session.receive())
        match message:
            case None:
                if in_change:
                    await self._give_up(f"heard nothing for {CHANGE_SILENCE_S:g} s")
            case Alive():
                self._agent.note_alive(message)
            case Request():
                await self._answer(message)
            case Refused():
                raise PeerRefused(f"{self._agent.terms.peer_name} refuses: {message.reason}")
            case _:
                raise ProtocolError(f"the initiator sent {type(message).__name__}")

    async def _answer(self, request: Request) -> None:
        answer: Message = Done(number=request.number)
        self._agent.changing = not isinstance(request, Retire | Cancel)
        try:
            match request:
                case Prepare():
                    await self._agent.holding.unload_unless_activated()
                    await self._agent.holding.prepare()
                case Offer():
                    answer = Held(number=request.number, proof=await self._fetch(request.key_id))
                case Load():
                    await self._load(request)
                case Activate():
                    self._pending(request.key_id, "loaded")
                    await self._agent.holding.activate()
                case Confirm():
                    await self._confirm(request.key_id)
                case Retire():
                    await self._retire(request.key_id)
                case Cancel():
                    await self._give_up(request.reason)
        except (KeyManagerError, TunnelError) as error:
            answer = Failed(number=request.number, reason=short(error))
            if not isinstance(error, _OutOfStep):
                self._agent.note_trouble("change", str(error))
        await self._session.line.send(answer)

    async def _fetch(self, key_id: str) -> bytes:
        """Take the key that the initiator has taken, and return the proof of it."""
        agent, pending = self._agent, self._agent.holding.pending
        if pending is not None and pending.stage != "activated":
            raise _OutOfStep(f"the change to the key {pending.key.key_id} has not ended")
        with trio.move_on_after(FETCH_LIMIT_S) as limit:
            for pause_s in (*FETCH_PAUSES_S, None):
                try:
                    key = await agent.key_manager.key(key_id, agent.holding.tunnel.key_size_bits)
                    break
                except KeyManagerError as error:
                    if pause_s is None or not error.not_given:
                        raise
                    await trio.sleep(pause_s)
        if limit.cancelled_caught:
            raise KeyManagerError(f"the key manager did not give the key within {FETCH_LIMIT_S:g} s")
        agent.figures.keys += 1
        agent.holding.hold(key)
        return proof(key, self._session.name, "responder")

    async def _load(self, request: Load) -> None:
        pending = self._pending(request.key_id, "held")
        if not proves(request.proof, pending.key, self._session.name, "initiator"):
            raise TunnelError(
                f"the two key managers gave different keys for {request.key_id}; look at both of them"
            )
        await self._agent.holding.load()

    async def _confirm(self, key_id: str) -> None:
        holding = self._agent.holding
        if holding.pending is None and holding.active == key_id:
            return  # confirmed before the last line was lost
        self._pending(key_id, "activated")
        await holding.confirm()

    async def _retire(self, key_id: str) -> None:
        holding = self._agent.holding
        if holding.pending is not None:
            self._pending(key_id, "activated")
            holding.commit()
            try:
                await holding.retire()
            finally:
                self._agent.changed()
                log.info("key.changed", key_id=key_id, proof=holding.proof_of_use)
        elif holding.active != key_id:
            raise _OutOfStep(f"the key {key_id} is not in use here")

    async def _give_up(self, reason: str) -> None:
        """Unload the key of the change, if there is one."""
        agent = self._agent
        agent.changing = False
        agent.figures.changes_failed += 1
        pending = agent.holding.pending
        key_id = pending.key.key_id if pending is not None else None
        log.warning("key.change_failed", key_id=key_id, reason=reason)
        await agent.holding.unload()
        agent.judge()

    def _pending(self, key_id: str, stage: "Stage") -> "Pending":
        """Return the key of the change, which must be this one at this stage."""
        pending = self._agent.holding.pending
        if pending is None or pending.key.key_id != key_id or pending.stage != stage:
            at = "gone" if pending is None or pending.key.key_id != key_id else pending.stage
            raise _OutOfStep(f"the key {key_id} of this change is {at}")
        return pending
