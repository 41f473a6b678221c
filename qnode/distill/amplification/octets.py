"""Arithmetic on vectors of 64 octets inside kernels: elements of GF(2^8), and matrices over GF(2) times
octets.

Processors with GFNI have an instruction for each. Others take vectors as wide as they have and a step for
each bit, which gives the same octets. No step depends on the values (they are secret).
"""

from typing import Any, Final

import numpy as np
from llvmlite import ir
from numba.core import cgutils

from qnode.distill.amplification.field import Bit
from qnode.distill.bits.array import Words
from qnode.kernel_cache import target_features

OCTETS: Final = 64
"""Octets of a vector."""
VECTOR_WORDS: Final = OCTETS // 8
_FEATURES: Final = {64: ("avx512bw", "gfni"), 32: ("avx2", "gfni"), 16: ("sse2", "gfni")}
_SUFFIX: Final = {64: "512", 32: "256", 16: "128"}

_I8: Final = ir.IntType(8)
_I32: Final = ir.IntType(32)
_I64: Final = ir.IntType(64)
VECTOR: Final = ir.VectorType(_I8, OCTETS)


def instruction_octets() -> int:
    """Return how many octets the processor's instruction for GF(2^8) takes at once; 0 without one."""
    present = target_features().split(",")
    fitting = (n for n, wanted in _FEATURES.items() if all(f"+{feature}" in present for feature in wanted))
    return next(fitting, 0)


_AT_ONCE: Final = instruction_octets()


def pointer(context: Any, builder: ir.IRBuilder, array_type: Any, array: ir.Value) -> ir.Value:
    """Return the address of the first element of an array."""
    return context.make_array(array_type)(context, builder, array).data


def number(value: int) -> ir.Constant:
    """Return a constant index."""
    return ir.Constant(_I64, value)


def load(builder: ir.IRBuilder, data: ir.Value, word: ir.Value, octets: int = OCTETS) -> ir.Value:
    """Emit the load of ``octets`` octets from a word on."""
    place = builder.bitcast(builder.gep(data, [word]), ir.VectorType(_I8, octets).as_pointer())
    return builder.load(place, align=8)


def store(builder: ir.IRBuilder, value: ir.Value, data: ir.Value, word: ir.Value) -> None:
    """Emit the store of a vector from a word on."""
    builder.store(value, builder.bitcast(builder.gep(data, [word]), VECTOR.as_pointer()), align=8)


def shuffle(builder: ir.IRBuilder, a: ir.Value, b: ir.Value, places: list[int]) -> ir.Value:
    """Emit the vector of the octets at ``places`` of ``a`` followed by ``b``."""
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(_I32, len(places)), places))


def load_matrix(builder: ir.IRBuilder, data: ir.Value, word: ir.Value) -> ir.Value:
    """Emit the load of one word of ``operands`` into every word of a vector."""
    words = ir.VectorType(_I64, VECTOR_WORDS)
    first = builder.insert_element(
        ir.Constant(words, ir.Undefined), builder.load(builder.gep(data, [word])), ir.Constant(_I32, 0)
    )
    every = builder.shuffle_vector(first, first, ir.Constant(ir.VectorType(_I32, VECTOR_WORDS), None))
    return builder.bitcast(every, VECTOR)


def operands(matrices: Bit) -> Words:
    """Return 8 x 8 matrices over GF(2), of shape ``(..., 8, 8)``, as ``apply`` takes them, one a word."""
    if _AT_ONCE:
        return np.packbits(matrices[..., ::-1, :], axis=-1, bitorder="little")[..., 0].copy().view(np.uint64)
    columns = np.packbits(matrices, axis=-2, bitorder="little")[..., 0, :]
    return np.ascontiguousarray(columns).view(np.uint64)


def apply(builder: ir.IRBuilder, octets: ir.Value, matrix: ir.Value) -> ir.Value:
    """Emit the product of a matrix, one word of ``operands`` in every word of the vector, and each octet."""
    if _AT_ONCE:
        return _called(builder, "vgf2p8affineqb", octets, matrix, ir.Constant(_I8, 0))
    total = ir.Constant(VECTOR, None)
    for bit in range(8):
        column = shuffle(builder, matrix, matrix, [8 * (place // 8) + bit for place in range(OCTETS)])
        total = builder.xor(total, builder.and_(_selected(builder, octets, bit), column))
    return total


def multiply(builder: ir.IRBuilder, a: ir.Value, b: ir.Value) -> ir.Value:
    """Emit the products in GF(2^8) of the octets of two vectors."""
    if _AT_ONCE:
        return _called(builder, "vgf2p8mulb", a, b)
    name = "multiply_octets"
    function = builder.module.globals.get(name)
    if function is None:
        function = ir.Function(builder.module, ir.FunctionType(VECTOR, [VECTOR, VECTOR]), name)
        function.linkage = "internal"
        function.attributes.add("noinline")
        _bit_by_bit(function)
    return builder.call(function, [a, b])


def _bit_by_bit(function: ir.Function) -> None:
    builder = ir.IRBuilder(function.append_basic_block())
    a, b = function.args
    total = ir.Constant(VECTOR, None)
    for bit in range(8):
        total = builder.xor(total, builder.and_(_selected(builder, b, bit), a))
        carried = builder.and_(_selected(builder, a, 7), ir.Constant(VECTOR, [0x1B] * OCTETS))
        a = builder.xor(builder.add(a, a), carried)
    builder.ret(total)


def _selected(builder: ir.IRBuilder, octets: ir.Value, bit: int) -> ir.Value:
    """Emit octets of ones where ``octets`` have ``bit``, and of zeros elsewhere."""
    only = builder.and_(octets, ir.Constant(VECTOR, [1 << bit] * OCTETS))
    return builder.sext(builder.icmp_unsigned("!=", only, ir.Constant(VECTOR, None)), VECTOR)


def _called(builder: ir.IRBuilder, name: str, a: ir.Value, b: ir.Value, *more: ir.Value) -> ir.Value:
    """Emit the instruction for as many parts of the vectors as it takes."""
    part = ir.VectorType(_I8, _AT_ONCE)
    function = cgutils.get_or_insert_function(  # type: ignore[no-untyped-call]
        builder.module,
        ir.FunctionType(part, [part, part, *(one.type for one in more)]),
        f"llvm.x86.{name}.{_SUFFIX[_AT_ONCE]}",
    )
    parts = []
    for first in range(0, OCTETS, _AT_ONCE):
        places = list(range(first, first + _AT_ONCE))
        parts.append(builder.call(function, [shuffle(builder, one, one, places) for one in (a, b)] + [*more]))
    while len(parts) > 1:
        joined = list(range(2 * parts[0].type.count))
        parts = [shuffle(builder, *pair, joined) for pair in zip(parts[::2], parts[1::2], strict=True)]
    return parts[0]
