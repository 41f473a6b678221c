"""How many blocks are under way at once, and which way of correcting them that allows."""

import math
from typing import Literal

from qnode.config import LinkParameters
from qnode.distill.reconcile import choose_method

# Sifted bits that may be announced, agreed ahead, or distilled at a time: with long round trips many blocks
# must be under way so that no core idles. A bit costs about four bytes at Bob until it is key.
PIPELINE_BITS = 256_000_000
LEAST_DEPTH = 4
MOST_DEPTH = 32


def pipeline_depth(sifted_bits: int | Literal["auto"]) -> int:
    """Return how many blocks of ``sifted_bits`` may be in the air at once; few of blocks of unknown size."""
    if sifted_bits == "auto":
        return LEAST_DEPTH
    return max(LEAST_DEPTH, min(MOST_DEPTH, PIPELINE_BITS // sifted_bits))


def method_for(link: LinkParameters, round_trip_s: float, n_bits: int, filled_in_s: float) -> str:
    """Return how a block of ``n_bits`` that filled in ``filled_in_s`` is corrected (``auto``: by round trip).

    ``round_trip_s``: of the path, without queues (`Session.path_round_trip_s`). It may be nan, before it was
    measured: then it counts as short.
    """
    method = link.reconciliation.method
    if method != "auto":
        return method
    return choose_method(
        0.0 if math.isnan(round_trip_s) else round_trip_s,
        block_bits=n_bits,
        sifted_bits_per_s=n_bits / filled_in_s,
        # The block that is agreed ahead has a place too.
        max_blocks_in_flight=pipeline_depth(link.block.sifted_bits) - 1,
    )
