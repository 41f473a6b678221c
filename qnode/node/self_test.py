"""The self-test of a running node: at the start, once a day, and when asked; its failure ends the node."""

import time
from typing import Final, Never

import structlog
import trio

from qnode.distill.selftest import SelfTestFailed
from qnode.distill.selftest import self_test as check_distillation
from qnode.node.known_answers import check_known_answers
from qnode.tls_validity import DAY_S

FAREWELL_S: Final = 0.5
"""Between a failure and the end of the node, so that the caller of `SelfTest.run` gets its answer."""

log = structlog.get_logger()


def check_all() -> None:
    """Check distillation, ciphers and hashes (0.1 s of processor time).

    Raises:
        SelfTestFailed: this machine computes wrongly; the message names the step.
    """
    check_known_answers()
    check_distillation()


class SelfTest:
    """The self-test of a node. ``passed_at``: when it last passed (Unix time); None before that."""

    def __init__(self) -> None:
        self.passed_at: float | None = None
        self._alone = trio.Lock()
        self._failed = trio.Event()
        self._failure = SelfTestFailed("")

    async def run(self) -> float:
        """Run it in a thread; return the time that it took, in seconds.

        Raises:
            SelfTestFailed: a step gave a wrong result. `repeat` then ends the node.
        """
        async with self._alone:
            began_s = time.monotonic()
            try:
                await trio.to_thread.run_sync(check_all)
            except SelfTestFailed as failure:
                log.error("self_test.failed", reason=str(failure))
                self._failure = failure
                self._failed.set()
                raise
            took_s = time.monotonic() - began_s
            self.passed_at = time.time()
            log.info("self_test.passed", took=round(took_s, 3))
            return took_s

    async def repeat(self) -> Never:
        """Run it once a day, until one has failed, also one that was asked for.

        Raises:
            SelfTestFailed: a step gave a wrong result.
        """
        while True:
            with trio.move_on_after(DAY_S):
                await self._failed.wait()
                await trio.sleep(FAREWELL_S)
                raise self._failure
            await self.run()
