"""MACsec of the Linux kernel (IEEE 802.1AE): a key changes by a new secure association, without loss.

The operator makes the interface, with encryption, strict validation and replay protection on. The agent adds
the peer's secure channel and all keys. A key is the secure association key (SAK) of both directions. AES-GCM
must never see a nonce twice under one key: the nonce is the sender's secure channel identifier (SCI) and its
packet number, so the SCIs of the two ends must differ, and a key that was removed is never added again, since
its packet numbers would start again at 1. With extended packet numbers (XPN) a short SCI is in the nonce: 1
for the end with the greater SCI, 2 for the other.

The kernel's identifier of a key is its key_ID, so that what stands is known after a restart of the agent.
"""

import re
import socket
import time
from collections import deque
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from typing import Annotated, ClassVar, Final
from uuid import UUID

import structlog

from qnode.agent.tunnel import InUse, Role, TunnelKey
from qnode.agent.tunnels.macsec_associations import Interface, Orders, key_identifier, read_interface
from qnode.agent.tunnels.programs import output_of
from qnode.config.description import Described, Limits, check_limits
from qnode.config.link import Table
from qnode.errors import TunnelError

CIPHERS: Final = ("GCM-AES-256", "GCM-AES-XPN-256")
NEAR_END: Final = 0.75  # of the packet numbers
N_REMEMBERED: Final = 100  # removed keys
PROBE_ETHERTYPE: Final = 0x88B5  # IEEE 802, local experimental 1: no host does anything with it
PROBE: Final = bytes(46)
_ADDRESS: Final = re.compile(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}")
_INTERFACE: Final = re.compile(r"[^\s/]{1,15}")

log = structlog.get_logger()


class MacsecConfig(Table, frozen=True):
    """The table ``[tunnel]`` of kind `macsec`."""

    interface: Annotated[str, Described("the MACsec interface, which the operator made")]
    peer_address: Annotated[str, Described("the Ethernet address in the peer's secure channel identifier")]
    peer_port: Annotated[
        int, Described("the port in the peer's secure channel identifier", limits=Limits(1, 65535))
    ] = 1

    def __post_init__(self) -> None:
        check_limits(self)
        if not _INTERFACE.fullmatch(self.interface):
            raise ValueError("interface: expected the name of an interface, of at most 15 characters")
        if not _ADDRESS.fullmatch(self.peer_address):
            raise ValueError("peer_address: expected an Ethernet address like 02:00:5e:00:53:01")


def probe_socket() -> socket.socket:
    """Return a socket that sends frames and receives none.

    Raises:
        TunnelError: this process may not send frames.
    """
    try:
        return socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, 0)
    except OSError as error:
        remedy = "give the agent CAP_NET_RAW and AF_PACKET (RestrictAddressFamilies=)"
        raise TunnelError(f"MACsec: frames cannot be sent: {error.strerror}: {remedy}") from None


class MacsecTunnel:
    """A MACsec interface whose keys are changed by ``ip``; the kernel is asked each time for what stands."""

    Config: ClassVar[type[MacsecConfig]] = MacsecConfig
    key_size_bits: ClassVar[int] = 256

    def __init__(self, config: MacsecConfig, role: Role) -> None:
        del role  # both ends do the same
        self._name = config.interface
        self._orders = Orders(config.interface, config.peer_address.lower(), config.peer_port)
        self._key_ids: dict[str, str] = {}  # by the kernel's identifier
        self._since: dict[str, float] = {}
        self._removed: deque[str] = deque(maxlen=N_REMEMBERED)
        self._warned = ""
        self._probes: socket.socket | None = None

    @asynccontextmanager
    async def open(self, *, first_key_required: bool) -> AsyncIterator["MacsecTunnel"]:
        """Check the settings of the interface, and yield the tunnel.

        MACsec passes nothing before the first key, so ``first_key_required`` changes nothing.

        Raises:
            TunnelError: there is no such interface, it cannot be controlled, or its settings let packets pass
                in clear, unchecked or twice.
        """
        del first_key_required
        interface = await self._look()
        for fault in self._faults(interface):
            raise TunnelError(f"{self._name}: {fault}")
        if not interface.channels:
            await self._order(self._orders.receive_from_peer())
        with probe_socket() as self._probes:
            yield self

    def _faults(self, interface: Interface) -> Iterable[str]:
        setting = f"ip link set {self._name} type macsec"
        if not interface.protect:
            yield f"sends without protection: {setting} protect on"
        if not interface.encrypt:
            yield f"sends in clear: {setting} encrypt on"
        if interface.validate != "strict":
            yield f"accepts frames without protection: {setting} validate strict"
        if not interface.replay:
            yield f"accepts frames twice: {setting} replay on window 32"
        if interface.cipher not in CIPHERS:
            yield f"has the cipher {interface.cipher}: make it with cipher gcm-aes-256 or gcm-aes-xpn-256"
        if int(interface.sci, 16) == self._orders.peer_sci:
            yield "has the peer's secure channel identifier: tunnel.peer_address is this end's own"
        for channel in interface.channels:
            sci = int(channel.sci, 16)
            if sci != self._orders.peer_sci:
                remedy = f"ip macsec del {self._name} rx sci {sci:016x}"
                yield f"receives from {sci:016x}, which is not the peer: {remedy}"

    async def prepare(self) -> None:
        """Do nothing: MACsec has no handshakes."""

    async def load(self, key: TunnelKey) -> None:
        """Receive under ``key`` too, and hold it ready for sending."""
        if 8 * len(key.key) != self.key_size_bits:
            raise TunnelError(f"{self._name}: the key has {8 * len(key.key)} bits, not {self.key_size_bits}")
        identifier, interface = key_identifier(key.key_id), await self._look()
        if interface.sending is not None and interface.sending.key == identifier:
            return
        if identifier in self._removed:
            raise TunnelError(f"{self._name}: the key {key.key_id} was used and removed: take a new one")
        await self._order(self._orders.load(interface, key), secret=key.key.hex())
        self._key_ids[identifier] = key.key_id

    async def activate(self, key: TunnelKey) -> None:
        """Send under ``key``."""
        identifier = key_identifier(key.key_id)
        held = [sa for sa in (await self._look()).associations if sa.key == identifier and sa.active]
        if not held:
            raise TunnelError(f"{self._name}: the key {key.key_id} is not loaded")
        await self._order(self._orders.activate(held[0]))
        self._since.setdefault(identifier, time.time())
        self._send_probe()

    async def in_use(self) -> InUse | None:
        """Return the newest key under which packets were both encrypted and validated.

        Each call sends the peer one frame, so that it has something to validate on an idle line.
        """
        interface = await self._look()
        sending = interface.sending
        if sending is None:
            return None
        self._send_probe()
        for identifier in dict.fromkeys([sending.key, *(sa.key for sa in interface.associations)]):
            own = [sa for sa in interface.associations if sa.key == identifier]
            validated = [sa for sa in interface.received if sa.key == identifier and sa.n_validated]
            if validated and own[0].n_encrypted:
                return InUse(
                    self._key_ids.get(identifier, str(UUID(identifier))),
                    self._since.setdefault(identifier, time.time()),
                    f"association {own[0].an} encrypted {own[0].n_encrypted} packets, association "
                    f"{validated[0].an} validated {validated[0].n_validated} of the peer's",
                )
        return None

    async def retire(self, key: TunnelKey) -> None:
        """Remove all keys but ``key``."""
        identifier, interface = key_identifier(key.key_id), await self._look()
        if interface.sending is None or interface.sending.key != identifier:
            raise TunnelError(f"{self._name}: the key {key.key_id} is not in use: no other is removed")
        self._forget(sa.key for sa in interface.associations if sa.key != identifier)
        await self._order(self._orders.retire(interface, identifier))

    async def unload(self, key: TunnelKey) -> None:
        """Remove ``key``; if it was sent under, send under the one before it again."""
        identifier, interface = key_identifier(key.key_id), await self._look()
        self._forget([identifier])
        await self._order(self._orders.unload(interface, identifier))

    async def take_down(self) -> None:
        """Remove all keys: the interface drops what is sent and received.

        It stays up, so that its routes stay: otherwise packets would take another way, in clear.
        """
        interface = await self._look()
        self._forget(sa.key for sa in interface.associations)
        await self._order(self._orders.take_down(interface))

    async def transferred_bytes(self) -> int:
        """Return the bytes that the interface encrypted and decrypted."""
        return (await self._look()).octets

    def _forget(self, identifiers: Iterable[str]) -> None:
        for identifier in identifiers:
            self._removed.append(identifier)
            self._key_ids.pop(identifier, None)
            self._since.pop(identifier, None)

    async def _look(self) -> Interface:
        """Return what stands in the kernel."""
        interface = read_interface(await output_of(["ip", "-s", "-j", "macsec", "show", self._name]))
        if interface is None:
            raise TunnelError(
                f"{self._name}: no MACsec interface: ip link add link LINE {self._name} type macsec …"
            )
        sending = interface.sending
        if sending is not None and sending.key != self._warned:
            used = sending.pn / 2**interface.packet_number_bits
            if used > NEAR_END:
                self._warned = sending.key
                log.warning("packet_numbers.near_end", interface=self._name, used=round(used, 3))
        return interface

    async def _order(self, orders: list[str], *, secret: str = "") -> None:
        """Have ``ip`` carry out all orders, from its standard input: an argument would show the key."""
        text = "".join(f"{order}\n" for order in orders)
        if orders:
            await output_of(["ip", "-batch", "-"], text=text, secret=secret)

    def _send_probe(self) -> None:
        """Send the peer one frame; a full queue or an interface that is down is no error here."""
        if self._probes is not None:
            peer = bytes.fromhex(self._orders.address.replace(":", ""))
            with suppress(OSError):
                self._probes.sendto(PROBE, (self._name, PROBE_ETHERTYPE, 0, 0, peer))
