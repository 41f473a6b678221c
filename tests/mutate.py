"""Plants faults in copies of this package, one at a time, and says which test catches each.

    python tests/mutate.py                       every fault
    python tests/mutate.py keys link             the lists tests/mutations/keys.toml and link.toml
    python tests/mutate.py wipe-keeps-the-key    one fault

Each table of tests/mutations/*.toml is a fault: its name, one sentence of what it `breaks`, the `file`, the
`old` text, which occurs there exactly once, the `new` text, and the `tests` (files or single tests) that are
run against it. A fault is caught when one of them fails within the limit, and passes without the fault.
Nothing is written into the checkout. Exit 1 if a fault is not caught, 64 if a name is unknown.
"""

import argparse
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import SimpleQueue

TOP = Path(__file__).parent.parent
LIMIT_S = 120.0
_NOT_COPIED = shutil.ignore_patterns(".*", "__pycache__")
_FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+?::.+?)(?: - .*)?$", re.MULTILINE)
# Exit codes of pytest: everything passed; some test failed.
_PASSED, _TEST_FAILED = 0, 1


@dataclass(frozen=True)
class Fault:
    """A change of one file that some test must notice."""

    name: str
    area: str
    breaks: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def planted_in(self, tree: Path) -> str:
        """Return the text of the file in ``tree`` with the fault in it.

        Raises:
            ValueError: the old text does not occur there exactly once.
        """
        text = (tree / self.file).read_text()
        if (times := text.count(self.old)) != 1:
            raise ValueError(
                f"{self.name}: its old text occurs {times} times in {self.file}, not once: "
                f"bring tests/mutations/{self.area}.toml up to date"
            )
        return text.replace(self.old, self.new)


@dataclass(frozen=True)
class Result:
    """What became of a fault: ``outcome`` is "caught", or says why not; ``test`` is the one that failed."""

    name: str
    outcome: str
    test: str = ""
    seconds: float = 0.0

    @property
    def caught(self) -> bool:
        """Tell whether a test noticed the fault."""
        return self.outcome == "caught"


def read_faults(top: Path = TOP) -> list[Fault]:
    """Return the faults of all lists.

    Raises:
        ValueError: two have one name.
    """
    faults: dict[str, Fault] = {}
    for path in sorted((top / "tests" / "mutations").glob("*.toml")):
        for name, table in tomllib.loads(path.read_text()).items():
            if name in faults:
                raise ValueError(f"{path}: {name} is the name of two faults")
            faults[name] = Fault(name, path.stem, tests=tuple(table.pop("tests")), **table)
    return list(faults.values())


def chosen(faults: Iterable[Fault], names: Iterable[str]) -> list[Fault]:
    """Return the faults called ``names``, or of lists called so; all if there are no names.

    Raises:
        KeyError: nothing is called so.
    """
    faults, names = list(faults), list(names)
    for name in names:
        if all(name not in (fault.name, fault.area) for fault in faults):
            raise KeyError(name)
    return [fault for fault in faults if not names or fault.name in names or fault.area in names]


def copied(top: Path, folder: Path) -> Path:
    """Copy the checkout ``top``, without what tools leave in it, to ``folder``; return that."""
    return Path(shutil.copytree(top, folder, ignore=_NOT_COPIED))


class Tree:
    """A copy of the checkout in which faults are planted and tests are run."""

    def __init__(self, folder: Path, top: Path) -> None:
        self._folder = copied(top, folder / "tree")

    def catch(self, fault: Fault, limit_s: float) -> Result:
        """Run the tests of ``fault`` against it."""
        began = time.monotonic()
        try:
            with self._planted(fault):
                code, output = self._run_tests(["-x", *fault.tests], limit_s)
        except (ValueError, OSError) as error:
            return Result(fault.name, str(error))
        took_s = round(time.monotonic() - began, 1)
        if code == _PASSED:
            return Result(fault.name, "survived", seconds=took_s)
        failed = _FAILED.search(output)
        if code is None:
            return Result(fault.name, f"no test failed within {limit_s:g} s", seconds=took_s)
        if code != _TEST_FAILED or failed is None:
            return Result(fault.name, f"its tests could not be run: {output[-2000:]}", seconds=took_s)
        return Result(fault.name, "caught", failed[1], took_s)

    def failing(self, tests: Iterable[str]) -> str:
        """Return the output of pytest if one of ``tests`` fails without any fault, else nothing."""
        code, output = self._run_tests(tests, None)
        return "" if code == _PASSED else output

    @contextmanager
    def _planted(self, fault: Fault) -> Iterator[None]:
        path = self._folder / fault.file
        sound, planted = path.read_text(), fault.planted_in(self._folder)
        try:
            self._replace(path, planted)
            yield
        finally:
            self._replace(path, sound)

    def _replace(self, path: Path, text: str) -> None:
        path.write_text(text)
        # Compiled code is told stale by seconds and size, which may be the same.
        Path(importlib.util.cache_from_source(str(path))).unlink(missing_ok=True)

    def _run_tests(self, arguments: Iterable[str], limit_s: float | None) -> tuple[int | None, str]:
        """Return pytest's exit code, None if the limit was reached, and what it printed."""
        command = [sys.executable, "-m", "pytest", "-q", "--no-header", "--tb=no", "-rfE"]
        process = subprocess.Popen(
            [*command, "-p", "no:cacheprovider", *arguments],
            cwd=self._folder,
            env=os.environ | {"PYTHONPATH": f"{self._folder}{os.pathsep}{self._folder / 'drivers'}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            return None, ""
        else:
            return process.returncode, output
        finally:
            if process.poll() is None:  # with what it has started
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()


def run(faults: list[Fault], *, processes: int, limit_s: float, top: Path = TOP) -> Iterator[Result]:
    """Plant each fault and yield what became of it; last, what of the catching tests proves nothing."""
    trees = SimpleQueue[Tree]()
    with tempfile.TemporaryDirectory(prefix="mutate-") as folder, ThreadPoolExecutor(processes) as threads:
        for number in range(processes):
            trees.put(Tree(Path(folder) / str(number), top))

        def catch(fault: Fault) -> Result:
            tree = trees.get()
            try:
                return tree.catch(fault, limit_s)
            finally:
                trees.put(tree)

        by_test: dict[str, str] = {}
        for result in threads.map(catch, faults):
            if result.caught:
                by_test.setdefault(result.test, result.name)
            yield result
        if by_test and (output := trees.get().failing(by_test)):
            for test in _FAILED.findall(output) or by_test:
                yield Result(by_test.get(test, ""), "its test fails without the fault as well", test)


def main(arguments: list[str] | None = None, top: Path = TOP) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(
        description="Plant faults, one at a time, and say which test catches it."
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="faults, or lists in tests/mutations (all)")
    parser.add_argument("--processes", type=int, default=1, help="how many faults at a time (1)")
    parser.add_argument("--limit", type=float, default=LIMIT_S, help=f"seconds for a fault ({LIMIT_S:g})")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_args(arguments)
    try:
        faults = chosen(read_faults(top), options.names)
    except KeyError as unknown:
        print(f"no fault or list is called {unknown}", file=sys.stderr)
        return 64
    results: list[Result] = []
    for result in run(faults, processes=options.processes, limit_s=options.limit, top=top):
        results.append(result)
        if not options.json:
            by = f" by {result.test}, {result.seconds:.0f} s" if result.test else ""
            print(f"{result.name}: {result.outcome}{by}", flush=True)
    n_caught = sum(result.caught for result in results)
    missed = [result for result in results if not result.caught]
    if options.json:
        print(json.dumps({"caught": n_caught, "results": [asdict(result) for result in results]}))
    else:
        print(f"{n_caught} of {len(faults)} faults caught")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
