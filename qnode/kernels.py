"""How a numba kernel is declared.

``@kernel`` compiles without the GIL and keeps the machine code on disk (`qnode.kernel_cache`). A kernel that
calls others contains their code: ``@inner_kernel`` declares those that only kernels call, which are not kept
apart, and ``@inline_kernel`` small helpers that are written into their callers.
"""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

from qnode.kernel_code import cache_for

F = TypeVar("F", bound=Callable[..., Any])


def kernel(function: F) -> F:
    """Compile ``function`` with numba: no GIL, cached. Arguments are arrays and scalars only.

    Results are scalars and plain tuples of them: numba runs Python code to make a named tuple, and when a
    signal handler raises within, as Ctrl-C does, the process crashes.

    Division is numpy's (by zero: inf, or 0 of integers): a check would keep loops from becoming vectors.
    """
    dispatcher: Any = numba.njit(nogil=True, boundscheck=False, error_model="numpy")(function)
    cache = cache_for(function)
    if cache is not None:
        dispatcher._cache = cache
    return cast("F", dispatcher)


def inner_kernel(function: F) -> F:
    """Compile a function that only kernels call, as part of each of them. A recursive one must be such.

    (numba cannot resolve the call of a recursive function to itself once it is loaded from a cache.)
    """
    return cast("F", numba.njit(nogil=True, boundscheck=False, error_model="numpy")(function))


def inline_kernel(function: F) -> F:
    """Compile a small helper that is inlined into the kernels that call it."""
    return cast("F", numba.njit(nogil=True, inline="always")(function))
