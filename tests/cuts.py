"""A line that is cut at a chosen byte, and what must hold afterwards.

Run as a command, this cuts one block's session at every byte, and sessions of three blocks at every frame,
in both directions: ``python tests/cuts.py [--processes N] [--every N]``. It prints each cut after which
something does not hold, with the command that repeats it, and ends with 1 if there was one.
"""

import argparse
import multiprocessing
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import structlog
import trio
from keys_support import memory_folder
from small_link import (
    ROLES,
    Conduct,
    SmallLink,
    Spoken,
    all_keys,
    copied,
    one_loop,
    small_link,
    virtual_clock,
)
from trio.testing import memory_stream_one_way_pair

from qnode.config import Role
from qnode.errors import LinkError
from qnode.keys import BlockState, StoredKey
from qnode.operate.blocks.row import KEPT_BLOCKS


@dataclass(frozen=True)
class Cut:
    """Where a session ends: after so many bytes that ``sender`` has sent.

    ``loses``: data that the other site had sent and ``sender`` had not read is lost; else it reads first and
    notices. ``blocks``: how many the session makes, corrected by ``method``.
    """

    sender: Role
    after_bytes: int
    loses: bool = True
    blocks: int = 1
    method: str = "cascade"


class Line:
    """Two connected streams; ``frames``: after how many bytes each frame of either site ended."""

    def __init__(self, cut: Cut | None = None) -> None:
        self.cut = cut
        self.is_cut = False
        self.frames: dict[Role, list[int]] = {"alice": [], "bob": []}
        to_bob, from_alice = memory_stream_one_way_pair()
        to_alice, from_bob = memory_stream_one_way_pair()
        self._outgoing = {"alice": to_bob, "bob": to_alice}
        self.ends: dict[Role, trio.abc.Stream] = {
            "alice": _End(self, "alice", to_bob, from_bob),
            "bob": _End(self, "bob", to_alice, from_alice),
        }

    def break_off(self) -> None:
        """Wake whoever reads."""
        self.is_cut = True
        for stream in self._outgoing.values():
            stream.close()


class _End(trio.abc.Stream):
    def __init__(
        self,
        line: Line,
        role: Role,
        outgoing: trio.testing.MemorySendStream,
        incoming: trio.testing.MemoryReceiveStream,
    ) -> None:
        self._line, self._role = line, role
        self._outgoing, self._incoming = outgoing, incoming
        self._sent_bytes = 0

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        self._check()
        cut = self._line.cut
        first, self._sent_bytes = self._sent_bytes, self._sent_bytes + len(data)
        if cut is not None and cut.sender == self._role and self._sent_bytes > cut.after_bytes:
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                await self._outgoing.send_all(bytes(data)[: cut.after_bytes - first])
            self._line.break_off()
            self._check()
        await self._outgoing.send_all(data)
        self._line.frames[self._role].append(self._sent_bytes)

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        cut = self._line.cut
        if cut is not None and cut.sender == self._role and cut.loses:
            self._check()
        data = await self._incoming.receive_some(max_bytes)
        if cut is not None and cut.sender == self._role and cut.loses:
            self._check()
        if not data:
            self._check()
        return data

    async def aclose(self) -> None:
        self._outgoing.close()
        self._incoming.close()
        await trio.lowlevel.checkpoint()

    def _check(self) -> None:
        if self._line.is_cut:
            raise trio.BrokenResourceError("cut")


class Encryptors:
    """A pair of encryptors: each asks for a key of its own, and fetches what the other has asked for."""

    def __init__(self, link: SmallLink) -> None:
        self._link = link
        self.given: dict[Role, list[StoredKey]] = {"alice": [], "bob": []}

    async def ask(self, spoken: Spoken) -> None:
        """Assign a key at this site, and deliver it once the peer holds the assignment."""
        site = self._link.site(spoken.conversation.context.role)
        master, slave = _saes(site.role)
        assignment = site.store.assign(master, [slave], 1, 256, now=0.0)
        await spoken.conversation.keys.assignments.announce(assignment)
        site.store.acknowledge(assignment.assignment_id)
        self.given[site.role] += site.store.deliver_to_master(assignment.assignment_id)

    def fetch_all(self) -> None:
        """Fetch at either site what was delivered at the other: all of it, and the same bytes."""
        for role, peer in zip(ROLES, reversed(ROLES), strict=True):
            master, slave = _saes(role)
            keys = self.given[role]
            if keys:
                fetched = self._link.site(peer).store.deliver_to_slave(
                    slave, master, [k.key_id for k in keys]
                )
                assert [(k.key_id, k.key) for k in fetched] == [(k.key_id, k.key) for k in keys]
                keys.clear()


def _saes(role: Role) -> tuple[str, str]:
    return ("sae-a", "sae-b") if role == "alice" else ("sae-b", "sae-a")


def owners(link: SmallLink, role: Role) -> dict[tuple[int, int], str]:
    """Return whose each free chunk of a site's store is, by block and position."""
    with link.site(role).store._database.look() as tx:
        rows = tx.connection.execute("SELECT block_id, first, count, owner FROM free_range").fetchall()
    return {(block_id, first + i): owner for block_id, first, count, owner in rows for i in range(count)}


async def session(link: SmallLink, line: Line, encryptors: Encryptors, blocks: int) -> list[int]:
    """Make ``blocks`` blocks, then have each site assign a key, and Bob give chunks away.

    Returns the blocks' numbers. Raises AssertionError where a site ends otherwise than by the cut.
    """
    made: list[int] = []
    alice_done = trio.Event()

    async def bob(spoken: Spoken) -> None:
        made.extend(await link.fill_blocks(spoken, blocks))
        await encryptors.ask(spoken)
        await alice_done.wait()
        await spoken.conversation.keys.hand_over(
            link.bob.store.pending_handover() or link.bob.store.give_away(1)
        )

    async def alice(spoken: Spoken) -> None:
        while link.alice.figures.status().block.accepted < 1:  # noqa: ASYNC110
            await trio.sleep(0.25)
        await encryptors.ask(spoken)
        alice_done.set()
        await trio.sleep_forever()

    ended = await link.meet(line.ends, {"alice": Conduct(alice), "bob": Conduct(bob)})
    for role, errors in ended.items():
        unexpected = [error for error in errors if not isinstance(error, LinkError)]
        assert not unexpected, f"{role}: {unexpected!r}"
        if not line.is_cut:
            assert all("said goodbye" in str(error) for error in errors), f"{role}: {errors!r}"
    return made


def check_settled(link: SmallLink, encryptors: Encryptors) -> None:
    """Hold both sites against each other, and hand out every key that is left."""
    here, there = link.alice.store, link.bob.store
    gave_key = {}
    for site in link.sites:
        assert site.store.unconfirmed_blocks() == []
        rows = site.figures.blocks.table.latest(KEPT_BLOCKS)
        gave_key[site.role] = {row.block_id for row in rows if row.outcome == "accepted"}
        assert len({row.block_id for row in rows}) == len(rows), "a block is decided twice"
    for block_id in range(1, here.last_block_id + 1):
        states = {store.block_state(block_id) for store in (here, there)}
        available = states == {BlockState.AVAILABLE}
        assert available or states <= {BlockState.VOID, BlockState.UNKNOWN}, f"block {block_id}: {states}"
        for role in ROLES:
            if block_id > link.opened_after_block:
                assert (block_id in gave_key[role]) == available, f"{role}: block {block_id}"
    encryptors.fetch_all()
    assert here.counts().assigned == there.counts().assigned == 0
    assert owners(link, "alice") == owners(link, "bob")
    assert all_keys(link)
    assert here.counts().here == there.counts().here == 0


class Trial:
    """Runs cuts, each on a copy of the same two sites, which have made a block before."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._number = 0
        self._template = folder / "template"
        with one_loop("template"), small_link(self._template) as link:
            trio.run(self._first_block, link, clock=virtual_clock())

    async def _first_block(self, link: SmallLink) -> None:
        encryptors = Encryptors(link)
        await session(link, Line(), encryptors, 1)
        encryptors.fetch_all()

    def frames(self, blocks: int, method: str = "cascade") -> dict[Role, list[int]]:
        """Return where the frames of an uncut session end."""
        self._run(Line(), blocks, method)  # a session in which kernels are compiled says more
        line = Line()
        self._run(line, blocks, method)
        return line.frames

    def cut(self, cut: Cut) -> None:
        """Cut a session, and hold both sites to all that must hold.

        Raises AssertionError.
        """
        line = Line(cut)
        self._run(line, cut.blocks, cut.method)
        assert line.is_cut, "the session ended before the cut"

    def _run(self, line: Line, blocks: int, method: str) -> None:
        self._number += 1
        place = copied(self._template, self._folder / str(self._number))
        with one_loop("cuts"), small_link(place, method) as link:
            encryptors = Encryptors(link)

            async def both() -> None:
                await session(link, line, encryptors, blocks)
                if line.cut is not None:
                    made = await session(link, Line(), encryptors, 1)
                    assert {store.block_state(made[0]) for store in (link.alice.store, link.bob.store)} == {
                        BlockState.AVAILABLE
                    }

            trio.run(both, clock=virtual_clock())
            check_settled(link, encryptors)


# Which cuts


def at_every_byte(trial: Trial) -> list[Cut]:
    """Return cuts of one block's session at every byte; what is under way is lost at every second."""
    frames = trial.frames(1)
    return [Cut(role, at, loses=at % 2 == 0) for role in ROLES for at in range(frames[role][-1])]


def at_every_frame(trial: Trial, blocks: int, method: str) -> list[Cut]:
    """Return cuts of a session of ``blocks`` blocks between any two frames."""
    frames = trial.frames(blocks, method)
    return [
        Cut(role, end, loses=number % 2 == 0, blocks=blocks, method=method)
        for role in ROLES
        for number, end in enumerate([0, *frames[role][:-1]])
    ]


def failures(trial: Trial, cuts: Iterable[Cut]) -> Iterator[tuple[Cut, str]]:
    """Yield the cuts after which something does not hold, and what."""
    for cut in cuts:
        try:
            trial.cut(cut)
        except Exception as error:  # noqa: BLE001 - whatever it was, it is told
            yield cut, f"{type(error).__name__}: {error}"


def repeat(cut: Cut) -> str:
    """Return the command that repeats a cut."""
    kept = " --keeps" if not cut.loses else ""
    return (
        f"python tests/cuts.py --at {cut.sender} {cut.after_bytes} "
        f"--blocks {cut.blocks} --method {cut.method}{kept}"
    )


def _share(number: int, of: int, every: int) -> list[tuple[Cut, str]]:
    _be_quiet()
    with memory_folder() as folder:
        trial = Trial(folder)
        cuts = [
            *at_every_byte(trial),
            *at_every_frame(trial, 3, "cascade"),
            *at_every_frame(trial, 3, "ldpc"),
        ]
        mine = cuts[::every][number::of]
        found = list(failures(trial, mine))
        print(f"share {number + 1} of {of}: {len(mine)} cuts, {len(found)} found", flush=True)
        return found


def _be_quiet() -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))


def main() -> int:
    """Cut everywhere, or repeat one cut."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--every", type=int, default=1, help="try only every so many of the cuts")
    parser.add_argument("--at", nargs=2, metavar=("SITE", "BYTES"), help="repeat one cut, with the log")
    parser.add_argument("--blocks", type=int, default=1)
    parser.add_argument("--method", default="cascade")
    parser.add_argument("--keeps", action="store_true", help="what is under way is not lost")
    given = parser.parse_args()
    if given.at is not None:
        sender, at = given.at
        with memory_folder() as folder:
            cut = Cut(sender, int(at), not given.keeps, given.blocks, given.method)
            Trial(folder).cut(cut)
        return 0
    with multiprocessing.get_context("spawn").Pool(given.processes) as pool:
        shares = [(number, given.processes, given.every) for number in range(given.processes)]
        found = [one for share in pool.starmap(_share, shares) for one in share]
    for cut, what in found:
        print(f"{what}\n  {repeat(cut)}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
