"""Carry-less multiplication of words (polynomials over GF(2)) in kernels, and what this processor has for it.

The instruction PCLMULQDQ multiplies two 64-bit polynomials, VPCLMULQDQ two or four pairs at once. An LLVM
intrinsic that the processor lacks would end the process, so the code of a width is emitted only where its
instruction exists: ask ``vector_widths()`` or ``has_clmul64()`` before calling. The portable forms need
integer products alone, give the same bits, and no step of any form depends on the values (they are secret).
"""

from collections.abc import Callable
from typing import Any, Final

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic as numba_intrinsic

from qnode.kernel_cache import target_features
from qnode.kernels import inline_kernel, kernel

PORTABLE: Final = 1
_FEATURES: Final = {
    8: ("avx512f", "pclmul", "vpclmulqdq"),
    4: ("avx2", "pclmul", "vpclmulqdq"),
    2: ("pclmul",),
}
_INSTRUCTION: Final = {8: "llvm.x86.pclmulqdq.512", 4: "llvm.x86.pclmulqdq.256", 2: "llvm.x86.pclmulqdq"}

_I8: Final = ir.IntType(8)
_I32: Final = ir.IntType(32)
_I64: Final = ir.IntType(64)


def intrinsic(function: Callable[..., Any]) -> Any:
    """Declare an intrinsic; what kernels call has not the signature written here, so it is not typed."""
    return numba_intrinsic(function)


def supported(width: int) -> bool:
    """Return whether the target of the code generator supports ``width``."""
    present = target_features().split(",")
    return all(f"+{feature}" in present for feature in _FEATURES[width])


def vector_widths() -> tuple[int, ...]:
    """Return how many words of a vector this processor can multiply at once, widest first, PORTABLE last."""
    return (*(width for width in _FEATURES if supported(width)), PORTABLE)


def has_clmul64() -> bool:
    """Return whether a kernel may call ``clmul64``."""
    return supported(2)


def vector_of(width: int) -> ir.VectorType:
    """Return the type of ``width`` words."""
    return ir.VectorType(_I64, width)


def multiply_lanes(builder: ir.IRBuilder, a: ir.Value, a_word: int, b: ir.Value, b_word: int) -> ir.Value:
    """Emit, for each 128-bit lane, the product of word ``a_word`` of a's lane and word ``b_word`` of b's."""
    vector = a.type
    signature = ir.FunctionType(vector, [vector, vector, _I8])
    function = cgutils.get_or_insert_function(  # type: ignore[no-untyped-call]
        builder.module, signature, _INSTRUCTION[vector.count]
    )
    return builder.call(function, [a, b, ir.Constant(_I8, a_word | b_word << 4)])


@intrinsic
def clmul64(typing_context: Any, a: Any, b: Any) -> Any:
    """Return the ``(low, high)`` words of the product of two 64-bit polynomials. Needs ``has_clmul64()``."""
    pair = types.UniTuple(types.uint64, 2)  # type: ignore[no-untyped-call]
    signature = pair(types.uint64, types.uint64)

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        if not supported(2):
            return context.get_constant_null(signature.return_type)
        empty = ir.Constant(vector_of(2), [0, 0])
        a, b = (builder.insert_element(empty, word, ir.Constant(_I32, 0)) for word in arguments)
        product = multiply_lanes(builder, a, 0, b, 0)
        halves = [builder.extract_element(product, ir.Constant(_I32, place)) for place in (0, 1)]
        return context.make_tuple(builder, signature.return_type, halves)

    return signature, codegen


@inline_kernel
def _clmul32(a: np.uint64, b: np.uint64) -> np.uint64:
    """Return the 64-bit product of two 32-bit polynomials.

    Integers with three empty bits between their bits cannot carry from one kept bit into the next: at most
    eight ones meet at a place. Sixteen such products make all residues of the exponents modulo four.
    """
    m0, m1 = np.uint64(0x1111111111111111), np.uint64(0x2222222222222222)
    m2, m3 = np.uint64(0x4444444444444444), np.uint64(0x8888888888888888)
    a0, a1, a2, a3 = a & m0, a & m1, a & m2, a & m3
    b0, b1, b2, b3 = b & m0, b & m1, b & m2, b & m3
    c0 = (a0 * b0) ^ (a1 * b3) ^ (a2 * b2) ^ (a3 * b1)
    c1 = (a0 * b1) ^ (a1 * b0) ^ (a2 * b3) ^ (a3 * b2)
    c2 = (a0 * b2) ^ (a1 * b1) ^ (a2 * b0) ^ (a3 * b3)
    c3 = (a0 * b3) ^ (a1 * b2) ^ (a2 * b1) ^ (a3 * b0)
    return (c0 & m0) | (c1 & m1) | (c2 & m2) | (c3 & m3)


@inline_kernel
def multiply_portable(a: np.uint64, b: np.uint64) -> tuple[np.uint64, np.uint64]:
    """Return what ``clmul64`` does, by integer products (Karatsuba over 32-bit halves)."""
    half, low = np.uint64(32), np.uint64(0xFFFFFFFF)
    bottom = _clmul32(a & low, b & low)
    top = _clmul32(a >> half, b >> half)
    middle = _clmul32((a ^ (a >> half)) & low, (b ^ (b >> half)) & low) ^ bottom ^ top
    return bottom ^ (middle << half), top ^ (middle >> half)


@kernel
def clmul64_portable(a: np.uint64, b: np.uint64) -> tuple[np.uint64, np.uint64]:
    """Return what ``multiply_portable`` does, as a kernel of its own."""
    return multiply_portable(a, b)
