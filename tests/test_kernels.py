"""Compiled kernels are cached only where the cache can be trusted, and never outlive their sources."""

import inspect
import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from numba.core import config as numba_config

import qnode
from qnode import kernel_cache, kernel_code
from qnode.distill.bits.clmul import PORTABLE, vector_widths
from qnode.kernel_cache import UntrustedCache, cache_directory, processor, sources_digest, trusted

SCORE = """
import json
import numpy as np
from qnode.kernel_code import KernelCache
from qnode.tags.alignment import _best_offset
plane = np.full(4096, 2**64 - 1, np.uint64)
plane[:10], best = 0, np.full(2, -1, np.int64)
_best_offset(plane, plane, np.arange(8, dtype=np.int64), 2048, best)
print(json.dumps({"best": best.tolist(), "misses": KernelCache.misses}))
"""
DIGESTS = """
import json
from qnode.kernel_cache import sources_digest
rooms = "distill.amplification.toeplitz", "distill.sifting.sift"
print(json.dumps({m: sources_digest("qnode." + m) for m in rooms}))
"""


def distilled() -> dict[str, Any]:
    """Return what amplification and verification give; also run as a program of its own."""
    from qnode.distill.amplification.amplify import amplify, seed_length_bytes
    from qnode.distill.bits import Bits
    from qnode.distill.bits.clmul import vector_widths
    from qnode.distill.verify import verification_tag

    key = Bits.from_bytes(bytes(range(250)) * 10, 20_000)
    seed = bytes(i * i % 251 for i in range(seed_length_bytes(20_000)))
    return {
        "width": vector_widths()[0],
        "tag": verification_tag(key, bytes(range(16)), 128).hex(),
        "key": amplify(key, seed, 7_000).to_bytes().hex(),
    }


def multiplied() -> dict[str, Any]:
    """Multiply by a kernel whose code is not loaded, as in a new process; also a program of its own."""
    import numpy as np

    from qnode.distill.bits.clmul import clmul64_portable
    from qnode.kernel_code import KernelCache
    from qnode.kernels import kernel

    compiled_before = KernelCache.misses
    unloaded = kernel(clmul64_portable.py_func)  # type: ignore[attr-defined]
    product = unloaded(np.uint64(3), np.uint64(2**63))
    misses = KernelCache.misses - compiled_before
    return {"product": [int(word) for word in product], "misses": misses}


def program_of(function: Callable[[], dict[str, Any]]) -> str:
    return (
        f"import json\nfrom typing import Any\n{inspect.getsource(function)}\n"
        f"print(json.dumps({function.__name__}()))"
    )


def run(program: str, place: Path | None = None, **environment: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=place,
        env=os.environ | environment,
        capture_output=True,
        check=True,
    )
    return json.loads(done.stdout)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QNODE_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(kernel_code, "_place", lambda module: cache_directory(module).resolve())
    trusted.cache_clear()
    return tmp_path


def test_the_cache_is_named_by_version_processor_module_and_digest(cache: Path) -> None:
    directory = cache_directory("qnode.tags.order")
    assert directory.parent == cache / f"kernels-{qnode.__version__}-{processor()}"
    assert directory.name == f"tags.order-{sources_digest('qnode.tags.order')}"


def test_processors_of_one_name_with_other_instructions_do_not_share_code(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(numba_config, "CPU_NAME", "znver5")
    names = []
    for features in ("+sse2,+pclmul", "+sse2,-pclmul"):
        monkeypatch.setattr(numba_config, "CPU_FEATURES", features)
        names.append(processor())
    assert names[0] != names[1]
    assert {name.partition("-")[0] for name in names} == {"znver5"}


def test_a_change_in_an_imported_module_makes_code_stale_and_spares_what_does_not_import_it(
    tmp_path: Path,
) -> None:
    package = Path(qnode.__file__).parent
    shutil.copytree(package, tmp_path / "qnode", ignore=shutil.ignore_patterns("__pycache__"))
    before = run(DIGESTS, tmp_path)
    helper = tmp_path / "qnode" / "distill" / "amplification" / "steps.py"
    helper.write_text(helper.read_text().replace("PLANES * VECTOR_WORDS", "VECTOR_WORDS * PLANES", 1))
    after = run(DIGESTS, tmp_path)
    assert before["distill.amplification.toeplitz"] != after["distill.amplification.toeplitz"]
    assert before["distill.sifting.sift"] == after["distill.sifting.sift"]


def test_code_is_compiled_once_and_then_loaded(cache: Path) -> None:
    first, second = run(program_of(multiplied)), run(program_of(multiplied))
    assert first == {"product": [1 << 63, 1], "misses": 1}
    assert second == first | {"misses": 0}


def test_a_kernel_is_compiled_with_the_kept_code_of_those_that_it_calls(cache: Path) -> None:
    first = run(SCORE)
    assert first["misses"] > 1
    assert run(SCORE) == first | {"misses": 0}
    for file in cache.rglob("*_best_offset*"):
        file.unlink()
    assert run(SCORE) == first | {"misses": 1}


@pytest.mark.parametrize("part", [0, 1])  # machine code, and the form that others are compiled with
def test_code_that_is_damaged_inside_a_whole_file_is_compiled_anew(cache: Path, part: int) -> None:
    first = multiplied()
    (file,) = cache.rglob("*.nbc")
    kept = pickle.loads(file.read_bytes())
    (at,) = (i for i, item in enumerate(kept) if isinstance(item, tuple) and "object" in item)
    name, kind, code = kept[at]
    damaged = bytearray(code[part])
    damaged[len(damaged) // 2] ^= 0xFF
    codes = (*code[:part], bytes(damaged), *code[part + 1 :])
    file.write_bytes(pickle.dumps((*kept[:at], (name, kind, codes), *kept[at + 1 :])))
    assert multiplied() == first
    assert multiplied() == first | {"misses": 0}


@pytest.mark.parametrize("suffix", ["nbi", "nbc"])
def test_files_that_others_can_write_to_or_that_are_damaged_are_replaced(cache: Path, suffix: str) -> None:
    multiplied()
    (file,) = cache.rglob(f"*.{suffix}")
    file.chmod(0o666)
    assert multiplied()["misses"] == 1
    assert not file.stat().st_mode & 0o022
    file.write_bytes(file.read_bytes()[:100])
    assert multiplied()["misses"] == 1
    assert multiplied()["misses"] == 0


def test_a_place_that_others_can_write_to_is_not_used(cache: Path) -> None:
    cache.chmod(0o777)
    with pytest.raises(UntrustedCache, match="chmod go-w"):
        trusted(cache_directory("qnode.tags.order"))
    cache.chmod(0o1777)  # as /tmp: what is ours there stays ours
    trusted.cache_clear()
    trusted(cache_directory("qnode.tags.order"))


def test_what_root_has_compiled_may_be_used_by_who_cannot_write_there(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(path: Path) -> None:
        raise PermissionError(1, "not its owner", str(path))

    directory = cache_directory("qnode.tags.order")
    directory.mkdir(mode=0o755, parents=True)
    monkeypatch.setattr(os, "utime", refused)
    trusted(directory)


def test_old_code_goes_when_new_code_comes(cache: Path) -> None:
    def generation(version: str, number: int) -> Path:
        return cache / version / f"tags.order-{number:016x}"

    for number in range(12):
        for place in (generation("kernels-a", number), generation(f"kernels-{number}", 0)):
            place.mkdir(parents=True)
            for path in (place, place.parent):
                os.utime(path, (number, number))
    other = cache / "kernels-a" / "tags.order_window-0"
    other.mkdir()
    new = generation("kernels-a", 99)
    trusted(new)
    assert sorted(new.parent.iterdir()) == [generation("kernels-a", n) for n in (*range(5, 12), 99)] + [other]
    assert {path.name for path in cache.iterdir()} == {"kernels-a", *(f"kernels-{n}" for n in range(5, 12))}


def test_every_import_of_our_own_is_seen() -> None:
    seen = {path.name for path in kernel_cache._sources("qnode.distill.amplification.toeplitz")}
    assert {"toeplitz.py", "transform.py", "steps.py", "octets.py", "clmul.py", "array.py"} <= seen


@pytest.mark.parametrize(
    ("width", "features"),
    [(4, "+avx2,+pclmul,+vpclmulqdq,+gfni"), (2, "+sse2,+pclmul,+gfni"), (PORTABLE, "")],
)
def test_a_processor_with_fewer_instructions_computes_the_same(
    width: int, features: str, cache: Path
) -> None:
    if width not in vector_widths():
        pytest.skip("this processor has not even these")
    poor = run(program_of(distilled), NUMBA_CPU_NAME="x86-64", NUMBA_CPU_FEATURES=features)
    assert poor == distilled() | {"width": width}
