"""Run the tests on other versions of CPython: ``python tests/versions.py [TEST ...]``.

Each version has a virtual environment of its own, `.venv-VERSION`, with the locked dependencies. Its
interpreter is looked for on the path (`python3.12`), among those of pyenv, and asked of uv where that is
installed. A version without one is named and skipped. TEST: files or options of pytest (default: all tests).
Exit code: 0 all versions passed, 1 a test failed, 3 none failed, but a version is missing.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

TOP = Path(__file__).parent.parent
VERSIONS = ("3.12", "3.13", "3.14")
EXIT_FAILED, EXIT_MISSING = 1, 3
LOCK = TOP / "requirements-dev.lock"


def candidates(version: str) -> Iterator[Path]:
    """Yield the places where an interpreter of this version may be, the likeliest first."""
    if found := shutil.which(f"python{version}"):
        yield Path(found)
    roots = {Path(root) for root in (os.environ.get("PYENV_ROOT"), Path.home() / ".pyenv") if root}
    for root in roots:
        yield from sorted(root.glob(f"versions/{version}.*/bin/python{version}"), reverse=True)
    if uv := shutil.which("uv"):
        asked = subprocess.run(
            [uv, "python", "find", "--no-project", version], capture_output=True, text=True, check=False
        )
        if asked.returncode == 0:
            yield Path(asked.stdout.strip())


def interpreter(version: str) -> Path | None:
    """Return a working interpreter of this version; a shim of pyenv without its version is none."""
    ask = "import sys; print(sys.implementation.name, f'{sys.version_info.major}.{sys.version_info.minor}')"
    for path in candidates(version):
        said = subprocess.run([path, "-c", ask], capture_output=True, text=True, check=False)
        if said.stdout.split() == ["cpython", version]:
            return path
    return None


def prepare(version: str, python: Path) -> Path:
    """Return the folder of programs of the version's environment, made new when the lock has changed."""
    folder = TOP / f".venv-{version}"
    done = folder / "lock.sha256"
    digest = hashlib.sha256(LOCK.read_bytes()).hexdigest()
    programs = folder / "bin"
    if not done.exists() or done.read_text() != digest:
        run([python, "-m", "venv", "--clear", folder])
        run([programs / "pip", "install", "--quiet", "--require-hashes", "-r", LOCK])
        run([programs / "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "-e", TOP])
        done.write_text(digest)
    return programs


def run(command: list[str | Path]) -> None:
    """Run a command; raises subprocess.CalledProcessError."""
    subprocess.run(command, cwd=TOP, check=True)


def tests_of(version: str, arguments: list[str]) -> str:
    """Run the tests on one version, and return how it went in a few words."""
    python = interpreter(version)
    if python is None:
        return "skipped: no interpreter here (install it, for example with pyenv or uv)"
    try:
        programs = prepare(version, python)
    except subprocess.CalledProcessError as error:
        return f"failed: its environment could not be made ({error})"
    environment = {**os.environ, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
    command = [str(programs / "python"), "-m", "pytest", *arguments]
    passed = subprocess.run(command, cwd=TOP, env=environment, check=False).returncode == 0
    return f"passed, with {python}" if passed else "failed"


def main() -> int:
    """Run the tests on each version."""
    results = {version: tests_of(version, sys.argv[1:]) for version in VERSIONS}
    for version, result in results.items():
        print(f"CPython {version}: {result}")
    if any(result.startswith("failed") for result in results.values()):
        return EXIT_FAILED
    return EXIT_MISSING if any(result.startswith("skipped") for result in results.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
