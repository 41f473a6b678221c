"""Both ends call in any order while the link is cut, answers are lost, keys run out and sites restart."""

from dataclasses import dataclass, field
from random import Random
from uuid import UUID

import pytest
import trio
from etsi004_support import Line
from etsi014_support import ENTRIES, A, B, MemorySupply
from trio.testing import MockClock

from qnode.delivery import Delivery, SaeDirectory, SaeEntry
from qnode.etsi004 import StreamCalls
from qnode.etsi004.wire import Close, GetKey, Got, OpenConnect, Qos, Status

ID = UUID(int=9)
QOS = Qos(key_chunk_bytes=32, timeout_ms=3000, ttl_s=20, metadata_mimetype="application/json")
STEPS = 120
NAMED = {
    "open": {0, 1, 4, 5},
    "get": {0, 2, 3, 4, 6},
    "close": {0, 3, 4},
}
SITES = {"alice": (A, B), "bob": (B, A)}


@dataclass
class Course:
    """One course of events, drawn from a seed."""

    random: Random
    supply: MemorySupply = field(default_factory=lambda: MemorySupply(chunks=400))
    calls: dict[str, StreamCalls] = field(default_factory=dict)
    lines: dict[str, Line] = field(default_factory=dict)
    life: int = 0
    """Counts what ends a stream: the next one may have other bytes at the same index."""
    given: dict[str, dict[int, bytes]] = field(default_factory=lambda: {A: {}, B: {}})
    ever: dict[str, set[bytes]] = field(default_factory=lambda: {A: set(), B: set()})
    compared: int = 0
    taken_back: set[bytes] = field(default_factory=set)
    given_again: int = 0
    seen: set[tuple[str, int]] = field(default_factory=set)

    def start(self, kme: str) -> None:
        self.lines.setdefault(kme, Line(kme, self.calls))
        directory = SaeDirectory(kme, ENTRIES)
        self.calls[kme] = StreamCalls(
            Delivery(directory, self.supply), self.supply, self.lines[kme], most_per_sae=4, idle_limit_s=200.0
        )

    def new_life(self) -> None:
        self.life += 1
        self.given = {A: {}, B: {}}

    async def step(self) -> None:
        deed = self.random.choices(
            ("get", "get both", "open", "close", "cut", "mend", "lose", "starve", "feed", "wait", "restart"),
            (30, 20, 8, 3, 3, 6, 3, 2, 4, 6, 1),
        )[0]
        kme = self.random.choice(("alice", "bob"))
        if deed == "get":
            await self.get(kme, self.random.randrange(12))
        elif deed == "get both":
            index = self.random.randrange(12)
            async with trio.open_nursery() as nursery:
                for one in ("alice", "bob", kme):
                    nursery.start_soon(self.get, one, index)
        elif deed == "open":
            own, other = SITES[kme]
            asked = OpenConnect(source=own, destination=other, qos=QOS, key_stream_id=ID, padded=True)
            opened = await self.calls[kme].open_connect(self.entry(kme), asked)
            self.note("open", opened.status)
        elif deed == "close":
            self.note("close", await self.calls[kme].close(self.entry(kme), Close(key_stream_id=ID)))
        elif deed in ("cut", "mend"):
            self.supply.link_up = deed == "mend"
            for line in self.lines.values():
                line.up = deed == "mend"
        elif deed == "lose":
            self.lines[kme].lost = 1
        elif deed == "starve":
            self.supply.chunks = 0
        elif deed == "feed":
            self.supply.chunks += 20
        elif deed == "wait":
            await trio.sleep(self.random.choice((0.5, 5.0, 25.0)))
        else:
            self.start(kme)
        await self.calls[kme].look_after()
        if not list(self.calls["alice"].home.streams):
            self.new_life()

    async def get(self, kme: str, index: int) -> None:
        asked = GetKey(key_stream_id=ID, index=index, metadata_bytes=1024)
        sae, life = SITES[kme][0], self.life
        got: Got = await self.calls[kme].get_key(self.entry(kme), asked)
        self.note("get", got.status)
        assert (got.status == Status.SUCCESSFUL) == bool(got.key)
        if not got.key:
            return
        if self.random.random() < 0.15:  # the client is gone, and no byte of the answer was sent
            self.calls[kme].take_back(self.entry(kme), asked, got)
            self.taken_back.add(got.key)
            return
        self.given_again += got.key in self.taken_back
        assert got.key not in self.ever[sae], "an end got a chunk twice"
        self.ever[sae].add(got.key)
        if life != self.life:
            return
        assert index not in self.given[sae]
        self.given[sae][index] = got.key
        other = self.given[SITES[kme][1]].get(index)
        assert other in (None, got.key), "the ends differ"
        self.compared += other is not None

    def note(self, call: str, status: Status) -> None:
        assert status in NAMED[call], (call, status)
        self.seen.add((call, int(status)))

    def entry(self, kme: str) -> SaeEntry:
        return next(sae for sae in self.calls[kme].delivery.directory.local if sae.sae_id == SITES[kme][0])

    async def end(self) -> None:
        """Close everything in order; then no key waits anywhere that somebody could still get."""
        self.supply.link_up = True
        for line in self.lines.values():
            line.up, line.lost = True, 0
        for kme in ("alice", "bob"):
            await self.calls[kme].close(self.entry(kme), Close(key_stream_id=ID))
        await trio.sleep(300.0)
        for _ in range(2):
            for kme in ("alice", "bob"):
                await self.calls[kme].look_after()
        assert not list(self.calls["alice"].home.streams)


@pytest.mark.parametrize("seed", range(40))
def test_every_call_ends_with_equal_bytes_once_or_a_named_status(seed: int) -> None:
    course = Course(Random(seed))

    async def run() -> None:
        course.start("alice")
        course.start("bob")
        for _ in range(STEPS):
            await course.step()
        await course.end()

    trio.run(run, clock=MockClock(autojump_threshold=0))


def test_the_courses_reach_what_they_are_for() -> None:
    compared, given_again, seen = 0, 0, set()

    async def run(course: Course) -> None:
        course.start("alice")
        course.start("bob")
        for _ in range(STEPS):
            await course.step()

    for seed in range(40):
        course = Course(Random(seed))
        trio.run(run, course, clock=MockClock(autojump_threshold=0))
        compared += course.compared
        given_again += course.given_again
        seen |= course.seen
    assert compared > 80
    assert given_again > 20
    assert seen == {(call, status) for call, statuses in NAMED.items() for status in statuses}
