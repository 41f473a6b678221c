"""A thread that makes the blocking calls of one device."""

import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, TypeVar

import structlog
import trio

from qnode.errors import TransientDeviceError

T = TypeVar("T")
Call = Callable[[], None]

END_LIMIT_S: Final = 2.0
MOST_HANGING: Final = 4  # threads of one name: the service may have 256 tasks in all

log = structlog.get_logger()


class Worker:
    """Makes calls one at a time, in their order, in a daemon thread of its own.

    A call that never returns is left behind with its thread, so that the node can go on and can stop. Few
    are: a device that hangs at each opening must not take the threads of the others.

    Raises:
        TransientDeviceError: several threads of the same ``name`` hang.
    """

    def __init__(self, name: str) -> None:
        if sum(one.name == name for one in threading.enumerate()) >= MOST_HANGING:
            raise TransientDeviceError(
                f"{name}: {MOST_HANGING} earlier calls have not returned: unplug the device, or switch it "
                "off and on; if that does not help, restart the node"
            )
        self._name = name
        self._calls: queue.SimpleQueue[Call | None] = queue.SimpleQueue()
        self._token = trio.lowlevel.current_trio_token()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    async def run(self, function: Callable[..., T], *arguments: Any) -> T:
        """Return what ``function(*arguments)`` returns.

        Cancelled, it leaves the call behind, whose result is lost.
        """
        done = trio.Event()
        result: list[T] = []
        fault: list[BaseException] = []

        def call() -> None:
            try:
                result.append(function(*arguments))
            except BaseException as error:  # noqa: BLE001 (it is raised in the caller)
                fault.append(error)
            self._tell(done)

        self._calls.put(call)
        await done.wait()
        if fault:
            raise fault[0]
        return result[0]

    async def end(self, last: Call) -> None:
        """Make the call ``last`` and end the thread; wait a short while, also when cancelled."""
        try:
            with trio.move_on_after(END_LIMIT_S) as scope:
                scope.shield = True
                await self.run(last)
        finally:
            self._calls.put(None)
        if scope.cancelled_caught:
            log.error("device.call_hangs", thread=self._name, limit_s=END_LIMIT_S)

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            call()

    def _tell(self, event: trio.Event) -> None:
        with suppress(trio.RunFinishedError):  # the program is ending
            self._token.run_sync_soon(event.set)
