"""The processes of a testbed: started in namespaces, watched, killed and started again for an outage."""

import os
import signal
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from qnode.errors import QnodeError
from qnode.loopback.sites import stop

_LAST_WORDS_BYTES = 2000
_REAL_TIME = ("chrt", "--rr", "1")
_FIRST = ("nice", "-n", "-10")


class PartEnded(QnodeError):
    """A process of the testbed ended by itself; the message has its last words."""


class Part:
    """One process, which writes its output into ``log``.

    Its standard input comes from this process and ends with it: a part that watches it, such as a daemon
    with `--stop-at-eof`, ends also if this process is killed.
    """

    def __init__(self, name: str, command: Sequence[str], log: Path) -> None:
        self.name = name
        self.process: trio.Process | None = None
        self._command = list(command)
        self._log = log
        self._wanted = trio.Event()
        self._wanted.set()

    async def keep(self) -> None:
        """Run it until cancelled, except between `kill` and `start`.

        Raises:
            PartEnded: it ended although nobody wanted it to.
        """
        while True:
            await self._wanted.wait()
            with self._log.open("ab") as log:
                self.process = await trio.lowlevel.open_process(
                    self._command,
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # Ctrl-C is for this process: it stops its parts in order
                )
            try:
                await self.process.wait()
            finally:
                await stop(self.process)
            if self._wanted.is_set():
                raise PartEnded(f"{self.name} ended ({how(self.process.returncode)}): {self._last_words()}")

    def kill(self) -> None:
        """End it at once, as a loss of power does; it stays away until `start`."""
        self._wanted = trio.Event()
        if self.process is not None and self.process.returncode is None:
            self.process.kill()

    def start(self) -> None:
        """Start it again after `kill`."""
        self._wanted.set()

    def _last_words(self) -> str:
        with self._log.open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - _LAST_WORDS_BYTES))
            lines = log.read().decode(errors="replace").strip().splitlines()
        return f"{lines[-1] if lines else 'without a word'} (more in {self._log})"


@asynccontextmanager
async def keeping(*parts: Part) -> AsyncIterator[None]:
    """Run parts until the body ends; then they are stopped, the last one first.

    Raises (in a group):
        PartEnded: one of them ended by itself.
    """
    if not parts:
        yield
        return
    async with trio.open_nursery() as nursery:
        nursery.start_soon(parts[0].keep)
        async with keeping(*parts[1:]):
            yield
        nursery.cancel_scope.cancel()


def in_time() -> Sequence[str]:
    """Return words in front of a command that have its process wait for no other, as far as root may."""
    done = subprocess.run(
        [*_REAL_TIME, "true"], check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    return _REAL_TIME if done.returncode == 0 else _FIRST  # a container may forbid it


def how(code: int | None) -> str:
    """Return how a process ended, in words."""
    return signal.Signals(-code).name if code is not None and code < 0 else f"exit {code}"
