"""Two sites with ETSI GS QKD 004 behind real mutual TLS, over the in-memory supply of the tests of 014."""

import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from uuid import UUID

import msgspec
import trio
import trustme
from etsi014_support import ENTRIES, A, B, MemorySupply
from http_support import HOST, Pki

from qnode.delivery import Delivery, SaeDirectory
from qnode.errors import LinkDown
from qnode.etsi004 import PeerSites, StreamCalls, server
from qnode.etsi004.wire import Qos, Status, message
from qnode.http import Limits, Server

QOS = Qos(key_chunk_bytes=32, timeout_ms=2000, ttl_s=60, metadata_mimetype="application/json")
NULL = UUID(int=0)


@dataclass
class Line(PeerSites):
    """The link between both sites, as one of them sees it. ``lost``: answers that do not arrive."""

    own: str
    sites: dict[str, StreamCalls]
    up: bool = True
    lost: int = 0
    asked: list[bytes] = field(default_factory=list)

    def reaches(self, kme_id: str) -> bool:
        return self.up and kme_id in self.sites

    async def ask(self, kme_id: str, request: bytes) -> bytes:
        if not self.reaches(kme_id):
            raise LinkDown("no session")
        self.asked.append(request)
        await trio.lowlevel.checkpoint()
        answer = await self.sites[kme_id].peer_calls.serve(self.own, request)
        if not self.up or self.lost:
            self.lost = max(0, self.lost - 1)
            raise LinkDown("the session ended before the peer answered")
        return answer


@dataclass
class Answer:
    """What an application reads."""

    status: Status
    qos: Qos = field(default_factory=Qos)
    stream_id: UUID = NULL
    index: int = 0
    key: bytes = b""
    metadata: bytes = b""

    @property
    def facts(self) -> dict[str, object]:
        return dict(msgspec.json.decode(self.metadata))


class Application:
    """A client with one connection; ``padded``: in QUBIP's form, otherwise in ETSI's."""

    def __init__(self, stream: trio.abc.Stream, *, padded: bool = True) -> None:
        self.stream = stream
        self.padded = padded
        self.opened = NULL

    async def call(self, service: int, payload: bytes) -> bytes:
        await self.stream.send_all(message(b"\x01\x00\x01", service, payload))
        header = await self._read(8)
        assert header[:4] == b"\x01\x00\x01" + bytes([service + 1])
        return await self._read(struct.unpack("!I", header[4:])[0])

    async def open_connect(
        self, source: str, destination: str, qos: Qos = QOS, stream_id: UUID = NULL
    ) -> Answer:
        mimetype = qos.metadata_mimetype.encode()
        numbers = (
            qos.key_chunk_bytes,
            qos.max_bps,
            qos.min_bps,
            qos.jitter_bps,
            qos.priority,
            qos.timeout_ms,
            qos.ttl_s,
        )
        asked = source.encode() + b"\0" + destination.encode() + b"\0" + struct.pack("!7I", *numbers)
        asked += mimetype.ljust(256, b"\0") if self.padded else mimetype + b"\0"
        told = await self.call(0x02, asked + stream_id.bytes)
        status, *values = struct.unpack("!8I", told[:32])
        assert len(told) - 48 == 256 if self.padded else told[32:-16].endswith(b"\0")
        found = Qos(
            key_chunk_bytes=values[0],
            max_bps=values[1],
            min_bps=values[2],
            jitter_bps=values[3],
            priority=values[4],
            timeout_ms=values[5],
            ttl_s=values[6],
            metadata_mimetype=told[32:-16].rstrip(b"\0").decode(),
        )
        self.opened = UUID(bytes=told[-16:])
        return Answer(Status(status), found, self.opened)

    async def get_key(self, index: int, metadata_bytes: int = 1024, stream_id: UUID | None = None) -> Answer:
        wanted = struct.pack("!II", index, metadata_bytes)
        if not self.padded:
            wanted += bytes(metadata_bytes)
        told = await self.call(0x04, (stream_id or self.opened).bytes + wanted)
        status, at, size = struct.unpack("!III", told[:12])
        metadata_size = struct.unpack("!I", told[12 + size : 16 + size])[0]
        assert len(told) == 16 + size + metadata_size
        return Answer(Status(status), Qos(), NULL, at, told[12 : 12 + size], told[16 + size :])

    async def close(self, stream_id: UUID | None = None) -> Status:
        told = await self.call(0x08, (stream_id or self.opened).bytes)
        return Status(struct.unpack("!I", told)[0])

    async def _read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            part = await self.stream.receive_some(size - len(data))
            assert part, "the server closed"
            data += part
        return data


@dataclass
class TwoSites:
    """Two sites that serve; `restart` forgets the streams of one as a new daemon does."""

    pki: Pki
    supply: MemorySupply
    calls: dict[str, StreamCalls]
    lines: dict[str, Line]
    servers: dict[str, Server]
    stack: AsyncExitStack
    nursery: trio.Nursery
    leaves: dict[str, trustme.LeafCert] = field(default_factory=dict)

    async def application(self, name: str, kme: str, *, padded: bool = True) -> Application:
        return Application(await self.connect(name, kme), padded=padded)

    async def connect(self, name: str, kme: str) -> trio.SSLStream[trio.SocketStream]:
        leaf = self.leaves.setdefault(name, self.pki.ca.issue_cert(common_name=name))
        stream = await trio.open_ssl_over_tcp_stream(
            HOST, self.servers[kme].port, ssl_context=self.pki.client_context(leaf)
        )
        await stream.do_handshake()
        self.stack.push_async_callback(trio.aclose_forcefully, stream)
        return stream

    async def pair(self, qos: Qos = QOS) -> tuple[Application, Application]:
        """Return applications at both ends of a new stream."""
        one, other = await self.application(A, "alice"), await self.application(B, "bob")
        opened = await one.open_connect(A, B, qos)
        assert opened.status == Status.SUCCESSFUL
        joined = await other.open_connect(B, A, qos, opened.stream_id)
        assert joined.status == Status.SUCCESSFUL
        return one, other

    def cut(self, *, up: bool = False) -> None:
        self.supply.link_up = up
        for line in self.lines.values():
            line.up = up


async def quiet(calls: Sequence[StreamCalls]) -> None:
    """Do at once what the sites do every second."""
    for one in calls:
        await one.look_after()


@asynccontextmanager
async def two_sites(
    pki: Pki, supply: MemorySupply | None = None, *, most_per_sae: int = 8, limits: Limits | None = None
) -> AsyncIterator[TwoSites]:
    supply = supply or MemorySupply(extension={"simulated": True})
    calls: dict[str, StreamCalls] = {}
    with trio.fail_after(100):
        async with trio.open_nursery() as nursery, AsyncExitStack() as stack:
            lines = {kme: Line(kme, calls) for kme in ("alice", "bob")}
            servers = {}
            for kme in ("alice", "bob"):
                directory = SaeDirectory(kme, ENTRIES, node_names=("node.alice", "node.bob"))
                calls[kme] = StreamCalls(
                    Delivery(directory, supply, simulated=True),
                    supply,
                    lines[kme],
                    most_per_sae=most_per_sae,
                    idle_limit_s=1000.0,
                    uris={"qkd//app2": B},
                )
                servers[kme] = server(calls[kme], pki.settings(), limits or Limits())
                await nursery.start(servers[kme].run, await trio.open_tcp_listeners(0, host=HOST))
            yield TwoSites(pki, supply, calls, lines, servers, stack, nursery)
            nursery.cancel_scope.cancel()
