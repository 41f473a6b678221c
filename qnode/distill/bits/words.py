"""Instructions on 64-bit words inside kernels that Python has no operator for."""

from collections.abc import Callable
from typing import Any, cast

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

U = np.uint64


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
