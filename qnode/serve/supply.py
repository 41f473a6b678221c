"""The keys of a front end: requests that wait together are answered in one transaction of the store."""

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Never, TypeVar
from uuid import UUID

import structlog
import trio

from qnode.delivery import Key, KeySupply, SaeDirectory, for_delivery
from qnode.errors import LinkDown, NotEnoughKeys, StoreError
from qnode.keys import Fetch, StoredKey, Take
from qnode.units import CHUNK_BITS

if TYPE_CHECKING:
    from qnode.keys import FrontEndStore

MOST_TOGETHER: Final = 64
# A request that finds too few keys waits so long for the node to agree on more.
PATIENCE_S: Final = 2.0
# If the node is away, only for another front end that has these keys in its hands.
PATIENCE_ALONE_S: Final = 0.3
RETRY_S: Final = 0.03
TELL_PERIOD_S: Final = 0.25
LOOK_PERIOD_S: Final = 1.0

log = structlog.get_logger()

T = TypeVar("T")


class _Waiting:
    """A request on its way to the store."""

    def __init__(self, request: Take | Fetch) -> None:
        self.request = request
        self.error: StoreError | None = None
        self.answered = trio.Event()


class FrontEndSupply(KeySupply):
    """The supply of a front end, while `run` runs. ``because``: why it cannot deliver, empty if it can."""

    def __init__(self, store: "FrontEndStore", directory: SaeDirectory) -> None:
        self._store = store
        self.directory = directory
        self.because = "starting"
        self._waiting: deque[_Waiting] = deque()
        self._arrived = trio.Event()
        self._thread = trio.CapacityLimiter(1)
        self._demand: dict[tuple[str, str], tuple[int, int]] = {}
        self._next_tell_s = 0.0
        self.answered_at_s = trio.current_time()
        """When the store last answered, with keys or an error."""

    @property
    def node_is_away(self) -> bool:
        """Whether the node has not been seen lately: keys are delivered until they are used up."""
        return self._store.node_is_away

    async def run(self) -> Never:
        """Answer requests until cancelled. Raises StoreUnusable: the anchor cannot be written."""
        while True:
            with trio.move_on_after(LOOK_PERIOD_S):
                await self._arrived.wait()
            if not self._waiting:  # none came, or it was given up
                self._arrived = trio.Event()
                self._note(await self._in_thread(self._store.look))
                self._check_ended()
                continue
            some = [self._waiting.popleft() for _ in range(min(len(self._waiting), MOST_TOGETHER))]
            if not self._waiting:
                self._arrived = trio.Event()
            await self._answer(some)
            self._check_ended()

    async def _answer(self, some: list[_Waiting]) -> None:
        demand: dict[tuple[str, str], tuple[int, int]] = {}
        if trio.current_time() >= self._next_tell_s:
            demand, self._demand = self._demand, {}
            self._next_tell_s = trio.current_time() + TELL_PERIOD_S
        requests = [one.request for one in some]
        try:
            await self._in_thread(lambda: self._store.perform(requests, demand))
        except StoreError as error:
            for pair, counts in demand.items():
                self._add(pair, *counts)
            for one in some:
                one.error = error
            self._note(str(error))
        else:
            self._note("")
        finally:
            for one in some:
                one.answered.set()

    async def _in_thread(self, work: Callable[[], T]) -> T:
        try:
            return await trio.to_thread.run_sync(work, limiter=self._thread)
        finally:
            self.answered_at_s = trio.current_time()

    def _note(self, because: str) -> None:
        if because != self.because:
            self.because = because
            if because:
                log.error("front_end.waiting", reason=because)
            else:
                log.info("front_end.serving")

    def _check_ended(self) -> None:
        if self._store.ended is not None:
            raise self._store.ended

    async def _ask(self, request: Take | Fetch) -> list[StoredKey]:
        one = _Waiting(request)
        self._waiting.append(one)
        self._arrived.set()
        try:
            await one.answered.wait()
        except trio.Cancelled:
            if one in self._waiting:
                self._waiting.remove(one)
            raise
        if not request.keys:
            raise request.error or one.error or StoreError("the store did not answer; ask again")
        return request.keys

    def _add(self, pair: tuple[str, str], asked: int, delivered: int) -> None:
        before = self._demand.get(pair, (0, 0))
        self._demand[pair] = before[0] + asked, before[1] + delivered

    async def stored_key_count(self, master: str, slave: str, size_bits: int) -> int:
        """Return the number of keys agreed ahead for this pair."""
        return await self._in_thread(lambda: self._store.stock_count(master, slave))

    async def allocate(self, master: str, slaves: tuple[str, ...], number: int, size_bits: int) -> list[Key]:
        """Give keys agreed ahead; short of them, wait a moment for the node to agree on more.

        Raises:
            NotEnoughKeys: nothing was taken.
        """
        if len(slaves) != 1 or size_bits != CHUNK_BITS:
            raise LinkDown("a front end has keys of 256 bits for one slave only")
        pair = master, slaves[0]
        self._add(pair, number, 0)
        began_s = trio.current_time()
        while True:
            limit = self.directory.keys_per_minute(master)
            try:
                keys = await self._ask(Take(*pair, number, limit))
            except NotEnoughKeys:
                patience_s = PATIENCE_ALONE_S if self.node_is_away else PATIENCE_S
                if trio.current_time() - began_s > patience_s:
                    raise
                await trio.sleep(RETRY_S)
                continue
            self._add(pair, 0, number)
            return for_delivery(keys)

    async def fetch(self, slave: str, master: str, key_ids: tuple[UUID, ...]) -> list[Key]:
        """Give keys of the peer's masters that wait here."""
        return for_delivery(await self._ask(Fetch(slave, master, key_ids)))
