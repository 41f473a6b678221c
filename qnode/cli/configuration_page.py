"""Every key of the configuration files, from their structs; the page of `qnode report configuration`."""

import inspect
import json
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import msgspec
from msgspec import Struct

from qnode.choices import choices_of
from qnode.config import OF_EACH_LINK, LinkParameters, SiteConfig
from qnode.config.description import DescribedKey, is_table, keys_of
from qnode.devices.registry import known_drivers, load_driver
from qnode.loopback.markdown import table
from qnode.simulate.parameters import Settings, SimulationParameters

_UNITS: Final = {"s": "s", "ps": "ps", "hz": "Hz", "bits": "bits", "db": "dB", "rad": "rad", "ppm": "ppm"}
_TYPES: Final = {int: "whole number", float: "number", bool: "true or false", str: "text", Path: "path"}
# A scheduled change sets settings of the same names.
_SETTINGS: Final = {key.name: key for key in keys_of(Settings)}

_HOW: Final = """\
A site has one TOML file, which `qnode run --config FILE` reads; `qnode check FILE` lists every error in it.
An unknown key is an error. A relative path starts at the folder of the file. A key without a default is
*required*. *none* means that the key may be omitted and then has no value."""
_SITE: Final = """\
These tables belong to one site. *Reload*: `systemctl reload` (SIGHUP) applies a change of the key. *Restart*:
a change waits for the next start of the daemon ([operations](operations.md))."""
_LINKS: Final = """\
A site with several links has one `[[link]]` for each of them instead of `[link]`. It holds everything that
belongs to the link: the keys and tables of `[link]`, and {own}. So `[peer.tls]` becomes
`[link.peer.tls]`. `role` may be omitted if it is the role of `[node]`. Each link needs its own name, peer,
store and pre-shared key, and at Alice its own address."""
_LINK: Final = """\
These tables must be equal at both sites. The sites compare them when they connect; a difference ends the
session, and both logs name it. Every key may be omitted, and every table except `[link]` itself. Every change
waits for a restart of both daemons."""
_SIMULATION: Final = """\
The files of `qnode loopback`, `qnode record` and `qnode plan` have the tables of the link and these tables.
The commands read them once, at the start."""
_DRIVERS: Final = """\
A device of a site names its driver, which reads the table `config` of the device. Every change waits for a
restart."""


class DescribedTable(NamedTuple):
    """A table of a file: its heading, what it is, the titles of what is said of a key, and the keys.

    The texts are Markdown.
    """

    heading: str
    what: str
    titles: list[str]
    rows: list[list[str]]

    def __str__(self) -> str:
        parts = [f"### {self.heading}", self.what]
        if self.rows:
            parts.append(table(self.titles, self.rows, words=range(len(self.titles))))
        return "\n\n".join(parts)


def site_tables() -> list[DescribedTable]:
    """Return the tables of a site's file, without those of its drivers."""
    page = _Page()
    page.places[LinkParameters] = "[link]"
    return [*page.tables(SiteConfig, "", change="restart"), *page.tables(LinkParameters, "link")]


def configuration_page(command: str) -> str:
    """Return the page in Markdown; ``command`` made it."""
    page = _Page()
    page.places[LinkParameters] = "[link]"
    parts: list[str | DescribedTable] = [
        "# Configuration",
        f"Made by `{command}` from the program. Do not edit.",
        _HOW,
        "## The site",
        _SITE,
        *page.tables(SiteConfig, "", change="restart"),
        "## The link",
        _LINK,
        *page.tables(LinkParameters, "link"),
        "## Several links",
        _LINKS.format(own=", ".join(f"`{name}`" for name in OF_EACH_LINK)),
        "## The simulated link",
        _SIMULATION,
        *page.tables(SimulationParameters, "simulation"),
        "## The drivers",
        _DRIVERS,
    ]
    page.places[SimulationParameters] = "[simulation]"
    for name in known_drivers():
        driver = load_driver(name)
        if driver.__module__.startswith("qnode_drivers."):
            parts += page.tables(driver.Config, "devices.NAME.config", of=f" of `{name}`")
    return "\n\n".join(map(str, parts)) + "\n"


class _Page:
    """``places``: the heading under which each kind of table is described."""

    def __init__(self) -> None:
        self.places: dict[type[Struct], str] = {}

    def tables(
        self, kind: type[Struct], path: str, *, change: str = "", of: str = ""
    ) -> Iterator[DescribedTable]:
        """Yield a table, then the tables in it; a file has no ``path``.

        ``change``: how a change of a key is applied unless the key states it; empty: not shown.
        """
        rows, deeper = [], []
        for key in keys_of(kind):
            applied = "reload" if change and key.described.reloaded else change
            inner = _table_in(key.kind)
            if inner is None:
                rows.append(_row(key, applied))
            elif inner in self.places:
                rows.append(_row(key, applied, f"table with the keys of `{self.places[inner]}`"))
            else:
                below = ".".join(filter(None, (path, key.name, "NAME" if _is(key.kind, dict) else "")))
                self.places[inner] = f"[[{below}]]" if _is(key.kind, tuple) else f"[{below}]"
                deeper.append((inner, below, applied))
        if path:
            titles = ["key", "type", "unit", "default", "limits", *(["change"] if change else []), "meaning"]
            what = inspect.cleandoc(kind.__doc__ or "").replace("``", "`")
            yield DescribedTable(f"{self.places.get(kind, f'[{path}]')}{of}", what, titles, rows)
        for inner, below, applied in deeper:
            yield from self.tables(inner, below, change=applied)


def _row(key: DescribedKey, change: str, meaning: str = "") -> list[str]:
    said = key.described if key.described.meaning else _SETTINGS.get(key.name, key).described
    default = key.field.default
    return [
        f"`{key.name}`",
        "table" if meaning else _type(key.kind),
        said.unit or _UNITS.get(key.name.rpartition("_")[2], ""),
        "" if meaning else "*required*" if key.field.required else _value(default),
        str(said.limits),
        *([change] if change else []),
        meaning or said.meaning,
    ]


def _is(kind: Any, origin: Any) -> bool:
    return typing.get_origin(kind) is origin


def _table_in(kind: Any) -> type[Struct] | None:
    """Return the kind of table that a key holds: one, a list of them, or one for each name."""
    tables: Iterator[type[Struct]] = (one for one in (kind, *typing.get_args(kind)) if is_table(one))
    return next(tables, None)


def _type(kind: Any) -> str:
    if _is(kind, Literal):
        return ", ".join(f"`{_value(word)}`" for word in choices_of(kind)).replace("``", "`")
    if _is(kind, typing.Union) or _is(kind, types.UnionType):
        return ", ".join(_type(one) for one in typing.get_args(kind) if one is not types.NoneType)
    if _is(kind, tuple):
        inner = typing.get_args(kind)
        return f"list of {_type(inner[0])}s" if inner[-1] is Ellipsis else f"two {_type(inner[0])}s"
    return "table" if _is(kind, dict) else _TYPES[kind]


def _value(value: Any) -> str:
    """Return a value in TOML's notation."""
    if value is None or value is msgspec.NODEFAULT:
        return "none"
    if isinstance(value, tuple):
        return f"`{json.dumps(value)}`"
    return f"`{value:_}`" if type(value) is int else f"`{json.dumps(value)}`"
