"""The change of basis before an additive Fourier transform, on arrays of words.

The transform takes coefficients of products of subspace polynomials instead of powers of y: X_e is the
product of s_i(y) over the bits i of e, with s_0 = y and s_(i+1) = s_i^2 + s_i (S.-J. Lin, T. Al-Naffouri, Y.
S. Han and W.-H. Chung, IEEE Trans. Information Theory 62, 2016). Where h is a power of two, s_h = y^(2^h) +
y, so that an expansion in powers of s_h needs additions only, and leaves two smaller changes: of digits, and
within them.
"""

from qnode.distill.amplification.steps import add_words
from qnode.distill.bits.array import Words
from qnode.kernels import inline_kernel, inner_kernel


@inline_kernel
def _add(work: Words, low: int, high: int, n: int, end: int, upwards: bool) -> None:
    """Add n words from ``high`` on to those at ``low``, or the other way ``upwards``, as far as ``end``."""
    n = min(n, end - high)
    if n > 0:
        if upwards:
            add_words(work, high, low, n)
        else:
            add_words(work, low, high, n)


@inner_kernel
def change_basis(work: Words, first: int, bits: int, row: int, end: int, upwards: bool, back: bool) -> None:
    """Change the basis of 2^``bits`` coefficients, each a row of ``row`` words, from ``first`` on.

    What lies from ``end`` on is zero, or not asked for, and is left alone. ``upwards`` takes the transpose of
    the inverse; with ``back`` too, the transpose.
    """
    if bits < 2 or first >= end:
        return
    h = 1
    while 2 * h < bits:
        h *= 2
    for phase in range(2):
        if (phase == 0) == back:
            change_basis(work, first, bits - h, row << h, end, upwards, back)
            for digit in range(1 << (bits - h)):
                change_basis(work, first + digit * (row << h), h, row, end, upwards, back)
            continue
        for step in range(bits - h):
            t = h + step if back else bits - 1 - step
            size, delta = row << t, row << (t - h)
            for block in range(1 << (bits - 1 - t)):
                low = first + 2 * block * size
                high = low + size
                if not back:
                    _add(work, high, high + size - delta, delta, end, upwards)
                _add(work, low + delta, high, size - delta, end, upwards)
                if back:
                    _add(work, high, high + size - delta, delta, end, upwards)
