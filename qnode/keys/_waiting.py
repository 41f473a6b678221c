"""Assignments of the peer whose keys wait here: which slave may fetch which key, and their key_IDs."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

from qnode.keys import _keybytes
from qnode.keys._assigned import decode
from qnode.keys._layout import key_id_bytes
from qnode.keys._model import Assignment, KeyRange, chunks_per_key
from qnode.keys._tx import Place, Tx
from qnode.keys._vault import Kind

# Key_IDs are computed in one run if the mean distance of the requested chunks is at most this.
_SPARSE = 64


@dataclass
class Held:
    """An assignment with its waiting keys: bit p of ``waiting[i]`` is key p for slave i."""

    assignment: Assignment
    waiting: list[int]

    @property
    def wanted(self) -> int:
        """A bit for each key that any slave may still fetch."""
        wanted = 0
        for of_slave in self.waiting:
            wanted |= of_slave
        return wanted

    @classmethod
    def decode(cls, content: bytes, waiting: bytes) -> Self:
        """Return an assignment from its stored form."""
        assignment = decode(content)
        width = _mask_bytes(assignment)
        masks = [int.from_bytes(waiting[i : i + width], "little") for i in range(0, len(waiting), width)]
        return cls(assignment, masks)

    def encoded(self) -> bytes:
        """Return ``waiting`` as it is stored."""
        width = _mask_bytes(self.assignment)
        return b"".join(of_slave.to_bytes(width, "little") for of_slave in self.waiting)


def _mask_bytes(assignment: Assignment) -> int:
    return -(-assignment.n_keys // 8)


def places(helds: Iterable[Held], names: Iterable[bytes]) -> dict[bytes, Place]:
    """Return the position of each waiting key by key_ID; ``names``: their key_IDs, in order."""
    found = (
        Place(held.assignment.assignment_id, position)
        for held in helds
        for position in positions(held.wanted)
    )
    return dict(zip(names, found, strict=True))


def all_names(tx: Tx, helds: Sequence[Held]) -> list[bytes]:
    """Return the key_IDs of all keys that still wait, in order; each block's secret is opened once."""
    asked = [
        (part, chunks_per_key(held.assignment.size_bits))
        for held in helds
        for part in parts(held, held.wanted)
    ]
    spans: dict[int, list[int]] = {}  # by block: first chunk, end, chunks
    for part, _ in asked:
        span = spans.setdefault(part.block_id, [part.first, 0, 0])
        end = part.first + part.count
        span[:] = min(span[0], part.first), max(span[1], end), span[2] + part.count
    _keybytes.ask_secrets(tx, (part for part, _ in asked))
    secrets = {block_id: tx.vault.read(Kind.BLOCK_SECRET, block_id, 0, 1) for block_id in spans}
    together = {
        block_id: (first, key_id_bytes(secrets[block_id], first, end - first))
        for block_id, (first, end, n_chunks) in spans.items()
        if end - first <= _SPARSE * n_chunks
    }
    result: list[bytes] = []
    for part, width in asked:
        if part.block_id in together:
            start, of_block = together[part.block_id]
            low = part.first - start
            result += of_block[low : low + part.count : width]
        else:
            result += key_id_bytes(secrets[part.block_id], part.first, part.count)[::width]
    return result


def names(tx: Tx, held: Held, mask: int) -> list[bytes]:
    """Return the key_IDs of the keys whose bit is in ``mask``, in their order."""
    return _keybytes.key_ids_of(tx, parts(held, mask), chunks_per_key(held.assignment.size_bits))


def parts(held: Held, mask: int) -> list[KeyRange]:
    """Return the chunks of the keys whose bit is in ``mask``, in their order."""
    width = chunks_per_key(held.assignment.size_bits)
    return _keybytes.parts_of(held.assignment.ranges, width, positions(mask))


def positions(mask: int) -> list[int]:
    """Return the positions of the bits in ``mask``, ascending."""
    return [position for position, bit in enumerate(reversed(f"{mask:b}")) if bit == "1"]
