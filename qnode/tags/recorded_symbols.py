"""The symbols that Alice's site recorded: those of announced slots, unknown elsewhere; or a pattern."""

from dataclasses import dataclass

import numpy as np

from qnode.errors import ConfigError
from qnode.tags.site_recording import AliceRecording
from qnode.tags.types import UNKNOWN_SYMBOL, Codes, Slots


@dataclass(frozen=True, eq=False)
class RecordedSymbols:
    """``slots`` ascend, ``codes`` are their symbols. A call looks slots up, from any thread."""

    slots: Slots
    codes: Codes

    def __repr__(self) -> str:
        return f"RecordedSymbols({self.slots.shape[0]} slots)"  # the codes are key material

    def __call__(self, slots: Slots) -> Codes:
        """Return the symbols of ``slots``; unknown where Bob announced no click."""
        n = slots.shape[0]
        codes = np.full(n, UNKNOWN_SYMBOL, np.uint8)
        if not n or not self.slots.shape[0]:
            return codes
        first, last = int(slots[0]), int(slots[-1])
        if last - first == n - 1 and bool(np.all(slots[1:] > slots[:-1])):
            # Alignment requests all slots of a stretch: only few are known, so insert these.
            low, high = np.searchsorted(self.slots, (first, last + 1))
            codes[self.slots[low:high] - first] = self.codes[low:high]
            return codes
        places = np.minimum(np.searchsorted(self.slots, slots), self.slots.shape[0] - 1)
        known = self.slots[places] == slots
        codes[known] = self.codes[places[known]]
        return codes


@dataclass(frozen=True, eq=False)
class RepeatedPattern:
    """A pattern that Alice sent again and again from slot 0 on. A call looks slots up, from any thread."""

    codes: Codes

    def __repr__(self) -> str:
        return f"RepeatedPattern({self.codes.shape[0]} slots)"

    def __call__(self, slots: Slots) -> Codes:
        """Return the symbols of ``slots``; unknown before slot 0."""
        codes: Codes = self.codes[slots % self.codes.shape[0]]
        codes[slots < 0] = UNKNOWN_SYMBOL
        return codes


def recorded_symbols(alice: AliceRecording) -> RecordedSymbols:
    """Return the symbols of a recording, sorted by slot: they are recorded in the order of look-up."""
    order = np.argsort(alice.slots, kind="stable")
    return RecordedSymbols(alice.slots[order], alice.symbols[order])


def repeated_pattern(alice: AliceRecording) -> RepeatedPattern:
    """Return the pattern of a recording that repeats.

    Raises:
        ConfigError: its slots are not all from 0 on, in order.
    """
    if not np.array_equal(alice.slots, np.arange(alice.slots.shape[0])):
        raise ConfigError(f"{alice.folder}: a pattern that repeats has all slots from 0 on, in order")
    return RepeatedPattern(np.asarray(alice.symbols))
