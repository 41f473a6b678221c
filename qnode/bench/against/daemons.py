"""Both daemons of a link, of any version, seen from outside: processor time, memory, status."""

import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import trio
from msgspec import Struct

from qnode.bench.against.checkout import CaseFailed, Checkout, last_line
from qnode.bench.processes import peak_mib, processor_s
from qnode.choices import ROLES
from qnode.loopback.delay import delay_line
from qnode.operate.control.client import NoAnswer, NodeNotRunning, ask_status

_POLL_S: Final = 0.1
_PATIENCE_S: Final = 300.0
_STOP_S: Final = 20.0

Status = dict[str, Any]


class StagedSite(Struct, frozen=True):
    """The addresses of a site."""

    url: str
    control_socket: str


class StagedSae(Struct, frozen=True):
    """An encryptor, and its files."""

    sae_id: str
    certificate: str
    key: str


class Staged(Struct, frozen=True):
    """What `inside/stage.py` prepared; each dictionary is by role.

    ``line``: ports of a relay between the sites, at Bob's end and at Alice's, and its round trip in s.
    """

    site_files: dict[str, str]
    sites: dict[str, StagedSite]
    saes: dict[str, StagedSae]
    ca: str
    kme_certificate: str
    kme_key: str
    line: tuple[int, int, float] | None


def recorded(checkout: Checkout, link: str, folder: Path) -> Path:
    """Have a checkout record ``link`` (`fast` or `turin`); return the folder of the recording."""
    recording = folder / "recording"
    checkout.run_inside("stage.py", "record", link, str(recording))
    return recording


@contextmanager
def staged(checkout: Checkout, folder: Path, link: str, **options: object) -> Iterator[Staged]:
    """Have a checkout prepare both sites in a new folder, which is removed afterwards."""
    place = folder / "sites"
    words = (link, str(place), msgspec.json.encode(options).decode())
    try:
        yield msgspec.convert(checkout.run_inside("stage.py", "prepare", *words), Staged)
    finally:
        shutil.rmtree(place, ignore_errors=True)


@dataclass
class Daemon:
    """One running daemon."""

    role: str
    process: "subprocess.Popen[bytes]"
    control_socket: Path
    log: Path

    def status(self) -> Status | None:
        """Return its status; None before it answers.

        Raises:
            CaseFailed: it ended.
        """
        if self.process.poll() is not None:
            raise self._ended()
        try:
            found: Status = msgspec.json.decode(ask_status(self.control_socket, patience_s=10.0))
        except (NodeNotRunning, NoAnswer):
            return None
        return found

    def processor_s(self) -> float:
        """Return the processor time that all its threads have used, ended ones included.

        Raises:
            CaseFailed: it ended.
        """
        try:
            return processor_s(self.process.pid)
        except OSError:
            raise self._ended() from None

    def _ended(self) -> CaseFailed:
        return CaseFailed(f"{self.role}'s daemon ended: {last_line(self.log.read_text(errors='replace'))}")

    def peak_mib(self) -> float:
        """Return its peak resident memory."""
        return peak_mib(self.process.pid)


@dataclass(frozen=True)
class Window:
    """What happened between two decided blocks: processor time of both daemons, Bob's status at both ends."""

    processor_s: float
    before: Status
    after: Status

    def gained(self, reading: Callable[[Status], float]) -> float:
        """Return by how much a reading grew."""
        return reading(self.after) - reading(self.before)


@dataclass
class Link:
    """Both daemons of one link."""

    alice: Daemon
    bob: Daemon

    def processor_s(self) -> float:
        """Return the processor time of both."""
        return self.alice.processor_s() + self.bob.processor_s()

    def wait(self, holds: Callable[[Status], bool], what: str) -> Status:
        """Return Bob's status as soon as ``holds`` for it.

        Raises:
            CaseFailed: a daemon ended, or it takes longer than five minutes.
        """
        deadline_s = time.monotonic() + _PATIENCE_S
        while time.monotonic() < deadline_s:
            alice, bob = self.alice.status(), self.bob.status()
            if alice is not None and bob is not None and holds(bob):
                return bob
            time.sleep(_POLL_S)
        raise CaseFailed(f"no {what} within {_PATIENCE_S:g} s")

    def window(self, settle_s: float, seconds: float) -> Window:
        """Measure for so many seconds of wall time after some to settle, from one decided block to another.

        At its ends the work that has begun on further blocks is about the same.
        """
        self._next_block(0)
        time.sleep(settle_s)
        before, began_s = self._next_block()
        time.sleep(seconds)
        after, ended_s = self._next_block()
        return Window(ended_s - began_s, before, after)

    def _next_block(self, known: int | None = None) -> tuple[Status, float]:
        if known is None:
            known = blocks_of(self.wait(lambda bob: True, "status"))
        status = self.wait(lambda bob: blocks_of(bob) > known, "block")
        return status, self.processor_s()


def blocks_of(status: Status) -> int:
    """Return the number of blocks that gave key."""
    return int(status["block"]["accepted"])


def sifted_bits(status: Status) -> float:
    """Return the sifted bits of all decided blocks."""
    return float(status["totals"]["sifted_bits"])


def secret_bits(status: Status) -> float:
    """Return the secret bits of all blocks."""
    return float(status["totals"]["secret_bits"])


def tag_time_s(status: Status) -> float:
    """Return how far the tags have come."""
    return float(status["quantum"]["tag_time_s"])


@contextmanager
def running(checkout: Checkout, sites: Staged) -> Iterator[Link]:
    """Run both daemons with the code of a checkout, from their first answers on, until the body ends."""
    with ExitStack() as stack:
        if sites.line is not None:
            stack.enter_context(_relay(*sites.line))
        daemons = {role: stack.enter_context(_daemon(checkout, role, sites)) for role in ROLES}
        link = Link(**daemons)
        link.wait(lambda bob: True, "status")
        yield link


@contextmanager
def _daemon(checkout: Checkout, role: str, sites: Staged) -> Iterator[Daemon]:
    site_file = Path(sites.site_files[role])
    command = checkout.command("-m", "qnode", "run", "--config", str(site_file), "--stop-at-eof")
    log = site_file.with_suffix(".log")
    with (
        log.open("wb") as told,
        subprocess.Popen(
            command,
            env=checkout.environment,
            stdin=subprocess.PIPE,  # a daemon ends with this process, even if that is killed
            stdout=subprocess.DEVNULL,
            stderr=told,
        ) as process,
    ):
        try:
            yield Daemon(role, process, Path(sites.sites[role].control_socket), log)
        finally:
            process.terminate()
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()


@contextmanager
def _relay(bob_port: int, alice_port: int, round_trip_s: float) -> Iterator[None]:
    """Delay the classical channel, in a thread of this process."""
    end = threading.Event()

    async def relay() -> None:
        async with delay_line(bob_port, alice_port, round_trip_s):
            await trio.to_thread.run_sync(end.wait)

    thread = threading.Thread(target=trio.run, args=(relay,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()
