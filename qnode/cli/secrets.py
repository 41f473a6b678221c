"""What every command does first that will hold key material."""

import resource


def forbid_core_dumps() -> None:
    """Have a crash leave no copy of the process's memory on disk."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
