"""`qnode manual`: the manual pages, from the commands and from the structs of a site's file."""

import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import click

from qnode import __version__
from qnode.cli.exits import EXIT_USAGE

SITE_PAGE = "qnode.toml"


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
def manual(folder: Path) -> int:
    """Write the manual pages below FOLDER: qnode(1), qnodectl(1), qnode.toml(5).

    They are made from the commands and the configuration of this version. `man` finds them below
    /usr/local/share/man, for example.
    """
    for place, page in manual_pages().items():
        path = folder / place
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(page)
        except OSError as error:
            click.echo(f"qnode: {path}: {error.strerror}; name a folder where this user can write", err=True)
            return EXIT_USAGE
        click.echo(f"{path}: written")
    return 0


def manual_pages() -> dict[str, str]:
    """Return each page in roff, by its place below a folder of manuals."""
    from qnode.cli.control import qnodectl  # the other programs, when they are described
    from qnode.cli.main import qnode

    return {
        "man1/qnode.1": program_page(qnode, "qnode"),
        "man1/qnodectl.1": program_page(qnodectl, "qnodectl"),
        f"man5/{SITE_PAGE}.5": site_page(),
    }


def program_page(program: click.Group, name: str) -> str:
    """Return the page of a program with all its commands."""
    context = click.Context(program, info_name=name)
    others = {"qnode": "qnodectl (1)", "qnodectl": "qnode (1)"}[name]
    lines = [
        *_head(name, 1, program.get_short_help_str(limit=200)),
        *_synopsis(program, context),
        ".SH DESCRIPTION",
        *_text(program.help or ""),
        ".SH OPTIONS",
        *_options(program, context),
        ".SH COMMANDS",
        *_commands(program, context),
        ".SH EXIT STATUS",
        *_text(
            "0: done. 1: not done, or degraded, with the reason on standard error. 64: a wrong call or file."
        ),
        ".SH SEE ALSO",
        f".BR {others} ,",
        f".BR {_escaped(SITE_PAGE)} (5)",
    ]
    return "\n".join(lines) + "\n"


def site_page() -> str:
    """Return the page of a site's file."""
    from qnode.cli.configuration_page import site_tables

    lines = [
        *_head(SITE_PAGE, 5, "file of one site of a quantum key distribution link"),
        ".SH DESCRIPTION",
        *_text(
            "`qnode run --config FILE` reads this file, in TOML; `qnode check FILE` lists every error in it. "
            "The service `qnode@alice` reads /etc/qnode/alice.toml.\n\n"
            "An unknown key is an error. A relative path starts at the folder of the file. A key without a "
            "default is required. A change of a key waits for a restart unless it says reload. The tables "
            "`[link]` and below must be equal at both sites.\n\n"
            "The drivers' tables, and a site with several links, are described in docs/configuration.md."
        ),
        ".SH TABLES",
    ]
    for one in site_tables():
        lines += [f".SS {_escaped(one.heading)}", *_text(one.what)]
        for row in one.rows:
            said = dict(zip(one.titles, row, strict=True))
            facts = [said["type"], said["unit"], said["limits"], said.get("change", "")]
            default = said["default"]
            facts.append("required" if default == "*required*" else f"default {default}" if default else "")
            shown = "; ".join(filter(None, facts))
            lines += [
                ".TP",
                rf"\fB{_escaped(said['key'].strip('`'))}\fR",
                *_text(f"{said['meaning']} ({shown})"),
            ]
    lines += [".SH SEE ALSO", ".BR qnode (1),", ".BR qnodectl (1)"]
    return "\n".join(lines) + "\n"


def _head(name: str, section: int, what: str) -> list[str]:
    return [
        '.\\" Made by `qnode manual`. Do not edit.',
        f'.TH "{_escaped(name.upper())}" "{section}" "" "qnode {_escaped(__version__)}" ""',
        ".nh",
        ".ad l",
        ".SH NAME",
        rf"{_escaped(name)} \- {_escaped(what.rstrip('.'))}",
    ]


def _synopsis(command: click.Command, context: click.Context) -> list[str]:
    pieces = " ".join(command.collect_usage_pieces(context))
    return [".SH SYNOPSIS", rf".B {_escaped(context.command_path)}", _escaped(pieces)]


def _commands(group: click.Group, context: click.Context) -> Iterator[str]:
    """Describe every command of a group, and of the groups in it."""
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if command is None or command.hidden:
            continue
        inner = click.Context(command, info_name=name, parent=context)
        pieces = " ".join(command.collect_usage_pieces(inner))
        yield f".SS {_escaped(inner.command_path)} {_escaped(pieces)}"
        yield from _text(command.help or "")
        yield from _options(command, inner)
        if isinstance(command, click.Group):
            yield from _commands(command, inner)


def _options(command: click.Command, context: click.Context) -> Iterator[str]:
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        is_said_once = context.parent is not None and "--help" in parameter.opts
        if record is not None and record[1] and not is_said_once:
            yield from (".TP", rf"\fB{_escaped(record[0])}\fR", *_text(record[1]))


def _text(markdown: str) -> Iterator[str]:
    """Yield paragraphs; what is in backticks is bold, a link is its text, click's mark keeps line breaks."""
    for number, paragraph in enumerate(inspect.cleandoc(markdown).split("\n\n")):
        kept = paragraph.startswith("\b\n")
        if number:
            yield ".sp"
        if kept:
            yield ".nf"
        for line in paragraph.removeprefix("\b\n").splitlines():
            plain = re.sub(r"\[([^]]+)\]\([^)]+\)", r"\1", line).replace("**", "")
            yield re.sub(r"`([^`]+)`", r"\\fB\1\\fR", _escaped(plain))
        if kept:
            yield ".fi"


def _escaped(text: str) -> str:
    """Return text that roff shows as it is."""
    safe = text.replace("\\", "\\e").replace("-", "\\-").replace("~", "\\(ti").replace("^", "\\(ha")
    return f"\\&{safe}" if safe.startswith((".", "'")) else safe
