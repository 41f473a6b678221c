"""The operator's line as the testbed controls it: the relay between the sites, its quality and counts."""

import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import msgspec
import trio

from qnode.loopback.sites import stop
from qnode.testbed.network import SITES, Network, Site, route_through_relay
from qnode.testbed.parts import PartEnded, how
from qnode.testbed.relay import LineCounts, LineQuality

_DEVICE: Final[dict[Site, str]] = {site: f"relay-{site}" for site in SITES}
_LONGEST_ANSWER_BYTES: Final = 4096
# The relay stands for a fibre, which does not wait for a processor.
_PRIORITY: Final = ("nice", "-n", "-10")


class OperatorsLine:
    """The line between the sites. ``quality``: without a cut."""

    def __init__(self, quality: LineQuality, process: trio.Process) -> None:
        self.quality = quality
        self._process = process
        self._turn = trio.Lock()

    async def cut(self) -> LineCounts:
        """Let nothing pass until `mend`."""
        return await self._order(msgspec.structs.replace(self.quality, cut=True))

    async def mend(self) -> LineCounts:
        """Let packets pass; return the counts so far."""
        return await self._order(self.quality)

    async def counts(self) -> LineCounts:
        """Return the counts so far of a line that is not cut."""
        return await self.mend()

    async def _order(self, quality: LineQuality) -> LineCounts:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        async with self._turn:
            try:
                await self._process.stdin.send_all(msgspec.json.encode(quality) + b"\n")
                answer = b""
                while not answer.endswith(b"\n"):
                    piece = await self._process.stdout.receive_some(_LONGEST_ANSWER_BYTES)
                    if not piece:
                        raise trio.BrokenResourceError
                    answer += piece
            except trio.BrokenResourceError:
                raise PartEnded("the operator's line ended: see line.log") from None
        return msgspec.json.decode(answer, type=LineCounts)


@asynccontextmanager
async def open_line(network: Network, quality: LineQuality, log: Path) -> AsyncIterator[OperatorsLine]:
    """Run the relay and lead the sites' packets through it until the body ends.

    Raises (in a group):
        PartEnded: the relay ended by itself.
        NetworkRefused: the routes cannot be set.
    """
    command = network.inside("line", *_PRIORITY, sys.executable, "-m", "qnode.testbed.relay")
    async with trio.open_nursery() as nursery:
        with log.open("ab") as errors:
            process = await trio.lowlevel.open_process(
                [*command, *_DEVICE.values()],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
            )
        try:
            line = OperatorsLine(quality, process)
            await line.mend()  # it answers when its devices are there
            await trio.to_thread.run_sync(route_through_relay, network, _DEVICE)
            nursery.start_soon(_watch, process, log)
            yield line
        finally:
            nursery.cancel_scope.cancel()
            await stop(process)


async def _watch(process: trio.Process, log: Path) -> None:
    await process.wait()
    raise PartEnded(f"the operator's line ended ({how(process.returncode)}): see {log}")
