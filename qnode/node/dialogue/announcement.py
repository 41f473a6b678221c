"""How clicks are announced in each protocol."""

from collections.abc import Callable
from typing import NamedTuple

from qnode.distill.sifting.announced import Announced
from qnode.distill.sifting.codec import decode_announcement, encode_announcement
from qnode.distill.sifting.gap_codec import decode_gaps, encode_gaps


class AnnouncementCodec(NamedTuple):
    """Both directions; see `encode_gaps` and `decode_gaps`."""

    encode: Callable[[Announced, int], bytes]
    decode: Callable[[bytes, int, int], Announced]


_OF_PROTOCOL_1 = AnnouncementCodec(encode_announcement, decode_announcement)
_OF_PROTOCOL_2 = AnnouncementCodec(encode_gaps, decode_gaps)


def announcement_codec(protocol: int) -> AnnouncementCodec:
    """Return the codec of a session's protocol."""
    return _OF_PROTOCOL_2 if protocol > 1 else _OF_PROTOCOL_1
