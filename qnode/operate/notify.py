"""Reports the state of the service to systemd (sd_notify), with the few datagrams of its protocol.

Without ``$NOTIFY_SOCKET`` every call does nothing, so the daemon runs equally under systemd and by hand.
"""

import os
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Never

import trio

LONGEST_STATUS_CHARACTERS = 500
STATUS_S = 0.5


@dataclass(frozen=True)
class Notifier:
    """Sends notifications to ``address`` (a leading zero byte: abstract); None: nowhere.

    ``watchdog_s``: the period of the watchdog, None: no watchdog.
    """

    address: str | None = None
    watchdog_s: float | None = None

    def ready(self, status: str = "") -> None:
        """Report that the start (or a reload) is complete."""
        self._send("READY=1", _status(status))

    def status(self, text: str) -> None:
        """Show ``text`` in `systemctl status`."""
        self._send(_status(text))

    def watchdog(self) -> None:
        """Report that the node makes progress."""
        self._send("WATCHDOG=1")

    def reloading(self) -> None:
        """Report that a reload begins; `ready` must follow."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self, status: str = "") -> None:
        """Report that the node stops."""
        self._send("STOPPING=1", _status(status))

    def _send(self, *fields: str) -> None:
        if self.address is None:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)
            try:
                sender.sendto("\n".join(filter(None, fields)).encode(), self.address)
            except OSError:
                # A busy or absent service manager is no reason to stop; its watchdog decides.
                return


def from_environment(environment: Mapping[str, str] | None = None) -> Notifier:
    """Return the notifier for systemd's environment variables."""
    environment = os.environ if environment is None else environment
    address = environment.get("NOTIFY_SOCKET", "")
    if address[:1] not in ("/", "@"):
        return Notifier()
    period_us = environment.get("WATCHDOG_USEC", "")
    ours = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    return Notifier(
        address="\0" + address[1:] if address.startswith("@") else address,
        watchdog_s=int(period_us) / 1e6 if ours and period_us.isdigit() and int(period_us) > 0 else None,
    )


async def feed_watchdog(notifier: Notifier, is_alive: Callable[[], bool]) -> Never:
    """Feed systemd's watchdog at twice its rate while ``is_alive()``; otherwise systemd ends the node.

    This task shows that the event loop runs; ``is_alive`` covers store and pipeline.
    """
    if notifier.watchdog_s is None:
        await trio.sleep_forever()
    while True:
        alive = is_alive()
        if alive:
            notifier.watchdog()
        # Check often whether the node is alive again: after a whole period systemd would have ended it.
        await trio.sleep(notifier.watchdog_s / (2 if alive else 32))


async def tell_status(notifier: Notifier, describe: Callable[[], str]) -> Never:
    """Show what ``describe()`` returns in `systemctl status`, whenever it has changed."""
    told = ""
    while True:
        if (text := describe()) != told:
            notifier.status(text)
            told = text
        await trio.sleep(STATUS_S)


def _status(text: str) -> str:
    """Make the STATUS field; a line end in it would begin a new field."""
    line = " ".join(text.split())[:LONGEST_STATUS_CHARACTERS]
    return f"STATUS={line}" if line else ""
