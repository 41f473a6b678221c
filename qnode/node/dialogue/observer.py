"""The observer of block dialogues; the figures of the node are such an observer."""

from typing import Protocol

from qnode.block.span import BlockSpan
from qnode.distill.block_counts import BlockCounts
from qnode.distill.counts import Pair, XCounts
from qnode.distill.keylength import KeyLength
from qnode.keys import BlockRecord


class BlockObserver(Protocol):
    """Receives the results of blocks."""

    def sifted(self, block_id: int, n_z: Pair, x: XCounts, span: BlockSpan) -> None:
        """Note a block's public counts."""

    def dropped(self, clicks: int) -> None:
        """Count clicks that were found but could not be used: see `Totals.clicks_dropped`."""

    def sampled(self, block_id: int, error_bits: int, measured_bits: int) -> None:
        """Note the errors in a disclosed sample of a block."""

    def verified(self, block_id: int, counts: BlockCounts) -> None:
        """Note the public counts of a verified block."""

    def distilled(
        self, block_id: int, counts: BlockCounts, result: KeyLength, span: BlockSpan, took_s: float
    ) -> None:
        """Note the key that a block is about to give, before its commit; see `accepted`."""

    def accepted(
        self, block_id: int, counts: BlockCounts, result: KeyLength, span: BlockSpan, took_s: float
    ) -> None:
        """Count a block that gave key; ``took_s``: from its end to its key, wall time."""

    def lost(self, block_id: int, reason: str, detail: str) -> None:
        """Count a block that gave no key."""

    def undecided(self, block_id: int, reason: str, detail: str) -> None:
        """Note a block whose commit was interrupted; `resumed` or `settled` decides it."""

    def resumed(self, block_id: int, record: BlockRecord) -> None:
        """Count a block as accepted, because the sites have confirmed it in a new session."""

    def settled(self) -> None:
        """Count all undecided blocks as lost: the new session has confirmed no more of them."""
