"""Instructions on 64-bit words inside kernels that Python has no operator for."""

from collections.abc import Callable
from typing import Any, Final, cast

import llvmlite.binding as llvm
import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from qnode.kernel_cache import target_features

U = np.uint64
# These have the instruction, but it takes hundreds of cycles, and as many as its mask has ones.
_SLOW_EXTRACT: Final = ("bdver4", "znver1", "znver2")
HAS_EXTRACT: Final = "+bmi2" in target_features().split(",") and llvm.get_host_cpu_name() not in _SLOW_EXTRACT
"""Whether a kernel may call `extract`."""


def _popcount(_context: Any, _word: Any) -> Any:
    def build(_context: Any, builder: ir.IRBuilder, _signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return types.uint64(types.uint64), build


def _leading_zeros(_context: Any, _word: Any) -> Any:
    def build(_context: Any, builder: ir.IRBuilder, _signature: Any, arguments: Any) -> Any:
        return builder.ctlz(arguments[0], ir.Constant(ir.IntType(1), 0))

    return types.uint64(types.uint64), build


def _trailing_zeros(_context: Any, _word: Any) -> Any:
    def build(_context: Any, builder: ir.IRBuilder, _signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 0))

    return types.uint64(types.uint64), build


popcount = cast("Callable[[np.uint64], np.uint64]", intrinsic(_popcount))
leading_zeros = cast("Callable[[np.uint64], np.uint64]", intrinsic(_leading_zeros))
trailing_zeros = cast("Callable[[np.uint64], np.uint64]", intrinsic(_trailing_zeros))


def _extract(_context: Any, _word: Any, _mask: Any) -> Any:
    def build(_context: Any, builder: ir.IRBuilder, _signature: Any, arguments: Any) -> Any:
        if not HAS_EXTRACT:
            return arguments[0]
        word = ir.IntType(64)
        instruction = cgutils.get_or_insert_function(  # type: ignore[no-untyped-call]
            builder.module, ir.FunctionType(word, [word, word]), "llvm.x86.bmi.pext.64"
        )
        return builder.call(instruction, arguments)

    return types.uint64(types.uint64, types.uint64), build


def _load(_context: Any, array: Any, _octet: Any) -> Any:
    if array.layout != "C":
        return None  # a type error where the kernel is compiled

    def build(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        octets = builder.bitcast(data, ir.IntType(8).as_pointer())
        place = builder.bitcast(builder.gep(octets, [arguments[1]]), ir.IntType(64).as_pointer())
        return builder.load(place, align=1)

    return types.uint64(array, types.uint64), build


extract = cast("Callable[[np.uint64, np.uint64], np.uint64]", intrinsic(_extract))
"""Move the bits of a word that a mask names to the low end. Only with `HAS_EXTRACT`."""
load = cast("Callable[[npt.NDArray[np.generic], np.uint64], np.uint64]", intrinsic(_load))
"""Return the eight octets of an array from any octet on."""
