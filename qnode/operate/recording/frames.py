"""The format of a site's recording on the control socket: frames of MessagePack.

A frame is four bytes of length, big endian, and one of the structs below. `Begun` comes first, `Ended` last;
between them come tags (of Bob) or symbols (of Alice), and each completely announced block. Arrays are
bytes, little endian. Frames hold key material: they have no repr of their contents.
"""

from collections.abc import Iterator
from typing import Final

import msgspec
from msgspec import Struct

from qnode.config import LinkParameters, Role
from qnode.errors import QnodeError
from qnode.tags.site_recording import RecordedBlock

MOST_FRAME_BYTES: Final = 1 << 24
# Tags or symbols of a frame: about two megabytes.
MOST_ENTRIES: Final = 1 << 18
_LENGTH_BYTES: Final = 4


class Begun(Struct, frozen=True, kw_only=True, tag="begun"):
    """The site and the emission run of the recording; all its data belongs to this run.

    ``began_at_s``: Unix time. ``started_at_s``: the time of slot 0 by Alice's wall clock (from Alice).
    ``origin_s``: tag time zero, by Bob's wall clock; ``first_slot``: the slot of the first tag, or a little
    before (from Bob). ``start_uncertainty_s``: the uncertainty of these times.
    """

    role: Role
    kme_id: str
    peer_kme_id: str
    simulated: bool
    run_id: int
    began_at_s: float
    start_uncertainty_s: float
    link: LinkParameters
    started_at_s: float | None = None
    origin_s: float | None = None
    first_slot: int = 0


class Tags(Struct, frozen=True, tag="tags"):
    """Time tags in the order of the TDC: int64 picoseconds of tag time, int8 channels."""

    times_ps: bytes
    channels: bytes

    def __repr__(self) -> str:
        return f"Tags({len(self.channels)} tags)"


class Symbols(Struct, frozen=True, tag="symbols"):
    """Alice's symbols of announced slots, and of slots before a boundary click: int64, uint8."""

    slots: bytes
    symbols: bytes

    def __repr__(self) -> str:
        return f"Symbols({len(self.symbols)} symbols)"


class WholeBlock(Struct, frozen=True, tag="block"):
    """A block was completely announced; all its tags or symbols came before."""

    block: RecordedBlock


class Ended(Struct, frozen=True, tag="ended"):
    """The reason for the end; ``fell_behind``: the reader was too slow."""

    because: str
    fell_behind: bool = False


Frame = Begun | Tags | Symbols | WholeBlock | Ended


class BrokenFrame(QnodeError):
    """The received data is no frame of a recording."""


def encode_frame(frame: Frame) -> bytes:
    """Return the encoded ``frame``."""
    buffer = bytearray()
    msgspec.msgpack.Encoder().encode_into(frame, buffer, _LENGTH_BYTES)
    buffer[:_LENGTH_BYTES] = (len(buffer) - _LENGTH_BYTES).to_bytes(_LENGTH_BYTES, "big")
    return bytes(buffer)


class FrameReader:
    """Cuts received bytes into frames."""

    def __init__(self) -> None:
        self._pending = bytearray()
        self._decoder = msgspec.msgpack.Decoder(Frame)

    def frames(self, received: bytes) -> Iterator[Frame]:
        """Yield the frames that ``received`` completes.

        Raises:
            BrokenFrame: a frame is too long, or not of a recording.
        """
        self._pending += received
        while len(self._pending) >= _LENGTH_BYTES:
            length = int.from_bytes(self._pending[:_LENGTH_BYTES], "big")
            if length > MOST_FRAME_BYTES:
                raise BrokenFrame(f"a frame of {length} bytes: at most {MOST_FRAME_BYTES}")
            end = _LENGTH_BYTES + length
            if len(self._pending) < end:
                return
            try:
                frame = self._decoder.decode(memoryview(self._pending)[_LENGTH_BYTES:end])
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                raise BrokenFrame("a frame that is none of a recording") from None
            del self._pending[:end]
            yield frame
