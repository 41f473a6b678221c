"""The writer of the node's figures to InfluxDB through outages, restarts, full disks and refusals."""

import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from daemons_support import alter, eventually, two_sites
from influxdb_support import PATIENT_S, StandIn, influxd, needs_influxd, stand_in
from msgspec.structs import replace
from operate_support import well_status
from prometheus_client.parser import text_string_to_metric_families

from qnode.config.telemetry import TelemetrySection, telemetry_faults
from qnode.errors import ConfigError
from qnode.influxdb import InfluxDb, escaped
from qnode.node.status.alarms import Alarms
from qnode.operate.status.alarms import AlarmName
from qnode.operate.status.interfaces import SaeStatus
from qnode.operate.status.metrics import render_metrics
from qnode.operate.status.model import NodeStatus, TelemetryStatus
from qnode.operate.telemetry import writer
from qnode.operate.telemetry.sample import lines_of, sample_of
from qnode.operate.telemetry.writer import Telemetry, database_of
from qnode.spool import Entry, acknowledged, last_entry


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(PATIENT_S):
        while not condition():  # noqa: ASYNC110 - a file or a server has no event
            await trio.sleep(0.02)


class Site:
    """What the writer sees of a node; counts how often it was asked."""

    def __init__(self, folder: Path, url: str, spool_bytes: int = 10_000_000, **more: Path | str) -> None:
        self.section = TelemetrySection(
            url=url,
            database="plant",
            spool=folder / "telemetry",
            interval_s=0.1,
            spool_bytes=spool_bytes,
            **more,  # type: ignore[arg-type]
        )
        self.alarms = Alarms()
        self.asked = 0

    def status(self) -> NodeStatus:
        self.asked += 1
        return well_status()

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[Telemetry]:
        telemetry = Telemetry(self.section, self.status, self.alarms)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(telemetry.run)
            yield telemetry
            nursery.cancel_scope.cancel()


def stored(server: StandIn) -> dict[int, float]:
    """Return the numbers of the samples that the server has, with what was lost before each."""
    found = {}
    for name, fields in server.points.items():
        if name.startswith("qkd_telemetry,"):
            values = dict(field.split("=") for field in fields.split(","))
            number = int(float(values["number"]))
            assert number not in found, f"sample {number} is there twice"
            found[number] = float(values["lost"])
    return found


def test_a_sample_has_the_figures_of_the_metrics_page() -> None:
    status = well_status()
    lines = lines_of(Entry(7, sample_of(status, 1_700_000_000_123_456_789)), "ab", 6)
    assert (
        lines[0]
        == f"qkd_telemetry,kme_id={status.site.kme_id},spool=ab number=7.0,lost=0.0 1700000000123456789"
    )
    names = set()
    for line in lines[1:]:
        series, fields, stamp = line.rsplit(" ", 2)
        assert series.startswith("qkd,")
        assert f"kme_id={status.site.kme_id}" in series
        assert stamp == "1700000000123456789"
        names |= {field.partition("=")[0] for field in fields.split(",")}
    page = text_string_to_metric_families(render_metrics(status).decode())
    assert {f"qkd_{name}" for name in names} == {sample.name for family in page for sample in family.samples}
    assert len({line.rsplit(" ", 2)[0] for line in lines}) == len(lines)


def test_hostile_names_stay_inside_their_tag() -> None:
    name = 'a b,c=d"\\\n1 x=1\r\x1b[2J\u202e'
    status = well_status()
    saes = [SaeStatus(sae_id=name, peers=[], kme_id="KME-ALICE")]
    hostile = replace(status, etsi014=replace(status.etsi014, saes=saes))
    lines = lines_of(Entry(1, sample_of(hostile, 5)), "ab", 0)
    (line,) = (one for one in lines if "sae_id=" in one)
    assert line.isprintable()
    assert escaped(name) in line
    assert escaped("a b,c=d") == r"a\ b\,c\=d"
    assert "\\" not in escaped("\\\n")


async def test_an_outage_and_a_restart_lose_no_sample_and_double_none(tmp_path: Path) -> None:
    with stand_in() as (url, server):
        site = Site(tmp_path, url)
        async with site.writing() as telemetry:
            await until(lambda: len(stored(server)) >= 2)
            server.faults = [500] * 1000
            await until(lambda: telemetry.status().waiting >= 5 and telemetry.status().away is not None)
            assert telemetry.status().away == '500 {"error":"timeout"}'
        async with site.writing() as telemetry:
            begun = telemetry.status().waiting
            await until(lambda: telemetry.status().waiting >= begun + 5)
            server.faults = []
            await until(lambda: telemetry.status().waiting <= 1)
            assert telemetry.status().away is None
            last = acknowledged(site.section.spool)
        numbers = stored(server)
        # The stand-in refuses each line with the number 3, here the one that names the sample.
        assert set(range(1, last + 1)) - set(numbers) == {3}
        assert not any(numbers.values())
        assert {query["precision"] for query in server.queries} == {"ns"}


async def test_a_refused_line_is_final_and_counted(tmp_path: Path) -> None:
    with stand_in() as (url, server):
        site = Site(tmp_path, url)
        async with site.writing() as telemetry:
            await until(lambda: telemetry.status().stored_total >= 4)
            assert telemetry.status().refused_lines_total == 1
            (alarm,) = site.alarms.all()
            assert alarm.name == AlarmName.TELEMETRY_LOST
            assert "1 lines refused by the database" in alarm.text
            assert not server.faults


async def test_beyond_its_bound_the_oldest_samples_are_lost_and_the_gap_is_told(tmp_path: Path) -> None:
    length = len(sample_of(well_status(), 1_700_000_000_000_000_000))
    with stand_in() as (url, server):
        server.faults = [500] * 1000
        site = Site(tmp_path, url, spool_bytes=16 * length)
        async with site.writing() as telemetry:
            await until(lambda: telemetry.status().waiting >= 30)
            server.faults = []
            await until(lambda: sum(stored(server).values()) > 0)
            await until(lambda: telemetry.status().waiting <= 1)
            assert site.alarms.has_alarm(AlarmName.TELEMETRY_LOST)
            numbers = stored(server)
            lost = sum(numbers.values())
            # Samples for which a busy machine was too late have no number, and are lost as well.
            assert lost <= telemetry.status().lost_total
            # Each number is stored, told as lost, or the one that the database refuses.
            assert 0 <= max(numbers) - lost - len(numbers) <= (3 not in numbers)


async def test_a_database_that_hangs_does_not_delay_the_samples(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts in its backlog, and never answers
        site = Site(tmp_path, f"http://127.0.0.1:{silent.getsockname()[1]}")
        async with site.writing() as telemetry:
            await until(lambda: telemetry.status().waiting >= 10)
            assert telemetry.status().stored_total == 0
            assert telemetry.status().lost_total == 0 or site.asked >= 10


async def test_a_disk_that_refuses_is_an_alarm_and_ends_when_it_takes_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "DISK_PAUSE_S", 0.05)
    with stand_in() as (url, _):
        site = Site(tmp_path, url)
        site.section.spool.write_text("a file, and no folder")
        async with site.writing() as telemetry:
            await until(lambda: site.alarms.has_alarm(AlarmName.TELEMETRY_FAILED))
            site.section.spool.unlink()
            await until(lambda: telemetry.status().stored_total >= 1)
            assert not site.alarms.has_alarm(AlarmName.TELEMETRY_FAILED)


async def test_a_long_outage_is_an_alarm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "AWAY_ALARM_S", 0.0)
    with stand_in() as (url, server):
        server.faults = [503]
        site = Site(tmp_path, url)
        async with site.writing():
            await until(lambda: site.alarms.has_alarm(AlarmName.TELEMETRY_AWAY))
            await until(lambda: not site.alarms.has_alarm(AlarmName.TELEMETRY_AWAY))


@pytest.mark.parametrize(
    ("kind", "expected"), [("password", "Basic cW5vZGU6c2VjcmV0"), ("token", "Token secret")]
)
async def test_the_database_is_told_who_writes_from_a_secret_file(
    tmp_path: Path, kind: str, expected: str
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret\n")
    secret.chmod(0o600)
    more: dict[str, Path | str] = {kind: secret} | ({"user": "qnode"} if kind == "password" else {})
    with stand_in() as (url, server):
        async with Site(tmp_path, url, **more).writing() as telemetry:  # type: ignore[arg-type]
            await until(lambda: telemetry.status().stored_total >= 1)
        assert server.authorizations == {expected}
    secret.chmod(0o644)
    with pytest.raises(ConfigError, match=rf"telemetry.{kind}: .* can be read by others; run chmod 600"):
        Telemetry(Site(tmp_path, url, **more).section, well_status, Alarms())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("key", "value", "fault"),
    [
        (
            "url",
            "influx:8086",
            "telemetry.url: expected http://host:port or https://host:port, got 'influx:8086'",
        ),
        ("url", "http://u:hunter2@h:1", "got one with a name or password; use user and password"),
        ("url", "http://h:99999", "telemetry.url: expected"),
        ("database", "", "telemetry.database: expected a name, got ''"),
        ("user", "qnode", "telemetry.user: user and password go together"),
        ("interval_s", 0.01, "telemetry.interval_s: expected 0.1 to 3600"),
    ],
)
def test_a_wrong_table_is_one_clear_fault(tmp_path: Path, key: str, value: str, fault: str) -> None:
    section = replace(Site(tmp_path, "http://h:8086").section, **{key: value})
    (told,) = telemetry_faults(section)
    assert fault in told
    assert "hunter2" not in told


def test_an_address_that_no_client_can_use_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"telemetry.url: http://h.*IDNA"):
        database_of(Site(tmp_path, "http://h\u200b.example").section)


def test_the_metrics_page_has_the_figures_of_the_writer() -> None:
    telemetry = TelemetryStatus(
        url="http://h",
        away="503",
        waiting=7,
        stored_total=5,
        lost_total=3,
        refused_lines_total=2,
        last_stored_at=9.0,
    )
    page = render_metrics(replace(well_status(), telemetry=telemetry)).decode()
    for line in (
        "qkd_telemetry_away 1.0",
        "qkd_telemetry_waiting_samples 7.0",
        "qkd_telemetry_stored_samples_total 5.0",
        "qkd_telemetry_lost_samples_total 3.0",
        "qkd_telemetry_refused_lines_total 2.0",
        "qkd_telemetry_last_stored_timestamp_seconds 9.0",
    ):
        assert line in page.splitlines()


@needs_influxd
async def test_a_killed_influxdb_gets_each_sample_once(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    site = Site(tmp_path, f"http://127.0.0.1:{port}")
    database = InfluxDb(site.section.url, "plant", precision="ns")
    with contextlib.ExitStack() as opened:
        opened.enter_context(influxd(tmp_path / "influxdb", port))
        async with site.writing() as telemetry:
            await until(lambda: telemetry.status().stored_total >= 3)
            opened.close()  # killed
            await until(lambda: telemetry.status().waiting >= 5)
        with influxd(tmp_path / "influxdb", port):
            async with site.writing() as telemetry:
                await until(lambda: telemetry.status().stored_total >= 6)
            last = acknowledged(site.section.spool)
            series = await database.select("SELECT number FROM qkd_telemetry")
    await database.aclose()
    numbers = [int(number) for row in series for _, number in row["values"]]
    assert numbers[:last] == list(range(1, last + 1))
    assert len(set(numbers)) == len(numbers)


def test_a_daemon_killed_in_an_outage_writes_each_sample_once_after_its_restart(tmp_path: Path) -> None:
    with stand_in() as (url, server), two_sites(tmp_path) as sites:
        server.faults = [503] * 10_000
        spool = tmp_path / "telemetry"
        table = {"url": url, "database": "plant", "spool": str(spool), "interval_s": 0.1}
        alter(sites.site_files["alice"], telemetry=table)

        def spooled(number: int) -> bool:
            entry = last_entry(spool) if spool.exists() else None
            return entry is not None and entry.number >= number

        sites.start("alice")
        eventually(lambda: spooled(3), "samples wait")
        sites.kill("alice")
        before = last_entry(spool)
        assert before is not None
        sites.start("alice")
        eventually(lambda: spooled(before.number + 3), "more samples wait")
        server.faults = []
        eventually(lambda: acknowledged(spool) > before.number + 3, "the samples are stored")
        sites.stop("alice")
        numbers = stored(server)
        # The stand-in refuses each line with the number 3.
        assert set(range(1, acknowledged(spool) + 1)) - set(numbers) == {3}
        assert not any(numbers.values())
        assert any(name.startswith("qkd,") and "link=" in name for name in server.points)
