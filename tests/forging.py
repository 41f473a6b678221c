"""Frames of the link that an attacker without the authentication key makes from those that he has seen."""

import random
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from qnode.config import Role
from qnode.link.frames import CODE_BYTES, LENGTH_BYTES

HOWS = ("flipped", "truncated", "replayed", "reflected", "spliced", "forged")
IN_CLEAR = 2  # the hello and its proof, the first frames of either direction, have no code
_LENGTH = struct.Struct(">I")


def framed(payload: bytes, code: bytes = b"") -> bytes:
    """Return a frame of ``payload`` whose length is right."""
    return _LENGTH.pack(len(payload)) + payload + code


class Splitter:
    """Splits what one end of a session sends into its frames."""

    def __init__(self) -> None:
        self._rest = b""
        self._number = 0

    def frames(self, data: bytes) -> Iterator[bytes]:
        """Yield the frames that end with ``data``."""
        self._rest += data
        while len(self._rest) >= LENGTH_BYTES:
            end = LENGTH_BYTES + _LENGTH.unpack_from(self._rest)[0]
            end += CODE_BYTES if self._number >= IN_CLEAR else 0
            if len(self._rest) < end:
                return
            frame, self._rest = self._rest[:end], self._rest[end:]
            self._number += 1
            yield frame


@dataclass
class Seen:
    """The frames of one session that each site has sent."""

    frames: dict[Role, list[bytes]] = field(default_factory=lambda: {"alice": [], "bob": []})


def other(role: Role) -> Role:
    """Return the other site."""
    return "bob" if role == "alice" else "alice"


@dataclass(frozen=True)
class Forgery:
    """``data`` in the place of a frame of ``sender``, made ``how``. ``ends``: the attacker hangs up then."""

    how: str
    sender: Role
    data: bytes
    ends: bool = False
    follows: bool = False
    """The true frame goes before it."""


class Forger:
    """Draws forgeries; ``earlier``: a session that it has seen, with a whole block and its keys."""

    def __init__(self, rng: random.Random, earlier: Seen) -> None:
        self._rng = rng
        self._earlier = earlier

    def forge(self, sender: Role, true: bytes | None, present: Seen) -> Forgery:
        """Return a forgery for the next frame of ``sender`` in the session ``present``.

        ``true``: the frame that ``sender`` has sent, if there is one; it is not what is returned.
        """
        rng = self._rng
        here = present.frames[sender]
        in_clear = len(here) < IN_CLEAR
        how = rng.choice(HOWS)
        if how == "reflected":
            mirrored = present.frames[other(sender)] or self._earlier.frames[other(sender)]
            data = mirrored[min(len(here), len(mirrored) - 1)] if in_clear else rng.choice(mirrored)
        elif how == "replayed":
            if true is not None and rng.random() < 0.25:
                return Forgery(how, sender, true, follows=True)
            data = self._old(sender, here, in_clear=in_clear)
        elif how == "spliced":
            first, second = (
                self._old(rng.choice((sender, other(sender))), here, in_clear=in_clear) for _ in "ab"
            )
            data = self._spliced(true or first, second, in_clear=in_clear)
        elif how == "forged":
            data = self._made(sender, in_clear=in_clear)
        elif how == "truncated":
            return self._truncated(
                sender, true or self._old(sender, here, in_clear=in_clear), in_clear=in_clear
            )
        else:
            data = flipped(rng, true or self._old(sender, here, in_clear=in_clear))
        if data == true:  # another way to the same frame
            how, data = "flipped", flipped(rng, data)
        return Forgery(how, sender, data)

    def _old(self, sender: Role, here: list[bytes], *, in_clear: bool) -> bytes:
        """Return a frame of this session or of the earlier one."""
        earlier = self._earlier.frames[sender]
        if in_clear:
            return earlier[min(len(here), IN_CLEAR - 1)]
        return self._rng.choice(earlier + here)

    def _spliced(self, first: bytes, second: bytes, *, in_clear: bool) -> bytes:
        """Return the payload of one frame with the code of another, or half of each."""
        if not in_clear and self._rng.random() < 0.5:
            return first[:-CODE_BYTES] + second[-CODE_BYTES:]
        code_bytes = 0 if in_clear else CODE_BYTES
        one, two = (frame[LENGTH_BYTES : len(frame) - code_bytes] for frame in (first, second))
        payload = one[: self._rng.randint(0, len(one))] + two[self._rng.randint(0, len(two)) :]
        return framed(payload, first[len(first) - code_bytes :])

    def _made(self, sender: Role, *, in_clear: bool) -> bytes:
        """Return a whole message, or random bytes, with a code that was guessed."""
        rng = self._rng
        if rng.random() < 0.5:
            payload = rng.choice(self._earlier.frames[sender])[LENGTH_BYTES:-CODE_BYTES]
        else:
            payload = rng.randbytes(rng.choice((0, 1, 40, 300, 5000)))
        return framed(
            payload, b"" if in_clear else rng.choice((rng.randbytes(CODE_BYTES), bytes(CODE_BYTES)))
        )

    def _truncated(self, sender: Role, frame: bytes, *, in_clear: bool) -> Forgery:
        code_bytes = 0 if in_clear else CODE_BYTES
        payload, code = frame[LENGTH_BYTES : len(frame) - code_bytes], frame[len(frame) - code_bytes :]
        if not payload or self._rng.random() < 0.3:
            return Forgery("truncated", sender, frame[: self._rng.randrange(len(frame))], ends=True)
        return Forgery("truncated", sender, framed(payload[: self._rng.randrange(len(payload))], code))


def flipped(rng: random.Random, data: bytes) -> bytes:
    """Return ``data`` with one to three bits flipped."""
    changed = bytearray(data)
    for bit in rng.sample(range(8 * len(data)), min(rng.randint(1, 3), 8 * len(data))):
        changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)
