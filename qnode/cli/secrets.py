"""The first step of every command that will hold key material."""

import resource


def forbid_core_dumps() -> None:
    """Make sure that a crash leaves no copy of the process's memory on disk."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
