"""What two agents say to each other: small MessagePack messages; no message ever has a part of a key."""

from typing import Any, Final, Protocol

import msgspec
from msgspec import Struct

from qnode.errors import ProtocolError

VERSION: Final = 1
LONGEST_MESSAGE_BYTES: Final = 1 << 14
LONGEST_TEXT_CHARACTERS: Final = 300
NONCE_BYTES: Final = 32


class Message(Struct, frozen=True, kw_only=True, tag=True, forbid_unknown_fields=True):
    """One message."""


class Hello(Message, frozen=True):
    """The first message of either end.

    ``active``: the key_ID that this run of the agent activated last; None: none yet.
    """

    version: int
    name: str
    role: str
    kind: str
    key_size_bits: int
    period_s: float
    sae_id: str
    peer_sae_id: str
    nonce: bytes
    active: str | None


class Refused(Message, frozen=True):
    """The two agents do not fit; the line ends."""

    reason: str


class Alive(Message, frozen=True):
    """Sent twice a second. ``trouble``: why a change does not come, as this end knows it; "": none.

    ``due_in_s``: from the initiator, the time to the next change.
    """

    active: str | None
    trouble: str
    due_in_s: float | None = None


class Request(Message, frozen=True):
    """The initiator's messages; the answer has the same ``number``."""

    number: int


class Prepare(Request, frozen=True):
    """A change of key begins."""


class Offer(Request, frozen=True):
    """Fetch this key."""

    key_id: str


class Load(Request, frozen=True):
    """Both ends have the key: load it. ``proof``: of the initiator."""

    key_id: str
    proof: bytes


class Activate(Request, frozen=True):
    """Both ends have loaded the key: use it."""

    key_id: str


class Confirm(Request, frozen=True):
    """Answer when the encryptor says itself that the key is in use."""

    key_id: str


class Retire(Request, frozen=True):
    """Both encryptors use the key: remove what came before."""

    key_id: str


class Cancel(Request, frozen=True):
    """The change fails: unload the key."""

    key_id: str | None
    reason: str


class Done(Message, frozen=True):
    """The step ``number`` is done."""

    number: int


class Held(Message, frozen=True):
    """The responder has the key. ``proof``: of the responder."""

    number: int
    proof: bytes


class Failed(Message, frozen=True):
    """The step ``number`` failed; the initiator cancels the change."""

    number: int
    reason: str


AnyMessage = (
    Hello
    | Refused
    | Alive
    | Prepare
    | Offer
    | Load
    | Activate
    | Confirm
    | Retire
    | Cancel
    | Done
    | Held
    | Failed
)
_decoder = msgspec.msgpack.Decoder(AnyMessage)


class Line(Protocol):
    """Messages to and from the other agent, which is proven. Both methods raise LinkError when it is lost."""

    async def send(self, message: Message) -> None:
        """Send a message; one that is cancelled half way breaks the line."""
        ...

    async def receive(self) -> Message:
        """Return the next message; may be cancelled."""
        ...


def encode(message: Message) -> bytes:
    """Return the bytes of ``message``."""
    return msgspec.msgpack.encode(message)


def decode(data: bytes) -> Message:
    """Return the message in ``data``.

    Raises:
        ProtocolError: there is none.
    """
    try:
        message: Any = _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"the other agent sent something that is no message: {error}") from None
    found: Message = message
    return found


def short(text: object) -> str:
    """Return a reason that fits into a message."""
    return str(text)[:LONGEST_TEXT_CHARACTERS]
