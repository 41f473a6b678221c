"""What keeps qnode from being installed into a folder, one line each: python3 check_machine.py FOLDER.

It runs before the virtual environment is made, on whatever Python is there, so its syntax is that of Python
3.6. Beside wheels it also compares this machine with what they were made for. Exit status: 0 or 1.
"""

import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

OLDEST_PYTHON = (3, 11)
NEEDED_BYTES = 1 << 30


def faults(folder: Path, wheels: "list[str]") -> "Iterator[str]":
    """Yield one line for each fault; ``wheels``: names of wheel files, none for an install from the net."""
    running, oldest = _dotted(sys.version_info[:2]), _dotted(OLDEST_PYTHON)
    if sys.version_info < OLDEST_PYTHON:
        yield (
            f"{sys.executable} is Python {running}; qnode needs {oldest} or newer: install one, and name it "
            f"(make PYTHON=/usr/bin/python{oldest} ...)"
        )
    else:
        yield from _wheel_faults(running, wheels)
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError as error:
        yield (
            f"{sys.executable}: the module {error.name} is missing, which makes virtual environments: "
            "apt-get install python3-venv"
        )
    yield from _place_faults(folder)


def _wheel_faults(running: str, wheels: "list[str]") -> "Iterator[str]":
    """Compare Python, processor and C library with the tags of the wheels; numpy's are bound to all three."""
    for name in wheels:
        found = re.match(r"numpy-.*-cp(\d)(\d+)-.*_(x86_64|aarch64)\.whl", name)
        if found is not None:
            wanted = f"{found.group(1)}.{found.group(2)}"
            if wanted != running:
                yield (
                    f"{sys.executable} is Python {running}; these wheels are for {wanted}: use "
                    f"python{wanted}, or make wheels VENV=.venv-{running} PYTHON=python{running}"
                )
            if found.group(3) != platform.machine():
                yield (
                    f"this processor is {platform.machine()}; these wheels are for {found.group(3)}: make "
                    "them on a machine like this one"
                )
    if wheels:
        libc, version = platform.libc_ver()
        needed = max(least_glibc(name) for name in wheels)
        if libc != "glibc":
            yield "the C library of this system is not glibc, which the wheels need: use another system"
        elif needed > tuple(map(int, version.split(".")[:2])):
            yield (
                f"glibc {version} is too old for these wheels, which need {_dotted(needed)}: make them on a "
                "machine with the system release of this one"
            )


def least_glibc(name: str) -> "tuple[int, ...]":
    """Return the oldest glibc with which the wheel of this name works."""
    tags = re.findall(r"manylinux_(\d+)_(\d+)_", name)
    return min(((int(major), int(minor)) for major, minor in tags), default=(2, 17))


def _dotted(version: "tuple[int, ...]") -> str:
    return ".".join(map(str, version))


def _place_faults(folder: Path) -> "Iterator[str]":
    """Check that the folder can be made, and that its disk has room."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir():
        yield f"{there}: is no folder: name another one"
    elif not os.access(str(there), os.W_OK | os.X_OK):
        yield (
            f"{there}: this user cannot write there, or the file system is read-only: use sudo, or name "
            "another folder"
        )
    elif shutil.disk_usage(str(there)).free < NEEDED_BYTES:
        yield (
            f"{there}: less than {NEEDED_BYTES // 10**6} MB are free on its disk: make room, or name "
            "another folder"
        )


def main() -> int:
    """Print the faults."""
    if len(sys.argv) != 2:
        print("usage: python3 check_machine.py FOLDER", file=sys.stderr)
        return 64
    wheels = [path.name for path in Path(__file__).absolute().parent.glob("*.whl")]
    found = list(faults(Path(sys.argv[1]).absolute(), wheels))
    for fault in found:
        print(f"qnode: {fault}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
