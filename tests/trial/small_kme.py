"""A small key manager (KME) as a process of its own: ETSI GS QKD 014 over keys that exist in memory only.

    python tests/trial/small_kme.py FOLDER alice|bob PORT

FOLDER has ca.pem, server.pem, server.key, and `supply_secret`. Both sites make the same keys from that
secret, so that a trial of tunnels needs no link. Nobody may protect anything with them. While the file
FOLDER/fibre_cut exists there are no keys. Each key_ID is delivered once at each site.
"""

import hashlib
import hmac
import os
import sys
from pathlib import Path
from uuid import UUID

import trio

from qnode.delivery import Delivery, Key, SaeDirectory, SaeEntry
from qnode.errors import KeyNotFound, NotEnoughKeys
from qnode.etsi014 import application
from qnode.http import TlsSettings, serve

HOST = "127.0.0.1"
STORED = 1000
ENTRIES = (
    SaeEntry(sae_id="sae-alice", kme_id="alice", peers=("sae-bob",)),
    SaeEntry(sae_id="sae-bob", kme_id="bob", peers=("sae-alice",)),
)


class CommonSupply:
    """Keys that both sites derive from one secret; a key_ID carries the proof that the other site made it."""

    def __init__(self, folder: Path) -> None:
        self._secret = (folder / "supply_secret").read_bytes()
        self._cut = folder / "fibre_cut"
        self._delivered: set[UUID] = set()

    async def stored_key_count(self, master: str, slave: str, size_bits: int) -> int:
        return 0 if self._cut.exists() else STORED

    async def allocate(self, master: str, slaves: tuple[str, ...], number: int, size_bits: int) -> list[Key]:
        if self._cut.exists():
            raise NotEnoughKeys(number, 0)
        return [self._key(os.urandom(8), size_bits) for _ in range(number)]

    async def fetch(self, slave: str, master: str, key_ids: tuple[UUID, ...]) -> list[Key]:
        keys = [self._key(key_id.bytes[:8], 256) for key_id in key_ids]
        if self._delivered.intersection(key_ids) or any(
            key.key_id != key_id for key, key_id in zip(keys, key_ids, strict=True)
        ):
            raise KeyNotFound(str(key_ids))
        self._delivered.update(key_ids)
        return keys

    def _key(self, nonce: bytes, size_bits: int) -> Key:
        name = nonce + hmac.digest(self._secret, b"name" + nonce, "sha256")[:8]
        return Key(UUID(bytes=name), hashlib.shake_256(self._secret + name).digest(size_bits // 8))


async def main(folder: Path, name: str, port: int) -> None:
    """Serve until the process is ended."""
    delivery = Delivery(SaeDirectory(name, ENTRIES), CommonSupply(folder))
    tls = TlsSettings(
        certificate=folder / "server.pem", key=folder / "server.key", client_ca=folder / "ca.pem"
    )
    await serve(application(delivery), host=HOST, port=port, tls=tls)


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    trio.run(main, Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
