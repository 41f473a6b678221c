"""A time tagger's file in place of Bob's recorded tags: the same clicks, the same key."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner
from tag_file_exports import EXPORTS, write_qutag
from test_offline_sites import ALICE, BOB, record_both

from qnode.block.span_policy import RecentBlocks
from qnode.cli.distill import distill
from qnode.config import BlockParameters, EstimationParameters, LinkParameters, PlausibilityParameters
from qnode.offline.distillation import DistilledBlock, distilled_blocks
from qnode.offline.recorded import Recorded, RecordedLink, recorded_link
from qnode.offline.recorded_file import recorded_file
from qnode.offline.synchronise import synchronised
from qnode.simulate.parameters import DetectorParameters, SimulationParameters
from qnode.simulate.recorder import record, steady_clocks
from qnode.tags.channel_map import ChannelMap, channel_map
from qnode.tags.file_tags import TagFileNotes, file_tags
from qnode.tags.recorded_symbols import RepeatedPattern
from qnode.tags.recording import open_recording
from qnode.tags.site_recording import SiteRecordingWriter
from qnode.tags.types import UNKNOWN_SYMBOL
from qnode.units import PS_PER_S

DETECTOR = DetectorParameters(efficiency=0.5, dead_time_s=1e-6, dark_rate_hz=500.0)
SIMULATION = SimulationParameters(
    attenuation_db=6.0, visibility=0.995, z_detector=DETECTOR, x_detector=DETECTOR
)
LINK = LinkParameters(
    block=BlockParameters(sifted_bits=100_000, minimum_secret_bits=2048),
    estimation=EstimationParameters(estimator="rusca2018", x_mode="visibility", eps_sec=1e-9),
)


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recordings") / "bright"
    record(folder, SIMULATION, LINK, 0.8)
    return folder


def seeded(seed: int) -> "np.random.Generator":
    return np.random.default_rng(seed)


def blocks_of(recorded: Recorded) -> list[DistilledBlock]:
    link, recent = recorded.link, RecentBlocks()
    results = synchronised(recorded.tags(), recorded.symbols, link, recorded.start, seeded(1).bytes)
    return list(
        distilled_blocks(recorded.sifted(results, link, recent), link, recent, random_bytes=seeded(2).bytes)
    )


def run(*words: str | Path | float) -> Any:
    return CliRunner().invoke(distill, [str(word) for word in words], standalone_mode=False)


@pytest.mark.parametrize("format_name", EXPORTS)
def test_a_recording_distilled_from_a_file_gives_the_key_of_the_recording(
    recording: Path, tmp_path: Path, format_name: str
) -> None:
    link = recorded_link(recording)
    tags = link.recording
    export = EXPORTS[format_name](tmp_path, np.array(tags.times_ps), np.array(tags.channels))
    file = file_tags(export.path, TagFileNotes(channels=export.channels))
    assert file.file.format == format_name
    from_file = recorded_file(recording, file)
    # The recording, with times as the format can hold them; the first tag is at the same time in both.
    held = replace(
        tags,
        times_ps=export.times_ps + (tags.times_ps[0] - export.times_ps[0]),
        channels=export.file_channels,
        manifest=msgspec.structs.replace(tags.manifest, disorder_ps=from_file.survey.disorder_ps),
    )
    expected, found = blocks_of(RecordedLink(held, link.symbol_key)), blocks_of(from_file)
    assert len(found) == len(expected) >= 2
    for one, other in zip(found, expected, strict=True):
        assert (one.span, one.clicks, one.lost) == (other.span, other.clicks, "")
        assert one.key is not None
        assert other.key is not None
        assert one.key.equals(other.key)


def test_a_tag_file_and_the_recording_of_what_alice_sent_become_key(recording: Path, tmp_path: Path) -> None:
    tags = open_recording(recording)
    export = EXPORTS["qutag"](tmp_path, np.array(tags.times_ps), np.array(tags.channels))
    path, channels = export.path, export.channels
    words = (recording, path, "--channels", channels, "--json")
    done = run(*words)
    assert (done.return_value, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    assert report["simulated"] is True
    assert report["tags"] == tags.times_ps.size
    assert report["blocks_accepted"] >= 2
    # What belongs to a file may be said beside it, and the order of the two does not matter.
    beside = path.with_name(path.name + ".toml")
    beside.write_text(f'channels = "{channels}"\nformat = "qutag"\n')
    again = json.loads(run(path, recording, "--json").stdout)
    assert (again["tags"], again["blocks_accepted"]) == (report["tags"], report["blocks_accepted"])
    assert again["blocks"][0]["first_slot"] == report["blocks"][0]["first_slot"]
    # The times of day are of this machine's clock in a lab; here the recording's.
    began_at_s = tags.manifest.origin_s + float(tags.times_ps[0]) / PS_PER_S + 0.1
    late = run(*words, "--began-at", repr(began_at_s))
    assert late.return_value == 0
    assert "slots were 0.100 s from where the times of day put them" in late.stderr


def test_a_tag_file_and_alices_recording_of_her_site_become_key(tmp_path: Path) -> None:
    alice, bob = record_both(tmp_path)
    times, inputs = np.load(bob / "times_ps.npy"), np.load(bob / "channels.npy") + 1
    path = write_qutag(tmp_path / "bob.qutag", times + 72 * 3600 * PS_PER_S, inputs)
    assert BOB.origin_s is not None
    words = (alice, path, "--channels", "z=1,x=2", "--json")
    refused = run(*words)
    assert refused.return_value == 64
    assert "when did its first tag come? Say --began-at" in refused.stderr
    done = run(*words, "--began-at", BOB.origin_s + times[0] / PS_PER_S + 0.05)
    report = json.loads(done.stdout)
    assert done.return_value == 0
    assert "slots were 0.050 s from where the times of day put them" in done.stderr
    # The first block began before its clicks were assigned to slots.
    assert [row["block"] for row in report["blocks"]] == [12, 13, 14]
    assert report["blocks_accepted"] == 3
    for began_at, wrong_time in (
        (BOB.origin_s - 60.0, "its tags came -60"),
        (BOB.origin_s + 60.0, "its tags came 60"),
        (BOB.origin_s * 1e9, "expected Unix time in seconds"),
        (float("nan"), "expected Unix time in seconds"),
    ):
        refused = run(*words, "--began-at", began_at)
        assert refused.return_value == 64
        assert wrong_time in refused.stderr
        assert refused.stderr.count("\n") == 1
    wrong = run(bob, path, "--channels", "z=1,x=2")
    assert wrong.return_value == 64
    assert f"{bob} is Bob's recording, and so is {path}" in wrong.stderr


def test_a_file_with_a_fault_is_used_up_to_there_and_the_fault_is_told(
    recording: Path, tmp_path: Path
) -> None:
    tags = open_recording(recording)
    times, inputs = np.array(tags.times_ps), np.array(tags.channels) + 1
    times[1000] -= 5_000_000
    path = write_qutag(tmp_path / "cut.qutag", times, inputs)
    path.write_bytes(path.read_bytes()[:-3])
    done = run(recording, path, "--channels", "z=1,x=2", "--json")
    cut, late = done.stderr.splitlines()
    assert "ends in mid-record" in cut
    assert "what is sound is used" in cut
    assert "order_window_ps" in late
    assert json.loads(done.stdout)["tags"] == times.size - 1
    wider = tmp_path / "wider.toml"
    wider.write_text("[link.receiver]\norder_window_ps = 10_000_000\n")
    done = run(recording, path, "--channels", "z=1,x=2", "--json", "--config", wider)
    assert "order_window_ps" not in done.stderr


def test_bad_input_gets_one_line_that_says_what_to_do(recording: Path, tmp_path: Path) -> None:
    path = write_qutag(tmp_path / "some.qutag", np.arange(100) * 10**9, np.arange(100) % 2 + 1)
    for words, expected in (
        ((recording, path), f"Say --channels z=1,x=2, or in {path}.toml"),
        ((recording, path, "--channels", "z=1"), "expected z=INPUT,x=INPUT"),
        ((recording, path, "--channels", "z=7,x=8"), "there are no tags at inputs 7 and 8"),
        ((recording, path, "--channels", "z=1,x=8"), "arm x is at input 8, which has no tags"),
        ((path, "--channels", "z=1,x=2"), "--channels: has a meaning only with a tag file"),
        ((path,), "name the folder with what Alice sent as well"),
        ((recording, "--began-at", "12.0"), "--began-at: has a meaning only with a tag file"),
        ((tmp_path / "none", path, "--channels", "z=1,x=2"), str(tmp_path / "none")),
        ((recording, path, "--channels", "z=1,x=2", "--format", "nonsense"), "nonsense"),
    ):
        done = run(*words)
        assert (done.return_value, done.stdout) == (64, ""), words
        assert expected in done.stderr
        assert done.stderr.count("\n") == 1


def test_a_map_names_an_input_and_a_delay_for_each_arm() -> None:
    assert channel_map("z=1,x=2") == ChannelMap(1, 2)
    assert channel_map("x=0-80ps, z=15+350ps") == ChannelMap(15, 0, 350, -80)
    assert channel_map("z=-1+7ps,x=-2") == ChannelMap(-1, -2, 7, 0)  # falling edges


@pytest.mark.parametrize(
    "text",
    ["", "z=1", "z=1,x=1", "z=1,z=2", "z=1,x=2,x=3", "z=one,x=2", "z=1,x=2+350", "z=1,x=2+2000000000ps"],
)
def test_an_impossible_map_is_refused_with_what_was_expected(text: str) -> None:
    with pytest.raises(ValueError, match=r"channels: .*expected"):
        channel_map(text)


def test_a_map_moves_times_by_delays_and_leaves_other_inputs_out() -> None:
    times, channels = ChannelMap(4, 2, 100, -50).apply(
        np.array([1000, 2000, 3000, 4000]), np.array([4, 2, 7, 4], np.int16)
    )
    assert times.tolist() == [1100, 1950, 4100]
    assert channels.tolist() == [0, 1, 0]
    assert times.dtype == np.int64
    assert channels.dtype == np.int8


def test_a_laboratory_may_write_the_recording_of_alice_itself(recording: Path, tmp_path: Path) -> None:
    """As docs/tag-files.md shows: slots about the clicks, and no blocks."""
    page = (Path(__file__).parent.parent / "docs" / "tag-files.md").read_text()
    (program,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    link = recorded_link(recording)
    tags, started_at_s = open_recording(recording), link.manifest.started_at_s
    clicks = (np.array(tags.times_ps) * (link.manifest.slots / link.manifest.span_ps)).astype(np.int64)
    known = np.zeros(link.manifest.slots + 8, np.bool_)
    for step in (-2, -1, 0, 1, 2):
        known[clicks + step] = True
    slots = np.flatnonzero(known)
    codes = link.symbols(slots)
    names = {"slots": slots, "codes": codes, "started_at_s": started_at_s, "LINK": LINK}
    program = program.replace("link=LinkParameters()", "link=LINK").replace(
        '"alice.rec"', repr(str(tmp_path / "alice.rec"))
    )
    exec(program, names)
    path = write_qutag(tmp_path / "bob.qutag", np.array(tags.times_ps), np.array(tags.channels) + 1)
    done = run(
        tmp_path / "alice.rec",
        path,
        "--channels",
        "z=1,x=2",
        "--began-at",
        repr(tags.manifest.origin_s),
        "--json",
    )
    report = json.loads(done.stdout)
    assert report["blocks_accepted"] >= 1
    assert report["simulated"] is False


def test_a_pattern_that_repeats_and_a_tag_file_become_key_without_any_time_of_day(tmp_path: Path) -> None:
    n_passes, plausibility = 60, PlausibilityParameters(repeats=60.0)
    record(tmp_path / "loop", steady_clocks(SIMULATION), LINK, 0.02)
    link = recorded_link(tmp_path / "loop")
    manifest, tags = link.manifest, link.recording
    shifts = np.rint(np.arange(n_passes) * manifest.span_ps).astype(np.int64)
    times = (np.array(tags.times_ps)[None, :] + shifts[:, None]).ravel()
    path = write_qutag(tmp_path / "bob.qutag", times + 123_456_789_000, np.tile(tags.channels, n_passes) + 1)
    slots = np.arange(manifest.slots)
    with SiteRecordingWriter(tmp_path / "alice") as writer:
        writer.add_symbols(slots, link.symbols(slots))
        writer.finish(
            msgspec.structs.replace(
                ALICE,
                entries=writer.entries,
                blocks=(),
                repeats=True,
                link=msgspec.structs.replace(LINK, plausibility=plausibility),
            )
        )
    done = run(tmp_path / "alice", path, "--channels", "z=1,x=2", "--json")
    report = json.loads(done.stdout)
    assert report["blocks_accepted"] >= 2
    assert report["simulated"] is True
    for block in report["blocks"]:
        assert block["qber_z"] == pytest.approx(0.015, abs=0.005)


def test_a_pattern_has_all_slots_and_is_simulated(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="repeats: only symbols of Alice can"):
        msgspec.structs.replace(ALICE, repeats=True, simulated=False, entries=2).__post_init__()
    with SiteRecordingWriter(tmp_path / "alice") as writer:
        writer.add_symbols(np.array([0, 2]), np.zeros(2, np.uint8))
        writer.finish(msgspec.structs.replace(ALICE, entries=2, repeats=True))
    path = write_qutag(tmp_path / "some.qutag", np.arange(100) * 10**9, np.arange(100) % 2 + 1)
    done = run(tmp_path / "alice", path, "--channels", "z=1,x=2")
    assert done.return_value == 64
    assert "a pattern that repeats has all slots from 0 on, in order" in done.stderr
    pattern = RepeatedPattern(np.array([3, 1, 2], np.uint8))
    assert pattern(np.array([-1, 0, 1, 5, 2**60])).tolist() == [
        UNKNOWN_SYMBOL,
        3,
        1,
        2,
        pattern.codes[2**60 % 3],
    ]
