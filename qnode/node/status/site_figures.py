"""The figures of a site: of the process itself, and of its links; `SiteFigures.status` is the only view."""

import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from qnode import __version__
from qnode.choices import NodeState
from qnode.config import NodeSection
from qnode.node.status.alarms import Alarms
from qnode.node.status.link_figures import LinkFigures
from qnode.operate.status.alarms import AlarmName
from qnode.operate.status.interfaces import Etsi004Status, EtsiStatus, SkipStatus
from qnode.operate.status.model import NodeStatus, State, TelemetryStatus, status_of_links
from qnode.tls_validity import DAY_S, Validity

EXPIRY_ALARM_S = 7 * DAY_S

# Alarms about the process itself: the line of the service manager shows them.
_OF_THE_NODE = frozenset(
    {AlarmName.NODE_RELOAD_FAILED, AlarmName.NODE_RESTART_NEEDED, AlarmName.LISTENER_WAITING}
)


class SiteFigures:
    """The site ``node`` with its ``links``. Only the event loop's thread touches it."""

    def __init__(self, node: NodeSection, links: Sequence[LinkFigures]) -> None:
        self._node = node
        self._links = links
        self.alarms = Alarms()
        self.state = State(NodeState.STARTING, time.time())
        self.certificates: list[Validity] = []
        self.etsi014: Callable[[], EtsiStatus] = EtsiStatus
        self.skip: Callable[[], SkipStatus | None] = lambda: None
        self.etsi004: Callable[[], Etsi004Status | None] = lambda: None
        self.telemetry: Callable[[], TelemetryStatus | None] = lambda: None
        self.log_lines_dropped: Callable[[], int] = int
        self.self_tested_at: Callable[[], float | None] = lambda: None
        self._unheard: dict[str, str] = {}

    def status(self) -> NodeStatus:
        """Return the present view."""
        return status_of_links(
            [link.status() for link in self._links],
            at=time.time(),
            version=__version__,
            kme_id=self._node.kme_id,
            simulated=self._node.allow_simulated,
            state=self.state,
            etsi014=self.etsi014(),
            skip=self.skip(),
            etsi004=self.etsi004(),
            telemetry=self.telemetry(),
            log_lines_dropped=self.log_lines_dropped(),
            self_tested_at=self.self_tested_at(),
            alarms=self.alarms.all(),
            certificates=self.certificates,
        )

    def headline(self) -> str:
        """Return the state of the node in one line, for the service manager."""
        own = [f"{alarm.name}: {alarm.text}" for alarm in self.alarms.all() if alarm.name in _OF_THE_NODE]
        return "; ".join([self.state.state, *own])

    def note_listening(self, where: str, because: str | None) -> None:
        """Note that the node listens on the address of the key ``where``, or the obstacle."""
        if because is None:
            self._unheard.pop(where, None)
        else:
            self._unheard[where] = because
        if self._unheard:
            told = "; ".join(f"{key}: {obstacle}" for key, obstacle in self._unheard.items())
            self.alarms.raise_alarm(AlarmName.LISTENER_WAITING, f"{told}; trying again")
        else:
            self.alarms.clear_alarm(AlarmName.LISTENER_WAITING)

    def obstacle(self, where: str) -> str | None:
        """Return why the node does not listen on the address of the key ``where``; None: no obstacle."""
        return self._unheard.get(where)

    def look_at_certificates(self, at: float) -> None:
        """Show which `certificates` have expired at ``at`` (Unix seconds), or will expire soon."""
        expired = [one for one in self.certificates if one.expired(at)]
        soon = [
            one for one in self.certificates if one not in expired and one.expires_within(EXPIRY_ALARM_S, at)
        ]
        for name, found, verb in (
            (AlarmName.CERTIFICATE_EXPIRED, expired, "expired"),
            (AlarmName.CERTIFICATE_EXPIRING, soon, "expires"),
        ):
            if found:
                told = (
                    f"{one}, {verb} {datetime.fromtimestamp(one.expires_at, UTC):%Y-%m-%d %H:%M} UTC"
                    for one in found
                )
                self.alarms.raise_alarm(name, "; ".join(told))
            else:
                self.alarms.clear_alarm(name)
