"""Samples, documentation and program say the same: keys, files, hardware, addresses."""

import re
import tomllib
from pathlib import Path
from typing import get_args

import msgspec
import pytest
from click.testing import CliRunner

from qnode.agent.config import load_agent
from qnode.cli.loopback import load_loopback
from qnode.cli.report import report
from qnode.config import SiteConfig, load
from qnode.config.description import is_table, keys_of
from qnode.devices.registry import known_drivers, load_driver
from qnode.devices.supervisor import check_devices
from qnode.simulate.parameters import Change, ScheduledChange, Settings, SimulationParameters

TOP = Path(__file__).parent.parent
TEXTS = sorted(
    [
        *(TOP / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "Makefile", "CHANGELOG.md")),
        *(TOP / "docs").rglob("*.md"),
        *(TOP / "config").iterdir(),
        *(TOP / "systemd").iterdir(),
    ]
)
RULES = TOP / "systemd" / "99-qnode.rules"
NAMED_FILE = re.compile(r"(?<![\w./-])(?:docs|config|systemd|tests|drivers|qnode)/[\w@./-]*\.\w+")


@pytest.mark.parametrize("path", sorted((TOP / "config").glob("*.toml")), ids=lambda path: path.name)
def test_every_key_of_a_shipped_file_is_known_and_every_value_possible(path: Path) -> None:
    tables = tomllib.loads(path.read_text())
    if "agent" in tables:
        load_agent(path).make_tunnel()
    elif "node" in tables:
        check_devices(dict(load(path, SiteConfig).devices))
    else:
        load_loopback(path)


@pytest.mark.parametrize("name", ["configuration", "metrics"])
def test_a_page_that_is_made_from_the_program_is_what_its_command_writes(name: str, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    result = CliRunner().invoke(report, [name, "--output", str(page)], standalone_mode=False)
    assert result.return_value == 0, result.output
    assert page.read_text() == (TOP / "docs" / f"{name}.md").read_text(), f"run qnode report {name}"


def described_tables() -> set[type[msgspec.Struct]]:
    """Return every table of the configuration files, those of the shipped drivers included."""
    drivers = [load_driver(name).Config for name in known_drivers()]
    found = set[type[msgspec.Struct]]()
    new: set[type[msgspec.Struct]] = {SiteConfig, SimulationParameters, *drivers}
    while new:
        table = new.pop()
        found.add(table)
        for key in keys_of(table):
            new |= {one for one in (key.kind, *get_args(key.kind)) if is_table(one)} - found
    return found


@pytest.mark.parametrize("table", sorted(described_tables() - {ScheduledChange}, key=str))
def test_every_key_of_a_configuration_file_has_its_meaning_beside_it(table: type[msgspec.Struct]) -> None:
    for key in keys_of(table):
        assert key.described.meaning or any(is_table(one) for one in (key.kind, *get_args(key.kind))), (
            key.name
        )


def test_a_scheduled_change_has_the_keys_of_the_settings() -> None:
    assert set(Settings.__struct_fields__) == set(Change.__struct_fields__)


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(TOP)))
def test_every_file_that_is_named_is_there(path: Path) -> None:
    text = path.read_text(errors="replace")
    made = re.findall(r"^\*\*`(.*)`\*\*$", text, re.MULTILINE)  # by a tutorial
    for name in set(NAMED_FILE.findall(text)) - set(made):
        assert (TOP / name).exists(), name


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(TOP)))
def test_no_text_has_the_marks_of_an_unfinished_merge(path: Path) -> None:
    marks = re.compile(r"^(<{7} .*|={7}|>{7} .*)$", re.MULTILINE)
    assert not marks.findall(path.read_text(errors="replace"))


def test_every_page_that_the_program_names_is_there() -> None:
    for path in [*(TOP / "qnode").rglob("*.py"), *(TOP / "drivers").rglob("*.py")]:
        for name in re.findall(r"\bdocs/[\w/-]+\.md", path.read_text()):
            assert (TOP / name).exists(), (path, name)


def test_rules_and_readme_name_only_hardware_that_a_shipped_driver_speaks_to() -> None:
    drivers = "\n".join(path.read_text() for path in (TOP / "drivers").rglob("*.py")).lower()
    for line in RULES.read_text().splitlines():
        for value in re.findall(r'ATTRS?\{(?:manufacturer|product|idVendor|idProduct)\}=="([^"*]+)', line):
            if not line.startswith("#"):
                assert value.lower() in drivers, line
    for maker in ("s-fifteen", "idq", "id quantique", "ftdi", "prolific", "tdc1", "id120", "fx2", "optilab"):
        if maker not in drivers:
            for text in (RULES, TOP / "README.md"):
                assert maker not in text.read_text().lower(), (maker, text)


def test_security_md_names_no_address_that_the_package_does_not_have() -> None:
    project = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]
    said = " ".join((TOP / "SECURITY.md").read_text().split())
    if "package metadata" in said:
        assert project.get("urls") or project.get("maintainers") or project.get("authors")
