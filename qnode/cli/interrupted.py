"""The end of a command by a signal."""

import os
import signal
import sys
from contextlib import suppress
from typing import NoReturn

EXIT_INTERRUPTED = 130


def ending_signals() -> tuple[signal.Signals, ...]:
    """Return the signals on which a command that has started others stops them and ends.

    SIGHUP comes when a terminal or an ssh connection closes; under nohup it is ignored, and stays so.
    """
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return (signal.SIGINT, signal.SIGTERM, *(() if ignored else (signal.SIGHUP,)))


def end_interrupted() -> NoReturn:
    """Exit at once, as shells expect; the clean-up was done before this call.

    The interpreter's normal end would wait for threads. It would end with a signal instead of a status if the
    interrupt came during an import.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C has no effect
    with suppress(OSError):
        sys.stdout.flush()
    with suppress(OSError):
        sys.stderr.flush()
    os._exit(EXIT_INTERRUPTED)
