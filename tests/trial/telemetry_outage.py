"""Telemetry through an outage: a real InfluxDB killed for minutes while ten samples a second are written.

The writer is that of the daemon, with a node's full status. In the middle of the outage it is stopped and
started again. At the end every sample is read back. Needs Debian's package influxdb (1.x).

    python tests/trial/telemetry_outage.py --minutes 10
"""

import argparse
import contextlib
import socket
import sys
import tempfile
from pathlib import Path

import trio

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from influxdb_support import influxd
from operate_support import well_status

from qnode.config.telemetry import TelemetrySection
from qnode.influxdb import InfluxDb
from qnode.node.status.alarms import Alarms
from qnode.operate.telemetry.writer import Telemetry
from qnode.spool import acknowledged

INTERVAL_S = 0.1
BEFORE_S = 5.0
PATIENT_S = 600.0


async def write_for(section: TelemetrySection, seconds: float, *, until_empty: bool = False) -> Telemetry:
    """Run the writer for a time; then, with ``until_empty``, until its spool is empty."""
    telemetry = Telemetry(section, well_status, Alarms())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(telemetry.run)
        await trio.sleep(seconds)
        if until_empty:
            with trio.fail_after(PATIENT_S):
                while telemetry.status().waiting > 1:  # noqa: ASYNC110 - a spool has no event
                    await trio.sleep(0.2)
        nursery.cancel_scope.cancel()
    return telemetry


async def trial(folder: Path, minutes: float) -> bool:
    """Return whether every sample can be read back exactly once, in order."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    section = TelemetrySection(
        url=f"http://127.0.0.1:{port}", database="trial", spool=folder / "spool", interval_s=INTERVAL_S
    )
    database = InfluxDb(section.url, section.database, precision="ns")
    with contextlib.ExitStack() as opened:
        opened.enter_context(influxd(folder / "influxdb", port))
        await write_for(section, BEFORE_S)
    # The database is killed. Half of the outage before the writer's restart, half after it.
    first = await write_for(section, minutes * 30)
    async with trio.open_nursery() as nursery:
        done = trio.Event()

        async def write_on() -> None:
            await write_for(section, minutes * 30 + BEFORE_S, until_empty=True)
            done.set()

        nursery.start_soon(write_on)
        await trio.sleep(minutes * 30)
        with influxd(folder / "influxdb", port):
            await done.wait()
            last = acknowledged(section.spool)
            series = await database.select("SELECT number, lost FROM qkd_telemetry")
    await database.aclose()
    rows = [(int(number), lost) for row in series for _, number, lost in row["values"]]
    numbers = [number for number, _ in rows]
    counted = {number for number in numbers if number <= last}
    lost, twice = last - len(counted), len(numbers) - len(set(numbers))
    in_order = numbers == sorted(numbers)
    print(
        f"outage {minutes:g} min, {last} samples taken, {len(counted)} read back, {lost} lost, {twice} twice,"
    )
    print(f"in order: {in_order}; ticks missed before the restart: {first.status().lost_total}")
    print(f"gaps told: {sum(lost for _, lost in rows):g}")
    return not lost and not twice and in_order


def main() -> None:
    """Run the trial; exit with 1 if a sample is missing or there twice."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    minutes = parser.parse_args().minutes
    with tempfile.TemporaryDirectory() as folder:
        sys.exit(0 if trio.run(trial, Path(folder), minutes) else 1)


if __name__ == "__main__":
    main()
