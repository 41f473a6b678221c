"""The field GF(2^32) as a tower over GF(2^8), and 64-bit polynomials as elements of four copies of it.

GF(2^8) is GF(2)[z]/(z^8 + z^4 + z^3 + z + 1), which processors multiply. An element of GF(2^32) is an integer
whose octets are its coefficients of 1, u, v and u v, where u^2 + u = BASIS[7] and v^2 + v = BASIS[15].
"""

from typing import Final

import numpy as np
import numpy.typing as npt

Bit = npt.NDArray[np.uint8]
"""An array of zeros and ones."""

BITS: Final = 32
# fmt: off
BASIS: Final = (
    0x1, 0xbc, 0x5c, 0xc, 0xae, 0x5a, 0xe, 0x84,
    0x100, 0xbcc0, 0x5c90, 0xc26, 0xaed8, 0x5a4c, 0xef6, 0x8494,
    0x10000, 0xbcc0c6, 0x5c90e0, 0xc267c, 0xaed828, 0x5a4cae, 0xef670, 0x84949e,
    0x10084e8, 0xbcc0b37e, 0x5c9044c4, 0xc261694, 0xaed8d694, 0x5a4c3fe0, 0xef6095e, 0x849414b6,
)
# fmt: on
"""A basis with BASIS[i + 1]^2 + BASIS[i + 1] = BASIS[i]; its first 8 and 16 span GF(2^8) and GF(2^16).

(D. G. Cantor, J. Combinatorial Theory A 50, 1989.)
"""

POINTS: Final = (0x1000000, 0x1000001, 0x1000002, 0x1000003)
"""Where a polynomial over GF(2) of degree below 128 is evaluated; none is a conjugate of another."""

_REDUCTION: Final = 0x11B


def multiply(a: int, b: int, bits: int = BITS) -> int:
    """Return the product of two elements of the subfield of ``bits`` bits: 8, 16 or 32."""
    if bits == 8:
        product = 0
        for bit in range(8):
            product ^= (a << bit) * (b >> bit & 1)
        for bit in range(14, 7, -1):
            product ^= (_REDUCTION << (bit - 8)) * (product >> bit & 1)
        return product
    half = bits // 2
    (a1, a0), (b1, b0) = divmod(a, 1 << half), divmod(b, 1 << half)
    low, high = multiply(a0, b0, half), multiply(a1, b1, half)
    middle = multiply(a0 ^ a1, b0 ^ b1, half)
    return low ^ multiply(high, BASIS[half - 1], half) ^ (middle ^ low) << half


def combination(index: int) -> int:
    """Return the sum of the elements of BASIS that the bits of ``index`` name."""
    total = 0
    for bit, element in enumerate(BASIS):
        total ^= element * (index >> bit & 1)
    return total


def evaluation() -> Bit:
    """Return the matrix from the 128 coefficients of a polynomial to its values at POINTS, (128, 128)."""
    matrix = np.zeros((len(POINTS) * BITS, len(POINTS) * BITS), np.uint8)
    for copy, point in enumerate(POINTS):
        power = 1
        for column in range(matrix.shape[1]):
            matrix[copy * BITS : (copy + 1) * BITS, column] = [power >> bit & 1 for bit in range(BITS)]
            power = multiply(power, point)
    return matrix


def inverse(matrix: Bit) -> Bit:
    """Return the inverse of a regular matrix over GF(2)."""
    n = matrix.shape[0]
    both = np.concatenate((matrix, np.eye(n, dtype=np.uint8)), axis=1)
    for column in range(n):
        pivot = column + int(both[column:, column].argmax())
        both[[column, pivot]] = both[[pivot, column]]
        others = both[:, column].copy()
        others[column] = 0
        both ^= np.outer(others, both[column])
    return both[:, n:]
