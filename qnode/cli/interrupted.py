"""How a command ends on Ctrl-C."""

import os
import signal
import sys
from contextlib import suppress
from typing import NoReturn

EXIT_INTERRUPTED = 130


def end_interrupted() -> NoReturn:
    """Exit as shells expect it, at once: whatever had to be tidied up was, on the way here.

    The interpreter's own end would wait for threads, and ends with a signal instead of a status where the
    interrupt had come while some module was being made.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # pressed again, it disturbs nothing
    with suppress(OSError):
        sys.stdout.flush()
    with suppress(OSError):
        sys.stderr.flush()
    os._exit(EXIT_INTERRUPTED)
