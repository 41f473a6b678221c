"""What one end holds, and its encryptor: the key in use, and the key of a change in progress."""

import hmac
import os
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final, Literal, TypeVar

import structlog
import trio

from qnode.agent.tunnel import InUse, Tunnel, TunnelKey
from qnode.errors import TunnelError

STEP_LIMIT_S: Final = 15.0  # one call to a tunnel
CONFIRM_LIMIT_S: Final = 10.0  # until the encryptor says itself that it uses a key
CONFIRM_PAUSE_S: Final = 0.2
_REMEMBERED_KEYS: Final = 4096

log = structlog.get_logger()

T = TypeVar("T")

Stage = Literal["held", "loaded", "activating", "activated"]


@dataclass(frozen=True)
class Current:
    """The key in use: its key_ID (None: of an earlier run), and since when.

    ``since`` is of `trio.current_time`, ``since_unix`` the same in Unix time.
    """

    key_id: str | None
    since: float
    since_unix: float


@dataclass
class Pending:
    """The key of a change. ``activating``: the other end may already use it.

    ``since``: when it was first activated here, of `trio.current_time`.
    """

    key: TunnelKey
    stage: Stage = "held"
    since: float | None = None


@dataclass
class Holding:
    """One end of the tunnel. Each method of the tunnel runs alone, and ends within `STEP_LIMIT_S`.

    ``current``: None while there is no tunnel with the peer. ``last``: the key that the encryptor then still
    holds, with which the tunnel may come back; None: none, as after `take_down`.
    """

    tunnel: Tunnel
    wall: Callable[[], float] = time.time
    current: Current | None = None
    last: Current | None = None
    pending: Pending | None = None
    proof_of_use: str = ""
    _turn: trio.Lock = field(default_factory=trio.Lock)
    _salt: bytes = field(default_factory=lambda: os.urandom(32), repr=False)
    _seen: deque[bytes] = field(default_factory=lambda: deque(maxlen=_REMEMBERED_KEYS), repr=False)

    @property
    def active(self) -> str | None:
        """The key_ID that the encryptor was told to use last; None: of an earlier run, or none."""
        if self.pending is not None and self.pending.stage == "activated":
            return self.pending.key.key_id
        return self.current.key_id if self.current is not None else None

    def age_s(self) -> float | None:
        """Return the age of the key in use; None: there is none."""
        return None if self.current is None else max(0.0, trio.current_time() - self.current.since)

    def last_age_s(self) -> float | None:
        """Return the age of the key that the encryptor holds, also while there is no tunnel with the peer."""
        # A first key may be in use though the line was lost before both ends confirmed it.
        since = self.last.since if self.last is not None else self.pending.since if self.pending else None
        return None if since is None else max(0.0, trio.current_time() - since)

    async def look(self) -> InUse | None:
        """Ask the encryptor, and forget a key that it no longer uses.

        Raises:
            TunnelError: it cannot be asked.
        """
        async with self._turn:
            found = await self._limited("in_use", self.tunnel.in_use)
            if self.pending is not None:
                return found  # a change is in progress
            self.proof_of_use = "" if found is None else found.proof
            if found is None:
                self.current = None
            elif self.current is None or self.current.key_id not in (None, found.key_id):
                last = self.last
                if last is not None and last.key_id is not None and last.key_id == found.key_id:
                    self.current = last
                else:  # an unknown key, perhaps the last one of a tunnel that was away: no younger than that
                    self._use(None, found.since if last is None else min(found.since, last.since_unix))
        return found

    def age_from(self, since_unix: float | None) -> None:
        """The key in use, of an earlier run, is in use since then at least."""
        current = self.current
        if current is not None and current.key_id is None and since_unix is not None:
            self._use(None, min(since_unix, current.since_unix))

    async def prepare(self) -> None:
        """Prepare the encryptor for a change. Raises TunnelError."""
        async with self._turn:
            await self._limited("prepare", self.tunnel.prepare)

    def hold(self, key: TunnelKey) -> None:
        """Take the key of a change.

        Raises:
            TunnelError: this key, or one with this key_ID, was in a change before.
        """
        marks = [hmac.digest(self._salt, part, "sha256") for part in (key.key, key.key_id.encode())]
        if any(mark in self._seen for mark in marks):
            raise TunnelError(f"the key manager gave the key {key.key_id} twice; look at the key manager")
        self._seen += marks
        if self.pending is not None and self.pending.stage == "activated":
            self.commit()  # nobody confirmed it
        self.pending = Pending(key)

    async def load(self) -> None:
        """Load the key of the change. Raises TunnelError."""
        async with self._turn:
            pending = self.of_change()  # not before its turn, for `take_down` may have come first
            pending.stage = "loaded"  # perhaps in part: what fails is unloaded
            await self._limited("load", lambda: self.tunnel.load(pending.key))

    async def activate(self) -> None:
        """Activate the key of the change. Raises TunnelError."""
        async with self._turn:
            pending = self.of_change()
            pending.stage = "activating"
            if pending.since is None:
                pending.since = trio.current_time()
            await self._limited("activate", lambda: self.tunnel.activate(pending.key))
            pending.stage = "activated"

    async def confirm(self) -> None:
        """Return when the encryptor says that it uses the key of the change.

        Raises:
            TunnelError: it does not say so for `CONFIRM_LIMIT_S`.
        """
        key_id = self.of_change().key.key_id
        found: InUse | None = None
        with trio.move_on_after(CONFIRM_LIMIT_S):
            while True:
                async with self._turn:
                    found = await self._limited("in_use", self.tunnel.in_use)
                if found is not None and found.key_id == key_id:
                    self.proof_of_use = found.proof
                    return
                await trio.sleep(CONFIRM_PAUSE_S)
        said = "there is no tunnel" if found is None else f"it says: {found.proof}"
        raise TunnelError(f"the encryptor does not use the new key after {CONFIRM_LIMIT_S:g} s; {said}")

    def commit(self) -> None:
        """Both encryptors use the key of the change: it is the key in use, since it was activated here."""
        pending, now = self.of_change(), trio.current_time()
        since = now if pending.since is None else pending.since
        self._use(pending.key.key_id, self.wall() - (now - since))

    async def retire(self) -> None:
        """Remove what came before, at the end of a change. Raises TunnelError."""
        pending, self.pending = self.of_change(), None
        async with self._turn:
            await self._limited("retire", lambda: self.tunnel.retire(pending.key))

    async def unload(self) -> None:
        """Give up the key of the change, if there is one. An encryptor that fails to unload it is told of."""
        pending = self.pending
        if pending is not None and pending.stage != "held":
            try:
                async with self._turn:
                    await self._limited("unload", lambda: self.tunnel.unload(pending.key))
            except TunnelError as error:
                log.error("tunnel.failed", step="unload", key_id=pending.key.key_id, reason=str(error))
        if self.pending is pending:
            self.pending = None

    async def unload_unless_activated(self) -> None:
        """Give up the key of an earlier change that never came to its use here."""
        if self.pending is not None and self.pending.stage != "activated":
            await self.unload()

    async def take_down(self) -> None:
        """End the tunnel. Raises TunnelError."""
        async with self._turn:
            await self._limited("take_down", self.tunnel.take_down)
            self.current = self.last = self.pending = None
            self.proof_of_use = ""

    async def transferred_bytes(self) -> int:
        """Return the encryptor's count. Raises TunnelError."""
        async with self._turn:
            return await self._limited("transferred_bytes", self.tunnel.transferred_bytes)

    def of_change(self) -> Pending:
        """Return the key of the change in progress. Raises TunnelError."""
        if self.pending is None:
            raise TunnelError("the key of this change is gone: the tunnel was taken down meanwhile")
        return self.pending

    def _use(self, key_id: str | None, unix: float) -> None:
        """``key_id`` is in use since then (Unix time)."""
        age_s = max(0.0, self.wall() - unix)
        self.current = self.last = Current(key_id, trio.current_time() - age_s, unix)

    async def _limited(self, step: str, call: Callable[[], Awaitable[T]]) -> T:
        try:
            with trio.fail_after(STEP_LIMIT_S):
                return await call()
        except trio.TooSlowError:
            raise TunnelError(f"tunnel: {step} took longer than {STEP_LIMIT_S:g} s") from None
