"""Secrets at rest: equal slots, each sealed for itself, wiped in place when its time has come.

A run of secrets (the chunks of a block, the pads of a segment) lies in parts of up to 1,024 slots, one blob
each. Every part has a data key of its own, HMAC-SHA-256(store key, salt and address), with a fresh random
salt; so the slot's number serves as the AES-GCM nonce and cannot repeat under one key, even when a block
number should come again after a restore. Kind, segment and position are bound as associated data: a slot
copied elsewhere does not open. Sealing slots singly, instead of whole parts, is what lets one delivered key
be overwritten while its neighbours live.
"""

import hmac
import secrets
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from qnode.errors import StoreUnusable

_TAG_BYTES = 16
_SLOTS_PER_PART = 1024
_SALT_BYTES = 16


class Kind(StrEnum):
    """What a secret is for; a part of its address, so none opens in another's place."""

    CHUNK = "chunk"
    BLOCK_SECRET = "block_secret"  # noqa: S105 - a name, not a secret
    PAD_SEND = "pad_send"
    PAD_RECEIVE = "pad_receive"
    SESSION_ROOT = "session_root"
    HASH_KEY = "hash_key"
    CANARY = "canary"


SLOT_BYTES = {
    Kind.CHUNK: 32,
    Kind.BLOCK_SECRET: 32,
    Kind.PAD_SEND: 16,
    Kind.PAD_RECEIVE: 16,
    Kind.SESSION_ROOT: 32,
    Kind.HASH_KEY: 16,
    Kind.CANARY: 16,
}


@dataclass(frozen=True)
class _Span:
    """The slots [low, high) of one part."""

    part: int
    low: int
    high: int


def _spans(first: int, count: int) -> Iterator[_Span]:
    end = first + count
    while first < end:
        part, low = divmod(first, _SLOTS_PER_PART)
        high = min(_SLOTS_PER_PART, low + end - first)
        yield _Span(part, low, high)
        first += high - low


class Vault:
    """Sealed slots of one store. Every method runs inside the caller's transaction."""

    def __init__(self, connection: sqlite3.Connection, store_key: bytes) -> None:
        self._connection = connection
        self._store_key = store_key

    def __repr__(self) -> str:
        return "Vault()"

    def put(self, kind: Kind, segment: int, secret: bytes) -> None:
        """Seal `secret`, cut into slots of the kind's size, as slots 0, 1, ... of a new segment."""
        width = SLOT_BYTES[kind]
        sealed_width = width + _TAG_BYTES
        view = memoryview(secret)
        for span in _spans(0, len(secret) // width):
            salt = secrets.token_bytes(_SALT_BYTES)
            cipher = self._cipher(kind, segment, span.part, salt)
            sealed = bytearray(span.high * sealed_width)
            target = memoryview(sealed)
            base = span.part * _SLOTS_PER_PART
            for slot in range(span.high):
                position = base + slot
                cipher.encrypt_into(
                    slot.to_bytes(12, "big"),
                    view[position * width : (position + 1) * width],
                    _address(kind, segment, position),
                    target[slot * sealed_width : (slot + 1) * sealed_width],
                )
            row = self._connection.execute("INSERT INTO sealed_slots (slots) VALUES (?)", (sealed,))
            self._connection.execute(
                "INSERT INTO sealed_part (kind, segment, part, part_id, live, salt) VALUES (?,?,?,?,?,?)",
                (kind, segment, span.part, row.lastrowid, span.high, salt),
            )

    def read(self, kind: Kind, segment: int, first: int, count: int) -> bytes:
        """Open `count` slots from `first` on.

        Raises StoreUnusable when a slot is gone or does not open (damage, or a wrong store key).
        """
        width = SLOT_BYTES[kind]
        sealed_width = width + _TAG_BYTES
        clear = bytearray(count * width)
        done = 0
        for span in _spans(first, count):
            part_id, _, salt = self._part(kind, segment, span.part)
            cipher = self._cipher(kind, segment, span.part, salt)
            with self._connection.blobopen("sealed_slots", "slots", part_id, readonly=True) as blob:
                blob.seek(span.low * sealed_width)
                sealed = blob.read((span.high - span.low) * sealed_width)
            for slot in range(span.low, span.high):
                position = span.part * _SLOTS_PER_PART + slot
                offset = (slot - span.low) * sealed_width
                try:
                    clear[done : done + width] = cipher.decrypt(
                        slot.to_bytes(12, "big"),
                        sealed[offset : offset + sealed_width],
                        _address(kind, segment, position),
                    )
                except InvalidTag:
                    raise StoreUnusable(
                        f"sealed slot {kind} {segment}/{position} does not open: wrong store key or damaged "
                        "database; check the store key file, else restore the database"
                    ) from None
                done += width
        return bytes(clear)

    def wipe(self, kind: Kind, segment: int, first: int, count: int) -> None:
        """Overwrite slots with zeros; each slot must be wiped only once."""
        sealed_width = SLOT_BYTES[kind] + _TAG_BYTES
        for span in _spans(first, count):
            part_id, live, _ = self._part(kind, segment, span.part)
            n_slots = span.high - span.low
            if live == n_slots:
                self._connection.execute("DELETE FROM sealed_slots WHERE part_id = ?", (part_id,))
                self._connection.execute(
                    "DELETE FROM sealed_part WHERE kind = ? AND segment = ? AND part = ?",
                    (kind, segment, span.part),
                )
                continue
            with self._connection.blobopen("sealed_slots", "slots", part_id) as blob:
                blob.seek(span.low * sealed_width)
                blob.write(bytes(n_slots * sealed_width))
            self._connection.execute(
                "UPDATE sealed_part SET live = live - ? WHERE kind = ? AND segment = ? AND part = ?",
                (n_slots, kind, segment, span.part),
            )

    def drop(self, kind: Kind, segment: int | None = None) -> None:
        """Wipe every slot of a segment, or of all segments of the kind; nothing there is fine."""
        where = "kind = :kind" if segment is None else "kind = :kind AND segment = :segment"
        values = {"kind": kind, "segment": segment}
        self._connection.execute(
            f"DELETE FROM sealed_slots WHERE part_id IN (SELECT part_id FROM sealed_part WHERE {where})",
            values,
        )
        self._connection.execute(f"DELETE FROM sealed_part WHERE {where}", values)

    def _part(self, kind: Kind, segment: int, part: int) -> tuple[int, int, bytes]:
        row = self._connection.execute(
            "SELECT part_id, live, salt FROM sealed_part WHERE kind = ? AND segment = ? AND part = ?",
            (kind, segment, part),
        ).fetchone()
        if row is None:
            raise StoreUnusable(
                f"sealed part {kind} {segment}/{part} is missing: the database is damaged; restore it"
            )
        return int(row[0]), int(row[1]), bytes(row[2])

    def _cipher(self, kind: Kind, segment: int, part: int, salt: bytes) -> AESGCM:
        context = b"qnode part\0" + salt + _address(kind, segment, part)
        return AESGCM(hmac.digest(self._store_key, context, "sha256"))


def _address(kind: Kind, segment: int, position: int) -> bytes:
    return kind.encode() + b"\0" + segment.to_bytes(8, "big") + position.to_bytes(8, "big")
