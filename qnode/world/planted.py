"""Bugs to plant in the node of a run, to see that the world finds such bugs.

Each is a fault that somebody could write, in the dialogue, the commit, the resume, the store, the supply or
the session. It is in force for the length of a run and gone afterwards.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import structlog
import trio

import qnode.keys._assigned as assigned
import qnode.keys._opening as opening
import qnode.keys._pool as pool
import qnode.keys._ranges as ranges
import qnode.keys._restore as restore
import qnode.node.dialogue.bob as bob
from qnode.block.disclosed import Disclosed
from qnode.keys import Assignment, BlockState, PreparedBlock, Release, SqliteKeyStore, StoredKey
from qnode.keys._vault import Kind, Vault
from qnode.link.session import Session
from qnode.node.session.assignments import Assignments
from qnode.node.supply.async_store import AsyncStore

Change = tuple[Any, str, Callable[[Any], Any]]
"""An object, the name of what is replaced in it, and what makes the new from the old."""


@dataclass(frozen=True)
class Bug:
    """A planted bug, and the invariants by which it may show."""

    what: str
    shows_as: tuple[str, ...]
    changes: Callable[[], list[Change]]


def _prepared_too_late() -> list[Change]:
    waiting: dict[tuple[int, int], PreparedBlock] = {}

    def prepare(_real: Any) -> Any:
        async def prepare(self: AsyncStore, block: PreparedBlock) -> None:
            waiting[id(self), block.block_id] = block

        return prepare

    def confirm(real: Any) -> Any:
        async def confirm(self: AsyncStore, block_id: int) -> None:
            block = waiting.pop((id(self), block_id), None)
            if block is not None:
                await self._call(lambda: self._store.prepare(block))
            await real(self, block_id)

        return confirm

    return [(AsyncStore, "prepare", prepare), (AsyncStore, "confirm", confirm)]


def _available_at_once() -> list[Change]:
    def prepare(real: Any) -> Any:
        async def prepare(self: AsyncStore, block: PreparedBlock) -> None:
            await real(self, block)
            await self.confirm(block.block_id)

        return prepare

    return [(AsyncStore, "prepare", prepare)]


def _believes_unknown() -> list[Change]:
    def block_states(real: Any) -> Any:
        async def block_states(self: AsyncStore, block_ids: Sequence[int]) -> list[BlockState]:
            states = await real(self, block_ids)
            return [BlockState.PREPARED if state == BlockState.UNKNOWN else state for state in states]

        return block_states

    return [(AsyncStore, "block_states", block_states)]


def _wipes_nothing() -> list[Change]:
    def wipe_all(real: Any) -> Any:
        def wipe_all(self: Vault, kind: Kind, runs: Iterable[tuple[int, int, int]]) -> None:
            if kind != Kind.CHUNK:
                real(self, kind, runs)

        return wipe_all

    return [(Vault, "wipe_all", wipe_all)]


def _pad_used_again() -> list[Change]:
    def use_up_to(real: Any) -> Any:
        def use_up_to(tx: Any, direction: str, pad_id: Any) -> None:
            if direction != "send" or pad_id.index % 2:
                real(tx, direction, pad_id)

        return use_up_to

    return [(pool, "_use_up_to", use_up_to)]


def _announced_later() -> list[Change]:
    def announce(real: Any) -> Any:
        async def announce(self: Assignments, assignment: Assignment, taken_chunks: int = 0) -> None:
            async def work() -> None:
                try:
                    await real(self, assignment, taken_chunks)
                except Exception as error:  # noqa: BLE001 - a bug does not care
                    structlog.get_logger().warning("bug.announce", reason=str(error))

            self._nursery.start_soon(work)
            await trio.lowlevel.checkpoint()

        return announce

    return [(Assignments, "announce", announce)]


def _agreed_unheard() -> list[Change]:
    def assign(real: Any) -> Any:
        async def assign(self: AsyncStore, *args: Any, stock: bool = False) -> Assignment:
            assignment: Assignment = await real(self, *args, stock=stock)
            if stock:
                await self.acknowledge(assignment.assignment_id)
            return assignment

        return assign

    return [(AsyncStore, "assign", assign)]


def _released_is_delivered() -> list[Change]:
    def begin_release(real: Any) -> Any:
        def begin_release(tx: Any, assignment_id: int) -> Release:
            release: Release = real(tx, assignment_id)
            tx.connection.execute(
                "UPDATE own_assignment SET acknowledged = 1 WHERE assignment_id = ? AND stock = 1",
                (assignment_id,),
            )
            return release

        return begin_release

    return [(assigned, "begin_release", begin_release)]


def _giver_keeps() -> list[Change]:
    def pass_on(real: Any) -> Any:
        def pass_on(tx: Any, item: Any, owner: Any) -> None:
            real(tx, item, tx.role)

        return pass_on

    return [(ranges, "pass_on", pass_on)]


def _always_equal() -> list[Change]:
    class Secrets:
        def __getattr__(self, name: str) -> Any:
            import secrets

            return getattr(secrets, name)

        def compare_digest(self, *_: Any) -> bool:
            return True

    return [(bob, "secrets", lambda _real: Secrets())]


def _sample_for_nothing() -> list[Change]:
    return [(Disclosed, "and_sample", lambda _real: lambda self, _n_bits, _link: self)]


def _quarter_of_the_parities() -> list[Change]:
    def and_reconciled(real: Any) -> Any:
        return lambda self, parities, leak_bits, method: real(self, parities // 4, leak_bits // 4, method)

    return [(Disclosed, "and_reconciled", and_reconciled)]


def _fetched_twice() -> list[Change]:
    kept: dict[tuple[int, str, UUID], StoredKey] = {}

    def deliver_to_slave(real: Any) -> Any:
        def deliver_to_slave(
            self: SqliteKeyStore, slave: str, master: str, key_ids: Sequence[UUID]
        ) -> list[StoredKey]:
            cached = [kept.get((id(self), slave, one)) for one in key_ids]
            if all(cached):
                return [key for key in cached if key is not None]
            keys: list[StoredKey] = real(self, slave, master, key_ids)
            kept.update({(id(self), slave, key.key_id): key for key in keys})
            return keys

        return deliver_to_slave

    return [(SqliteKeyStore, "deliver_to_slave", deliver_to_slave)]


def _key_in_the_log() -> list[Change]:
    def deliver_to_master(real: Any) -> Any:
        def deliver_to_master(self: SqliteKeyStore, assignment_id: int) -> list[StoredKey]:
            keys: list[StoredKey] = real(self, assignment_id)
            structlog.get_logger().info("key.delivered", key=keys[0].key.hex())
            return keys

        return deliver_to_master

    return [(SqliteKeyStore, "deliver_to_master", deliver_to_master)]


def _old_database_serves() -> list[Change]:
    def compare(real: Any) -> Any:
        def compare(database: Any, path: Any) -> None:
            if database.anchor is None:
                real(database, path)
            else:
                database.anchor.positions = type(database.anchor.positions)()
                database.catch_up_anchor()

        return compare

    return [
        (opening, "_compare_with_anchor", compare),
        (restore, "_catch_up", lambda _real: lambda *_args, **_options: None),
        (restore, "_skip_pads", lambda _real: lambda *_args: None),
    ]


def _silence_unheard() -> list[Change]:
    def watch(_real: Any) -> Any:
        async def watch(_self: Session) -> None:
            await trio.sleep_forever()

        return watch

    return [(Session, "_watch_for_silence", watch)]


BUGS = {
    "prepared-too-late": Bug("a site says that a key is durable before it is", ("I3",), _prepared_too_late),
    "available-at-once": Bug("a key is available before the peer has it", ("I3",), _available_at_once),
    "believes-unknown": Bug("after a cut, a block the peer lost is confirmed", ("I3",), _believes_unknown),
    "wipes-nothing": Bug("delivered chunks stay in their sealed units", ("I5",), _wipes_nothing),
    "pad-used-again": Bug("every second pad stays in the pool", ("I10", "I3", "I6"), _pad_used_again),
    "announced-later": Bug("a master gets keys before the peer holds them", ("I3",), _announced_later),
    "agreed-unheard": Bug("keys count as agreed ahead before the peer holds them", ("I3",), _agreed_unheard),
    "released-is-delivered": Bug(
        "keys agreed ahead are delivered while the peer frees them", ("I3", "I5"), _released_is_delivered
    ),
    "giver-keeps": Bug("chunks given to the peer stay assignable here", ("I2", "I5"), _giver_keeps),
    "always-equal": Bug("the verification hash is taken to be equal", ("I1",), _always_equal),
    "sample-for-nothing": Bug("a disclosed sample is not charged", ("I8",), _sample_for_nothing),
    "quarter-of-the-parities": Bug("a quarter of the parities is charged", ("I8",), _quarter_of_the_parities),
    "fetched-twice": Bug("a slave gets a key again when it asks again", ("I2",), _fetched_twice),
    "key-in-the-log": Bug("a delivered key is written to the log", ("I9",), _key_in_the_log),
    "old-database-serves": Bug("nobody notices that a database is old", ("I2", "I10"), _old_database_serves),
    "silence-unheard": Bug("a session never ends for silence", ("I6",), _silence_unheard),
}


@contextmanager
def planted(name: str | None) -> Iterator[None]:
    """Have a bug of `BUGS` in the node; None: no bug."""
    if name is None:
        yield
        return
    before: list[tuple[Any, str, Any]] = []
    try:
        for owner, attribute, changed in BUGS[name].changes():
            real = getattr(owner, attribute)
            before.append((owner, attribute, real))
            setattr(owner, attribute, changed(real))
        yield
    finally:
        for owner, attribute, real in reversed(before):
            setattr(owner, attribute, real)
