"""The steps of a product by transforms, each a loop of vector code.

A tile is 64 elements of GF(2^32) as four vectors; octet i of vector p is the coefficient p of element i. All
places in arrays are counted in words.
"""

from typing import Any, Final

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types

from qnode.distill.amplification import octets
from qnode.distill.amplification.field import BASIS, BITS, POINTS, evaluation, inverse, multiply
from qnode.distill.amplification.octets import (
    OCTETS,
    VECTOR,
    VECTOR_WORDS,
    load,
    number,
    pointer,
    shuffle,
    store,
)
from qnode.distill.bits.array import Words
from qnode.distill.bits.clmul import intrinsic

PLANES: Final = BITS // 8
"""Vectors of a tile."""
TILE_WORDS: Final = PLANES * VECTOR_WORDS
_ROW_PLANES: Final = 16  # vectors of 64 values of 128 bits
_I8: Final = ir.IntType(8)
_LANE_BITS: Final = OCTETS.bit_length() - 1

_Vectors = list[ir.Value]
_Grid = list[list[ir.Value]]


def _matrix(c: int) -> list[int]:
    """Return the 4 x 4 octets of the product with c, row by row."""
    columns = [multiply(c, 1 << 8 * column) for column in range(PLANES)]
    return [columns[column] >> 8 * row & 0xFF for row in range(PLANES) for column in range(PLANES)]


def factor_table() -> Words:
    """Return, for each octet of an index and each of its values, the matrix of ``combination``: two words."""
    bits = np.array([_matrix(element) for element in BASIS], np.uint8).reshape(PLANES, 8, 1, -1)
    present = np.arange(256)[:, None] >> np.arange(8) & 1
    chosen = present.T[None, :, :, None].astype(np.uint8) * bits
    table: Words = np.bitwise_xor.reduce(chosen, axis=1).reshape(-1).view(np.uint64)
    return table


def lane_table() -> Words:
    """Return what the lanes add to the matrix of a factor at each of the last six levels.

    Lane l adds ``combination(l << level + 1)``, an element of GF(2^16): four vectors a level, row by row.
    """
    of_octets = factor_table().view(np.uint8).reshape(PLANES, 256, -1)
    index = np.arange(OCTETS) << np.arange(1, _LANE_BITS + 1)[:, None]
    matrices = of_octets[0, index & 0xFF] ^ of_octets[1, index >> 8]
    table: Words = matrices[..., [0, 1, 4, 5]].swapaxes(1, 2).copy().reshape(-1).view(np.uint64)
    return table


def conversion_tables() -> tuple[Words, Words]:
    """Return the matrices of ``evaluate`` and of ``interpolate``."""
    to_values = evaluation()
    from_values = inverse(to_values)
    blocks = to_values[:, :64].reshape(len(POINTS) * PLANES, 8, 8, 8).swapaxes(1, 2)
    back = from_values.reshape(_ROW_PLANES, 8, len(POINTS), PLANES, 8).transpose(2, 0, 3, 1, 4)
    return octets.operands(blocks).reshape(-1), octets.operands(back).reshape(-1)


def _factor(builder: ir.IRBuilder, table: ir.Value, index: ir.Value, planes: int) -> ir.Value:
    """Emit the matrix of ``combination(index)``, an element of 8 ``planes`` bits, as 16 octets."""
    total = ir.Constant(ir.VectorType(_I8, 16), None)
    for place in range(planes):
        octet = builder.and_(builder.lshr(index, number(8 * place)), number(255))
        row = builder.mul(builder.add(octet, number(256 * place)), number(2))
        total = builder.xor(total, load(builder, table, row, 16))
    return total


def _spread(builder: ir.IRBuilder, factor: ir.Value, planes: int, lanes: _Vectors | None) -> _Grid:
    """Emit the matrix of a factor as vectors; ``lanes`` are what the lanes add."""
    grid = []
    for row in range(planes):
        grid.append(
            [shuffle(builder, factor, factor, [4 * row + column] * OCTETS) for column in range(planes)]
        )
        if lanes is not None:
            for column in (row // 2 * 2, row // 2 * 2 + 1):
                grid[row][column] = builder.xor(grid[row][column], lanes[row % 2 * 2 + column % 2])
    return grid


def _add_product(builder: ir.IRBuilder, target: _Vectors, factor: _Grid, source: _Vectors) -> _Vectors:
    result = []
    for total, row in zip(target, factor, strict=True):
        for octet, vector in zip(row, source, strict=True):
            total = builder.xor(total, octets.multiply(builder, vector, octet))
        result.append(total)
    return result


def _sum(builder: ir.IRBuilder, a: _Vectors, b: _Vectors) -> _Vectors:
    return [builder.xor(left, right) for left, right in zip(a, b, strict=True)]


def _butterflies(planes: int, with_lanes: bool, inverse: bool) -> Any:
    """Return the step of two levels: elements of 8 ``planes`` bits as factors, with a part of the lane or
    not.

    On the quarters a, b, c, d of a block, ``stride`` apart, it does b += f a, a += b with the factor 2
    ``block`` for (a, c) and (b, d), then with 4 ``block`` + 2 ``turned`` for (a, b), and + 2 (1 - ``turned``)
    for (c, d). The inverse does all in the opposite order.
    """

    @intrinsic
    def butterflies(
        typing_context: Any,
        work: Any,
        factors: Any,
        lanes: Any,
        first: Any,
        stride: Any,
        count: Any,
        block: Any,
        turned: Any,
        level: Any,
    ) -> Any:
        signature = types.void(work, factors, lanes, *[types.intp] * 6)

        def codegen(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
            data, table, of_lanes = (
                pointer(context, builder, kind, array)
                for kind, array in zip(signature.args[:3], arguments[:3], strict=True)
            )
            first, stride, count, block, turned, level = arguments[3:]
            two = number(2)

            def grid(index: ir.Value, deeper: int) -> _Grid:
                factor = _factor(builder, table, index, planes)
                parts = None
                if with_lanes:
                    place = builder.mul(builder.add(level, number(deeper)), number(4 * VECTOR_WORDS))
                    parts = [
                        load(builder, of_lanes, builder.add(place, number(part * VECTOR_WORDS)))
                        for part in range(4)
                    ]
                return _spread(builder, factor, planes, parts)

            index = builder.mul(block, number(4))
            upper = grid(builder.mul(block, two), 0)
            near = grid(builder.add(index, builder.mul(turned, two)), 1)
            far = grid(builder.add(index, builder.sub(two, builder.mul(turned, two))), 1)
            pairs = [(0, 2, upper), (1, 3, upper), (0, 1, near), (2, 3, far)]
            with cgutils.for_range(builder, count) as loop:
                done = builder.mul(loop.index, number(planes * VECTOR_WORDS))
                start = builder.add(first, done)
                at = [builder.add(start, builder.mul(stride, number(quarter))) for quarter in range(4)]
                at = [
                    [builder.add(one, number(plane * VECTOR_WORDS)) for plane in range(planes)] for one in at
                ]
                values = [[load(builder, data, place) for place in one] for one in at]
                for a, b, factor in pairs[::-1] if inverse else pairs:
                    if inverse:
                        values[a] = _sum(builder, values[a], values[b])
                        values[b] = _add_product(builder, values[b], factor, values[a])
                    else:
                        values[b] = _add_product(builder, values[b], factor, values[a])
                        values[a] = _sum(builder, values[a], values[b])
                for places, vectors in zip(at, values, strict=True):
                    for place, vector in zip(places, vectors, strict=True):
                        store(builder, vector, data, place)
            return context.get_dummy_value()

        return signature, codegen

    return butterflies


forward_1, forward_2, forward_4 = (_butterflies(planes, False, False) for planes in (1, 2, 4))
inverse_1, inverse_2, inverse_4 = (_butterflies(planes, False, True) for planes in (1, 2, 4))
forward_lanes_2, forward_lanes_4 = (_butterflies(planes, True, False) for planes in (2, 4))
inverse_lanes_2, inverse_lanes_4 = (_butterflies(planes, True, True) for planes in (2, 4))


@intrinsic
def add_product(
    typing_context: Any, work: Any, factors: Any, target: Any, source: Any, words: Any, index: Any
) -> Any:
    """Add ``words`` words from ``source`` on, times ``combination(index)`` in GF(2^8), to ``target``."""
    signature = types.void(work, factors, *[types.intp] * 4)

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        data, table = (
            pointer(context, builder, kind, array)
            for kind, array in zip(signature.args[:2], arguments[:2], strict=True)
        )
        target, source, words, index = arguments[2:]
        factor = _spread(builder, _factor(builder, table, index, 1), 1, None)
        with cgutils.for_range(builder, builder.udiv(words, number(VECTOR_WORDS))) as loop:
            done = builder.mul(loop.index, number(VECTOR_WORDS))
            place = builder.add(target, done)
            term = load(builder, data, builder.add(source, done))
            total = _add_product(builder, [load(builder, data, place)], factor, [term])
            store(builder, total[0], data, place)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def add_words(typing_context: Any, work: Any, target: Any, source: Any, words: Any) -> Any:
    """Add ``words`` words from ``source`` on to those at ``target``; they do not overlap."""
    signature = types.void(work, *[types.intp] * 3)

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        data = pointer(context, builder, signature.args[0], arguments[0])
        target, source, words = arguments[1:]
        whole = builder.udiv(words, number(VECTOR_WORDS))
        with cgutils.for_range(builder, whole) as loop:
            done = builder.mul(loop.index, number(VECTOR_WORDS))
            place = builder.add(target, done)
            term = load(builder, data, builder.add(source, done))
            store(builder, builder.xor(load(builder, data, place), term), data, place)
        done = builder.mul(whole, number(VECTOR_WORDS))
        with cgutils.for_range(builder, builder.sub(words, done)) as loop:
            index = builder.add(done, loop.index)
            place = builder.gep(data, [builder.add(target, index)])
            term = builder.load(builder.gep(data, [builder.add(source, index)]))
            builder.store(builder.xor(builder.load(place), term), place)
        return context.get_dummy_value()

    return signature, codegen


def _exchanged(builder: ir.IRBuilder, vectors: _Vectors, unit: int) -> _Vectors:
    """Exchange the three bits of a vector's number with the three of a lane's from ``unit`` on."""
    vectors = list(vectors)
    lanes = range(OCTETS)
    for bit in (1, 2, 4):
        shift = bit * unit
        low = [OCTETS + lane - shift if lane & shift else lane for lane in lanes]
        high = [OCTETS + lane if lane & shift else lane + shift for lane in lanes]
        for i in range(8):
            if not i & bit:
                a, b = vectors[i], vectors[i + bit]
                vectors[i], vectors[i + bit] = (shuffle(builder, a, b, places) for places in (low, high))
    return vectors


def _exchange(unit: int) -> Any:
    @intrinsic
    def exchange(typing_context: Any, work: Any, first: Any, stride: Any) -> Any:
        signature = types.void(work, types.intp, types.intp)

        def codegen(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
            data = pointer(context, builder, signature.args[0], arguments[0])
            at = [builder.add(arguments[1], builder.mul(arguments[2], number(i))) for i in range(8)]
            vectors = [load(builder, data, place) for place in at]
            for place, vector in zip(at, _exchanged(builder, vectors, unit), strict=True):
                store(builder, vector, data, place)
            return context.get_dummy_value()

        return signature, codegen

    return exchange


exchange_words, exchange_octets = _exchange(8), _exchange(1)


def _separate(to_words: bool) -> Any:
    """Return the step that makes eight vectors of octets (vector i: octet i of 64 words) of 64 words, or
    back."""

    @intrinsic
    def separate(typing_context: Any, work: Any, first: Any) -> Any:
        signature = types.void(work, types.intp)

        def codegen(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
            data = pointer(context, builder, signature.args[0], arguments[0])
            at = [builder.add(arguments[1], number(i * VECTOR_WORDS)) for i in range(8)]
            vectors = [load(builder, data, place) for place in at]
            # Lane 8 i + j and lane 8 j + i change places.
            turned = [lane % 8 * 8 + lane // 8 for lane in range(OCTETS)]
            if to_words:
                vectors = [shuffle(builder, one, one, turned) for one in vectors]
            vectors = _exchanged(builder, vectors, 1)
            if not to_words:
                vectors = [shuffle(builder, one, one, turned) for one in vectors]
            for place, vector in zip(at, vectors, strict=True):
                store(builder, vector, data, place)
            return context.get_dummy_value()

        return signature, codegen

    return separate


words_to_octets, octets_to_words = _separate(False), _separate(True)


@intrinsic
def evaluate(typing_context: Any, values: Any, words: Any, table: Any, tiles: Any, copy: Any) -> Any:
    """Set ``tiles`` tiles to the values of as many times 64 polynomials, given by octets, at a point."""
    signature = types.void(values, words, table, types.intp, types.intp)

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        out, data, matrices = (
            pointer(context, builder, kind, array)
            for kind, array in zip(signature.args[:3], arguments[:3], strict=True)
        )
        tiles, copy = arguments[3:]
        start = builder.mul(copy, number(PLANES * 8))
        with cgutils.for_range(builder, tiles) as loop:
            source = builder.mul(loop.index, number(8 * VECTOR_WORDS))
            target = builder.mul(loop.index, number(TILE_WORDS))
            polynomial = [
                load(builder, data, builder.add(source, number(i * VECTOR_WORDS))) for i in range(8)
            ]
            for plane in range(PLANES):
                total = ir.Constant(VECTOR, None)
                for i, vector in enumerate(polynomial):
                    matrix = octets.load_matrix(builder, matrices, builder.add(start, number(plane * 8 + i)))
                    total = builder.xor(total, octets.apply(builder, vector, matrix))
                store(builder, total, out, builder.add(target, number(plane * VECTOR_WORDS)))
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def interpolate(typing_context: Any, rows: Any, values: Any, table: Any, tiles: Any, copy: Any) -> Any:
    """Add to ``rows`` what ``tiles`` tiles of values at a point make of the 128 coefficients of each."""
    signature = types.void(rows, values, table, types.intp, types.intp)

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        out, data, matrices = (
            pointer(context, builder, kind, array)
            for kind, array in zip(signature.args[:3], arguments[:3], strict=True)
        )
        tiles, copy = arguments[3:]
        start = builder.mul(copy, number(_ROW_PLANES * PLANES))
        half = builder.mul(tiles, number(8 * VECTOR_WORDS))
        with cgutils.for_range(builder, tiles) as loop:
            source = builder.mul(loop.index, number(TILE_WORDS))
            target = builder.mul(loop.index, number(8 * VECTOR_WORDS))
            value = [
                load(builder, data, builder.add(source, number(i * VECTOR_WORDS))) for i in range(PLANES)
            ]
            for plane in range(_ROW_PLANES):
                side = builder.add(target, half) if plane >= 8 else target
                place = builder.add(side, number(plane % 8 * VECTOR_WORDS))
                total = load(builder, out, place)
                for i, vector in enumerate(value):
                    matrix = octets.load_matrix(
                        builder, matrices, builder.add(start, number(plane * PLANES + i))
                    )
                    total = builder.xor(total, octets.apply(builder, vector, matrix))
                store(builder, total, out, place)
        return context.get_dummy_value()

    return signature, codegen


def _product(builder: ir.IRBuilder, a: _Vectors, b: _Vectors) -> _Vectors:
    """Emit the products of elements of a field of the tower, by three in the field below."""
    if len(a) == 1:
        return [octets.multiply(builder, a[0], b[0])]
    half = len(a) // 2
    low = _product(builder, a[:half], b[:half])
    high = _product(builder, a[half:], b[half:])
    middle = _product(builder, _sum(builder, a[:half], a[half:]), _sum(builder, b[:half], b[half:]))
    matrix = _matrix(BASIS[8 * half - 1])
    factor = [
        [ir.Constant(VECTOR, [matrix[4 * row + column]] * OCTETS) for column in range(half)]
        for row in range(half)
    ]
    return _add_product(builder, low, factor, high) + _sum(builder, middle, low)


@intrinsic
def multiply_values(typing_context: Any, values: Any, others: Any, tiles: Any) -> Any:
    """Multiply ``tiles`` tiles of ``values`` by those of ``others``."""
    signature = types.void(values, others, types.intp)

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        a, b = (
            pointer(context, builder, kind, array)
            for kind, array in zip(signature.args[:2], arguments[:2], strict=True)
        )
        with cgutils.for_range(builder, arguments[2]) as loop:
            first = builder.mul(loop.index, number(TILE_WORDS))
            at = [builder.add(first, number(plane * VECTOR_WORDS)) for plane in range(PLANES)]
            left, right = ([load(builder, data, place) for place in at] for data in (a, b))
            for place, vector in zip(at, _product(builder, left, right), strict=True):
                store(builder, vector, a, place)
        return context.get_dummy_value()

    return signature, codegen
