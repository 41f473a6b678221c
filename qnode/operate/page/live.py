"""The live view: encoded once for all viewers, as server-sent events."""

from collections.abc import Callable

import msgspec
import trio

from qnode.operate.page.view import LatestBlocks, view_of
from qnode.operate.status.model import NodeStatus

PERIOD_S = 2.0


def event(data: bytes) -> bytes:
    """Return one server-sent event; ``data`` has no line breaks, as JSON."""
    return b"data: " + data + b"\n\n"


class Live:
    """The latest view. Viewers wait for the next one; one that is slow misses those in between."""

    def __init__(self, provide_status: Callable[[], NodeStatus], latest_blocks: LatestBlocks) -> None:
        self._provide_status = provide_status
        self._latest_blocks = latest_blocks
        self._changed = trio.Event()
        self._latest: tuple[float, bytes] | None = None
        self.viewers = 0

    async def run(self) -> None:
        """Encode a view every `PERIOD_S` while somebody looks, until cancelled."""
        while True:
            await trio.sleep(PERIOD_S)
            if self.viewers:
                self._encode()
                self._changed.set()
                self._changed = trio.Event()

    def present(self) -> bytes:
        """Return the view as JSON, not older than `PERIOD_S`."""
        latest = self._latest
        if latest is None or trio.current_time() - latest[0] > PERIOD_S:
            return self._encode()
        return latest[1]

    async def next(self) -> bytes:
        """Wait for the next view, and return it as JSON."""
        await self._changed.wait()
        return self.present()

    def _encode(self) -> bytes:
        encoded = msgspec.json.encode(view_of(self._provide_status(), self._latest_blocks))
        self._latest = (trio.current_time(), encoded)
        return encoded
