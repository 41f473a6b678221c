"""What a tunnel must be able to do so that an agent can change its key.

Two agents change a key in steps, always in this order::

    responder.load    initiator.load        both ends hold the key beside the one in use
    responder.activate    initiator.activate    both ends use it
    responder.in_use    initiator.in_use        both encryptors say so themselves
    responder.retire    initiator.retire        what came before is gone

If a step before the initiator's `activate` fails, both ends `unload` the key and go on with the one in use.
"""

from contextlib import AbstractAsyncContextManager
from typing import Any, ClassVar, Literal, Protocol

from msgspec import Struct

Role = Literal["initiator", "responder"]


class TunnelKey(Struct, frozen=True, eq=False):
    """A key on its way into an encryptor. ``key_id`` is no secret; ``key`` never leaves memory."""

    key_id: str
    key: bytes

    def __repr__(self) -> str:
        return f"TunnelKey({self.key_id}, {8 * len(self.key)} bits)"

    def __rich_repr__(self) -> list[tuple[str, object]]:
        # The inherited method lists every field, and tracebacks with local variables use it.
        return [("key_id", self.key_id)]


class InUse(Struct, frozen=True):
    """What the encryptor says of its traffic: the key in use, and since when (seconds of Unix time).

    ``key_id`` is None if traffic flows under a key that this agent did not load, for example before a restart
    of the agent. ``proof``: the encryptor's own words, without secrets.
    """

    key_id: str | None
    since: float
    proof: str


class Tunnel(Protocol):
    """One tunnel at one site. Every method may be cancelled and may be called again after an error.

    Errors are `TunnelError`, with what failed, where, and how to mend it. A method that raises leaves the key
    in use as it was.
    """

    @property
    def key_size_bits(self) -> int:
        """The size of the tunnel's key in bits; a class may have it as a constant."""
        ...

    async def prepare(self) -> None:
        """Make sure that the encryptor will start no handshake of its own within the next seconds."""
        ...

    async def load(self, key: TunnelKey) -> None:
        """Have the encryptor hold ``key`` beside the key in use, which goes on protecting the traffic."""
        ...

    async def activate(self, key: TunnelKey) -> None:
        """Have the encryptor use ``key``, which both ends have loaded. The first key brings the tunnel up."""
        ...

    async def in_use(self) -> InUse | None:
        """Return what the encryptor says; None: there is no tunnel with the peer."""
        ...

    async def retire(self, key: TunnelKey) -> None:
        """Remove all that came before ``key`` from the encryptor."""
        ...

    async def unload(self, key: TunnelKey) -> None:
        """Remove ``key``, which is not in use, from the encryptor; the key in use stays, or is put back."""
        ...

    async def take_down(self) -> None:
        """End the tunnel: no packet passes, in clear neither, until the next key."""
        ...

    async def transferred_bytes(self) -> int:
        """Return the bytes that the encryptor counted, both directions; the count may start again at 0."""
        ...


class TunnelKind(Protocol):
    """The class of one kind of tunnel; ``Config`` is the agent's table ``[tunnel]`` without its ``kind``."""

    Config: ClassVar[type[Struct]]

    @property
    def key_size_bits(self) -> int:
        """The size of the tunnel's key in bits."""
        ...

    def __init__(self, config: Any, role: Role) -> None: ...

    def open(self, *, first_key_required: bool) -> AbstractAsyncContextManager[Tunnel]:
        """Check that the encryptor can be controlled, and yield the tunnel.

        ``first_key_required``: no packet may pass before the first key, which is the agent's default.

        A key that an earlier run of the agent left in the encryptor stays in use, and on every way out of the
        context the tunnel stays as it is.

        Raises:
            TunnelError: the encryptor cannot be controlled, or its settings would let traffic pass without a
                QKD key though ``first_key_required``.
        """
        ...
