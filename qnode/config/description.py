"""The meaning of each key of a configuration file, stated once beside its field.

A field is annotated: ``p_z: Annotated[float, Described("share of ...", limits=FRACTION)]``. The checks of
values, the effect of a reload and docs/configuration.md are made from it.
"""

import functools
import typing
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Final, NamedTuple

import msgspec.structs
from msgspec import Struct
from msgspec.structs import FieldInfo


class Limits(Struct, frozen=True):
    """The least and the greatest value of a number; ``exclusive``: both excluded. ``text`` describes them."""

    least: float
    most: float
    exclusive: bool = False
    text: str = ""

    def __str__(self) -> str:
        return self.text or f"{self.least:g} to {self.most:g}"

    def allow(self, value: Any) -> bool:
        """Return whether a number lies within (NaN does not); other values have no limits."""
        if not isinstance(value, int | float):
            return True
        if self.exclusive:
            return self.least < value < self.most
        return self.least <= value <= self.most


class Rule(Struct, frozen=True):
    """A condition on the value of a key; ``text`` describes it."""

    text: str
    holds: Callable[[Any], bool]

    def __str__(self) -> str:
        return self.text

    def allow(self, value: Any) -> bool:
        """Return whether the rule holds; an omitted value breaks no rule."""
        return value is None or self.holds(value)


FRACTION: Final = Limits(0.0, 1.0, exclusive=True, text="a fraction between 0 and 1")


class Described(Struct, frozen=True):
    """``meaning``: a text for people. ``unit``: needed if the name of the key does not end with it.

    ``limits``: checked by `beyond_limits`; a text describes a check of several keys together.
    ``reloaded``: a reload applies a change; otherwise the change waits for a restart.
    """

    meaning: str
    unit: str = ""
    limits: Limits | Rule | str = ""
    reloaded: bool = False


class DescribedKey(NamedTuple):
    """A field of a table: its name in the file, its type, its description, and its default."""

    name: str
    kind: Any
    described: Described
    field: FieldInfo


def keys_of(table: type[Struct] | Struct) -> tuple[DescribedKey, ...]:
    """Return the keys of a table, in their order."""
    return _keys_of(table if isinstance(table, type) else type(table))


@functools.cache
def _keys_of(kind: type[Struct]) -> tuple[DescribedKey, ...]:
    return tuple(
        DescribedKey(field.encode_name, plain(field.type), _described(field.type), field)
        for field in msgspec.structs.fields(kind)
    )


def is_table(kind: Any) -> bool:
    """Return whether a value of this type is a table."""
    return isinstance(kind, type) and issubclass(kind, Struct)


def plain(kind: Any) -> Any:
    """Return a type without its description."""
    return typing.get_args(kind)[0] if typing.get_origin(kind) is Annotated else kind


def _described(kind: Any) -> Described:
    said = getattr(kind, "__metadata__", ())
    return next((one for one in said if isinstance(one, Described)), Described(""))


def beyond_limits(table: Struct) -> Iterator[DescribedKey]:
    """Yield each key of ``table`` whose value is not within its limits."""
    for key in keys_of(table):
        limits = key.described.limits
        if not isinstance(limits, str) and not limits.allow(getattr(table, key.field.name)):
            yield key


def check_limits(table: Struct) -> None:
    """Refuse a table with a number beyond its limits; for the ``__post_init__`` of a table.

    Raises:
        ValueError: naming the key and what was expected.
    """
    for key in beyond_limits(table):
        expected = getattr(key.described.limits, "text", "") or f"a value from {key.described.limits}"
        raise ValueError(f"{key.name}: expected {expected}, got {getattr(table, key.field.name)}")


def limit_faults(table: Struct, where: str) -> Iterator[str]:
    """Describe each key of ``table`` beyond its limits; ``where``: the name of the table."""
    for key in beyond_limits(table):
        yield fault(table, where, key.name)


def fault(table: Struct, where: str, name: str, detail: str = "") -> str:
    """Describe the expected value of the key ``name``, with a ``detail``, and the found value."""
    (key,) = (one for one in keys_of(table) if one.name == name)
    limits, value = key.described.limits, getattr(table, key.field.name)
    shown = list(value) if isinstance(value, tuple) else value
    if isinstance(limits, Limits) and not limits.exclusive:
        shown = f"{value:g}"
    return f"{where}.{name}: expected {limits}{detail}, got {shown}"
