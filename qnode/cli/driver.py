"""`qnode driver`: for people who bring a device: a new driver, its check, and a recording of the device."""

import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, get_args

import click
import trio

from qnode.cli.driver_package import Kind, TransportName, write_package
from qnode.cli.exits import EXIT_USAGE
from qnode.config.reading import read_tables
from qnode.devices.conformance import check_driver
from qnode.devices.protocols import TagSource
from qnode.devices.readings import has_readings, read
from qnode.devices.registry import DriverClass, driver_config, load_driver
from qnode.devices.transport.transcript import PRESENT, Transcript
from qnode.emulate.transcript import Said, joined, write_transcript
from qnode.errors import ConfigError, DeviceError, first_of

RECORDED_BYTES = 1 << 20
READING_PERIOD_S = 1.0

P = ParamSpec("P")


@click.group()
def driver() -> None:
    """Begin a driver, check it against its device, and record what the device says."""


def _reported(command: Callable[P, int]) -> Callable[P, int]:
    """Turn an error of configuration or device into one line and an exit code."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> int:
        try:
            return command(*args, **kwargs)
        except* (ConfigError, DeviceError) as failed:
            error = first_of(failed)
        click.echo(f"qnode: {error}", err=True)
        return EXIT_USAGE if isinstance(error, ConfigError) else 1

    return run


@driver.command()
@click.argument("name")
@click.option("--transport", type=click.Choice(get_args(TransportName)), required=True, help="Its link.")
@click.option(
    "--kind", type=click.Choice(get_args(Kind)), default="sensor", show_default=True, help="What it is."
)
@click.option(
    "--output", type=click.Path(path_type=Path), help="The folder of the package (default: ./NAME)."
)
@_reported
def new(name: str, transport: TransportName, kind: Kind, output: Path | None) -> int:
    """Write a package with a driver NAME, an emulator and tests, which pass as they stand."""
    folder = output or Path(name)
    for path in write_package(folder, name, transport, kind):
        click.echo(path)
    click.echo(f"Next: cd {folder} && pip install -e '.[test]' && pytest; README.md says what to replace.")
    return 0


_config = click.option(
    "--config",
    "path",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="The table [devices.NAME.config] of the device as a TOML file of its own, or a site's file.",
)
_device = click.option("--device", help="NAME of the device, if a site's file has several with this driver.")


@driver.command()
@click.argument("name", metavar="DRIVER")
@_config
@_device
@click.option("--tag-blocks", default=5, show_default=True, type=click.IntRange(1), help="Of a time tagger.")
@click.option("--yes", is_flag=True, help="The device may be used: a laser goes on, a bias moves.")
@_reported
def check(name: str, path: Path, device: str | None, tag_blocks: int, yes: bool) -> int:
    """Check all promises of the installed DRIVER with its device; exit 1 if one is broken.

    The device is opened five times, and whatever can be set is set, within its limits.
    """
    driver_class, table = load_driver(name), _table(path, name, device)
    if not yes:
        click.confirm("The check sets all that can be set: a laser goes on, a bias moves. Go on?", abort=True)
    try:
        trio.run(functools.partial(check_driver, driver_class, table, tag_blocks=tag_blocks, told=_kept))
    except AssertionError as broken:
        click.echo(f"BROKEN {broken}")
        return 1
    click.echo(f"{name}: every promise is kept")
    return 0


def _kept(promise: str) -> None:
    click.echo(f"ok     {promise}")


@driver.command()
@click.argument("name", metavar="DRIVER")
@_config
@_device
@click.option("--output", required=True, type=click.Path(path_type=Path, dir_okay=False), help="The file.")
@click.option("--seconds", default=5.0, show_default=True, type=click.FloatRange(0.0, 3600.0))
@_reported
def record(name: str, path: Path, device: str | None, output: Path, seconds: float) -> int:
    """Open the device, read it, close it, and write every byte both ways as a transcript for tests.

    At most the last 1 MiB in each direction is kept. Of a source of tags only what its driver notes is
    written, because tags may be key.
    """
    driver_class, table = load_driver(name), _table(path, name, device)
    if output.exists():
        raise ConfigError(f"{output}: is there already; name another file")
    transcript = Transcript(kept_bytes=RECORDED_BYTES)
    before = PRESENT.set(transcript)
    try:
        identity = trio.run(_use, driver_class, driver_config(driver_class, table, str(path)), seconds)
    finally:
        PRESENT.reset(before)
        said = [Said(one.sent, one.data) for one in transcript.exchanges()]
        if said:
            when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
            write_transcript(output, said, f"{name}, recorded {when}: > sent to the device, < from it.")
            click.echo(f"{output}: {len(joined(said))} changes of direction")
    if not said:
        raise ConfigError(
            f"{name}: its driver sent nothing through a transport of qnode: nothing is recorded"
        )
    click.echo(f"{identity.model}, serial number {identity.serial}")
    return 0


async def _use(driver_class: DriverClass, config: Any, seconds: float) -> Any:
    """Open the device, use it as the node does, and return its identity."""
    async with driver_class.open(config) as device:
        with trio.move_on_after(seconds):
            async with trio.open_nursery() as nursery:
                if isinstance(device, TagSource):
                    nursery.start_soon(_consume, device)
                while has_readings(device):
                    await read(device)
                    await trio.sleep(READING_PERIOD_S)
                await trio.sleep_forever()
        return device.identity


async def _consume(source: TagSource) -> None:
    async for _ in source.tags():
        pass


def _table(path: Path, driver_name: str, device: str | None) -> dict[str, Any]:
    """Return the device's table from its own file, or from a site's.

    Raises:
        ConfigError: the file cannot be read, or does not have the one device.
    """
    tables = read_tables(path)
    devices = tables.get("devices")
    if not isinstance(devices, dict):
        return tables
    found = {
        name: one.get("config", {})
        for name, one in devices.items()
        if isinstance(one, dict) and one.get("driver") == driver_name and device in (None, name)
    }
    if len(found) != 1:
        names = ", ".join(found) or "none"
        raise ConfigError(
            f"{path}: expected one device with driver {driver_name}, found {names}: see --device"
        )
    (table,) = found.values()
    if not isinstance(table, dict):
        raise ConfigError(f"{path}: [devices.{next(iter(found))}.config]: expected a table")
    return table
