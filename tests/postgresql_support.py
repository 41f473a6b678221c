"""A PostgreSQL server of Debian for tests, and a site whose store lies in it.

Tests with it are for `make test-postgresql`. Without Debian's package postgresql, or without psycopg, they
are skipped with that reason.
"""

import importlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from keys_support import STORE_KEYS, Site

from qnode import keys
from qnode.choices import Role, peer_of
from qnode.config import PostgresqlSection
from qnode.keys import open_server_store
from qnode.keys._opening import SCHEMA_VERSION

psycopg: Any
try:
    psycopg = importlib.import_module("psycopg")
except ImportError:
    psycopg = None

_BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
_USER = "nobody"  # the server refuses to run as root
STARTS_WITHIN_S = 60


def missing() -> str:
    """Say what a test with PostgreSQL lacks here; empty if nothing."""
    if not os.environ.get("QNODE_POSTGRESQL"):
        return "QNODE_POSTGRESQL is not set (make test-postgresql)"
    if psycopg is None:
        return "psycopg is not installed: pip install 'qnode[postgresql]'"
    if not _BINARIES:
        return "Debian's package postgresql is not installed"
    if os.geteuid() == 0 and shutil.which("setpriv") is None:
        return "setpriv is missing, and PostgreSQL does not run as root"
    return ""


class Server:
    """A server in ``folder`` that listens on a socket there alone; it flushes to its disk like any other."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / "data"
        self._process: subprocess.Popen[bytes] | None = None

    def create(self) -> None:
        self.folder.chmod(0o755)
        self._as_owner("mkdir", "-m", "700", str(self.data), own_folder=True)
        self._run("initdb", "--pgdata", str(self.data), "--username", "qnode", "--auth", "trust", "--no-sync")
        with (self.data / "postgresql.conf").open("a") as settings:
            settings.write(
                f"unix_socket_directories = '{self.folder}'\nlisten_addresses = ''\nshared_buffers = 16MB\n"
                "max_connections = 30\nmax_wal_size = 128MB\n"
            )

    def create_standby(self, primary: "Server") -> None:
        """Create a standby of a running server instead."""
        self.folder.chmod(0o755)
        self._as_owner("mkdir", "-m", "700", str(self.data), own_folder=True)
        self._run(
            "pg_basebackup", "--host", str(primary.folder), "--username", "qnode", "--pgdata", str(self.data),
            "--write-recovery-conf", "--checkpoint=fast", "--no-sync",
        )  # fmt: skip
        with (self.data / "postgresql.conf").open("a") as settings:
            settings.write(f"unix_socket_directories = '{self.folder}'\n")

    def promote(self) -> None:
        """Make a standby the primary."""
        self._run("pg_ctl", "promote", "--pgdata", str(self.data), "--wait")

    def start(self) -> None:
        """Start the server; again if it ends, as it does while processes of a killed one are still there."""
        until = time.monotonic() + STARTS_WITHIN_S
        while not self._answers():
            assert time.monotonic() < until, (self.folder / "log").read_text()[-2000:]
            if self._process is None or self._process.poll() is not None:
                self._launch()
            time.sleep(0.05)

    def _launch(self) -> None:
        arguments = [*self._prefix(), str(_BINARIES[-1].with_name("postgres")), "-D", str(self.data)]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                arguments, stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=self.folder
            )

    def _answers(self) -> bool:
        command = [str(_BINARIES[-1].with_name("pg_isready")), "--host", str(self.folder), "--timeout", "0"]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    def stop(self, how: str = "INT") -> None:
        """End the server: INT ends sessions in order, KILL nothing."""
        assert self._process is not None
        if how == "KILL":
            lines = (self.data / "postmaster.pid").read_text().split("\n")
            subprocess.run(["kill", "-KILL", lines[0]], check=True)
        else:
            self._process.send_signal(signal.SIGINT)
        self._process.wait(60)
        self._process = None

    def admin(self) -> Any:
        """Return a session beside the stores."""
        return psycopg.connect(f"host={self.folder} dbname=postgres user=qnode", autocommit=True)

    @property
    def parameters(self) -> str:
        return f"host={self.folder} dbname=postgres user=qnode"

    def _prefix(self) -> list[str]:
        if os.geteuid() != 0:
            return []
        owner = pwd.getpwnam(_USER)
        return ["setpriv", f"--reuid={owner.pw_uid}", f"--regid={owner.pw_gid}", "--clear-groups"]

    def _as_owner(self, *command: str, own_folder: bool = False) -> None:
        if own_folder and os.geteuid() == 0:
            owner = pwd.getpwnam(_USER)
            os.chown(self.folder, owner.pw_uid, owner.pw_gid)
        subprocess.run([*self._prefix(), *command], check=True, cwd=self.folder)

    def _run(self, name: str, *arguments: str) -> None:
        command = [*self._prefix(), str(_BINARIES[-1].with_name(name)), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=self.folder)
        if done.returncode:
            raise RuntimeError(f"{name}: {done.stdout}{done.stderr}")


@contextmanager
def running_server(copy_of: Server | None = None) -> Iterator[Server]:
    """Lend a server in memory, where there is such a folder; ``copy_of``: a standby of that one."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(
        prefix="postgresql-", dir=memory if memory.is_dir() else None, ignore_cleanup_errors=True
    ) as folder:
        server = Server(Path(folder))
        if copy_of is None:
            server.create()
        else:
            server.create_standby(copy_of)
        server.start()
        try:
            yield server
        finally:
            if server._process is not None:
                server.stop()


class PostgresqlSite(Site):
    """A site with its store in a schema of a server; files of the anchor in ``folder``."""

    server: Server
    _number = 0

    def __init__(self, folder: Path, role: Role, schema: str = "") -> None:
        super().__init__(folder, role)
        PostgresqlSite._number += 1
        self.schema = schema or f"store_{PostgresqlSite._number}"
        self.path = folder / "no" / "file"

    def open(
        self, *, create: bool = True, store_key: bytes | None = None, witness: Path | None = None
    ) -> Any:
        self.folder.mkdir(parents=True, exist_ok=True)
        return open_server_store(
            PostgresqlSection(parameters=self.server.parameters, schema=self.schema),
            beside=self.anchor,
            role=self.role,
            store_key=store_key or STORE_KEYS[self.role],
            anchor=self.anchor,
            kme_id=f"kme-{self.role}",
            peer_kme_id=f"kme-{peer_of(self.role)}",
            create=create,
            witness=witness,
        )

    def copy_to(self, folder: Path, *, anchor: bool = True) -> "PostgresqlSite":
        """Copy what is committed now: what a crash at this moment leaves."""
        copy = type(self)(folder, self.role)
        folder.mkdir(parents=True)
        with self.server.admin() as session:
            _copy(session, self.schema, copy.schema)
        if anchor:
            shutil.copy(self.anchor, copy.anchor)
        return copy

    def restore_database_from(self, backup: Site) -> None:
        """Put a backup in the database's place, leaving the anchor alone."""
        assert isinstance(backup, PostgresqlSite)
        with self.server.admin() as session:
            session.execute(f"DROP SCHEMA {self.schema} CASCADE")
            _copy(session, backup.schema, self.schema)


def _copy(session: Any, source: str, target: str) -> None:
    """Copy a store to a new schema, in one transaction, as a restored dump would be."""
    script = Path(keys.__file__).with_name(f"schema_v{SCHEMA_VERSION}_postgresql.sql").read_text()
    run: Any = session.execute
    with session.transaction():
        run("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        run(f"CREATE SCHEMA {target}")
        run(f"SET LOCAL search_path TO {target}")
        run(script)
        run("SET LOCAL session_replication_role = replica")  # no triggers
        tables = run("SELECT table_name FROM information_schema.tables WHERE table_schema = %s", (source,))
        for (table,) in tables.fetchall():
            run(f"DELETE FROM {target}.{table}")
            run(f"INSERT INTO {target}.{table} SELECT * FROM {source}.{table}")
