"""Fuzz the decoders of bytes from outside: ``python tests/fuzz.py [TARGET ...] --seconds N [--keep]``.

Without TARGET all of `tests/fuzz_targets.py`, one after another, N seconds each, guided by coverage. atheris
has a folder of its own, `.venv-fuzz`, which this command makes; qnode does not depend on it. numba's kernels
run with a check of every index. Inputs that reach new code are kept in `.venv-fuzz/corpus/TARGET`; the seeds
and `tests/corpus/TARGET` come first. ``--keep`` puts the smallest inputs that reach as much into the latter,
which `make test` replays. Exit code 1: an input made a decoder crash, hang, take much memory, raise an error
that it does not declare, or encode to something else. Its file is named; ``--input FILE TARGET`` tries it.
"""

import argparse
import importlib
import importlib.util
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import FunctionType
from typing import Any

ATHERIS = "atheris==3.0.0"
TESTS = Path(__file__).parent
OWN = TESTS.parent / ".venv-fuzz"
CORPUS = TESTS / "corpus"
LONGEST_S, MOST_MEMORY_MIB = 10, 1500
# Of processor time for one input: what the slowest seed takes under the tracer, and a share by its length.
INPUT_S, BYTE_S = 2.0, 1e-4


def prepare() -> None:
    """Install atheris into its folder, if it is not there."""
    done = OWN / "packages" / ATHERIS
    if not done.exists():
        target = str(OWN / "packages")
        subprocess.run(
            [
                sys.executable,
                "-m",
                "pip",
                "install",
                "--quiet",
                "--no-deps",
                "--upgrade",
                "--target",
                target,
                ATHERIS,
            ],
            check=True,
        )
        done.touch()


def environment() -> dict[str, str]:
    """Return the environment of a fuzzer: kernels are compiled anew, with checks of their indices."""
    paths = [str(OWN / "packages"), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "NUMBA_BOUNDSCHECK": "1",
        "QNODE_CACHE_DIR": str(OWN / "kernels"),
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
    }


def inside(target: str, arguments: list[str]) -> None:
    """Be the fuzzer of a target; does not return."""
    atheris: Any = importlib.import_module("atheris")  # in the folder of `prepare`

    # numba compiles what it finds, so a module of kernels is instrumented function by function.
    with atheris.instrument_imports(include=["qnode", "qnode_drivers"], exclude=list(modules_of_kernels())):
        from fuzz_targets import try_input
    for name in modules_of_kernels():
        for function in vars(sys.modules.get(name, atheris)).values():
            if isinstance(function, FunctionType) and function.__module__ == name:
                atheris.instrument_func(function)

    def one(data: bytes) -> None:
        begun = time.process_time()
        try_input(target, data)
        took = time.process_time() - begun
        if one.warm and took > INPUT_S + BYTE_S * len(data):  # type: ignore[attr-defined]
            raise TimeoutError(f"{len(data)} bytes took {took:.1f} s")

    one.warm = False  # type: ignore[attr-defined]
    from fuzz_targets import TARGETS

    for seed in TARGETS[target].seeds():
        one(seed)
    one.warm = True  # type: ignore[attr-defined]
    atheris.Setup([sys.argv[0], *arguments], one)
    atheris.Fuzz()


def modules_of_kernels() -> list[str]:
    """Return the modules of the package that declare kernels."""
    found = importlib.util.find_spec("qnode")
    assert found is not None
    assert found.submodule_search_locations
    root = Path(found.submodule_search_locations[0])
    return [
        ".".join(path.relative_to(root.parent).with_suffix("").parts)
        for path in sorted(root.rglob("*.py"))
        if "kernel\n" in path.read_text() and "@" in path.read_text()
    ]


def run(target: str, arguments: list[str | Path]) -> int:
    """Run the fuzzer of a target with arguments of libFuzzer; return its exit code."""
    command = [sys.executable, __file__, "--inside", target, *arguments]
    return subprocess.run(command, cwd=OWN, env=environment(), check=False).returncode


def write_seeds(target: str) -> Path:
    """Write the seeds of a target into a folder, and return it."""
    from fuzz_targets import TARGETS

    folder = OWN / "seeds" / target
    folder.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(TARGETS[target].seeds()):
        (folder / str(number)).write_bytes(seed)
    return folder


def fuzz(target: str, seconds: int, *, keep: bool) -> bool:
    """Fuzz a target; return whether no input was a fault."""
    corpus, kept = OWN / "corpus" / target, CORPUS / target
    folders = [corpus, write_seeds(target), *([kept] if kept.is_dir() else [])]
    corpus.mkdir(parents=True, exist_ok=True)
    print(f"{target}: {seconds} s", flush=True)
    limits = [f"-timeout={LONGEST_S}", f"-rss_limit_mb={MOST_MEMORY_MIB}"]
    faults = [f"-artifact_prefix={OWN}/fault-{target}-", "-print_final_stats=1"]
    passed = run(target, [f"-max_total_time={seconds}", *limits, *faults, *folders]) == 0
    if keep and passed:
        fresh = OWN / "kept" / target
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        passed = run(target, ["-merge=1", *limits, fresh, *folders]) == 0
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(fresh, kept)
    return passed


def main() -> int:
    """Fuzz targets in turn."""
    if sys.argv[1:2] == ["--inside"]:
        inside(sys.argv[2], sys.argv[3:])
    from fuzz_targets import TARGETS, try_input

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument("--seconds", type=int, default=900)
    parser.add_argument("--keep", action="store_true", help="put the smallest corpus into tests/corpus")
    parser.add_argument("--input", type=Path, help="try this one input again, without atheris")
    given = parser.parse_args()
    if unknown := [name for name in given.targets if name not in TARGETS]:
        parser.error(f"unknown target {unknown[0]} (known: {', '.join(TARGETS)})")
    if given.input is not None:
        for name in given.targets:
            try_input(name, given.input.read_bytes())
        return 0
    prepare()
    results = {name: fuzz(name, given.seconds, keep=given.keep) for name in given.targets or TARGETS}
    for name, passed in results.items():
        print(f"{name}: {'no fault' if passed else 'a fault: see above'}")
    return 0 if all(results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
