"""From assigned chunks to keys: positions, key_IDs and contents."""

from collections.abc import Iterable, Sequence
from uuid import UUID

import msgspec

from qnode.keys import _blocks
from qnode.keys._layout import key_id_bytes
from qnode.keys._model import KeyRange, StoredKey
from qnode.keys._tx import Tx
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


def ask_secrets(tx: Tx, ranges: Iterable[KeyRange]) -> None:
    """Ask for the block secrets that `key_ids_of` is about to need."""
    for item in ranges:
        tx.vault.ask(Kind.BLOCK_SECRET, item.block_id, 0, 1)


def key_ids_of(tx: Tx, ranges: Iterable[KeyRange], width: int) -> list[bytes]:
    """Return the key_ID of each key, as 16 bytes: that of its first chunk."""
    ranges = tuple(ranges)
    ask_secrets(tx, ranges)
    result: list[bytes] = []
    for item in ranges:
        block_secret = tx.vault.read(Kind.BLOCK_SECRET, item.block_id, 0, 1)
        result += key_id_bytes(block_secret, item.first, item.count)[::width]
    return result


def uuids(key_ids: Sequence[bytes]) -> list[UUID]:
    """Return 16 bytes each as UUIDs, made in bulk, in a tenth of the time of the class itself."""
    return msgspec.convert(key_ids, list[UUID])


class Reading:
    """Keys in ranges of keys `width` chunks wide, which are asked for at first and decrypted later.

    `key_ids`: if they are known; otherwise they are computed.
    """

    def __init__(
        self,
        tx: Tx,
        ranges: Iterable[KeyRange],
        width: int,
        size_bits: int,
        key_ids: Sequence[UUID] | None = None,
    ) -> None:
        self._tx, self._width, self._size_bits, self._key_ids = tx, width, size_bits, key_ids
        self.ranges = tuple(ranges)
        if key_ids is None:
            ask_secrets(tx, self.ranges)
        for item in self.ranges:
            tx.vault.ask(Kind.CHUNK, item.block_id, item.first, item.count)
        blocks = dict.fromkeys(item.block_id for item in self.ranges if item.block_id not in tx.records)
        self._records = {block_id: _blocks.ask_record(tx, block_id) for block_id in blocks}

    def read(self) -> list[StoredKey]:
        """Decrypt the keys, cut to their size, with key_ID and record; once.

        Raises StoreUnusable if a chunk cannot be decrypted.
        """
        ids = self._key_ids
        if ids is None:
            ids = uuids(key_ids_of(self._tx, self.ranges, self._width))
        result: list[StoredKey] = []
        n_bytes, n_bytes_apart = self._size_bits // 8, self._width * CHUNK_BYTES
        records = self._tx.records
        records.update((block_id, _blocks.record_in(answer)) for block_id, answer in self._records.items())
        for item in self.ranges:
            opened = self._tx.vault.read(Kind.CHUNK, item.block_id, item.first, item.count)
            starts = range(0, len(opened), n_bytes_apart)
            named = ids[len(result) : len(result) + len(starts)]
            result += [
                StoredKey(key_id, opened[start : start + n_bytes], records[item.block_id])
                for key_id, start in zip(named, starts, strict=True)
            ]
        return result
