"""The two directions of the link.

All authenticated data names its direction, so nothing can be reflected to its sender.
"""

from enum import IntEnum

from qnode.config import Role


class Direction(IntEnum):
    """Sender and receiver; the value is the byte that enters tags and codes."""

    ALICE_TO_BOB = 1
    BOB_TO_ALICE = 2

    @property
    def reverse(self) -> "Direction":
        """The other direction."""
        return Direction.BOB_TO_ALICE if self is Direction.ALICE_TO_BOB else Direction.ALICE_TO_BOB


def outgoing_direction(role: Role) -> Direction:
    """Return the direction in which the site with ``role`` sends."""
    return Direction.ALICE_TO_BOB if role == "alice" else Direction.BOB_TO_ALICE
