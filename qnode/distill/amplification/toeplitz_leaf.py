"""The innermost step of a Toeplitz product: small blocks, one in each 128-bit lane of a vector, side by side.

As many blocks of equal size as a vector has lanes are multiplied at once, so that every multiplication of a
wide instruction is of use and nothing is ever shuffled between lanes. Their words lie interleaved: pair i of
the words of block l is at ``2 (i lanes + l)``, and row r of its result, 128 bits, at ``2 (r lanes + l)``.
"""

from typing import Any, Final

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types

from qnode.distill.bits.array import Words
from qnode.distill.bits.clmul import (
    PORTABLE,
    intrinsic,
    multiply_lanes,
    multiply_portable,
    vector_of,
    vector_widths,
)
from qnode.kernels import inner_kernel

LEAF_SIZES: Final = (8, 16, 24)  # words; the leaves of a processor without the instruction take any number
WIDTH: Final = vector_widths()[
    0
]  # words that this processor multiplies at once; PORTABLE: no such instruction
_ADD_WIDTH: Final = max(4, WIDTH)

_I32: Final = ir.IntType(32)
_I64: Final = ir.IntType(64)


def _pointer(context: Any, builder: ir.IRBuilder, array_type: Any, array: ir.Value) -> ir.Value:
    return context.make_array(array_type)(context, builder, array).data


def _vector_at(builder: ir.IRBuilder, data: ir.Value, index: ir.Value, width: int) -> ir.Value:
    return builder.bitcast(builder.gep(data, [index]), vector_of(width).as_pointer())


def _load(builder: ir.IRBuilder, data: ir.Value, index: ir.Value, width: int) -> ir.Value:
    loaded = builder.load(_vector_at(builder, data, index, width))
    loaded.align = 8  # words, not vectors, are aligned
    return loaded


def _store(builder: ir.IRBuilder, value: ir.Value, data: ir.Value, index: ir.Value, width: int) -> None:
    builder.store(value, _vector_at(builder, data, index, width)).align = 8


@intrinsic
def add_words(typing_context: Any, work: Any, target: Any, a: Any, b: Any, n: Any) -> Any:
    """Set work[target + i] to work[a + i] ^ work[b + i] for i < n, a multiple of eight.

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


@intrinsic
def add_to_both(typing_context: Any, work: Any, y: Any, shared: Any, n: Any) -> Any:
    """Add the ``n`` words at ``shared``, a multiple of eight, to those at ``y`` and to those at ``y + n``."""
    signature = types.void(work, types.intp, types.intp, types.intp)

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        data = _pointer(context, builder, signature.args[0], arguments[0])
        y, shared, n = arguments[1:]
        step = ir.Constant(_I64, _ADD_WIDTH)
        with cgutils.for_range(builder, builder.udiv(n, step)) as loop:
            done = builder.mul(loop.index, step)
            common = _load(builder, data, builder.add(shared, done), _ADD_WIDTH)
            for place in (builder.add(y, done), builder.add(builder.add(y, n), done)):
                total = builder.xor(_load(builder, data, place, _ADD_WIDTH), common)
                _store(builder, total, data, place, _ADD_WIDTH)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def copy_pairs(typing_context: Any, work: Any, target: Any, a: Any, n: Any, step: Any, a_step: Any) -> Any:
    """Copy ``n`` pairs of words from ``a`` on, ``a_step`` words apart, to ``target``, ``step`` apart."""
    signature = types.void(work, *[types.intp] * 5)

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        data = _pointer(context, builder, signature.args[0], arguments[0])
        target, a, n, step, a_step = arguments[1:]
        with cgutils.for_range(builder, n) as loop:
            pair = _load(builder, data, builder.add(a, builder.mul(loop.index, a_step)), 2)
            _store(builder, pair, data, builder.add(target, builder.mul(loop.index, step)), 2)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def add_pairs(
    typing_context: Any, work: Any, target: Any, a: Any, b: Any, n: Any, step: Any, from_step: Any
) -> Any:
    """Do what ``copy_pairs`` does with the sums of the pairs from ``a`` and from ``b`` on."""
    signature = types.void(work, *[types.intp] * 6)

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        data = _pointer(context, builder, signature.args[0], arguments[0])
        target, a, b, n, step, from_step = arguments[1:]
        with cgutils.for_range(builder, n) as loop:
            done = builder.mul(loop.index, from_step)
            left = _load(builder, data, builder.add(a, done), 2)
            right = _load(builder, data, builder.add(b, done), 2)
            place = builder.add(target, builder.mul(loop.index, step))
            _store(builder, builder.xor(left, right), data, place, 2)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def leaf_vector(typing_context: Any, work: Any, s: Any, x: Any, y: Any, n: Any) -> Any:
    """Multiply a block of ``n`` words, n one of LEAF_SIZES, in each lane of vectors of WIDTH words.

    In each lane it sets row r < n at y to the sum over j < n of the 128-bit products of word n + r - j at s
    and word j at x. Emits nothing, and must not be called, where WIDTH is PORTABLE.
    """
    signature = types.void(work, types.intp, types.intp, types.intp, types.intp)

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        if WIDTH != PORTABLE:
            data = _pointer(context, builder, signature.args[0], arguments[0])
            s, x, y, n = arguments[1:]

            def at(base: ir.Value, place: int) -> ir.Value:
                return builder.add(base, ir.Constant(_I64, place * WIDTH))

            for size in LEAF_SIZES:
                with builder.if_then(builder.icmp_signed("==", n, ir.Constant(_I64, size))):
                    window = [_load(builder, data, at(s, pair), WIDTH) for pair in range(size)]
                    factors = [_load(builder, data, at(x, pair), WIDTH) for pair in range(size // 2)]
                    for row, product in enumerate(_block(builder, window, factors)):
                        _store(builder, product, data, at(y, row), WIDTH)
        return context.get_dummy_value()

    return signature, codegen


def _block(builder: ir.IRBuilder, window: list[ir.Value], factors: list[ir.Value]) -> list[ir.Value]:
    """Emit the rows of a block whose window (twice the block's words) and factors come as pairs of words.

    A block is split in two halves (three products instead of four), or where it does not halve into pairs
    in three thirds (six instead of nine: Fan and Hasan, IEEE Trans. Computers 56, 2007).
    """
    pairs = len(factors)
    if pairs == 1:
        return _pair(builder, window, factors[0])
    parts = 2 if pairs % 2 == 0 else 3
    size = pairs // parts
    # Part i of the window begins size pairs after part i - 1; a sub-block sees two parts.
    part = [window[i * size : (i + 2) * size] for i in range(2 * parts - 1)]
    x = [factors[i * size : (i + 1) * size] for i in range(parts)]

    def product(of_window: list[ir.Value], of_factors: list[ir.Value]) -> list[ir.Value]:
        return _block(builder, of_window, of_factors)

    def sum_of(*terms: list[ir.Value]) -> list[ir.Value]:
        total = terms[0]
        for term in terms[1:]:
            total = [builder.xor(left, right) for left, right in zip(total, term, strict=True)]
        return total

    if parts == 2:
        shared = product(part[1], sum_of(x[0], x[1]))
        top = product(sum_of(part[0], part[1]), x[1])
        bottom = product(sum_of(part[1], part[2]), x[0])
        return sum_of(shared, top) + sum_of(shared, bottom)
    p0 = product(sum_of(part[0], part[1], part[2]), x[2])
    p1 = product(sum_of(part[1], part[2], part[3]), x[1])
    p2 = product(sum_of(part[2], part[3], part[4]), x[0])
    p3 = product(part[1], sum_of(x[1], x[2]))
    p4 = product(part[2], sum_of(x[0], x[2]))
    p5 = product(part[3], sum_of(x[0], x[1]))
    return sum_of(p0, p3, p4) + sum_of(p1, p3, p5) + sum_of(p2, p4, p5)


def _pair(builder: ir.IRBuilder, window: list[ir.Value], factor: ir.Value) -> list[ir.Value]:
    """Emit the two rows of a block of two words: w2 x0 + w1 x1 and w3 x0 + w2 x1, by three products."""
    width = factor.type.count
    first, second = window
    crossed = ir.Constant(
        ir.VectorType(_I32, width),
        [word for lane in range(width // 2) for word in (2 * lane + 1, width + 2 * lane)],
    )
    swapped = ir.Constant(ir.VectorType(_I32, width), [word ^ 1 for word in range(width)])
    sums = builder.xor(builder.shuffle_vector(first, second, crossed), second)  # w1 + w2, w2 + w3
    both = builder.xor(builder.shuffle_vector(factor, factor, swapped), factor)
    shared = multiply_lanes(builder, second, 0, both, 0)
    return [
        builder.xor(shared, multiply_lanes(builder, sums, 0, factor, 1)),
        builder.xor(shared, multiply_lanes(builder, sums, 1, factor, 0)),
    ]


@inner_kernel
def leaf_portable(work: Words, s: int, x: int, y: int, n: int) -> None:
    """Do what the vector leaves do, for one lane and any ``n``."""
    for row in range(n):
        low, high = np.uint64(0), np.uint64(0)
        for column in range(n):
            product = multiply_portable(work[s + n + row - column], work[x + column])
            low ^= product[0]
            high ^= product[1]
        work[y + 2 * row] = low
        work[y + 2 * row + 1] = high
