"""The settlement of open operations at the start of a session, before any other message."""

import msgspec
import structlog
from msgspec import UnsetType

from qnode.errors import FieldError, LinkError, ProtocolError, StoreError
from qnode.keys import MOST_SKIPPED, BlockState, StoreStanding, Waiting
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
    """Settle the operations that an earlier session, or a restored database, left undecided.

    Raises:
        LinkError: the session must end, because this store or the peer's store waits.
        ProtocolError: a message of the peer cannot be decoded.
    """
    await _meet(context)
    await _settle_blocks(context, observer, requests)
    await keys.assignments.resume()
    await keys.tell_losses()


async def _meet(context: BlockContext) -> None:
    """Compare this store with the peer's memory of it; a restored store is voided."""
    peer = context.session.peer
    try:
        memory = msgspec.msgpack.decode(peer.positions, type=PeerMemory)
    except msgspec.DecodeError as error:
        raise ProtocolError(f"positions that cannot be read: {error}") from None
    standing = _standing(peer)
    last_block_id = (await context.store.positions()).last_block_id
    if peer.last_block_id > last_block_id + MOST_SKIPPED:
        raise ProtocolError(f"last_block_id: the peer is at {peer.last_block_id}, after {last_block_id}")
    try:
        voided, condition = await context.store.meet_peer(peer.generation, memory, standing)
    except FieldError as error:
        raise ProtocolError(f"positions that cannot be: {error}") from None
    if voided:
        reason = condition.reason or "the peer remembers a later state than this store"
        log.error("store.voided", reason=reason)
    if not condition.serves:
        raise LinkError(f"this store serves nothing: {condition.reason}")
    if voided:
        # The peer must void its copies before anything else; the next hello states that.
        raise LinkError("this store was voided; connecting again so that the peer learns of it")
    if standing is not None and standing.waits == Waiting.RESTORE:
        raise LinkError(
            "the peer's store serves nothing until a new pre-shared key is loaded; "
            "run qnodectl restore at both sites"
        )


async def _settle_blocks(context: BlockContext, observer: BlockObserver, requests: PeerRequests) -> None:
    """Make prepared but unconfirmed blocks available, or discard them."""
    unconfirmed = await context.store.unconfirmed_blocks()
    if unconfirmed:
        answer = await requests.ask(
            lambda number: BlockStateQuery(request_id=number, block_ids=tuple(unconfirmed))
        )
        if not isinstance(answer, BlockStateAnswer):
            raise ProtocolError("a question for block states was answered by something else")
        states = {state.block_id: state.state for state in answer.states}
        if [*states] != unconfirmed:
            raise ProtocolError("a question for block states was answered for other blocks")
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
                # The peer has used keys of a block that it does not hold now: the peer was restored.
                log.error("block.undecided", block=block_id, reason=str(error))
    observer.settled()


def _standing(peer: Hello) -> StoreStanding | None:
    """Return the peer's statement about its store; None with protocol 1, which has none."""
    if isinstance(peer.since_2, UnsetType) or not peer.since_2.store:
        return None
    try:
        return msgspec.msgpack.decode(peer.since_2.store, type=StoreStanding)
    except msgspec.DecodeError as error:
        raise ProtocolError(f"the state of a store that cannot be read: {error}") from None
