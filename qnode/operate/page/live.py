"""The live view: encoded once for all viewers, as server-sent events."""

from collections.abc import Callable

import msgspec
import trio

from qnode.operate.page.view import LatestBlocks, view_of
from qnode.operate.status.model import NodeStatus

PERIOD_S = 2.0
_GOLDEN = 0.6180339887498949


def event(data: bytes) -> bytes:
    """Return one server-sent event; ``data`` has no line breaks, as JSON."""
    return b"data: " + data + b"\n\n"


class Live:
    """The present view. It is encoded at most once in `PERIOD_S`, and never while nobody looks.

    It is encoded in the task of a viewer: an error there ends a connection, and not the node.
    """

    def __init__(self, provide_status: Callable[[], NodeStatus], latest_blocks: LatestBlocks) -> None:
        self._provide_status = provide_status
        self._latest_blocks = latest_blocks
        self._latest: tuple[float, bytes] | None = None
        self._phase = 0.0

    def present(self) -> bytes:
        """Return the view as JSON, younger than `PERIOD_S`."""
        now_s, latest = trio.current_time(), self._latest
        if latest is None or now_s - latest[0] >= PERIOD_S:
            encoded = msgspec.json.encode(view_of(self._provide_status(), self._latest_blocks))
            latest = self._latest = (now_s, encoded)
        return latest[1]

    def first_pause_s(self) -> float:
        """Return how long a new viewer waits for its second view.

        The pauses spread over `PERIOD_S`: many viewers that connect at once, as after a restart, must not
        take the event loop at once ever after.
        """
        self._phase = (self._phase + _GOLDEN) % 1.0
        return self._phase * PERIOD_S
