"""The error rate that Bob expects of a block, so that the block need not disclose a sample.

The estimate is the error rate of the latest block that was corrected and verified. Both sites' hashes agree
there, so its errors are counted, not claimed. The estimate also holds if that block gave no key, and after
later blocks that say nothing about errors (too few bits, a full store, no lock). The rate of an unverified
block is an estimate only during the processing of that block. There is no estimate after a new emission run,
implausible counts, a block that could not be corrected, and a rate beyond the limit.

The estimate affects only the size of Bob's first requests. Every disclosed bit is counted in any case. A
wrong estimate, as after errors that Eve made for one block, therefore costs key and no secrecy.
"""

from typing import Final

from qnode.block.outcome import IMPLAUSIBLE, Reason

# There is no estimate after a block that was lost for these reasons.
UNKNOWN_AFTER: Final = IMPLAUSIBLE | {Reason.EMISSION, Reason.RECONCILIATION, Reason.VERIFICATION}


class ErrorRate:
    """The estimate of one site; beyond ``limit`` no block gives key."""

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._value: float | None = None
        self._counted = False

    @property
    def value(self) -> float | None:
        """The estimate; None if a sample must be disclosed."""
        return self._value

    def sampled(self, rate: float) -> None:
        """Use the error rate of a disclosed sample."""
        self._take(rate, counted=False)

    def counted(self, rate: float) -> None:
        """Use the error rate of a verified block."""
        self._take(rate, counted=True)

    def lost(self, reason: str) -> None:
        """Note that a block gave no key."""
        if reason in UNKNOWN_AFTER or not self._counted:
            self._value = None

    def _take(self, rate: float, *, counted: bool) -> None:
        self._value = rate if rate <= self._limit else None
        self._counted = counted
