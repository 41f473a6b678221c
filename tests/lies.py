"""Wrong values for every field of every message, made from the types of the messages themselves.

A message is taken apart into a tree of plain values, what the key stores say within it included; a lie is a
tree with one value changed. Most lies break a limit or a type, the others are values that could be true.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec import inspect as i

from qnode.keys import Assignment, Handover, Loss, Release, StoreStanding
from qnode.link.messages import Message
from qnode.node.supply.async_store import PeerMemory

# What key stores say within a message, by kind and field.
CONTENTS: dict[tuple[str, str], Any] = {
    ("assign", "assignment"): Assignment,
    ("void_assignments", "assignments"): list[Assignment],
    ("release_assignments", "releases"): list[Release],
    ("give_away", "handover"): Handover,
    ("void_handover", "handover"): Handover,
    ("void_lost", "loss"): Loss,
    ("hello", "positions"): PeerMemory,
    ("hello", "store"): StoreStanding,
}
LARGEST_BYTES_TRIED = 1 << 20
MOST_PARTS = 2  # of an array, of which each is lied about


@dataclass(frozen=True)
class Lie:
    """Where in a message something is wrong, how, and the whole of what is said instead."""

    field: str
    how: str
    said: Any


def tree_of(message: Message) -> dict[str, Any]:
    """Return a message as plain values, with its kind."""
    tree: dict[str, Any] = msgspec.to_builtins(message, builtin_types=(bytes,))
    return tree


def payload_of(tree: Any) -> bytes:
    """Return a tree as it travels."""
    return msgspec.msgpack.encode(tree)


def lies_about(message: Message) -> Iterator[Lie]:
    """Yield wrong messages in the place of ``message``."""
    info = i.type_info(type(message))
    assert isinstance(info, i.StructType)
    kind = str(info.tag)
    tree = tree_of(message)
    for how, wrong in (("unknown kind", "confession"), ("kind of a number", 7)):
        yield Lie("kind", how, tree | {"kind": wrong})
    yield Lie("", "unknown field", tree | {"truth": 1})
    yield from _fields(info, tree, "", kind)


def _fields(info: i.StructType, tree: dict[str, Any], path: str, kind: str) -> Iterator[Lie]:
    for field in info.fields:
        here = f"{path}{field.name}"
        name = field.encode_name
        if name not in tree:
            for value in _some(field.type):
                yield Lie(here, "said", tree | {name: value})
            yield Lie(here, "a list", tree | {name: [[]]})
            continue
        yield Lie(here, "missing", {key: value for key, value in tree.items() if key != name})
        for field_path, how, wrong in _wrong(field.type, tree[name], here, kind):
            yield Lie(field_path, how, tree | {name: wrong})


Wrong = Iterator[tuple[str, str, Any]]


def _wrong(kind_of: i.Type, value: Any, path: str, kind: str) -> Wrong:
    """Yield field, how, and a value in the place of ``value``."""
    content = CONTENTS.get((kind, path.rpartition(".")[2]))
    if content is not None and isinstance(value, bytes) and value:
        inner = msgspec.msgpack.decode(value)
        for field, how, wrong in _wrong(i.type_info(content), inner, path, ""):
            yield field, how, msgspec.msgpack.encode(wrong)
    match kind_of:
        case i.UnionType():
            yield from _of_union(kind_of, value, path, kind)
            return
        case i.IntType():
            yield from ((path, how, wrong) for how, wrong in _integers(kind_of, value))
        case i.FloatType():
            yield from ((path, how, wrong) for how, wrong in _floats(kind_of, value))
        case i.BytesType():
            yield from ((path, how, wrong) for how, wrong in _bytes(kind_of, value))
        case i.StrType():
            yield from ((path, how, wrong) for how, wrong in _texts(kind_of, value))
        case i.BoolType():
            yield path, "the contrary", not value
            yield path, "a number", 1
        case i.LiteralType():
            yield from ((path, f"{other}", other) for other in kind_of.values if other != value)
            yield path, "none of the words", "confessed"
        case i.EnumType():
            yield path, "none of the words", "confessed"
        case i.TupleType() | i.VarTupleType() | i.ListType():
            yield from _arrays(kind_of, value, path, kind)
        case i.DictType():
            yield from _tables(value, path)
        case i.StructType():
            yield from _structs(kind_of, value, path, kind)
        case _:
            raise AssertionError(f"{path}: {kind_of}")
    if not isinstance(kind_of, i.BoolType):
        yield path, "a truth value", True
    yield path, "null", None


def _of_union(kind_of: i.UnionType, value: Any, path: str, kind: str) -> Wrong:
    real = [one for one in kind_of.types if not isinstance(one, i.NoneType) and "Unset" not in str(one)]
    if value is None:
        for value_said in _some(kind_of):
            yield path, "said", value_said
        yield path, "a list", [[]]
    else:
        yield from _wrong(real[0], value, path, kind)


def _some(kind_of: i.Type) -> list[Any]:
    """Return a value that a field could have which is not said."""
    match kind_of:
        case i.UnionType():
            return [value for one in kind_of.types for value in _some(one)]
        case i.IntType():
            return [kind_of.ge or 0]
        case i.BoolType():
            return [True]
        case i.StrType():
            return ["word"]
        case i.TupleType():
            return [[value for one in kind_of.item_types for value in _some(one)[:1]]]
        case _:
            return []


def _integers(kind_of: i.IntType, value: int) -> Iterator[tuple[str, Any]]:
    low, high = kind_of.ge, kind_of.le
    for how, wrong in (
        ("one more", value + 1),
        ("one less", value - 1),
        ("zero", 0),
        ("twice", 2 * value),
        ("negative", -1),
        ("the least", low),
        ("the largest", high),
        ("beyond the largest", None if high is None else high + 1),
        ("of 64 bits", (1 << 64) - 1),
    ):
        if wrong is not None and wrong != value and -(1 << 63) <= wrong < 1 << 64:
            yield how, wrong
    yield "a text", str(value)
    yield "a fraction", value + 0.5


def _floats(kind_of: i.FloatType, value: float) -> Iterator[tuple[str, Any]]:
    for how, wrong in (
        ("not a number", math.nan),
        ("infinite", math.inf),
        ("minus infinite", -math.inf),
        ("zero", 0.0),
        ("negative", -1.0),
        ("the largest", kind_of.le),
        ("larger", 2.0 * value + 1e-3),
        ("nearly nothing", 5e-324),
    ):
        if wrong is not None and wrong != value:
            yield how, wrong
    yield "a text", str(value)


def _bytes(kind_of: i.BytesType, value: bytes) -> Iterator[tuple[str, Any]]:
    if value:
        yield "nothing", b""
        yield "a byte short", value[:-1]
        yield "first bit changed", bytes([value[0] ^ 1]) + value[1:]
        yield "last bit changed", value[:-1] + bytes([value[-1] ^ 0x80])
        if any(value):
            yield "zeros", bytes(len(value))
        if value != b"\xff" * len(value):
            yield "ones", b"\xff" * len(value)
    yield "a byte long", value + b"\x00"
    if kind_of.max_length is not None and kind_of.max_length <= LARGEST_BYTES_TRIED:
        yield "too long", bytes(kind_of.max_length + 1)
    yield "a text", "text"


def _texts(kind_of: i.StrType, value: str) -> Iterator[tuple[str, Any]]:
    if value:
        yield "nothing", ""
    yield "another word", value[:-1] + "Q"
    yield "control characters", "\x1b[2J\n"
    if kind_of.max_length is not None:
        yield "the longest", "x" * kind_of.max_length
        yield "too long", "x" * (kind_of.max_length + 1)
    yield "bytes", b"word"


def _arrays(kind_of: i.TupleType | i.VarTupleType | i.ListType, value: Any, path: str, kind: str) -> Wrong:
    items = list(value)
    yield path, "nothing", []
    yield path, "a text", "text"
    if items:
        yield path, "one short", items[:-1]
        yield path, "one long", [*items, items[-1]]
        if items != items[::-1]:
            yield path, "reversed", items[::-1]
    if not isinstance(kind_of, i.TupleType) and kind_of.max_length is not None and items:
        yield path, "too long", items[:1] * (kind_of.max_length + 1)
    for place in sorted({0, len(items) - 1} if items else ())[:MOST_PARTS]:
        inner = kind_of.item_types[place] if isinstance(kind_of, i.TupleType) else kind_of.item_type
        for field, how, wrong in _wrong(inner, items[place], f"{path}[{place}]", kind):
            yield field, how, [*items[:place], wrong, *items[place + 1 :]]


def _tables(value: dict[str, Any], path: str) -> Wrong:
    yield path, "nothing", {}
    yield path, "unknown key", value | {"truth": 1}
    first = next(iter(value), None)
    if first is not None:
        yield path, "key missing", {key: one for key, one in value.items() if key != first}
        yield path, "key of null", value | {first: None}
        deep: Any = 1
        for _ in range(60):
            deep = [deep]
        yield path, "deep", value | {first: deep}


def _structs(kind_of: i.StructType, value: Any, path: str, kind: str) -> Wrong:
    yield path, "a number", 1
    if kind_of.array_like:
        items = list(value)
        yield path, "one short", items[:-1]
        yield path, "one long", [*items, 0]
        for place, field in enumerate(kind_of.fields[: len(items)]):
            for field_path, how, wrong in _wrong(field.type, items[place], f"{path}.{field.name}", kind):
                yield field_path, how, [*items[:place], wrong, *items[place + 1 :]]
        return
    yield path, "unknown field", value | {"truth": 1}
    yield from ((lie.field, lie.how, lie.said) for lie in _fields(kind_of, value, f"{path}.", kind))
