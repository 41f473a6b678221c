"""What each fault of a schedule does to the world while it lasts."""

import random
import secrets
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import trio

from qnode.choices import ROLES, Role
from qnode.errors import LinkError
from qnode.link.messages import (
    Amplify,
    Assign,
    BlockProposed,
    BlockStateAnswer,
    BlockStateQuery,
    ClicksEnded,
    GiveAway,
    KeyAnswer,
    Message,
    Prepared,
    ReconcileBegin,
    ReleaseAssignments,
    Sifted,
    TranscriptTag,
    Verified,
    VerifyBegin,
)
from qnode.world.determinism import WallClock
from qnode.world.devices import USUAL_ERROR_RATE
from qnode.world.disk import Moment
from qnode.world.encryptors import Encryptors
from qnode.world.history import GaveUp, History, Why
from qnode.world.network import Network
from qnode.world.schedule import Fault
from qnode.world.site import Ending, Site, SiteDown
from qnode.world.streams import drawn_faults
from qnode.world.threads import WorldThreads


@dataclass
class Stage:
    """What faults act on."""

    sites: dict[Role, Site]
    network: Network
    encryptors: Encryptors
    threads: WorldThreads
    clock: WallClock
    history: History
    usual_delay_s: float
    errs: "Errs"

    async def load_preshared(self, rng: random.Random) -> None:
        """Load a new pre-shared key at both sites, as their operators would."""
        preshared = secrets.token_bytes(64 + 32 * 400)
        self.history.preshared.append(preshared)
        for site in self.sites.values():
            while True:
                with suppress(SiteDown):
                    await site.restore(preshared)
                    break
                await trio.sleep(1.0)
            await trio.sleep(rng.uniform(0.0, 5.0))


@dataclass
class Errs:
    """Whether corrections leave an error behind."""

    now: bool = False


async def happen(fault: Fault, stage: Stage) -> None:
    """Let ``fault`` happen, and pass."""
    rng = random.Random(fault.seed)
    site = stage.sites[rng.choice(ROLES)]
    await _KINDS[fault.name](fault, stage, site, rng)


async def _cut(_fault: Fault, stage: Stage, _site: Site, _rng: random.Random) -> None:
    stage.network.cut()


async def _silence(fault: Fault, stage: Stage, _site: Site, _rng: random.Random) -> None:
    stage.network.fall_silent()
    stage.network.down = True
    await trio.sleep(fault.lasts_s)
    stage.network.down = False


async def _silence_one_way(_fault: Fault, stage: Stage, _site: Site, rng: random.Random) -> None:
    from_alice = rng.random() < 0.5
    stage.network.fall_silent(from_alice=from_alice, from_bob=not from_alice)


async def _down(fault: Fault, stage: Stage, _site: Site, _rng: random.Random) -> None:
    stage.network.cut()
    stage.network.down = True
    await trio.sleep(fault.lasts_s)
    stage.network.down = False


async def _slow_path(fault: Fault, stage: Stage, _site: Site, rng: random.Random) -> None:
    stage.network.delay_s = rng.uniform(0.05, 1.0)
    stage.network.cut()
    await trio.sleep(fault.lasts_s)
    stage.network.delay_s = stage.usual_delay_s
    stage.network.cut()


async def _next_connections(_fault: Fault, stage: Stage, _site: Site, rng: random.Random) -> None:
    for _ in range(rng.randint(1, 4)):
        among = rng.choice((3_000, 30_000, 100_000))
        stage.network.next_faults.append(
            (
                drawn_faults(rng, stage.usual_delay_s, among),
                drawn_faults(rng, stage.usual_delay_s, among),
            )
        )
    stage.network.cut()


async def _at_a_message(fault: Fault, stage: Stage, site: Site, rng: random.Random) -> None:
    """Wait for a kind of message, and strike while it is under way."""
    kind = rng.choice(_STRUCK_AT)
    strike = rng.choice(("cut", "cut", "silence", "kill", "power"))
    struck = trio.Event()

    def hear(message: Message) -> None:
        if not isinstance(message, kind) or struck.is_set() or rng.random() < 0.5:
            return
        struck.set()
        if strike == "cut":
            stage.network.cut()
        elif strike == "silence":
            stage.network.fall_silent()
        else:
            site.end(Ending.KILLED if strike == "kill" else Ending.POWER, fault.lasts_s)

    before, stage.history.on_said = stage.history.on_said, hear
    try:
        with trio.move_on_after(90.0):
            await struck.wait()
    finally:
        stage.history.on_said = before


_STRUCK_AT: tuple[type[Message], ...] = (
    BlockProposed,
    ClicksEnded,
    Sifted,
    ReconcileBegin,
    VerifyBegin,
    Verified,
    Amplify,
    TranscriptTag,
    TranscriptTag,
    Prepared,
    Prepared,
    Assign,
    KeyAnswer,
    ReleaseAssignments,
    GiveAway,
    BlockStateQuery,
    BlockStateAnswer,
)


async def _stranger(fault: Fault, stage: Stage, _site: Site, rng: random.Random) -> None:
    try:
        stream = await stage.network.connect(heard=False)
    except LinkError:
        return
    with trio.move_on_after(fault.lasts_s), suppress(trio.BrokenResourceError):
        length = rng.choice((rng.randrange(1 << 32), rng.randrange(2000)))
        await stream.send_all(length.to_bytes(4, "big") + rng.randbytes(rng.randrange(4000)))
        while await stream.receive_some():
            pass
    await stream.aclose()


async def _stop(fault: Fault, _stage: Stage, site: Site, _rng: random.Random) -> None:
    site.end(Ending.STOPPED, fault.lasts_s)


async def _kill(fault: Fault, _stage: Stage, site: Site, _rng: random.Random) -> None:
    site.end(Ending.KILLED, fault.lasts_s)


async def _power(fault: Fault, _stage: Stage, site: Site, _rng: random.Random) -> None:
    site.end(Ending.POWER, fault.lasts_s)


async def _power_in_a_change(fault: Fault, _stage: Stage, site: Site, rng: random.Random) -> None:
    site.off_s = fault.lasts_s
    site.disk.fail_at(rng.choice(list(Moment)), rng.randrange(30))


async def _disk_full(fault: Fault, _stage: Stage, site: Site, _rng: random.Random) -> None:
    site.disk.full = True
    await trio.sleep(fault.lasts_s)
    site.disk.full = False


async def _disk_hangs(fault: Fault, stage: Stage, site: Site, _rng: random.Random) -> None:
    async with _hanging(stage, site):
        await trio.sleep(fault.lasts_s)


@asynccontextmanager
async def _hanging(stage: Stage, site: Site) -> AsyncIterator[None]:
    stage.threads.hanging.add(site.role)
    try:
        yield
    finally:
        stage.threads.hanging.discard(site.role)
        stage.threads.go_on()


async def _old_database(fault: Fault, stage: Stage, site: Site, rng: random.Random) -> None:
    copy = site.disk.back_up(whole=False)
    await trio.sleep(rng.uniform(0.0, 60.0))
    stage.history.events.append(GaveUp(stage.history.now_s(), site.role, why=Why.OLD_DATABASE))
    site.end(Ending.STOPPED, fault.lasts_s, between=lambda: site.disk.restore(copy))


async def _damaged_unit(fault: Fault, stage: Stage, site: Site, rng: random.Random) -> None:
    def damage() -> None:
        connection = sqlite3.connect(site.disk.database)
        kinds = ("chunk", "chunk", "block_secret", "pad_send", "pad_receive")
        rows = connection.execute(
            "SELECT kind, segment, unit, sealed FROM sealed_unit WHERE kind = ?", (rng.choice(kinds),)
        ).fetchall()
        if rows:
            kind, segment, unit, sealed = rng.choice(rows)
            spoilt = bytearray(sealed)
            spoilt[rng.randrange(len(spoilt))] ^= 1
            connection.execute(
                "UPDATE sealed_unit SET sealed = ? WHERE kind = ? AND segment = ? AND unit = ?",
                (bytes(spoilt), kind, segment, unit),
            )
            connection.commit()
        connection.close()

    stage.history.events.append(GaveUp(stage.history.now_s(), site.role, why=Why.DAMAGED))
    site.end(Ending.STOPPED, fault.lasts_s, between=damage)


async def _emission_restarts(_fault: Fault, stage: Stage, _site: Site, _rng: random.Random) -> None:
    stage.sites["alice"].transmitter.restart()


async def _transmitter_gone(fault: Fault, stage: Stage, _site: Site, _rng: random.Random) -> None:
    stage.sites["alice"].transmitter.off_s = max(0.1, fault.lasts_s)
    stage.sites["alice"].transmitter.fail()


async def _counted_anew(_fault: Fault, stage: Stage, _site: Site, _rng: random.Random) -> None:
    stage.sites["bob"].clicks.restart()


async def _no_lock(fault: Fault, stage: Stage, _site: Site, _rng: random.Random) -> None:
    clicks = stage.sites["bob"].clicks
    clicks.locked = False
    await trio.sleep(fault.lasts_s)
    clicks.locked = True


async def _noise(fault: Fault, stage: Stage, _site: Site, rng: random.Random) -> None:
    clicks = stage.sites["bob"].clicks
    clicks.error_rate = rng.choice((0.03, 0.08, 0.15, 0.5))
    await trio.sleep(10.0 + fault.lasts_s)
    clicks.error_rate = USUAL_ERROR_RATE


async def _short_record(fault: Fault, stage: Stage, _site: Site, rng: random.Random) -> None:
    transmitter = stage.sites["alice"].transmitter
    transmitter.record_s = rng.uniform(0.5, 3.0)
    await trio.sleep(10.0 + fault.lasts_s)
    transmitter.record_s = 60.0


async def _errs(fault: Fault, stage: Stage, _site: Site, _rng: random.Random) -> None:
    stage.errs.now = True
    await trio.sleep(20.0 + fault.lasts_s)
    stage.errs.now = False


async def _time_set(_fault: Fault, stage: Stage, _site: Site, rng: random.Random) -> None:
    stage.clock.set_ahead_s += rng.choice((-86_400.0, -60.0, 60.0, 10 * 86_400.0))


async def _new_preshared_key(_fault: Fault, stage: Stage, _site: Site, rng: random.Random) -> None:
    await stage.load_preshared(rng)


async def _burst(fault: Fault, stage: Stage, site: Site, _rng: random.Random) -> None:
    await stage.encryptors.burst(site, 1.0 + fault.lasts_s)


_KINDS: dict[str, Callable[[Fault, Stage, Site, random.Random], Awaitable[Any]]] = {
    "cut": _cut,
    "silence": _silence,
    "silence one way": _silence_one_way,
    "down": _down,
    "slow path": _slow_path,
    "faults of the next connections": _next_connections,
    "at a message": _at_a_message,
    "stranger": _stranger,
    "stop": _stop,
    "kill": _kill,
    "power": _power,
    "power in a change": _power_in_a_change,
    "disk full": _disk_full,
    "disk hangs": _disk_hangs,
    "old database": _old_database,
    "damaged unit": _damaged_unit,
    "emission restarts": _emission_restarts,
    "transmitter gone": _transmitter_gone,
    "slots counted anew": _counted_anew,
    "no lock": _no_lock,
    "noise": _noise,
    "short record": _short_record,
    "a correction that errs": _errs,
    "time of day set": _time_set,
    "new pre-shared key": _new_preshared_key,
    "burst of requests": _burst,
}
