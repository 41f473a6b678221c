"""`qnode record`: what both ends of a simulated link see, in a folder that can be studied and played."""

from pathlib import Path

import click
import msgspec

from qnode.cli.loopback import load_loopback
from qnode.cli.main import EXIT_USAGE
from qnode.errors import ConfigError
from qnode.simulate.recorder import record as record_link
from qnode.simulate.recorder import steady_clocks


@click.command()
@click.option(
    "--config",
    "path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Link and simulation, as for loopback; default: the shipped defaults.",
)
@click.option(
    "--out",
    "folder",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="The recording, a new folder.",
)
@click.option(
    "--duration",
    "duration_s",
    required=True,
    type=click.FloatRange(min=0, min_open=True),
    help="Simulated seconds, in whole hundredths.",
)
@click.option(
    "--loopable",
    is_flag=True,
    help="Let both clocks run steadily, so that the recording's end fits its beginning.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the manifest as JSON.")
def record(path: Path | None, folder: Path, duration_s: float, loopable: bool, as_json: bool) -> int:
    """Record Bob's time tags and Alice's symbols of a simulated link."""
    try:
        config = load_loopback(path)
        simulation = steady_clocks(config.simulation) if loopable else config.simulation
        manifest = record_link(folder, simulation, config.link, duration_s)
    except ConfigError as error:
        click.echo(f"qnode: {error}", err=True)
        return EXIT_USAGE
    except OSError as error:
        click.echo(f"qnode: {folder}: cannot be written: {error.strerror}", err=True)
        return 1
    if as_json:
        click.echo(msgspec.json.encode(manifest).decode())
    else:
        click.echo(
            f"{folder}: {manifest.slots} slots, {manifest.z_tags} tags in the Z arm, "
            f"{manifest.x_tags} in the X arm, clock drift {manifest.clock_drift_ps:.3g} ps"
        )
    return 0
