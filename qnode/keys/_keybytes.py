"""From assigned chunks to keys: positions, key_IDs and contents."""

from collections.abc import Iterable, Sequence
from uuid import UUID

import msgspec

from qnode.keys import _blocks
from qnode.keys._database import Tx
from qnode.keys._layout import key_id_bytes
from qnode.keys._model import KeyRange, StoredKey
from qnode.keys._vault import Kind
from qnode.units import CHUNK_BYTES


def part_of(ranges: Iterable[KeyRange], width: int, first: int, number: int) -> list[KeyRange]:
    """Return the chunks of keys `first` to `first + number - 1` out of ranges of keys `width` chunks wide."""
    result = []
    skip, missing = first * width, number * width
    for item in ranges:
        low = min(skip, item.count)
        count = min(item.count - low, missing)
        if count:
            result.append(KeyRange(item.block_id, item.first + low, count))
        skip -= low
        missing -= count
    return result


def parts_of(ranges: Iterable[KeyRange], width: int, positions: Sequence[int]) -> list[KeyRange]:
    """Return the chunks of the keys at ascending `positions`."""
    ranges = tuple(ranges)
    result: list[KeyRange] = []
    start = 0
    for i, position in enumerate(positions):
        if i + 1 == len(positions) or positions[i + 1] != position + 1:
            result += part_of(ranges, width, positions[start], i + 1 - start)
            start = i + 1
    return result


def key_ids_of(tx: Tx, ranges: Iterable[KeyRange], width: int) -> list[bytes]:
    """Return the key_ID of each key, as 16 bytes: that of its first chunk."""
    result: list[bytes] = []
    for item in ranges:
        block_secret = tx.vault.read(Kind.BLOCK_SECRET, item.block_id, 0, 1)
        result += key_id_bytes(block_secret, item.first, item.count)[::width]
    return result


def uuids(key_ids: Sequence[bytes]) -> list[UUID]:
    """Return 16 bytes each as UUIDs, made in bulk, in a tenth of the time of the class itself."""
    return msgspec.convert(key_ids, list[UUID])


def read_keys(tx: Tx, ranges: Iterable[KeyRange], width: int, size_bits: int) -> list[StoredKey]:
    """Decrypt the keys in ranges of keys `width` chunks wide, cut to `size_bits`, with key_ID and record.

    Raises StoreUnusable if a chunk cannot be decrypted.
    """
    ranges = tuple(ranges)
    return with_ids(tx, ranges, width, size_bits, uuids(key_ids_of(tx, ranges, width)))


def with_ids(
    tx: Tx, ranges: Iterable[KeyRange], width: int, size_bits: int, key_ids: Sequence[UUID]
) -> list[StoredKey]:
    """Decrypt keys like `read_keys`, with known key_IDs."""
    result: list[StoredKey] = []
    n_bytes = size_bits // 8
    for item in ranges:
        opened = tx.vault.read(Kind.CHUNK, item.block_id, item.first, item.count)
        record = _blocks.record_of(tx, item.block_id)
        starts = range(0, len(opened), width * CHUNK_BYTES)
        named = key_ids[len(result) : len(result) + len(starts)]
        result += [
            StoredKey(key_id, opened[start : start + n_bytes], record)
            for key_id, start in zip(named, starts, strict=True)
        ]
    return result
