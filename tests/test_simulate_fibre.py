"""The simulated fibre: two ends over a real Unix socket, started, stopped and restarted in any order."""

import socket
import stat
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import trio
from qnode_drivers.simulated import SimulatedTdc, SimulatedTransmitter, TdcConfig, TransmitterConfig
from structlog.testing import capture_logs

from qnode.config import LinkParameters, SiteConfig, convert, load
from qnode.devices.conformance import check_driver
from qnode.devices.protocols import EmissionRun, TagSource, Transmitter
from qnode.errors import ConfigError, DeviceError
from qnode.simulate.fibre import Hello, Line, Run, Set, World
from qnode.simulate.fibre_address import UnixFibre, fibre_at
from qnode.simulate.generator import Lit, TagGenerator
from qnode.simulate.parameters import Change, SimulationParameters
from qnode.tags.types import UNKNOWN_SYMBOL, X_PLUS, Z_CHANNEL, TagBlock
from qnode.units import PS_PER_S

LINK = LinkParameters()
RATE_HZ, PERIOD_PS = LINK.source.qubit_rate_hz, LINK.source.period_ps
DARK_HZ, LIT_HZ = 5_700, 31_300  # clicks of both detectors together
STILL = {
    "clock_offset_ppm": 0.0,
    "clock_walk_per_root_s": 0.0,
    "fibre_delay_drift_ns_per_hour": 0.0,
    "start_offset_limit_s": 0.0,
    "speed": "max",
}


def table(folder: Path, **simulation: Any) -> dict[str, Any]:
    return {"fibre": str(folder / "fibre" / "fibre.sock"), "simulation": {**STILL, **simulation}}


@asynccontextmanager
async def transmitter(folder: Path, **simulation: Any) -> AsyncIterator[SimulatedTransmitter]:
    config = convert(table(folder, **simulation), TransmitterConfig, where="test")
    async with SimulatedTransmitter.open(config) as device:
        yield device


@asynccontextmanager
async def tdc(folder: Path, **simulation: Any) -> AsyncIterator[SimulatedTdc]:
    config = convert(table(folder, **simulation), TdcConfig, where="test")
    async with SimulatedTdc.open(config) as device:
        yield device


async def present_run(device: SimulatedTransmitter) -> EmissionRun:
    async with aclosing(device.runs()) as runs:
        return await anext(runs)


async def some_tags(device: SimulatedTdc, seconds: float) -> TagBlock:
    """Return the next ``seconds`` (or somewhat more) of tags in one block."""
    blocks: list[TagBlock] = []
    async with aclosing(device.tags()) as tags:
        async for block in tags:
            blocks.append(block)
            if block.until_ps - blocks[0].until_ps >= seconds * PS_PER_S:
                break
    return joined(blocks[1:])


async def tags_once(device: SimulatedTdc, *, lit: bool) -> TagBlock:
    """Return a second of tags, once clicks come at the rate that light (or the dark) gives."""
    async with aclosing(device.tags()) as tags:
        before = (await anext(tags)).until_ps
        async for block in tags:
            rate_hz = block.times_ps.size / (block.until_ps - before) * PS_PER_S
            before = block.until_ps
            if (rate_hz > (LIT_HZ + DARK_HZ) / 2) == lit:
                break
    return await some_tags(device, 1.0 if lit else 0.1)


def joined(blocks: list[TagBlock]) -> TagBlock:
    return TagBlock(
        np.concatenate([block.times_ps for block in blocks]),
        np.concatenate([block.channels for block in blocks]),
        blocks[-1].until_ps,
    )


def qber_z(alice: SimulatedTransmitter, run: EmissionRun, bob: SimulatedTdc, tags: TagBlock) -> float:
    """Return the error rate of sifted bits, by the slots that both sites' (exact) times of day give."""
    first_arrival = TagGenerator(convert(STILL, SimulationParameters, where="test"), LINK).first_arrival_ps
    since = (tags.times_ps[tags.channels == Z_CHANNEL] - first_arrival) / PERIOD_PS
    shift = round((bob.origin_s - run.started_at_s) * 100) * RATE_HZ // 100
    early = np.floor(since + 0.12)
    place = (since - early) * PERIOD_PS
    in_gate = (np.abs(place) < 200) | (np.abs(place - LINK.source.bin_spacing_ps) < 200)
    codes = alice.symbols(run.run_id, early.astype(np.int64)[in_gate] + shift)
    assert (codes != UNKNOWN_SYMBOL).all()
    kept = codes & 3 != X_PLUS
    found = (place[in_gate] > 400).astype(np.uint8)
    assert np.count_nonzero(kept) > 5000
    return float(np.mean((codes & 3)[kept] != found[kept]))


async def test_both_devices_conform(tmp_path: Path) -> None:
    await check_driver(SimulatedTransmitter, table(tmp_path))
    await check_driver(SimulatedTdc, table(tmp_path))
    async with transmitter(tmp_path) as alice:
        assert isinstance(alice, Transmitter)
        assert alice.identity.simulated
        await check_driver(SimulatedTdc, table(tmp_path))
        async with tdc(tmp_path) as bob:
            assert isinstance(bob, TagSource)
            assert bob.identity.simulated


async def test_bob_sees_what_alice_sent_at_any_order_of_start(tmp_path: Path) -> None:
    async with transmitter(tmp_path) as alice, tdc(tmp_path) as bob:
        assert qber_z(alice, await present_run(alice), bob, await some_tags(bob, 1.0)) < 0.025
    async with tdc(tmp_path) as bob:
        dark = await some_tags(bob, 0.1)
        assert dark.times_ps.size < 0.5 * LIT_HZ * 0.2
        async with transmitter(tmp_path) as alice:
            tags = await tags_once(bob, lit=True)
            assert qber_z(alice, await present_run(alice), bob, tags) < 0.025


async def test_the_light_goes_out_with_alice_and_comes_back_with_a_new_run(tmp_path: Path) -> None:
    async with tdc(tmp_path) as bob:
        async with transmitter(tmp_path) as alice:
            await tags_once(bob, lit=True)
            earlier = await present_run(alice)
        began = trio.current_time()
        dark = await tags_once(bob, lit=False)
        assert dark.times_ps.size > 0
        assert trio.current_time() - began >= 0.1  # the dark passes at real time
        async with transmitter(tmp_path) as alice:
            tags = await tags_once(bob, lit=True)
            run = await present_run(alice)
            assert run.run_id != earlier.run_id
            assert run.started_at_s > earlier.started_at_s
            assert qber_z(alice, run, bob, tags) < 0.025
            assert (alice.symbols(earlier.run_id, np.arange(5)) == UNKNOWN_SYMBOL).all()


async def test_the_run_goes_on_when_bob_is_killed_and_restarted(tmp_path: Path) -> None:
    async with transmitter(tmp_path) as alice:
        run = await present_run(alice)
        async with tdc(tmp_path) as bob:
            last = await some_tags(bob, 3.0)
            left_s = bob.origin_s + last.until_ps / PS_PER_S
        async with tdc(tmp_path) as bob:
            assert bob.origin_s >= left_s - 1e-3  # no slot of the run is seen twice
            tags = await some_tags(bob, 1.0)
            assert tags.times_ps[0] < 3 * PS_PER_S
            assert await present_run(alice) == run
            assert qber_z(alice, run, bob, tags) < 0.025


async def test_in_real_time_the_world_stays_at_the_time_of_day_when_bob_restarts(tmp_path: Path) -> None:
    async with transmitter(tmp_path, speed=1.0):
        for _ in range(3):
            async with tdc(tmp_path, speed=1.0) as bob:
                assert bob.origin_s <= time.time() + 0.1
                await some_tags(bob, 0.2)


async def test_times_of_day_are_off_within_the_limit_and_not_alike(tmp_path: Path) -> None:
    async with (
        transmitter(tmp_path, start_offset_limit_s=0.01) as alice,
        tdc(tmp_path, start_offset_limit_s=0.01) as bob,
    ):
        apart_s = (await present_run(alice)).started_at_s - bob.origin_s
        assert 0.0 < abs(apart_s) <= 0.02 + 0.2


async def test_alice_changes_settings_while_the_light_is_on(tmp_path: Path) -> None:
    async with transmitter(tmp_path) as alice, tdc(tmp_path) as bob:
        await tags_once(bob, lit=True)
        await alice.change(Change(source_on=False))
        await tags_once(bob, lit=False)
        await alice.change(Change(source_on=True, eve_intercept=1.0))
        tags = await tags_once(bob, lit=True)
        assert 0.2 < qber_z(alice, await present_run(alice), bob, tags) < 0.3


async def test_the_schedule_holds_in_simulated_time(tmp_path: Path) -> None:
    schedule = [{"at_s": 2.35, "source_on": False}, {"at_s": 3.0, "source_on": True}]
    async with transmitter(tmp_path) as alice, tdc(tmp_path, schedule=schedule) as bob:
        began_s = bob.origin_s - (await present_run(alice)).started_at_s
        times_s = (await some_tags(bob, 4.0)).times_ps / PS_PER_S + began_s
        counts, _ = np.histogram(times_s, np.array([1.35, 2.35, 3.0, 4.0]))
        assert counts[0] == pytest.approx(LIT_HZ, rel=0.05)
        assert counts[1] == pytest.approx(DARK_HZ * 0.65, rel=0.25)
        assert counts[2] == pytest.approx(LIT_HZ, rel=0.05)


async def test_a_speed_is_kept_and_only_real_time_is_paced(tmp_path: Path) -> None:
    async with transmitter(tmp_path, speed=5.0), tdc(tmp_path, speed=5.0) as bob:
        assert not bob.paced
        began = trio.current_time()
        await some_tags(bob, 2.0)
        assert trio.current_time() - began >= 0.4
    async with tdc(tmp_path, speed=1.0) as bob:
        assert bob.paced


async def test_the_socket_is_private_and_exclusive(tmp_path: Path) -> None:
    path = tmp_path / "fibre" / "fibre.sock"
    async with transmitter(tmp_path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        with pytest.raises(DeviceError, match="another transmitter"):
            async with transmitter(tmp_path):
                pass
    assert not path.exists()
    path.parent.chmod(0o755)
    with pytest.raises(DeviceError, match="0700"):
        async with transmitter(tmp_path):
            pass


async def test_a_socket_left_behind_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "fibre" / "fibre.sock"
    path.parent.mkdir(mode=0o700)
    with trio.socket.socket(trio.socket.AF_UNIX) as left_behind:
        await left_behind.bind(str(path))
    async with transmitter(tmp_path), tdc(tmp_path) as bob:
        await tags_once(bob, lit=True)


async def test_a_deep_folder_is_no_obstacle(tmp_path: Path) -> None:
    folder = tmp_path / ("d" * 120)
    folder.mkdir()
    async with transmitter(folder), tdc(folder) as bob:
        await tags_once(bob, lit=True)


async def test_a_stranger_loses_his_connection_and_nothing_else(tmp_path: Path) -> None:
    async with transmitter(tmp_path) as alice, tdc(tmp_path) as bob:
        run = await present_run(alice)
        for words in (
            b"hello?\n",
            b'{"type":"claim"}\n',
            b'{"type":"claim","next_knot":9223372036854775807}\n',
            b"x" * 100_000,
        ):
            stream = await UnixFibre(tmp_path / "fibre" / "fibre.sock").connect()
            async with stream:
                await stream.send_all(words)
                with trio.fail_after(60):
                    try:
                        assert await stream.receive_some() == b""
                    except trio.BrokenResourceError:
                        continue  # closed with our words unread
        assert await present_run(alice) == run
        await tags_once(bob, lit=True)


async def test_a_transmitter_that_speaks_something_else_is_an_error_of_the_device(tmp_path: Path) -> None:
    path = tmp_path / "fibre" / "fibre.sock"
    path.parent.mkdir(mode=0o700)
    with trio.socket.socket(trio.socket.AF_UNIX) as sock:
        await sock.bind(str(path))
        sock.listen()

        async def answer() -> None:
            other, _ = await sock.accept()
            line = Line(trio.SocketStream(other))
            assert await line.receive() == Hello(None, None)
            await other.send(b"220 ready\n")
            await line.aclose()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer)
            with pytest.raises(DeviceError, match="not a message"):
                async with tdc(tmp_path):
                    pass


def test_no_symbol_key_is_printed() -> None:
    run = Run(run_id=7, symbol_key=123456789, first_knot=1, world=World(1, 2))
    assert "123456789" not in repr(run)
    assert "123456789" not in repr(Lit(symbol_key=123456789, first_knot=1))
    assert msgspec.json.decode(msgspec.json.encode(run), type=Run) == run


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


async def test_over_tcp_bob_sees_what_alice_sent_and_both_say_that_it_is_in_the_clear() -> None:
    table = {"fibre": f"tcp://:{free_port()}", "simulation": STILL}
    alice_table = convert(table, TransmitterConfig, where="test")
    bob_table = convert(table, TdcConfig, where="test")
    with capture_logs() as logs:
        async with SimulatedTransmitter.open(alice_table) as alice, SimulatedTdc.open(bob_table) as bob:
            assert qber_z(alice, await present_run(alice), bob, await some_tags(bob, 1.0)) < 0.025
            assert "fibre in the clear" in alice.identity.serial
            assert "fibre in the clear" in bob.identity.serial
            with pytest.raises(DeviceError, match="cannot listen"):
                async with SimulatedTransmitter.open(alice_table):
                    pass
        async with SimulatedTdc.open(bob_table) as bob:
            await tags_once(bob, lit=False)
            async with SimulatedTransmitter.open(alice_table) as alice:
                await tags_once(bob, lit=True)
    assert [log["log_level"] for log in logs if log["event"] == "fibre.in_the_clear"] == ["warning"] * 4


async def test_a_peer_at_another_address_is_refused_unheard_and_named_at_both_ends() -> None:
    fibre = f"tcp://127.0.0.1:{free_port()}"
    only = convert({"fibre": fibre, "fibre_peer": "192.0.2.7"}, TransmitterConfig, where="test")
    with capture_logs() as logs:
        async with SimulatedTransmitter.open(only) as alice:
            run = await present_run(alice)
            async with SimulatedTdc.open(convert({"fibre": fibre}, TdcConfig, where="test")) as bob:
                while not {"fibre.stranger", "fibre.refused"} <= {log["event"] for log in logs}:
                    await tags_once(bob, lit=False)
                await tags_once(bob, lit=False)
            assert await present_run(alice) == run
    told = [log for log in logs if log["event"] == "fibre.stranger"]
    assert [(log["address"], log["admitted"]) for log in told] == [("127.0.0.1", "192.0.2.7/32")]
    assert len([log for log in logs if log["event"] == "fibre.refused"]) == 1


@pytest.mark.parametrize(
    ("table", "names"),
    [
        ({"fibre": "tcp://alice"}, "expected a path or tcp://HOST:PORT"),
        ({"fibre": "tcp://alice:0"}, "expected a path or tcp://HOST:PORT"),
        ({"fibre": "tcp://[::1]:7401", "fibre_peer": "bob"}, "expected an address or a network, got 'bob'"),
        ({"fibre": "/run/f.sock", "fibre_peer": "10.0.0.2"}, "has a meaning only with"),
    ],
)
def test_a_wrong_address_of_the_fibre_is_refused_with_what_was_expected(
    table: dict[str, str], names: str
) -> None:
    with pytest.raises(ConfigError, match=names):
        convert(table, TransmitterConfig, where="test")


async def test_a_speed_that_is_not_set_is_real_time(tmp_path: Path) -> None:
    config = convert({"fibre": str(tmp_path / "fibre" / "fibre.sock")}, TdcConfig, where="test")
    async with SimulatedTdc.open(config) as bob:
        assert bob.paced


def test_the_shipped_sites_find_each_other_on_one_machine_at_real_time() -> None:
    folder = Path(__file__).parent.parent / "config"
    alice, bob = (load(folder / f"{role}.toml", SiteConfig) for role in ("alice", "bob"))
    sent = convert(alice.devices["transmitter"].config, TransmitterConfig, where="alice.toml")
    seen = convert(bob.devices["tdc"].config, TdcConfig, where="bob.toml")
    assert (sent.fibre, sent.simulation) == (seen.fibre, seen.simulation)
    assert fibre_at(sent.fibre).in_the_clear, "a path would need a folder that systemd makes for both"
    assert "//127.0.0.1:" in sent.fibre
    assert sent.simulation.speed == 1.0
    assert alice.peer.address == bob.peer.address
    assert alice.link == bob.link
    listening = [config.etsi014.listen.rpartition(":")[2] for config in (alice, bob)]
    listening += [str(config.operate.metrics_listen).rpartition(":")[2] for config in (alice, bob)]
    assert len(set(listening)) == 4


def test_a_change_names_only_the_settings_that_change_so_that_an_older_end_reads_it() -> None:
    sent = msgspec.json.encode(Set(Change(source_on=True, attenuation_db=3.0)))
    assert sent == b'{"type":"set","change":{"source_on":true,"attenuation_db":3.0}}'
