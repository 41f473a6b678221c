"""Decides whether a run kept the invariants, from its history and what lies in both stores at its end.

Small enough to be read in one go, and ignorant of how the node works: it knows what was asked, answered and
said, and holds that against docs/architecture.md, "Invariants". I6 the run decides itself, which knows when
its faults have healed. Of I7 the checker sees what forged messages would bring about (keys that differ, pads
used twice), of I9 the log alone.
"""

import base64
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from uuid import UUID

from qnode.audit.entries import KeyDelivered
from qnode.choices import Role
from qnode.distill.reconcile.cascade.message import Kind
from qnode.keys import BlockState, KeyLayout
from qnode.link.messages import (
    Amplify,
    ClicksEnded,
    DialogueMessage,
    Prepared,
    ReconcileAnswer,
    ReconcileRequest,
    SampleAnswer,
    Sifted,
    TranscriptTag,
)
from qnode.units import CHUNK_BYTES
from qnode.world.configuration import other, saes_of
from qnode.world.estimator import most_secret_bits
from qnode.world.history import (
    Accepted,
    Answered,
    Confirmed,
    Delivered,
    GaveUp,
    History,
    NotFound,
    PadSpent,
    Preparing,
    Said,
    Why,
)

PAD_BYTES = 16
_AT_LEAST_PREPARED = (BlockState.PREPARED, BlockState.AVAILABLE)
PRESHARED_HEAD_BYTES = 64
VERIFICATION_BITS = 64
_MOST_PADDING_BITS = {Kind.SEARCH: 7, Kind.BEGIN: 14, Kind.CHECK: 0}
"""Of an answer: each of its parts is filled up to whole octets."""
_TEXT_THAT_MAY_HIDE_A_KEY = re.compile(r"[A-Za-z0-9+/_=-]{16,}")


@dataclass
class StoreContents:
    """What lies in a site's store at the end of a run, all of it opened."""

    blocks: dict[int, BlockState]
    free: dict[tuple[int, int], Role]
    """By block and chunk: who may assign it."""
    promised: set[tuple[int, int]]
    """Chunks of own assignments that the peer is known to hold, and that are not delivered."""
    held: set[tuple[int, int]]
    """Chunks of the peer's assignments that wait for a slave."""
    audited: list[KeyDelivered]
    """Every delivery in its audit."""
    audit_findings: list[str]
    """What the verification of its audit finds."""
    n_chains: int
    """More than one: its store was set back."""
    secrets: list[bytes] = field(repr=False)
    """Every slot of every sealed unit of chunks, wiped ones too."""


@dataclass(frozen=True)
class Violation:
    """An invariant that did not hold."""

    invariant: str
    what: str

    def __str__(self) -> str:
        return f"{self.invariant}: {self.what}"


def check(history: History, stores: dict[Role, StoreContents], *, met: bool) -> list[Violation]:
    """Return every violation that shows.

    ``stores``: what lies in both at the end. ``met``: the sites were in a session then, with all settled.
    """
    return [
        *_same_bits(history, stores),
        *_delivered_once(history),
        *_prepared_at_the_peer(history),
        *(_held_at_the_peer(history, stores) if met else ()),
        *_one_purpose(history),
        *_wiped(history, stores),
        *_disclosed(history),
        *_nothing_in_the_log(history),
        *_pads_once(history),
        *_audited(history, stores),
    ]


def _same_bits(history: History, stores: dict[Role, StoreContents]) -> Iterator[Violation]:
    """I1: the same key_ID is the same bits at both sites; the same block is the same key."""
    known: dict[UUID, bytes] = {}
    for event in history.of(Answered):
        if known.setdefault(event.key_id, event.key) != event.key:
            yield Violation("I1", f"key {event.key_id} differs at {event.site}")
    blocks: dict[int, bytes] = {}
    for event in history.of(Preparing):
        if blocks.setdefault(event.block.block_id, event.block.key) != event.block.key:
            yield Violation("I1", f"block {event.block.block_id} has two keys")
    for place, owner in stores["alice"].free.items():
        if owner == "alice" and stores["bob"].free.get(place) == "bob":
            yield Violation("I2", f"both sites may assign chunk {place}")


def _delivered_once(history: History) -> Iterator[Violation]:
    """I2, I5: a key goes once to one master, once to each slave, never in both directions, never again."""
    masters: dict[UUID, Role] = {}
    slaves: set[tuple[UUID, str]] = set()
    chunks: dict[bytes, UUID] = {}
    for event in history.of(Delivered):
        key_id = event.key.key_id
        if event.slave is None:
            if key_id in masters:
                yield Violation(
                    "I2", f"key {key_id} was handed to a master twice, the second at {event.site}"
                )
            masters[key_id] = event.site
        else:
            if (key_id, event.slave) in slaves:
                yield Violation("I2", f"key {key_id} was handed to {event.slave} twice")
            slaves.add((key_id, event.slave))
            if masters.get(key_id) == event.site:
                yield Violation("I2", f"key {key_id} was handed out in both directions")
        for chunk in _chunks(event.key.key):
            if chunks.setdefault(_head(chunk), key_id) != key_id:
                yield Violation("I2", f"keys {chunks[_head(chunk)]} and {key_id} share a chunk")
    for event in history.of(Answered):
        if event.sae not in saes_of(event.site):
            yield Violation("I2", f"{event.sae} got a key at {event.site}")


def _prepared_at_the_peer(history: History) -> Iterator[Violation]:
    """I3: what is available at one site is at least prepared at the other, and what a master has is there."""
    preparing: set[tuple[Role, int]] = set()
    answered_s: dict[UUID, float] = {}
    gave_up: list[GaveUp] = []
    for event in history.events:
        if isinstance(event, Preparing):
            preparing.add((event.site, event.block.block_id))
        elif isinstance(event, Confirmed):
            if (other(event.site), event.block_id) not in preparing:
                yield Violation("I3", f"block {event.block_id} is available at {event.site} alone")
        elif isinstance(event, GaveUp):
            gave_up.append(event)
        elif isinstance(event, Answered) and event.is_master:
            answered_s[event.key_id] = event.at_s
        elif isinstance(event, NotFound):
            since_s = answered_s[event.key_id]
            if not any(_may_lack(one, event.site, since_s) for one in gave_up):
                yield Violation("I3", f"{event.sae} was told that key {event.key_id} does not exist")


def _may_lack(gave_up: GaveUp, site: Role, since_s: float) -> bool:
    """Tell whether ``site`` may lack a key that a master has got at ``since_s``, for what was given up."""
    if gave_up.why is Why.DAMAGED:  # which is found whenever somebody looks
        return True
    if gave_up.why is Why.EXPIRED:
        return gave_up.site == site and gave_up.at_s >= since_s
    return gave_up.at_s >= since_s


def _held_at_the_peer(history: History, stores: dict[Role, StoreContents]) -> Iterator[Violation]:
    """I3 at the end: what a site may assign is free for it at the other, what it has promised waits there."""
    if any(event.why is Why.DAMAGED for event in history.of(GaveUp)):
        return
    for site, contents in stores.items():
        there = stores[other(site)]
        for place, owner in contents.free.items():
            available = contents.blocks[place[0]] == BlockState.AVAILABLE
            if owner == site and available and there.free.get(place) != owner:
                yield Violation(
                    "I3", f"{site} may assign chunk {place}, which the other site has not free for it"
                )
        for place in contents.promised - there.held:
            yield Violation("I3", f"{site} has promised chunk {place}, which does not wait at the other site")
        for block_id, state in contents.blocks.items():
            state_there = there.blocks.get(block_id, BlockState.UNKNOWN)
            if state == BlockState.AVAILABLE and state_there not in _AT_LEAST_PREPARED:
                yield Violation(
                    "I3", f"block {block_id} is available at {site}, {state_there} at the other site"
                )


def _one_purpose(history: History) -> Iterator[Violation]:
    """I4: no bit serves two purposes. Every key and every pad lies where only such a one may lie."""
    pads, chunks = set[bytes](), set[bytes]()
    for preshared in history.preshared:
        pads |= set(_pieces(preshared[PRESHARED_HEAD_BYTES:], PAD_BYTES))
    for event in history.of(Preparing):
        layout: KeyLayout = event.block.layout
        start = layout.overhead_bytes
        pads |= set(_pieces(event.block.key[32:start], PAD_BYTES))
        chunks |= {_head(chunk) for chunk in _pieces(event.block.key[start:], CHUNK_BYTES)}
    for event in history.of(PadSpent):
        if event.pad not in pads:
            yield Violation("I4", f"pad {event.place} at {event.site} is no part of the pool")
    for event in history.of(Delivered):
        for chunk in _chunks(event.key.key):
            if _head(chunk) not in chunks:
                yield Violation("I4", f"key {event.key.key_id} at {event.site} is no chunk of any block")


def _wiped(history: History, stores: dict[Role, StoreContents]) -> Iterator[Violation]:
    """I5: delivered keys are wiped: a master's key at its site, a slave's key when no slave waits for it."""
    places: dict[bytes, tuple[int, int]] = {}
    for event in history.of(Preparing):
        start = event.block.layout.overhead_bytes
        for position, chunk in enumerate(_pieces(event.block.key[start:], CHUNK_BYTES)):
            places[_head(chunk)] = (event.block.block_id, position)
    slaves: dict[tuple[Role, tuple[int, int]], set[str]] = {}
    for event in history.of(Accepted):
        for item in event.assignment.ranges:
            for i in range(item.count):
                slaves[event.site, (item.block_id, item.first + i)] = set(event.assignment.slave_saes)
    remaining = {site: {_head(one) for one in contents.secrets} for site, contents in stores.items()}
    for event in history.of(Delivered):
        for chunk in _chunks(event.key.key):
            place = places.get(_head(chunk), (0, 0))
            waiting = slaves.get((event.site, place), set())
            waiting.discard(event.slave or "")
            if _head(chunk) in remaining[event.site] and (event.slave is None or not waiting):
                yield Violation("I5", f"key {event.key.key_id} was delivered and still lies at {event.site}")
            for site, contents in stores.items():
                if place in contents.free:
                    yield Violation("I5", f"chunk {place} was delivered and may be assigned at {site}")


def _disclosed(history: History) -> Iterator[Violation]:
    """I8: a key is no longer than the bound, whatever was disclosed of its block; nothing before its end."""
    disclosed: dict[int, int] = defaultdict(int)
    kept: dict[int, int] = {}
    asked: dict[int, Kind] = {}
    ended: set[int] = set()
    for event in history.of(Said):
        message = event.message
        if not isinstance(message, DialogueMessage):
            continue
        block_id = message.block_id
        match message:
            case ClicksEnded():
                ended.add(block_id)
            case Sifted():
                if block_id not in ended:
                    yield Violation("I8", f"block {block_id} was sifted before it was announced whole")
                if block_id in kept:
                    yield Violation("I8", f"block {block_id} was sifted twice")
                kept[block_id] = message.n_kept
            case SampleAnswer():
                disclosed[block_id] += min(8 * len(message.payload), kept.get(block_id, 0))
            case ReconcileRequest():
                asked[block_id] = Kind(message.payload[0])
            case ReconcileAnswer():
                disclosed[block_id] += 8 * len(message.payload) - _MOST_PADDING_BITS[asked[block_id]]
            case Amplify():
                most = most_secret_bits(kept.get(block_id, 0), disclosed[block_id], VERIFICATION_BITS)
                if message.length > most:
                    yield Violation("I8", f"block {block_id}: {message.length} secret bits, at most {most}")
    for event in history.of(Preparing):
        block = event.block
        most = most_secret_bits(kept.get(block.block_id, 0), disclosed[block.block_id], VERIFICATION_BITS)
        if 8 * len(block.key) > most:
            yield Violation(
                "I8", f"block {block.block_id}: a key of {8 * len(block.key)} bits, at most {most}"
            )


def _nothing_in_the_log(history: History) -> Iterator[Violation]:
    """I9: no key material in the log, as bytes, hexadecimal or base64."""
    secret: set[str] = set()
    for event in history.of(Delivered):
        secret |= _spellings(event.key.key)
    for event in history.of(PadSpent):
        secret |= _spellings(event.pad)
    for preshared in history.preshared:
        secret |= _spellings(preshared[:32])
    for line in history.log:
        for text in _TEXT_THAT_MAY_HIDE_A_KEY.findall(line):
            if any(text[i : i + 16].lower() in secret for i in range(len(text) - 15)):
                yield Violation("I9", f"key material in the log: {line[:60]} ...")


def _pads_once(history: History) -> Iterator[Violation]:
    """I10: a one-time pad is never used twice, and a tag never said twice with another content."""
    spent: set[bytes] = set()
    for event in history.of(PadSpent):
        if event.pad in spent:
            yield Violation("I10", f"pad {event.place} was used twice at {event.site}")
        spent.add(event.pad)
    tags: dict[bytes, tuple[Role, int, int]] = {}
    for event in history.of(Said):
        if isinstance(event.message, TranscriptTag | Prepared):
            said = (event.site, event.message.pad_segment, event.message.pad_index)
            if tags.setdefault(event.message.tag, said) != said:
                yield Violation("I10", f"a tag was said with two pads: {said}")


def _audited(history: History, stores: dict[Role, StoreContents]) -> Iterator[Violation]:
    """Every delivered key is in the audit, once for each of its encryptors, unless entries were lost.

    More entries than deliveries are those of processes that died between their commit and the answer.
    """
    for site, contents in stores.items():
        entries = {"master": set[bytes](), "slave": set[bytes]()}
        for entry in contents.audited:
            for i in range(0, len(entry.key_ids), 16):
                named = entry.key_ids[i : i + 16] + (entry.sae.encode() if entry.side == "slave" else b"")
                if named in entries[entry.side]:
                    yield Violation(
                        "audit", f"{site} has two entries of a delivery of one key to {entry.sae}"
                    )
                entries[entry.side].add(named)
        if contents.n_chains > 1:  # its store was set back: entries are lost, which the audit says
            continue
        for finding in contents.audit_findings:
            yield Violation("audit", f"at {site}: {finding}")
        for event in history.of(Delivered):
            side = "master" if event.slave is None else "slave"
            named = event.key.key_id.bytes + (event.slave or "").encode()
            if event.site == site and named not in entries[side]:
                yield Violation("audit", f"key {event.key.key_id} was delivered at {site} without an entry")


def _pieces(data: bytes, width: int) -> Iterator[bytes]:
    return (data[i : i + width] for i in range(0, len(data) - width + 1, width))


def _chunks(key: bytes) -> Iterator[bytes]:
    """Yield the chunks of a key; of one that ends within a chunk, that part."""
    return (key[i : i + CHUNK_BYTES] for i in range(0, len(key), CHUNK_BYTES))


def _head(chunk: bytes) -> bytes:
    """Return what tells a chunk from others, also where a key ends within it."""
    return chunk[:16]


def _spellings(secret: bytes) -> set[str]:
    """Return how the beginning of a secret could stand in a text."""
    head = secret[:16]
    return {
        head.hex()[:16],
        base64.b64encode(head).decode()[:16].lower(),
        base64.urlsafe_b64encode(head).decode()[:16].lower(),
    }
