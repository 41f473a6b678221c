"""The file of further encryptors beside a site's own file, which `qnodectl saes` writes."""

from pathlib import Path
from typing import Any

from qnode.config.reading import read_tables
from qnode.errors import ConfigError


def read_site_tables(path: Path) -> dict[str, Any]:
    """Return the tables of the site's file at ``path``, with the encryptors of its ``saes_file``.

    Raises:
        ConfigError: a file cannot be read, or is not TOML.
    """
    raw = read_tables(path)
    file = saes_file(raw, path)
    return raw if file is None else with_saes(raw, read_saes(file))


def saes_file(raw: dict[str, Any], path: Path) -> Path | None:
    """Return the file of further encryptors of a site, from its tables ``raw`` in the file at ``path``."""
    section = raw.get("etsi014")
    name = section.get("saes_file") if isinstance(section, dict) else None
    return path.resolve().parent / name if isinstance(name, str) else None


def read_saes(file: Path) -> list[dict[str, Any]]:
    """Return the encryptors of a ``saes_file``; none if it does not exist.

    Raises:
        ConfigError: it cannot be read, or holds something else than tables ``[[sae]]``.
    """
    if not file.exists():
        return []
    raw = read_tables(file)
    saes = raw.pop("sae", [])
    if raw or not isinstance(saes, list) or not all(isinstance(sae, dict) for sae in saes):
        raise ConfigError(f"{file}: expected tables [[sae]] only")
    return saes


def with_saes(raw: dict[str, Any], saes: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the tables of a site with further encryptors."""
    section = raw["etsi014"]
    own = section.get("sae", [])
    if not isinstance(own, list):
        return raw  # which the reading of the table refuses
    return {**raw, "etsi014": {**section, "sae": [*own, *saes]}}
