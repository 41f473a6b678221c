"""Puts the store of a backup in the place of a lost one, by the rule of restored stores.

The store in a backup has no keys and waits for its peer, and it keeps doing so until the peer, or the anchor
that is still there, has said which numbers and one-time pads were used since.
"""

import os
from pathlib import Path
from typing import BinaryIO

from qnode.choices import Role
from qnode.errors import StoreError
from qnode.keys._anchor import Anchor, fsync_folder
from qnode.keys._backup import BackupHead, BackupUnusable, extract_store, read_backup, register_in
from qnode.keys._preshared import PresharedRegister, loaded_in
from qnode.keys._store import open_store, register_beside


def restore_backup(
    file: BinaryIO, store: Path, *, role: Role, store_key: bytes, anchor: Path, kme_id: str, peer_kme_id: str
) -> BackupHead:
    """Verify the backup ``file`` and put its store to ``store``, where there is none; return its head.

    An anchor that is there stays. Raises BackupUnusable, StoreError or OSError; no store is there then, but
    the anchor may know of the attempt.
    """
    head = read_backup(file, store_key)
    for name, found, wanted in (
        ("role", head.role, role),
        ("kme_id", head.kme_id, kme_id),
        ("peer", head.peer_kme_id, peer_kme_id),
    ):
        if found != wanted:
            raise BackupUnusable(
                f"{file.name}: is of another site: its {name} is {found!r}, here it is {wanted!r}"
            )
    there = [file for file in (store, store.with_name(f"{store.name}-wal")) if file.exists()]
    if there:
        raise StoreError(
            f"{', '.join(map(str, there))}: there is a store already, and nothing was changed; stop the "
            "node, and move the store away if it is damaged"
        )
    known = Anchor.open(anchor, store_key, head.store_id)
    register = PresharedRegister(register_beside(anchor))
    saved = register_in(file, head)
    epoch = 0
    if known is not None:
        epoch = known.positions.pool_epoch
        known.close()
    if epoch > head.pool_epoch or loaded_in(register.content()) - loaded_in(saved):
        raise BackupUnusable(
            f"{file.name}: is too old: another pre-shared key was loaded since; move the anchor away, start "
            "the node with an empty store, and run qnodectl restore with a new pre-shared key at both sites"
        )
    # Before there is a store: it must never be there without the register of what it has loaded.
    if loaded_in(saved) - loaded_in(register.content()):
        register.replace(saved)
    # The store comes to its place last: a daemon that is started again and again must not open it half done.
    draft = store.with_name(f"{store.name}.restored")
    try:
        _remove(draft)
        extract_store(file, head, draft)
        open_store(
            draft,
            role=role,
            store_key=store_key,
            anchor=anchor,
            kme_id=kme_id,
            peer_kme_id=peer_kme_id,
        ).close()
        os.link(draft, store)  # fails if a store has been made meanwhile
        fsync_folder(store.parent)
    finally:
        _remove(draft)
    return head


def _remove(store: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        store.with_name(f"{store.name}{suffix}").unlink(missing_ok=True)
