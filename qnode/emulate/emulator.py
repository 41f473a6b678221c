"""What every emulator is."""

from typing import Protocol

import trio


class Emulator(Protocol):
    """A device as seen from its port."""

    async def serve(self, stream: trio.abc.Stream) -> None:
        """Answer one connection until it ends."""
        ...
