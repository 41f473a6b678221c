"""The pipeline depth: how many blocks are in progress at once, and which correction method this allows."""

import math
from typing import Literal

from qnode.config import LinkParameters
from qnode.distill.reconcile import choose_method

# Sifted bits that may be announced, agreed ahead, or distilled at a time. With long round trips many blocks
# must be in progress, so that no core is idle. A bit needs about four bytes at Bob's site until it is key.
PIPELINE_BITS = 256_000_000
LEAST_DEPTH = 4
MOST_DEPTH = 32


def pipeline_depth(sifted_bits: int | Literal["auto"]) -> int:
    """Return how many blocks of ``sifted_bits`` may be in progress at once; few if the size is unknown."""
    if sifted_bits == "auto":
        return LEAST_DEPTH
    return max(LEAST_DEPTH, min(MOST_DEPTH, PIPELINE_BITS // sifted_bits))


def method_for(link: LinkParameters, round_trip_s: float, n_bits: int, filled_in_s: float) -> str:
    """Return the correction method of a block of ``n_bits`` that took ``filled_in_s``.

    ``round_trip_s``: of the path, without queues (`Session.path_round_trip_s`). Before its measurement it is
    nan, and counts as short.
    """
    method = link.reconciliation.method
    if method != "auto":
        return method
    return choose_method(
        0.0 if math.isnan(round_trip_s) else round_trip_s,
        block_bits=n_bits,
        sifted_bits_per_s=n_bits / filled_in_s,
        # The block that is agreed ahead also counts.
        max_blocks_in_flight=pipeline_depth(link.block.sifted_bits) - 1,
    )
