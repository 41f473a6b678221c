"""Why a call was not answered with keys."""

from collections.abc import Mapping, Sequence
from typing import Any

from qnode.errors import QnodeError


class Refusal(QnodeError):
    """A call that ends without keys: what the caller is told, and the reason that only our log sees."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        reason: str,
        details: Sequence[Mapping[str, Any]] = (),
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(f"{status} {message}")
        self.status = status
        self.message = message
        self.reason = reason
        self.details = tuple(details)
        self.retry_after_s = retry_after_s


def malformed(message: str, reason: str, *details: Mapping[str, Any]) -> Refusal:
    """Return the 400 of a request that cannot be understood or is out of limits."""
    return Refusal(400, message, reason=reason, details=details)


def gone() -> Refusal:
    """Return what a client gets that does not wait for its answer, should it still listen."""
    message = "the client has ended its side of the connection; keep it open until the answer is here"
    return Refusal(400, message, reason="client has gone")


def unauthorised(reason: str) -> Refusal:
    """Return the 401, which tells a caller no more; the standard gives it no body, but clients expect one."""
    return Refusal(401, "not authorised", reason=reason)
