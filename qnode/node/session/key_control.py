"""Key control: the requests between the key stores of both sites within a session."""

from typing import TypeVar

import msgspec
import structlog
import trio
from msgspec import UNSET, UnsetType

from qnode.errors import LinkError, ProtocolError, ShareUsedUp, StoreAway, StoreError, StoreUnusable
from qnode.keys import Assignment, Handover, Loss, Release
from qnode.link.messages import (
    Assign,
    GiveAway,
    KeyAnswer,
    ReleaseAssignments,
    VoidAssignments,
    VoidHandover,
    VoidLost,
)
from qnode.node.dialogue.context import BlockContext
from qnode.node.session.assignments import Assignments
from qnode.node.session.losses import tell_losses
from qnode.node.session.requests import PeerRequests

log = structlog.get_logger()

KeyRequest = Assign | VoidAssignments | ReleaseAssignments | GiveAway | VoidHandover | VoidLost
T = TypeVar("T")


class KeyControl:
    """The key control of one session.

    ``accepted_chunks``: the number of chunks that the peer's encryptors got in this session, as far as told.
    """

    def __init__(self, context: BlockContext, requests: PeerRequests, nursery: trio.Nursery) -> None:
        self._context = context
        self._requests = requests
        self._nursery = nursery
        self.assignments = Assignments(context, nursery, requests.ask_for_keys)
        self.accepted_chunks = 0

    async def hand_over(self, handover: Handover) -> bool:
        """Transfer ``handover`` to the peer, or void it; repeat until the result is True.

        Raises:
            LinkError: the session ended.
        """
        content = msgspec.msgpack.encode(handover)
        answer = await self._requests.ask_for_keys(
            lambda number: GiveAway(request_id=number, handover=content)
        )
        if answer.ok:
            await self._context.store.finish_handover(handover.handover_id)
            return True
        log.error("handover.refused", handover=handover.handover_id, reason=answer.error)
        answer = await self._requests.ask_for_keys(
            lambda number: VoidHandover(request_id=number, handover=content)
        )
        if answer.ok:
            await self._context.store.void_handover(handover)
        return answer.ok

    async def serve(self, message: KeyRequest) -> None:
        """Perform a request of the peer at this site's key store, and answer when it is durable.

        Raises:
            StoreAway: whether it was performed is not known; the next session settles it.
        """
        store = self._context.store
        ok, told = True, None
        share_used_up: bool | UnsetType = UNSET
        try:
            if isinstance(message, Assign):
                assignment = _decoded(message.assignment, Assignment)
                by_shares = self._context.session.knows(KeyAnswer, "share_used_up")
                if message.taken_chunks is not UNSET:
                    self.accepted_chunks += message.taken_chunks
                await store.accept_assignment(assignment, by_shares=by_shares)
                if not assignment.stock:
                    self.accepted_chunks += sum(item.count for item in assignment.ranges)
            elif isinstance(message, VoidAssignments):
                for assignment in _decoded(message.assignments, list[Assignment]):
                    await store.void_accepted(assignment)
            elif isinstance(message, ReleaseAssignments):
                await store.release_accepted(_decoded(message.releases, list[Release]))
            elif isinstance(message, GiveAway):
                await store.take_over(_decoded(message.handover, Handover))
            elif isinstance(message, VoidLost):
                await store.accept_loss(_decoded(message.loss, Loss))
            else:
                await store.void_handover(_decoded(message.handover, Handover))
        except StoreAway:
            raise
        except StoreError as error:
            ok, told = False, str(error)[:500]
            share_used_up = isinstance(error, ShareUsedUp) or UNSET
            log.warning("key_control.refused", request=type(message).__name__, reason=told)
        await self._context.session.send(
            KeyAnswer(request_id=message.request_id, ok=ok, error=told, share_used_up=share_used_up)
        )

    def loss_found(self) -> None:
        """Report undecryptable entries of this store to the peer, in this session or the next."""

        async def work() -> None:
            try:
                await self.tell_losses()
            except (ProtocolError, StoreUnusable):
                raise
            except (LinkError, StoreError) as error:
                log.warning("store.loss_open", reason=str(error))

        self._nursery.start_soon(work)

    async def tell_losses(self) -> None:
        """Report undecryptable entries of this store to the peer, if the protocol allows it."""
        if self._context.session.knows(VoidLost):
            await tell_losses(self._context.store, self._requests.ask_for_keys)


def _decoded(content: bytes, kind: type[T]) -> T:
    try:
        return msgspec.msgpack.decode(content, type=kind)
    except msgspec.DecodeError as error:
        raise ProtocolError(f"key control that cannot be read: {error}") from None
