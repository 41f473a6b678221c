"""The context of the dialogue of every block at this site."""

from dataclasses import dataclass

from qnode.config import LinkParameters, Role
from qnode.link.session import Session
from qnode.node.dialogue.tag_order import TagOrder
from qnode.node.supply.async_store import AsyncStore


@dataclass(frozen=True)
class BlockContext:
    """The configuration, store and session for the dialogue of every block at this site."""

    role: Role
    link: LinkParameters
    session: Session
    store: AsyncStore
    tag_order: TagOrder
    simulated: bool
