"""A time tagger's file played in place of the time tagger, and the recording of Alice's site beside it."""

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import trio
from click.testing import CliRunner
from qnode_drivers.replay import ReplayTransmitter, TransmitterConfig
from qnode_drivers.tag_file import TagFileTdc, TdcConfig
from tag_file_exports import EXPORTS, write_qutag
from test_offline_sites import ALICE, SIMULATED, record_both

from qnode.cli.replay import played_file, replay
from qnode.config import LinkParameters, convert
from qnode.devices.conformance import check_driver
from qnode.devices.protocols import TagSource
from qnode.devices.registry import known_drivers
from qnode.devices.tag_channels import TagChannels
from qnode.errors import ConfigError
from qnode.loopback.prepare import Staging, prepare
from qnode.simulate.parameters import SimulationParameters
from qnode.simulate.recorder import record
from qnode.tags.channel_map import ChannelMap
from qnode.tags.file_tags import TagFileNotes, file_tags
from qnode.tags.recording import open_recording
from qnode.tags.types import UNKNOWN_SYMBOL, TagBlock
from qnode.units import PS_PER_S

LINK = convert(
    {
        "block": {"sifted_bits": 200_000, "minimum_secret_bits": 2048},
        "estimation": {"estimator": "rusca2018", "x_mode": "visibility"},
    },
    LinkParameters,
    where="test",
)


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recordings") / "link"
    record(folder, SimulationParameters(), LinkParameters(), 0.5)
    return folder


@pytest.fixture(scope="module")
def exported(recording: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    tags = open_recording(recording)
    folder = tmp_path_factory.mktemp("files")
    export = EXPORTS["qutag"](folder, np.array(tags.times_ps), np.array(tags.channels))
    beside = export.path.with_name(export.path.name + ".toml")
    beside.write_text(f'channels = "{export.channels}"\nbegan_at_s = 1700000000.5\n')
    return export.path


@asynccontextmanager
async def opened(path: Path, speed: float | None = None) -> AsyncIterator[TagFileTdc]:
    async with TagFileTdc.open(TdcConfig(file=path, speed=speed)) as tdc:
        yield tdc


async def blocks_of(tdc: TagFileTdc) -> list[TagBlock]:
    async with aclosing(tdc.tags()) as tags:
        return [block async for block in tags]


async def test_the_driver_conforms(exported: Path) -> None:
    for speed in (None, 1.0, 20.0):
        table = {"file": str(exported)} | ({} if speed is None else {"speed": speed})
        await check_driver(TagFileTdc, table)
    async with opened(exported) as tdc:
        assert isinstance(tdc, TagSource)
        assert tdc.identity.simulated
        assert (tdc.origin_s, tdc.paced) == (1_700_000_000.5, False)


async def test_the_tags_of_the_file_are_those_of_the_recording_from_the_first_on(
    recording: Path, exported: Path
) -> None:
    async with opened(exported) as tdc:
        blocks = await blocks_of(tdc)
    tags = open_recording(recording)
    assert np.array_equal(
        np.concatenate([block.times_ps for block in blocks]), tags.times_ps - tags.times_ps[0]
    )
    assert np.array_equal(np.concatenate([block.channels for block in blocks]), tags.channels)
    assert len(blocks) >= 4


async def test_tags_at_a_given_speed_come_in_their_time_and_silence_is_told(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    times = np.concatenate((np.arange(100) * 10**9, np.arange(100) * 10**9 + 7 * PS_PER_S))
    path = write_qutag(tmp_path / "some.qutag", times, np.arange(200) % 2 + 1)
    config = TdcConfig(file=path, channels=TagChannels(z=1, x=2), began_at_s=0.0, speed=1.0)
    began_s = trio.current_time()
    async with TagFileTdc.open(config) as tdc, aclosing(tdc.tags()) as tags:
        seen = [(trio.current_time() - began_s, block.until_ps, len(block.times_ps)) async for block in tags]
    assert sum(n for _, _, n in seen) == 200
    assert seen[-1][0] == pytest.approx(7.099, abs=0.01)
    assert max(later[0] - earlier[0] for earlier, later in pairwise(seen)) < 0.2
    for at_s, until_ps, _ in seen:
        assert until_ps / PS_PER_S == pytest.approx(at_s, abs=0.002)


async def test_a_delay_of_one_arm_is_allowed_for_in_what_is_promised(tmp_path: Path) -> None:
    times = np.arange(50_000) * 10**4
    path = write_qutag(tmp_path / "some.qutag", times, np.arange(times.size) % 2 + 1)
    table = {"file": str(path), "channels": {"z": 1, "x": 2, "x_delay_ps": -900_000}, "began_at_s": 0.0}
    await check_driver(TagFileTdc, table, order_window_ps=900_000)
    with pytest.raises(AssertionError, match="behind one before it"):
        await check_driver(TagFileTdc, table, order_window_ps=100_000)


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ({"channels": {"z": 1, "x": 1}}, "expected two different inputs"),
        ({"channels": {"z": 1, "x": 2}}, "when did its first tag come? Say began_at_s"),
        ({}, "which inputs were the detectors at?"),
        ({"channels": {"z": 8, "x": 9}, "began_at_s": 1.0}, "no tags at inputs 8 and 9"),
        ({"channels": {"z": 1, "x": 2}, "began_at_s": 1.0, "format": "nonsense"}, "nonsense"),
    ],
)
async def test_a_wrong_table_gets_one_line_that_says_what_to_do(
    tmp_path: Path, table: dict[str, object], expected: str
) -> None:
    path = write_qutag(tmp_path / "some.qutag", np.arange(100) * 10**9, np.arange(100) % 2 + 1)
    with pytest.raises(ConfigError, match=re.escape(expected)) as raised:
        async with TagFileTdc.open(
            convert({"file": str(path), **table}, TdcConfig, where="[devices.tdc.config]")
        ):
            pass
    assert "\n" not in str(raised.value)


async def test_a_transmitter_plays_the_recording_of_alices_site(tmp_path: Path) -> None:
    alice, bob = record_both(tmp_path)
    await check_driver(ReplayTransmitter, {"recording": str(alice)})
    async with ReplayTransmitter.open(TransmitterConfig(recording=alice)) as transmitter:
        async with aclosing(transmitter.runs()) as runs:
            run = await anext(runs)
        slots = np.load(alice / "slots.npy")[:10_000]
        assert (run.run_id, run.started_at_s) == (ALICE.run_id, ALICE.started_at_s)
        assert np.array_equal(transmitter.symbols(run.run_id, slots), SIMULATED.symbols(slots))
        assert (transmitter.symbols(run.run_id + 1, slots) == UNKNOWN_SYMBOL).all()
    for folder, loop in ((bob, False), (alice, True)):
        with pytest.raises(ConfigError, match="expected Alice's recording of her site, played once"):
            async with ReplayTransmitter.open(TransmitterConfig(recording=folder, loop=loop)):
                pass


def test_both_sites_play_a_recording_and_a_file(recording: Path, exported: Path, tmp_path: Path) -> None:
    file = file_tags(exported, TagFileNotes())
    config, played = played_file(recording, None, file)
    prepared = prepare(tmp_path / "data", config, Staging(played=played, speed=20.0))
    bob = prepared.site_files["bob"].read_text()
    assert 'driver = "tag-file"' in bob
    tdc = tomllib.loads(bob)["devices"]["tdc"]["config"]
    assert tdc["channels"] == {"z": 3, "x": 1, "z_delay_ps": 0, "x_delay_ps": 350}
    assert str(ChannelMap(3, 1, 0, 350)) == "z=3,x=1+350ps"
    assert "began_at_s = 1700000000.5" in bob
    assert "speed = 20.0" in bob
    assert "loop = false" in prepared.site_files["alice"].read_text()


def test_a_file_without_a_time_of_day_began_with_the_recording(recording: Path, tmp_path: Path) -> None:
    tags = open_recording(recording)
    path = write_qutag(tmp_path / "some.qutag", np.array(tags.times_ps) + 10**17, np.array(tags.channels))
    _, played = played_file(recording, None, file_tags(path, TagFileNotes(channels="z=0,x=1")))
    assert played.tag_file is not None
    first_s = float(tags.times_ps[0]) / PS_PER_S
    assert played.tag_file.began_at_s == pytest.approx(tags.manifest.origin_s + first_s, abs=1e-6)
    (tmp_path / "alice").mkdir()
    alice, _ = record_both(tmp_path / "alice")
    with pytest.raises(ConfigError, match="Say --began-at"):
        played_file(alice, None, file_tags(path, TagFileNotes(channels="z=0,x=1")))


def test_options_of_a_file_without_a_file_are_refused(recording: Path) -> None:
    done = CliRunner().invoke(replay, [str(recording), "--channels", "z=1,x=2"], standalone_mode=False)
    assert done.return_value == 64
    assert "--channels: has a meaning only with a tag file" in done.stderr


@pytest.mark.link
@pytest.mark.timeout(600)
@pytest.mark.skipif(
    "tag-file" not in known_drivers(), reason="the driver tag-file is not installed: run make"
)
def test_a_file_replayed_gives_equal_keys_at_both_sites(tmp_path: Path) -> None:
    record(tmp_path / "recording", SimulationParameters(visibility=0.99), LINK, 30.0)
    tags = open_recording(tmp_path / "recording")
    export = EXPORTS["ptu"](tmp_path, np.array(tags.times_ps), np.array(tags.channels))
    command = [sys.executable, "-m", "qnode", "replay", str(tmp_path / "recording")]
    command += ["--tags", str(export.path), "--channels", export.channels]
    command += ["--json", "--speed", "max", "--until-keys", "8", "--duration", "400"]
    done = subprocess.run(command, capture_output=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    result = json.loads(done.stdout)
    assert result["simulated"]
    assert result["keys_compared"] >= 8
    assert result["keys_different"] == 0
    assert result["qber_z"] == pytest.approx(0.015, abs=0.005)
