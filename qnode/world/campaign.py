"""Many seeds: over several processes, resumable, each failure with the command that replays it.

What is done is written down a line a seed, in a file of the cache that belongs to this exact source and these
settings: an interrupted campaign goes on where it was, and a changed source begins anew.
"""

import gc
import hashlib
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path

import msgspec

import qnode
from qnode.world.run import DURATION_S, run_seed
from qnode.world.schedule import MOST_FAULTS

HUNG_AFTER_S = 300
"""A run that takes so long has no end; it takes a second or two on a machine with nothing else to do."""


COLLECTIONS = (100_000, 20, 20)
"""The thresholds of the garbage collector in a process that runs seeds: a world has few reference cycles."""


class Settings(msgspec.Struct, frozen=True):
    """What all seeds of a campaign have in common."""

    duration_s: float = DURATION_S
    most_faults: int = MOST_FAULTS
    forced: tuple[str, ...] = ()
    bug: str | None = None

    def replay_command(self, seed: int) -> str:
        """Return the command that runs ``seed`` again and shows what happened."""
        parts = [f"qnode world --seed {seed}"]
        if self.duration_s != DURATION_S:
            parts.append(f"--minutes {self.duration_s / 60:g}")
        if self.most_faults != MOST_FAULTS:
            parts.append(f"--most-faults {self.most_faults}")
        parts += [f'--force "{name}"' for name in self.forced]
        if self.bug is not None:
            parts.append(f"--plant {self.bug}")
        return " ".join(parts)


class SeedResult(msgspec.Struct, frozen=True):
    """What came of one seed."""

    seed: int
    violations: tuple[str, ...]
    keys: int = 0
    blocks: int = 0
    cpu_s: float = 0.0
    digest: str = ""


def run_one(seed: int, settings: Settings, keep_log: Callable[[str], None] | None = None) -> SeedResult:
    """Run a seed; an exception that comes out of the node, and a run without an end, are violations too."""
    began_s = time.process_time()
    gc.set_threshold(*COLLECTIONS)
    try:
        with _limited(HUNG_AFTER_S):
            outcome = run_seed(
                seed,
                settings.duration_s,
                forced=settings.forced,
                most_faults=settings.most_faults,
                bug=settings.bug,
                keep_log=keep_log,
            )
    except Exception as error:  # noqa: BLE001 - whatever the node let through
        return SeedResult(seed, (f"crash: {_worded(error)}",), cpu_s=time.process_time() - began_s)
    return SeedResult(
        seed,
        tuple(map(str, outcome.violations)),
        outcome.keys,
        outcome.blocks,
        time.process_time() - began_s,
        outcome.digest,
    )


def run_many(seeds: Iterable[int], settings: Settings, processes: int, journal: Path) -> Iterator[SeedResult]:
    """Yield the result of each seed as it comes, those first that ``journal`` has."""
    done = {result.seed: result for result in read_journal(journal)}
    wanted = list(seeds)
    yield from (done[seed] for seed in wanted if seed in done)
    missing = [seed for seed in wanted if seed not in done]
    if not missing:
        return
    journal.parent.mkdir(parents=True, exist_ok=True)
    with journal.open("ab") as file:
        for result in _results(missing, settings, processes):
            file.write(msgspec.json.encode(result) + b"\n")
            file.flush()
            yield result


def _results(seeds: Sequence[int], settings: Settings, processes: int) -> Iterator[SeedResult]:
    if processes == 1:
        yield from (run_one(seed, settings) for seed in seeds)
        return
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(processes, mp_context=context)
    try:
        futures = [executor.submit(run_one, seed, settings) for seed in seeds]
        for future in as_completed(futures):
            yield future.result()
    finally:
        executor.shutdown(wait=False, cancel_futures=True)


def read_journal(journal: Path) -> list[SeedResult]:
    """Return what a journal has; a last line that was cut short is left out."""
    if not journal.exists():
        return []
    found = []
    for line in journal.read_bytes().splitlines():
        try:
            found.append(msgspec.json.decode(line, type=SeedResult))
        except msgspec.DecodeError:
            continue
    return found


def journal_of(settings: Settings) -> Path:
    """Return where the results of these settings with this source are written down."""
    digest = hashlib.sha256(msgspec.json.encode(settings))
    root = Path(qnode.__file__).parent
    for path in sorted(root.rglob("*.py")) + sorted(root.rglob("*.sql")):
        digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "qnode" / "world" / f"{digest.hexdigest()[:16]}.jsonl"


@contextmanager
def _limited(seconds: int) -> Iterator[None]:
    def hung(_signal: int, _frame: object) -> None:
        raise TimeoutError(f"the run had no end within {seconds} s")

    before = signal.signal(signal.SIGALRM, hung)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _worded(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}"
