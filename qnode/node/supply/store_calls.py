"""Calls to a key store from the event loop, in worker threads. A running call is not cancelled.

The store processes one call at a time. Those that come often go together: one thread makes all that wait,
one after the other, in one commit. For each of them a thread of its own would cost more than its work. The
task of one of them waits for the thread, and wakes the others.

If the disk hangs, the tasks that wait too long for a call can be cancelled (`StoreCalls.let_go`). Their calls
end later, or never.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from itertools import islice
from typing import Any, Final, TypeVar

import trio

from qnode.errors import StoreAway
from qnode.keys import Answer, KeyStore

T = TypeVar("T")

MOST_THREADS: Final = 16
MOST_TOGETHER: Final = 64


class _Call:
    """A call that runs or waits. ``abandoned``: no task waits for it any more."""

    def __init__(self, work: Callable[[], object]) -> None:
        self.began_s = trio.current_time()
        self.task = trio.lowlevel.current_task()
        self.work = partial(copy_context().run, work)
        self.answer: Answer | None = None
        self.taken = self.abandoned = False
        self.parked = False  # the task waits for `wake`
        self.may_be_cancelled = False
        self.shield: trio.CancelScope | None = None  # while the task waits for a thread
        self._raise_cancel: Callable[[], Any] | None = None

    async def park(self) -> None:
        """Wait for `wake`, or for a cancellation once that is allowed."""

        def abort(raise_cancel: Callable[[], Any]) -> trio.lowlevel.Abort:
            if self.may_be_cancelled:
                self.parked = False
                return trio.lowlevel.Abort.SUCCEEDED
            self._raise_cancel = raise_cancel
            return trio.lowlevel.Abort.FAILED

        self.parked = True
        await trio.lowlevel.wait_task_rescheduled(abort)
        if self._raise_cancel is not None and self.may_be_cancelled and self.answer is None:
            self._raise_cancel()

    def wake(self) -> None:
        """Let the task go on, if it waits."""
        if self.parked:
            self.parked = False
            trio.lowlevel.reschedule(self.task)

    def let_go(self) -> None:
        """Allow the cancellation of the task."""
        self.may_be_cancelled = True
        if self.shield is not None:
            self.shield.shield = False
        if self._raise_cancel is not None:
            self.wake()


class _Thread:
    """The calls that one thread took. ``abandoned``: no task waits for its end."""

    def __init__(self) -> None:
        self.calls: list[_Call] = []
        self.abandoned = False


class StoreCalls:
    """The calls to one store."""

    def __init__(self, store: KeyStore) -> None:
        self._store = store
        self._threads = trio.CapacityLimiter(MOST_THREADS)
        self._calls: set[_Call] = set()
        self._waiting: deque[_Call] = deque()
        self._thread: _Thread | None = None
        self.unsettled = False
        """A call was abandoned, or lost with the database's server: a new session must settle its effects."""

    @property
    def stalled_s(self) -> float:
        """The duration of the oldest running call."""
        now_s = trio.current_time()
        return max((now_s - call.began_s for call in self._calls), default=0.0)

    def let_go(self, after_s: float) -> None:
        """Allow the cancellation of tasks that have waited for so long."""
        for call in list(self._calls):
            if trio.current_time() - call.began_s >= after_s:
                call.let_go()

    async def apart(self, work: Callable[[], T]) -> T:
        """Return what ``work`` returns, in a thread of its own."""
        await trio.lowlevel.checkpoint_if_cancelled()
        call = _Call(work)
        self._calls.add(call)
        try:
            await self._in_thread(call, lambda: self._end(call, Answer.of(call.work)))
        except trio.Cancelled:
            self._abandon(call)
            raise
        finally:
            self._calls.discard(call)
        result: T = _result(call)
        return result

    async def together(self, work: Callable[[], T]) -> T:
        """Return what ``work`` returns, once that is durable with all that others do at the same time."""
        await trio.lowlevel.checkpoint_if_cancelled()
        call = _Call(work)
        self._calls.add(call)
        self._waiting.append(call)
        try:
            while call.answer is None:
                if self._thread is None and not call.taken:
                    await self._lead(call)
                else:
                    await call.park()
        except trio.Cancelled:
            self._abandon(call)
            raise
        finally:
            self._calls.discard(call)
            with suppress(ValueError):  # a thread has taken it
                self._waiting.remove(call)
            self._wake_first()
        result: T = _result(call)
        return result

    async def _lead(self, call: _Call) -> None:
        """Have a thread make the calls that wait."""
        thread = self._thread = _Thread()
        token = trio.lowlevel.current_trio_token()
        try:
            await self._in_thread(call, lambda: self._make_all(thread, token))
        except trio.Cancelled:
            thread.abandoned = True
            raise
        finally:
            if self._thread is thread:
                self._thread = None
            self._wake(thread.calls)
            self._wake_first()

    async def _in_thread(self, call: _Call, work: Callable[[], None]) -> None:
        with trio.CancelScope(shield=not call.may_be_cancelled) as call.shield:
            await trio.to_thread.run_sync(
                work, thread_name="key store", limiter=self._threads, abandon_on_cancel=True
            )

    def _make_all(self, thread: _Thread, token: trio.lowlevel.TrioToken) -> None:
        """Make the calls that wait, and those that come meanwhile."""
        try:
            answers = self._store.together(islice(self._take(thread), MOST_TOGETHER))
        except BaseException as error:  # noqa: BLE001 - for whoever waits
            if not thread.calls:
                deque(self._take(thread), maxlen=0)
            answers = [Answer(error=error)] * len(thread.calls)
        for call, answer in zip(thread.calls, answers, strict=True):
            self._end(call, answer)
        if thread.abandoned:
            with suppress(trio.RunFinishedError):
                token.run_sync_soon(self._wake, thread.calls)

    def _take(self, thread: _Thread) -> Iterator[Callable[[], object]]:
        while True:
            try:
                call = self._waiting.popleft()
            except IndexError:
                return
            call.taken = True
            thread.calls.append(call)
            yield call.work

    def _end(self, call: _Call, answer: Answer) -> None:
        call.answer = answer
        if call.abandoned or isinstance(answer.error, StoreAway):
            self.unsettled = True

    def _abandon(self, call: _Call) -> None:
        call.abandoned = True
        if call.answer is not None:
            self.unsettled = True

    def _wake(self, calls: Iterable[_Call]) -> None:
        for call in calls:
            if call.answer is not None:
                call.wake()

    def _wake_first(self) -> None:
        """Let a task take care of the calls that wait."""
        if self._thread is None and self._waiting:
            self._waiting[0].wake()


def _result(call: _Call) -> Any:
    assert call.answer is not None
    if call.answer.error is not None:
        raise call.answer.error
    return call.answer.value
