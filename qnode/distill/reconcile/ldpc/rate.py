"""The disclosed part of a frame: at first, and after a failure."""

import math
from typing import Final

import numpy as np

from qnode.distill.reconcile.ldpc.code import Code
from qnode.distill.reconcile.ldpc.frames import Cut
from qnode.distill.reconcile.ldpc.syndrome import Words
from qnode.errors import FieldError

# Disclosed bits over the entropy of the errors, by QBER: measured such that about one long frame in ten
# needs more than the first answer. At a low QBER frames differ more from one another.
_START_QBER: Final = (0.003, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.08, 0.1, 0.11)
_START_EFFICIENCY: Final = (1.24, 1.20, 1.155, 1.13, 1.13, 1.12, 1.115, 1.115, 1.135, 1.165)
# For a frame that failed, the same times 1.02; up to 6 % more the more rows are split, because checks of two
# degrees side by side do worse than the mean of the two.
_EXTEND_MARGIN: Final = 1.02
_SPLIT_MARGIN: Final = 0.06
_HOPELESS: Final = 1.1

_STEP: Final = 24  # a frame that failed discloses at least a 24th more,
_STUCK: Final = 1.12  # or, if it had so much more already than frames at its QBER need,
_STUCK_STEP: Final = (
    2  # half: few errors on an unlucky place of the graph, which only much splitting breaks up
)
_SPARE_PIECES: Final = 8
_MAX_FIRST_SHARE: Final = 0.7  # of rows per column: a QBER of 14 %
_MIN_QBER: Final = 5e-4


def check_estimate(qber_estimate: float) -> None:
    """Refuse an invalid estimate.

    Raises:
        FieldError: it is not a fraction up to 1/2.
    """
    if not (math.isfinite(qber_estimate) and 0.0 <= qber_estimate <= 0.5):
        raise FieldError("qber_estimate", f"{qber_estimate} is no error fraction between 0 and 0.5")


def row_limit(cut: Cut) -> int:
    """Return the largest number of whole rows of a code."""
    return max(1, math.floor(cut.n_columns * _MAX_FIRST_SHARE))


def piece_limit(cut: Cut, code: Code) -> int:
    """Return how many pieces of a frame may be disclosed: about as many bits as it has.

    A block with such a frame gives no key.
    """
    return min(code.n_pieces, cut.n_columns + _SPARE_PIECES)


def pieces_for(cut: Cut, qber: float, margin: float = 1.0) -> int:
    """Return how many rows or pieces a frame at ``qber`` is expected to need, times ``margin``."""
    q = min(max(qber, _MIN_QBER), 0.5)
    entropy = -q * math.log2(q) - (1 - q) * math.log2(1 - q)
    efficiency = margin * float(np.interp(q, _START_QBER, _START_EFFICIENCY))
    return max(1, math.ceil(efficiency * entropy * cut.n_bits / cut.n_frames / cut.lifting))


def extended(cut: Cut, code: Code, n_pieces: int, qber: float) -> int:
    """Return how many pieces, in all, to ask of a frame that failed with ``n_pieces`` and shows ``qber``."""
    expected = pieces_for(cut, qber)
    split_share = expected / code.n_rows - 1
    needed = pieces_for(cut, qber, _EXTEND_MARGIN + _SPLIT_MARGIN * min(1.0, max(0.0, 2 * split_share)))
    # Far beyond the rate the code was drawn for, needing much is no sign of being stuck.
    is_stuck = split_share < 0.5 and n_pieces >= _STUCK * needed
    step = n_pieces // (_STUCK_STEP if is_stuck else _STEP)
    return min(max(needed, n_pieces + max(1, step)), 2 * n_pieces, piece_limit(cut, code))


def is_hopeless(cut: Cut, n_pieces: int, qber: float) -> bool:
    """Return whether ``n_pieces`` are so few for ``qber`` that decoding would be useless."""
    return pieces_for(cut, qber) > _HOPELESS * n_pieces


def estimate_qber(code: Code, differences: Words) -> float:
    """Return the error fraction that makes as many checks unmet as ``differences`` (piece by piece) has.

    A check of d bits is unmet with probability (1 - (1 - 2 q)^d) / 2.
    """
    borders = code.borders(differences.shape[0])
    degrees = np.diff(borders)
    n_unmet = int(np.bitwise_count(differences).sum())
    low, high = 0.0, 0.5
    for _ in range(20):
        q = (low + high) / 2
        expected = code.lifting * float(np.sum(1 - (1 - 2 * q) ** degrees)) / 2
        low, high = (q, high) if expected < n_unmet else (low, q)
    return (low + high) / 2
