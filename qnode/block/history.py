"""The history of earlier blocks: public figures that control the next block."""

from qnode.block.error_rate import ErrorRate
from qnode.block.span_policy import RecentBlocks
from qnode.config import LinkParameters
from qnode.distill.block_counts import BlockCounts

# A measured error rate beyond this is not caused by an eavesdropper: the slots are miscounted.
MISALIGNED_QBER = 0.35


class BlockHistory:
    """The history of one link's blocks since the start of the process.

    ``recent`` determines the span of the next block, ``error_rate`` whether it discloses a sample. Clicks are
    aligned again if ``misaligned_block_id``, the latest block with miscounted slots, has changed.
    """

    def __init__(self, link: LinkParameters) -> None:
        self.recent = RecentBlocks()
        self.error_rate = ErrorRate(link.block.qber_z_limit)
        self.misaligned_block_id = 0

    def sampled(self, block_id: int, error_bits: int, measured_bits: int) -> None:
        """Use the errors in a disclosed sample of a block."""
        if measured_bits:
            self.error_rate.sampled(error_bits / measured_bits)
            self._compare(block_id, error_bits, measured_bits)

    def verified(self, block_id: int, counts: BlockCounts) -> None:
        """Use the counted errors of a verified block."""
        self.error_rate.counted(counts.qber_z)
        self._compare(block_id, int(counts.m_z.total), int(counts.n_z.total))

    def accepted(self, span_s: float, counts: BlockCounts) -> None:
        """Note a block that gave key."""
        self.recent.accepted(span_s, counts)

    def lost(self, reason: str) -> None:
        """Note a block that gave no key."""
        self.error_rate.lost(reason)
        self.recent.lost(reason)

    def _compare(self, block_id: int, error_bits: int, measured_bits: int) -> None:
        if error_bits > MISALIGNED_QBER * measured_bits:
            self.misaligned_block_id = max(self.misaligned_block_id, block_id)
