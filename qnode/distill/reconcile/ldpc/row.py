"""The inner step of the decoder: one layer, of as many checks as the lifting, as vector code.

Plain loops over int8 are promoted to wider integers by the compiler and run some eight times slower, so the
step is written in the compiler's own vector language. It uses generic operations alone: every processor
computes the same bits at every width; the width only decides the speed.

Bits and checks lie in lanes, side by side along the lifting. The messages of a check to its bits are not
kept one by one: but for the sign they are all the least reliability that came in, except the one to the bit
where it came from, which is the second least. A layer therefore keeps these two, and two masks an edge.
"""

from typing import Any, Final

from llvmlite import ir
from numba.core import cgutils, types

from qnode.distill.bits.clmul import intrinsic
from qnode.kernel_cache import target_features

MIRROR: Final = 64  # first lanes of a column that are repeated behind it, so that no load wraps around
KEPT_PER_CHECK: Final = 2  # octets: least and second least
KEPT_PER_EDGE_DIVISOR: Final = 4  # an edge keeps lifting / 4 octets: two masks
SCRATCH_PER_CHECK: Final = 2

_I1: Final = ir.IntType(1)
_I8: Final = ir.IntType(8)
_I16: Final = ir.IntType(16)
_I32: Final = ir.IntType(32)
_I64: Final = ir.IntType(64)


def _best_width() -> int:
    features = target_features().split(",")
    if "+avx512bw" in features:
        return 64
    return 32 if "+avx2" in features else 16


WIDTH: Final = _best_width()  # lanes that the target of the code generator computes at once


def _number(value: int) -> ir.Constant:
    return ir.Constant(_I64, value)


def _data(context: Any, builder: ir.IRBuilder, array_type: Any, array: ir.Value) -> ir.Value:
    return context.make_array(array_type)(context, builder, array).data


class _Vectors:
    """Operations on vectors of ``width`` int8 lanes at one place of the code."""

    def __init__(self, builder: ir.IRBuilder, width: int) -> None:
        self.builder = builder
        self.width = width
        self.vector = ir.VectorType(_I8, width)
        self.wide = ir.VectorType(_I16, width)
        self.bits = ir.IntType(width)

    def constant(self, value: int) -> ir.Constant:
        return ir.Constant(self.vector, [value] * self.width)

    def variable(self) -> ir.Value:
        return cgutils.alloca_once(self.builder, self.vector)  # type: ignore[no-untyped-call]

    def _pointer(self, data: ir.Value, index: ir.Value, pointee: ir.Type) -> ir.Value:
        return self.builder.bitcast(self.builder.gep(data, [index]), pointee.as_pointer())

    def load(self, data: ir.Value, index: ir.Value) -> ir.Value:
        loaded = self.builder.load(self._pointer(data, index, self.vector))
        loaded.align = 1
        return loaded

    def store(self, value: ir.Value, data: ir.Value, index: ir.Value) -> None:
        self.builder.store(value, self._pointer(data, index, self.vector)).align = 1

    def load_mask(self, data: ir.Value, index: ir.Value) -> ir.Value:
        loaded = self.builder.load(self._pointer(data, index, self.bits))
        loaded.align = 1
        return self.builder.bitcast(loaded, ir.VectorType(_I1, self.width))

    def store_mask(self, mask: ir.Value, data: ir.Value, index: ir.Value) -> None:
        bits = self.builder.bitcast(mask, self.bits)
        self.builder.store(bits, self._pointer(data, index, self.bits)).align = 1

    def word(self, mask: ir.Value) -> ir.Value:
        """Emit ``mask`` as a 64-bit word, lane 0 lowest."""
        bits = self.builder.bitcast(mask, self.bits)
        return bits if self.width == 64 else self.builder.zext(bits, _I64)

    def _call(self, name: str, arguments: list[ir.Value]) -> ir.Value:
        signature = ir.FunctionType(self.vector, [argument.type for argument in arguments])
        function = cgutils.get_or_insert_function(  # type: ignore[no-untyped-call]
            self.builder.module, signature, f"llvm.{name}.v{self.width}i8"
        )
        return self.builder.call(function, arguments)

    def saturating_sum(self, a: ir.Value, b: ir.Value) -> ir.Value:
        return self._call("sadd.sat", [a, b])

    def saturating_difference(self, a: ir.Value, b: ir.Value) -> ir.Value:
        return self._call("ssub.sat", [a, b])

    def lesser(self, a: ir.Value, b: ir.Value) -> ir.Value:
        return self._call("umin", [a, b])

    def greater(self, a: ir.Value, b: ir.Value) -> ir.Value:
        return self._call("umax", [a, b])

    def magnitude(self, value: ir.Value) -> ir.Value:
        return self._call("abs", [value, ir.Constant(_I1, 0)])

    def is_negative(self, value: ir.Value) -> ir.Value:
        return self.builder.icmp_signed("<", value, self.constant(0))

    def everywhere(self, value: ir.Value, vector: ir.VectorType) -> ir.Value:
        """Emit a 64-bit ``value`` in every lane of a ``vector``."""
        builder = self.builder
        nothing = ir.Constant(vector, ir.Undefined)
        single = builder.insert_element(nothing, builder.trunc(value, vector.element), ir.Constant(_I32, 0))
        order = ir.Constant(ir.VectorType(_I32, self.width), [0] * self.width)
        return builder.shuffle_vector(single, nothing, order)

    def message(self, reliability: ir.Value, factor: ir.Value, bound: ir.Value) -> ir.Value:
        """Emit reliability * factor / 64, rounded, but ``bound`` at most."""
        builder = self.builder
        product = builder.mul(builder.zext(reliability, self.wide), factor)
        product = builder.add(product, ir.Constant(self.wide, [32] * self.width))
        product = builder.lshr(product, ir.Constant(self.wide, [6] * self.width))
        return self.lesser(builder.trunc(product, self.vector), bound)


class _Layer:
    """Emits one layer. Arrays are octets but for ``places`` and ``turns`` (int32, by edge).

    ``sums``: reliabilities of all bits by column, each column turned as its layer before left it; ``kept``,
    ``masks``: what is kept of the messages, by check and by edge; ``signs``: the syndrome, by check, the
    top bit set where a check is odd; ``scratch``: reliabilities that come in, by edge of this layer.
    """

    def __init__(self, vectors: _Vectors, arrays: list[ir.Value], numbers: list[ir.Value]) -> None:
        self.vectors = vectors
        self.builder = vectors.builder
        self.sums, self.kept, self.masks, self.signs, self.scratch, self.places, self.turns = arrays
        self.first, self.n_edges, self.layer, self.lifting, factor, bound = numbers
        self.factor = vectors.everywhere(factor, vectors.wide)
        self.bound = vectors.everywhere(bound, vectors.vector)

    def emit(self) -> ir.Value:
        """Emit both passes over each block of lanes; return the count of checks that were unmet before."""
        builder = self.builder
        n_unmet = cgutils.alloca_once_value(builder, _number(0))  # type: ignore[no-untyped-call]
        n_blocks = builder.udiv(self.lifting, _number(self.vectors.width))
        with cgutils.for_range(builder, n_blocks) as loop:
            lane = builder.mul(loop.index, _number(self.vectors.width))
            count = builder.ctpop(self.vectors.word(self._take_in(lane)))
            builder.store(builder.add(builder.load(n_unmet), count), n_unmet)
        with cgutils.for_range(builder, n_blocks) as loop:
            lane = builder.mul(loop.index, _number(self.vectors.width))
            # Lanes are few: the branch is the same for all edges of a block, so it is taken outside.
            mirrored = builder.icmp_unsigned("<", lane, _number(MIRROR))
            with builder.if_else(mirrored) as (then, otherwise):
                with then:
                    self._give_out(lane, True)
                with otherwise:
                    self._give_out(lane, False)
        return builder.load(n_unmet)

    def _kept(self, lane: ir.Value, which: int) -> ir.Value:
        row = self.builder.add(self.builder.mul(self.layer, _number(KEPT_PER_CHECK)), _number(which))
        return self.builder.add(self.builder.mul(row, self.lifting), lane)

    def _mask(self, edge: ir.Value, lane: ir.Value) -> ir.Value:
        octet = self.builder.add(self.builder.mul(self.builder.add(self.first, edge), self.lifting), lane)
        return self.builder.udiv(octet, _number(KEPT_PER_EDGE_DIVISOR))

    def _scratch(self, edge: ir.Value, lane: ir.Value) -> ir.Value:
        row = self.builder.add(edge, _number(SCRATCH_PER_CHECK))
        return self.builder.add(self.builder.mul(row, self.lifting), lane)

    def _of_edge(self, table: ir.Value, edge: ir.Value) -> ir.Value:
        builder = self.builder
        return builder.sext(builder.load(builder.gep(table, [builder.add(self.first, edge)])), _I64)

    def _take_in(self, lane: ir.Value) -> ir.Value:
        """Emit the first pass: take the old messages off the sums, find the least two; return who was odd."""
        builder, vectors = self.builder, self.vectors
        usual, at_least = (vectors.load(self.kept, self._kept(lane, which)) for which in range(2))
        least, second, sign, unmet = (vectors.variable() for _ in range(4))
        odd = vectors.load(self.signs, builder.add(builder.mul(self.layer, self.lifting), lane))
        for variable, value in ((least, vectors.constant(127)), (second, vectors.constant(127))):
            builder.store(value, variable)
        for variable in (sign, unmet):
            builder.store(odd, variable)
        around = builder.sub(self.lifting, _number(1))
        mask_octets = _number(vectors.width // 8)
        with cgutils.for_range(builder, self.n_edges) as edges:
            edge = edges.index
            turned = builder.and_(builder.add(lane, self._of_edge(self.turns, edge)), around)
            total = vectors.load(self.sums, builder.add(self._of_edge(self.places, edge), turned))
            builder.store(builder.xor(builder.load(unmet), total), unmet)
            place = self._mask(edge, lane)
            was_negative = vectors.load_mask(self.masks, place)
            was_least = vectors.load_mask(self.masks, builder.add(place, mask_octets))
            old = builder.select(was_least, at_least, usual)
            value = builder.select(
                was_negative, vectors.saturating_sum(total, old), vectors.saturating_difference(total, old)
            )
            vectors.store(value, self.scratch, self._scratch(edge, lane))
            builder.store(builder.xor(builder.load(sign), value), sign)
            size, least_so_far = vectors.magnitude(value), builder.load(least)
            builder.store(vectors.lesser(size, least_so_far), least)
            second_so_far = vectors.lesser(builder.load(second), vectors.greater(size, least_so_far))
            builder.store(second_so_far, second)
        vectors.store(
            vectors.message(builder.load(least), self.factor, self.bound), self.kept, self._kept(lane, 0)
        )
        vectors.store(
            vectors.message(builder.load(second), self.factor, self.bound), self.kept, self._kept(lane, 1)
        )
        vectors.store(builder.load(least), self.scratch, lane)
        vectors.store(builder.load(sign), self.scratch, builder.add(self.lifting, lane))
        return vectors.is_negative(builder.load(unmet))

    def _give_out(self, lane: ir.Value, mirrored: bool) -> None:
        """Emit the second pass: add the new messages to what came in; that is the new sum."""
        builder, vectors = self.builder, self.vectors
        usual, at_least = (vectors.load(self.kept, self._kept(lane, which)) for which in range(2))
        least = vectors.load(self.scratch, lane)
        sign = vectors.load(self.scratch, builder.add(self.lifting, lane))
        mask_octets = _number(vectors.width // 8)
        with cgutils.for_range(builder, self.n_edges) as edges:
            edge = edges.index
            value = vectors.load(self.scratch, self._scratch(edge, lane))
            is_least = builder.icmp_unsigned("==", vectors.magnitude(value), least)
            is_negative = vectors.is_negative(builder.xor(sign, value))
            place = self._mask(edge, lane)
            vectors.store_mask(is_negative, self.masks, place)
            vectors.store_mask(is_least, self.masks, builder.add(place, mask_octets))
            new = builder.select(is_least, at_least, usual)
            total = builder.select(
                is_negative, vectors.saturating_difference(value, new), vectors.saturating_sum(value, new)
            )
            place = builder.add(self._of_edge(self.places, edge), lane)
            vectors.store(total, self.sums, place)
            if mirrored:
                vectors.store(total, self.sums, builder.add(place, self.lifting))


@intrinsic
def update_row(
    typing_context: Any,
    sums: Any,
    kept: Any,
    masks: Any,
    signs: Any,
    scratch: Any,
    places: Any,
    turns: Any,
    first: Any,
    n_edges: Any,
    layer: Any,
    lifting: Any,
    factor: Any,
    bound: Any,
) -> Any:
    """Work one layer off; return how many of its checks were unmet before. Arguments: see ``_Layer``."""
    arrays = (sums, kept, masks, signs, scratch, places, turns)
    signature = types.uint64(*arrays, *(types.intp,) * 6)

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        data = [
            _data(context, builder, kind, array)
            for kind, array in zip(signature.args[:7], arguments[:7], strict=True)
        ]
        return _Layer(_Vectors(builder, WIDTH), data, arguments[7:]).emit()

    return signature, codegen


@intrinsic
def sign_word(typing_context: Any, sums: Any, place: Any) -> Any:
    """Return the sign bits of the 64 lanes from ``place`` on."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        vectors = _Vectors(builder, 64)
        lanes = vectors.load(_data(context, builder, signature.args[0], arguments[0]), arguments[1])
        return vectors.word(vectors.is_negative(lanes))

    return types.uint64(sums, types.intp), codegen
