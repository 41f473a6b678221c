"""The interface of every reconciler: two state machines that exchange messages and do no I/O."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from qnode.choices import LeakCount
from qnode.distill.bits import Bits
from qnode.errors import QnodeError


class ReconciliationFailed(QnodeError):
    """A block cannot be reconciled within its limits: too many errors; discard it on both sides."""


def leaked_bits(disclosed_bits: int, leak_count: LeakCount) -> int:
    """Return the disclosure of ``disclosed_bits`` parities of Alice under the rule ``leak_count``.

    Under ``both``, each parity of Alice counts once more for Bob's parity of the same set, which Bob's next
    request discloses (an upper bound: some requests disclose less).
    """
    return disclosed_bits if leak_count == "alice" else 2 * disclosed_bits


@dataclass(frozen=True)
class ReconciliationStatistics:
    """The costs of one block so far, as counted by Bob.

    ``disclosed_bits`` counts Alice's parities, check included (f_ec is made from it); ``leaked_bits`` is the
    block's part of lambda_EC under the chosen ``LeakCount``. ``rounds`` counts request and response as one.
    ``corrected_errors`` is the number of bits that the corrected key has changed, 0 until finished.
    """

    disclosed_bits: int
    leaked_bits: int
    rounds: int
    corrected_errors: int
    request_bytes: int
    response_bytes: int


class Responder(Protocol):
    """Alice's side: answers requests about Alice's key and counts the disclosure."""

    def respond(self, message: bytes) -> bytes:
        """Answer one request.

        Raises:
            ProtocolError: the request is malformed, out of turn, or asks for more than an honest run needs.
                The responder answers nothing further.
        """
        ...

    def takes_long(self, message: bytes) -> bool:
        """Return whether the answer to ``message`` may take milliseconds, and so belongs into a thread."""
        ...

    @property
    def disclosed_bits(self) -> int:
        """Parities disclosed so far: the authoritative count, also for answers that never arrived."""
        ...

    @property
    def leaked_bits(self) -> int:
        """``disclosed_bits`` under the chosen ``LeakCount``: the block's part of lambda_EC."""
        ...


class Corrector(Protocol):
    """Bob's side: sends requests, and corrects Bob's key towards Alice's."""

    def start(self) -> bytes:
        """Return the first request."""
        ...

    def receive(self, message: bytes) -> bytes | None:
        """Take the answer to the last request; return the next request, or None when finished.

        Raises:
            ProtocolError: the answer has another length than the question demands.
            ReconciliationFailed: the block has too many errors.
        """
        ...

    def takes_long(self, message: bytes) -> bool:
        """Return whether the processing of ``message`` may take milliseconds (see ``Responder``)."""
        ...

    @property
    def corrected(self) -> Bits:
        """The corrected key; ``RuntimeError`` before ``receive`` has returned None."""
        ...

    @property
    def statistics(self) -> ReconciliationStatistics:
        """The costs so far."""
        ...


@dataclass(frozen=True)
class Method:
    """A method of reconciliation: makes its two sides from key, seed, QBER estimate and leak count."""

    name: str
    responder: Callable[[Bits, bytes, float, LeakCount], Responder]
    corrector: Callable[[Bits, bytes, float, LeakCount], Corrector]
