"""What may become of a block that gives no key, in words that are counted."""

from qnode.distill.check_table import BY_NAME
from qnode.errors import QnodeError

# Why blocks are discarded, plausibility checks among them, in words that are counted; a peer's other words
# count as "peer".
REASONS = frozenset(BY_NAME) | frozenset(
    {
        "asymmetry",
        "contradiction",
        "disagreement",
        "e_vis",
        "emission",
        "key_length",
        "link",
        "lock",
        "qber_z",
        "reconciliation",
        "store",
        "store_full",
        "too_few_bits",
        "too_many_bits",
        "verification",
    }
)


class BlockLost(QnodeError):
    """This block gives no key. ``reason`` is a short stable word, counted; ``detail`` is for people."""

    def __init__(self, reason: str, detail: str = "", *, told: bool = False) -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail
        self.told = told  # the peer said it, so it need not be told
