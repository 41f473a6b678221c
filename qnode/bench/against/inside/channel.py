"""One end of the classical channel: what its messages cost, beside the bare work, with a checkout's code.

    channel.py SITE_FILE PARTS

Runs at both sites at once, each with its file; Bob's end connects to Alice's. Prints processor time of this
end: us of a round of 1 kB there and back, in a blocking TLS socket, as messages of a block between tasks, and
as those of a correction, whose replies are made where the message is read; ns a byte of batches from Bob to
Alice, in a blocking TLS socket, for their codes (frame and transcript), and as messages. Each is the least of
PARTS parts: while others use the processor, they also take the caches.
"""

import json
import socket
import ssl
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import trio
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.poly1305 import Poly1305

from qnode.config import SiteConfig, load
from qnode.errors import LinkError
from qnode.link.frames import FrameStream
from qnode.link.hello import LocalEnd, exchange_hello
from qnode.link.messages import BlockProposed, ClickBatch, ReconcileAnswer, ReconcileRequest
from qnode.link.session import Session, open_session
from qnode.link.tls import TlsTransport

MESSAGE_BYTES = 1000
BATCH_BYTES = 2_200_000
ROUNDS, BATCHES = 50, 4  # of a part
_READ_BYTES = 256 << 10
_PAUSE_S = 0.05
BLOCK = 1


@dataclass(frozen=True)
class HashKeys:
    """The hash keys of both directions."""

    send: bytes
    receive: bytes


class Secrets:
    """The secrets of a session that protects nothing."""

    def session_root(self) -> bytes:
        """Return the root of the session keys."""
        return bytes(32)

    def hash_keys(self) -> HashKeys:
        """Return the hash keys of both directions."""
        return HashKeys(bytes(16), bytes(16))


class Bare:
    """A blocking TLS socket between the sites."""

    def __init__(self, site: SiteConfig) -> None:
        self.listens = site.node.role == "alice"
        host, _, port = site.peer.address.rpartition(":")
        address = host, int(port)
        files = site.peer.tls
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if self.listens else ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(files.ca)
        context.load_cert_chain(files.certificate, files.key)
        if self.listens:
            context.num_tickets = 0
            with socket.create_server(address) as listener:
                connected = listener.accept()[0]
        else:
            connected = _connected(address)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = context.wrap_socket(connected, server_side=self.listens)
        self._buffer = memoryview(bytearray(_READ_BYTES))

    def read(self, n_bytes: int) -> None:
        """Read so many bytes."""
        while n_bytes:
            n_bytes -= self._socket.recv_into(self._buffer, min(n_bytes, _READ_BYTES)) or sys.exit("cut off")

    def rounds(self) -> None:
        """Send 1 kB there and back, several times."""
        for _ in range(ROUNDS):
            if self.listens:
                self.read(MESSAGE_BYTES)
                self._socket.sendall(bytes(MESSAGE_BYTES))
            else:
                self._socket.sendall(bytes(MESSAGE_BYTES))
                self.read(MESSAGE_BYTES)

    def batches(self) -> None:
        """Send batches from Bob to Alice, and 1 kB back."""
        if self.listens:
            self.read(BATCHES * BATCH_BYTES)
            self._socket.sendall(bytes(MESSAGE_BYTES))
        else:
            batch = bytes(BATCH_BYTES)
            for _ in range(BATCHES):
                self._socket.sendall(batch)
            self.read(MESSAGE_BYTES)

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()


def _connected(address: tuple[str, int]) -> socket.socket:
    while True:
        try:
            return socket.create_connection(address)
        except ConnectionRefusedError:  # the other end starts
            time.sleep(_PAUSE_S)


def least_s(work: Callable[[], object], parts: int) -> float:
    """Return the least processor time of so many parts, after one that does not count."""
    work()
    took_s = []
    for _ in range(parts):
        began_s = time.process_time()
        work()
        took_s.append(time.process_time() - began_s)
    return min(took_s)


def codes() -> Callable[[], None]:
    """Return the work of the codes that one end computes for a part of batches: of frames, of transcripts."""
    cipher, transcript, batch = AESGCM(bytes(32)), Poly1305(bytes(32)), bytes(BATCH_BYTES)

    def compute() -> None:
        for number in range(BATCHES):
            cipher.encrypt(number.to_bytes(12, "big"), b"", batch)
            transcript.update(batch)

    return compute


def inbox(session: Session) -> Any:
    """Return the inbox of a block, to which the session delivers."""
    try:
        channel: Any = import_module("qnode.node.dialogue.channel").BlockChannel(session, BLOCK)
    except ImportError:  # 0.1.0
        channel = import_module("qnode.node.dialogue").Dialogue(session, BLOCK)

    def deliver(message: Any) -> bool:
        if getattr(channel, "must_wait", False):
            return False
        channel.deliver_at_once(message)
        return True

    if hasattr(session, "deliver_at_once"):
        session.deliver_at_once = deliver
    return channel


async def route(session: Session, channel: Any) -> None:
    """Deliver the messages that wait."""
    async for message in session:
        await channel.deliver(message)


async def secured(site: SiteConfig) -> trio.abc.Stream:
    """Return a stream to the other site."""
    transport = TlsTransport(site.peer.address, site.peer.tls, site.peer.kme_id)
    transport.check()
    if site.node.role == "alice":
        listening = await transport.listen()
        return await transport.admit(await listening.listeners[0].accept())
    while True:
        try:
            return await transport.connect()
        except LinkError:
            await trio.sleep(_PAUSE_S)


async def messages(site: SiteConfig, parts: int) -> tuple[float, float, float]:
    """Return the time of a part of rounds, of one of replies and of one of batches."""
    role = site.node.role
    frames = FrameStream(await secured(site))
    local = LocalEnd(role, site.node.kme_id, site.peer.kme_id, site.link, Secrets())
    greeted = await exchange_hello(frames, local, connected=role == "bob")
    payload, batch = bytes(MESSAGE_BYTES), bytes(BATCH_BYTES)
    async with open_session(frames, local, greeted) as session, trio.open_nursery() as nursery:
        channel = inbox(session)
        nursery.start_soon(route, session, channel)
        if role == "alice":
            await channel.expect(BlockProposed)
        else:
            await channel.send(BlockProposed(block_id=BLOCK, run_id=1, first_slot=0, n_slots=1000))

        async def answered(*kinds: Any) -> None:
            await channel.expect(*kinds)
            await channel.send(ReconcileAnswer(block_id=BLOCK, payload=payload))

        async def rounds() -> None:
            for _ in range(ROUNDS):
                if role == "alice":
                    await answered(ReconcileRequest)
                else:
                    await channel.send(ReconcileRequest(block_id=BLOCK, payload=payload))
                    await channel.expect(ReconcileAnswer)

        async def replies() -> None:
            left = ROUNDS

            def reply(_message: Any) -> Any:
                nonlocal left
                left -= 1
                if not left:
                    return None
                if role == "alice":
                    return ReconcileAnswer(block_id=BLOCK, payload=payload)
                return ReconcileRequest(block_id=BLOCK, payload=payload)

            if role == "alice":
                await channel.converse(reply, lambda message: False, ReconcileRequest)
                await channel.send(ReconcileAnswer(block_id=BLOCK, payload=payload))
            else:
                await channel.send(ReconcileRequest(block_id=BLOCK, payload=payload))
                await channel.converse(reply, lambda message: False, ReconcileAnswer)

        async def batches() -> None:
            for index in range(BATCHES):
                if role == "bob":
                    await channel.send(ClickBatch(block_id=BLOCK, first_slot=index, payload=batch))
                elif index + 1 < BATCHES:
                    await channel.expect(ClickBatch)
                else:
                    await answered(ClickBatch)
            if role == "bob":
                await channel.expect(ReconcileAnswer)

        rounds_s = replies_s = await _least_s(rounds, parts)
        if hasattr(channel, "converse"):  # otherwise a correction has rounds between tasks
            replies_s = await _least_s(replies, parts)
        batches_s = await _least_s(batches, parts)
        if role == "alice":
            await trio.sleep(_PAUSE_S)  # Bob's end has measured by then, and leaves first
        nursery.cancel_scope.cancel()
    return rounds_s, replies_s, batches_s


async def _least_s(work: Callable[[], Awaitable[None]], parts: int) -> float:
    """Do what `least_s` does."""
    await work()
    took_s = []
    for _ in range(parts):
        began_s = time.process_time()
        await work()
        took_s.append(time.process_time() - began_s)
    return min(took_s)


def main() -> None:
    """Measure and print."""
    site, parts = load(Path(sys.argv[1]), SiteConfig), int(sys.argv[2])
    bare = Bare(site)
    bare_rounds_s, bare_batches_s = least_s(bare.rounds, parts), least_s(bare.batches, parts)
    bare.close()
    codes_s = least_s(codes(), parts)
    rounds_s, replies_s, batches_s = trio.run(messages, site, parts)
    us, ns = 1e6 / ROUNDS, 1e9 / (BATCHES * BATCH_BYTES)
    result = {
        "bare_us": us * bare_rounds_s,
        "bare_ns": ns * bare_batches_s,
        "code_ns": ns * codes_s,
        "round_us": us * rounds_s,
        "reply_us": us * replies_s,
        "byte_ns": ns * batches_s,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
