"""Manual pages and completion: made from the commands and structs, understood by groff and the shells."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from qnode.cli.configuration_page import site_tables
from qnode.cli.control import qnodectl
from qnode.cli.main import qnode
from qnode.cli.manual import manual, manual_pages, program_page


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    return manual_pages()


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a search path that begins with the programs of this checkout."""
    folder = tmp_path_factory.mktemp("bin")
    for name, module in (("qnode", "main"), ("qnodectl", "control")):
        program = folder / name
        program.write_text(f"#!{sys.executable}\nfrom qnode.cli.{module} import main\nmain()\n")
        program.chmod(0o755)
    return f"{folder}:/usr/bin:/bin"


def shell(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"no {name} on this machine")
    return found


def shown(page: str) -> str:
    """Return a page as `man` shows it, on wide paper; groff must have nothing to complain about."""
    groff = [shell("groff"), "-man", "-Kutf8", "-Tutf8", "-ww", "-P-cbou", "-rLL=2000n"]
    done = subprocess.run(groff, input=page, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout.translate(str.maketrans("\u2010\u2212\u2019\u2018", "--''"))


def commands(group: click.Group, words: str) -> Iterator[tuple[str, click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield f"{words} {name}", command
        if isinstance(command, click.Group):
            yield from commands(command, f"{words} {name}")


@pytest.mark.parametrize(("program", "name"), [(qnode, "qnode"), (qnodectl, "qnodectl")])
def test_the_page_of_a_program_has_every_command_with_its_options(
    program: click.Group, name: str, pages: dict[str, str]
) -> None:
    text = pages[f"man1/{name}.1"].replace("\\-", "-")
    parts = dict(re.findall(r"^\.SS ([a-z -]+[a-z])(?= |$)(.*?)(?=^\.S[SH])", text, re.MULTILINE | re.DOTALL))
    found = dict(commands(program, name))
    assert set(parts) == set(found)
    for words, command in found.items():
        for parameter in command.params:
            if isinstance(parameter, click.Option) and not parameter.hidden:
                assert all(option in parts[words] for option in parameter.opts), (words, parameter.opts)
    for option in program.params:
        assert option.opts[0] in text


def test_the_page_of_the_file_has_every_key_with_its_meaning(pages: dict[str, str]) -> None:
    text = shown(pages["man5/qnode.toml.5"])
    words = " ".join(text.split())
    for table in site_tables():
        assert table.heading in words
        for key in table.rows:
            assert key[0].strip("`") in words
            assert " ".join(re.sub(r"\[([^]]+)\]\([^)]+\)", r"\1", key[-1]).replace("`", "").split()) in words


@pytest.mark.parametrize("place", ["man1/qnode.1", "man1/qnodectl.1", "man5/qnode.toml.5"])
def test_groff_understands_every_line(place: str, pages: dict[str, str]) -> None:
    assert "NAME" in shown(pages[place])


def test_text_that_looks_like_roff_is_shown_as_it_is() -> None:
    hostile = ".TH at the start\n\n'br at the start\n\na \\fBfont\\fR, a~tilde, a ^ and --two-hyphens"
    program = click.Group("qnode", help=f"Begin.\n\n{hostile}")
    lines = [line.strip() for line in shown(program_page(program, "qnode")).splitlines()]
    for line in hostile.split("\n\n"):
        assert line in lines


def test_the_pages_are_written_and_a_folder_that_cannot_take_them_is_named(tmp_path: Path) -> None:
    done = CliRunner().invoke(manual, [str(tmp_path)], standalone_mode=False)
    assert done.return_value == 0
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.[15]")} == set(manual_pages())
    (tmp_path / "file").touch()
    done = CliRunner().invoke(manual, [str(tmp_path / "file" / "man")], standalone_mode=False)
    assert done.return_value == 64
    assert done.stderr.count("\n") == 1
    assert f"{tmp_path}/file/man/man1" in done.stderr


def test_the_first_word_is_completed_without_importing_the_commands() -> None:
    code = """
import os, sys
os.environ.update(_QNODE_COMPLETE="zsh_complete", COMP_WORDS="qnode ke", COMP_CWORD="1")
sys.argv = ["qnode"]
from qnode.cli.main import main
try:
    main()
finally:
    assert not {"numpy", "numba", "qnode.cli.keylength"} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["plain", "keylength", "Estimate the key length of a block."]


@pytest.mark.parametrize(
    ("line", "completed"),
    [("qnode ke", "keylength"), ("qnode keylength --est", "--estimator"), ("qnodectl preshared wi", "wipe")],
)
@pytest.mark.parametrize("alone", [False, True])
def test_bash_completes_commands_and_options(line: str, completed: str, alone: bool, programs: str) -> None:
    program, *_ = words = line.split()
    script = f"""
source <(qnode completion bash {program if alone else ""})
COMP_WORDS=({line}) COMP_CWORD={len(words) - 1}
_{program}_completion {program}
echo "${{COMPREPLY[@]}}"
complete -p {program}
"""
    done = subprocess.run(
        [shell("bash"), "--norc", "-c", script], env={"PATH": programs, "PYTHONPATH": ":".join(sys.path)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.splitlines() == [completed, f"complete -o nosort -F _{program}_completion {program}"]
    assert done.stderr == ""


def test_zsh_completes_both_programs(programs: str) -> None:
    script = """autoload -Uz compinit && compinit -D && source <(qnode completion zsh)
print $_comps[qnode] $_comps[qnodectl]"""
    done = subprocess.run(
        [shell("zsh"), "-f", "-c", script], env={"PATH": programs, "PYTHONPATH": ":".join(sys.path)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "_qnode_completion _qnodectl_completion\n"


def test_fish_completes_both_programs(programs: str, tmp_path: Path) -> None:
    script = "qnode completion fish | source; complete -C 'qnode ke'; complete -C 'qnodectl preshared wi'"
    done = subprocess.run(
        [shell("fish"), "--no-config", "-c", script],
        env={"PATH": programs, "PYTHONPATH": ":".join(sys.path), "HOME": str(tmp_path)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert [line.split("\t")[0] for line in done.stdout.splitlines()] == ["keylength", "wipe"]
