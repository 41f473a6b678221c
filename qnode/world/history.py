"""All that a run of the world has shown: what the checker decides by.

Each site's store is wrapped (`ObservedStore`): what it was asked and what it answered goes into the history,
in the order in which things happened. `Wire` reads along what the sites say to each other, as an eavesdropper
who knows the frame format would.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from typing import Any
from uuid import UUID

from qnode.choices import Role
from qnode.keys import Answer, Assignment, KeyStore, Pad, PreparedBlock, StoredKey
from qnode.link.codec import decode, decode_hello
from qnode.link.frames import CODE_BYTES, LENGTH_BYTES
from qnode.link.messages import HelloProof, Message
from qnode.world.disk import Disk, PowerCut


@dataclass(frozen=True)
class Event:
    """Something that happened at ``site``, at ``at_s`` of the run."""

    at_s: float
    site: Role


@dataclass(frozen=True)
class Preparing(Event):
    """A block's key is handed to the store, to be prepared there."""

    block: PreparedBlock


@dataclass(frozen=True)
class Confirmed(Event):
    """A block's key became available."""

    block_id: int


@dataclass(frozen=True)
class PadSpent(Event):
    """A one-time pad left the store for a tag."""

    pad: bytes
    place: tuple[int, int]


@dataclass(frozen=True)
class Accepted(Event):
    """The store holds an assignment of the peer's."""

    assignment: Assignment


@dataclass(frozen=True)
class Delivered(Event):
    """The store handed out a key, to the master (``slave`` is None) or to a slave."""

    key: StoredKey
    slave: str | None


@dataclass(frozen=True)
class Answered(Event):
    """An encryptor got a key."""

    sae: str
    is_master: bool
    key_id: UUID
    key: bytes


@dataclass(frozen=True)
class NotFound(Event):
    """An encryptor asked for a key that a master at the other site has, and was told that there is none."""

    sae: str
    key_id: UUID


class Why(Enum):
    """For what reason a site may lawfully lack keys that it had."""

    OLD_DATABASE = "an old database was put back"
    DAMAGED = "a sealed unit was damaged"
    RESTORED = "a new pre-shared key was loaded"
    VOIDED = "the peer remembers a later state, or has voided all"
    PEER_LOST = "the peer could not open something"
    EXPIRED = "keys expired"


@dataclass(frozen=True)
class GaveUp(Event):
    """This site may lack keys that it had."""

    why: Why


@dataclass(frozen=True)
class Said(Event):
    """A message was sent."""

    message: Message
    connection: int


@dataclass
class History:
    """The events of a run, its log, and the pre-shared keys that were loaded."""

    now_s: Callable[[], float]
    events: list[Event] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    preshared: list[bytes] = field(default_factory=list, repr=False)
    on_said: Callable[[Message], None] = field(default=lambda message: None)
    """Is told each message as it is sent."""
    digest: Any = field(default_factory=hashlib.sha256)
    """Of every byte that was sent, in order."""

    def of(self, kind: type[Any]) -> list[Any]:
        """Return the events of one kind."""
        return [event for event in self.events if isinstance(event, kind)]


class ObservedStore:
    """A key store whose calls are written down; after a power cut nobody hears an answer."""

    def __init__(self, store: KeyStore, site: Role, disk: Disk, history: History) -> None:
        self._store = store
        self._site = site
        self._disk = disk
        self._history = history
        self._held: list[Event] | None = None

    def together(self, calls: Iterable[Callable[[], object]]) -> list[Answer]:
        """Make calls in one commit; what they did is written down once it is durable."""
        if self._disk.failed:
            raise PowerCut
        events: list[list[Event]] = []

        def observed(work: Callable[[], object], done: list[Event]) -> object:
            done.clear()  # what was rolled back is made again
            self._held = done
            try:
                return work()
            finally:
                self._held = None

        def each() -> Iterator[Callable[[], object]]:
            for work in calls:
                events.append([])
                yield partial(observed, work, events[-1])

        answers = self._store.together(each())
        if self._disk.failed:
            raise PowerCut
        for done, answer in zip(events, answers, strict=True):
            if answer.error is None:
                self._history.events += done
        return answers

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)
        if not callable(method):
            return method
        note = getattr(self, f"_note_{name}", None)

        def call(*args: Any, **kwargs: Any) -> Any:
            if self._disk.failed:
                raise PowerCut
            if name == "prepare":
                self._history.events.append(Preparing(self._history.now_s(), self._site, block=args[0]))
            result = method(*args, **kwargs)
            if self._disk.failed:
                raise PowerCut
            if note is not None:
                note(result, *args, **kwargs)
            return result

        setattr(self, name, call)  # looked up once
        return call

    def _add(self, kind: type[Event], **values: Any) -> None:
        events = self._history.events if self._held is None else self._held
        events.append(kind(at_s=self._history.now_s(), site=self._site, **values))

    def _note_confirm(self, _result: None, block_id: int) -> None:
        self._add(Confirmed, block_id=block_id)

    def _note_reserve_send_pad(self, pad: Pad) -> None:
        self._add(PadSpent, pad=pad.pad, place=(pad.pad_id.segment, pad.pad_id.index))

    def _note_accept_assignment(self, _result: None, assignment: Assignment, *_: Any, **__: Any) -> None:
        self._add(Accepted, assignment=assignment)

    def _note_deliver_to_master(self, keys: list[StoredKey], *_: Any) -> None:
        for key in keys:
            self._add(Delivered, key=key, slave=None)

    def _note_take_from_stock(self, keys: list[StoredKey], *_: Any) -> None:
        self._note_deliver_to_master(keys)

    def _note_deliver_to_slave(
        self, keys: list[StoredKey], slave: str, _master: str, _ids: Sequence[UUID]
    ) -> None:
        for key in keys:
            self._add(Delivered, key=key, slave=slave)

    def _note_confirm_generation(self, voided: bool, *_: Any) -> None:
        if voided:
            self._add(GaveUp, why=Why.VOIDED)

    def _note_accept_loss(self, _result: None, *_: Any) -> None:
        self._add(GaveUp, why=Why.PEER_LOST)

    def _note_expire(self, expired: int, *_: Any) -> None:
        if expired:
            self._add(GaveUp, why=Why.EXPIRED)


class Wire:
    """Reads one way of a connection."""

    def __init__(self, sender: Role, connection: int, history: History) -> None:
        self._sender = sender
        self._connection = connection
        self._history = history
        self._bytes = bytearray()
        self._proven = False

    def hear(self, data: bytes) -> None:
        """Take what the sender has sent."""
        self._history.digest.update(data)
        self._bytes += data
        while True:
            length = int.from_bytes(self._bytes[:LENGTH_BYTES], "big")
            end = LENGTH_BYTES + length + (CODE_BYTES if self._proven else 0)
            if len(self._bytes) < max(LENGTH_BYTES, end):
                return
            payload = bytes(self._bytes[LENGTH_BYTES : LENGTH_BYTES + length])
            del self._bytes[:end]
            message = decode(payload) if self._proven else decode_hello(payload)
            if isinstance(message, HelloProof):
                self._proven = True
            self._history.events.append(
                Said(self._history.now_s(), self._sender, message=message, connection=self._connection)
            )
            self._history.on_said(message)
