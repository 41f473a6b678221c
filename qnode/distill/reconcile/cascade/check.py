"""The closing check: the verification hash of the whole key at a point that follows from the public seed.

Errors of the channel cannot depend on the point, so a wrong key passes with ceil(n / 64) 2^-64. The
verification of the block, whose point is drawn only after correction, follows and does not depend on it.
"""

from qnode.distill.bits import Bits
from qnode.distill.reconcile.base.words import stream_key
from qnode.distill.verify import verification_tag


def check_tag(key: Bits, seed: bytes, attempt: int) -> bytes:
    """Return the ``CHECK_BITS`` of check ``attempt``."""
    return verification_tag(key, int(stream_key(seed, b"check", attempt)).to_bytes(8, "little"), 64)
