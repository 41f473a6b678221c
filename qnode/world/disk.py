"""A site's disk, on which the real key store writes, and which can lose what nobody flushed.

What survives a power cut is what was flushed before it: of SQLite's log every commit at ``synchronous =
FULL`` and, at a lower setting, those up to the last checkpoint alone; of the anchor what ``fdatasync`` has
returned for. A commit in the middle of which power fails is torn: some of the
sectors of the log that it changed are new, some old. Power can fail before a commit, in the middle of it,
between it and the anchor, or in the middle of the anchor's write (`Disk.fail_at`).

What a process does after its power has failed changes nothing: its store is opened anew from what survived.
"""

import os
import random
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Any

SECTOR_BYTES = 512
_FULL = 2


class PowerCut(BaseException):
    """The power of a site has failed; its process is gone."""


class Moment(Enum):
    """When, in the course of a change of the store, power fails."""

    BEFORE_COMMIT = "before the commit"
    IN_COMMIT = "in the middle of the commit"
    AFTER_COMMIT = "between commit and anchor"
    IN_ANCHOR = "in the middle of the anchor's write"
    AFTER_ANCHOR = "after the anchor, before the caller hears of it"


class Disk:
    """The disk of one site below ``root``. ``on_power_cut`` is told once power has failed."""

    def __init__(self, root: Path, rng: random.Random) -> None:
        self._root = root
        self._rng = rng
        self._number = 0
        self._unflushed: dict[str, dict[int, bytes]] = {}
        self._log_at_last_flush: bytes | None = None
        self._synchronous = _FULL
        self._fails_at: Moment | None = None
        self._commits_until_failure = 0
        self._survived: Path | None = None
        self.full = False
        """No change finds room."""
        self.connections: list[_Connection] = []
        """Those that were opened since the last start."""
        self.on_power_cut: Callable[[], None] = lambda: None
        self.folder = self._new_folder()
        self.prefix = f"{self.folder.resolve()}/"
        """What the paths of its files begin with."""

    @property
    def database(self) -> Path:
        """Where the store lies."""
        return self.folder / "db" / "keys.db"

    @property
    def anchor(self) -> Path:
        """Where its anchor lies."""
        return self.folder / "anchor"

    @property
    def failed(self) -> bool:
        """Tell whether power has failed, or the process was killed, since the disk was last started."""
        return self._survived is not None

    def fail_at(self, moment: Moment, commits: int) -> None:
        """Have power fail at ``moment`` of the commit after ``commits`` more."""
        self._fails_at, self._commits_until_failure = moment, commits

    def never_fail(self) -> None:
        """Have power stay on."""
        self._fails_at = None

    def fail_now(self) -> None:
        """Have power fail at this moment, between two changes of the store."""
        if self._survived is None:
            self._fail(self._log.read_bytes() if self._log.exists() else b"")

    def kill(self) -> None:
        """Have the process gone at this moment: nothing that it wrote is lost, nor does it write any more."""
        if self._survived is None:
            self._unflushed.clear()
            self._log_at_last_flush = None
            self.fail_now()

    def start(self) -> None:
        """Use what survived, if power has failed; else go on with what is there."""
        self._fails_at = None
        for connection in self.connections:
            connection.process_gone = True
            connection.close()  # of one that ended, it is closed already
        self.connections.clear()
        if self._survived is not None:
            shutil.rmtree(self.folder)
            self.folder, self._survived = self._survived, None
            self.prefix = f"{self.folder.resolve()}/"
        self._unflushed.clear()
        self._log_at_last_flush = None
        self._synchronous = _FULL

    # Copies

    def back_up(self, *, whole: bool) -> Path:
        """Copy the database as it is; ``whole``: the anchor as well, as a snapshot of the machine does."""
        copy = self._new_folder()
        shutil.copytree(self.folder / "db", copy / "db")
        if whole:
            for path in self.folder.glob("anchor*"):
                shutil.copy2(path, copy / path.name)
        return copy

    def restore(self, copy: Path) -> None:
        """Put a copy in place of what it holds; the store must be closed."""
        shutil.rmtree(self.folder / "db")
        shutil.copytree(copy / "db", self.folder / "db")
        for path in copy.glob("anchor*"):
            shutil.copy2(path, self.folder / path.name)

    # What the store does

    def set_synchronous(self, level: int) -> None:
        """Note how much of its log the database flushes."""
        self._synchronous = level

    @contextmanager
    def committing(self) -> Iterator[None]:
        """Surround the database's own commit."""
        self._check_power()
        if self.full:
            error = sqlite3.OperationalError("database or disk is full")
            error.sqlite_errorcode = sqlite3.SQLITE_FULL
            raise error
        fails = self._fails_at if self._fails_at is not None and self._commits_until_failure <= 0 else None
        self._commits_until_failure -= 1
        if fails is Moment.BEFORE_COMMIT:
            self.fail_now()
            raise PowerCut
        flushed = self._synchronous >= _FULL
        before = None
        if fails is Moment.IN_COMMIT or (not flushed and self._log_at_last_flush is None):
            before = self._log.read_bytes() if self._log.exists() else b""
        yield
        if not flushed and self._log_at_last_flush is None:
            self._log_at_last_flush = before
        if fails is Moment.IN_COMMIT:
            assert before is not None
            self._fail(self._torn(before, self._log.read_bytes()))
            raise PowerCut
        if fails is Moment.AFTER_COMMIT:
            self.fail_now()
            raise PowerCut

    def checkpointed(self) -> None:
        """Note that the log was moved into the database, for which SQLite flushes both."""
        self._log_at_last_flush = None

    def wrote(self, path: str, place: int, old: bytes) -> None:
        """Note what a write to a file, not yet flushed, has replaced."""
        self._check_power()
        self._unflushed.setdefault(path, {}).setdefault(place, old)
        if self._fails_now(Moment.IN_ANCHOR):
            self.fail_now()
            raise PowerCut

    def flushed(self, path: str) -> None:
        """Note that a file was flushed."""
        self._check_power()
        self._unflushed.pop(path, None)
        if self._fails_now(Moment.AFTER_ANCHOR):
            self.fail_now()
            raise PowerCut

    # Power

    def _fails_now(self, moment: Moment) -> bool:
        return self._fails_at is moment and self._commits_until_failure < 0

    def _check_power(self) -> None:
        if self._survived is not None:
            raise PowerCut

    @property
    def _log(self) -> Path:
        return self.database.with_name(self.database.name + "-wal")

    def _new_folder(self) -> Path:
        self._number += 1
        folder = self._root / str(self._number)
        folder.mkdir(parents=True)
        return folder

    def _fail(self, log: bytes) -> None:
        survived = self._new_folder()
        shutil.copytree(self.folder, survived, dirs_exist_ok=True)
        if self._log_at_last_flush is not None:
            log = self._log_at_last_flush
        log_path = survived / self._log.relative_to(self.folder)
        if self._log.exists():
            log_path.write_bytes(log)
        for path, writes in self._unflushed.items():
            at_risk = survived / Path(path).relative_to(self.folder.resolve())
            content = bytearray(at_risk.read_bytes())
            for place, old in writes.items():
                new = bytes(content[place : place + len(old)])
                content[place : place + len(old)] = self._torn(old, new)
            at_risk.write_bytes(content)
        self._survived = survived
        self.on_power_cut()

    def _torn(self, old: bytes, new: bytes) -> bytes:
        """Return a mixture of sectors: all old, all new, or cut at one, or each by chance."""
        n_sectors = -(-len(new) // SECTOR_BYTES)
        changed = [
            number
            for number in range(n_sectors)
            if old[number * SECTOR_BYTES : (number + 1) * SECTOR_BYTES]
            != new[number * SECTOR_BYTES : (number + 1) * SECTOR_BYTES]
        ]
        kind = self._rng.choice(("cut", "cut", "chance", "none"))
        cut = self._rng.randint(0, len(changed))
        result = bytearray(new)
        for number, sector in enumerate(changed):
            kept = number < cut if kind == "cut" else kind == "chance" and self._rng.random() < 0.5
            if not kept:
                place = slice(sector * SECTOR_BYTES, min((sector + 1) * SECTOR_BYTES, len(new)))
                was = old[place]
                result[place] = was + bytes(place.stop - place.start - len(was))
        return bytes(result)


class _Connection(sqlite3.Connection):
    """A connection to a database on one of the disks."""

    disk: Disk | None = None
    process_gone = False
    """Its threads, late in the world, are gone with it."""

    def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
        if self.process_gone:
            raise PowerCut
        disk = self.disk
        if disk is not None:
            if sql == "COMMIT":
                with disk.committing():
                    return super().execute(sql)
            if sql.startswith("PRAGMA synchronous"):
                result = super().execute(sql)
                disk.set_synchronous(int(super().execute("PRAGMA synchronous").fetchone()[0]))
                return result
            if sql.startswith("PRAGMA wal_checkpoint"):
                disk.checkpointed()
        return super().execute(sql, parameters)

    @property
    def in_transaction(self) -> bool:
        return not self.process_gone and super().in_transaction


@contextmanager
def mounted(*disks: Disk) -> Iterator[None]:
    """Have databases and anchors that lie on ``disks`` written to them."""
    connect, pwrite, fdatasync = sqlite3.connect, os.pwrite, os.fdatasync

    def disk_of(path: str) -> Disk | None:
        return next((disk for disk in disks if path.startswith(disk.prefix)), None)

    def connect_on_disk(database: Any, *args: Any, **options: Any) -> sqlite3.Connection:
        connection = connect(database, *args, factory=_Connection, **options)
        if isinstance(database, str) and database.startswith("file:///"):
            path = database.removeprefix("file://").partition("?")[0]
            connection.disk = disk = disk_of(path)
            if disk is not None:
                disk.connections.append(connection)
        return connection

    def path_of(descriptor: int) -> str:
        return os.readlink(f"/proc/self/fd/{descriptor}")  # noqa: PTH115 - many times a second

    def pwrite_on_disk(descriptor: int, data: bytes, place: int, /) -> int:
        disk = disk_of(path := path_of(descriptor))
        old = os.pread(descriptor, len(data), place) if disk is not None else b""
        written = pwrite(descriptor, data, place)
        if disk is not None and len(old) == len(data):
            disk.wrote(path, place, old)
        return written

    def fdatasync_on_disk(descriptor: int, /) -> None:
        disk = disk_of(path := path_of(descriptor))
        fdatasync(descriptor)
        if disk is not None:
            disk.flushed(path)

    replaced: dict[tuple[Any, str], Any] = {
        (sqlite3, "connect"): connect_on_disk,
        (os, "pwrite"): pwrite_on_disk,
        (os, "fdatasync"): fdatasync_on_disk,
    }
    try:
        for (owner, name), value in replaced.items():
            setattr(owner, name, value)
        yield
    finally:
        for (owner, name), value in zip(replaced, (connect, pwrite, fdatasync), strict=True):
            setattr(owner, name, value)
