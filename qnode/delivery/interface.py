"""An interface for encryptors over HTTP as a table: its routes, and the bodies of keys and of refusals.

Each edition of a standard is one such table over the same `Delivery`. `application` serves a table, and
`description` describes it for programs.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from msgspec import Struct

from qnode.delivery.calls import Given
from qnode.delivery.directory import SaeEntry
from qnode.delivery.refusal import Refusal
from qnode.delivery.supply import Key


@dataclass(frozen=True)
class Asked:
    """A request of an SAE: the segments of its path by name, its query and its body, not read yet."""

    caller: SaeEntry
    path: Mapping[str, str]
    query: bytes
    body: bytes
    client_gone: Callable[[], bool]


@dataclass(frozen=True)
class Parameter:
    """A parameter of a query; ``schema`` is the JSON Schema of its value."""

    name: str
    schema: Mapping[str, Any]
    required: bool = False


@dataclass(frozen=True)
class Route:
    """One method of one path; ``path`` has the names of its variable segments in braces.

    ``call`` returns the body of the answer, or keys, which become a body by `Interface.container`. It raises
    Refusal. Everything after it is for the description: ``answer`` is the kind of body that an answer 200
    has, ``body`` that of the request, and ``statuses`` are those of refusals.
    """

    method: str
    path: str
    summary: str
    call: Callable[[Asked], Awaitable[Struct | Given]]
    answer: type[Struct]
    statuses: tuple[int, ...]
    query: tuple[Parameter, ...] = ()
    body: type[Struct] | None = None


@dataclass(frozen=True)
class Interface:
    """A complete interface; ``name`` is that of its table in the configuration.

    ``closes``: close the connection after each answer. ``fields``: the JSON Schema of fields of bodies, by
    "Body.field", where limits of the configuration count. ``segments``: that of segments of paths, by name.
    """

    name: str
    title: str
    version: str
    summary: str
    routes: tuple[Route, ...]
    container: Callable[[list[Key]], Struct]
    refusal: Callable[[Refusal], Struct]
    refusal_body: type[Struct]
    closes: bool = False
    fields: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    segments: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
