"""The interface through which a request for keys came, noted for the audit."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from qnode.choices import Door

_DOOR: ContextVar[Door] = ContextVar("door", default=Door.UNKNOWN)


@contextmanager
def through(door: Door) -> Iterator[None]:
    """Note ``door`` for every delivery in this task, and in the threads that it waits for."""
    before = _DOOR.set(door)
    try:
        yield
    finally:
        _DOOR.reset(before)


def present_door() -> Door:
    """Return the interface of the present request."""
    return _DOOR.get()
