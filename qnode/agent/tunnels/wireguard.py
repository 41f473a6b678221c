"""WireGuard: the key is the preshared key (PSK) of the peer, which the next handshake mixes in.

WireGuard holds one PSK, and uses a new one at its next handshake, which can be two minutes away. So a loaded
key waits here; `activate` sets it at the responder, then at the initiator, which forces a handshake at once.
Between these two the ends hold different keys, and the session under the old key goes on.
"""

import base64
import binascii
import math
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, ClassVar, Final

import trio
from msgspec import Struct

from qnode.agent.tunnel import InUse, Role, TunnelKey
from qnode.agent.tunnels.wireguard_device import KEY_BYTES, NO_KEY, PeerState, WireGuardDevice, age_s
from qnode.config.description import Described, Limits, check_limits
from qnode.errors import TunnelError

SESSION_LIMIT_S: Final = 180.0  # WireGuard drops a session of this age
OVERDUE_S: Final = 135.0  # it begins its next handshake at 120 s, and asks again every 5 s
MOST_KEEPALIVE_S: Final = 60
TRIES_S: Final = (0.25, 1.0, 1.5)  # a message can get lost, and WireGuard itself repeats it after 5 s only
IDLE_S: Final = 0.1  # a tunnel with traffic begins its handshake earlier
_POLL_S: Final = 0.03


class WireGuardConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which tunnel; the interface itself is the operator's (wg-quick, systemd-networkd)."""

    interface: Annotated[str, Described("name of the interface, which has this one peer")]
    peer_public_key: Annotated[str, Described("public key of the peer, as `wg pubkey` prints it")]
    renewal_age_s: Annotated[
        float,
        Described(
            "age of a handshake from which a change of key is preceded by one under the old key",
            limits=Limits(1.0, 110.0),
        ),
    ] = 100.0
    command_limit_s: Annotated[
        float, Described("longest time that a command may take", limits=Limits(0.1, 60.0))
    ] = 5.0

    def __post_init__(self) -> None:
        check_limits(self)
        if not self.interface or "/" in self.interface or not self.interface.isprintable():
            raise ValueError(f"interface: expected the name of an interface, got {self.interface!r}")
        try:
            length = len(base64.b64decode(self.peer_public_key, validate=True))
        except binascii.Error:
            length = 0
        if length != KEY_BYTES:
            raise ValueError("peer_public_key: expected 32 bytes in base64, as `wg pubkey` prints them")


class WireGuardTunnel:
    """A peer of a WireGuard interface of the kernel or of wireguard-go."""

    Config: ClassVar[type[Struct]] = WireGuardConfig
    key_size_bits: ClassVar[int] = 8 * KEY_BYTES

    def __init__(self, config: WireGuardConfig, role: Role) -> None:
        self._config = config
        self._forces = role == "initiator"
        self._device = WireGuardDevice(config.interface, config.peer_public_key, config.command_limit_s)
        self._lock = trio.Lock()
        self._expected = NO_KEY  # what the encryptor must hold
        self._known_handshake = 0  # the latest one at the last look
        self._looked_at = 0  # the second of that look
        self._used_id: str | None = None  # of the key of that handshake
        self._loaded: TunnelKey | None = None
        self._installed: TunnelKey | None = None  # set in the encryptor, not retired
        self._before = NO_KEY  # what the encryptor held before `_installed`
        self._handshake_before = 0  # the latest handshake when `_installed` was set

    @asynccontextmanager
    async def open(self, *, first_key_required: bool) -> AsyncIterator["WireGuardTunnel"]:
        """Check the interface, and yield the tunnel.

        Raises:
            TunnelError: the interface cannot be controlled, is not complete, or has no PSK though
                ``first_key_required``: then it passes packets before the first key.
        """
        state = await self._device.state()
        name = self._config.interface
        if state.private_key == NO_KEY:
            raise TunnelError(f"interface {name} has no private key; set it (wg-quick up, networkctl reload)")
        if state.other_peers:
            raise TunnelError(
                f"interface {name} has {state.other_peers} more peers, whose traffic would have no QKD key;"
                f" give this tunnel an interface of its own"
            )
        if state.allowed_ips is None:
            raise TunnelError(
                f"the peer of interface {name} has no allowed IPs, so nothing passes; set AllowedIPs"
            )
        if not 0 < state.keepalive_s <= MOST_KEEPALIVE_S:
            raise TunnelError(
                f"the peer of interface {name} has no PersistentKeepalive of at most {MOST_KEEPALIVE_S} s;"
                f" without it an idle tunnel looks like a dead one; set PersistentKeepalive = 25"
            )
        if first_key_required and state.preshared_key == NO_KEY:
            raise TunnelError(
                f"the peer of interface {name} has no preshared key, so traffic passes without a QKD key; set"
                f" PresharedKey to the output of `wg genpsk`, a different one at each site: nothing passes"
                f' before the first key then; or set first_key = "not_required"'
            )
        self._expected = state.preshared_key
        self._known_handshake, self._looked_at = state.latest_handshake, int(time.time())
        yield self

    async def prepare(self) -> None:
        """See to it that the latest handshake is young, so that WireGuard starts none by itself."""
        async with self._lock:
            state = await self._checked()
            if self._forces and self._config.renewal_age_s <= age_s(state) < OVERDUE_S:
                # If none comes, the ends hold different keys, or do not hear each other: the change goes on,
                # because a new key is what mends the first of these.
                state = await self._handshake(state)
            await _second_after(state)

    async def load(self, key: TunnelKey) -> None:
        """Hold the key here: WireGuard has no place for a second one."""
        if len(key.key) != KEY_BYTES or key.key == NO_KEY:
            raise TunnelError(
                f"key {key.key_id} has {8 * len(key.key)} bits or is zero; WireGuard takes {8 * KEY_BYTES}"
            )
        async with self._lock:
            await self._checked()
            self._loaded = key

    async def activate(self, key: TunnelKey) -> None:
        """Set the PSK; at the initiator also force a handshake."""
        async with self._lock:
            if self._installed is None or self._installed.key_id != key.key_id:
                await self._install(key)
            if self._forces:
                await self._handshake(await self._checked())

    async def _handshake(self, state: PeerState) -> PeerState:
        """Force a handshake, and return the state after it; the same state if none came."""
        before = state.latest_handshake
        for try_s in TRIES_S:
            await self._device.force_handshake(state)
            for wait_s in (IDLE_S, try_s - IDLE_S):
                with trio.move_on_after(wait_s):
                    while state.latest_handshake == before:
                        await trio.sleep(_POLL_S)
                        state = await self._checked()
                    return state
                if wait_s == IDLE_S:
                    await self._device.send_keepalive(state)
        return state

    async def _install(self, key: TunnelKey) -> None:
        if self._loaded is None or self._loaded.key_id != key.key_id:
            raise TunnelError(f"key {key.key_id} is not loaded")
        state = await self._checked()
        # Handshakes have times in whole seconds. After this wait each one differs from the latest.
        await _second_after(state)
        with trio.CancelScope(shield=True):  # what is set and what is noted stay the same
            await self._device.set_preshared_key(key.key)
            if self._installed is None or self._proven(state):
                self._before = self._expected
            self._expected, self._installed, self._loaded = key.key, key, None
            self._handshake_before = state.latest_handshake
            now = await self._device.state()
            if now.latest_handshake != state.latest_handshake:
                # It came around the change, and may have either key: only a later one proves the new key.
                self._handshake_before = self._known_handshake = now.latest_handshake
                self._used_id = None
                await _second_after(now)

    async def in_use(self) -> InUse | None:
        """Return the key of the latest handshake.

        Raises:
            TunnelError: WireGuard's next handshake is overdue: the ends hold different keys, or do not hear
                each other.
        """
        async with self._lock:
            state = await self._checked()
            age = age_s(state)
            if age > SESSION_LIMIT_S:
                return None
            if age > OVERDUE_S:
                raise self._no_handshake(age)
            return InUse(
                key_id=self._used_id,
                since=float(state.latest_handshake),
                proof=f"wg: latest handshake at {_utc(state.latest_handshake)}, "
                f"{state.received_bytes} B received, {state.sent_bytes} B sent",
            )

    async def retire(self, key: TunnelKey) -> None:
        """Forget the PSK before ``key``. Its session takes packets that are on their way, for 180 s at most.

        Raises:
            TunnelError: no handshake has used the key.
        """
        async with self._lock:
            state = await self._checked()
            if self._installed is None or self._installed.key_id != key.key_id:
                return
            if not self._proven(state):
                raise TunnelError(
                    f"interface {self._config.interface}: no handshake has used key {key.key_id} yet"
                )
            self._before, self._installed = NO_KEY, None

    async def unload(self, key: TunnelKey) -> None:
        """Forget the key, and put the PSK before it back.

        Raises:
            TunnelError: a handshake has used the key: it is in use at both ends.
        """
        async with self._lock:
            if self._loaded is not None and self._loaded.key_id == key.key_id:
                self._loaded = None
            if self._installed is None or self._installed.key_id != key.key_id:
                return
            if self._proven(await self._checked()):
                raise self._in_use_already(key)
            with trio.CancelScope(shield=True):
                await self._device.set_preshared_key(self._before)
                state = await self._device.state()
                if self._proven(state):
                    await self._device.set_preshared_key(self._expected)
                    raise self._in_use_already(key)
                self._expected, self._before, self._installed = self._before, NO_KEY, None
                if self._forces:
                    await self._device.force_handshake(state)

    async def take_down(self) -> None:
        """End the session, and set a random PSK, which the other end cannot hold.

        The interface stays up, so that packets still go into it, and end there.
        """
        async with self._lock:
            state = await self._device.state()
            block = secrets.token_bytes(KEY_BYTES)
            with trio.CancelScope(shield=True):
                await self._device.renew_peer(state, block)
                self._expected, self._before = block, NO_KEY
                self._installed = self._loaded = self._used_id = None
                state = await self._device.state()
                self._known_handshake = state.latest_handshake
            if state.preshared_key != block or state.latest_handshake or state.allowed_ips is None:
                raise TunnelError(
                    f"the peer of interface {self._config.interface} could not be renewed: packets may pass;"
                    f" take the interface down (ip link set {self._config.interface} down)"
                )

    async def transferred_bytes(self) -> int:
        """Return the bytes that WireGuard counted with the peer, both directions, with its own overhead."""
        state = await self._device.state()
        return state.received_bytes + state.sent_bytes

    async def _checked(self) -> PeerState:
        """Return the state with the expected PSK, which is put back if another program replaced it.

        `wg setconf` wipes it, `wg syncconf` with an old file restores an old one.
        """
        state = await self._device.state()
        repaired = state.preshared_key != self._expected
        if repaired:
            await self._device.set_preshared_key(self._expected)
            state = await self._device.state()
        if repaired and state.latest_handshake >= self._looked_at:
            # A handshake since the last look, which may have used what the other program set.
            self._used_id = None
            self._handshake_before = state.latest_handshake
        elif state.latest_handshake != self._known_handshake and self._proven(state):
            assert self._installed is not None
            self._used_id = self._installed.key_id
        self._known_handshake, self._looked_at = state.latest_handshake, int(time.time())
        return state

    def _proven(self, state: PeerState) -> bool:
        """Return whether a handshake came after `_installed` was set, which both ends then hold."""
        return self._installed is not None and state.latest_handshake not in (0, self._handshake_before)

    def _no_handshake(self, age: float) -> TunnelError:
        return TunnelError(
            f"interface {self._config.interface}: the latest handshake is {age:.0f} s old, and the next does"
            f" not come; the two ends hold different preshared keys, or do not hear each other; the tunnel"
            f" ends when it is {SESSION_LIMIT_S:.0f} s old"
        )

    def _in_use_already(self, key: TunnelKey) -> TunnelError:
        return TunnelError(
            f"interface {self._config.interface}: a handshake used key {key.key_id}; it is in use at both"
            f" ends and cannot be unloaded"
        )


async def _second_after(state: PeerState) -> None:
    """Wait until the second of the latest handshake has passed, so that each later one has another time."""
    rest = state.latest_handshake + 1 - time.time()
    if 0 < rest <= 1:  # otherwise it has passed, or the clock was set back
        await trio.sleep(math.ceil(rest * 1000) / 1000)


def _utc(at: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(at))
