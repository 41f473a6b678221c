"""The context of the dialogue of every block at this site."""

from dataclasses import dataclass, field

from qnode.config import LinkParameters, MonitorsSection, Role
from qnode.link.session import Session
from qnode.node.dialogue.tag_order import TagOrder
from qnode.node.monitoring.randomness import Draw, system_bytes
from qnode.node.monitoring.watch import MonitorWatch
from qnode.node.supply.async_store import AsyncStore


@dataclass(frozen=True)
class BlockContext:
    """The configuration, store and session for the dialogue of every block at this site.

    ``watch``: the monitors of its devices. ``draw``: its random bytes for seeds.
    """

    role: Role
    link: LinkParameters
    session: Session
    store: AsyncStore
    tag_order: TagOrder
    simulated: bool
    watch: MonitorWatch = field(default_factory=lambda: MonitorWatch(MonitorsSection()))
    draw: Draw = system_bytes
