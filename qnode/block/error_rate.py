"""The error rate that Bob expects of a block, so that it need not disclose a sample.

It is that of the latest block that was corrected and verified: there errors are counted, as both sites'
hashes agree, and claimed by nobody. That holds where the block then gave no key, and while others are lost
that say nothing of errors (too few bits, a full store, no lock). What was not verified is an estimate while
its block is worked on. A new emission run, counts that are not plausible, a block that could not be corrected
and a rate beyond the limit leave none.

The estimate chooses only how much Bob asks for first. Every disclosed bit is counted all the same, so a wrong
one, as after errors that Eve made for one block, costs key and no secrecy.
"""

from typing import Final

from qnode.block.outcome import IMPLAUSIBLE, Reason

# After a block that was lost for these reasons nothing is known.
UNKNOWN_AFTER: Final = IMPLAUSIBLE | {Reason.EMISSION, Reason.RECONCILIATION, Reason.VERIFICATION}


class ErrorRate:
    """The estimate of one site; ``limit``: beyond it no block gives key."""

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._value: float | None = None
        self._counted = False

    @property
    def value(self) -> float | None:
        """The estimate, None where a sample must be disclosed."""
        return self._value

    def sampled(self, rate: float) -> None:
        """Take the error rate of a disclosed sample."""
        self._take(rate, counted=False)

    def counted(self, rate: float) -> None:
        """Take the error rate of a verified block."""
        self._take(rate, counted=True)

    def lost(self, reason: str) -> None:
        """Take note that a block gave no key."""
        if reason in UNKNOWN_AFTER or not self._counted:
            self._value = None

    def _take(self, rate: float, *, counted: bool) -> None:
        self._value = rate if rate <= self._limit else None
        self._counted = counted
