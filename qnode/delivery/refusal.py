"""Refusals: the reasons why a call gets no keys."""

from collections.abc import Mapping, Sequence
from typing import Any

from qnode.errors import QnodeError


class Refusal(QnodeError):
    """A call that ends without keys: the message for the caller, and the reason for the log only.

    ``internal``: this site is in trouble with its store, and not only short of keys or without its peer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        reason: str,
        details: Sequence[Mapping[str, Any]] = (),
        retry_after_s: int | None = None,
        internal: bool = False,
    ) -> None:
        super().__init__(f"{status} {message}")
        self.status = status
        self.message = message
        self.reason = reason
        self.details = tuple(details)
        self.retry_after_s = retry_after_s
        self.internal = internal


def malformed(message: str, reason: str, *details: Mapping[str, Any]) -> Refusal:
    """Return the 400 for a request that is malformed or outside the limits."""
    return Refusal(400, message, reason=reason, details=details)


def gone() -> Refusal:
    """Return the 400 for a client that has closed its side before the answer."""
    message = "the client has closed its side of the connection; keep it open until the answer arrives"
    return Refusal(400, message, reason="client has disconnected")


def unauthorised(reason: str) -> Refusal:
    """Return the 401 without details; the standard defines no body for it, but clients expect one."""
    return Refusal(401, "not authorised", reason=reason)
