"""Every command of the documentation is one that works: it is parsed, and run where that is cheap.

A fenced block states its language; `tests/documented.py` finds the commands. Each command of qnode is parsed
by the real command line. Those of blocks are then run, in their order, in a folder of the page. What is not
run stands in `NOT_RUN` with its reason.
"""

import importlib.util
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from documented import COMMANDS, OTHERS, PAGES, TOP, Command, anchors, commands, fences, links, without_fences

from qnode.cli.control import qnodectl
from qnode.cli.main import qnode
from qnode.pki.authority import make_authorities

# A command is not run if it has all words of one of these.
NOT_RUN = {
    "qnode loopback": "runs a whole link: tests/test_loopback_daemons.py",
    "qnode testbed": "needs root and a quiet machine: make tunnels",
    "qnode sensors": "needs a database and a minute: tests/test_testbed_command.py",
    "qnode replay": "runs a whole link: tests/test_replay.py",
    "qnode record --site": "needs a running site: tests/test_link_recording.py",
    "qnode record": "simulates for a minute: tests/test_cli_record.py",
    "qnode distill": "needs a recording: tests/test_cli_distill.py",
    "qnode plan --optimise": "searches for a minute: tests/test_cli_plan.py",
    "qnode plan --fibre-km": "computes many links: tests/test_cli_plan.py",
    "qnode tags": "needs a recording: tests/test_cli_tags.py",
    "qnode keylength block.json": "needs the code of the page: tests/test_estimator_tutorial.py",
    "qnode soak": "needs the code of the page: tests/test_estimator_tutorial.py",
    "qnode driver check": "needs a device: tests/test_cli_driver.py",
    "qnode driver record": "needs a device: tests/test_cli_driver.py",
    "qnodectl calibrate": "asks a running site: tests/test_calibration_hold.py",
    "qnodectl devices": "asks a running site: tests/test_cli_control.py",
    "qnodectl pki browser": "asks for a passphrase: tests/test_pki.py",
    "qnodectl --socket": "asks a running site: tests/test_link_daemons.py",
    "qnodectl restore": "asks a running site: tests/test_restore_daemons.py",
    "qnode check": "needs the credentials of the service: tests/test_cli_check.py",
    "qnodectl rollback": "needs the store of a site that has run: tests/test_keys_upgrade.py",
    "qnodectl saes": "asks a running site: tests/test_saes_command.py",
    "qnodectl status": "asks a running site: tests/test_cli_control.py",
    "qnodectl audit": "asks a running site, or has a database: tests/test_audit_command.py",
}
# Folders of a machine that are folders of the test's own; `cp` is run where it stays within them.
FOLDERS = ("etc/qnode", "media/usb")
# What a page takes for granted: a file that somebody has carried here, and where it comes from.
CARRIED = {"link-ca.pem": "qnode-pki/link-ca.pem"}

# Stands for a value in a text: FILE, KEY_ID, FILE.csv.
PLACEHOLDER = re.compile(r"[A-Z][A-Z_]*(\.[a-z]+)?")


def name_of(path: Path) -> str:
    return str(path.relative_to(TOP))


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_every_block_states_what_it_holds(path: Path) -> None:
    text = path.read_text()
    assert len(re.findall(r"^ *```", text, re.MULTILINE)) == 2 * len([*fences(text)]), "a fence is left open"
    for fence in fences(text):
        assert fence.language in (*COMMANDS, *OTHERS), f"line {fence.line}: state the language of the block"
    indented = r"^ {4,}(\$ )?(sudo )?(\.venv/bin/)?(qnode|qnodectl|make|python3?) .*$"
    typed = re.search(indented, without_fences(text), re.MULTILINE)
    assert typed is None, f"a command outside of a block: {typed and typed[0]}"


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_every_link_leads_to_a_file_and_a_heading(path: Path) -> None:
    for name, anchor in links(path.read_text()):
        target = path.parent / name if name else path
        assert target.exists(), f"{name} is not there"
        if anchor:
            assert anchor in anchors(target.read_text()), f"{name} has no heading for #{anchor}"


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_every_command_is_one_of_the_program(path: Path) -> None:
    faults = [
        f"line {command.line}: {command}: {fault}"
        for command in commands(path.read_text())
        for fault in faults_of(command)
    ]
    assert not faults, "\n".join(faults)


def faults_of(command: Command) -> Iterator[str]:
    """Yield what is wrong with a command."""
    program, *arguments = command.words
    if program in ("qnode", "qnodectl"):
        yield from faults_of_call(qnode if program == "qnode" else qnodectl, arguments, whole=command.whole)
    elif program == "make":
        makefile = (TOP / "Makefile").read_text()
        for word in arguments:
            name, is_variable, _ = word.partition("=")
            known = (
                f"$({name})" in makefile if is_variable else re.search(f"^{name}:", makefile, re.MULTILINE)
            )
            if not known:
                yield f"the Makefile has no {name}"
    elif program in ("python", "python3") and arguments[:1] != ["-m"]:
        script = next(
            (
                TOP / place / arguments[0]
                for place in (".", "install")  # beside what is carried
                if (TOP / place / arguments[0]).exists()
            ),
            None,
        )
        if script is None:
            yield f"{arguments[0]} is not there"
        elif script.suffix == ".py":
            source = script.read_text()
            yield from (
                f"no option {word}" for word in arguments if word[:2] == "--" and f'"{word}"' not in source
            )
    elif program in ("python", "python3"):
        try:
            found = importlib.util.find_spec(arguments[1]) if not PLACEHOLDER.search(arguments[1]) else True
        except ModuleNotFoundError:
            found = None
        if found is None:
            yield f"no module {arguments[1]}"
    elif program.startswith("qnode"):
        yield f"there is no program {program}"


def faults_of_call(group: click.Command, arguments: list[str], *, whole: bool) -> Iterator[str]:
    """Yield what the command line would not take; placeholders stand for any value."""
    context, left = click.Context(group), arguments
    while True:
        command = context.command
        if not whole and left and left[-1] in needing_a_value(command):
            left = [*left, "VALUE"]
        try:
            given, left, _ = command.make_parser(context).parse_args(list(left))
        except click.UsageError as error:
            yield error.format_message()
            return
        for parameter in command.params:
            yield from faults_of_value(context, parameter, given.get(parameter.name or ""), whole=whole)
        if not isinstance(command, click.Group):
            yield from (f"{word!r} is too much" for word in left)
            return
        if not left:
            if whole and not given.get("help"):
                yield "a command is missing"
            return
        found = command.get_command(context, left[0])
        if found is None:
            yield f"there is no command {left[0]}"
            return
        context, left = click.Context(found, parent=context, info_name=left[0]), left[1:]


def needing_a_value(command: click.Command) -> set[str]:
    options = [one for one in command.params if isinstance(one, click.Option) and not one.is_flag]
    return {name for option in options for name in option.opts}


def faults_of_value(
    context: click.Context, parameter: click.Parameter, value: object, *, whole: bool
) -> Iterator[str]:
    values = value if isinstance(value, list | tuple) else [value]
    texts = [one for one in values if isinstance(one, str)]
    if whole and parameter.required and not texts:
        yield f"{parameter.human_readable_name} is missing"
    if isinstance(parameter.type, click.Path) or parameter.nargs not in (1, -1):
        return
    for text in texts:
        if not PLACEHOLDER.fullmatch(text):
            try:
                parameter.type.convert(text, parameter, context)
            except click.UsageError as error:
                yield error.format_message()


def run_of(path: Path) -> list[Command]:
    """Return the commands of a page that are run."""
    return [one for one in commands(path.read_text()) if one.whole and reason_of(one) is None]


def reason_of(command: Command) -> str | None:
    """Return why a command is not run; None if it is."""
    program, *arguments = command.words
    if program == "cp" and all(local(word) != word for word in arguments if word[0] == "/"):
        return None
    if program not in ("qnode", "qnodectl"):
        return "a program of this machine"
    if any(word[0] == "/" and local(word) == word for word in arguments):
        return "is about other folders of a machine"
    return next((why for key, why in NOT_RUN.items() if has(command, key)), None)


def local(word: str) -> str:
    """Return a path below one of the folders as a path below the present folder."""
    return word[1:] if word[1:].startswith(FOLDERS) and word[:1] == "/" else word


def has(command: Command, key: str) -> bool:
    program, *words = key.split()
    return command.words[0] == program and set(words) <= set(command.words)


@pytest.mark.parametrize("path", [path for path in PAGES if run_of(path)], ids=name_of)
def test_the_commands_of_a_page_work_in_their_order(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(TOP / "config", "config")
    for folder in (*FOLDERS, "etc/qnode/tls"):
        Path(folder).mkdir(parents=True, exist_ok=True)
    if not any("init" in command.words for command in run_of(path)):
        make_authorities(Path("qnode-pki"), "lab")  # of docs/pki.md
    for command in run_of(path):
        words = [local(word) for word in command.words]
        if words[:2] == ["qnode", "setup"]:
            words += ["--folder", "etc/qnode"]
        for word in words:
            if word in CARRIED and not Path(word).exists():
                shutil.copy(CARRIED[word], word)
        if words[0] == "cp":
            subprocess.run(words, check=True)
            continue
        group = qnode if words[0] == "qnode" else qnodectl
        done = CliRunner().invoke(group, words[1:], input="\n" * 20, standalone_mode=False)
        assert (done.exception, done.return_value or 0) == (None, 0), (
            f"line {command.line}: {command}\n{done.output}"
        )


def test_nothing_that_is_not_run_is_listed_in_vain() -> None:
    typed = [one for path in PAGES for one in commands(path.read_text()) if one.whole]
    for key in NOT_RUN:
        assert any(has(one, key) for one in typed), key
    for why in NOT_RUN.values():
        for name in re.findall(r"tests/\w+\.py", why):
            assert (TOP / name).exists(), name


@pytest.mark.parametrize(
    ("call", "fault"),
    [
        ("qnode lopback", "there is no command lopback"),
        ("qnode loopback --sped 20", "No such option"),
        ("qnode setup carol", "'carol' is not one of"),
        ("qnode loopback --until-keys many", "'many' is not a valid integer"),
        ("qnode check", "file is missing"),
        ("qnodectl keys all", "'all' is too much"),
        ("qnodectl", "a command is missing"),
        ("make lopback", "the Makefile has no lopback"),
        ("python tests/mutate.py --proceses 2", "no option --proceses"),
        ("python -m qnode.bench.keydelivery", "no module"),
        ("qnoded run", "there is no program qnoded"),
    ],
)
def test_a_wrong_command_is_found(call: str, fault: str) -> None:
    (command,) = commands(f"```sh\n{call}\n```\n")
    assert any(fault.lower() in one.lower() for one in faults_of(command)), [*faults_of(command)]


def test_a_wrong_heading_is_found() -> None:
    text = "# One\n## `a b` and *c*, d\n## One\n"
    assert anchors(text) == {"one", "a-b-and-c-d", "one-1"}
    assert [*links("see [it](other.md#one), [here](#one) and [there](https://example.org/#one)")] == [
        ("other.md", "one"),
        ("", "one"),
    ]
