"""The port of the link to the transmitter, across the openings of its device."""

import math
from collections.abc import Callable
from contextlib import aclosing

import structlog
import trio

from qnode.block.outcome import BlockLost, Reason
from qnode.devices.contract import emission_run_fault, symbols_fault
from qnode.devices.protocols import EmissionRun, Transmitter
from qnode.errors import DeviceError
from qnode.node.quantum.slot_ledger import SlotLedger
from qnode.node.status.liveness import Liveness
from qnode.tags.types import Codes, Slots

log = structlog.get_logger()


class TransmitterPort:
    """The transmitter for the rest of the node: whether it is open, and its present emission run."""

    def __init__(self, liveness: Liveness | None = None) -> None:
        self._liveness = liveness or Liveness()
        self.transmitter: Transmitter | None = None
        self.run: EmissionRun | None = None
        self.changed = trio.Event()
        self._ledger: SlotLedger | None = None
        self._lookup_failed: Callable[[Exception], object] = _nobody_uses_it

    async def use(self, transmitter: Transmitter) -> None:
        """Follow an opened transmitter until it is closed.

        Raises:
            DeviceError: it violates the contract of a transmitter (`qnode.devices.contract`).
            Exception: ``symbols()`` raised it when a block looked up symbols.
        """
        put, failures = trio.open_memory_channel[Exception](math.inf)
        token = trio.lowlevel.current_trio_token()

        def lookup_failed(error: Exception) -> None:
            token.run_sync_soon(put.send_nowait, error)

        self._lookup_failed = lookup_failed
        self.transmitter = transmitter
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_raise_first, failures)
                await self._follow(transmitter)
                nursery.cancel_scope.cancel()
        finally:
            self._lookup_failed = _nobody_uses_it
            self.transmitter = None
            self._set(None)

    async def _follow(self, transmitter: Transmitter) -> None:
        seen = set[int]()
        async with aclosing(transmitter.runs()) as runs:
            async for run in runs:
                if fault := emission_run_fault(run):
                    raise DeviceError(fault)
                if run.run_id in seen:  # otherwise the restart of the slot numbers would not be noticed
                    raise DeviceError("runs() yielded a run_id again, expected a new random one for each run")
                seen.add(run.run_id)
                self._set(run)
                log.info("emission.started", run=run.run_id)

    def _set(self, run: EmissionRun | None) -> None:
        self.run = run
        self.changed.set()
        self.changed = trio.Event()

    def ledger(self, run_id: int) -> SlotLedger:
        """Return the ledger of the present run, kept across sessions.

        Raises:
            BlockLost: this run has ended.
        """
        if self.run is None or self.run.run_id != run_id:
            raise BlockLost(Reason.EMISSION, "the emission run of this block has ended")
        if self._ledger is None or self._ledger.run_id != run_id:
            self._ledger = SlotLedger(run_id)
        return self._ledger

    def lookup(self, run_id: int, slots: Slots) -> Codes:
        """Return the symbols of ``slots`` (in any thread).

        Raises:
            BlockLost: this run has ended, the transmitter failed and will be opened again, or it is unfit.
        """
        lookup_failed, transmitter, run = self._lookup_failed, self.transmitter, self.run
        if transmitter is None or run is None or run.run_id != run_id:
            raise BlockLost(Reason.EMISSION, "the emission run of this block has ended")
        try:
            with self._liveness.step():
                symbols = transmitter.symbols(run_id, slots)
            if fault := symbols_fault(slots, symbols):
                raise DeviceError(fault)
        except Exception as error:  # noqa: BLE001 - a driver's fault, for its supervisor
            lookup_failed(error)
            raise BlockLost(Reason.EMISSION, "the transmitter's record of symbols cannot be read") from None
        return symbols


def _nobody_uses_it(_error: Exception) -> None:
    """Ignore the error of a transmitter that is no longer used."""


async def _raise_first(failures: trio.MemoryReceiveChannel[Exception]) -> None:
    raise await failures.receive()
