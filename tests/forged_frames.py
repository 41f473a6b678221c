"""Forge frames of a live link between two sites over TCP and TLS, and hold both sites to what they had.

``python tests/forged_frames.py --frames 1000000 --seed N [--processes 2] [--after FRAMES]`` draws forgeries
from a seed, and prints how each was met. Runs with other seeds add up; ``--after`` goes on where a run was
ended. Exit code 1: a forgery changed a store, a counter or the session of others, a site ended, or keys did
not flow afterwards. The attacker does not have the authentication key, and is in one of these places:

- caller: calls Alice's site beside the live session, with Bob's certificate: says forged hellos and proofs
- stranger: calls Alice's site beside the live session, and sends forged bytes of TLS
- relay: between the sites, with both certificates: reads the frames of a session and forges some of them
- busy: the same while the sites make blocks and assign keys all the time
- line: between the sites, without certificates: forges bytes of TLS

After a forgery between the sites the session ends, and they meet again.
"""

import argparse
import multiprocessing
import random
import re
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import structlog
import trio
import trustme
from cuts import Encryptors
from forged_link import Live, Middle, Pump, watched_session
from forging import HOWS, IN_CLEAR, Forger, Forgery, Seen, Splitter, flipped, other
from keys_support import memory_folder
from link_room import tls_files, transport
from small_link import ROLES, SmallLink, SmallSite, one_loop, small_link
from trio.testing import MockClock

from qnode.config import Role
from qnode.errors import LinkError
from qnode.link.hello import LocalEnd
from qnode.link.peers import connect_to_peer, serve_peer

# Rounds of so many forgeries from each place, one after the other at the same two sites.
ROUNDS = (("caller", 8, 500), ("busy", 10, 25), ("relay", 6, 500), ("stranger", 3, 500), ("line", 2, 500))
AT_A_LINK = sum(rounds * frames for _, rounds, frames in ROUNDS)
BESIDE = ("caller", "stranger")
# The other forgery of a session came first, so this one was not looked at and does not count.
UNREAD = ("LinkError: the peer closed the connection without a goodbye", "LinkError: the connection broke")
Rounds = tuple[tuple[str, int, int], ...]
Met = Counter[tuple[str, str, str]]


@dataclass
class Attack:
    """An attacker at a link; ``met``: how each forgery was met, by its place and how it was made."""

    live: Live
    middle: Middle
    rng: random.Random
    forger: Forger
    port: int
    met: Met = field(default_factory=Counter)

    async def round(self, place: str, frames: int) -> None:
        """Send forgeries from a place; raises AssertionError if one did more than end its connection."""
        before, parts, sessions = self.live.state(), await self.live.settled(), dict(self.live.sessions)
        for role in ROLES:
            self.live.failed(role)  # of the round before
        self.live.busy = place == "busy"
        forge, end = getattr(self, place), self.met.total() + frames
        while self.met.total() < end:
            await forge()
        self.middle.pump, self.middle.reads_frames = self.middle.passing, False
        if place == "busy":
            self.live.busy = False
            self.live.end_sessions()
        if place in BESIDE:
            assert await self.live.settled() == parts, f"{place}: the session of others ended"
            assert not self.live.failed("bob"), f"{place}: Bob's site saw it"
            assert self.live.sessions == sessions, f"{place}: it got a session"
        await self.live.settled()
        after = self.live.state()
        assert after.kept == before.kept or place == "busy", f"{place}: a forgery changed the state"
        assert after == before or place not in BESIDE, f"{place}: a forgery changed a generation"
        await self.live.make_keys()

    # Beside the live session

    async def caller(self) -> None:
        """Say a hello, and if it is answered a proof, neither of them true."""
        try:
            stream = await self._call_with_certificate()
        except LinkError as error:
            raise AssertionError(f"the caller was not let in: {error}") from None
        present, splitter, sent = Seen(), Splitter(), list[Forgery]()
        while len(sent) < 2 and (not sent or present.frames["alice"]):
            forgery = self.forger.forge("bob", None, present)
            sent.append(forgery)
            await self._send(stream, forgery)
            present.frames["bob"].append(forgery.data)
            if forgery.ends:
                break
            seen = len(present.frames["alice"])
            while seen == len(present.frames["alice"]) and (data := await _receive(stream)):
                present.frames["alice"] += splitter.frames(data)
        await self._read_to_end(stream)
        for forgery in sent[:-1]:
            self._count("caller", forgery.how, "answered with a hello")
        self._count("caller", sent[-1].how, await self._told("alice"))

    async def _call_with_certificate(self) -> trio.abc.Stream:
        wire = await self._connect()
        return await self.middle._to_alice._secure(wire, server_side=False)

    async def stranger(self) -> None:
        """Send bytes of TLS that were seen on the line, changed or not."""
        how, data = self._of_tls("bob", b"".join(self.middle.tls.frames["bob"]))
        stream = await self._connect()
        with suppress(trio.BrokenResourceError):
            await stream.send_all(data)
            await stream.send_eof()
        await self._read_to_end(stream)
        self._count("stranger", how, await self._told("alice"))

    async def _connect(self) -> trio.SocketStream:
        """Call Alice's site from another address each time: every address has a budget of calls."""
        address = f"127.{self.rng.randrange(1, 255)}.{self.rng.randrange(256)}.{self.rng.randrange(1, 255)}"
        return await trio.open_tcp_stream("127.0.0.1", self.port, local_address=address)

    async def _send(self, stream: trio.abc.Stream, forgery: Forgery) -> None:
        with suppress(trio.BrokenResourceError):
            await stream.send_all(forgery.data)
            if forgery.ends:
                await trio.aclose_forcefully(stream)

    async def _read_to_end(self, stream: trio.abc.Stream) -> None:
        while await _receive(stream):
            pass
        await trio.aclose_forcefully(stream)

    # Between the sites

    async def relay(self) -> None:
        """Pass frames on until one is forged in either direction."""
        first, latest = self.rng.choice((0, IN_CLEAR, IN_CLEAR)), 60 if self.live.busy else 6
        place = {role: min(self.rng.randint(first, latest) for _ in "ab") for role in ROLES}
        present, splitters = Seen(), {role: Splitter() for role in ROLES}
        sent: dict[Role, tuple[str, int]] = {}

        async def forge(sender: Role, true: bytes | None, target: trio.abc.Stream) -> None:
            forgery = self.forger.forge(sender, true, present)
            sent[sender] = forgery.how, len(present.frames[sender]) + forgery.follows
            if forgery.follows:
                await target.send_all(forgery.data)
            await target.send_all(forgery.data)
            if forgery.ends:
                await trio.aclose_forcefully(target)

        async def pump(sender: Role, source: trio.abc.Stream, target: trio.abc.Stream) -> None:
            async for data in source:
                for frame in splitters[sender].frames(bytes(data)):
                    if sender in sent:
                        await target.send_all(frame)
                    elif len(present.frames[sender]) == place[sender]:
                        await forge(sender, frame, target)
                    else:
                        await target.send_all(frame)
                        present.frames[sender].append(frame)

        sessions = dict(self.live.sessions)
        await self._between(pump, reads_frames=True)
        for sender, (how, number) in sent.items():
            reader = other(sender)
            self._count("busy" if self.live.busy else "relay", how, await self._told(reader))
            if number < IN_CLEAR:
                assert self.live.sessions[reader] == sessions[reader], f"relay: {how} made a session"
            elif self.live.sessions[reader] > sessions[reader]:
                read = self.live.latest[reader]._frames.received_frames
                assert read <= number + 1, f"relay: {how} as frame {number} was taken by {reader}"

    async def busy(self) -> None:
        """Do so while the sites make blocks."""
        await self.relay()

    async def line(self) -> None:
        """Pass bytes of TLS on until some are forged."""
        sender: Role = self.rng.choice(ROLES)
        passes_bytes = self.rng.randrange(1, 6000)
        seen, how = Seen(), ""

        async def pump(role: Role, source: trio.abc.Stream, target: trio.abc.Stream) -> None:
            nonlocal passes_bytes, how
            async for data in source:
                chunk = bytes(data)
                seen.frames[role].append(chunk)
                if role == sender and not how:
                    passes_bytes -= len(chunk)
                    if passes_bytes < 0:
                        how, chunk = self._of_tls(role, chunk, seen)
                await target.send_all(chunk)
                if how == "truncated" and role == sender:
                    return

        await self._between(pump, reads_frames=False)
        if how:
            self._count("line", how, await self._told(other(sender)))

    async def _between(self, pump: Pump, *, reads_frames: bool) -> None:
        """Have the next session of the sites pass through ``pump``, to its end."""
        for role in ROLES:
            self.live.failed(role)
        self.middle.pump, self.middle.reads_frames, self.middle.ended = pump, reads_frames, trio.Event()
        self.live.end_sessions()  # of the one before, which was perhaps not forged
        with trio.fail_after(600):
            await self.middle.ended.wait()

    # What came of it

    def _of_tls(self, sender: Role, true: bytes, seen: Seen | None = None) -> tuple[str, bytes]:
        """Return how bytes in the place of ``true`` were made, and the bytes."""
        rng, how = self.rng, self.rng.choice(HOWS)
        there = seen or self.middle.tls
        mirrored = b"".join(there.frames[other(sender)])
        if how == "flipped" or (how == "reflected" and not mirrored):
            return "flipped", flipped(rng, true)
        if how == "truncated":
            return how, true[: rng.randrange(len(true))]
        if how == "replayed":
            return how, (true + true) if seen else true
        if how == "reflected":
            return how, mirrored
        if how == "spliced":
            old = b"".join(self.middle.tls.frames[sender])
            return how, true[: rng.randrange(len(true))] + old[rng.randrange(len(old)) :]
        return how, rng.randbytes(rng.choice((1, 5, 100, 3000)))

    async def _told(self, role: Role) -> str:
        """Return, in words without figures, why a site has ended a connection."""
        with trio.fail_after(600):
            while (failure := self.live.failed(role)) is None:  # noqa: ASYNC110
                await trio.sleep(0.05)
        what = type(failure.error).__name__
        return f"{what}: {re.sub(r'[0-9]+', 'N', str(failure.error).split(': ')[0])}"

    def _count(self, place: str, how: str, met: str) -> None:
        if met not in UNREAD:
            self.met[place, how, met] += 1


async def _receive(stream: trio.abc.Stream) -> bytes:
    try:
        return bytes(await stream.receive_some())
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        return b""


# The world


@asynccontextmanager
async def attacked(folder: Path, link: SmallLink, seed: str) -> AsyncIterator[Attack]:
    """Lend an attacker at a link that lives."""
    encryptors = Encryptors(link)
    earlier = await watched_session(link, encryptors)
    live = Live(link, encryptors)
    authority = trustme.CA()
    files = {role: tls_files(folder, authority, f"kme-{role}") for role in ROLES}

    def local(site: SmallSite) -> LocalEnd:
        return replace(site.end(), standing=lambda: site.end().standing())

    async with trio.open_nursery() as nursery:
        port: int = await nursery.start(
            partial(serve_peer, on_failure=live.failures["alice"].append),
            local(link.alice),
            transport(files["alice"], "kme-bob"),
            partial(live.meet, link.alice),
        )
        middle = Middle(transport(files["alice"], "kme-bob"), transport(files["bob"], "kme-alice", port))
        listeners: Any = await nursery.start(partial(trio.serve_tcp, middle.relay, 0, host="127.0.0.1"))
        nursery.start_soon(
            partial(connect_to_peer, on_failure=live.failures["bob"].append),
            local(link.bob),
            transport(files["bob"], "kme-alice", listeners[0].socket.getsockname()[1]),
            partial(live.meet, link.bob),
        )
        rng = random.Random(seed)
        attack = Attack(live, middle, rng, Forger(rng, earlier), port)
        await live.make_keys()
        yield attack
        nursery.cancel_scope.cancel()


def forge(seed: str, rounds: Rounds = ROUNDS) -> tuple[Met, int]:
    """Forge frames of one link; return how they were met, and the number of sessions that the sites had.

    Raises AssertionError.
    """
    done: list[tuple[Met, int]] = []

    async def run(folder: Path, link: SmallLink) -> None:
        async with attacked(folder, link, seed) as attack:
            for place, number, frames in rounds:
                for _ in range(number):
                    await attack.round(place, frames)
            done.append((attack.met, attack.live.sessions["bob"]))

    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    # What waits is not waited for; a packet of this machine is here within milliseconds.
    with memory_folder() as folder, one_loop(seed), small_link(folder / "link") as link:
        trio.run(run, folder, link, clock=MockClock(autojump_threshold=0.005))
    return done[0]


def report(met: Met) -> str:
    """Return how forgeries were met: a line for each place and answer."""
    answers: dict[tuple[str, str], Counter[str]] = {}
    for (place, how, answer), number in met.items():
        answers.setdefault((place, answer), Counter())[how] += number
    rows = sorted(answers.items(), key=lambda row: (row[0][0], -row[1].total()))
    return "\n".join(
        f"{place:9}{hows.total():9}  {answer} ({', '.join(f'{how} {n}' for how, n in sorted(hows.items()))})"
        for (place, answer), hows in rows
    )


def main() -> int:
    """Forge frames in some processes, and print how they were met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--frames", type=int, default=1_000_000)
    parser.add_argument("--after", type=int, default=0, help="leave out so many, which an earlier run forged")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=2)
    given = parser.parse_args()
    begun, met, sessions = time.monotonic(), Met(), 0
    links = range(given.after // AT_A_LINK, -(-given.frames // AT_A_LINK))
    with multiprocessing.get_context("spawn").Pool(given.processes) as pool:
        for link_met, link_sessions in pool.imap(forge, [f"{given.seed}.{number}" for number in links]):
            met.update(link_met)
            sessions += link_sessions
            print(f"{given.after + met.total()} forgeries", file=sys.stderr, flush=True)
    print(report(met))
    print(
        f"{met.total()} forgeries in {time.monotonic() - begun:.0f} s, {sessions} sessions of the sites: "
        "no store, counter or session of others changed, and keys flow"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
