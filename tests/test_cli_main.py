"""The command line as a whole: the list of commands, and what it costs."""

import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from qnode.bench.help_pages import cost_of_help
from qnode.cli.main import COMMANDS, qnode


def test_the_list_of_commands_names_all_and_imports_none() -> None:
    script = """
import sys
from qnode.cli.main import main
try:
    main()
finally:
    imported = {name for name in sys.modules if name.startswith("qnode.cli.")}
    few = {"main", "exits", "interrupted", "version"}
    assert imported == {"qnode.cli." + name for name in few}, imported
    assert not {"numpy", "numba", "trio", "rich", "msgspec"} & set(sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, "--help"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    for name, command in COMMANDS.items():
        assert f"  {name} " in done.stdout
        assert command.short_help in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_the_list_of_commands_costs_little_more_than_that_of_qnodectl() -> None:
    """Memory hardly depends on how busy the machine is; time is measured by `qnode bench --only help`."""
    for program in ("qnode", "qnodectl"):
        cost_of_help(program)
    assert cost_of_help("qnode")[1] <= 1.3 * cost_of_help("qnodectl")[1]


def test_qnodectl_loads_neither_numbers_nor_certificates_for_its_help() -> None:
    script = """
import sys
from qnode.cli.control import main
assert not {"numpy", "numba", "trio", "cryptography"} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("command", ["run", "agent", "serve"])
def test_a_process_that_holds_keys_leaves_no_core_dump_and_no_file_for_others(command: str) -> None:
    script = f"""
import os, resource
from qnode.cli.{command} import {command}
{command}.main({["run"] if command == "agent" else []} + ["--config", "/no/such/file"], standalone_mode=False)
print(*resource.getrlimit(resource.RLIMIT_CORE), oct(os.umask(0)))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout == "0 0 0o77\n", done.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_each_listed_command_is_there(name: str) -> None:
    command = qnode.get_command(click.Context(qnode), name)
    assert command is not None
    assert command.name == name
    assert CliRunner().invoke(command, ["--help"]).exit_code == 0
