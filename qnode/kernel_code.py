"""The machine code of a kernel: its way to a file of the cache, and from there into this process.

numba prepares for further compilation whenever it loads code: it imports everything about types and
functions, and reads the code a second time in the form for compiling other kernels. A daemon with all its
kernels in the cache needs neither; without them it starts half a second sooner and is 30 MiB smaller. Both
still happen on demand: a missing kernel makes numba prepare to compile, and a kernel that calls this code
makes it read the other form.
"""

import zlib
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm
from numba.core import caching
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompileResult
from numba.core.runtime import nrt

from qnode.kernel_cache import PACKAGE, UntrustedCache, cache_directory, check_owner, sources_digest, trusted

# numba's own classes are untyped.
_Locators: Any = caching._CacheLocator
_CodeFiles: Any = caching.IndexDataCacheFile
_CodeImplementation: Any = caching.CompileResultCacheImpl
_CodeCache: Any = caching.FunctionCache
_Code: Any = JITCodeLibrary
_NumbaResult: Any = CompileResult
_Runtime: Any = nrt


class _Locator(_Locators):  # type: ignore[misc]
    """Gives numba the directory and the digest."""

    def __init__(self, function: Callable[..., Any], directory: Path) -> None:
        self._directory = directory
        self._function = function
        self._py_file = function.__code__.co_filename  # numba's warnings name it

    def get_cache_path(self) -> str:
        """Return the directory."""
        return str(self._directory)

    def get_source_stamp(self) -> str:
        """Return the digest that must not have changed."""
        return sources_digest(self._function.__module__)

    def get_disambiguator(self) -> str:
        """Return a string that distinguishes functions of one name."""
        return str(self._function.__code__.co_firstlineno)

    @classmethod
    def from_function(cls, py_func: Callable[..., Any], py_file: str) -> "_Locator":
        """Return the locator of ``py_func``; `trusted` was called before."""
        return cls(py_func, _place(py_func.__module__))


class _LoadedCode(_Code):  # type: ignore[misc]
    """A kernel's machine code from a file, and the form for compiling kernels that call it."""

    def __init__(self, codegen: Any, name: str, machine_code: bytes, bitcode: bytes) -> None:
        super().__init__(codegen, name)
        self._bitcode = bitcode
        self._shared_module: Any = None
        self.enable_object_caching()
        self._set_compiled_object(machine_code)
        self._finalize_final_module()

    def get_pointer_to_function(self, name: str) -> int:
        """Return the address of a function that this code is known to have."""
        return int(self.codegen._engine.get_function_address(name))

    def _get_module_for_linking(self) -> Any:
        if self._shared_module is None:
            self._shared_module = llvm.parse_bitcode(self._bitcode)
            self.codegen._engine._load_defined_symbols(self._shared_module)
        return self._shared_module


class _Implementation(_CodeImplementation):  # type: ignore[misc]
    """What of a compiled kernel is kept, and how it is put together again."""

    _locator_classes = (_Locator,)

    def reduce(self, compiled: Any) -> Any:
        """Return what is kept: all but the environments of numba's own functions, which hold nothing."""
        library, *others, environments = super().reduce(compiled)
        return (_sum(library[2]), library, *others, tuple(one for one in environments if one.consts))

    def rebuild(self, target_context: Any, kept: Any) -> Any:
        """Return the kernel as if it had just been compiled.

        Raises:
            ValueError: its code is damaged, which might be noticed only once it is run or another calls it.
        """
        written, (name, _, (machine_code, bitcode)), descriptor, environment, signature, *others = kept
        if written != _sum((machine_code, bitcode)):
            raise ValueError(f"the code of {name} is damaged")
        object_mode, lifted, annotation, starters, environments = others
        for starter in starters:
            starter()
        _name_runtime()
        codegen = target_context.codegen()
        library = _LoadedCode(codegen, name, machine_code, bitcode)
        compiled = _NumbaResult(
            target_context=target_context,
            typing_context=target_context.typing_context,
            library=library,
            environment=environment,
            entry_point=target_context.get_executable(library, descriptor, environment),
            fndesc=descriptor,
            type_annotation=annotation,
            signature=signature,
            objectmode=object_mode,
            lifted=lifted,
            typing_error=None,
            call_helper=None,
            metadata=None,
            reload_init=starters,
            referenced_envs=environments,
        )
        for one in environments:
            codegen.set_env(one.env_name, one)
        return compiled


def _sum(code: tuple[bytes, bytes]) -> int:
    return zlib.crc32(code[1], zlib.crc32(code[0]))


@cache
def _name_runtime() -> None:
    """Tell the linker where numba's memory functions are, as numba does before it compiles."""
    for name, address in _Runtime._nrt.c_helpers.items():
        llvm.add_symbol(name if name.startswith("_") else f"NRT_{name}", address)


class _Files(_CodeFiles):  # type: ignore[misc]
    """Index and code of one kernel, checked before they are read."""

    def _load_index(self) -> Any:
        try:
            if Path(self._index_path).exists():
                check_owner(Path(self._index_path))
            return super()._load_index()
        except Exception:  # noqa: BLE001 - a damaged file may raise anything; a new file replaces it
            return {}

    def _load_data(self, name: str) -> Any:
        check_owner(Path(self._data_path(name)))
        return super()._load_data(name)


class KernelCache(_CodeCache):  # type: ignore[misc]
    """numba's cache of one kernel, in our directory and under our rules. ``misses``: compiled so far."""

    _impl_class = _Implementation
    misses: int = 0

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        self._cache_file = _Files(
            self._cache_path, self._impl.filename_base, self._impl.locator.get_source_stamp()
        )

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Return the compiled form of one signature; None when it is not there, or not fit to be loaded."""
        try:
            return self._load_overload(sig, target_context)
        except Exception:  # noqa: BLE001 - a damaged file may raise anything; the kernel is compiled again
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep the compiled form of one signature, if there is room."""
        KernelCache.misses += 1
        with suppress(Exception):  # a full disk costs the next start, not this one
            super().save_overload(sig, data)


@cache
def _place(module: str) -> Path:
    return cache_directory(module).resolve()


def cache_for(function: Callable[..., Any]) -> KernelCache | None:
    """Return the cache of a kernel; None when its place cannot be trusted or the kernel is not of ours."""
    # The digest follows our own imports only; a kernel declared elsewhere is compiled again each time.
    if not function.__module__.startswith(f"{PACKAGE}."):
        return None
    try:
        trusted(_place(function.__module__))
        return KernelCache(function)
    except (UntrustedCache, OSError, RuntimeError):
        return None
