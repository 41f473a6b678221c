"""Alarms: conditions that need attention, shown until they are cleared."""

import time

import structlog

from qnode.operate.status.alarms import AlarmName
from qnode.operate.status.model import Alarm

log = structlog.get_logger()


class Alarms:
    """The alarms of a site, or those of one of its several links: ``link`` is its name then."""

    def __init__(self, link: str | None = None) -> None:
        self._link = link
        self._raised: dict[str, Alarm] = {}

    def raise_alarm(self, name: AlarmName, text: str) -> None:
        """Show an alarm until `clear_alarm`; logged once."""
        raised = self._raised.get(name)
        if raised is None:
            log.warning("alarm.raised", alarm=name, text=text)
        since = raised.since if raised else time.time()
        self._raised[name] = Alarm(name=str(name), since=since, text=text, link=self._link)

    def has_alarm(self, name: AlarmName) -> bool:
        """Return whether an alarm is raised."""
        return name in self._raised

    def clear_alarm(self, name: AlarmName) -> None:
        """End an alarm."""
        if self._raised.pop(name, None) is not None:
            log.info("alarm.cleared", alarm=name)

    def all(self) -> list[Alarm]:
        """Return the raised alarms, oldest first."""
        return list(self._raised.values())
