"""Carry-less multiplication (polynomials over GF(2)) in kernels: one word, and small Toeplitz blocks of
words.

The instruction PCLMULQDQ multiplies two 64-bit polynomials, VPCLMULQDQ two pairs at once. An LLVM intrinsic
that the processor lacks would end the process, so the code of a width is emitted only where its instruction
exists: ask ``leaf_widths()`` or ``has_clmul64()`` before calling. The portable forms need integer products
alone, give the same bits, and no step of any form depends on the values (they are secret).
"""

from collections.abc import Callable
from functools import reduce
from typing import Any, Final

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.core import config as numba_config
from numba.core.codegen import get_host_cpu_features
from numba.extending import intrinsic as numba_intrinsic

from qnode.distill.bits import Words
from qnode.kernels import inline_kernel, kernel

PORTABLE: Final = 1
_FEATURES: Final = {4: ("avx2", "pclmul", "vpclmulqdq"), 2: ("pclmul",)}
_INSTRUCTION: Final = {4: "llvm.x86.pclmulqdq.256", 2: "llvm.x86.pclmulqdq"}
_ADD_WIDTH: Final = 4
_SCHOOLBOOK_WORDS: Final = 4
LEAF_SIZES: Final = (8, 12, 16)

_I8: Final = ir.IntType(8)
_I32: Final = ir.IntType(32)
_I64: Final = ir.IntType(64)


def _intrinsic(function: Callable[..., Any]) -> Any:
    """Declare an intrinsic; what kernels call has not the signature written here, so it is not typed."""
    return numba_intrinsic(function)


def _supported(width: int) -> bool:
    """Tell whether the target of the code generator (numba can be told another) has what ``width`` needs."""
    settings: Any = numba_config
    if settings.CPU_FEATURES is not None:
        features = str(settings.CPU_FEATURES)
    elif settings.CPU_NAME is not None:
        return False
    else:
        features = str(get_host_cpu_features())  # type: ignore[no-untyped-call]
    present = features.split(",")
    return all(f"+{feature}" in present for feature in _FEATURES[width])


def leaf_widths() -> tuple[int, ...]:
    """Return how many words of a vector this processor can multiply at once, widest first, PORTABLE last."""
    return (*(width for width in _FEATURES if _supported(width)), PORTABLE)


def has_clmul64() -> bool:
    """Tell whether a kernel may call ``clmul64``."""
    return _supported(2)


def _vector(width: int) -> ir.VectorType:
    return ir.VectorType(_I64, width)


def _zero(width: int) -> ir.Constant:
    return ir.Constant(_vector(width), [0] * width)


def _lowest(builder: ir.IRBuilder, width: int, word: ir.Value) -> ir.Value:
    """Emit a vector with ``word`` in its lowest place."""
    return builder.insert_element(_zero(width), word, ir.Constant(_I32, 0))


def _multiply(builder: ir.IRBuilder, width: int, a: ir.Value, b: ir.Value, half: int) -> ir.Value:
    """Emit, for each 128-bit lane, the product of word ``half`` of a's lane and the lower word of b's."""
    vector = _vector(width)
    signature = ir.FunctionType(vector, [vector, vector, _I8])
    function = cgutils.get_or_insert_function(  # type: ignore[no-untyped-call]
        builder.module, signature, _INSTRUCTION[width]
    )
    return builder.call(function, [a, b, ir.Constant(_I8, half)])


def _pointer(context: Any, builder: ir.IRBuilder, array_type: Any, array: ir.Value) -> ir.Value:
    return context.make_array(array_type)(context, builder, array).data


def _vector_at(builder: ir.IRBuilder, data: ir.Value, index: ir.Value, width: int) -> ir.Value:
    return builder.bitcast(builder.gep(data, [index]), _vector(width).as_pointer())


def _load(builder: ir.IRBuilder, data: ir.Value, index: ir.Value, width: int) -> ir.Value:
    loaded = builder.load(_vector_at(builder, data, index, width))
    loaded.align = 8  # words, not vectors, are aligned
    return loaded


def _store(builder: ir.IRBuilder, value: ir.Value, data: ir.Value, index: ir.Value, width: int) -> None:
    builder.store(value, _vector_at(builder, data, index, width)).align = 8


@_intrinsic
def clmul64(typing_context: Any, a: Any, b: Any) -> Any:
    """Return the ``(low, high)`` words of the product of two 64-bit polynomials. Needs ``has_clmul64()``."""
    pair = types.UniTuple(types.uint64, 2)  # type: ignore[no-untyped-call]
    signature = pair(types.uint64, types.uint64)

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        if not _supported(2):
            return context.get_constant_null(signature.return_type)
        a, b = (_lowest(builder, 2, word) for word in arguments)
        product = _multiply(builder, 2, a, b, 0)
        halves = [builder.extract_element(product, ir.Constant(_I32, place)) for place in (0, 1)]
        return context.make_tuple(builder, signature.return_type, halves)

    return signature, codegen


@_intrinsic
def add_words(typing_context: Any, work: Any, target: Any, a: Any, b: Any, n: Any) -> Any:
    """Set work[target + i] to work[a + i] ^ work[b + i] for i < n, a multiple of four.

    In a plain loop the compiler would guard against overlaps that never occur; here blocks are a few vectors.
    """
    signature = types.void(work, types.intp, types.intp, types.intp, types.intp)

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        data = _pointer(context, builder, signature.args[0], arguments[0])
        target, a, b, n = arguments[1:]
        step = ir.Constant(_I64, _ADD_WIDTH)
        with cgutils.for_range(builder, builder.udiv(n, step)) as loop:
            done = builder.mul(loop.index, step)
            left = _load(builder, data, builder.add(a, done), _ADD_WIDTH)
            right = _load(builder, data, builder.add(b, done), _ADD_WIDTH)
            _store(builder, builder.xor(left, right), data, builder.add(target, done), _ADD_WIDTH)
        return context.get_dummy_value()

    return signature, codegen


def _make_leaf(width: int) -> Any:
    """Return the intrinsic ``leaf(work, s, x, y, n)`` for blocks of ``n`` words, n one of LEAF_SIZES.

    It sets the pair of words y + 2 r, r < n, to the sum over j < n of the 128-bit products of word s + n + r
    - j and word x + j. Emits nothing, and must not be called, where the processor lacks the instruction.
    """

    @_intrinsic
    def leaf(typing_context: Any, work: Any, s: Any, x: Any, y: Any, n: Any) -> Any:
        signature = types.void(work, types.intp, types.intp, types.intp, types.intp)

        def codegen(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
            if _supported(width):
                data = _pointer(context, builder, signature.args[0], arguments[0])
                s, x, y, n = arguments[1:]
                for size in LEAF_SIZES:
                    with builder.if_then(builder.icmp_signed("==", n, ir.Constant(_I64, size))):
                        _LeafEmitter(builder, data, width, s, x).emit(y, size)
            return context.get_dummy_value()

        return signature, codegen

    return leaf


class _LeafEmitter:
    """Writes the straight-line code of one leaf, in which additions cost nothing beside the multiplications.

    A block is named by the sets of word offsets whose sum is its window and, column by column, its factors;
    equal offsets cancel. Blocks of more than four words are split in two (three products of half the size)
    or in three (six of a third: Fan and Hasan, IEEE Trans. Computers 56, 2007).
    """

    def __init__(self, builder: ir.IRBuilder, data: ir.Value, width: int, s: ir.Value, x: ir.Value) -> None:
        self.builder = builder
        self.data = data
        self.width = width
        self.s = s
        self.x = x

    def emit(self, y: ir.Value, n: int) -> None:
        """Emit the block of ``n`` words and store its rows at ``y``."""
        rows = self._block(frozenset({0}), [frozenset({column}) for column in range(n)], n)
        for place, vector in enumerate(rows):
            index = self.builder.add(y, ir.Constant(_I64, place * self.width))
            _store(self.builder, vector, self.data, index, self.width)

    def _block(self, window: frozenset[int], factors: list[frozenset[int]], n: int) -> list[ir.Value]:
        if n == _SCHOOLBOOK_WORDS:
            return self._schoolbook(window, factors)
        if n % 3 == 0 and n // 3 == _SCHOOLBOOK_WORDS:
            return self._split_in_three(window, factors, n // 3)
        return self._split_in_two(window, factors, n // 2)

    def _split_in_two(self, window: frozenset[int], factors: list[frozenset[int]], n: int) -> list[ir.Value]:
        a, b, c = (frozenset(offset + shift for offset in window) for shift in (0, n, 2 * n))
        x0, x1 = factors[:n], factors[n:]
        shared = self._block(b, _sum_of(x0, x1), n)
        top = self._block(a ^ b, x1, n)
        bottom = self._block(b ^ c, x0, n)
        return self._added(shared, top) + self._added(shared, bottom)

    def _split_in_three(
        self, window: frozenset[int], factors: list[frozenset[int]], n: int
    ) -> list[ir.Value]:
        t0, t1, t2, t3, t4 = (frozenset(offset + shift * n for offset in window) for shift in range(5))
        x0, x1, x2 = factors[:n], factors[n : 2 * n], factors[2 * n :]
        p0 = self._block(t0 ^ t1 ^ t2, x2, n)
        p1 = self._block(t1 ^ t2 ^ t3, x1, n)
        p2 = self._block(t2 ^ t3 ^ t4, x0, n)
        p3 = self._block(t1, _sum_of(x1, x2), n)
        p4 = self._block(t2, _sum_of(x0, x2), n)
        p5 = self._block(t3, _sum_of(x0, x1), n)
        rows = ((p0, p3, p4), (p1, p3, p5), (p2, p4, p5))
        return [vector for p, q, r in rows for vector in self._added(self._added(p, q), r)]

    def _schoolbook(self, window: frozenset[int], factors: list[frozenset[int]]) -> list[ir.Value]:
        """Emit the products of four rows and columns.

        A vector of the window gives two vectors of products, of its even and of its odd words; they are
        summed apart and brought into order at the end.
        """
        builder, width = self.builder, self.width
        everywhere = ir.Constant(ir.VectorType(_I32, width), [0] * width)
        sums = [[_zero(width), _zero(width)] for _ in range(_SCHOOLBOOK_WORDS // width)]
        for column, offsets in enumerate(factors):
            words = [
                builder.load(builder.gep(self.data, [self._at(self.x, offset)])) for offset in sorted(offsets)
            ]
            factor = _lowest(builder, width, reduce(builder.xor, words))
            factor = builder.shuffle_vector(factor, _zero(width), everywhere)
            for place, products in enumerate(sums):
                row = _SCHOOLBOOK_WORDS - column + place * width
                places = [self._at(self.s, offset + row) for offset in sorted(window)]
                vector = reduce(builder.xor, [_load(builder, self.data, place, width) for place in places])
                for half in (0, 1):
                    products[half] = builder.xor(
                        products[half], _multiply(builder, width, vector, factor, half)
                    )
        return [vector for even, odd in sums for vector in self._interleaved(even, odd)]

    def _interleaved(self, even: ir.Value, odd: ir.Value) -> list[ir.Value]:
        """Emit the 128-bit lanes even[0] odd[0] even[1] odd[1] ... as two vectors."""
        width = self.width
        order = [
            half * width + 2 * lane + word for lane in range(width // 2) for half in (0, 1) for word in (0, 1)
        ]
        return [
            self.builder.shuffle_vector(even, odd, ir.Constant(ir.VectorType(_I32, width), part))
            for part in (order[:width], order[width:])
        ]

    def _at(self, base: ir.Value, offset: int) -> ir.Value:
        return self.builder.add(base, ir.Constant(_I64, offset))

    def _added(self, a: list[ir.Value], b: list[ir.Value]) -> list[ir.Value]:
        return [self.builder.xor(left, right) for left, right in zip(a, b, strict=True)]


def _sum_of(a: list[frozenset[int]], b: list[frozenset[int]]) -> list[frozenset[int]]:
    return [left ^ right for left, right in zip(a, b, strict=True)]


leaf_256 = _make_leaf(4)
leaf_128 = _make_leaf(2)


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
def _clmul64(a: np.uint64, b: np.uint64) -> tuple[np.uint64, np.uint64]:
    half, low = np.uint64(32), np.uint64(0xFFFFFFFF)
    bottom = _clmul32(a & low, b & low)
    top = _clmul32(a >> half, b >> half)
    middle = _clmul32((a ^ (a >> half)) & low, (b ^ (b >> half)) & low) ^ bottom ^ top
    return bottom ^ (middle << half), top ^ (middle >> half)


@kernel
def clmul64_portable(a: np.uint64, b: np.uint64) -> tuple[np.uint64, np.uint64]:
    """Return what ``clmul64`` does, by integer products (Karatsuba over 32-bit halves)."""
    return _clmul64(a, b)


@inline_kernel
def leaf_portable(work: Words, s: int, x: int, y: int, n: int) -> None:
    """Do what the vector leaves do, for any ``n``."""
    for row in range(n):
        low, high = np.uint64(0), np.uint64(0)
        for column in range(n):
            product = _clmul64(work[s + n + row - column], work[x + column])
            low ^= product[0]
            high ^= product[1]
        work[y + 2 * row] = low
        work[y + 2 * row + 1] = high
