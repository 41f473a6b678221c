"""One peer of a WireGuard interface through the tool `wg`, the same for the kernel's and for wireguard-go.

Keys go to `wg` on its standard input and come on its standard output: no argument, file or message has them.
"""

import base64
import time
from pathlib import Path
from typing import Final

import trio
from msgspec import Struct

from qnode.agent.tunnels.programs import Ended, run_program
from qnode.errors import TunnelError

KEY_BYTES: Final = 32
NO_KEY: Final = bytes(KEY_BYTES)  # WireGuard's form of "no preshared key"
SOCKETS: Final = Path("/var/run/wireguard")
_READ_BYTES: Final = 4096  # what wireguard-go asks of its socket at once
_DONE: Final = b"errno=0\n\n"
_CLAMPED_BIT: Final = 1  # X25519 clears it in a private key before use


class PeerState(Struct, frozen=True):
    """What `wg show INTERFACE dump` tells of a peer.

    ``latest_handshake`` is in whole seconds of Unix time, 0 if there was none.
    """

    private_key: bytes
    firewall_mark: int
    preshared_key: bytes
    endpoint: str | None
    allowed_ips: str | None
    latest_handshake: int
    received_bytes: int
    sent_bytes: int
    keepalive_s: int
    other_peers: int

    def __repr__(self) -> str:
        return f"PeerState(latest_handshake={self.latest_handshake})"

    def __rich_repr__(self) -> list[tuple[str, object]]:
        # The inherited method lists every field, and tracebacks with local variables use it.
        return [("latest_handshake", self.latest_handshake)]


def read_dump(text: str, peer_public_key: str) -> PeerState | None:
    """Return the state of a peer in the output of `wg show INTERFACE dump`; None: there is no such peer.

    Raises:
        ValueError: the output has another form.
    """
    lines = [line.split("\t") for line in text.splitlines()]
    if not lines or len(lines[0]) != 4 or any(len(line) != 8 for line in lines[1:]):
        raise ValueError("expected 4 fields of the interface and 8 of each peer")
    for _, preshared_key, endpoint, allowed_ips, handshake, received, sent, keepalive in (
        line for line in lines[1:] if line[0] == peer_public_key
    ):
        return PeerState(
            private_key=_key(lines[0][0]),
            firewall_mark=0 if lines[0][3] == "off" else int(lines[0][3], 0),
            preshared_key=_key(preshared_key),
            endpoint=None if endpoint == "(none)" else endpoint,
            allowed_ips=None if allowed_ips == "(none)" else allowed_ips,
            latest_handshake=int(handshake),
            received_bytes=int(received),
            sent_bytes=int(sent),
            keepalive_s=0 if keepalive == "off" else int(keepalive),
            other_peers=len(lines) - 2,
        )
    return None


def _key(field: str) -> bytes:
    if field == "(none)":
        return NO_KEY
    key = base64.b64decode(field, validate=True)
    if len(key) != KEY_BYTES:
        raise ValueError("expected keys of 32 bytes")
    return key


class WireGuardDevice:
    """One peer of one interface. Every method raises `TunnelError`; each change is one transaction."""

    def __init__(self, interface: str, peer_public_key: str, command_limit_s: float) -> None:
        self.interface = interface
        self._peer = peer_public_key
        self._limit_s = command_limit_s
        self._socket = SOCKETS / f"{interface}.sock"

    async def state(self) -> PeerState:
        """Return the state of the peer."""
        text = await self._wg("show", self.interface, "dump")
        try:
            state = read_dump(text, self._peer)
        except ValueError as error:
            raise TunnelError(f"`wg show {self.interface} dump` cannot be read: {error}") from None
        if state is None:
            raise TunnelError(
                f"interface {self.interface} has no peer {self._peer}; set peer_public_key, or add the peer"
                f" again (wg-quick up, networkctl reload)"
            )
        return state

    async def set_preshared_key(self, key: bytes) -> None:
        """Set the preshared key, which the next handshake uses. A peer that is not there is not made."""
        await self.state()
        await self._wg("set", self.interface, "peer", self._peer, "preshared-key", "/dev/stdin", secret=key)
        state = await self.state()
        if state.allowed_ips is None and state.endpoint is None:
            # `wg set` cannot be told to change a peer only. This one was removed a moment ago.
            await self._wg("set", self.interface, "peer", self._peer, "remove")
            raise TunnelError(f"interface {self.interface} lost its peer {self._peer} during a change of key")
        if state.preshared_key != key:
            raise TunnelError(
                f"interface {self.interface} has another preshared key than the one just set;"
                f" another program changes it (wg syncconf, wg-quick)"
            )

    async def force_handshake(self, state: PeerState) -> None:
        """Have the encryptor begin a handshake with its next packet; packets wait for it, none is refused.

        WireGuard has no command for this. Setting another private key ends all sessions for sending, not for
        receiving. The interface must never be without its private key, whatever is killed:

        * The kernel compares the given private key with its own before it clears the bits that X25519
          ignores. One message with such a bit set gives it the same key and has the effect of another one.
        * wireguard-go clears the bits first, so it gets "no private key" and then the private key. A packet
          that comes while it takes the second one begins a handshake, and the next packet begins another,
          which spoils both. Not so if it has just tried to begin one: then it begins none for a while. So
          the first request, without a private key, also has it try one (a keepalive that is switched on),
          which the other end ignores; and the second request has it send a packet, which begins the only
          one. It reads both at once, whatever happens to the agent: they are sent as one piece, and the
          first fills one read (4096 bytes) exactly, because wireguard-go forgets what it read beyond the
          end of a request. Still look whether a handshake was made.
        """
        if state.private_key == NO_KEY:
            raise TunnelError(f"interface {self.interface} has no private key; set it again (wg-quick up)")
        if self._socket.is_socket():
            peer = base64.b64decode(self._peer).hex()
            packet = (
                f"public_key={peer}\nupdate_only=true\npersistent_keepalive_interval=0\n"
                f"persistent_keepalive_interval={state.keepalive_s}\n\n"
            )
            start, mark = f"set=1\nprivate_key={NO_KEY.hex()}\nfwmark=", str(state.firewall_mark)
            filled = mark.zfill(_READ_BYTES - len(start) - len("\n" + packet))  # leading zeros change nothing
            await self._request(
                f"{start}{filled}\n{packet}", f"set=1\nprivate_key={state.private_key.hex()}\n{packet}"
            )
        else:
            same_key = bytes([state.private_key[0] | _CLAMPED_BIT]) + state.private_key[1:]
            await self._wg("set", self.interface, "private-key", "/dev/stdin", secret=same_key)

    async def send_keepalive(self, state: PeerState) -> None:
        """Have the encryptor send a packet now: switching the keepalive off and on does that."""
        keepalive = ("peer", self._peer, "persistent-keepalive")
        await self._wg("set", self.interface, *keepalive, "0", *keepalive, str(state.keepalive_s))

    async def renew_peer(self, state: PeerState, preshared_key: bytes) -> None:
        """Remove the peer with its sessions and add it again with ``preshared_key``, in one transaction."""
        settings = ["allowed-ips", state.allowed_ips or "", "persistent-keepalive", str(state.keepalive_s)]
        if state.endpoint is not None:
            settings += ["endpoint", state.endpoint]
        await self._wg(
            *("set", self.interface, "peer", self._peer, "remove"),
            *("peer", self._peer, "preshared-key", "/dev/stdin", *settings),
            secret=preshared_key,
        )

    async def _wg(self, *arguments: str, secret: bytes | None = None) -> str:
        """Run `wg`. A change that has begun is not cancelled: it takes milliseconds."""
        said = f"`wg {arguments[0]} {self.interface}`"
        done = await run_program(
            ["wg", *arguments],
            named=said,
            given=b"" if secret is None else base64.b64encode(secret) + b"\n",
            limit_s=self._limit_s,
            environment={"LC_ALL": "C"},
            to_its_end=True,
            remedy="; install wireguard-tools",
        )
        if done.status:
            raise TunnelError(f"{said} failed: {_reason(done)}")
        return done.output.decode()

    async def _request(self, *requests: str) -> None:
        """Send requests to wireguard-go as one piece, and read its answers."""
        said = f"wireguard-go of interface {self.interface}"
        done = _DONE * len(requests)
        with trio.move_on_after(self._limit_s, shield=True):
            answer = b""
            try:
                async with await trio.open_unix_socket(self._socket) as stream:
                    await stream.send_all("".join(requests).encode())
                    while len(answer) < len(done) and (more := await stream.receive_some(1024)):
                        answer += more
            except OSError as error:
                raise TunnelError(f"{said} cannot be reached: {error.strerror}") from None
            except trio.BrokenResourceError:
                raise TunnelError(f"{said} ended during a change of key") from None
            if answer != done:
                raise TunnelError(
                    f"{said} refused a new handshake: {answer.decode(errors='replace').strip()}"
                )
            return
        raise TunnelError(f"{said} did not answer within {self._limit_s:g} s")


def _reason(done: Ended) -> str:
    """Return what `wg` said, on one line, and what to do about the usual causes."""
    reason = " ".join(done.errors.decode(errors="replace").split()) or f"exit status {done.status}"
    if "No such device" in reason or "not supported" in reason or "refused" in reason:
        return f"{reason}; bring the interface up (wg-quick up, systemd-networkd)"
    if "not permitted" in reason or "Permission denied" in reason:
        return f"{reason}; the agent needs CAP_NET_ADMIN, for wireguard-go root"
    return reason


def age_s(state: PeerState) -> float:
    """Return the age of the latest handshake, in seconds by the wall clock; infinite if there was none."""
    return max(0.0, time.time() - state.latest_handshake) if state.latest_handshake else float("inf")
