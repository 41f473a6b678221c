"""From assigned chunks to keys: read them, name them, and destroy them in the same transaction."""

from collections.abc import Sequence
from uuid import UUID

from qnode.keys import _blocks
from qnode.keys._database import Tx
from qnode.keys._layout import key_id_bytes
from qnode.keys._model import BlockRecord, Key, KeyRange
from qnode.keys._ranges import joined
from qnode.keys._vault import Kind
from qnode.units import CHUNK_BYTES


def key_ids_of(tx: Tx, keys: Sequence[KeyRange]) -> list[bytes]:
    """Return the key_ID of each key, as 16 bytes: that of its first chunk."""
    block_secrets: dict[int, bytes] = {}
    for key in keys:
        if key.block_id not in block_secrets:
            block_secrets[key.block_id] = tx.vault.read(Kind.BLOCK_SECRET, key.block_id, 0, 1)
    return [key_id_bytes(block_secrets[key.block_id], key.first) for key in keys]


def read_keys(tx: Tx, keys: Sequence[KeyRange], size_bits: int) -> list[Key]:
    """Open the chunks of each key, cut to `size_bits`, with key_ID and block record.

    Raises StoreUnusable when a chunk does not open.
    """
    runs: dict[int, list[tuple[KeyRange, bytes]]] = {}
    for run in joined(keys):
        opened = tx.vault.read(Kind.CHUNK, run.block_id, run.first, run.count)
        runs.setdefault(run.block_id, []).append((run, opened))
    records: dict[int, BlockRecord] = {}
    result = []
    for key, key_id in zip(keys, key_ids_of(tx, keys), strict=True):
        if key.block_id not in records:
            records[key.block_id] = _blocks.record_of(tx, key.block_id)
        run, opened = next(r for r in runs[key.block_id] if r[0].first <= key.first < r[0].first + r[0].count)
        start = (key.first - run.first) * CHUNK_BYTES
        value = opened[start : start + size_bits // 8]
        result.append(Key(UUID(bytes=key_id), value, records[key.block_id]))
    return result
