"""The secure associations of a MACsec interface: what ``ip`` prints of them, and the orders that change them.

Pure: text in, text out. The orders are lines for ``ip -batch -``.

A change takes the next association number for sending. For receiving, the new key is held under every number
but the one under which packets of the key in use were validated: so no end needs to know at which number the
other one stands, which may have been made anew.
"""

import hashlib
import uuid
from collections.abc import Iterable
from typing import Final

import msgspec
from msgspec import Struct, field

from qnode.agent.tunnel import TunnelKey
from qnode.errors import TunnelError

ASSOCIATION_NUMBERS: Final = 4


class Association(Struct, frozen=True):
    """One secure association; ``key`` is the identifier of its key, ``pn`` the next packet number."""

    an: int
    pn: int
    active: bool
    key: str
    n_validated: int = field(name="InPktsOK", default=0)
    n_encrypted: int = field(name="OutPktsEncrypted", default=0)


class ReceiveChannel(Struct, frozen=True):
    """What is received from one secure channel."""

    sci: str
    octets_decrypted: int = field(name="InOctetsDecrypted", default=0)
    associations: list[Association] = field(name="sa_list", default_factory=list)


class Interface(Struct, frozen=True, kw_only=True):
    """One MACsec interface."""

    name: str = field(name="ifname")
    protect: bool
    validate: str
    encrypt: bool
    replay: bool
    cipher: str = field(name="cipher_suite")
    sci: str
    encoding: int = field(name="encoding_sa")
    octets_encrypted: int = field(name="OutOctetsEncrypted", default=0)
    associations: list[Association] = field(name="sa_list", default_factory=list)
    channels: list[ReceiveChannel] = field(name="rx_sc", default_factory=list)

    @property
    def sending(self) -> Association | None:
        """The association that protects what is sent; None: nothing can be sent."""
        return next((sa for sa in self.associations if sa.an == self.encoding and sa.active), None)

    @property
    def received(self) -> list[Association]:
        """The associations under which something is received."""
        return [sa for channel in self.channels for sa in channel.associations]

    @property
    def packet_number_bits(self) -> int:
        """Size of packet numbers."""
        return 64 if "XPN" in self.cipher else 32

    @property
    def octets(self) -> int:
        """What was encrypted and decrypted."""
        return self.octets_encrypted + sum(channel.octets_decrypted for channel in self.channels)


def read_interface(text: str) -> Interface | None:
    """Return what ``ip -s -j macsec show NAME`` printed; None: that is no MACsec interface.

    Raises:
        TunnelError: it is something else than this text.
    """
    try:
        return next(iter(msgspec.json.decode(text, type=list[Interface])), None)
    except msgspec.DecodeError as error:
        raise TunnelError(f"ip macsec show: unexpected answer ({error}): use iproute2 6.1 or newer") from None


def key_identifier(key_id: str) -> str:
    """Return the 16 bytes, in hex, by which the kernel names a key: its key_ID, which is a UUID."""
    try:
        return uuid.UUID(key_id).hex
    except ValueError:
        return hashlib.sha256(key_id.encode()).hexdigest()[:32]


class Orders(Struct, frozen=True):
    """The orders for one interface: its name, and the peer's channel as Ethernet address and port."""

    name: str
    address: str
    port: int

    @property
    def peer_sci(self) -> int:
        """The peer's secure channel identifier."""
        return int(self.address.replace(":", ""), 16) << 16 | self.port

    def receive_from_peer(self) -> list[str]:
        """Add the peer's secure channel."""
        return [f"macsec add {self.name} {self._from_peer} on"]

    def load(self, interface: Interface, key: TunnelKey) -> list[str]:
        """Receive under ``key`` too, and hold it ready for sending."""
        number, sending = (interface.encoding + 1) % ASSOCIATION_NUMBERS, interface.sending
        in_use = "" if sending is None else sending.key
        kept = {sa.an for sa in interface.received if sa.key == in_use and sa.n_validated}
        own_sci = int(interface.sci, 16)
        return [
            *self._remove(self._from_peer, (sa for sa in interface.received if sa.an not in kept)),
            *self._remove("tx", (sa for sa in interface.associations if sa.an == number)),
            *(
                self._add(f"{self._from_peer} sa {an}", interface, key, greater=self.peer_sci > own_sci)
                for an in range(ASSOCIATION_NUMBERS)
                if an not in kept
            ),
            self._add(f"tx sa {number}", interface, key, greater=own_sci > self.peer_sci),
        ]

    def activate(self, association: Association) -> list[str]:
        """Send under an association that is held ready."""
        return [
            f"link set {self.name} type macsec encodingsa {association.an}",
            f"link set {self.name} up",
        ]

    def retire(self, interface: Interface, identifier: str) -> list[str]:
        """Remove all but one key, and the numbers of it that the peer does not use, once it has used one."""
        proven = any(sa.n_validated for sa in interface.received if sa.key == identifier)
        idle = (sa for sa in interface.received if sa.key != identifier or (proven and not sa.n_validated))
        return [
            *self._remove("tx", (sa for sa in interface.associations if sa.key != identifier)),
            *self._remove(self._from_peer, idle),
        ]

    def unload(self, interface: Interface, identifier: str) -> list[str]:
        """Remove one key; if it was sent under, send under the one before it again."""
        before = [sa for sa in interface.associations if sa.key != identifier and sa.active]
        sending = interface.sending
        back = before[:1] if sending is not None and sending.key == identifier else []
        return [
            *(order for association in back for order in self.activate(association)),
            *self._remove("tx", (sa for sa in interface.associations if sa.key == identifier)),
            *self._remove(self._from_peer, (sa for sa in interface.received if sa.key == identifier)),
        ]

    def take_down(self, interface: Interface) -> list[str]:
        """Remove all keys."""
        return [
            *self._remove("tx", interface.associations),
            *self._remove(self._from_peer, interface.received),
        ]

    @property
    def _from_peer(self) -> str:
        return f"rx port {self.port} address {self.address}"

    def _remove(self, channel: str, associations: Iterable[Association]) -> list[str]:
        # The kernel removes no association that is active.
        return [
            order
            for sa in associations
            for order in (
                f"macsec set {self.name} {channel} sa {sa.an} off",
                f"macsec del {self.name} {channel} sa {sa.an}",
            )
        ]

    def _add(self, association: str, interface: Interface, key: TunnelKey, *, greater: bool) -> str:
        """Add an association whose packets begin at 1; ``greater``: its sender has the greater SCI."""
        identifier = key_identifier(key.key_id)
        numbering = "pn 1"
        if interface.packet_number_bits == 64:
            numbering = f"xpn 1 salt {identifier[:24]} ssci {1 if greater else 2}"
        return f"macsec add {self.name} {association} {numbering} on key {identifier} {key.key.hex()}"
