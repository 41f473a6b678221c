"""`qnode sensors`: the testbed's sensor chain alone on this machine."""

import shutil
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import click
import msgspec
import trio

from qnode.cli.exits import EXIT_USAGE
from qnode.cli.interrupted import ending_signals
from qnode.errors import ConfigError, QnodeError, first_of
from qnode.loopback.data_dir import sole_use
from qnode.testbed.sensors.account import SensorAccount
from qnode.testbed.sensors.alone import OUTAGES, Alone, Outage, run_alone
from qnode.testbed.sensors.node_red import check_node_red


@click.command()
@click.option("--minutes", type=click.FloatRange(min=0, min_open=True), default=60.0, show_default=True)
@click.option(
    "--source",
    type=click.Choice(["modbus", "opcua"]),
    default="modbus",
    show_default=True,
    help="How the reader reads the power meter.",
)
@click.option(
    "--outage",
    "outages",
    type=click.Choice(OUTAGES),
    multiple=True,
    help="An outage of this part during the run; may be given several times.",
)
@click.option(
    "--outage-seconds",
    "outage_s",
    type=click.FloatRange(min=0, min_open=True),
    default=30.0,
    show_default=True,
    help="How long each outage lasts.",
)
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for spool, database and logs; default: a temporary one, kept only if the run fails.",
)
@click.option(
    "--node-red",
    type=click.Path(path_type=Path, file_okay=False),
    help="Draw the current with the Node-RED that npm installed into this folder.",
)
@click.option("--json", "as_json", is_flag=True, help="On stdout print one JSON object, and nothing else.")
def sensors(
    minutes: float,
    source: Literal["modbus", "opcua"],
    outages: tuple[Outage, ...],
    outage_s: float,
    data_dir: Path | None,
    node_red: Path | None,
    as_json: bool,
) -> int:
    """Run the testbed's sensor chain alone: no namespaces, no tunnel, no root.

    Exit 0 if every sample read is in the database.
    """
    wanted = Alone(
        directory=data_dir or Path(tempfile.mkdtemp(prefix="qnode-")),
        minutes=minutes,
        source=source,
        outages=outages,
        outage_s=outage_s,
        node_red=node_red,
    )
    try:
        status = run_sensors(wanted, as_json=as_json)
    except ConfigError as error:
        click.echo(f"qnode: {error}", err=True)
        status = EXIT_USAGE
    if data_dir is None and status != 1:
        shutil.rmtree(wanted.directory)
    elif status == 1:  # the logs say why
        click.echo(f"files: {wanted.directory}", err=True)
    return status


def check_sensor_parts() -> None:
    """Make sure that what the chain is made of is installed.

    Raises:
        ConfigError: something is missing; the message says how to install it.
    """
    missing = [name for name in ("pymodbus", "asyncua") if find_spec(name) is None]
    if missing:
        raise ConfigError(f"testbed: {' and '.join(missing)} missing: pip install 'qnode[testbed]'")
    if shutil.which("influxd") is None:
        raise ConfigError("testbed: influxd is missing: apt-get install influxdb")


def run_sensors(wanted: Alone, *, as_json: bool) -> int:
    """Run the chain as ``wanted``, print its account, and return the exit status: 0 if nothing was lost.

    Raises:
        ConfigError: something is missing, or the folder is in use.
    """
    check_sensor_parts()
    if wanted.node_red is not None:
        check_node_red(wanted.node_red)
    account = None
    with sole_use(wanted.directory):
        try:
            account = trio.run(_run, wanted)
        except* QnodeError as group:
            print(f"qnode: {first_of(group)}", file=sys.stderr)
    if account is None:
        return 1
    print(msgspec.json.encode(account).decode() if as_json else account_lines(account), flush=True)
    return 0 if account.read and account.stored == account.read and not account.absent else 1


async def _run(wanted: Alone) -> SensorAccount | None:
    account = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_stop_on_signal, nursery.cancel_scope)
        account = await run_alone(wanted, lambda line: print(line, file=sys.stderr, flush=True))
        nursery.cancel_scope.cancel()
    return account


async def _stop_on_signal(scope: trio.CancelScope) -> None:
    with trio.open_signal_receiver(*ending_signals()) as signals:
        async for _ in signals:
            scope.cancel()


def account_lines(account: SensorAccount) -> str:
    """Return the account for people."""
    reasons = ", ".join(f"{polls} {reason}" for reason, polls in sorted(account.missed.items()))
    missed = f"{account.missed_polls} polls missed{f' ({reasons})' if reasons else ''}"
    return (
        f"{account.read} samples read, {missed}\n"
        f"{account.records} records spooled, {account.absent} dropped there, {account.waiting} waiting\n"
        f"{account.stored} samples stored, {account.set_aside} set aside, {account.lost} lost"
    )
