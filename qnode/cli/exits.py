"""The exit codes of the commands, which are an interface."""

from typing import Final

EXIT_OK: Final = 0
EXIT_DEGRADED: Final = 1
EXIT_NOT_RUNNING: Final = 2
EXIT_CANNOT_TELL: Final = 3
EXIT_USAGE: Final = 64
