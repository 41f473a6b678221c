"""The option `--version` of both programs."""

import click

from qnode import __version__
from qnode.commit import commit


def _version(context: click.Context) -> str:
    known = commit()
    built = "" if known is None else f", commit {known}"
    return f"{context.find_root().info_name}, version {__version__}{built}"


version_option = click.custom_version_option(_version)
