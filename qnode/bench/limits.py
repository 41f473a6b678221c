"""The limits of this machine: carry-less multiplications, counted bits and copied bytes per second."""

import os
import platform
from collections.abc import Callable
from typing import Any, Final

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types

from qnode.bench.results import Effort, Machine, processor_name, rates
from qnode.distill.bits.array import Words
from qnode.distill.bits.clmul import PORTABLE, intrinsic, multiply_lanes, supported, vector_of, vector_widths
from qnode.distill.bits.words import popcount
from qnode.kernels import kernel

_CHAINS: Final = 16  # independent products at a time, more than the instruction's latency
_TURNS: Final = 200_000
_CACHED_WORDS: Final = 1 << 13
_MEMORY_WORDS: Final = 1 << 24  # 128 MiB, more than a cache holds


def measure_machine(effort: Effort) -> Machine:
    """Measure the limits on one core."""
    width = vector_widths()[0]
    return Machine(
        processor=processor_name(),
        cores=len(os.sched_getaffinity(0)),
        python=platform.python_version(),
        clmul_per_s=max(rates(lambda: _multiplied(width), effort)) if width != PORTABLE else None,
        popcount_bits_per_s=max(rates(_counted, effort)),
        copy_bytes_per_s=max(rates(_copying(), effort)),
        multiplier_words=width,
    )


def _multiplied(width: int) -> float:
    multiply_chains(np.zeros(8, np.uint64), _TURNS, width)
    return _TURNS * _CHAINS * width / 2


def _counted() -> float:
    words = np.full(_CACHED_WORDS, 0x0123456789ABCDEF, np.uint64)
    turns = 200
    count_bits(words, turns)
    return float(turns * 64 * _CACHED_WORDS)


def _copying() -> Callable[[], float]:
    source = np.ones(_MEMORY_WORDS, np.uint64)
    target = np.zeros_like(source)

    def copied() -> float:
        np.copyto(target, source)
        return 2.0 * source.nbytes  # read and written

    return copied


def _make_chains(width: int) -> Any:
    """Return the intrinsic that squares ``_CHAINS`` vectors ``n`` times and leaves their sum in ``out``."""

    @intrinsic
    def chains(typing_context: Any, out: Any, n: Any) -> Any:
        signature = types.void(out, types.intp)

        def codegen(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
            if not supported(width):
                return context.get_dummy_value()
            vector = vector_of(width)
            new_place: Any = cgutils.alloca_once
            places = [new_place(builder, vector) for _ in range(_CHAINS)]
            for number, place in enumerate(places):
                builder.store(ir.Constant(vector, [7 * number + word + 3 for word in range(width)]), place)
            with cgutils.for_range(builder, arguments[1]):
                for place in places:
                    value = builder.load(place)
                    builder.store(multiply_lanes(builder, value, 1, value, 0), place)
            total = builder.load(places[0])
            for place in places[1:]:
                total = builder.xor(total, builder.load(place))
            data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
            word = builder.extract_element(total, ir.Constant(ir.IntType(32), 0))
            builder.store(word, data)
            return context.get_dummy_value()

        return signature, codegen

    return chains


_chains_512, _chains_256, _chains_128 = (_make_chains(width) for width in (8, 4, 2))


@kernel
def multiply_chains(out: Words, n: int, width: int) -> None:
    """Multiply ``n`` times sixteen vectors of ``width`` words, two to four products each."""
    if width == 8:
        _chains_512(out, n)
    elif width == 4:
        _chains_256(out, n)
    elif width == 2:
        _chains_128(out, n)


@kernel
def count_bits(words: Words, turns: int) -> np.uint64:
    """Count the ones of ``words``, ``turns`` times over."""
    total = np.uint64(0)
    for turn in range(turns):
        for i in range(words.size):
            total += popcount(words[i] ^ np.uint64(turn))
    return total
