"""Two honest sites that make small blocks within one event loop, on a virtual clock, over in-memory streams.

All of a site is real but its devices, threads and key-length estimator: sessions, dialogues, reconciliation,
plausibility, stores on files. Clicks are those of the frozen conversation's model. Work that a node hands to
threads is done at once, and all chance follows from a seed: what happens is a function of the seed.
"""

import math
import secrets
import shutil
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import trio
from conversation_room import RUN_ID, KeepingFigures, config_of, end_of, photons
from keys_support import Site as Folder
from keys_support import preshared
from trio.testing import MockClock

import qnode.distill.keylength as keylength
from qnode.block.running_rate import RunningRate
from qnode.config import (
    BlockParameters,
    EstimationParameters,
    LinkParameters,
    MonitorsSection,
    ReconciliationParameters,
    Role,
    SourceParameters,
)
from qnode.devices.protocols import EmissionRun
from qnode.distill.keylength import rusca2018
from qnode.distill.keylength.inputs import EstimatorInput
from qnode.distill.keylength.result import KeyLength
from qnode.keys import PadId, SqliteKeyStore, StoredKey
from qnode.keys._model import Pad
from qnode.link.frames import FrameStream
from qnode.link.hello import Greeted, LocalEnd, exchange_hello
from qnode.link.messages import SaesRegistered
from qnode.link.protocol import link_for_protocol
from qnode.link.session import Session, open_session
from qnode.node.dialogue.context import BlockContext
from qnode.node.dialogue.tag_order import TagOrder
from qnode.node.monitoring.randomness import Draw, system_bytes
from qnode.node.monitoring.watch import MonitorWatch
from qnode.node.quantum.alice import AliceSide
from qnode.node.quantum.bob import BobSide
from qnode.node.quantum.receiver_requests import AlignmentRequest, ClickAnnouncement
from qnode.node.quantum.recorder import AliceRecorder, BobRecorder
from qnode.node.quantum.transmitter_port import TransmitterPort
from qnode.node.session.router import SessionRouter
from qnode.node.supply.async_store import AsyncStore
from qnode.operate.recording.recordings import Recordings
from qnode.tags.alignment import AlignmentProbe
from qnode.tags.marks import Marks
from qnode.tags.types import Clicks, Codes, Slots
from qnode.world.determinism import determined

ROLES: tuple[Role, Role] = ("alice", "bob")
LINK = LinkParameters(
    name="small",
    source=SourceParameters(mu=photons.MU, mu_uncertainty=(0.0, 0.0), p=photons.P, p_z=photons.P_Z),
    block=BlockParameters(sifted_bits=3000, minimum_secret_bits=2048),
    estimation=EstimationParameters(estimator="small blocks", x_mode="visibility"),  # type: ignore[arg-type]
    reconciliation=ReconciliationParameters(method="cascade"),
)
ERROR_RATE = 0.012  # what Bob knows of earlier blocks
PADS = 4000
RATE_SLOTS = 100_000
PROBE_SLOTS = 6000
OFFSETS = 2000


# What is sent and detected: after so many slots all comes again.

_PERIOD = 1 << 18
_ALL = np.arange(_PERIOD, dtype=np.int64)
_SYMBOLS = photons.symbols(_ALL)
_NO_CLICK = 255


def _table() -> tuple[Codes, Codes]:
    outcomes, crossed = np.full(_PERIOD, _NO_CLICK, np.uint8), np.zeros(_PERIOD, np.uint8)
    slots, found = photons.clicks(0, _PERIOD)
    outcomes[slots] = found
    crossed[photons.clicks(0, _PERIOD, cross_only=True)[0]] = 1
    return outcomes, crossed


_OUTCOMES, _CROSSED = _table()


def symbols(slots: Slots) -> Codes:
    """Return what Alice sent in ``slots``."""
    found: Codes = _SYMBOLS[slots % _PERIOD]
    return found


def announcement(first: int, end: int) -> ClickAnnouncement:
    """Return all that Bob's tags show of some slots."""
    slots = np.arange(first, end, dtype=np.int64)
    outcomes = _OUTCOMES[slots % _PERIOD]
    clicks = Clicks(slots[outcomes != _NO_CLICK], outcomes[outcomes != _NO_CLICK])
    n_z = int(np.count_nonzero(clicks.outcomes <= photons.LATE))
    none = np.empty(0, np.int64)
    crossed = slots[_CROSSED[slots % _PERIOD] == 1]
    marks = Marks(out_of_gate=clicks.slots[::30], double_clicks=none, cross_clicks=crossed, too_close=none)
    return ClickAnnouncement(RUN_ID, 1, clicks, n_z, end, (), 0, marks=marks)


def _known_rate() -> RunningRate:
    """Return a running rate that has seen enough of the link."""
    rate, seen = RunningRate(photons.P_Z), announcement(1, RATE_SLOTS)
    rate.add(RUN_ID, 1, cut_slots=0, clicks=0, z_clicks=0)
    rate.add(RUN_ID, RATE_SLOTS, cut_slots=0, clicks=len(seen.clicks), z_clicks=seen.z_clicks)
    return rate


# Seams


def _small_key(inputs: EstimatorInput) -> KeyLength:
    """Give key from few bits, where no bound would: what is disclosed is subtracted, and a little more."""
    secret = inputs.n_z.total - inputs.lambda_ec - inputs.verification_bits - 100
    bounds = rusca2018.key_length(inputs)
    return msgspec.structs.replace(
        bounds, length=max(0, int(secret)), length_unfloored=secret, estimator="small blocks"
    )


@contextmanager
def one_loop(seed: int | str) -> Iterator[None]:
    """Have all chance follow from ``seed``, work of threads done in the loop, and small blocks give key."""
    before = keylength.ESTIMATORS
    try:
        keylength.ESTIMATORS = MappingProxyType({**before, "small blocks": _small_key})  # type: ignore[misc]
        with determined(seed):
            yield
    finally:
        keylength.ESTIMATORS = before  # type: ignore[misc]


class PadWatch:
    """Which one-time pads a site has spent: the same twice is a fault, whatever happened between."""

    def __init__(self, role: Role) -> None:
        self.role = role
        self.spent: set[PadId] = set()
        self._pads: set[bytes] = set()

    def follow(self, store: SqliteKeyStore) -> None:
        """Watch a store that was opened."""
        reserve = store.reserve_send_pad

        def watched() -> Pad:
            pad = reserve()
            assert pad.pad_id not in self.spent, f"{self.role} spends pad {pad.pad_id} twice"
            assert pad.pad not in self._pads, f"{self.role} spends the bytes of a pad twice"
            self.spent.add(pad.pad_id)
            self._pads.add(pad.pad)
            return pad

        store.reserve_send_pad = watched  # type: ignore[method-assign]


# Sites


@dataclass
class SmallSite:
    """One site over all its sessions."""

    role: Role
    store: SqliteKeyStore
    link: LinkParameters
    figures: KeepingFigures = field(init=False)
    async_store: AsyncStore = field(init=False)
    source: TransmitterPort = field(init=False)
    rate: RunningRate = field(init=False)
    watch: MonitorWatch = field(default_factory=lambda: MonitorWatch(MonitorsSection()))
    draw: Draw = system_bytes

    def __post_init__(self) -> None:
        self.figures = KeepingFigures(config_of(self.role, self.link))
        self.figures.history.error_rate.counted(ERROR_RATE)
        self.async_store = AsyncStore(self.store, most_chunks=1 << 20)
        self.source = TransmitterPort()
        transmitter: Any = SimpleNamespace(symbols=lambda _run, slots: symbols(slots))
        self.source.transmitter = transmitter
        self.source.run = EmissionRun(run_id=RUN_ID, started_at_s=1_800_000_000.0)
        self.rate = _known_rate()

    def end(self) -> LocalEnd:
        """Return this site as it stands, for a hello."""
        return end_of(
            self.role,
            self.store,
            self.link,
            software="qnode small",
            random_bytes=lambda n: secrets.token_bytes(n),
        )


@dataclass
class Spoken:
    """A session at one site, as the site works with it; ``part`` is Bob's or Alice's."""

    conversation: SessionRouter
    part: Any
    nursery: trio.Nursery


Work = Callable[[Spoken], Awaitable[None]]
Greet = Callable[[FrameStream, LocalEnd], Awaitable[Greeted]]
ROLE_PAIRS: dict[Role, tuple[tuple[str, str]]] = {
    "alice": (("sae-a", "sae-b"),),
    "bob": (("sae-b", "sae-a"),),
}


@dataclass
class Conduct:
    """What a site does in one session; the session ends in order when Bob's ``work`` is done.

    ``greet`` says the hello; ``prepare`` may change the session before anything is said in it.
    """

    work: Work
    greet: Greet | None = None
    prepare: Callable[[Session, FrameStream], None] = lambda session, frames: None


async def converse(site: SmallSite, stream: trio.abc.Stream, conduct: Conduct) -> None:
    """Hold one session.

    Raises:
        LinkError: it ended otherwise than by a goodbye.
        BaseExceptionGroup: of several errors.
    """
    frames, local = FrameStream(stream), site.end()
    if conduct.greet is None:
        greeted = await exchange_hello(frames, local, connected=site.role == "bob")
    else:
        greeted = await conduct.greet(frames, local)
    async with open_session(frames, local, greeted) as session:
        conduct.prepare(session, frames)
        await in_session(site, session, conduct.work)


async def in_session(site: SmallSite, session: Session, work: Work) -> None:
    """Be a site in an open session until ``work`` is done. Raises as `converse`."""
    async with trio.open_nursery() as nursery:
        context = BlockContext(
            role=site.role,
            link=link_for_protocol(site.link, session.protocol),
            session=session,
            store=site.async_store,
            tag_order=TagOrder(),
            simulated=True,
            watch=site.watch,
            draw=site.draw,
        )
        conversation = SessionRouter(context, site.figures.blocks, nursery)
        part: AliceSide | BobSide
        if site.role == "alice":
            recorder = AliceRecorder(config_of("alice", site.link), Recordings(), simulated=True)
            part = AliceSide(conversation, site.source, site.figures, nursery, recorder)
        else:
            bobs = BobRecorder(config_of("bob", site.link), Recordings(), simulated=True)
            part = BobSide(conversation, site.figures, site.rate, nursery, bobs)
        nursery.start_soon(conversation.run, part)
        await conversation.settled.wait()
        if session.knows(SaesRegistered):
            await session.send(SaesRegistered(ROLE_PAIRS[site.role]))
        await work(Spoken(conversation, part, nursery))
        nursery.cancel_scope.cancel()


def leaves(error: BaseException) -> Iterator[BaseException]:
    """Yield the errors within groups."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from leaves(inner)
    else:
        yield error


@dataclass
class SmallLink:
    """Both sites; ``reached``: the slot up to which Bob has announced."""

    alice: SmallSite
    bob: SmallSite
    reached: int = RATE_SLOTS
    watches: dict[Role, PadWatch] = field(default_factory=lambda: {role: PadWatch(role) for role in ROLES})

    def __post_init__(self) -> None:
        self.opened_after_block = max(site.store.last_block_id for site in self.sites)
        for site in self.sites:
            self.watches[site.role].follow(site.store)

    @property
    def sites(self) -> tuple[SmallSite, SmallSite]:
        return self.alice, self.bob

    def site(self, role: Role) -> SmallSite:
        return self.alice if role == "alice" else self.bob

    async def meet(
        self, streams: dict[Role, trio.abc.Stream], conducts: dict[Role, Conduct]
    ) -> dict[Role, list[BaseException]]:
        """Hold one session between both sites; return the errors by which it ended at each."""
        ended: dict[Role, list[BaseException]] = {}

        async def one(site: SmallSite) -> None:
            stream = streams[site.role]
            try:
                await converse(site, stream, conducts[site.role])
                ended[site.role] = []
            except Exception as error:  # noqa: BLE001 - what it was, the caller judges
                ended[site.role] = list(leaves(error))
            finally:
                await trio.aclose_forcefully(stream)

        with trio.fail_after(3000):
            async with trio.open_nursery() as nursery:
                for site in self.sites:
                    nursery.start_soon(one, site)
        return ended

    # What sites do

    async def align(self, spoken: Spoken) -> None:
        """Bob: have a probe aligned."""
        side: BobSide = spoken.part
        await side.ready.wait()
        await side.run_known.wait()
        first, end = self.reached, self.reached + PROBE_SLOTS
        self.reached = end
        clicks = announcement(first, end).clicks
        of_z = clicks.outcomes <= photons.LATE
        ticks = 2 * clicks.slots[of_z] + clicks.outcomes[of_z]
        deliver, receive = trio.open_memory_channel[Any](1)
        offset = int(ticks[0])
        offsets = range(offset - OFFSETS, offset + OFFSETS)
        await side.do(AlignmentRequest(RUN_ID, AlignmentProbe(1, 0, ticks - offset), offsets, deliver))
        with suppress(trio.EndOfChannel):
            await receive.receive()

    async def fill_blocks(self, spoken: Spoken, number: int, arrived_s: float = math.inf) -> list[int]:
        """Bob: announce ``number`` blocks, and wait until all are decided; return their numbers.

        ``arrived_s``: when their tags arrived.
        """
        part: BobSide = spoken.part
        await part.ready.wait()
        await part.run_known.wait()
        await part.do(announcement(self.reached, self.reached + 1))
        self.reached += 1
        blocks = []
        for _ in range(number):
            while part._current is None or part._current in blocks:  # noqa: ASYNC110
                await trio.sleep(0.25)
            block = part._current
            blocks.append(block)
            middle = (block.span.first_slot + block.span.end_slot) // 2
            for end in (middle, block.span.end_slot):
                await part.do(replace(announcement(self.reached, end), arrived_s=arrived_s))
                self.reached = end
        for block in blocks:
            await block.decided.wait()
        return [block.channel.block_id for block in blocks]


@contextmanager
def small_link(folder: Path, method: str = "cascade") -> Iterator[SmallLink]:
    """Lend a link on stores in ``folder``, made anew where there is none; ``method``: of correction."""
    link = msgspec.structs.replace(LINK, reconciliation=ReconciliationParameters(method=method))  # type: ignore[arg-type]
    with ExitStack() as stack:

        def site(role: Role) -> SmallSite:
            place = Folder(folder / role, role)
            is_new = not place.path.exists()
            place.path.parent.mkdir(parents=True, exist_ok=True)
            place.path.parent.chmod(0o700)
            store = stack.enter_context(place.open())
            if is_new:
                store.load_preshared(preshared(PADS))
            return SmallSite(role, store, link)

        yield SmallLink(site("alice"), site("bob"))


def copied(template: Path, folder: Path) -> Path:
    """Copy the stores of a link that is closed."""
    shutil.copytree(template, folder)
    return folder


def all_keys(link: SmallLink) -> dict[str, bytes]:
    """Hand out every free key at both sites, to master and slave; return them once seen to be equal."""
    found: dict[str, bytes] = {}
    for owner, peer in ((link.alice, link.bob), (link.bob, link.alice)):
        number = owner.store.stored_key_count(256)
        if not number:
            continue
        master, slave = f"master-{owner.role}", f"slave-{peer.role}"
        assignment = owner.store.assign(master, [slave], number, 256, now=0.0)
        peer.store.accept_assignment(assignment, now=0.0)
        owner.store.acknowledge(assignment.assignment_id)
        keys: list[StoredKey] = owner.store.deliver_to_master(assignment.assignment_id)
        same = peer.store.deliver_to_slave(slave, master, [key.key_id for key in keys])
        assert [(key.key_id, key.key) for key in keys] == [(key.key_id, key.key) for key in same]
        found |= {str(key.key_id): key.key for key in keys}
    return found


def virtual_clock() -> MockClock:
    return MockClock(autojump_threshold=0.0)
