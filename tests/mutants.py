"""Makes every small change of small pure modules with cosmic-ray, and shows those that no test notices.

    make mutants

It works in a copy of the checkout, takes some minutes a module, and ends with 1 if a change was not noticed
that is not in `SAME`. cosmic-ray is no dependency of qnode: `make mutants` installs it in an environment of
its own.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from mutate import TOP, copied

# Each module, and the tests that shall notice every change of it.
MODULES = {
    "qnode/block/decision.py": ("tests/test_block_decision.py",),
    "qnode/block/disclosed.py": ("tests/test_block_decision.py",),
    "qnode/distill/sifting/span_parts.py": ("tests/test_protocol_2.py",),
}
# Lines as cosmic-ray makes them that do the same as before.
SAME = {
    "qnode/block/decision.py": {
        # Of two words that are possible.
        'if link.reconciliation.leak_count <= "alice":',
        'extra = math.ceil(math.log2(n_bits + 1)) if link.reconciliation.leak_count >= "both" else 0',
        'error_positions_public=not first_protocol and link.reconciliation.leak_count <= "alice",',
        'if link.receiver.dead_time >= "joint":',
        # Everybody names it.
        "def decide(counts: BlockCounts, link: LinkParameters, /, recorded: bool = False) -> KeyLength:",
        # A bit more or less is no other limit.
        "MOST_SIFTED_BITS = 60000001",
        "MOST_SIFTED_BITS = 59999999",
    },
    "qnode/block/disclosed.py": {"@dataclass(frozen=False)"},
}
TIMEOUT_S = 120.0
_CONFIGURATION = """
[cosmic-ray]
module-path = "{module}"
timeout = {timeout_s}
excluded-modules = []
test-command = "{python} -m pytest -x -q --tb=no -p no:cacheprovider {tests}"
[cosmic-ray.distributor]
name = "local"
"""


def survivors(tool: str, module: str, tests: tuple[str, ...], tree: Path) -> Iterator[str]:
    """Make every change of ``module`` in ``tree`` and yield the new line of each that no test notices."""
    configuration, session = tree / "cosmic-ray.toml", tree / "cosmic-ray.sqlite"
    session.unlink(missing_ok=True)
    configuration.write_text(
        _CONFIGURATION.format(
            module=module, timeout_s=TIMEOUT_S, python=sys.executable, tests=" ".join(tests)
        )
    )
    environment = os.environ | {"PYTHONPATH": f"{tree}{os.pathsep}{tree / 'drivers'}"}

    def run(*arguments: str | Path) -> str:
        command = [tool, *(str(one) for one in arguments)]
        return subprocess.run(
            command, cwd=tree, env=environment, check=True, stdout=subprocess.PIPE, text=True
        ).stdout

    run("init", configuration, session)
    run("exec", configuration, session)
    for line in run("dump", session).splitlines():
        _, result = json.loads(line)
        if result["test_outcome"] == "survived":
            yield next(one[1:].strip() for one in reversed(result["diff"].splitlines()) if one[:1] == "+")


def main(arguments: list[str]) -> int:
    """Run the tool named first on all modules, or on those named behind it."""
    tool, *modules = arguments
    n_missed = 0
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        tree = copied(TOP, Path(folder) / "tree")
        for module in modules or MODULES:
            missed = sorted(set(survivors(tool, module, MODULES[module], tree)) - SAME.get(module, set()))
            n_missed += len(missed)
            print(f"{module}: {len(missed)} changes that no test notices", *missed, sep="\n    ", flush=True)
    return 1 if n_missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
