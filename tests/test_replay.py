"""A simulated link recorded, and its recording played in place of the hardware."""

import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import msgspec
import numpy as np
import pytest
import trio
from qnode_drivers.replay import ReplayTdc, ReplayTransmitter, TdcConfig, TransmitterConfig

from qnode.cli.replay import played_config
from qnode.config import LinkParameters, convert
from qnode.devices.conformance import check_driver
from qnode.devices.protocols import TagSource, Transmitter
from qnode.errors import ConfigError
from qnode.offline.recorded import recorded_link
from qnode.simulate.parameters import SimulationParameters
from qnode.simulate.recorder import record, steady_clocks
from qnode.tags.arrays import give_back, mapped
from qnode.tags.recording import open_recording
from qnode.tags.types import UNKNOWN_SYMBOL, X_PLUS, Z_CHANNEL, TagBlock
from qnode.units import PS_PER_S

LINK = LinkParameters()
PERIOD_PS = LINK.source.period_ps
SECONDS = 0.2


@pytest.fixture(scope="module")
def loopable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recordings") / "loopable"
    record(folder, steady_clocks(SimulationParameters()), LINK, SECONDS)
    return folder


@asynccontextmanager
async def both(folder: Path, *, loop: bool) -> AsyncIterator[tuple[ReplayTransmitter, ReplayTdc]]:
    async with (
        ReplayTransmitter.open(TransmitterConfig(recording=folder, loop=loop)) as alice,
        ReplayTdc.open(TdcConfig(recording=folder, loop=loop)) as bob,
    ):
        yield alice, bob


async def some_tags(bob: ReplayTdc, seconds: float) -> TagBlock:
    blocks: list[TagBlock] = []
    async with aclosing(bob.tags()) as tags:
        async for block in tags:
            if blocks:
                assert block.times_ps.min() >= blocks[-1].until_ps
            blocks.append(block)
            if block.until_ps >= seconds * PS_PER_S:
                break
    return TagBlock(
        np.concatenate([block.times_ps for block in blocks]),
        np.concatenate([block.channels for block in blocks]),
        blocks[-1].until_ps,
    )


async def error_rates(alice: ReplayTransmitter, bob: ReplayTdc, folder: Path, seconds: float) -> np.ndarray:
    """Return QBER_Z in each tenth of a second, by the slots that both times of day give."""
    manifest = open_recording(folder).manifest
    async with aclosing(alice.runs()) as runs:
        run = await anext(runs)
    tags = await some_tags(bob, seconds)
    slope = manifest.span_ps / (manifest.slots * PERIOD_PS)
    delay_s = SimulationParameters().fibre_delay_s
    first_slot = round((bob.origin_s - delay_s - run.started_at_s) * LINK.source.qubit_rate_hz)
    first_slot = round(first_slot / manifest.slots) * manifest.slots  # a time of day is known to microseconds
    since = tags.times_ps[tags.channels == Z_CHANNEL] / slope - PERIOD_PS / 4
    early = np.floor(since / PERIOD_PS + 0.12)
    place = since - early * PERIOD_PS
    in_gate = (np.abs(place) < 200) | (np.abs(place - LINK.source.bin_spacing_ps) < 200)
    codes = alice.symbols(run.run_id, early.astype(np.int64)[in_gate] + first_slot)
    kept = (codes != UNKNOWN_SYMBOL) & (codes & 3 != X_PLUS)
    wrong = (codes & 3)[kept] != (place[in_gate][kept] > 400)
    tenth = (since[in_gate][kept] / (PS_PER_S / 10)).astype(np.int64)
    return np.asarray(np.bincount(tenth, wrong) / np.bincount(tenth))[: int(seconds * 10)]


async def test_both_devices_conform(loopable: Path) -> None:
    for loop in (False, True):
        table = {"recording": str(loopable), "loop": loop}
        await check_driver(ReplayTransmitter, table)
        await check_driver(ReplayTdc, table)
    async with both(loopable, loop=True) as (alice, bob):
        assert isinstance(alice, Transmitter)
        assert isinstance(bob, TagSource)
        assert alice.identity.simulated
        assert bob.identity.simulated
        assert not bob.paced


async def test_the_recording_holds_what_both_sites_saw(loopable: Path) -> None:
    async with both(loopable, loop=False) as (alice, bob):
        assert (await error_rates(alice, bob, loopable, SECONDS) < 0.04).all()
    tags = open_recording(loopable)
    assert tags.times_ps.min() >= 0
    assert tags.times_ps.max() < tags.manifest.span_ps
    assert tags.times_ps.shape[0] / SECONDS == pytest.approx(31_312, rel=0.03)


async def test_a_recording_that_is_not_looped_ends(loopable: Path) -> None:
    recording = open_recording(loopable)
    async with both(loopable, loop=False) as (alice, bob):
        tags = await some_tags(bob, 10.0)
        assert np.array_equal(tags.times_ps, recording.times_ps)
        assert np.array_equal(tags.channels, recording.channels)
        beyond = alice.symbols(recording.manifest.run_id, np.array([-1, recording.manifest.slots]))
        assert (beyond == UNKNOWN_SYMBOL).all()


async def test_a_loop_has_no_seam(loopable: Path) -> None:
    recording = open_recording(loopable)
    async with both(loopable, loop=True) as (alice, bob):
        assert (await error_rates(alice, bob, loopable, 10 * SECONDS) < 0.04).all()
        slots = np.arange(100_000) * 37
        run_id, span = recording.manifest.run_id, recording.manifest.slots
        first = alice.symbols(run_id, slots)
        assert len(set(first.tolist())) == 6
        assert np.array_equal(alice.symbols(run_id, slots + 10**9 * span), first)
        backwards = alice.symbols(run_id, (slots + 3 * span)[::-1].copy())
        assert np.array_equal(backwards[::-1], first)
        tags = await some_tags(bob, 3 * SECONDS)
        count = recording.times_ps.shape[0]
        moved = tags.times_ps[2 * count : 3 * count] - recording.times_ps[: tags.times_ps.size - 2 * count]
        assert np.ptp(moved) == 0
        assert moved[0] == pytest.approx(2 * recording.manifest.span_ps, abs=1.0)


async def test_opened_again_a_loop_goes_on_later(loopable: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    origins = []
    for now_s in (100.0, 101.5):
        monkeypatch.setattr("time.time", lambda now_s=now_s: now_s)
        async with ReplayTdc.open(TdcConfig(recording=loopable, loop=True)) as bob:
            origins.append(bob.origin_s)
    assert origins[1] - origins[0] == pytest.approx(2**13, abs=1.0)


async def test_a_paced_replay_takes_its_time(loopable: Path, autojump_clock: trio.testing.MockClock) -> None:
    config = TdcConfig(recording=loopable, loop=True, speed=1.0)
    async with ReplayTdc.open(config) as bob:
        assert bob.paced
        began = trio.current_time()
        await some_tags(bob, 1.0)
        assert trio.current_time() - began == pytest.approx(1.0, abs=0.11)


def test_a_drifting_recording_is_not_looped(tmp_path: Path) -> None:
    folder = tmp_path / "drifting"
    walking = SimulationParameters(clock_walk_per_root_s=1e-7)
    manifest = record(folder, walking, LINK, 0.5)
    assert manifest.clock_drift_ps > 100.0
    with pytest.raises(ConfigError, match="--loopable"):
        played_config(folder, None, loop=True)
    assert played_config(folder, None, loop=False).link == LINK


def test_a_replay_keeps_source_and_receiver_as_recorded(loopable: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.toml"
    other.write_text("[link.block]\nsifted_bits = 2000\n")
    assert played_config(loopable, other, loop=True).link.block.sifted_bits == 2000
    other.write_text("[link.source]\np_z = 0.6\n")
    with pytest.raises(ConfigError, match=r"\[link.source\] is not that of the recording"):
        played_config(loopable, other, loop=True)


def test_a_replay_has_the_order_window_of_its_recording(tmp_path: Path) -> None:
    folder, other = tmp_path / "recording", tmp_path / "other.toml"
    receiver = msgspec.structs.replace(LINK.receiver, order_window_ps=7_000_000)
    link = msgspec.structs.replace(LINK, receiver=receiver)
    record(folder, steady_clocks(SimulationParameters()), link, 0.01)
    assert played_config(folder, None, loop=True).link.receiver.order_window_ps == 7_000_000
    assert recorded_link(folder).link.receiver.order_window_ps == 7_000_000
    other.write_text("[link.receiver]\norder_window_ps = 1_000_000\n")
    with pytest.raises(ConfigError, match=r"\[link.receiver\] is not that of the recording"):
        played_config(folder, other, loop=True)


def test_a_duration_is_whole_hundredths(tmp_path: Path) -> None:
    for duration_s in (0.001, 0.255):
        with pytest.raises(ConfigError, match="hundredths"):
            record(tmp_path / "recording", SimulationParameters(), LINK, duration_s)


@pytest.mark.link
@pytest.mark.timeout(600)
def test_recorded_and_replayed_the_link_gives_equal_keys(tmp_path: Path) -> None:
    link = convert(
        {
            "block": {"sifted_bits": 200_000, "minimum_secret_bits": 2048},
            "estimation": {"estimator": "rusca2018", "x_mode": "visibility"},
        },
        LinkParameters,
        where="test",
    )
    record(tmp_path / "recording", steady_clocks(SimulationParameters(visibility=0.99)), link, 1.0)
    command = [sys.executable, "-m", "qnode", "replay", str(tmp_path / "recording"), "--json"]
    options = ["--speed", "max", "--until-keys", "8", "--duration", "400"]
    done = subprocess.run(command + options, capture_output=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    result = json.loads(done.stdout)
    assert result["simulated"]
    assert result["keys_compared"] >= 8
    assert result["keys_different"] == 0
    assert result["qber_z"] == pytest.approx(0.015, abs=0.005)


@pytest.mark.link
@pytest.mark.timeout(600)
def test_a_replay_of_a_recording_once_ends_when_it_is_over(tmp_path: Path) -> None:
    link = convert({"block": {"sifted_bits": 3_000}}, LinkParameters, where="test")
    record(tmp_path / "recording", steady_clocks(SimulationParameters()), link, 3.0)
    command = [sys.executable, "-m", "qnode", "replay", str(tmp_path / "recording"), "--json", "--once"]
    command += ["--speed", "max"]  # at real time a busy machine may be too late for all of it
    done = subprocess.run(command, capture_output=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    assert b"the recording is over" in done.stderr
    result = json.loads(done.stdout)
    assert sum(result["blocks_discarded"].values()) + result["blocks_accepted"] >= 1


def test_memory_of_played_tags_is_given_back_and_they_can_be_played_again(tmp_path: Path) -> None:
    path = tmp_path / "row.npy"
    row = np.arange(1 << 18, dtype=np.int64)
    np.save(path, row)
    again = mapped(path, np.int64)
    assert again.sum() == row.sum()
    before = resident_kb(path)
    assert before > 1900
    give_back(again, 0, row.size // 2)
    assert resident_kb(path) < before - 900
    give_back(again, row.size // 2, row.size)
    assert resident_kb(path) < 100
    assert np.array_equal(again, row)
    give_back(row, 0, row.size)  # of memory that is no file's there is nothing to give back
    assert row[-1] == row.size - 1


def resident_kb(path: Path) -> int:
    """Return how much of a file this process has in memory."""
    lines = Path("/proc/self/smaps").read_text().splitlines()
    at = next(i for i, line in enumerate(lines) if line.endswith(str(path)))
    return next(int(line.split()[1]) for line in lines[at:] if line.startswith("Rss:"))
