"""A checkout whose code is measured in processes of its own."""

import os
import subprocess
import sys
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec

import qnode
from qnode.commit import commit_of
from qnode.errors import ConfigError, QnodeError
from qnode.kernel_cache import cache_base

INSIDE = Path(__file__).parent / "inside"
_PACKAGES = (Path("qnode"), Path("drivers", "qnode_drivers"))


class CaseFailed(QnodeError):
    """A figure cannot be had of a checkout; the message is the reason."""


@dataclass(frozen=True)
class Checkout:
    """The folder that holds ``qnode``; ``kernels``: its folder for machine code, None for the usual one."""

    top: Path
    kernels: Path | None = None

    @classmethod
    def this(cls) -> "Checkout":
        """Return the code that runs here."""
        return cls(Path(qnode.__file__).parent.parent)

    @classmethod
    def other(cls, top: Path) -> "Checkout":
        """Return the checkout at ``top``, whose machine code is kept apart from that of this one.

        Raises:
            ConfigError: it is no checkout of qnode.
        """
        top = top.resolve()
        for package in _PACKAGES:
            if not (top / package / "__init__.py").is_file():
                raise ConfigError(
                    f"{top}: no checkout of qnode, {package / '__init__.py'} is not there; "
                    "make one with: git worktree add DIR COMMIT"
                )
        return cls(top, cache_base() / "against" / sha256(os.fsencode(top)).hexdigest()[:16])

    @property
    def environment(self) -> dict[str, str]:
        """The environment of its processes."""
        places = [str(self.top), str(self.top / "drivers"), os.environ.get("PYTHONPATH", "")]
        own = {"PYTHONPATH": os.pathsep.join(place for place in places if place)}
        if self.kernels is not None:
            own["QNODE_CACHE_DIR"] = str(self.kernels)
        return os.environ | own

    @property
    def commit(self) -> str | None:
        """The commit of the checkout, if it is known."""
        return commit_of(self.top)

    def command(self, *words: str) -> list[str]:
        """Return the command that runs Python with its code."""
        return [sys.executable, "-P", *words]

    def run(self, *words: str) -> str:
        """Run Python with its code; return what was printed.

        Raises:
            CaseFailed: the process failed; the message is its last line.
        """
        done = subprocess.run(
            self.command(*words), env=self.environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise CaseFailed(last_line(done.stderr) or f"exit status {done.returncode}")
        return done.stdout

    def run_inside(self, script: str, *words: str) -> Any:
        """Run a script of `inside`; return the JSON that it printed; raises like `run`."""
        return msgspec.json.decode(self.run(str(INSIDE / script), *words))

    def prepare(self) -> str:
        """Compile its kernels; return its version.

        Raises:
            CaseFailed: its code does not run with this Python and these packages.
        """
        version = self.run("-c", "import qnode, qnode.cli.main, qnode_drivers; print(qnode.__version__)")
        self.run("-m", "qnode", "warm")
        return version.strip()


def last_line(text: str) -> str:
    """Return the last line that says something."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")
