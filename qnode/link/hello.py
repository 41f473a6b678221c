"""The hello: identifies the sites, compares their parameters, and proves that both know the session root.

Bob's site (which connected) sends `Hello`, and Alice's site answers with its own; each compares. If the sites
differ, each side names every difference and sends `Refused`. Otherwise Bob's proof comes first and Alice's
second, so that Alice sends nothing made with the session root to a client that does not know it. From then on
frames have a code.
"""

import os
import reprlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import trio
from msgspec import UNSET, UnsetType

from qnode import __version__
from qnode.config import LinkParameters, Role
from qnode.errors import (
    AuthenticationError,
    ConfigError,
    LinkError,
    PeerRefused,
    ProtocolError,
    StoreError,
    StoreUnusable,
)
from qnode.link.authentication import HashKeyPair
from qnode.link.codec import decode_hello, encode
from qnode.link.directions import outgoing_direction
from qnode.link.frames import FrameStream
from qnode.link.messages import (
    WORD_CHARACTERS,
    Hello,
    HelloMessage,
    HelloProof,
    Refused,
    SinceProtocol2,
    printable,
)
from qnode.link.protocol import (
    OLDEST_PROTOCOL,
    PROTOCOL,
    parameters_of_protocol_1,
    parameters_since_protocol_2,
    unsaid_in_protocol_1,
)
from qnode.link.session_keys import SessionKeys, derive_session_keys, joined_hellos

_REASON_CHARACTERS = 1900

T = TypeVar("T")


class RunSync(Protocol):
    """Run a function that blocks: `trio.to_thread.run_sync`, or in the loop itself in a simulated world."""

    def __call__(self, function: Callable[[], T], /) -> Awaitable[T]:
        """Return what ``function()`` returns."""


class SessionSecrets(Protocol):
    """The part of the pool that a session needs (`qnode.link.authentication.PadLedger`)."""

    def session_root(self) -> bytes:
        """Return the secret from which session keys derive."""

    def hash_keys(self) -> HashKeyPair:
        """Return the hash keys of both directions."""


@dataclass(frozen=True)
class Standing:
    """The positions of this site, for the peer: read again for each hello.

    ``pool_epoch`` is not sent: the number of the pre-shared key of the session's secrets, or of an earlier
    one.
    """

    last_block_id: int = 0
    generation: int = 0
    positions: bytes = b""
    store: bytes = b""
    pool_epoch: int = 0


@dataclass(frozen=True)
class LocalEnd:
    """This site for the link. ``run_sync`` and ``random_bytes`` are seams of the simulated world.

    Raises:
        ConfigError: a name is too long for a hello.
    """

    role: Role
    kme_id: str
    peer_kme_id: str
    parameters: LinkParameters
    secrets: SessionSecrets = field(repr=False)
    standing: Callable[[], Standing] = Standing
    software: str = f"qnode {__version__}"
    simulated: bool = False
    protocol: int = PROTOCOL
    oldest_protocol: int = OLDEST_PROTOCOL
    run_sync: RunSync = field(default_factory=lambda: trio.to_thread.run_sync)
    random_bytes: Callable[[int], bytes] = field(default_factory=lambda: os.urandom)

    def __post_init__(self) -> None:
        for place, name in (("node.kme_id", self.kme_id), ("link.name", self.parameters.name)):
            if not 0 < len(name) <= WORD_CHARACTERS:
                raise ConfigError(f"{place}: expected 1 to {WORD_CHARACTERS} characters, got {len(name)}")


@dataclass(frozen=True)
class Greeted:
    """The result of a hello: the proven peer, and the values for the session."""

    peer: Hello
    protocol: int
    hellos: bytes
    hash_keys: HashKeyPair = field(repr=False)
    standing: Standing = Standing()


async def exchange_hello(frames: FrameStream, local: LocalEnd, *, connected: bool) -> Greeted:
    """Say hello on fresh ``frames``; on return they are authenticated. ``connected``: this side connected.

    Raises:
        PeerRefused: the sites do not fit, or the peer refused; the message states the reason.
        AuthenticationError: the peer does not know the session root.
        PoolExhausted: no pre-shared key was loaded here.
        LinkError: the connection failed, the peer violated the protocol, or the key store refused a read.
        StoreUnusable: the key store can no longer be trusted.
    """
    standing = await _read(local, local.standing)  # before the secrets, so it is never of a later key
    session_root = await _read(local, local.secrets.session_root)
    hash_keys = await _read(local, local.secrets.hash_keys)
    ours = _our_hello(local, standing)
    our_payload = encode(ours)
    if connected:
        await frames.send(our_payload)
    their_payload = await frames.receive()
    theirs = _expect(Hello, decode_hello(their_payload))
    if not connected:
        await frames.send(our_payload)

    differences = find_differences(local, ours, theirs)
    if differences:
        reason = "; ".join(differences)
        await _refuse(frames, reason)
        raise PeerRefused(f"{local.peer_kme_id} does not fit: {reason}")

    hellos = joined_hellos(our_payload, their_payload, local.role)
    keys = derive_session_keys(session_root, hellos, outgoing_direction(local.role))
    await _exchange_proofs(frames, local, keys, hellos, connected=connected)
    frames.authenticate(keys.outgoing, keys.outgoing_frames, keys.incoming_frames)
    return Greeted(theirs, min(local.protocol, theirs.protocol), hellos, hash_keys, standing)


async def _read(local: LocalEnd, read: Callable[[], T]) -> T:
    """Return what the key store answers; that it refuses a read now ends this connection, not the node."""
    try:
        return await local.run_sync(read)
    except StoreUnusable:
        raise
    except StoreError as error:
        raise LinkError(f"the key store refused: {error}") from None


def find_differences(local: LocalEnd, ours: Hello, theirs: Hello) -> list[str]:
    """Return each reason why these two hellos do not fit, from the view of this side."""
    found: list[str] = []
    protocol = min(ours.protocol, theirs.protocol)
    if protocol < max(ours.oldest_protocol, theirs.oldest_protocol):
        found.append(
            f"protocol: ours {ours.oldest_protocol} to {ours.protocol}, "
            f"theirs {theirs.oldest_protocol} to {theirs.protocol}"
        )
    elif protocol == 1 and (unsaid := unsaid_in_protocol_1(local.parameters)):
        found.append(f"protocol: {unsaid}")
    if ours.role == theirs.role:
        found.append(
            f"node.role: ours {ours.role}, theirs {theirs.role}; one site must be alice, the other bob"
        )
    if theirs.kme_id != local.peer_kme_id:
        found.append(f"peer.kme_id: expected {local.peer_kme_id}, theirs {_short(theirs.kme_id)}")
    if ours.link_name != theirs.link_name:
        found.append(_difference("link.name", ours.link_name, theirs.link_name))
    if ours.simulated != theirs.simulated:
        found.append(_difference("node.allow_simulated", ours.simulated, theirs.simulated))
    found += _parameter_differences(ours.parameters, theirs.parameters, "link")
    if protocol >= 2:
        found += _parameter_differences(_said_since_2(ours), _said_since_2(theirs), "link")
    if not found and ours.parameters_digest != theirs.parameters_digest:
        found.append(_difference("link", ours.parameters_digest.hex(), theirs.parameters_digest.hex()))
    return list(dict.fromkeys(found))


def _said_since_2(hello: Hello) -> dict[str, Any]:
    return {} if isinstance(hello.since_2, UnsetType) else hello.since_2.parameters


def _parameter_differences(ours: dict[str, Any], theirs: dict[str, Any], path: str) -> list[str]:
    found: list[str] = []
    for name in [*ours, *(name for name in theirs if name not in ours)]:
        here = f"{path}.{name if name in ours else _short(name)}"
        our_value, their_value = ours.get(name, _ABSENT), theirs.get(name, _ABSENT)
        if isinstance(our_value, dict) and isinstance(their_value, dict):
            found += _parameter_differences(our_value, their_value, here)
        elif our_value != their_value:
            found.append(_difference(here, our_value, their_value))
    return found


class _Absent:
    def __repr__(self) -> str:
        return "absent"


_ABSENT = _Absent()


def _difference(place: str, ours: object, theirs: object) -> str:
    return f"{place}: ours {_short(ours)}, theirs {_short(theirs)}"


def _short(value: object) -> str:
    """Format a value of the peer: escaped, and limited in length and depth."""
    shown = reprlib.Repr()
    shown.maxlevel = 3
    shown.maxstring = shown.maxother = 120
    return shown.repr(value)


def _our_hello(local: LocalEnd, standing: Standing) -> Hello:
    tables, digest = parameters_of_protocol_1(local.parameters)
    return Hello(
        protocol=local.protocol,
        oldest_protocol=local.oldest_protocol,
        role=local.role,
        kme_id=local.kme_id,
        link_name=local.parameters.name,
        parameters_digest=digest,
        parameters=tables,
        nonce=local.random_bytes(32),
        last_block_id=standing.last_block_id,
        generation=standing.generation,
        positions=standing.positions,
        software=local.software,
        simulated=local.simulated,
        since_2=(
            SinceProtocol2(parameters=parameters_since_protocol_2(local.parameters), store=standing.store)
            if local.protocol > 1
            else UNSET
        ),
    )


async def _exchange_proofs(
    frames: FrameStream, local: LocalEnd, keys: SessionKeys, hellos: bytes, *, connected: bool
) -> None:
    if connected:
        await frames.send(encode(HelloProof(keys.proof(hellos))))
    proof = _expect(HelloProof, decode_hello(await frames.receive())).proof
    if not keys.peer_proves(hellos, proof):
        reason = "the session roots differ: load the same pre-shared key at both sites"
        await _refuse(frames, reason)
        raise AuthenticationError(f"{local.peer_kme_id}: {reason}")
    if not connected:
        await frames.send(encode(HelloProof(keys.proof(hellos))))


M = TypeVar("M", Hello, HelloProof)


def _expect(kind: type[M], message: HelloMessage) -> M:
    if isinstance(message, kind):
        return message
    if isinstance(message, Refused):
        raise PeerRefused(f"the peer refused: {printable(message.reason)}")
    raise ProtocolError(f"expected {kind.__name__}, got {type(message).__name__}")


async def _refuse(frames: FrameStream, reason: str) -> None:
    """Send the reason to the peer, if possible; our own error states it too."""
    try:
        await frames.send(encode(Refused(reason[:_REASON_CHARACTERS])))
    except LinkError:
        return
