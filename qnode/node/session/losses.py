"""Telling the peer what this site's store could not open, so that he gives the same up."""

from collections.abc import Awaitable, Callable
from functools import partial

import msgspec

from qnode.errors import LinkError
from qnode.keys import Loss
from qnode.link.messages import KeyAnswer, NodeMessage, VoidLost
from qnode.node.supply.async_store import AsyncStore

Ask = Callable[[Callable[[int], NodeMessage]], Awaitable[KeyAnswer]]


async def tell_losses(store: AsyncStore, ask: Ask) -> None:
    """Have the peer give up all that he does not know of yet; ``ask`` sends a numbered request.

    Raises:
        LinkError: the session ended, or he could not; the next session tries again.
    """
    for loss in await store.open_losses():
        answer = await ask(partial(_request, loss))
        if not answer.ok:
            raise LinkError(f"the peer could not give up what is lost here: {answer.error}")
        await store.finish_loss(loss.loss_id)


def _request(loss: Loss, number: int) -> NodeMessage:
    return VoidLost(request_id=number, loss=msgspec.msgpack.encode(loss))
