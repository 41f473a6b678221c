"""The driver ``open-tdc`` as it is; what it yields is also written to the file ``STORM_LEDGER``."""

import os
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path

from qnode_drivers.open_protocol_tdc import OpenTdc
from storm_ledger import LedgerWriter

from qnode.tags.types import TagBlock

__all__ = ["OpenTdc"]

_yielded = OpenTdc.tags
_ledger = LedgerWriter(Path(os.environ["STORM_LEDGER"]))


async def _tags(self: OpenTdc) -> AsyncGenerator[TagBlock, None]:
    """Yield what the driver yields."""
    async with aclosing(_yielded(self)) as blocks:
        async for block in blocks:
            assert self._stream is not None
            _ledger.write(self._stream.epoch, block.times_ps, block.channels, block.lost)
            yield block


OpenTdc.tags = _tags  # type: ignore[method-assign]  # `OpenTdc.open` chooses among its subclasses
