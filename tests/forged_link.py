"""Two sites with a supervised session over TCP and TLS in one event loop, and what lies between them."""

import hashlib
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field

import trio
from cuts import Encryptors, Line, check_settled
from cuts import session as block_session
from forging import Seen, Splitter, other
from keys_support import sqlite_of
from small_link import ROLES, SmallLink, SmallSite, Spoken, in_session

from qnode.config import Role
from qnode.errors import LinkError, NotEnoughKeys
from qnode.keys import BlockState
from qnode.link.peers import LinkFailure
from qnode.link.session import Session
from qnode.link.tls import TlsTransport


@dataclass(frozen=True)
class State:
    """What forgeries may not change: ``kept`` at all, ``generations`` by more than new sessions do."""

    kept: str
    generations: tuple[int, ...]


@dataclass
class Live:
    """Both sites with a supervised session.

    ``at``: each site in its session. ``failures``: what ended any. ``busy``: Bob's site makes blocks and
    assigns keys as long as a session lasts.
    """

    link: SmallLink
    encryptors: Encryptors
    at: dict[Role, Spoken] = field(default_factory=dict)
    sessions: dict[Role, int] = field(default_factory=lambda: {"alice": 0, "bob": 0})
    latest: dict[Role, Session] = field(default_factory=dict)
    busy: bool = False
    failures: dict[Role, list[LinkFailure]] = field(default_factory=lambda: {"alice": [], "bob": []})

    async def meet(self, site: SmallSite, session: Session) -> None:
        """Handle a session, as the node does, until it ends."""
        self.sessions[site.role] += 1
        self.latest[site.role] = session

        async def work(spoken: Spoken) -> None:
            self.at[site.role] = spoken
            while self.busy and site.role == "bob":
                await self.link.fill_blocks(spoken, 1)
                with suppress(NotEnoughKeys):
                    await self.encryptors.ask(spoken)
            await trio.sleep_forever()

        try:
            await in_session(site, session, work)
        finally:
            self.at.pop(site.role, None)

    async def settled(self) -> tuple[Spoken, Spoken]:
        """Return Alice's and Bob's part in a session that is settled at both."""
        with trio.fail_after(600):
            while len(self.at) < 2:  # noqa: ASYNC110
                await trio.sleep(0.05)
        return self.at["alice"], self.at["bob"]

    def failed(self, role: Role) -> LinkFailure | None:
        """Take the first failure that a site has told since the last call, and forget the others."""
        told = self.failures[role][:1]
        self.failures[role].clear()
        return told[0] if told else None

    def state(self) -> State:
        """Return what the sites have now."""
        kept, generations = hashlib.sha256(), []
        for site in self.link.sites:
            database = sqlite_of(site.store)
            for line in database.iterdump():
                if not line.startswith('INSERT INTO "site"'):
                    kept.update(line.encode())
            of_site = dict(
                zip(_columns(database), database.execute("SELECT * FROM site").fetchone(), strict=True)
            )
            generations += [of_site.pop(name) for name in ("generation", "peer_generation")]
            figures = site.figures.status().block.accepted, len(self.link.watches[site.role].spent)
            kept.update(repr((of_site, figures)).encode())
        return State(kept.hexdigest(), tuple(generations))

    async def make_keys(self) -> None:
        """Make a block and have both sites give a key of it to a pair of encryptors."""
        alice, bob = await self.settled()
        (block_id,) = await self.link.fill_blocks(bob, 1)
        while any(site.store.block_state(block_id) != BlockState.AVAILABLE for site in self.link.sites):  # noqa: ASYNC110
            await trio.sleep(0.05)
        for spoken in (alice, bob):
            await self.encryptors.ask(spoken)
        check_settled(self.link, self.encryptors)
        self.link.opened_after_block = block_id  # what is settled is not looked at again

    def end_sessions(self) -> None:
        """End the session at both sites; they meet again."""
        for spoken in list(self.at.values()):
            spoken.nursery.cancel_scope.cancel()


Pump = Callable[[Role, trio.abc.Stream, trio.abc.Stream], Awaitable[None]]


class Middle:
    """What Bob's connection to Alice's site passes through."""

    def __init__(self, to_bob: TlsTransport, to_alice: TlsTransport) -> None:
        self._to_bob, self._to_alice = to_bob, to_alice
        self.pump: Pump = self.passing
        self.reads_frames = False
        """It ends TLS on either side, which takes both certificates."""
        self.tls = Seen()
        """The bytes of the latest session in clear of forgeries, as they came."""
        self.ended = trio.Event()

    async def relay(self, from_bob: trio.abc.Stream) -> None:
        """Carry one connection."""
        pump, ended = self.pump, self.ended
        ends: dict[Role, trio.abc.Stream] = {}
        try:
            if self.reads_frames:
                ends["bob"] = await self._to_bob.admit(from_bob)
                ends["alice"] = await self._to_alice.connect()
            else:
                host, port = self._to_alice.host_and_port()
                ends = {"bob": from_bob, "alice": await trio.open_tcp_stream(host, port)}
                self.tls = Seen() if pump == self.passing else self.tls
            async with trio.open_nursery() as nursery:

                async def one(sender: Role) -> None:
                    with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                        await pump(sender, ends[sender], ends[other(sender)])
                    nursery.cancel_scope.cancel()

                for role in ROLES:
                    nursery.start_soon(one, role)
        except LinkError:
            return  # Bob or Alice has hung up already
        finally:
            with trio.CancelScope(shield=True):
                for stream in (from_bob, *ends.values()):
                    await trio.aclose_forcefully(stream)
            ended.set()

    async def passing(self, sender: Role, source: trio.abc.Stream, target: trio.abc.Stream) -> None:
        """Carry all bytes."""
        async for data in source:
            self.tls.frames[sender].append(bytes(data))
            await target.send_all(data)


def _columns(database: sqlite3.Connection) -> list[str]:
    return [row[1] for row in database.execute("PRAGMA table_info(site)")]


async def watched_session(link: SmallLink, encryptors: Encryptors) -> Seen:
    """Have the sites make two blocks, assign keys and give chunks away; return the frames of that."""
    line, seen = Line(), Seen()
    splitters = {role: Splitter() for role in ROLES}
    for role, stream in line.ends.items():
        line.ends[role] = _Tapped(stream, seen.frames[role], splitters[role])
    await block_session(link, line, encryptors, 2)
    encryptors.fetch_all()
    return seen


class _Tapped(trio.abc.Stream):
    """A stream whose sent frames are kept."""

    def __init__(self, stream: trio.abc.Stream, frames: list[bytes], splitter: Splitter) -> None:
        self._stream, self._frames, self._splitter = stream, frames, splitter

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        self._frames += self._splitter.frames(bytes(data))
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self._stream.receive_some(max_bytes)

    async def aclose(self) -> None:
        await self._stream.aclose()
