"""Alice's symbols: a keyed function of the slot number, so that both ends can evaluate it.

This is a simulation and NOT a source of cryptographic randomness: the hash is fast and invertible, and Bob's
side of the simulated fibre knows the key, because it makes the photons. A link with these symbols is
simulated, and so are its keys.
"""

import numpy as np

from qnode.config import SourceParameters
from qnode.kernels import inline_kernel, kernel
from qnode.simulate.randomness import GOLDEN, mixed
from qnode.tags.types import UNKNOWN_SYMBOL, Codes, Slots

U = np.uint64
_FIELD, _SHIFT_24, _SHIFT_63, _ONE, _TWO = U(0xFFFFFF), U(24), U(63), U(1), U(2)
_UNKNOWN = np.uint8(UNKNOWN_SYMBOL)


@inline_kernel
def symbol_bits(key: np.uint64, slot: np.uint64, z_limit: np.uint64, signal_limit: np.uint64) -> np.uint64:
    """Return three bits for one slot: late, |+>, decoy. A late |+> is a |+>, see `symbol_code`.

    The limits are probabilities times 2^24 (see `limits`).
    """
    random = mixed(slot * GOLDEN + key)
    plus = (z_limit - _ONE - (random & _FIELD)) >> _SHIFT_63
    decoy = (signal_limit - _ONE - ((random >> _SHIFT_24) & _FIELD)) >> _SHIFT_63
    return (random >> _SHIFT_63) | (plus << _ONE) | (decoy << _TWO)


@inline_kernel
def symbol_code(key: np.uint64, slot: np.uint64, z_limit: np.uint64, signal_limit: np.uint64) -> np.uint64:
    """Return the symbol code of one slot."""
    bits = symbol_bits(key, slot, z_limit, signal_limit)
    return bits & ~((bits >> _ONE) & _ONE)


@kernel
def _symbols(
    key: np.uint64, slots: Slots, first: int, end: int, z_limit: np.uint64, signal_limit: np.uint64,
    codes: Codes,
) -> None:  # fmt: skip
    for i in range(slots.shape[0]):
        code = np.uint8(symbol_code(key, U(slots[i] - first), z_limit, signal_limit))
        codes[i] = code if 0 <= slots[i] < end else _UNKNOWN


def limits(source: SourceParameters) -> tuple[np.uint64, np.uint64]:
    """Return the shares of Z states and of the signal intensity as 24-bit limits."""
    return U(round(source.p_z * 2**24)), U(round(source.p[0] * 2**24))


def symbols(key: int, slots: Slots, source: SourceParameters, end: int = 2**63 - 1) -> Codes:
    """Look up the symbol codes of ``slots``, shape ``(n,)``; outside ``0 <= slot < end`` they are unknown."""
    return _looked_up(key, slots, source, 0, end)


def repeated_symbols(key: int, slots: Slots, source: SourceParameters, period: int, end: int) -> Codes:
    """Look up symbol codes of a run that repeats those of the first ``period`` slots."""
    first = int(slots[0]) // period * period if slots.shape[0] else 0
    if not slots.shape[0] or (int(slots.min()) >= first and int(slots.max()) < first + period):
        return _looked_up(key, slots, source, first, end)
    codes = _looked_up(key, slots % period, source, 0, period)
    codes[(slots < 0) | (slots >= end)] = UNKNOWN_SYMBOL
    return codes


def _looked_up(key: int, slots: Slots, source: SourceParameters, first: int, end: int) -> Codes:
    """Look up symbol codes of a run that begins, or begins again, at slot ``first``."""
    codes = np.empty(slots.shape[0], np.uint8)
    z_limit, signal_limit = limits(source)
    _symbols(U(key), slots, first, end, z_limit, signal_limit, codes)
    return codes
