"""What the sites settle at the beginning of a session, before anything else is said."""

import msgspec
import structlog
from msgspec import UnsetType

from qnode.errors import LinkError, ProtocolError, StoreError
from qnode.keys import BlockState, StoreStanding, Waiting
from qnode.link.messages import BlockStateAnswer, BlockStateQuery, Hello
from qnode.node.dialogue.context import BlockContext
from qnode.node.dialogue.observer import BlockObserver
from qnode.node.session.key_control import KeyControl
from qnode.node.session.requests import PeerRequests
from qnode.node.supply.async_store import PeerMemory

log = structlog.get_logger()


async def resume(
    context: BlockContext, observer: BlockObserver, requests: PeerRequests, keys: KeyControl
) -> None:
    """Settle what an earlier session, or a restored database, left undecided.

    Raises:
        LinkError: the session must end: this store or the peer's serves nothing yet.
        ProtocolError: the peer says what cannot be read.
    """
    await _meet(context)
    await _settle_blocks(context, observer, requests)
    await keys.assignments.resume()
    await keys.tell_losses()


async def _meet(context: BlockContext) -> None:
    """Compare this store with what the peer remembers of it; what was restored is voided."""
    peer = context.session.peer
    try:
        memory = msgspec.msgpack.decode(peer.positions, type=PeerMemory)
    except msgspec.DecodeError as error:
        raise ProtocolError(f"positions that cannot be read: {error}") from None
    standing = _standing(peer)
    voided, condition = await context.store.meet_peer(peer.generation, memory, standing)
    if voided:
        reason = condition.reason or "the peer remembers a later state than this store"
        log.error("store.voided", reason=reason)
    if not condition.serves:
        raise LinkError(f"this store serves nothing: {condition.reason}")
    if voided:
        # The peer must void its copies before anything else; it learns of it in the next hello.
        raise LinkError("this store was voided; connecting anew so that the peer hears of it")
    if standing is not None and standing.waits == Waiting.RESTORE:
        raise LinkError(
            "the peer's store serves nothing until a new pre-shared key is loaded; "
            "run qnodectl restore at both sites"
        )


async def _settle_blocks(context: BlockContext, observer: BlockObserver, requests: PeerRequests) -> None:
    """Make available, or give up, what was prepared here and not confirmed."""
    unconfirmed = await context.store.unconfirmed_blocks()
    if unconfirmed:
        answer = await requests.ask(
            lambda number: BlockStateQuery(request_id=number, block_ids=tuple(unconfirmed))
        )
        if not isinstance(answer, BlockStateAnswer):
            raise ProtocolError("a question for block states was answered by something else")
        states = {state.block_id: state.state for state in answer.states}
        for block_id in unconfirmed:
            if states.get(block_id) in (BlockState.PREPARED, BlockState.AVAILABLE):
                record = await context.store.block_record(block_id)
                await context.store.confirm(block_id)
                log.info("block.resumed", block=block_id)
                observer.resumed(block_id, record)
                continue
            try:
                await context.store.void_block(block_id, "the peer does not hold it")
                log.warning("block.void", block=block_id, reason="the peer does not hold it")
            except StoreError as error:
                # The peer has used keys of a block that it says it does not hold: it was restored.
                log.error("block.undecided", block=block_id, reason=str(error))
    observer.settled()


def _standing(peer: Hello) -> StoreStanding | None:
    """Return what the peer says of his store; None of protocol 1, which cannot say it."""
    if isinstance(peer.since_2, UnsetType) or not peer.since_2.store:
        return None
    try:
        return msgspec.msgpack.decode(peer.since_2.store, type=StoreStanding)
    except msgspec.DecodeError as error:
        raise ProtocolError(f"the state of a store that cannot be read: {error}") from None
