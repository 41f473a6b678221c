"""The writer of a node's figures to InfluxDB: a sample at each interval into the spool, from there on.

It never delays the node: threads of its own touch the disk, and a database that hangs keeps only its own task
waiting. A sample is acknowledged when the database has taken or refused for good each of its lines. What is
written again after a crash is the same points. So each sample is stored once, in order; beyond the bound of
the spool the oldest are lost, which the first sample after them tells (`lines_of`).
"""

import contextlib
import functools
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol, TypeVar

import httpx
import structlog
import trio

from qnode.config.telemetry import TelemetrySection
from qnode.errors import ConfigError
from qnode.influxdb import InfluxDb
from qnode.operate.status.alarms import AlarmName
from qnode.operate.status.model import NodeStatus, TelemetryStatus
from qnode.operate.telemetry.sample import lines_of, sample_of
from qnode.secret_files import read_secret
from qnode.spool import Entry, Spool, SpoolUnusable, acknowledged, read_after, set_acknowledged

log = structlog.get_logger()

BATCH: Final = 50
AWAY_ALARM_S: Final = 60.0
LOST_ALARM_S: Final = 3600.0
LONGEST_PAUSE_S: Final = 15.0
DISK_PAUSE_S: Final = 10.0
CLOSE_LIMIT_S: Final = 1.0
MOST_THREADS: Final = 2

T = TypeVar("T")


class Alarming(Protocol):
    """Where alarms are raised and cleared."""

    def raise_alarm(self, name: AlarmName, text: str) -> None:
        """Show an alarm."""

    def clear_alarm(self, name: AlarmName) -> None:
        """End an alarm."""


def database_of(section: TelemetrySection) -> InfluxDb:
    """Return the database of a table `[telemetry]`.

    Raises:
        ConfigError: a file of the table cannot be used.
    """
    tls = None
    if section.ca is not None:
        try:
            tls = ssl.create_default_context(cafile=section.ca)
        except OSError as error:
            raise ConfigError(f"telemetry.ca: {section.ca}: {error.strerror or error}") from None
    password = _secret(section.password, "telemetry.password")
    token = _secret(section.token, "telemetry.token")
    try:
        return InfluxDb(
            section.url,
            section.database,
            precision="ns",
            user=section.user or "",
            password=password,
            token=token,
            tls=tls,
        )
    except (httpx.InvalidURL, ValueError) as error:
        raise ConfigError(f"telemetry.url: {section.url}: {error}") from None


def _secret(path: Path | None, where: str) -> str:
    if path is None:
        return ""
    text = read_secret(path, where).decode("ascii", errors="replace").strip()
    if not text or not text.isascii() or not text.isprintable():
        raise ConfigError(f"{where}: {path}: expected one line of printable ASCII characters")
    return text


class Telemetry:
    """Writes the figures that ``provide`` returns as the table `[telemetry]` says.

    Raises:
        ConfigError: a file of the table cannot be used.
    """

    def __init__(
        self, section: TelemetrySection, provide: Callable[[], NodeStatus], alarms: Alarming
    ) -> None:
        self._section, self._provide, self._alarms = section, provide, alarms
        self._database = database_of(section)
        self._limiter = trio.CapacityLimiter(MOST_THREADS)
        self._more = trio.Event()
        self._away_since: float | None = None
        self._lost_at: float | None = None
        self._last = self._acknowledged = 0
        self._stored = self._lost = self._refused = 0
        self._last_stored_at: float | None = None
        self._away = ""

    def status(self) -> TelemetryStatus:
        """Return the present figures."""
        return TelemetryStatus(
            url=self._section.url,
            away=self._away or None,
            waiting=max(0, self._last - self._acknowledged),
            stored_total=self._stored,
            lost_total=self._lost,
            refused_lines_total=self._refused,
            last_stored_at=self._last_stored_at,
        )

    async def run(self) -> None:
        """Sample and write until cancelled."""
        spool = await self._opened()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._sample_on_and_on, spool)
                nursery.start_soon(self._drain, spool)
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + CLOSE_LIMIT_S):
                with contextlib.suppress(OSError):
                    await self._in_thread(spool.close)
                await self._database.aclose()

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await trio.to_thread.run_sync(work, abandon_on_cancel=True, limiter=self._limiter)

    async def _opened(self) -> Spool:
        folder, most_bytes = self._section.spool, self._section.spool_bytes
        while True:
            try:
                spool = await self._in_thread(lambda: Spool(folder, most_bytes))
                known = await self._in_thread(lambda: acknowledged(folder))
            except (OSError, SpoolUnusable) as error:
                self._alarms.raise_alarm(AlarmName.TELEMETRY_FAILED, f"{folder}: {_words(error)}")
                await trio.sleep(DISK_PAUSE_S)
                continue
            self._alarms.clear_alarm(AlarmName.TELEMETRY_FAILED)
            self._last, self._acknowledged = spool.last.number if spool.last else known, known
            return spool

    # From the node to the spool

    async def _sample_on_and_on(self, spool: Spool) -> None:
        interval_s, due = self._section.interval_s, trio.current_time()
        while True:
            await self._sample(spool)
            due += interval_s
            late = int(max(0.0, trio.current_time() - due) // interval_s)
            if late:
                due += late * interval_s
                self._note_lost(late, "the disk or this machine was too slow for them")
            self._clear_old_loss()
            await trio.sleep_until(due)

    async def _sample(self, spool: Spool) -> None:
        status, at_ns = self._provide(), time.time_ns()
        try:
            entry = await self._in_thread(lambda: _kept(spool, status, at_ns))
        except (OSError, ValueError) as error:
            self._note_lost(1, f"{self._section.spool}: {_words(error)}")
            self._alarms.raise_alarm(AlarmName.TELEMETRY_FAILED, f"{self._section.spool}: {_words(error)}")
            return
        self._alarms.clear_alarm(AlarmName.TELEMETRY_FAILED)
        self._last = entry.number
        self._more.set()

    def _note_lost(self, samples: int, because: str) -> None:
        self._lost += samples
        self._note_loss(f"{self._lost} samples since the start, the last ones: {because}")

    def _note_loss(self, text: str) -> None:
        self._lost_at = trio.current_time()
        self._alarms.raise_alarm(AlarmName.TELEMETRY_LOST, text)

    def _clear_old_loss(self) -> None:
        if self._lost_at is not None and trio.current_time() - self._lost_at > LOST_ALARM_S:
            self._lost_at = None
            self._alarms.clear_alarm(AlarmName.TELEMETRY_LOST)

    # From the spool to the database

    async def _drain(self, spool: Spool) -> None:
        while True:
            self._more = trio.Event()
            try:
                while entries := await self._in_thread(
                    functools.partial(read_after, spool.folder, self._acknowledged, BATCH)
                ):
                    await self._store(entries, spool)
            except OSError as error:
                self._alarms.raise_alarm(AlarmName.TELEMETRY_FAILED, f"{spool.folder}: {_words(error)}")
                await trio.sleep(DISK_PAUSE_S)
                continue
            await self._more.wait()

    async def _store(self, entries: list[Entry], spool: Spool) -> None:
        lines: list[str] = []
        before, lost = self._acknowledged, 0
        for entry in entries:
            try:
                lines += lines_of(entry, spool.identity, before)
            except ValueError:  # of another version
                self._refused += 1
            lost += entry.number - before - 1
            before = entry.number
        refused = await self._database.write_until_taken(lines, self._tell_away, LONGEST_PAUSE_S)
        self._tell_taken(lines, refused)
        if lost:
            self._note_lost(lost, "the spool was full, or damaged")
        await self._in_thread(lambda: set_acknowledged(spool.folder, before))
        self._acknowledged = before
        self._stored += len(entries)
        self._last_stored_at = time.time()

    def _tell_away(self, because: str) -> None:
        now_s = trio.current_time()
        if self._away_since is None:
            self._away_since = now_s
            log.warning("telemetry.away", url=self._section.url, reason=because)
        self._away = because
        if now_s - self._away_since >= AWAY_ALARM_S:
            self._alarms.raise_alarm(
                AlarmName.TELEMETRY_AWAY, f"{self._section.url}: {because}; samples wait in the spool"
            )

    def _tell_taken(self, lines: list[str], refused: dict[int, str]) -> None:
        if self._away_since is not None:
            log.info("telemetry.returned", away_s=trio.current_time() - self._away_since)
        self._away_since, self._away = None, ""
        self._alarms.clear_alarm(AlarmName.TELEMETRY_AWAY)
        self._refused += len(refused)
        for place, words in list(refused.items())[:1]:
            log.error("telemetry.refused", lines=len(refused), first=lines[place], reason=words)
            self._note_loss(
                f"{self._refused} lines refused by the database since the start, the last: {words}"
            )


def _kept(spool: Spool, status: NodeStatus, at_ns: int) -> Entry:
    """Append a sample, and return when it is on the disk."""
    entry = spool.append(sample_of(status, at_ns))
    spool.sync()
    return entry


def _words(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
