"""One run of the world: a seed in, what it violated out.

Two phases. Until ``heals_at_s`` anything may fail (safety: the invariants hold whatever happens). Then
nothing fails any more (liveness: clicks are sifted again within a minute, and key follows soon). At the end
encryptors fall quiet, the sites meet a last time and stop, and the checker reads everything.
"""

import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog
import trio
from structlog.typing import EventDict

import qnode.node.dialogue.reconciliation as reconciliation
from qnode.choices import ROLES, Role
from qnode.distill.bits import Bits
from qnode.keys import SqliteKeyStore, StoreCondition
from qnode.link.messages import ClickBatch, Sifted
from qnode.operate.events.log import redact
from qnode.world import estimator
from qnode.world.checker import StoreContents, Violation, check
from qnode.world.configuration import link_parameters
from qnode.world.contents import contents_of
from qnode.world.determinism import VirtualClock, determined, now_s
from qnode.world.disk import Disk, mounted
from qnode.world.encryptors import Encryptors
from qnode.world.faults import Errs, Stage, happen
from qnode.world.history import Answered, Confirmed, History, Said
from qnode.world.light import Light
from qnode.world.network import Network
from qnode.world.planted import planted
from qnode.world.schedule import MOST_FAULTS, Schedule, drawn_schedule
from qnode.world.site import Site
from qnode.world.threads import WorldThreads

DURATION_S = 600.0
SIFTED_WITHIN_S = 60.0
"""I6: of the healing of all faults."""
_QUIET_S = 40.0
_BLOCKS_UNTIL_KEY = 3
"""One that was being filled, one that pays for a new estimate of the error rate, and one that gives key."""


@dataclass
class Outcome:
    """What came of a run. ``digest``: the same for the same seed, whatever machine and process."""

    seed: int
    violations: list[Violation]
    keys: int
    blocks: int
    counts: Counter[str] = field(default_factory=Counter)
    digest: str = ""


class World:
    """The two sites and all around them."""

    def __init__(self, schedule: Schedule, folder: Path, threads: WorldThreads, clock: Any) -> None:
        rng = random.Random(f"world {schedule.seed}")
        self.schedule = schedule
        self.history = History(now_s)
        self.violations: list[Violation] = []
        self.met = False
        """The sites were in a session at the end, with all settled."""
        self.network = Network(random.Random(rng.random()), self.history, delay_s=schedule.delay_s)
        light = Light(schedule.seed)
        link = link_parameters(block_s=schedule.block_s, refill_pads=schedule.refill_pads, reserve_pads=8)
        self.history.preshared.append(rng.randbytes(64 + 32 * schedule.pads))
        self.disks = {role: Disk(folder / role, random.Random(rng.random())) for role in ROLES}
        self.sites: dict[Role, Site] = {
            role: Site(
                role,
                self.disks[role],
                self.network,
                self.history,
                light,
                link,
                random.Random(rng.random()),
                most_chunks=schedule.most_chunks,
                key_lifetime_s=schedule.key_lifetime_s,
                stock_per_pair=schedule.stock_per_pair,
            )
            for role in ROLES
        }
        self.encryptors = Encryptors(
            self.sites, self.history, random.Random(rng.random()), schedule.pause_s, patience_s=20.0
        )
        self.stage = Stage(
            self.sites,
            self.network,
            self.encryptors,
            threads,
            clock,
            self.history,
            schedule.delay_s,
            Errs(),
        )
        self._threads = threads
        self._rng = rng

    async def run(self) -> None:
        """Live through the schedule."""
        async with trio.open_nursery() as nursery:
            self._threads.nursery = nursery
            for site in self.sites.values():
                nursery.start_soon(site.live)
                nursery.start_soon(self.encryptors.ask_at, site, nursery)
            with trio.move_on_at(self.schedule.heals_at_s):
                await self._suffer()
            await self._heal()
            self.met = all(site.connected for site in self.sites.values())
            nursery.cancel_scope.cancel()
        for site in self.sites.values():
            self.violations += [Violation("store", text) for text in site.unusable]

    async def _suffer(self) -> None:
        async with trio.open_nursery() as nursery:
            for fault in self.schedule.faults:
                await trio.sleep_until(fault.at_s)
                nursery.start_soon(happen, fault, self.stage)
            await trio.sleep_forever()

    async def _heal(self) -> None:
        """Let every fault end, and hold the sites to what they promise then."""
        schedule, stage = self.schedule, self.stage
        self.network.heal(schedule.delay_s)
        stage.threads.hanging.clear()
        stage.threads.go_on()
        stage.errs.now = False
        for site in self.sites.values():
            site.heal()
        if not schedule.checks_liveness:
            self.encryptors.quiet = True
            await trio.sleep_until(schedule.ends_at_s)
            return
        await self._operators_look()
        healed_s = now_s()
        await trio.sleep(SIFTED_WITHIN_S)
        room = schedule.most_chunks > 1000
        # A store that is full discards each block before Bob ends its announcement.
        sign: type = Sifted if room else ClickBatch
        if not self._since(
            healed_s, lambda event: isinstance(event, Said) and isinstance(event.message, sign)
        ):
            self._fail("I6", f"no {sign.__name__} within {SIFTED_WITHIN_S:g} s of {healed_s:.0f} s")
        await trio.sleep(_BLOCKS_UNTIL_KEY * schedule.block_s)
        if room and not self._since(healed_s, lambda event: isinstance(event, Confirmed)):
            self._fail("I6", f"no key within {_BLOCKS_UNTIL_KEY} blocks after {healed_s:.0f} s")
        self.encryptors.quiet = True
        await trio.sleep_until(max(schedule.ends_at_s, now_s() + _QUIET_S))

    def _since(self, since_s: float, holds: Callable[[Any], bool]) -> bool:
        return any(event.at_s >= since_s and holds(event) for event in self.history.events)

    def _fail(self, invariant: str, what: str) -> None:
        self.violations.append(Violation(invariant, what))

    async def _operators_look(self) -> None:
        """Load a new pre-shared key where nothing else helps, as each site says by itself."""
        for _ in range(10):
            await trio.sleep(3.0)
            conditions = [site.condition() for site in self.sites.values()]
            pads = [site.pads_left() for site in self.sites.values()]
            lost = any(one is not None and one.state == StoreCondition.NEEDS_RESTORE for one in conditions)
            if lost or min(pads) == 0 or not self._same_epoch():
                await self.stage.load_preshared(self._rng)
                return

    def _same_epoch(self) -> bool:
        epochs = {site.pool_epoch() for site in self.sites.values()}
        return len(epochs - {None}) < 2

    def contents(self) -> dict[Role, StoreContents]:
        """Open both stores as they lie on their disks."""
        found: dict[Role, StoreContents] = {}
        for role, site in self.sites.items():
            site.disk.start()
            store = site.open_store()
            assert isinstance(store, SqliteKeyStore)
            found[role] = contents_of(store)
            store.close()
        return found


class _Erring:
    """A corrector that leaves an error behind while it is told to."""

    def __init__(self, machine: Any, errs: Errs) -> None:
        self._machine = machine
        self._errs = errs

    def __getattr__(self, name: str) -> Any:
        return getattr(self._machine, name)

    @property
    def corrected(self) -> Bits:
        corrected: Bits = self._machine.corrected
        if not self._errs.now:
            return corrected
        words = corrected.words.copy()
        words[0] ^= 1
        return Bits(words, len(corrected))


@contextmanager
def _corrections(errs: Callable[[], Errs]) -> Iterator[None]:
    owner: Any = reconciliation
    real = owner.corrector
    owner.corrector = lambda *args, **options: _Erring(real(*args, **options), errs())
    try:
        yield
    finally:
        owner.corrector = real


@contextmanager
def _logged(lines: list[str]) -> Iterator[None]:
    """Write the log down as the daemon's would say it, and nowhere else."""

    def keep(_logger: object, _method: str, event: EventDict) -> EventDict:
        lines.append(f"{now_s():.3f} {' '.join(f'{name}={value}' for name, value in event.items())}")
        raise structlog.DropEvent

    before = structlog.get_config()
    structlog.configure(
        processors=[structlog.processors.add_log_level, structlog.processors.format_exc_info, redact, keep],
        cache_logger_on_first_use=False,
    )
    try:
        yield
    finally:
        structlog.configure(**before)


def memory_folder() -> Path:
    """Return where files lie in memory, if the machine has such a place."""
    shared = Path("/dev/shm")  # noqa: S108 - a folder of our own is made in it
    return shared if shared.is_dir() else Path(tempfile.gettempdir())


def run_seed(
    seed: int,
    duration_s: float = DURATION_S,
    *,
    forced: Sequence[str] = (),
    most_faults: int = MOST_FAULTS,
    bug: str | None = None,
    keep_log: Callable[[str], None] | None = None,
) -> Outcome:
    """Run the world of ``seed`` and check it.

    ``forced``: faults that happen in any case; ``bug``: of `BUGS`, planted in the node.
    """
    schedule = drawn_schedule(seed, duration_s, forced=forced, most_faults=most_faults)
    folder = Path(tempfile.mkdtemp(prefix="qnode-world-", dir=memory_folder()))
    threads = WorldThreads(random.Random(f"threads {seed}"), schedule.slow_share, schedule.late_s)
    try:
        with ExitStack() as stack:
            clock = stack.enter_context(determined(seed, threads))
            world = World(schedule, folder, threads, clock)
            stack.enter_context(_logged(world.history.log))
            stack.enter_context(mounted(*world.disks.values()))
            stack.enter_context(estimator.entered())
            stack.enter_context(planted(bug))
            stack.enter_context(_corrections(lambda: world.stage.errs))
            trio.run(world.run, clock=VirtualClock())
            violations = world.violations + check(world.history, world.contents(), met=world.met)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if keep_log is not None:
        for line in (*map(str, schedule.faults), *world.history.log):
            keep_log(line)
    history = world.history
    return Outcome(
        seed=seed,
        violations=violations,
        keys=len({event.key_id for event in history.of(Answered)}),
        blocks=len({event.block_id for event in history.of(Confirmed)}),
        counts=Counter({**world.encryptors.refused, **Counter(type(one).__name__ for one in history.events)}),
        digest=history.digest.hexdigest()[:16],
    )
