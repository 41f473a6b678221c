"""Reads TOML as structs. A wrong file gives one line with error, place and remedy, or all such lines."""

import difflib
import tomllib
import types
import typing
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import msgspec
from msgspec import Struct

from qnode.config.description import is_table, keys_of
from qnode.errors import ConfigError

S = TypeVar("S", bound=Struct)
T = TypeVar("T")


class Impossible(ValueError):
    """Values of the right type that are impossible; ``faults`` names all, the message is the first."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__(faults[0])
        self.faults = faults

    @classmethod
    def check(cls, faults: Iterable[str]) -> None:
        """Raise if there are any ``faults``."""
        found = list(faults)
        if found:
            raise cls(found)

    def __reduce__(self) -> tuple[type[Self], tuple[list[str]]]:
        return type(self), (self.faults,)


def load(path: Path, kind: type[S]) -> S:
    """Read the TOML file at ``path`` as ``kind``; relative paths in it are taken from the file's folder.

    Raises:
        ConfigError: one line that names the file, the table, the key, what was expected, and a near match.
    """
    return convert(read_tables(path), kind, where=str(path), folder=path.resolve().parent)


def read_tables(path: Path) -> dict[str, Any]:
    """Return the tables of the TOML file at ``path``.

    Raises:
        ConfigError: the file cannot be read, or is not TOML.
    """
    try:
        return tables_in(path.read_bytes().decode(), str(path))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not TOML: {error}") from None


def tables_in(text: str, where: str) -> dict[str, Any]:
    """Return the tables of a TOML text; raises ConfigError, which names ``where``."""
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{where}: not TOML: {error}") from None


def convert(raw: dict[str, Any], kind: type[T], *, where: str, folder: Path | None = None) -> T:
    """Convert plain tables to ``kind``; refuse unknown keys by name before types are checked.

    Raises:
        ConfigError: as in `load`.
    """
    for fault in (*_unknown(raw, kind, ()), *_removed(raw)):
        raise ConfigError(f"{where}: {fault}")
    try:
        return _convert(raw, kind, folder)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where}: {_located(str(error), raw, kind)}") from None


def reading_faults(raw: dict[str, Any], kind: type[Struct]) -> list[str]:
    """Return all faults of ``raw`` as a ``kind``, each in the words of `convert`."""
    return [*_unknown(raw, kind, ()), *_removed(raw), *_wrong(raw, kind, ())]


def usable(raw: Any, kind: type[S], folder: Path) -> S | None:
    """Return ``raw`` as a ``kind`` without its unknown keys; None if that is impossible."""
    try:
        return _convert(_known(raw, kind), kind, folder)
    except msgspec.ValidationError:
        return None


def tables(struct: Struct) -> dict[str, Any]:
    """Return ``struct`` as plain tables for TOML, which has no null: absent keys are dropped."""
    return {key: _present(value) for key, value in msgspec.to_builtins(struct).items() if value is not None}


def _present(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _present(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_present(item) for item in value]
    return value


def _convert(raw: Any, kind: type[T], folder: Path | None) -> T:
    def decode(expected: type, value: Any) -> Any:
        if expected is not Path:
            raise NotImplementedError
        if not isinstance(value, str):
            raise TypeError("Expected `str`")  # the wording and place of msgspec for other types
        if "\0" in value:
            raise ValueError("Expected a path without a null character")
        return (folder / value) if folder is not None else Path(value)

    return msgspec.convert(raw, kind, dec_hook=decode)


def _located(message: str, raw: dict[str, Any], kind: Any) -> str:
    """Turn msgspec's "... - at `$.a.b`" into "[a] b: ...", with the value found there."""
    text, marker, position = message.partition(" - at `")
    if not marker:
        return message
    steps = [step for step in position.rstrip("`").replace("$", "", 1).split(".") if step]
    value: Any = raw
    for step in steps:
        name, _, place = step.partition("[")
        value, kind = value.get(name) if isinstance(value, dict) else None, _kind_of(name, kind)
        if place and isinstance(value, list):
            index = place.rstrip("]")
            value = value[int(index)] if index.isdigit() and int(index) < len(value) else None
            kind = typing.get_args(kind)[0]
    return _placed(text, ".".join(steps[:-1]), steps[-1], value, kind) if steps else text


def _kind_of(key: str, kind: Any) -> Any:
    """Return the kind of the value under ``key`` in a table of ``kind``; None if it is unknown."""
    if typing.get_origin(kind) is dict:
        return typing.get_args(kind)[1]
    structs = [one for one in (kind, *typing.get_args(kind)) if is_table(one)]
    fields = {key.name: key.kind for one in structs for key in keys_of(one)}
    return fields.get(key)


def _choices(kind: Any) -> list[str]:
    """Return the choices for a value of ``kind``, if it has a few choices, or such choices or a number."""
    if typing.get_origin(kind) is Literal:
        return [str(choice) for choice in typing.get_args(kind)]
    numbers = {int: "a whole number", float: "a number"}
    found = [choice for option in typing.get_args(kind) for choice in _choices(option)]
    return found + [numbers[option] for option in typing.get_args(kind) if option in numbers] if found else []


def _placed(text: str, table: str, key: str, value: Any, kind: Any) -> str:
    choices = _choices(kind)
    if choices:
        near = difflib.get_close_matches(value, choices, 1, 0.5) if isinstance(value, str) else []
        text = f"expected {' or '.join(choices)}" + (f", did you mean {near[0]}?" if near else "")
    got = f" (got {value!r})" if isinstance(value, str | int | float | bool) else ""
    if isinstance(value, dict):  # the message about a table names the key itself
        return f"[{table}.{key}] {text}" if table else f"[{key}] {text}"
    return (f"[{table}] " if table else "") + f"{key}: {text[0].lower()}{text[1:]}{got}"


def _removed(raw: dict[str, Any]) -> Iterator[str]:
    """Find values of earlier versions, and name their replacements."""
    link = raw.get("link")
    estimation = link.get("estimation") if isinstance(link, dict) else None
    if isinstance(estimation, dict) and estimation.get("asymmetry_bound") == "reference":
        yield (
            '[link.estimation] asymmetry_bound: "reference" is no longer offered, as its claimed '
            'epsilon does not hold; use "shares" (the default), or "joint" with a peer of protocol 1'
        )


def _members(raw: Any, kind: Any, table: tuple[str, ...]) -> Iterator[tuple[Any, Any, tuple[str, ...]]]:
    """Yield each part of ``raw`` that may be a table: its value, its kind, and its place."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if is_table(kind) and isinstance(raw, dict):
        fields = {key.name: key.kind for key in keys_of(kind)}
        yield from ((raw[key], fields[key], (*table, key)) for key in raw if key in fields)
    elif origin is dict and isinstance(raw, dict):
        yield from ((value, arguments[1], (*table, key)) for key, value in raw.items())
    elif origin is tuple and isinstance(raw, list) and is_table(arguments[0]):
        yield from ((value, arguments[0], (*table[:-1], f"{table[-1]}[{n}]")) for n, value in enumerate(raw))
    elif origin in (typing.Union, types.UnionType):
        yield from ((raw, option, table) for option in arguments if is_table(option))


def near_or_known(key: str, known: Sequence[str]) -> str:
    """Return the hint for an unknown ``key``: a near match, or what is known."""
    near = difflib.get_close_matches(key, known, 1, 0.5)
    return f", did you mean {near[0]}?" if near else f"; known: {', '.join(known)}"


def _unknown(raw: Any, kind: Any, table: tuple[str, ...]) -> Iterator[str]:
    """Compare ``raw`` with the struct ``kind`` and find the keys that the struct does not have."""
    if is_table(kind) and isinstance(raw, dict):
        fields = [key.name for key in keys_of(kind)]
        for key, value in raw.items():
            if key not in fields:
                place = f"[{'.'.join(table)}] " if table else ""
                noun = "table" if isinstance(value, dict) else "key"
                yield f"{place}unknown {noun} {key}{near_or_known(key, fields)}"
    for member in _members(raw, kind, table):
        yield from _unknown(*member)


def _wrong(raw: Any, kind: Any, table: tuple[str, ...]) -> Iterator[str]:
    """Compare ``raw`` with the struct ``kind``: find missing keys, wrong types and impossible values."""
    found = []
    if is_table(kind) and isinstance(raw, dict):
        place = f"[{'.'.join(table)}] " if table else ""
        for key in keys_of(kind):
            if key.field.required and key.name not in raw:
                found.append(f"{place}{key.name}: is missing")
    for member in _members(raw, kind, table):
        found += _wrong(*member)
    yield from found
    if not found:
        try:
            _convert(_known(raw, kind), kind, None)
        except msgspec.ValidationError as error:
            if isinstance(error.__cause__, Impossible):
                yield from error.__cause__.faults
            else:
                text = str(error).partition(" - at `")[0]
                yield _placed(text, ".".join(table[:-1]), table[-1], raw, kind) if table else text


def _known(raw: Any, kind: Any) -> Any:
    """Return ``raw`` without the keys that ``kind`` does not have."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if is_table(kind) and isinstance(raw, dict):
        fields = {key.name: key.kind for key in keys_of(kind)}
        return {key: _known(value, fields[key]) for key, value in raw.items() if key in fields}
    if origin is dict and isinstance(raw, dict):
        return {key: _known(value, arguments[1]) for key, value in raw.items()}
    if origin is tuple and isinstance(raw, list) and is_table(arguments[0]):
        return [_known(value, arguments[0]) for value in raw]
    if origin in (typing.Union, types.UnionType):
        for option in arguments:
            if is_table(option):
                return _known(raw, option)
    return raw
