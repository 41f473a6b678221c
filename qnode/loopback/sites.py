"""The daemons of the sites: started, supervised, restarted after a crash, stopped."""

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import trio

from qnode.errors import QnodeError

RESTART_PAUSE_S = 1.0
STOP_S = 15.0
EXIT_USAGE = 64

Tell = Callable[[str, str], None]


class SiteFailed(QnodeError):
    """A daemon refused to start; the message is its last line."""


async def keep_site(site: str, site_file: Path, tell: Tell) -> None:
    """Run one daemon until cancelled; a daemon that ends is restarted, as by systemd.

    ``tell`` gets every line that it logs. On cancellation the daemon is stopped, and the function waits for
    its end.

    Raises:
        SiteFailed: it exits at once, twice in a row, or refuses its configuration.
    """
    await _keep(site, ["qnode", "run", "--config", str(site_file), "--stop-at-eof"], tell)


async def keep_bench(site: str, bench_file: Path, tell: Tell) -> None:
    """Run the emulated devices of a site until cancelled, like `keep_site`."""
    await _keep(
        site, ["qnode.emulate.bench", str(bench_file)], lambda site, line: tell(site, f"bench: {line}")
    )


async def _keep(site: str, module: list[str], tell: Tell) -> None:
    # Its standard input comes from this process: if this process is killed, it stops.
    command = [sys.executable, "-m", *module]
    short_lives = 0
    while True:
        started = trio.current_time()
        process = await trio.lowlevel.open_process(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE)
        last = [""]
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_relay, process, site, tell, last)
                await process.wait()
        finally:
            await stop(process)
        short_lives = short_lives + 1 if trio.current_time() - started < STOP_S else 0
        if process.returncode == EXIT_USAGE or (process.returncode == 1 and short_lives > 1):
            raise SiteFailed(f"{site}: {last[0]}")
        tell(site, f"the process ended ({_how(process.returncode)}); starting it again")
        await trio.sleep(RESTART_PAUSE_S)


def _how(code: int | None) -> str:
    if code is not None and code < 0:
        return signal.Signals(-code).name
    return f"exit {code}"


async def _relay(process: trio.Process, site: str, tell: Tell, last: list[str]) -> None:
    """Pass on the log of the daemon, line by line."""
    assert process.stderr is not None
    rest = b""
    async for piece in process.stderr:
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            last[0] = line.decode(errors="replace")
            tell(site, last[0])
    if rest:
        last[0] = rest.decode(errors="replace")
        tell(site, last[0])


async def stop(process: trio.Process) -> None:
    """Have a process end, and kill it if it has not ended after `STOP_S` seconds."""
    if process.returncode is not None:
        return
    with trio.CancelScope(shield=True):
        process.terminate()
        with trio.move_on_after(STOP_S):
            await process.wait()
            return
        process.kill()
        await process.wait()
