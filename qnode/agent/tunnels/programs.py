"""Runs the programs that control an encryptor: secrets go in by standard input and come out nowhere."""

from collections.abc import Sequence
from typing import Final

import trio

from qnode.errors import TunnelError

PROGRAM_LIMIT_S: Final = 10.0
LONGEST_REASON_CHARACTERS: Final = 300


async def run_program(command: Sequence[str], *, text: str = "", secret: str = "") -> str:
    """Run ``command`` with ``text`` on its standard input, and return its standard output.

    ``secret`` is left out of what an error says.

    Raises:
        TunnelError: the program is not there, or failed, with its last words.
    """
    try:
        with trio.fail_after(PROGRAM_LIMIT_S):
            done = await trio.run_process(
                list(command), stdin=text.encode(), capture_stdout=True, capture_stderr=True, check=False
            )
    except OSError as error:
        raise TunnelError(f"{command[0]}: cannot be run: {error.strerror}: install it") from None
    except trio.TooSlowError:
        raise TunnelError(f"{' '.join(command)}: no answer within {PROGRAM_LIMIT_S:g} s") from None
    if done.returncode:
        said = (done.stderr or done.stdout).decode(errors="replace").strip()
        if secret:
            said = said.replace(secret, "(key)")
        reason = "; ".join(said.splitlines())[:LONGEST_REASON_CHARACTERS] or f"ended with {done.returncode}"
        raise TunnelError(f"{' '.join(command)}: {reason}")
    return done.stdout.decode(errors="replace")
