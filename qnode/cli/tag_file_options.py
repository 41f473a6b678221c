"""The options of commands that take a tag file for Bob's side."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from qnode.config import LinkParameters
    from qnode.tags.file_tags import FileTags, Survey


def tag_file_options(command: Callable[..., int]) -> Callable[..., int]:
    """Add the options that say what a tag file does not say of itself (docs/tag-files.md)."""
    options = (
        click.option(
            "--channels",
            help="Of a tag file: the inputs of the detectors, and delays to add: z=1,x=2+350ps.",
        ),
        click.option("--format", "format_name", help="Of a tag file that does not show it: its format."),
        click.option(
            "--began-at",
            "began_at_s",
            type=float,
            help="Of a tag file: when its first tag came, Unix time in seconds by Bob's clock.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def opened_tag_file(
    path: Path, channels: str | None, format_name: str | None, began_at_s: float | None
) -> "FileTags":
    """Open the tag file with the values of the options.

    Raises:
        ConfigError: like `qnode.tags.file_tags.file_tags`.
    """
    from qnode.tags.file_tags import TagFileNotes, file_tags

    return file_tags(path, TagFileNotes(channels=channels, format=format_name, began_at_s=began_at_s))


def refuse_without_tag_file(**given: Any) -> None:
    """Refuse options of a tag file where there is none.

    Raises:
        ConfigError: names the option.
    """
    from qnode.errors import ConfigError

    names = {"channels": "--channels", "format_name": "--format", "began_at_s": "--began-at"}
    for option, value in given.items():
        if value is not None:
            raise ConfigError(f"{names[option]}: has a meaning only with a tag file")


def tell_faults(file: "FileTags", survey: "Survey", link: "LinkParameters") -> None:
    """Say on stderr what is wrong with a file that is used all the same."""
    if survey.truncated:
        click.echo(f"qnode: {file.path}: {survey.truncated}; what is sound is used", err=True)
    if survey.lost:
        click.echo(f"qnode: {file.path}: the device lost {survey.lost} tags, as the file says", err=True)
    if survey.disorder_ps > link.receiver.order_window_ps:
        click.echo(
            f"qnode: {file.path}: tags come up to {survey.disorder_ps} ps late, and order_window_ps in "
            f"[link.receiver] is {link.receiver.order_window_ps}: the later ones are dropped; set more with "
            "--config",
            err=True,
        )
