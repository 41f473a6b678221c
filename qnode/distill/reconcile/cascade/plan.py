"""The plan of one block: its segments, the block lengths of the passes, and the limits of an honest run.

Both sides derive it from the length and the shared QBER estimate, in integers, so that no rounding of a
mathematical library can make them differ.
"""

import math
from dataclasses import dataclass
from typing import Final

from qnode.errors import FieldError

MIN_BLOCK_BITS: Final = 64
MAX_BLOCK_BITS: Final = 1 << 27  # node numbers travel in 32 bits
CHECK_BITS: Final = 64
BITWISE_LIMIT_BITS: Final = 1 << 15  # shorter blocks are permuted bit by bit
MAX_DEPTH: Final = 6  # levels of one record
MAX_LEAP: Final = 12  # levels of two
EXTRA_PASSES: Final = 24  # allowance for passes after a failed check; a pair survives each with <= 1/8

# A segment's records, three passes of them, stay in a core's second-level cache while a round works on it.
_SEGMENT_WORDS_LEAST: Final = 3072
_SEGMENT_WORDS_MOST: Final = 6144
# Measured: more errors in the first blocks, or in first and second together, save parities at first, but let
# the searches wake each other for many more rounds, and in the end waste more than they save.
_FIRST_BLOCK_ERRORS_PPM: Final = 1_170_000  # expected in a block of pass 0: at most
_PRODUCT_OF_ERRORS_PPM: Final = (
    5_500_000  # expected in one of pass 0 times expected in one of pass 1: at most
)
_THIRD_LEVEL: Final = 13
_MIN_QBER_PPM: Final = 1000  # below, longer blocks save little and a wrong estimate costs many rounds
_MIN_BLOCKS_LOG2: Final = 3
_REQUEST_LIMIT: Final = 1 << 13  # 70 are usual; the wildest wrong estimate was seen to need 1900


@dataclass(frozen=True)
class Plan:
    """How one block is reconciled, the same on both sides.

    ``n_segments`` segments of ``segment_words`` words each are permuted alike, in ``n_positions`` bits each
    (all of them but for short blocks, which are permuted ``bitwise``). ``levels``: log2 of the block length
    of each pass; ``extra_level``: of each pass after a failed check. Pass p begins when fewer than
    ``early_starts[p]`` searches are active. Few searches are accelerated: they skip nodes that
    together have at most ``leap_bits`` bits, so that three errors under one are rare, and ask for more
    than one level while that takes at most ``round_budget_bits`` parities. ``disclosure_limit_bits``,
    ``request_limit``, ``flip_limit``: no block that could give a key needs more.
    """

    n_bits: int
    n_segments: int
    segment_words: int
    n_positions: int
    bitwise: bool
    levels: tuple[int, ...]
    extra_level: int
    early_starts: tuple[int, ...]
    round_budget_bits: int
    leap_bits: int
    disclosure_limit_bits: int
    request_limit: int
    flip_limit: int

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
        """Return the number of top parities of each segment disclosed when a pass begins in ``slot``."""
        return -(-self.n_positions >> self.level(slot))


def make_plan(n_bits: int, qber_estimate: float) -> Plan:
    """Derive the plan of a block of ``n_bits`` from the shared ``qber_estimate`` (a fraction).

    Block lengths are powers of two: about 0.8 / QBER, four or eight times that, and a long one.

    Raises:
        FieldError: the block is too short or too long, or the estimate is not a fraction below 1/2.
    """
    if not MIN_BLOCK_BITS <= n_bits <= MAX_BLOCK_BITS:
        raise FieldError("key", f"{n_bits} bits; from {MIN_BLOCK_BITS} to {MAX_BLOCK_BITS} are possible")
    if not (math.isfinite(qber_estimate) and 0.0 <= qber_estimate <= 0.5):
        raise FieldError("qber_estimate", f"{qber_estimate} is no error fraction between 0 and 0.5")
    qber_ppm = max(round(qber_estimate * 1e6), _MIN_QBER_PPM)
    bitwise = n_bits < BITWISE_LIMIT_BITS
    n_segments, segment_words = (1, -(-n_bits // 64)) if bitwise else _segments(-(-n_bits // 64))
    n_positions = n_bits if bitwise else 64 * segment_words
    longest = n_positions.bit_length() - 1 - _MIN_BLOCKS_LOG2
    first = max(2, (_FIRST_BLOCK_ERRORS_PPM // qber_ppm).bit_length() - 1)
    both = (_PRODUCT_OF_ERRORS_PPM * 1_000_000 // qber_ppm**2).bit_length() - 1
    second = max(first + 1, both - first)
    levels = tuple(min(level, longest) for level in (first, second, max(_THIRD_LEVEL, second + 1)))
    extra_level = longest
    n_extra_blocks = n_segments * -(-n_positions >> extra_level)
    return Plan(
        n_bits=n_bits,
        n_segments=n_segments,
        segment_words=segment_words,
        n_positions=n_positions,
        bitwise=bitwise,
        levels=levels,
        extra_level=extra_level,
        early_starts=(1,) + 2 * (1 + (n_bits >> 16),),
        round_budget_bits=n_bits >> 15,
        leap_bits=n_bits >> 6,
        disclosure_limit_bits=n_bits
        + EXTRA_PASSES * (CHECK_BITS + n_extra_blocks + 64 + 2 * n_bits.bit_length()),
        request_limit=_REQUEST_LIMIT,
        flip_limit=64 + n_bits // 4,
    )


def _segments(n_words: int) -> tuple[int, int]:
    """Return how many segments of how many words (whole squares) cover ``n_words`` with least padding."""
    fewest = -(-n_words // _SEGMENT_WORDS_MOST)
    counts = range(fewest, max(fewest, n_words // _SEGMENT_WORDS_LEAST) + 1)
    sizes = [(-(-n_words // (64 * count)) * 64, count) for count in counts]
    segment_words, n_segments = min(sizes, key=lambda size: (size[0] * size[1], size[1]))
    return n_segments, segment_words
