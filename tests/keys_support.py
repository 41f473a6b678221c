"""A link's two key stores on real files, and blocks to fill them with."""

import base64
import random
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qnode.choices import Role
from qnode.keys import (
    Assignment,
    BlockRecord,
    KeyLayout,
    PreparedBlock,
    SqliteKeyStore,
    StoredKey,
    open_store,
)

STORE_KEYS = {"alice": b"A" * 32, "bob": b"B" * 32}
LAYOUT = KeyLayout(pads_per_direction=3)


@contextmanager
def memory_folder() -> Iterator[Path]:
    """Lend a folder in memory where there is one: a kill loses nothing written, so a disk shows no more."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="keys-", dir=memory if memory.is_dir() else None) as folder:
        yield Path(folder)


class Site:
    """One site's folder: the store in `db/`, the anchor outside of it."""

    def __init__(self, folder: Path, role: Role) -> None:
        self.folder = folder
        self.role = role
        self.path = folder / "db" / "keys.db"
        self.anchor = folder / "anchor"

    def open(
        self, *, create: bool = True, store_key: bytes | None = None, witness: Path | None = None
    ) -> SqliteKeyStore:
        return open_store(
            self.path,
            role=self.role,
            store_key=store_key or STORE_KEYS[self.role],
            anchor=self.anchor,
            kme_id=f"kme-{self.role}",
            peer_kme_id=f"kme-{'bob' if self.role == 'alice' else 'alice'}",
            create=create,
            witness=witness,
        )

    def copy_to(self, folder: Path, *, anchor: bool = True) -> "Site":
        """Copy what is on disk now: what a crash at this moment leaves."""
        shutil.copytree(self.path.parent, folder / "db")
        if anchor:
            shutil.copy(self.anchor, folder / "anchor")
        return Site(folder, self.role)

    def restore_database_from(self, backup: "Site") -> None:
        """Put a backup in the database's place, leaving the anchor alone."""
        shutil.rmtree(self.path.parent)
        shutil.copytree(backup.path.parent, self.path.parent)


def sqlite_of(store: SqliteKeyStore) -> sqlite3.Connection:
    """Return the connection of a store to its file."""
    connection = store._database._tx.connection
    assert isinstance(connection, sqlite3.Connection)
    return connection


def make_block(block_id: int, n_chunks: int, *, layout: KeyLayout = LAYOUT, seed: int = 1) -> PreparedBlock:
    key = random.Random(f"{seed}/{block_id}").randbytes(layout.overhead_bytes + 32 * n_chunks + 5)
    record = BlockRecord(
        estimator="rusca2018",
        eps_sec=1e-9,
        eps_cor=1e-15,
        x_mode="visibility",
        assumptions=("phase-randomised", "hmac-control"),
        simulated=True,
        n_chunks=n_chunks,
        secret_bits=8 * len(key),
        created_at=1000.0,
    )
    return PreparedBlock(block_id, key, record, layout)


def preshared(n_pads: int) -> bytes:
    return random.Random(n_pads).randbytes(64 + 16 * n_pads)


def add_block(block: PreparedBlock, *stores: SqliteKeyStore) -> None:
    """Bring a block through the two-step commit at all the stores."""
    for store in stores:
        store.record_block_opened(block.block_id, block.record.eps_sec + block.record.eps_cor)
        store.prepare(block)
    for store in stores:
        store.confirm(block.block_id)


def assigned(owner: SqliteKeyStore, peer: SqliteKeyStore, number: int, size_bits: int = 256) -> int:
    """Assign keys of master m for slave s, accepted and acknowledged; return the assignment_id."""
    assignment = owner.assign("m", ["s"], number, size_bits, now=0.0)
    peer.accept_assignment(assignment, now=0.0)
    owner.acknowledge(assignment.assignment_id)
    return assignment.assignment_id


def chunks_of(assignment: Assignment) -> set[tuple[int, int]]:
    """Return block and position of each chunk of an assignment."""
    return {(item.block_id, item.first + i) for item in assignment.ranges for i in range(item.count)}


def pairs(keys: list[StoredKey]) -> list[tuple[str, bytes]]:
    return [(str(key.key_id), key.key) for key in keys]


def appearances(folder: Path, secret: bytes) -> list[str]:
    """Name the files under `folder` that hold `secret`, in binary, hex or base64."""
    forms = [
        secret,
        secret.hex().encode(),
        secret.hex().upper().encode(),
        base64.b64encode(secret).rstrip(b"="),
        base64.urlsafe_b64encode(secret).rstrip(b"="),
    ]
    return [
        str(file)
        for file in sorted(folder.rglob("*"))
        if file.is_file() and any(form in file.read_bytes() for form in forms)
    ]
