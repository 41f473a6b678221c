"""The progress in a recording, to explain why it contains no block."""

from collections.abc import Iterable, Iterator

import numpy as np

from qnode.config import LinkParameters
from qnode.tags.synchroniser import SyncResult
from qnode.tags.types import OUTCOME_LATE
from qnode.units import PS_PER_S


class Seen:
    """Counts of the results that passed `through`: tag time, and clicks and slots since the first lock."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.z_clicks = 0
        self._first_slot: int | None = None
        self._slots = 0

    def through(self, results: Iterable[SyncResult]) -> Iterator[SyncResult]:
        """Pass ``results`` on and count them."""
        for result in results:
            self.seconds = result.until_ps / PS_PER_S
            self.z_clicks += int(np.count_nonzero(result.clicks.outcomes <= OUTCOME_LATE))
            if self._first_slot is None and len(result.clicks):
                self._first_slot = int(result.clicks.slots[0])
            if self._first_slot is not None:
                self._slots = result.reached - self._first_slot
            yield result

    def why_no_block(self, link: LinkParameters) -> str:
        """Return why no block was complete, and the remedy."""
        wanted, longest_s = link.block.sifted_bits, link.block.longest_s
        block = f"a block of {wanted:,} sifted bits" if wanted != "auto" else "a block"
        block += " ([link.block] sifted_bits)"
        if not self.z_clicks:
            return (
                f"no block: {self.seconds:.3g} s of tags were not enough to lock to Alice's slots; record "
                f"for as long as that and {block} take; if it does not help, look at loss, noise and "
                "[link.source]"
            )
        sifted_per_s = self.z_clicks * link.source.p_z * link.source.qubit_rate_hz / self._slots
        block_s = longest_s if wanted == "auto" else min(longest_s, wanted / sifted_per_s)
        return (
            f"no block: {self.seconds:.3g} s of tags do not hold {block} once the clicks are locked and "
            f"their rate is known; here it takes some {block_s:.3g} s more; record for longer, or "
            "ask for smaller blocks with --config"
        )
