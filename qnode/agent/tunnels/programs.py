"""Runs the programs that control an encryptor: secrets go in by standard input and come out nowhere."""

import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import trio

from qnode.errors import TunnelError

PROGRAM_LIMIT_S: Final = 10.0
LONGEST_REASON_CHARACTERS: Final = 300


@dataclass(frozen=True)
class Ended:
    """A program that has ended; what it wrote may have a key in it."""

    status: int
    output: bytes = field(repr=False)
    errors: bytes = field(repr=False)


async def run_program(
    command: Sequence[str],
    *,
    named: str,
    given: bytes = b"",
    limit_s: float = PROGRAM_LIMIT_S,
    environment: Mapping[str, str] | None = None,
    kept: bool = True,
    to_its_end: bool = False,
    remedy: str = "",
) -> Ended:
    """Run ``command`` with ``given`` on its standard input; after ``limit_s`` it is killed.

    ``named``: its name in errors; ``remedy``: what to do if it is not there. ``environment``: beside that of
    this process. ``kept``: return what it writes; otherwise that goes nowhere, and what it leaves running in
    the background is not waited for. ``to_its_end``: a cancellation does not end it.

    Raises:
        TunnelError: it cannot be run, or takes too long.
    """
    written: dict[str, Any] = (
        {"capture_stdout": True, "capture_stderr": True}
        if kept
        else {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    )
    try:
        with trio.fail_after(limit_s, shield=to_its_end):
            done = await trio.run_process(
                list(command),
                stdin=given,
                check=False,
                env={**os.environ, **(environment or {})},
                deliver_cancel=_kill,
                **written,
            )
    except OSError as error:
        raise TunnelError(f"{named}: cannot be run: {error.strerror or error}{remedy}") from None
    except trio.TooSlowError:
        raise TunnelError(f"{named}: not done within {limit_s:g} s") from None
    return Ended(done.returncode, done.stdout or b"", done.stderr or b"")


async def output_of(command: Sequence[str], *, text: str = "", secret: str = "") -> str:
    """Run ``command`` with ``text`` on its standard input, and return its standard output.

    ``secret`` is left out of what an error says.

    Raises:
        TunnelError: the program cannot be run, takes too long, or failed, with its last words.
    """
    named = " ".join(command)
    done = await run_program(command, named=named, given=text.encode(), remedy=": install it")
    if done.status:
        said = (done.errors or done.output).decode(errors="replace").strip()
        if secret:
            said = said.replace(secret, "(key)")
        reason = "; ".join(said.splitlines())[:LONGEST_REASON_CHARACTERS] or f"ended with {done.status}"
        raise TunnelError(f"{named}: {reason}")
    return done.output.decode(errors="replace")


async def _kill(process: trio.Process) -> None:
    process.kill()
