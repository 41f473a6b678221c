"""Reports the undecryptable entries of this site's store, so that the peer discards the same ones."""

from collections.abc import Awaitable, Callable
from functools import partial

import msgspec

from qnode.errors import LinkError
from qnode.keys import Loss
from qnode.link.messages import KeyAnswer, NodeMessage, VoidLost
from qnode.node.supply.async_store import AsyncStore

Ask = Callable[[Callable[[int], NodeMessage]], Awaitable[KeyAnswer]]


async def tell_losses(store: AsyncStore, ask: Ask) -> None:
    """Have the peer discard all entries that were not reported yet; ``ask`` sends a numbered request.

    Raises:
        LinkError: the session ended, or the peer refused; the next session tries again.
    """
    for loss in await store.open_losses():
        answer = await ask(partial(_request, loss))
        if not answer.ok:
            raise LinkError(f"the peer could not give up what is lost here: {answer.error}")
        await store.finish_loss(loss.loss_id)


def _request(loss: Loss, number: int) -> NodeMessage:
    return VoidLost(request_id=number, loss=msgspec.msgpack.encode(loss))
