"""`qnode replay`: both sites on this machine, with recorded hardware in place of simulated."""

from pathlib import Path
from typing import Any

import click
from msgspec.structs import replace

from qnode.cli.exits import EXIT_USAGE
from qnode.cli.loopback import Wanted, link_options, load_loopback, run_both_sites
from qnode.cli.tag_file_options import (
    opened_tag_file,
    refuse_without_tag_file,
    tag_file_options,
    tell_faults,
)
from qnode.config import LinkParameters, tables
from qnode.errors import ConfigError
from qnode.loopback.hardware import Played, PlayedFile
from qnode.loopback.prepare import LoopbackConfig, parse_loopback_config
from qnode.tags.file_tags import FileTags
from qnode.tags.recording import MANIFEST, Manifest, check_loopable, open_recording, read_symbol_key
from qnode.tags.site_recording import is_site_recording
from qnode.units import PS_PER_S

# The least share of the Z arm's clicks on Z states that remains after gates and alignment.
_SIFTED_SHARE = 0.8


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--config",
    "path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Configuration of the link; source and receiver must be those of the recording. Default: as "
    "recorded.",
)
@click.option("--once", is_flag=True, help="Play the recording once, then end; default: repeat it.")
@click.option(
    "--tags",
    "tag_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Bob's tags, played once: a time tagger's file (docs/tag-files.md); FOLDER then says what Alice "
    "sent: the recording of a simulated link, or of her site.",
)
@tag_file_options
@link_options
def replay(
    folder: Path,
    path: Path | None,
    once: bool,
    tag_file: Path | None,
    channels: str | None,
    format_name: str | None,
    began_at_s: float | None,
    **options: Any,
) -> int:
    """Run both sites of a link on this machine, with the recorded hardware in FOLDER."""
    try:
        if tag_file is not None:
            file = opened_tag_file(tag_file, channels, format_name, began_at_s)
            config, played = played_file(folder, path, file)
            tell_faults(file, file.survey(), config.link)
            return run_both_sites(config, Wanted(**options), played)
        refuse_without_tag_file(channels=channels, format_name=format_name, began_at_s=began_at_s)
        config = played_config(folder, path, loop=not once)
        return run_both_sites(config, Wanted(**options), Played(folder, loop=not once))
    except ConfigError as error:
        click.echo(f"qnode: {error}", err=True)
        return EXIT_USAGE


def played_config(folder: Path, path: Path | None, *, loop: bool) -> LoopbackConfig:
    """Return the common configuration of both sites that play the recording in ``folder``.

    Raises:
        ConfigError: the recording cannot be played this way, or the file at ``path`` is of another link.
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


def played_file(folder: Path, path: Path | None, file: FileTags) -> tuple[LoopbackConfig, Played]:
    """Return the configuration of both sites, and their hardware: what ``folder`` recorded, and Bob's file.

    Raises:
        ConfigError: the recording is not Alice's, it is not known when the file began, or the file at
            ``path`` is of another link.
    """
    # Imported here: a replay of a recording does not need it, and it loads slowly.
    from qnode.offline.recorded_file import alice_of, began_of

    if is_site_recording(folder):
        alice = alice_of(folder, file)
        link, began_at_s = alice.manifest.link, began_of(file, alice)
    else:
        recording = open_recording(folder)
        read_symbol_key(folder)
        link, first_ps = recording.manifest.link, recording.times_ps[:1].sum()
        recorded_s = recording.manifest.origin_s + float(first_ps) / PS_PER_S
        began_at_s = recorded_s if file.began_at_s is None else file.began_at_s
    config = config_over(link, folder, path, receiver=False)
    inputs = file.inputs
    channels = {"z": inputs.z_input, "x": inputs.x_input}
    channels |= {"z_delay_ps": inputs.z_delay_ps, "x_delay_ps": inputs.x_delay_ps}
    played = PlayedFile(file.path, channels, began_at_s, file.file.format)
    return config, Played(folder, loop=False, tag_file=played)


def _repeats(recorded: Manifest, link: LinkParameters) -> float:
    """Return how often a block holds the tags of a repeated recording."""
    wanted = link.block.sifted_bits
    if wanted == "auto":
        return max(1.0, link.block.longest_s * PS_PER_S / recorded.span_ps)
    return max(1.0, wanted / max(1.0, _SIFTED_SHARE * link.source.p_z * recorded.z_tags))


def config_over(
    recorded: LinkParameters, folder: Path, path: Path | None, *, receiver: bool = True
) -> LoopbackConfig:
    """Return the configuration at ``path`` for a link that was recorded in ``folder`` as ``recorded``.

    ``receiver``: whether Bob's tags are of that recording too.

    Raises:
        ConfigError: the file is of another link, or the recorded one is impossible.
    """
    if path is None:
        return parse_loopback_config({"link": tables(recorded)}, str(folder / MANIFEST))
    config = load_loopback(path)
    for table in ("source", "receiver") if receiver else ("source",):
        if getattr(config.link, table) != getattr(recorded, table):
            raise ConfigError(
                f"{path}: [link.{table}] is not that of the recording {folder}: expected "
                f"{getattr(recorded, table)}, got {getattr(config.link, table)}"
            )
    return config
