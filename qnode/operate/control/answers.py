"""The sources of what the control socket answers: functions of the site and of its links."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from qnode.audit.entries import AuditPage
from qnode.devices.status import Exchange
from qnode.operate.blocks.row import DecidedBlock
from qnode.operate.control.client import Reloaded, Restored
from qnode.operate.recording.recordings import Recordings
from qnode.operate.status.model import ControllerStatus, NodeStatus


async def _nothing_recorded(*changes: tuple[str, str, str]) -> None:
    """Stand for the audit of a link that has none."""


@dataclass(frozen=True)
class LinkAnswers:
    """The sources of answers about one link.

    ``blocks(count, after)``: the latest decided blocks, of those decided after block ``after`` unless that is
    None. ``recordings``: the recordings of the link. ``restore(preshared_key)`` and
    ``calibrate(controller, command)``: raise QnodeError with the reason if nothing has changed.
    ``exchanges(device)``: the last bytes to and from a device, never key material; None if there is no such
    device. ``audit(chain, after)``: entries of the audit; ``record_changes(*changes)`` adds entries. Both
    raise QnodeError. ``backup()``: a new backup, an open file; raises QnodeError.
    """

    blocks: Callable[[int, int | None], list[DecidedBlock]]
    recordings: Recordings = field(default_factory=Recordings)
    restore: Callable[[bytes], Awaitable[Restored]] | None = None
    calibrate: Callable[[str, str], ControllerStatus] | None = None
    exchanges: Callable[[str], list[Exchange] | None] = lambda device: None
    audit: Callable[[int, int], Awaitable[AuditPage]] | None = None
    record_changes: Callable[..., Awaitable[None]] = _nothing_recorded
    backup: Callable[[], Awaitable[BinaryIO]] | None = None


@dataclass(frozen=True)
class Answers:
    """The sources of answers, called for each request.

    ``events(count)``: the latest log events, oldest first. ``links``: by name; the first one is
    the default. ``reload``: as on SIGHUP; raises QnodeError if it cannot be tried at present.
    ``self_test``: returns its duration in seconds; raises QnodeError if a step gave a wrong result.
    """

    status: Callable[[], NodeStatus]
    events: Callable[[int], list[dict[str, Any]]]
    links: Mapping[str, LinkAnswers]
    reload: Callable[[], Awaitable[Reloaded]] | None = None
    self_test: Callable[[], Awaitable[float]] | None = None

    def of_link(self, name: str) -> LinkAnswers | None:
        """Return the sources of a link; None if there is no link of this name."""
        return self.links.get(name) if name else next(iter(self.links.values()))
