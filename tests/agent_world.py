"""Two agents in one process on a virtual clock, with encryptors, key managers and a line in memory.

Everything is counted, so that a fault can be set for the n-th message, step or call.
"""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Literal
from uuid import UUID

import trio
import trio.lowlevel

from qnode.agent.core import Agent, Terms
from qnode.agent.key_age import KeyAge
from qnode.agent.messages import Message, decode, encode
from qnode.agent.state import Condition
from qnode.agent.tunnel import InUse, TunnelKey
from qnode.errors import KeyManagerError, LinkError, TunnelError
from qnode.world.determinism import VirtualClock, determined, now_s

Site = Literal["initiator", "responder"]
SITES: tuple[Site, Site] = ("initiator", "responder")
RESTART_S = 2.0


@dataclass(frozen=True)
class Fault:
    """At the ``nth`` time that ``at`` (a message, or a site and its step) comes, ``do`` happens.

    ``do``: cut (before the message), cut_after, mute (from this message on), replace (the line by a newer
    one), kill, fail, hang, lose (the answer), wrong (another key).
    ``for_s``: of a cut.
    """

    at: str
    nth: int
    do: str
    for_s: float = 0.0


@dataclass
class World:
    """What both sites share, and what was seen."""

    faults: list[Fault] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    random: Random = field(default_factory=lambda: Random(5))
    stored: int = 1000
    fetched: set[str] = field(default_factory=set)
    keys: dict[str, bytes] = field(default_factory=dict)
    taken_at: list[float] = field(default_factory=list)
    session: bytes | None = None
    encryptors: dict[Site, "Encryptor"] = field(default_factory=dict)
    agents: dict[Site, Agent] = field(default_factory=dict)
    lives: dict[Site, trio.CancelScope] = field(default_factory=dict)
    talks: dict[Site, trio.CancelScope] = field(default_factory=dict)
    says_stored: int | None = None
    blocked: bool = False  # no handshake passes between the encryptors
    same_key: bool = False  # the key managers give the same key again and again
    deaths: dict[Site, trio.Event] = field(default_factory=dict)
    conditions: dict[Site, Condition] = field(default_factory=dict)
    line_back_at: float = 0.0
    muted_at: float = 0.0
    starts: list[float] = field(default_factory=list)
    terms: dict[Site, Terms] = field(default_factory=dict)
    gone_at: dict[Site, float] = field(
        default_factory=dict
    )  # when the encryptor of a site cannot be asked any more
    tampers: Callable[[Site, Message], Message] = lambda site, message: message
    failures: dict[Site, list[str]] = field(default_factory=lambda: {site: [] for site in SITES})

    def passes(self, at: str) -> Fault | None:
        """Count ``at``, and return the fault that is set for this time."""
        self.counts[at] += 1
        return next((one for one in self.faults if (one.at, one.nth) == (at, self.counts[at])), None)

    def handshake(self) -> None:
        """Two encryptors with one key begin to use it; with different ones they go on as before."""
        first, second = (self.encryptors[site].active for site in SITES)
        if first is not None and first == second and not self.blocked:
            self.session = first

    async def step(self, site: Site, name: str) -> Fault | None:
        """Take a moment for a step of a site, and do the fault that is set for it."""
        fault = self.passes(f"{site}.{name}") or self.passes(site)
        await trio.sleep(0.01)
        if fault is not None and fault.do == "kill":
            self.lives[site].cancel()
            await trio.lowlevel.checkpoint()
        if fault is not None and fault.do == "replace" and site in self.talks:
            self.talks[site].cancel()
            await trio.lowlevel.checkpoint()
        if fault is not None and fault.do == "hang":
            await trio.sleep(30.0)
        return fault


@dataclass
class Encryptor:
    """What outlives an agent: keys by their bytes."""

    world: World
    loaded: set[bytes] = field(default_factory=set)
    active: bytes | None = None
    before: bytes | None = None
    loads: Counter[str] = field(default_factory=Counter)
    taken_down: int = 0
    remembered: float | None = None  # since when, as the agent remembers it
    bytes_per_s: float = 1e3


class MemoryKeyAge(KeyAge):
    """What outlives an agent in its folder."""

    def __init__(self, encryptor: Encryptor) -> None:
        super().__init__(None)
        self._encryptor = encryptor

    def remember(self, key_id: str, since: float) -> None:
        self._encryptor.remembered = since

    def forget(self) -> None:
        self._encryptor.remembered = None

    def since(self) -> float | None:
        return self._encryptor.remembered


class MemoryTunnel:
    """An agent's hold on an `Encryptor`; it knows the key_IDs of this agent alone."""

    key_size_bits = 256

    def __init__(self, encryptor: Encryptor, site: Site) -> None:
        self._encryptor = encryptor
        self._site: Site = site
        self._names: dict[bytes, str] = {}

    async def _step(self, name: str) -> None:
        world = self._encryptor.world
        fault = await world.step(self._site, name)
        if now_s() >= world.gone_at.get(self._site, math.inf):
            raise TunnelError("the encryptor is gone")
        if fault is not None and fault.do == "fail":
            raise TunnelError(f"{name} failed as planned")

    async def prepare(self) -> None:
        await self._step("prepare")

    async def load(self, key: TunnelKey) -> None:
        await self._step("load")
        self._encryptor.loads[key.key_id] += 1
        self._encryptor.loaded.add(key.key)
        self._names[key.key] = key.key_id

    async def activate(self, key: TunnelKey) -> None:
        await self._step("activate")
        assert key.key in self._encryptor.loaded
        encryptor = self._encryptor
        encryptor.before, encryptor.active = encryptor.active, key.key
        encryptor.world.handshake()
        await self._step("activated")

    async def in_use(self) -> InUse | None:
        await self._step("in_use")
        session = self._encryptor.world.session
        if session is None or self._encryptor.active is None:
            return None
        return InUse(self._names.get(session), now_s(), "handshake")

    async def retire(self, key: TunnelKey) -> None:
        await self._step("retire")
        assert self._encryptor.active == key.key
        self._encryptor.loaded, self._encryptor.before = {key.key}, None

    async def unload(self, key: TunnelKey) -> None:
        await self._step("unload")
        encryptor = self._encryptor
        if encryptor.active == key.key:
            encryptor.active, encryptor.before = encryptor.before, None
            encryptor.world.handshake()
        encryptor.loaded.discard(key.key)

    async def take_down(self) -> None:
        await self._step("take_down")
        self._encryptor.taken_down += 1
        self._encryptor.active = self._encryptor.before = self._encryptor.world.session = None

    async def transferred_bytes(self) -> int:
        return int(now_s() * self._encryptor.bytes_per_s)


class MemoryKeyManager:
    """The key manager of one site."""

    def __init__(self, world: World, site: Site) -> None:
        self._world = world
        self._site: Site = site

    async def stored_key_count(self) -> int:
        await self._call("status")
        return self._world.stored if self._world.says_stored is None else self._world.says_stored

    async def new_key(self, size_bits: int) -> TunnelKey:
        self._world.taken_at.append(now_s())
        fault = await self._call("enc_keys")
        if self._world.stored == 0:
            raise KeyManagerError("no key", not_given=True)
        self._world.stored -= 1
        key_id = str(UUID(int=self._world.random.getrandbits(128), version=4))
        fresh = self._world.random.randbytes(size_bits // 8)
        self._world.keys[key_id] = bytes(size_bits // 8) if self._world.same_key else fresh
        if fault == "lose":
            raise KeyManagerError("the answer was lost")
        return TunnelKey(key_id, self._world.keys[key_id])

    async def key(self, key_id: str, size_bits: int) -> TunnelKey:
        fault = await self._call("dec_keys")
        if key_id not in self._world.keys or key_id in self._world.fetched:
            raise KeyManagerError("not found", not_given=True)
        self._world.fetched.add(key_id)
        if fault == "lose":
            raise KeyManagerError("the answer was lost")
        wrong = bytes(size_bits // 8)
        return TunnelKey(key_id, wrong if fault == "wrong" else self._world.keys[key_id])

    async def _call(self, name: str) -> str:
        fault = await self._world.step(self._site, name)
        if fault is not None and fault.do == "fail":
            raise KeyManagerError("503 as planned", not_given=True)
        return "" if fault is None else fault.do


class MemoryLine:
    """One end of the line; the n-th message of both directions may cut it."""

    def __init__(
        self,
        world: World,
        site: Site,
        outgoing: "trio.MemorySendChannel[bytes]",
        incoming: "trio.MemoryReceiveChannel[bytes]",
    ) -> None:
        self._world = world
        self._site: Site = site
        self._outgoing = outgoing
        self._incoming = incoming
        self._muted = False

    async def send(self, message: Message) -> None:
        name = type(message).__name__
        fault = self._world.passes("message") or self._world.passes(f"message.{name}")
        if fault is not None and fault.do == "mute":
            self._muted = True
            self._world.muted_at = now_s()
        if self._muted:
            return
        if fault is not None and fault.do == "cut":
            self._cut(fault)
        await self._sent(encode(self._world.tampers(self._site, message)))
        if fault is not None and fault.do == "cut_after":
            self._cut(fault)

    async def receive(self) -> Message:
        try:
            data = await self._incoming.receive()
        except (trio.EndOfChannel, trio.ClosedResourceError, trio.BrokenResourceError):
            raise LinkError("the line broke") from None
        await trio.sleep(0.002)
        return decode(data)

    async def _sent(self, data: bytes) -> None:
        try:
            await self._outgoing.send(data)
        except (trio.ClosedResourceError, trio.BrokenResourceError):
            raise LinkError("the line broke") from None

    def _cut(self, fault: Fault) -> None:
        self._world.line_back_at = now_s() + fault.for_s
        self._outgoing.close()
        self._incoming.close()


async def _live(world: World, site: Site) -> None:
    """Run the agent of a site, and start it again when it was killed."""
    while True:
        with trio.CancelScope() as scope:
            world.lives[site], world.deaths[site] = scope, trio.Event()
            world.starts.append(now_s())
            tunnel = MemoryTunnel(world.encryptors[site], site)
            agent = Agent(
                world.terms[site],
                tunnel,
                MemoryKeyManager(world, site),
                wall=now_s,
                key_age=MemoryKeyAge(world.encryptors[site]),
            )
            world.agents[site] = agent
            await agent.run()
        del world.agents[site]
        world.deaths[site].set()
        await trio.sleep(RESTART_S)


async def _connect(world: World) -> None:
    """Hold a line between the two agents whenever both live."""
    while True:
        await trio.sleep(0.2)
        if len(world.agents) < len(SITES) or now_s() < world.line_back_at:
            continue
        there, here = trio.open_memory_channel[bytes](64), trio.open_memory_channel[bytes](64)
        ends = {"initiator": (there[0], here[1]), "responder": (here[0], there[1])}
        async with trio.open_nursery() as nursery:
            for site in SITES:
                nursery.start_soon(_talk, world, site, world.agents[site], ends[site], world.deaths[site])


async def _talk(
    world: World,
    site: Site,
    agent: Agent,
    ends: "tuple[trio.MemorySendChannel[bytes], trio.MemoryReceiveChannel[bytes]]",
    died: trio.Event,
) -> None:
    """One end of the line, until it breaks or its agent dies."""
    try:
        async with trio.open_nursery() as nursery:

            async def die_with_agent() -> None:
                await died.wait()
                nursery.cancel_scope.cancel()

            nursery.start_soon(die_with_agent)
            world.talks[site] = nursery.cancel_scope
            await agent.converse(MemoryLine(world, site, *ends))
    except* LinkError as errors:
        world.failures[site] += [str(error) for error in errors.exceptions]
    finally:
        for end in ends:
            end.close()


def terms_of(site: Site, **changes: object) -> Terms:
    """Return the terms of a site: a change every 10 s."""
    other = SITES[1 - SITES.index(site)]
    plain: dict[str, object] = {
        "name": site,
        "role": site,
        "peer_name": other,
        "kind": "memory",
        "sae_id": f"sae-{site}",
        "peer_sae_id": f"sae-{other}",
        "period_s": 10.0,
        "longest_s": 60.0,
    }
    return Terms(**{**plain, **changes})  # type: ignore[arg-type]


def changes_in_progress(world: World) -> bool:
    """Return whether an agent is in the middle of a change."""
    return any(agent.changing or agent.holding.pending is not None for agent in world.agents.values())


Watch = Callable[[World], None]


def run_world(
    for_s: float,
    *,
    faults: list[Fault] | None = None,
    seed: int = 0,
    watch: Watch | None = None,
    change: Callable[[World], None] = lambda world: None,
    terms: dict[Site, Terms] | None = None,
    heal_after_s: float | None = None,
    check_at_rest: bool = False,
) -> World:
    """Run both agents for a virtual time; ``watch`` looks every 0.1 s.

    After ``heal_after_s`` no fault happens. With ``check_at_rest`` a change in progress comes to its end.
    """
    world = World(faults=list(faults or []), terms=terms or {site: terms_of(site) for site in SITES})
    world.encryptors = {site: Encryptor(world) for site in SITES}
    change(world)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            for site in SITES:
                nursery.start_soon(_live, world, site)
            nursery.start_soon(_connect, world)
            while now_s() < for_s or (
                check_at_rest and changes_in_progress(world) and now_s() < for_s + 20.0
            ):
                await trio.sleep(0.1)
                if heal_after_s is not None and now_s() >= heal_after_s:
                    world.faults = []
                if watch is not None:
                    watch(world)
            world.conditions = {site: agent.judge() for site, agent in world.agents.items()}
            nursery.cancel_scope.cancel()

    with determined(seed):
        trio.run(main, clock=VirtualClock())
    return world
