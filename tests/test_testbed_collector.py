"""The way from the spool into the database: what is acknowledged, tried again, set aside and counted."""

import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
import trio.testing
from influxdb_support import PATIENT_S, influxd, needs_influxd, running, stand_in

from qnode.addresses import free_ports
from qnode.errors import ConfigError
from qnode.influxdb import DatabaseAway, LineRefused
from qnode.spool import acknowledged, identity, segment_path, set_acknowledged
from qnode.testbed.sensors.alone import Alone, Outage, run_alone
from qnode.testbed.sensors.collector import Absent, Collector, CollectorSettings, Journal, SetAside
from qnode.testbed.sensors.forwarder import Forwarder
from qnode.testbed.sensors.influxdb import Extent, SensorDatabase, line_of
from qnode.testbed.sensors.node_red import PICTURE, check_node_red, node_red_command
from qnode.testbed.sensors.power_meter import NAMES
from qnode.testbed.sensors.record import RECORD_BYTES, Reason, Record
from qnode.testbed.sensors.spool import ReadingSpool
from qnode.testbed.sensors.spool_line import Batch, LineBroken, Take, receive, send
from qnode.testbed.sensors.spool_server import serve

VALUE = (230.5,) * len(NAMES)
# Of now: InfluxDB refuses what is older than its retention, and an hour ago is not.
BEGAN_MS = int(time.time()) * 1000 - 3_600_000


def fill(folder: Path, readings: int, gaps: tuple[Reason, ...] = (), segment_entries: int = 6000) -> str:
    spool = ReadingSpool(folder, 1 << 20, segment_entries)
    begin = spool.last.number if spool.last else 0
    for n in range(readings):
        spool.put(BEGAN_MS + 100 * (begin + n), VALUE)
    for n, reason in enumerate(gaps):
        spool.put(BEGAN_MS + 100 * (begin + readings + n), reason=reason)
    spool.close()
    return spool.identity


@asynccontextmanager
async def spool_served(folder: Path) -> AsyncIterator[str]:
    async with trio.open_nursery() as nursery:
        slots = trio.CapacityLimiter(4)

        async def handle(stream: trio.SocketStream) -> None:
            await serve(folder, stream, slots)

        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, handle, listeners)
        yield f"127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def collecting(tmp_path: Path, spool: str, url: str, batch: int = 10) -> AsyncIterator[None]:
    settings = CollectorSettings(
        spool=spool,
        url=url,
        database="plant",
        journal=tmp_path / "journal.jsonl",
        status=tmp_path / "collector.json",
        batch=batch,
    )
    database = SensorDatabase(url, "plant")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Collector(settings, database).run)
        yield
        nursery.cancel_scope.cancel()
    await database.aclose()


async def until(holds: Callable[[], bool]) -> None:
    with trio.fail_after(PATIENT_S):
        while not holds():  # noqa: ASYNC110  what it looks at is on the disk
            await trio.sleep(0.02)


def record(number: int = 1, reason: Reason | None = None, **changes: Any) -> Record:
    plain: dict[str, Any] = {
        "number": number,
        "time_ms": BEGAN_MS,
        "readings": 1,
        "missed": 0,
        "reason": reason,
    }
    return Record(**{**plain, "values": () if reason else VALUE, **changes})


def test_a_line_has_floats_only_and_its_own_stamp() -> None:
    line = line_of(record(7, time_ms=1_700_000_000_100), "ab")
    assert line.startswith("power_meter,spool=ab number=7.0,voltage_l1_n_v=230.5,")
    assert line.endswith(" 1700000000100")
    gap = line_of(record(8, "timeout", polls=3, time_ms=5), "ab")
    assert gap == "power_meter_gap,reason=timeout,spool=ab number=8.0,polls=3.0 5"


def test_a_value_that_is_no_number_is_left_out_of_its_line() -> None:
    line = line_of(record(values=(float("nan"), float("inf"), *VALUE[2:])), "ab")
    assert "voltage_l1_n_v" not in line
    assert "voltage_l2_n_v" not in line
    assert "voltage_l3_n_v=230.5" in line


async def test_every_record_is_stored_and_then_acknowledged(tmp_path: Path) -> None:
    fill(tmp_path / "spool", 35, ("timeout", "not_running"))
    with stand_in() as (url, server):
        async with spool_served(tmp_path / "spool") as spool, collecting(tmp_path, spool, url):
            await until(lambda: acknowledged(tmp_path / "spool") == 37)
        assert len(server.points) == 36  # number 3 is refused
        assert {query["precision"] for query in server.queries} == {"ms"}
    journal = Journal(tmp_path / "journal.jsonl")
    ((key, entry),) = journal.set_aside.items()
    assert key[1] == 3
    assert "number=3.0," in entry.line
    assert "400" in entry.because
    assert "field type conflict" in entry.because


async def test_nothing_is_acknowledged_before_the_database_has_it(tmp_path: Path) -> None:
    fill(tmp_path / "spool", 2)
    with stand_in() as (url, server):
        server.faults = [500, 429]
        async with spool_served(tmp_path / "spool") as spool, collecting(tmp_path, spool, url):
            await until(lambda: server.writes >= 2)
            assert acknowledged(tmp_path / "spool") == 0
            await until(lambda: acknowledged(tmp_path / "spool") == 2)
        assert len(server.points) == 2


async def test_a_collector_that_comes_back_writes_the_same_points_again(tmp_path: Path) -> None:
    fill(tmp_path / "spool", 12)
    with stand_in() as (url, server):
        async with spool_served(tmp_path / "spool") as spool:
            for _ in range(2):
                set_acknowledged(tmp_path / "spool", 0)  # the acknowledgement was lost on its way
                async with collecting(tmp_path, spool, url):
                    await until(lambda: acknowledged(tmp_path / "spool") == 12)
        assert len(server.points) == 11
    assert len(Journal(tmp_path / "journal.jsonl").set_aside) == 1
    assert (tmp_path / "journal.jsonl").read_text().count("set_aside") == 1


async def test_records_that_the_spool_dropped_are_counted(tmp_path: Path) -> None:
    identity = fill(tmp_path / "spool", 35, segment_entries=10)
    segment_path(tmp_path / "spool", 11).unlink()
    with stand_in() as (url, _):
        async with spool_served(tmp_path / "spool") as spool, collecting(tmp_path, spool, url):
            await until(lambda: acknowledged(tmp_path / "spool") == 35)
    journal = Journal(tmp_path / "journal.jsonl")
    assert list(journal.absent.values()) == [Absent(identity, 11, 20)]
    assert journal.counts(identity) == (1, 10)


async def test_a_line_that_falls_silent_and_a_server_that_goes_lose_nothing(tmp_path: Path) -> None:
    fill(tmp_path / "spool", 5)
    with stand_in() as (url, server):
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        async with spool_served(tmp_path / "spool") as spool, trio.open_nursery() as nursery:
            line = Forwarder(int(spool.rpartition(":")[2]))
            nursery.start_soon(line.serve, listeners[0])
            address = f"127.0.0.1:{listeners[0].socket.getsockname()[1]}"
            async with collecting(tmp_path, address, url):
                await until(lambda: acknowledged(tmp_path / "spool") == 5)
                line.cut()
                fill(tmp_path / "spool", 5)
                await trio.sleep(0.5)
                assert acknowledged(tmp_path / "spool") == 5
                line.mend()
                await until(lambda: acknowledged(tmp_path / "spool") == 10)
            nursery.cancel_scope.cancel()
        assert len(server.points) == 9


async def test_the_spool_server_refuses_an_acknowledgement_of_what_it_has_not_given(tmp_path: Path) -> None:
    fill(tmp_path, 3)
    async with spool_served(tmp_path) as address:
        stream = await trio.open_tcp_stream("127.0.0.1", int(address.rpartition(":")[2]))
        async with stream:
            await send(stream, Take(identity(tmp_path), 4, 10))
            with pytest.raises(LineBroken, match="closed"):
                await receive(stream, Batch)
    assert acknowledged(tmp_path) == 0


async def test_an_acknowledgement_of_another_spool_is_refused(tmp_path: Path) -> None:
    fill(tmp_path, 3)
    async with spool_served(tmp_path) as address:
        stream = await trio.open_tcp_stream("127.0.0.1", int(address.rpartition(":")[2]))
        async with stream:
            await send(stream, Take("0123456789abcdef", 2, 10))
            with pytest.raises(LineBroken, match="closed"):
                await receive(stream, Batch)
    assert acknowledged(tmp_path) == 0


async def test_a_second_collector_takes_what_the_first_has_stored_for_no_hole(tmp_path: Path) -> None:
    fill(tmp_path, 35, segment_entries=10)
    set_acknowledged(tmp_path, 30)
    segment_path(tmp_path, 11).unlink()  # as the reader does with what is acknowledged
    async with spool_served(tmp_path) as address:
        stream = await trio.open_tcp_stream("127.0.0.1", int(address.rpartition(":")[2]))
        async with stream:
            await send(stream, Take(identity(tmp_path), 5, 10))
            batch = await receive(stream, Batch)
    assert (batch.after, len(batch.records)) == (30, 5)
    assert acknowledged(tmp_path) == 30


@pytest.mark.parametrize("spool", ["a b", "ab\n", "x", "0" * 17])
async def test_a_name_of_a_spool_that_is_none_reaches_no_database(spool: str) -> None:
    near, far = trio.testing.memory_stream_pair()
    await send(near, Batch(spool, 0, ()))
    with pytest.raises(LineBroken, match="not a Batch"):
        await receive(far, Batch)


@pytest.mark.parametrize(
    "raw", [b"\xff\xff\xff\xff", b"\0\0\0\2\xc0\xc0", b"\0\0\0\1\x01", b"GET / HTTP/1.1\r\n\r\n"]
)
async def test_the_spool_server_closes_on_what_is_no_request(tmp_path: Path, raw: bytes) -> None:
    fill(tmp_path, 1)
    async with spool_served(tmp_path) as address:
        stream = await trio.open_tcp_stream("127.0.0.1", int(address.rpartition(":")[2]))
        async with stream:
            await stream.send_all(raw)
            with pytest.raises(LineBroken, match="closed"), trio.fail_after(PATIENT_S):
                await receive(stream, Batch)


@pytest.mark.parametrize(
    "records", [(b"short",), (bytes(RECORD_BYTES),)], ids=["short", "without a checksum"]
)
async def test_a_record_that_is_damaged_on_its_way_is_not_acknowledged(
    tmp_path: Path, records: tuple[bytes, ...]
) -> None:
    asked = []

    async def liar(stream: trio.SocketStream) -> None:
        with contextlib.suppress(LineBroken):
            while True:
                asked.append((await receive(stream, Take)).after)
                await send(stream, Batch("ab", 0, records))

    with stand_in() as (url, server):
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, liar, listeners)
            address = f"127.0.0.1:{listeners[0].socket.getsockname()[1]}"
            async with collecting(tmp_path, address, url):
                await until(lambda: len(asked) >= 2)
            nursery.cancel_scope.cancel()
        assert set(asked) == {None}
        assert not server.points


def test_a_journal_with_a_torn_last_line_is_read(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    Journal(path).add([SetAside("ab", 3, "line", "400"), Absent("ab", 5, 6)])
    with path.open("ab") as file:
        file.write(b'\n{"type":"set_as')
    journal = Journal(path)
    assert journal.counts("ab") == (1, 2)
    journal.add([SetAside("ab", 9, "line", "400")])
    assert Journal(path).counts("ab") == (2, 2)


def test_a_hole_that_grew_before_it_was_acknowledged_is_counted_once(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    for last in (20, 30, 20):
        Journal(path).add([Absent("ab", 11, last), Absent("ab", 41, 50), Absent("cd", 1, 5)])
    assert Journal(path).counts("ab") == (0, 30)
    assert Journal(path).counts("cd") == (0, 5)


@needs_influxd
async def test_influxdb_refuses_a_wrong_field_for_good_and_keeps_the_rest(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    with influxd(tmp_path, port):
        database = SensorDatabase(f"http://127.0.0.1:{port}", "plant")
        with pytest.raises(DatabaseAway, match="404"):  # which also creates it
            await database.write([line_of(record(1), "ab")])
        stamps = [BEGAN_MS + 100 * n for n in range(1, 8)]
        lines = [line_of(record(n, time_ms=stamp), "ab") for n, stamp in enumerate(stamps, start=1)]
        lines[2] = lines[2].replace("number=3.0", 'number="three"')
        for _ in range(2):  # twice is as once
            with pytest.raises(LineRefused, match="400"):
                await database.write(lines)
            assert list(await database.write_each(lines)) == [2]
        await database.write([line_of(record(9, "timeout", polls=4), "ab")])
        stored = await database.stored("ab")
        assert (stored.readings, stored.gaps, stored.missed) == (6, 1, {"timeout": 4})
        assert (await database.stored("other")).readings == 0
        await database.aclose()


@needs_influxd
async def test_the_database_tells_least_mean_and_most_of_each_time_and_leaves_out_empty_ones(
    tmp_path: Path,
) -> None:
    (port,) = free_ports(1)
    place = NAMES.index("current_l1_a")
    begin_ms = BEGAN_MS + 7  # no multiple of a bin

    def sample(number: int, after_ms: int, ampere: float) -> str:
        values = (*VALUE[:place], ampere, *VALUE[place + 1 :])
        return line_of(record(number, time_ms=begin_ms + after_ms, values=values), "ab")

    with influxd(tmp_path, port):
        database = SensorDatabase(f"http://127.0.0.1:{port}", "plant")
        await database.create()
        samples = [(-1, 9.0), (0, 1.0), (999, 3.0), (2000, 7.0), (3000, 9.0)]
        await database.write([sample(n, *one) for n, one in enumerate(samples, start=1)])
        found = await database.extents("ab", "current_l1_a", begin_ms, begin_ms + 3000, 3)
        assert found == [
            Extent(time_ms=begin_ms + 500, least=1.0, mean=2.0, most=3.0),
            Extent(time_ms=begin_ms + 2500, least=7.0, mean=7.0, most=7.0),
        ]
        assert await database.extents("other", "current_l1_a", begin_ms, begin_ms + 3000, 3) == []
        await database.aclose()


@needs_influxd
async def test_a_killed_influxdb_has_all_that_was_acknowledged(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    identity = fill(tmp_path / "spool", 300)
    url = f"http://127.0.0.1:{port}"
    async with spool_served(tmp_path / "spool") as spool, collecting(tmp_path, spool, url, batch=20):
        for aim in (100, 300):  # killed while it is written to
            with influxd(tmp_path / "influxdb", port):
                await until(lambda aim=aim: acknowledged(tmp_path / "spool") >= aim)  # type: ignore[misc]
        with influxd(tmp_path / "influxdb", port):
            database = SensorDatabase(url, "plant")
            assert (await database.stored(identity)).readings == 300
            await database.aclose()


@needs_influxd
@pytest.mark.skipif(
    not os.environ.get("NODE_RED"), reason="needs NODE_RED, the folder of an installed Node-RED"
)
async def test_node_red_draws_the_points_of_the_database(tmp_path: Path) -> None:
    influx_port, port = free_ports(2)
    url = f"http://127.0.0.1:{influx_port}"
    command = node_red_command(
        Path(os.environ["NODE_RED"]), tmp_path / "node_red", ("127.0.0.1", port), url, "plant"
    )
    with influxd(tmp_path / "influxdb", influx_port), running(command):
        database = SensorDatabase(url, "plant")
        await database.create()
        now_ms = int(time.time()) * 1000
        stamps = [now_ms - 1000 * n for n in range(60)]
        await database.write(
            [line_of(record(n, time_ms=stamp), "ab") for n, stamp in enumerate(stamps, start=1)]
        )
        await database.aclose()
        answer = None
        with trio.fail_after(PATIENT_S):
            async with httpx.AsyncClient(trust_env=False) as client:
                while answer is None or answer.status_code != 200:
                    with contextlib.suppress(httpx.ConnectError):
                        answer = await client.get(f"http://127.0.0.1:{port}{PICTURE}")
                    await trio.sleep(0.2)
    assert answer.headers["content-type"].startswith("image/svg+xml")
    assert "up to 230.5 A" in answer.text
    (points,) = re.findall(r'<polyline [^>]*points="([^"]+)"', answer.text)
    assert 12 <= len(points.split()) <= 13


def test_a_missing_node_red_is_said_with_its_remedy(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"node is missing|npm install --prefix .* node-red@4\.1\.8"):
        check_node_red(tmp_path)


@needs_influxd
async def test_the_whole_chain_loses_nothing_through_an_outage_of_each_part(tmp_path: Path) -> None:
    pytest.importorskip("pymodbus", reason="needs the extra testbed")
    pytest.importorskip("asyncua", reason="needs the extra testbed")
    outages: tuple[Outage, ...] = ("reader", "line", "database", "collector", "spool_server")
    account = await run_alone(
        Alone(directory=tmp_path, minutes=0.2, outages=outages, outage_s=1.0), lambda line: None
    )
    assert account.read >= 20
    assert account.stored == account.read
    assert (account.lost, account.set_aside, account.absent, account.waiting) == (0, 0, 0, 0)
    assert sum(account.missed.values()) == account.missed_polls


def test_a_wrong_settings_file_is_one_line_and_exit_64(tmp_path: Path) -> None:
    path = tmp_path / "collector.toml"
    path.write_text('spool = "nowhere"\nurl = "http://x"\ndatabase = "d"\njournal = "j"\nstatus = "s"\n')
    done = subprocess.run(
        [sys.executable, "-m", "qnode.testbed.sensors.collector", str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 64
    assert done.stderr.strip() == f"{path}: spool: expected host:port, got 'nowhere'"
