"""Secrets at rest: equal slots, encrypted in units of up to 128, and wiped after use.

A run of secrets (the chunks of a block, the pads of a segment) is stored in units, one row each. A unit is
encrypted with AES-256-GCM under the key of its kind and segment, HMAC-SHA-256(store key, address), with a
fresh random nonce each time: nothing repeats, even if a block number comes again after a restore. Its address
is bound as associated data, so a unit copied elsewhere cannot be decrypted. It begins with a bit for each
live slot. Wiping slots encrypts the unit again without them, and wiping the last one deletes it.
(`Database.tidy` removes the traces of the old form in the log.)

Units are used instead of single slots, because each encryption is a call: a megabit of key is 30 units or
4,000 slots.
"""

import hmac
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from qnode.errors import StoreUnusable
from qnode.sql import Rows, Statements, ask

SLOTS_PER_UNIT = 128
_LIVE_BYTES = SLOTS_PER_UNIT // 8
_NONCE_BYTES = 12
_MOST_CIPHERS = 64


class Kind(StrEnum):
    """The purpose of a secret; it is part of the address, so no secret can replace another."""

    CHUNK = "chunk"
    BLOCK_SECRET = "block_secret"  # noqa: S105 - a name, not a secret
    PAD_SEND = "pad_send"
    PAD_RECEIVE = "pad_receive"
    SESSION_ROOT = "session_root"
    HASH_KEY = "hash_key"
    CANARY = "canary"


class DamagedUnit(StoreUnusable):
    """A unit cannot be decrypted, or is missing."""

    def __init__(self, kind: Kind, segment: int, unit: int, what: str) -> None:
        super().__init__(f"sealed unit {kind} {segment}/{unit} {what}")
        self.kind = kind
        self.segment = segment
        self.unit = unit


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
    """The slots [low, high) of one unit."""

    unit: int
    low: int
    high: int

    @property
    def bits(self) -> int:
        """One bit per slot, as in a unit's `live`."""
        return (1 << self.high) - (1 << self.low)


def _spans(first: int, count: int) -> Iterator[_Span]:
    end = first + count
    while first < end:
        unit, low = divmod(first, SLOTS_PER_UNIT)
        high = min(SLOTS_PER_UNIT, low + end - first)
        yield _Span(unit, low, high)
        first += high - low


@dataclass(frozen=True)
class _Unit:
    """A decrypted unit: bit i of `live` is slot i."""

    live: int
    slots: bytes = field(repr=False)


_Address = tuple[Kind, int, int]


class VaultMark(NamedTuple):
    """The units that a vault held at some time, and which of them were not written."""

    opened: dict[_Address, _Unit]
    unwritten: dict[_Address, None]


class Vault:
    """The encrypted units of one store. Every method runs in the caller's transaction.

    What was wiped is in memory until `write_down`; reading sees it at once. Who ends the transaction calls
    `write_down` before, and `forget` after.
    """

    def __init__(self, connection: Statements, store_key: bytes) -> None:
        self._connection = connection
        self._store_key = store_key
        self._ciphers: dict[tuple[Kind, int], AESGCM] = {}
        self._asked: dict[_Address, Rows] = {}
        self._opened: dict[_Address, _Unit] = {}
        self._unwritten: dict[_Address, None] = {}

    @contextmanager
    def holding(self) -> Iterator[None]:
        """Hold the units that are opened in the body, so that each is read and decrypted once.

        The body is one transaction, or a look at one state.
        """
        self.forget()
        try:
            yield
        finally:
            self.forget()

    @property
    def has_unwritten(self) -> bool:
        """Whether there are wiped slots for `write_down`."""
        return bool(self._unwritten)

    def mark(self) -> VaultMark:
        """Return what `back_to` needs to undo what is wiped from here on and not written yet."""
        return VaultMark(self._opened.copy(), self._unwritten.copy())

    def back_to(self, mark: VaultMark) -> None:
        """Undo what was wiped since."""
        self._asked.clear()
        self._opened, self._unwritten = mark

    def forget(self, kind: Kind | None = None, segment: int | None = None, unit: int | None = None) -> None:
        """Hold no unit, or none of these."""
        held: dict[_Address, Any]
        for held in (self._asked, self._opened, self._unwritten):
            if kind is None:
                held.clear()
            elif unit is not None and segment is not None:
                held.pop((kind, segment, unit), None)
            else:
                for address in [one for one in held if one[0] == kind and segment in (None, one[1])]:
                    del held[address]

    def __repr__(self) -> str:
        return "Vault()"

    def over(self, connection: Statements) -> "Vault":
        """Return a vault with the same key over another database."""
        return Vault(connection, self._store_key)

    def derived_key(self, purpose: bytes) -> bytes:
        """Return a key for another purpose, which discloses nothing about the store key."""
        return hmac.digest(self._store_key, purpose, "sha256")

    def put(self, kind: Kind, segment: int, secret: bytes) -> None:
        """Encrypt `secret`, divided into slots of the kind's size, as slots 0, 1, ... of a new segment."""
        width = SLOT_BYTES[kind]
        rows = []
        self.forget(kind, segment)
        for span in _spans(0, len(secret) // width):
            start = span.unit * SLOTS_PER_UNIT * width
            unit = _Unit(span.bits, secret[start : start + span.high * width])
            rows.append((kind, segment, span.unit, self._sealed(kind, segment, span.unit, unit)))
        self._connection.executemany(
            "INSERT INTO sealed_unit (kind, segment, unit, sealed) VALUES (?,?,?,?)", rows
        )

    def ask(self, kind: Kind, segment: int, first: int, count: int) -> None:
        """Ask the database for the units of slots that are about to be read or wiped (`qnode.sql.ask`)."""
        for span in _spans(first, count):
            self._ask((kind, segment, span.unit))

    def _ask(self, address: _Address) -> None:
        if address not in self._opened and address not in self._asked:
            self._asked[address] = ask(
                self._connection,
                "SELECT sealed FROM sealed_unit WHERE kind = ? AND segment = ? AND unit = ?",
                *address,
            )

    def read(self, kind: Kind, segment: int, first: int, count: int) -> bytes:
        """Decrypt `count` slots from `first` on.

        Raises DamagedUnit if a slot is missing or cannot be decrypted (damage, or a wrong store key).
        """
        width = SLOT_BYTES[kind]
        parts = []
        self.ask(kind, segment, first, count)
        for span in _spans(first, count):
            unit = self._open(kind, segment, span)
            parts.append(unit.slots[span.low * width : span.high * width])
        return b"".join(parts)

    def wipe(self, kind: Kind, segment: int, first: int, count: int) -> None:
        """Destroy slots, each only once. Raises DamagedUnit like `read`."""
        self.wipe_all(kind, [(segment, first, count)])

    def wipe_all(self, kind: Kind, runs: Iterable[tuple[int, int, int]]) -> None:
        """Destroy runs of slots (segment, first, count), all or none. Raises like `wipe`.

        `write_down` writes it to the database.
        """
        width = SLOT_BYTES[kind]
        spans = [(segment, span) for segment, first, count in runs for span in _spans(first, count)]
        for segment, span in spans:
            self._ask((kind, segment, span.unit))
        mark = self.mark()
        try:
            for segment, span in spans:
                unit = self._open(kind, segment, span)
                live = unit.live & ~span.bits
                blank = bytes((span.high - span.low) * width)
                slots = b"".join((unit.slots[: span.low * width], blank, unit.slots[span.high * width :]))
                self._opened[kind, segment, span.unit] = _Unit(live, slots)
                self._unwritten[kind, segment, span.unit] = None
        except DamagedUnit:
            self.back_to(mark)
            raise

    def write_down(self) -> None:
        """Encrypt the units without the slots that were wiped since the last time, each once."""
        unwritten, self._unwritten = self._unwritten, {}
        for address in unwritten:
            if self._opened[address].live:
                self._connection.execute(
                    "UPDATE sealed_unit SET sealed = ? WHERE kind = ? AND segment = ? AND unit = ?",
                    (self._sealed(*address, self._opened[address]), *address),
                )
            else:
                self.drop(*address)

    def drop_secret_of_finished(self, block_id: int) -> None:
        """Wipe the secret of a block if no chunk of it is left."""
        self.forget(Kind.BLOCK_SECRET, block_id)
        self._connection.execute(
            "DELETE FROM sealed_unit WHERE kind = ? AND segment = ? AND EXISTS "
            "(SELECT 1 FROM block WHERE block_id = ? AND chunks_left = 0)",
            (Kind.BLOCK_SECRET, block_id, block_id),
        )

    def drop(self, kind: Kind, segment: int | None = None, unit: int | None = None) -> None:
        """Wipe every slot of a unit, of a segment, or of all segments of the kind; there may be none."""
        self.forget(kind, segment, unit)
        if segment is None:
            self._connection.execute("DELETE FROM sealed_unit WHERE kind = ?", (kind,))
        elif unit is None:
            self._connection.execute(
                "DELETE FROM sealed_unit WHERE kind = ? AND segment = ?", (kind, segment)
            )
        else:
            self._connection.execute(
                "DELETE FROM sealed_unit WHERE kind = ? AND segment = ? AND unit = ?", (kind, segment, unit)
            )

    def spoilt(self, kind: Kind, segment: int, unit: int) -> bool:
        """Return whether a unit exists and cannot be decrypted."""
        there = self._connection.execute(
            "SELECT 1 FROM sealed_unit WHERE kind = ? AND segment = ? AND unit = ?", (kind, segment, unit)
        ).fetchone()
        try:
            self._open(kind, segment, _Span(unit, 0, 0))
        except DamagedUnit:
            return there is not None
        return False

    def opens_any(self, kinds: Iterable[Kind]) -> bool:
        """Return whether any unit of these kinds can be decrypted, so that the store key is right."""
        for kind in kinds:
            rows = self._connection.execute(
                "SELECT segment, unit FROM sealed_unit WHERE kind = ? LIMIT 4", (kind,)
            ).fetchall()
            for segment, unit in rows:
                try:
                    self._open(kind, segment, _Span(unit, 0, 0))
                except DamagedUnit:
                    continue
                return True
        return False

    def _sealed(self, kind: Kind, segment: int, number: int, unit: _Unit) -> bytes:
        nonce = secrets.token_bytes(_NONCE_BYTES)
        content = unit.live.to_bytes(_LIVE_BYTES, "big") + unit.slots
        return nonce + self._cipher(kind, segment).encrypt(nonce, content, _address(kind, segment, number))

    def _open(self, kind: Kind, segment: int, span: _Span) -> _Unit:
        """Decrypt the unit of `span`, all of whose slots must be live."""
        address = kind, segment, span.unit
        unit = self._opened.get(address)
        if unit is None:
            self._ask(address)
            row = self._asked.pop(address).fetchone()
            if row is None:
                raise DamagedUnit(*address, "is missing: the database is damaged")
            try:
                content = self._cipher(kind, segment).decrypt(
                    row[0][:_NONCE_BYTES], row[0][_NONCE_BYTES:], _address(*address)
                )
            except (InvalidTag, ValueError):  # ValueError: too short to have a nonce
                raise DamagedUnit(
                    *address, "does not open: the database is damaged; check its disk"
                ) from None
            unit = _Unit(int.from_bytes(content[:_LIVE_BYTES], "big"), content[_LIVE_BYTES:])
            self._opened[address] = unit
        if unit.live & span.bits != span.bits:
            raise DamagedUnit(
                kind,
                segment,
                span.unit,
                f"has wiped slots among {span.low} to {span.high - 1}: the database is damaged",
            )
        return unit

    def _cipher(self, kind: Kind, segment: int) -> AESGCM:
        cipher = self._ciphers.get((kind, segment))
        if cipher is None:
            if len(self._ciphers) >= _MOST_CIPHERS:
                self._ciphers.clear()
            context = b"qnode units\0" + kind.encode() + b"\0" + segment.to_bytes(8, "big")
            cipher = AESGCM(hmac.digest(self._store_key, context, "sha256"))
            self._ciphers[kind, segment] = cipher
        return cipher


def _address(kind: Kind, segment: int, unit: int) -> bytes:
    return kind.encode() + b"\0" + segment.to_bytes(8, "big") + unit.to_bytes(8, "big")
