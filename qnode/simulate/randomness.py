"""Random numbers of the simulation: one 64-bit counter, hashed (SplitMix64). Nothing here is cryptographic.

Every draw adds `GOLDEN` to the counter, so that the draws do not wait for each other, and the whole state of
a stream is one integer.
"""

import math

import numpy as np

from qnode.kernels import inline_kernel, kernel

U = np.uint64
GOLDEN = U(0x9E3779B97F4A7C15)
_FIRST, _SECOND = U(0xBF58476D1CE4E5B9), U(0x94D049BB133111EB)
_SHIFT_30, _SHIFT_27, _SHIFT_31, _SHIFT_11, _LAYER_MASK = U(30), U(27), U(31), U(11), U(255)
_UNIT_53 = 2.0**-53

# Ziggurat for the exponential distribution with 256 layers (Marsaglia, Tsang, J. Stat. Softw. 5(8), 2000).
_EDGE = 7.69711747013104972
_AREA = 0.0039496598225815571993


def _layers() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    edges = np.zeros(257)
    edges[0], edges[1] = _AREA / math.exp(-_EDGE), _EDGE
    for layer in range(2, 256):
        edges[layer] = -math.log(_AREA / edges[layer - 1] + math.exp(-edges[layer - 1]))
    certain = np.array([int(edges[i + 1] / edges[i] * 2**53) for i in range(256)], np.uint64)
    return edges * _UNIT_53, np.exp(-edges), certain


_SCALE, _HEIGHT, _CERTAIN = _layers()


@inline_kernel
def mixed(x: np.uint64) -> np.uint64:
    """Return the SplitMix64 finaliser of ``x`` (a bijection of 64 bits)."""
    x ^= x >> _SHIFT_30
    x *= _FIRST
    x ^= x >> _SHIFT_27
    x *= _SECOND
    return x ^ (x >> _SHIFT_31)


@inline_kernel
def unit(bits: np.uint64) -> float:
    """Return the upper 53 bits as a number between 0 and 1, both excluded."""
    return (np.float64(np.int64(bits >> _SHIFT_11)) + 0.5) * _UNIT_53


@inline_kernel
def exponential_first_try(bits: np.uint64) -> float:
    """Return an Exp(1) variable from 64 random bits, or -1 when `exponential_retry` must finish (1 %)."""
    layer = np.int64(bits & _LAYER_MASK)
    place = bits >> _SHIFT_11
    return np.float64(np.int64(place)) * _SCALE[layer] if place < _CERTAIN[layer] else -1.0


@kernel
def exponential_retry(bits: np.uint64, counter: np.uint64) -> tuple[float, np.uint64]:
    """Finish the draw that `exponential_first_try` left open; return it and the advanced counter."""
    while True:
        layer = np.int64(bits & _LAYER_MASK)
        place = bits >> _SHIFT_11
        value = np.float64(np.int64(place)) * _SCALE[layer]
        if place < _CERTAIN[layer]:
            return value, counter
        counter += GOLDEN
        second = unit(mixed(counter))
        if layer == 0:
            return _EDGE - math.log(second), counter
        if _HEIGHT[layer] + second * (_HEIGHT[layer + 1] - _HEIGHT[layer]) < math.exp(-value):
            return value, counter
        counter += GOLDEN
        bits = mixed(counter)
