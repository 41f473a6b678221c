"""Processor time and memory of the operator's page and of its figures over time, for a day of simulated time.

    python tests/trial/page_day.py --hours 24

The page of a daemon with its file and its local socket, on a virtual clock. One viewer has the page open all
the time, and asks for the figures of the last hour, day and week in turn; its own reading counts as well.
Exit 1 beyond 1 % of a core or 30 MiB. A day takes about ten minutes.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import trio
from trio.testing import MockClock

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from blocks_support import accepted_block
from msgspec.structs import replace
from operate_support import well_status

from qnode.config import PageSection
from qnode.node.listening import serve_at_socket
from qnode.node.page import OperatorsPage
from qnode.operate.page.view import SHOWN_BLOCKS
from qnode.operate.status.model import NodeStatus
from qnode.operate.trend.ring import WINDOWS

MOST_SHARE, MOST_MIB = 0.01, 30.0
ASK_S = 10.0
HOUR_S = 3600.0
# The virtual clock goes on after so much real time in which nothing happens.
STILL_S = 0.002


def resident_mib() -> float:
    """Return the memory of this process."""
    line = next(one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith("VmRSS:"))
    return int(line.split()[1]) / 1024


class Viewer:
    """A browser with the page open at ``path``."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.bytes = 0

    async def look(self) -> None:
        """Read the live view, and connect again when the stream ends."""
        while True:
            async with await trio.open_unix_socket(str(self._path)) as stream:
                await stream.send_all(b"GET /live HTTP/1.1\r\nHost: localhost\r\n\r\n")
                async for part in stream:
                    self.bytes += len(part)
                    if part.endswith(b"0\r\n\r\n"):
                        break
            await trio.sleep(1.0)

    async def ask(self) -> None:
        """Ask for the figures over time again and again."""
        while True:
            for window in WINDOWS:
                async with await trio.open_unix_socket(str(self._path)) as stream:
                    request = f"GET /trend/{window} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
                    await stream.send_all(request.encode())
                    async for part in stream:
                        self.bytes += len(part)
                await trio.sleep(ASK_S)


async def day(folder: Path, hours: float) -> tuple[float, float, int]:
    """Return the seconds of processor time, the MiB of memory, and the bytes that the viewer got."""
    began_at, blocks = time.time(), [accepted_block(number) for number in range(SHOWN_BLOCKS)]

    def status() -> NodeStatus:
        return replace(well_status(), at=began_at + trio.current_time())

    before_mib, most_mib = resident_mib(), 0.0
    path = folder / "page.sock"
    site: Any = SimpleNamespace(
        link=SimpleNamespace(name=well_status().site.link), store=SimpleNamespace(path=folder / "keys.sqlite")
    )
    section = PageSection(listen=f"unix:{path}")
    operators = OperatorsPage(
        section, [site], status, {site.link.name: lambda n: blocks[-n:]}, lambda _names: True
    )
    viewer = Viewer(path)
    async with trio.open_nursery() as nursery:
        server = await operators.start(nursery)
        await nursery.start(serve_at_socket, server, path, "page.listen")
        nursery.start_soon(viewer.look)
        nursery.start_soon(viewer.ask)
        began_s, ends_s = time.process_time(), trio.current_time() + hours * HOUR_S
        while trio.current_time() < ends_s:
            await trio.sleep(60.0)
            most_mib = max(most_mib, resident_mib())
        took_s = time.process_time() - began_s
        nursery.cancel_scope.cancel()
    return took_s, most_mib - before_mib, viewer.bytes


def main() -> int:
    """Print what a day costs; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hours", type=float, default=24.0)
    hours = parser.parse_args().hours
    with tempfile.TemporaryDirectory() as folder:
        clock = MockClock(autojump_threshold=STILL_S)
        took_s, mib, n_bytes = trio.run(day, Path(folder), hours, clock=clock)
    share = took_s / (hours * HOUR_S)
    print(f"{hours:g} h with a viewer: {took_s:.1f} s of processor time, {share:.3%} of a core (limit 1 %)")
    print(f"{mib:.1f} MiB more memory (limit 30), {n_bytes / 2**20:.1f} MiB sent")
    return 0 if share < MOST_SHARE and mib < MOST_MIB and n_bytes else 1


if __name__ == "__main__":
    sys.exit(main())
