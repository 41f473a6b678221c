"""The transmitter as the link sees it, over the openings of its device."""

from contextlib import aclosing

import structlog
import trio

from qnode.block.outcome import BlockLost
from qnode.devices.protocols import EmissionRun, Transmitter
from qnode.node.quantum.slot_ledger import SlotLedger
from qnode.node.status.liveness import Liveness
from qnode.tags.types import Codes, Slots

log = structlog.get_logger()


class TransmitterPort:
    """The transmitter as the rest of the node sees it: there or not, and its present emission run."""

    def __init__(self, liveness: Liveness | None = None) -> None:
        self._liveness = liveness or Liveness()
        self.transmitter: Transmitter | None = None
        self.run: EmissionRun | None = None
        self.changed = trio.Event()
        self._ledger: SlotLedger | None = None

    async def use(self, transmitter: Transmitter) -> None:
        """Follow an opened transmitter until it is closed."""
        self.transmitter = transmitter
        try:
            async with aclosing(transmitter.runs()) as runs:
                async for run in runs:
                    self._set(run)
                    log.info("emission.started", run=run.run_id)
        finally:
            self.transmitter = None
            self._set(None)

    def _set(self, run: EmissionRun | None) -> None:
        self.run = run
        self.changed.set()
        self.changed = trio.Event()

    def ledger(self, run_id: int) -> SlotLedger:
        """Return the ledger of the present run, kept over sessions.

        Raises:
            BlockLost: this run is over.
        """
        if self.run is None or self.run.run_id != run_id:
            raise BlockLost("emission", "the emission run of this block has ended")
        if self._ledger is None or self._ledger.run_id != run_id:
            self._ledger = SlotLedger(run_id)
        return self._ledger

    def lookup(self, run_id: int, slots: Slots) -> Codes:
        """Return the symbols of ``slots``.

        Raises:
            BlockLost: this run is over.
        """
        transmitter, run = self.transmitter, self.run
        if transmitter is None or run is None or run.run_id != run_id:
            raise BlockLost("emission", "the emission run of this block has ended")
        with self._liveness.step():
            return transmitter.symbols(run_id, slots)
