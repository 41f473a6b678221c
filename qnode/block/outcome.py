"""What may become of a block that gives no key, in words that are counted."""

from enum import StrEnum, unique
from typing import Final

from qnode.distill.check_table import BY_NAME
from qnode.errors import QnodeError


@unique
class Reason(StrEnum):
    """Why a block was discarded; a block that is not plausible has the name of the check that it failed."""

    ASYMMETRY = "asymmetry"
    CONTRADICTION = "contradiction"
    DISAGREEMENT = "disagreement"
    E_VIS = "e_vis"
    EMISSION = "emission"
    KEY_LENGTH = "key_length"
    LINK = "link"
    LOCK = "lock"
    PEER = "peer"
    QBER_Z = "qber_z"
    RECONCILIATION = "reconciliation"
    STORE = "store"
    STORE_FULL = "store_full"
    TOO_FEW_BITS = "too_few_bits"
    TOO_MANY_BITS = "too_many_bits"
    VERIFICATION = "verification"


REASONS: Final = frozenset(BY_NAME) | frozenset(Reason)
# The public counts of the block cannot be those of the link as it is configured.
IMPLAUSIBLE: Final = frozenset(BY_NAME) | {Reason.CONTRADICTION}


def reason_from_peer(word: str) -> str:
    """Return the reason that the peer gave, or `Reason.PEER` for a word that is none."""
    return word if word in REASONS else Reason.PEER


class BlockLost(QnodeError):
    """This block gives no key. ``reason`` is a short stable word, counted; ``detail`` is for people."""

    def __init__(self, reason: str, detail: str = "", *, told: bool = False) -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = str(reason)
        self.detail = detail
        self.told = told  # the peer said it, so it need not be told
