"""The plan of one frame: block lengths of the passes and the limits of an honest run.

Both sides derive it from the length and the shared QBER estimate, in integers, so that no rounding of a
mathematical library can make them differ.
"""

import math
from dataclasses import dataclass
from typing import Final

from qnode.errors import FieldError

MIN_FRAME_BITS: Final = 64
MAX_FRAME_BITS: Final = 1 << 26  # node numbers travel in 32 bits
CHECK_BITS: Final = 40  # parities of the closing check: a wrong frame passes one check with 2^-40
BITWISE_LIMIT_BITS: Final = 1 << 14  # shorter frames are permuted bit by bit
EXTRA_PASSES: Final = (
    24  # allowance for passes after a failed check; a pair of errors survives each with <= 1/8
)

_FIRST_BLOCK_ERRORS_PPM: Final = 1_270_000  # the first blocks hold 0.64 to 1.27 expected errors
_MIN_QBER_PPM: Final = 2500  # below, longer first blocks save little and a wrong estimate costs many rounds
_MIN_BLOCKS_LOG2: Final = 3


@dataclass(frozen=True)
class Plan:
    """How one frame is reconciled, the same on both sides.

    ``levels``: log2 of the block length of each pass; ``extra_level``: of each pass after a failed check.
    ``n_positions``: bits that a pass permutes (the frame, or the frame padded with zeros to whole words).
    ``stride_words``: words reserved for one pass, so that every tree is complete. ``early_start``: the next
    pass begins when fewer searches than this are under way. ``disclosure_limit_bits``, ``request_limit``,
    ``error_limit``: no frame that could give a key needs more.
    """

    n_bits: int
    n_words: int
    n_positions: int
    bitwise: bool
    levels: tuple[int, ...]
    extra_level: int
    stride_words: int
    early_start: int
    disclosure_limit_bits: int
    request_limit: int
    error_limit: int

    @property
    def n_slots(self) -> int:
        """Passes held at once: the planned ones and one extra pass, which replaces the one before it."""
        return len(self.levels) + 1

    def slot(self, pass_index: int) -> int:
        """Return where pass ``pass_index`` is held."""
        return min(pass_index, len(self.levels))

    def level(self, slot: int) -> int:
        """Return log2 of the block length in ``slot``."""
        return self.levels[slot] if slot < len(self.levels) else self.extra_level

    def n_blocks(self, slot: int) -> int:
        """Return the number of top parities disclosed when a pass begins in ``slot``."""
        return -(-self.n_positions >> self.level(slot))


def make_plan(n_bits: int, qber_estimate: float) -> Plan:
    """Derive the plan of a frame of ``n_bits`` from the shared ``qber_estimate`` (a fraction).

    Block lengths are powers of two: near 0.9 / QBER, four times that, and a long one that grows with the
    frame; measured, not derived.

    Raises:
        FieldError: the frame is too short or too long, or the estimate is not a fraction below 1/2.
    """
    if not MIN_FRAME_BITS <= n_bits <= MAX_FRAME_BITS:
        raise FieldError("frame", f"{n_bits} bits; from {MIN_FRAME_BITS} to {MAX_FRAME_BITS} are possible")
    if not (math.isfinite(qber_estimate) and 0.0 <= qber_estimate <= 0.5):
        raise FieldError("qber_estimate", f"{qber_estimate} is no error fraction between 0 and 0.5")
    qber_ppm = max(round(qber_estimate * 1e6), _MIN_QBER_PPM)
    n_words = -(-n_bits // 64)
    bitwise = n_bits < BITWISE_LIMIT_BITS
    longest = n_bits.bit_length() - 1 - _MIN_BLOCKS_LOG2
    first = max(2, (_FIRST_BLOCK_ERRORS_PPM // qber_ppm).bit_length() - 1)
    third = max(first + 4, (n_bits.bit_length() + 6) // 2)
    levels = tuple(min(level, longest) for level in (first, first + 2, third))
    extra_level = levels[-1]
    chunk_words = 1 << max(0, max(levels) - 6)
    n_positions = n_bits if bitwise else 64 * n_words
    allowance = EXTRA_PASSES * (CHECK_BITS + (n_positions >> extra_level) + 1 + 2 * n_bits.bit_length())
    return Plan(
        n_bits=n_bits,
        n_words=n_words,
        n_positions=n_positions,
        bitwise=bitwise,
        levels=levels,
        extra_level=extra_level,
        stride_words=-(-n_words // chunk_words) * chunk_words,
        early_start=1 + (n_bits >> 16),
        disclosure_limit_bits=n_bits + allowance,
        request_limit=8192 + n_bits // 16,
        error_limit=64 + n_bits // 5,
    )
