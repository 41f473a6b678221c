"""One site of the world: the node's own link on a disk and a network that fail, over all its processes.

All from the session up is what a daemon runs (`qnode.node`): store, hello, conversation, key supply. Left out
are its endpoints (HTTP, control socket, metrics) and its devices' supervisors; the world's own devices take
their place. A process ends in order, is killed, or dies with its site's power; what it had in memory is gone.
"""

import random
from collections.abc import Awaitable, Callable
from enum import Enum
from typing import Any, TypeVar, cast

import trio

from qnode.choices import Role
from qnode.config import LinkParameters
from qnode.errors import LinkDown, StoreError, StoreUnusable, first_of
from qnode.keys import Condition, KeyStore, open_store
from qnode.node.link_node import LinkNode
from qnode.node.reload import read_directory
from qnode.node.supply.key_supply import LinkKeySupply
from qnode.world.configuration import kme_of, other, site_config
from qnode.world.devices import USUAL_ERROR_RATE, ClickSource, WorldTransmitter
from qnode.world.disk import Disk, PowerCut
from qnode.world.history import GaveUp, History, ObservedStore, Why
from qnode.world.light import Light
from qnode.world.network import Network, NetworkTransport
from qnode.world.threads import SITE

T = TypeVar("T")


class Ending(Enum):
    """How a process ends."""

    STOPPED = "stopped in order"
    KILLED = "killed"
    POWER = "its power failed"


class SiteDown(Exception):
    """Nobody answers at this site: its process is not there, or has just ended."""


class Site:
    """A site over all its processes. ``settings``: of `site_config`."""

    def __init__(
        self,
        role: Role,
        disk: Disk,
        network: Network,
        history: History,
        light: Light,
        link: LinkParameters,
        rng: random.Random,
        **settings: Any,
    ) -> None:
        self.role = role
        self.disk = disk
        self.config = site_config(role, disk, link, **settings)
        self.transmitter = WorldTransmitter(light, link, rng)
        self.clicks = ClickSource(light, link)
        self.store: KeyStore | None = None
        self.unusable: list[str] = []
        """Why the store could not be used: never for a fault that it promises to survive."""
        self.off_s = 0.0
        """How long the process is not there after its end."""
        self._network = network
        self._history = history
        self._store_key = rng.randbytes(32)
        self._rng = rng
        self._node: LinkNode | None = None
        self._process: trio.CancelScope | None = None
        self._ending: Ending | None = None
        self._calls: set[trio.CancelScope] = set()
        self._between: list[Callable[[], None]] = []
        disk.on_power_cut = self._power_failed

    # The process

    async def live(self) -> None:
        """Have the process run, and run again a while after each end."""
        while True:
            await self._run_once()
            self.disk.start()  # what survived is what is tampered with
            for step in self._between:
                step()
            self._between.clear()
            await trio.sleep(self.off_s)
            self._ending = None

    def end(self, ending: Ending, off_s: float, between: Callable[[], None] | None = None) -> None:
        """End the process; it starts again after ``off_s``, once ``between`` was done to its disk."""
        if between is not None:
            self._between.append(between)
        self.off_s = off_s
        if self._process is None:
            return
        self._ending = self._ending or ending
        if ending is Ending.POWER:
            self.disk.fail_now()
        elif ending is Ending.KILLED:
            self.disk.kill()
        else:
            self._process.cancel()

    def _power_failed(self) -> None:
        """Let the process end at once; the kernel tells the peer of one that was killed, nobody of power."""
        if self._ending is Ending.KILLED or self._rng.random() < 0.2:
            self._network.cut()
        else:
            self._network.fall_silent()
        self._ending = self._ending or Ending.POWER
        if self._process is not None:
            self._process.cancel()
        for call in self._calls:
            call.cancel()

    async def _run_once(self) -> None:
        self.disk.start()
        SITE.set(self.role)
        try:
            with trio.CancelScope() as self._process:
                await self._run_node()
        except* PowerCut:
            pass
        except* StoreUnusable as errors:
            if not self.disk.failed:
                self.unusable.append(str(first_of(errors)))
        finally:
            self._process = self._node = None
            for call in self._calls:
                call.cancel()
            if self.store is not None and not self.disk.failed:
                self.store.close()
            self.store = None

    async def _run_node(self) -> None:
        try:
            store = self.open_store()
        except StoreUnusable:
            raise
        except StoreError:  # the disk is full: the process ends, and is started again
            return
        self.store = cast(KeyStore, ObservedStore(store, self.role, self.disk, self._history))
        if self._history.preshared and store.pads_left().used == 0 and not store.positions().pool_epoch:
            self.store.load_preshared(self._history.preshared[0])
        node = self._node = LinkNode(
            self.config,
            self.store,
            read_directory([self.config]),
            transport=NetworkTransport(self._network),
            receiver=self.clicks,
        )
        node.tested.set()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(node.keep_link)
            if self.role == "alice":
                nursery.start_soon(self._transmit, node)

    async def _transmit(self, node: LinkNode) -> None:
        while True:
            await node.port.use(self.transmitter)
            await trio.sleep(self.transmitter.off_s)

    def open_store(self) -> KeyStore:
        """Open the store that lies on the disk, or make one."""
        return open_store(
            self.disk.database,
            role=self.role,
            store_key=self._store_key,
            anchor=self.disk.anchor,
            kme_id=kme_of(self.role),
            peer_kme_id=kme_of(other(self.role)),
            create=True,
        )

    # What is asked of it

    async def ask(self, question: Callable[[LinkKeySupply], Awaitable[T]]) -> T:
        """Put a question to the key supply, as an encryptor's request does.

        Raises:
            SiteDown: nobody answered.
            StoreError: the answer was no.
        """
        node = self._node
        if node is None or self._ending is not None:
            raise SiteDown
        of_caller = SITE.set(self.role)
        with trio.CancelScope() as call:
            self._calls.add(call)
            try:
                return await question(node.supply)
            except PowerCut:
                pass
            except LinkDown:
                raise
            except StoreUnusable:
                if self.disk.failed:
                    raise SiteDown from None
                raise
            finally:
                self._calls.discard(call)
                SITE.reset(of_caller)
        raise SiteDown

    @property
    def connected(self) -> bool:
        """Tell whether it is in a session with the peer, with all settled."""
        return self._node is not None and self._node.connected

    def condition(self) -> Condition | None:
        """Return whether the store serves; None while the process is not there."""
        if self.store is None or self.disk.failed:
            return None
        return self.store.condition()

    def pads_left(self) -> int:
        """Return how many pads are left in the poorer direction; many while the process is not there."""
        if self.store is None or self.disk.failed:
            return 1 << 20
        left = self.store.pads_left()
        return min(left.send, left.receive)

    def pool_epoch(self) -> int | None:
        """Return how many pre-shared keys were loaded; None while the process is not there."""
        return None if self.store is None or self.disk.failed else self.store.positions().pool_epoch

    def heal(self) -> None:
        """Have no further fault."""
        self.disk.full = False
        self.disk.never_fail()
        self.off_s = 0.0
        self.transmitter.record_s, self.transmitter.off_s = 60.0, 1.0
        self.clicks.locked, self.clicks.error_rate = True, USUAL_ERROR_RATE

    async def restore(self, preshared: bytes) -> None:
        """Void everything and begin anew with a new pre-shared key, as `qnodectl restore` does."""
        node = self._node
        if node is None:
            raise SiteDown
        self._history.events.append(GaveUp(self._history.now_s(), self.role, why=Why.RESTORED))
        try:
            await node.gate.restore(preshared)
        except (PowerCut, StoreError):
            raise SiteDown from None
