"""What a target of the fuzzer is, and what its decoders are held to."""

import tempfile
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import msgspec


class Target(NamedTuple):
    """``decode`` returns or raises one of ``errors``; ``seeds`` are inputs that it takes."""

    decode: Callable[[bytes], object]
    errors: tuple[type[Exception], ...]
    seeds: Callable[[], Iterable[bytes]]


class NotTheSame(Exception):
    """What was decoded encodes to something that decodes otherwise."""


def same(first: object, second: object) -> None:
    """Raise NotTheSame unless both are equal; a number that is none equals itself."""
    if first != second and repr(first) != repr(second):
        raise NotTheSame(f"{first!r} and {second!r}")


@contextmanager
def taken_again() -> Iterator[None]:
    """Raise NotTheSame for any error in the body: what was decoded must encode, and decode again."""
    try:
        yield
    except NotTheSame:
        raise
    except Exception as error:
        raise NotTheSame(f"{type(error).__name__}: {error}") from error


def at_once(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Return what a coroutine that never waits returns."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        return end.value
    raise RuntimeError("it waits")


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    memory = Path("/dev/shm")
    return tempfile.TemporaryDirectory(prefix="fuzz-", dir=memory if memory.is_dir() else None)


def in_file(data: bytes, name: str) -> Path:
    """Return a file with this content."""
    path = Path(_folder().name) / name
    path.write_bytes(data)
    path.chmod(0o600)
    return path


def example(kind: Any) -> Any:
    """Return an instance of a message kind with the least values that its fields take."""
    values: dict[str, Any] = {}
    for field in msgspec.structs.fields(kind):
        values[field.name] = _value(msgspec.inspect.type_info(field.type))
    return kind(**values)


def _value(shown: msgspec.inspect.Type) -> Any:
    match shown:
        case msgspec.inspect.Metadata():
            return _value(shown.type)
        case msgspec.inspect.IntType():
            return int(shown.ge or 0) + 1
        case msgspec.inspect.FloatType():
            return 0.5
        case msgspec.inspect.BytesType():
            return bytes(range(shown.min_length or 3))
        case msgspec.inspect.StrType():
            return "word"
        case msgspec.inspect.BoolType():
            return True
        case msgspec.inspect.LiteralType():
            return shown.values[0]
        case msgspec.inspect.EnumType():
            return next(iter(shown.cls))
        case msgspec.inspect.TupleType():
            return tuple(_value(one) for one in shown.item_types)
        case msgspec.inspect.VarTupleType():
            return (_value(shown.item_type),) * max(1, shown.min_length or 0)
        case msgspec.inspect.StructType():
            return example(shown.cls)
        case msgspec.inspect.DictType():
            return {"table": {"key": 1}}
        case msgspec.inspect.UnionType():
            return _value(shown.types[0])
        case _:
            return None


def seeds_of(kinds: Iterable[Any]) -> Iterable[bytes]:
    for kind in kinds:
        yield msgspec.msgpack.encode(example(kind))


def kinds(union: Any) -> tuple[Any, ...]:
    return tuple(union.__args__)
