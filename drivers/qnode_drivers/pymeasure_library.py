"""An instrument of pymeasure, or of another class with properties, in its own process."""

import importlib
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class PropertyFault(Exception):
    """Whatever the library raised, with the name of the property."""


@contextmanager
def _named_in_faults(path: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise PropertyFault(f"{path}: {type(error).__name__}: {error}") from error


class PymeasureLibrary:
    """Owns one instrument, and reads and sets its properties."""

    def __init__(self) -> None:
        self._instrument: Any = None

    def open(self, instrument: str, resource: str, options: dict[str, Any], packages: str) -> dict[str, Any]:
        """Open ``resource`` with the class ``instrument`` (MODULE:CLASS).

        ``packages``: a folder of Python packages that is searched after the node's own.
        """
        if packages:
            sys.path.append(packages)
        arguments = {name: _value_of(one) for name, one in options.items()}
        self._instrument = _named(instrument)(resource, **arguments)
        return {"identity": self._identity()}

    def get(self, path: str) -> dict[str, Any]:
        """Return a property; ``path`` may lead through channels. What is no finite number is a text."""
        with _named_in_faults(path):
            owner, name = self._owner(path)
            value = getattr(owner, name)
        finite = isinstance(value, int | float) and math.isfinite(value)
        return {"value": float(value) if finite else str(value)}

    def set(self, path: str, value: Any) -> None:
        """Set a property."""
        with _named_in_faults(path):
            owner, name = self._owner(path)
            setattr(owner, name, _value_of(value))

    def close(self) -> None:
        """Close the way to the instrument."""
        adapter = getattr(self._instrument, "adapter", None)
        if adapter is not None:
            adapter.close()

    def _owner(self, path: str) -> tuple[Any, str]:
        *channels, name = path.split(".")
        owner = self._instrument
        for channel in channels:
            owner = getattr(owner, channel)
        return owner, name

    def _identity(self) -> str:
        """Return what the instrument says of itself, or else the name that the library gives it."""
        try:
            return str(self._instrument.id)
        except Exception:  # noqa: BLE001 - many classes have none, or raise what they like
            return str(getattr(self._instrument, "name", type(self._instrument).__name__))


def _named(path: str) -> Any:
    module, _, names = path.partition(":")
    found = importlib.import_module(module)
    for name in names.split("."):
        found = getattr(found, name)
    return found


def _value_of(given: Any) -> Any:
    """Return a value to set; a text `pymeasure.module:Class.MEMBER` is what it names."""
    is_name = isinstance(given, str) and given.startswith("pymeasure.") and ":" in given
    return _named(given) if is_name else given
