"""The documentation as its tests see it: fenced blocks, commands, headings and links of every page."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from textwrap import dedent

TOP = Path(__file__).parent.parent
PAGES = sorted(
    [TOP / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")]
    + [*(TOP / "docs").rglob("*.md")]
)
# What a fence may hold. `sh`: commands to type; `console`: commands after "$ ", and what they print.
COMMANDS = ("sh", "console")
OTHERS = ("text", "diff", "toml", "python", "yaml", "json")

_FENCE = re.compile(r"^( *)```([^\n]*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"`([^`]+)`")
_OPERATORS = re.compile(r"[;&|]+")


@dataclass(frozen=True)
class Fence:
    """A fenced block: its language, its first line in the page, its text."""

    language: str
    line: int
    text: str


@dataclass(frozen=True)
class Command:
    """A command of a page: the words of one program, and whether it is ``whole`` or only names a part."""

    line: int
    words: tuple[str, ...]
    whole: bool

    def __str__(self) -> str:
        return shlex.join(self.words)


def fences(text: str) -> Iterator[Fence]:
    """Yield the fenced blocks of a page."""
    for found in _FENCE.finditer(text):
        yield Fence(found[2], text.count("\n", 0, found.start()) + 1, dedent(found[3]))


def without_fences(text: str) -> str:
    """Return a page with each fenced block as empty lines."""
    return _FENCE.sub(lambda found: "\n" * found[0].count("\n"), text)


def commands(text: str) -> Iterator[Command]:
    """Yield every command of a page: of its blocks, then those that a sentence names."""
    for fence in fences(text):
        if fence.language in COMMANDS:
            for line, typed in _typed(fence):
                yield from (Command(line, words, whole=True) for words in _programs(typed))
    prose = without_fences(text)
    for found in _CODE.finditer(prose):
        if re.match(r"(qnode|qnodectl|make|python3?) (?!\d)", " ".join(found[1].split())):
            line = prose.count("\n", 0, found.start()) + 1
            # In a table "|" is escaped; in brackets stands what may be left out.
            shown = re.sub(r"\.\.\.|[][\\]", "", found[1])
            yield from (Command(line, words, whole=False) for words in _alternatives(shown))


def _typed(fence: Fence) -> Iterator[tuple[int, str]]:
    """Yield what is typed in a block of commands: one command line each, with its line in the page."""
    lines = enumerate(fence.text.splitlines(), fence.line + 1)
    for number, line in lines:
        if fence.language == "console":
            if not line.startswith("$ "):
                continue
            line = line[2:]
        while line.endswith("\\"):
            line = f"{line[:-1].rstrip()} {next(lines)[1].strip()}"
        if line.strip() and not line.startswith("#"):
            yield number, line


def _programs(typed: str) -> Iterator[tuple[str, ...]]:
    """Yield the words of each program of a command line, without what becomes of their output."""
    lexer = shlex.shlex(typed, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words: list[str] = []
    tokens = iter([*lexer, ";"])
    for token in tokens:
        if "<" in token or ">" in token:
            next(tokens)
        elif not _OPERATORS.fullmatch(token):
            words.append(token)
        elif words:
            yield _program(words)
            words = []


def _program(words: list[str]) -> tuple[str, ...]:
    words = words[1:] if words[0] == "sudo" else words
    return (words[0].rpartition("/")[2], *words[1:])


def _alternatives(shown: str) -> Iterator[tuple[str, ...]]:
    """Yield the words of what a sentence names; "a|b" are two commands."""
    words = shlex.split(shown)
    split = next((at for at, word in enumerate(words) if "|" in word), None)
    if split is None:
        yield _program(words)
        return
    for one in words[split].split("|"):
        yield _program([*words[:split], one, *words[split + 1 :]])


def anchors(text: str) -> set[str]:
    """Return the anchors of the headings of a page, as forges make them."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.*)$", without_fences(text), re.MULTILINE):
        said = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        slug = re.sub(r"[^\w\- ]", "", said).replace(" ", "-")
        found.add(next(one for n in count() if (one := slug if n == 0 else f"{slug}-{n}") not in found))
    return found


def links(text: str) -> Iterator[tuple[str, str]]:
    """Yield the links of a page to files and headings, as (path or empty, anchor or empty)."""
    prose = _CODE.sub("", without_fences(text))
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if not re.match(r"[a-z]+:", target):
            path, _, anchor = target.partition("#")
            yield path, anchor
