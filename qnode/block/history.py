"""What earlier blocks say about the next one: the figures by which a site steers, all of them public."""

from qnode.block.error_rate import ErrorRate
from qnode.block.span_policy import RecentBlocks
from qnode.config import LinkParameters
from qnode.distill.block_counts import BlockCounts

# A measured error rate beyond this is no eavesdropper's: the slots are miscounted.
MISALIGNED_QBER = 0.35


class BlockHistory:
    """The history of one link's blocks since the start of the process.

    ``recent`` chooses the span of the next block, ``error_rate`` whether it discloses a sample. Clicks are
    aligned anew when ``misaligned_block_id``, the latest block whose slots were miscounted, has changed.
    """

    def __init__(self, link: LinkParameters) -> None:
        self.recent = RecentBlocks()
        self.error_rate = ErrorRate(link.block.qber_z_limit)
        self.misaligned_block_id = 0

    def sampled(self, block_id: int, error_bits: int, measured_bits: int) -> None:
        """Take the errors in a disclosed sample of a block."""
        if measured_bits:
            self.error_rate.sampled(error_bits / measured_bits)
            self._compare(block_id, error_bits, measured_bits)

    def verified(self, block_id: int, counts: BlockCounts) -> None:
        """Take the counted errors of a block that is the same at both sites after correction."""
        self.error_rate.counted(counts.qber_z)
        self._compare(block_id, int(counts.m_z.total), int(counts.n_z.total))

    def accepted(self, span_s: float, counts: BlockCounts) -> None:
        """Take a block that gave key."""
        self.recent.accepted(span_s, counts)

    def lost(self, reason: str) -> None:
        """Take a block that gave none."""
        self.error_rate.lost(reason)
        self.recent.lost(reason)

    def _compare(self, block_id: int, error_bits: int, measured_bits: int) -> None:
        if error_bits > MISALIGNED_QBER * measured_bits:
            self.misaligned_block_id = max(self.misaligned_block_id, block_id)
