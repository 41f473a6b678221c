"""`qnode replay`: both sites on this machine, with recorded hardware in place of simulated."""

from pathlib import Path
from typing import Any

import click
from msgspec.structs import replace

from qnode.cli.loopback import Wanted, link_options, load_loopback, run_both_sites
from qnode.cli.main import EXIT_USAGE
from qnode.config import LinkParameters
from qnode.errors import ConfigError
from qnode.loopback.prepare import LoopbackConfig, Played
from qnode.tags.recording import Manifest, check_loopable, open_recording, read_symbol_key
from qnode.tags.site_recording import is_site_recording
from qnode.units import PS_PER_S

# Of the clicks of the Z arm on Z states, what is left of gates and alignment at least.
_SIFTED_SHARE = 0.8


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--config",
    "path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="How the link distils; source and receiver as they were recorded. Default: as it was recorded.",
)
@click.option("--once", is_flag=True, help="Play the recording once, then end; default: again and again.")
@link_options
def replay(folder: Path, path: Path | None, once: bool, **options: Any) -> int:
    """Run both sites of a link on this machine, with the hardware that was recorded in FOLDER."""
    try:
        config = played_config(folder, path, loop=not once)
        return run_both_sites(config, Wanted(**options), Played(folder, loop=not once))
    except ConfigError as error:
        click.echo(f"qnode: {error}", err=True)
        return EXIT_USAGE


def played_config(folder: Path, path: Path | None, *, loop: bool) -> LoopbackConfig:
    """Return what both sites are to have in common when they play the recording in ``folder``.

    Raises:
        ConfigError: the recording cannot be played so, or the file at ``path`` is of another link.
    """
    if is_site_recording(folder):
        raise ConfigError(f"{folder} is the recording of one site, for qnode distill; it cannot be played")
    recording = open_recording(folder)
    read_symbol_key(folder)
    config = config_over(recording.manifest.link, folder, path)
    if loop:
        check_loopable(recording)
        plausibility = replace(config.link.plausibility, repeats=_repeats(recording.manifest, config.link))
        config = replace(config, link=replace(config.link, plausibility=plausibility))
    return config


def _repeats(recorded: Manifest, link: LinkParameters) -> float:
    """Return how often a block holds the tags of a recording that is played again and again."""
    wanted = link.block.sifted_bits
    if wanted == "auto":
        return max(1.0, link.block.longest_s * PS_PER_S / recorded.span_ps)
    return max(1.0, wanted / max(1.0, _SIFTED_SHARE * link.source.p_z * recorded.z_tags))


def config_over(recorded: LinkParameters, folder: Path, path: Path | None) -> LoopbackConfig:
    """Return what the file at ``path`` says of a link that was recorded in ``folder`` as ``recorded``.

    Raises:
        ConfigError: it is of another link.
    """
    if path is None:
        return LoopbackConfig(link=recorded)
    config = load_loopback(path)
    for table in ("source", "receiver"):
        if getattr(config.link, table) != getattr(recorded, table):
            raise ConfigError(
                f"{path}: [link.{table}] is not that of the recording {folder}: expected "
                f"{getattr(recorded, table)}, got {getattr(config.link, table)}"
            )
    return config
