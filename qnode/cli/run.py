"""`qnode run`: the daemon of one site."""

import os
from pathlib import Path

import click

from qnode.cli.main import EXIT_USAGE
from qnode.errors import ConfigError, StoreUnusable


@click.command()
@click.option(
    "--config",
    "path",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="The site's TOML.",
)
def run(path: Path) -> int:
    """Run one site until SIGTERM or SIGINT; SIGHUP reloads certificates."""
    # Key material must not reach other users' files, nor a core dump.
    os.umask(0o077)
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Imported here: numerical libraries take a while, and usage errors should not wait for them.
    from qnode.config import SiteConfig, load
    from qnode.node.site import run_site_until_signal

    try:
        config = load(path, SiteConfig)
        return run_site_until_signal(config)
    except ConfigError as error:
        click.echo(f"qnode: {error}", err=True)
        return EXIT_USAGE
    except StoreUnusable as error:
        click.echo(f"qnode: {error}", err=True)
        return 1
