"""Assignments of this site at its peer: announced, and released if nobody got their keys.

An assignment that was not delivered becomes free again at both sites. The client may have disconnected, the
peer's answer may have come too late, or the session may have ended before the answer. A peer of protocol 1
can only void such an assignment.
"""

from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import msgspec
import structlog
import trio
from msgspec import UNSET, UnsetType

from qnode.errors import LinkError, NotOpen, ProtocolError, ShareUsedUp, StoreError, StoreUnusable
from qnode.keys import Assignment, Release
from qnode.link.messages import Assign, KeyAnswer, NodeMessage, ReleaseAssignments, VoidAssignments
from qnode.node.dialogue.context import BlockContext

ASSIGNMENTS_AT_ONCE = 64
# The limit for a store with scattered free chunks: a message has room for a mebibyte.
RANGES_AT_ONCE = 1 << 14

log = structlog.get_logger()


def batches(releases: Sequence[Release]) -> Iterator[list[Release]]:
    """Yield ``releases`` in parts that fit into one message each."""
    some: list[Release] = []
    n_ranges = 0
    for release in releases:
        n_ranges += len(release.assignment.ranges)
        if some and (len(some) == ASSIGNMENTS_AT_ONCE or n_ranges > RANGES_AT_ONCE):
            yield some
            some, n_ranges = [], len(release.assignment.ranges)
        some.append(release)
    if some:
        yield some


@dataclass
class _Announcement:
    """An assignment on its way to the peer; without an answer at the end, the session ended."""

    over: trio.Event = field(default_factory=trio.Event)
    answer: KeyAnswer | None = None


class Assignments:
    """The assignments of one session; ``ask`` sends a request to the peer's store, and raises LinkError."""

    def __init__(
        self,
        context: BlockContext,
        nursery: trio.Nursery,
        ask: Callable[[Callable[[int], NodeMessage]], Awaitable[KeyAnswer]],
    ) -> None:
        self._context = context
        self._nursery = nursery
        self._ask = ask
        self._announcing: dict[int, _Announcement] = {}
        self._overdue: set[int] = set()
        self._resumed_up_to = 0

    async def resume(self) -> None:
        """Release the assignments that an earlier session left open."""
        store = self._context.store
        left_open = await store.begin_open_releases()
        self._resumed_up_to = (await store.positions()).last_assignment_id
        await self.release(left_open)

    async def announce(self, assignment: Assignment, taken_chunks: int = 0) -> None:
        """Announce ``assignment`` to the peer; returns when the peer holds it durably.

        A caller that does not wait for it must `take_back` the assignment; the answer is processed in any
        case. ``taken_chunks``: what encryptors got of the stock since the last announcement.

        Raises:
            ShareUsedUp: the peer accepts no more for this pair.
            LinkError: the session ended or the peer refused; it is unknown whether the peer holds it.
        """
        if assignment.assignment_id <= self._resumed_up_to:
            raise LinkError("a new session has begun since, in which this assignment was taken back")
        announcement = self._announcing[assignment.assignment_id] = _Announcement()
        self._nursery.start_soon(self._announce, assignment, taken_chunks, announcement)
        await announcement.over.wait()
        answer = announcement.answer
        if answer is None:
            raise LinkError("the session ended before the peer answered")
        if answer.share_used_up is True:
            raise ShareUsedUp(answer.error or "the peer holds no more for this pair")
        if not answer.ok:
            raise LinkError(f"the peer refused an assignment: {answer.error}")

    async def _announce(self, assignment: Assignment, taken_chunks: int, announcement: _Announcement) -> None:
        content = msgspec.msgpack.encode(assignment)
        told: int | UnsetType = UNSET
        if taken_chunks and self._context.session.knows(Assign, "taken_chunks"):
            told = taken_chunks
        try:
            announcement.answer = await self._ask(
                lambda number: Assign(request_id=number, assignment=content, taken_chunks=told)
            )
        except ProtocolError:
            raise
        except LinkError:
            return
        finally:
            del self._announcing[assignment.assignment_id]
            self._overdue.discard(assignment.assignment_id)
            announcement.over.set()

    @property
    def stalled(self) -> bool:
        """Whether the peer's answer to an assignment is overdue; answers to others will be late as well."""
        return bool(self._overdue)

    @property
    def can_release(self) -> bool:
        """Whether the peer can free an assignment; otherwise it can only be voided."""
        return self._context.session.knows(ReleaseAssignments)

    def take_back(self, assignment_ids: Sequence[int], *, late: bool = False) -> trio.Event:
        """Release undelivered assignments in this session.

        ``late``: the peer's answer to their announcement is overdue. The event is set when they
        are released, or left to the next session.
        """
        done = trio.Event()
        announcements = [self._announcing[one] for one in assignment_ids if one in self._announcing]
        if late:
            self._overdue.update(one for one in assignment_ids if one in self._announcing)

        async def work() -> None:
            try:
                # The peer serves requests concurrently: a release must not overtake its assignment.
                for announcement in announcements:
                    await announcement.over.wait()
                await self.release(await self._begun(assignment_ids))
            except (ProtocolError, StoreUnusable):
                raise
            except (LinkError, StoreError) as error:  # the next session settles it
                log.warning("assignment.open", assignments=list(assignment_ids)[:8], reason=str(error))
            finally:
                done.set()

        self._nursery.start_soon(work)
        return done

    async def _begun(self, assignment_ids: Sequence[int]) -> list[Release]:
        """Begin to release assignments, except those that were delivered or have expired."""
        begun = []
        for one in assignment_ids:
            with suppress(NotOpen):
                begun.append(await self._context.store.begin_release(one))
        return begun

    async def release(self, releases: Sequence[Release]) -> None:
        """Release assigned but undelivered keys, first at the peer, then at this site.

        Assignments that have expired at the peer are voided. With a peer of protocol 1 all are voided.

        Raises:
            LinkError: the session ended, or the peer can do neither; the next session tries again.
        """
        store = self._context.store
        for some in batches(releases):
            if not self.can_release:
                await self._void(some)
            elif await self._freed_by_peer(some):
                await self._finish(some)
            else:
                for release in some:
                    if await self._freed_by_peer([release]):
                        await self._finish([release])
                    elif release.n_taken:
                        await store.leave_to_expire(release.assignment.assignment_id)
                    else:
                        await self._void([release])

    async def _finish(self, releases: Sequence[Release]) -> None:
        for release in releases:
            with suppress(NotOpen):  # discarded at both sites meanwhile, because it cannot be decrypted
                await self._context.store.finish_release(release.assignment.assignment_id)
        log.info("assignment.freed", assignments=len(releases))

    async def _freed_by_peer(self, releases: Sequence[Release]) -> bool:
        content = msgspec.msgpack.encode(releases)
        answer = await self._ask(lambda number: ReleaseAssignments(request_id=number, releases=content))
        return answer.ok

    async def _void(self, releases: Sequence[Release]) -> None:
        """Void assignments that cannot be freed; a stock item in use by a slave expires instead."""
        whole = [release.assignment for release in releases if not release.n_taken]
        if whole:
            content = msgspec.msgpack.encode(whole)
            answer = await self._ask(lambda number: VoidAssignments(request_id=number, assignments=content))
            if not answer.ok:
                raise LinkError("the peer could not void an assignment; it stays open until the next session")
        for assignment in whole:
            with suppress(NotOpen):
                await self._context.store.void_assignment(assignment.assignment_id)
        log.info("assignment.void", assignments=len(whole))
