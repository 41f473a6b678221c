"""The reasons for which a block gives no key; each reason is counted."""

from enum import unique
from typing import Final

from qnode.choices import Word
from qnode.distill.check_table import BY_NAME
from qnode.errors import QnodeError
from qnode.monitors.table import MONITOR_BY_NAME
from qnode.monitors.trips import UNWATCHED as _UNWATCHED


@unique
class Reason(Word):
    """The reasons for a discard; an implausible block has the name of the failed check as reason.

    So does a block during which a monitor tripped: the name of the monitor.
    """

    ASYMMETRY = "asymmetry", "the bound on the asymmetry between |+> and |-> is above `asymmetry_limit`"
    CONTRADICTION = "contradiction", "no channel gives such counts with these intensities"
    DISAGREEMENT = "disagreement", "the two sites computed different lengths or leaks"
    E_VIS = "e_vis", "the error rate of the interferometer is above `e_vis_limit`, or unknown"
    EMISSION = "emission", "the emission run of the block ended, or its symbols are no longer known"
    INTENSITY = "intensity", "the mean photon numbers were outside their limits, or not measured"
    KEY_LENGTH = "key_length", "fewer secret bits than `minimum_secret_bits`"
    LINK = "link", "the session with the other site ended"
    LOCK = "lock", "there was no lock for longer than a block"
    PEER = "peer", "the other site discarded the block for a reason that this version does not know"
    QBER_Z = "qber_z", "the error rate in Z is above `qber_z_limit`"
    RANDOMNESS = "randomness", "the source of random numbers is not healthy, or not there"
    RECONCILIATION = "reconciliation", "the errors could not be corrected within their limits"
    STORE = "store", "the store refused the key"
    STORE_FULL = "store_full", "the store holds as many chunks as `most_chunks` allows"
    TOO_FEW_BITS = "too_few_bits", "too few sifted bits to give a key"
    TOO_MANY_BITS = "too_many_bits", "more sifted bits or clicks than fit a message"
    UNWATCHED = _UNWATCHED, "a monitored reading of a device was missing for longer than `longest_gap_s`"
    VERIFICATION = "verification", "the two sites differ after correction"


REASONS: Final = frozenset(BY_NAME) | frozenset(MONITOR_BY_NAME) | frozenset(Reason)
# The public counts of the block are impossible for the configured link.
IMPLAUSIBLE: Final = frozenset(BY_NAME) | {Reason.CONTRADICTION}


def reason_from_peer(word: str) -> str:
    """Return the reason stated by the peer, or `Reason.PEER` for an unknown word."""
    return word if word in REASONS else Reason.PEER


class BlockLost(QnodeError):
    """This block gives no key. ``reason``: a short stable word, which is counted; ``detail``: for people."""

    def __init__(self, reason: str, detail: str = "", *, told: bool = False) -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = str(reason)
        self.detail = detail
        self.told = told  # the peer stated it, so it need not be sent to the peer
