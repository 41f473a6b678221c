"""Who changes something at present, noted for the audit."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_WHO: ContextVar[str] = ContextVar("who", default="")


@contextmanager
def acting(who: str) -> Iterator[None]:
    """Note ``who`` for every change in this task, and in the threads that it waits for."""
    before = _WHO.set(who)
    try:
        yield
    finally:
        _WHO.reset(before)


def by_operator(change: tuple[str, str, str]) -> tuple[str, str, str]:
    """Return a change (what, its subject, how) with who makes it, as far as that is known."""
    what, subject, details = change
    return (what, subject, ", ".join(part for part in (details, _WHO.get()) if part))
