"""What the tests of the link share: a pool of pads in memory, two fitting ends, sessions, certificates."""

import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio
import trustme
from msgspec import Struct
from trio.testing import memory_stream_pair

from qnode.config import LinkParameters, Role, SiteConfig, TlsFiles
from qnode.errors import LinkError, PoolExhausted, StoreError
from qnode.keys import KeyStore
from qnode.link.frames import FrameStream
from qnode.link.hello import LocalEnd, exchange_hello
from qnode.link.session import Session, open_session
from qnode.link.tls import TlsTransport
from qnode.node.link_node import LinkNode
from qnode.node.reload import read_directory


class MemoryPadId(Struct, frozen=True):
    segment: int
    index: int


@dataclass(frozen=True)
class MemoryPad:
    pad_id: MemoryPadId
    pad: bytes


@dataclass(frozen=True)
class MemoryHashKeys:
    send: bytes
    receive: bytes


@dataclass
class MemoryPads:
    """Both sites derive the same pads from a seed, as from one pre-shared key."""

    role: Role
    seed: int = 1
    n_pads: int = 64
    sent: int = 0
    received: int = 0
    root: bytes = b""
    confirmed: list[int] = field(default_factory=list)

    def session_root(self) -> bytes:
        return self.root or self._bytes(0, 32)

    def hash_keys(self) -> MemoryHashKeys:
        keys = (self._bytes(1, 16), self._bytes(2, 16))
        return MemoryHashKeys(*keys) if self.role == "alice" else MemoryHashKeys(*reversed(keys))

    def reserve_send_pad(self) -> MemoryPad:
        if self.sent >= self.n_pads:
            raise PoolExhausted("no pad is left")
        self.sent += 1
        return MemoryPad(MemoryPadId(0, self.sent - 1), self._pad(self.role, self.sent - 1))

    def receive_pad(self, pad_id: MemoryPadId) -> bytes:
        if pad_id.segment != 0 or not self.received <= pad_id.index < self.n_pads:
            raise StoreError(f"pad {pad_id.segment}/{pad_id.index} is used or unknown")
        return self._pad("bob" if self.role == "alice" else "alice", pad_id.index)

    def confirm_receive_pad(self, pad_id: MemoryPadId) -> None:
        self.received = pad_id.index + 1
        self.confirmed.append(pad_id.index)

    def _pad(self, sender: Role, index: int) -> bytes:
        return self._bytes((10 if sender == "alice" else 11) + 10 * index, 16)

    def _bytes(self, what: int, length: int) -> bytes:
        return random.Random(1000 * self.seed + what).randbytes(length)


async def in_loop(function: Any) -> Any:
    return function()


def local_end(role: Role, **changes: Any) -> LocalEnd:
    other = "bob" if role == "alice" else "alice"
    values: dict[str, Any] = {
        "role": role,
        "kme_id": f"kme-{role}",
        "peer_kme_id": f"kme-{other}",
        "parameters": LinkParameters(),
        "secrets": MemoryPads(role),
        "run_sync": in_loop,
    }
    return LocalEnd(**(values | changes))


@dataclass
class Two:
    """One value for each site."""

    alice: Any = None
    bob: Any = None


@dataclass
class Greetings(Two):
    """What came of a hello at each site, and the frames that it left."""

    frames: Two = field(default_factory=Two)


async def greet_both(alice: LocalEnd, bob: LocalEnd, streams: Two | None = None) -> Greetings:
    """Say hello from both ends; each outcome is a `Greeted` or the error that was raised."""
    if streams is None:
        streams = Two(*memory_stream_pair())
    frames = Two(FrameStream(streams.alice), FrameStream(streams.bob))
    greeted = Greetings(frames=frames)

    async def one(name: str, local: LocalEnd, *, connected: bool) -> None:
        side: FrameStream = getattr(frames, name)
        try:
            setattr(greeted, name, await exchange_hello(side, local, connected=connected))
        except LinkError as error:
            setattr(greeted, name, error)
            await side.stream.aclose()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: one("alice", alice, connected=False))
        nursery.start_soon(lambda: one("bob", bob, connected=True))
    return greeted


@asynccontextmanager
async def memory_sessions(streams: Two | None = None) -> AsyncIterator[Two]:
    """Run two sessions with each other over memory streams."""
    ends = Two(local_end("alice"), local_end("bob"))
    greeted = await greet_both(ends.alice, ends.bob, streams)
    frames = greeted.frames
    failure: Exception | None = None
    async with AsyncExitStack() as stack:
        alice: Session = await stack.enter_async_context(
            open_session(frames.alice, ends.alice, greeted.alice)
        )
        bob: Session = await stack.enter_async_context(open_session(frames.bob, ends.bob, greeted.bob))
        try:
            yield Two(alice, bob)
        except Exception as error:  # noqa: BLE001 - a session without a goodbye would hide it
            failure = error
    if failure is not None:
        raise failure


def tls_files(
    folder: Path, authority: trustme.CA, *identities: str, common_name: str | None = None
) -> TlsFiles:
    """Issue a certificate and write what `TlsTransport` reads."""
    issued = authority.issue_cert(*identities, common_name=common_name)
    name = "+".join(identities) or str(common_name)
    files = TlsFiles(ca=folder / "ca.pem", certificate=folder / f"{name}.pem", key=folder / f"{name}.key")
    authority.cert_pem.write_to_path(str(files.ca))
    files.certificate.write_bytes(b"".join(pem.bytes() for pem in issued.cert_chain_pems))
    issued.private_key_pem.write_to_path(str(files.key))
    return files


def transport(files: TlsFiles, peer_kme_id: str, port: int = 0, **changes: Any) -> TlsTransport:
    return TlsTransport(f"127.0.0.1:{port}", files, peer_kme_id, **changes)


def link_node(config: SiteConfig, store: KeyStore) -> LinkNode:
    """Return the only link of a site."""
    return LinkNode(config, store, read_directory([config]))
