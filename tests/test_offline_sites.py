"""What two sites recorded, offline: symbols of few slots, spans as they were live, and what does not fit."""

import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from qnode.cli.distill import distill
from qnode.cli.replay import played_config
from qnode.config import BlockParameters, EstimationParameters, LinkParameters
from qnode.errors import ConfigError
from qnode.offline.recorded_sites import recorded_sites
from qnode.offline.sifting import sifted_spans
from qnode.offline.synchronise import RunStart, synchronised
from qnode.simulate.parameters import DetectorParameters, SimulationParameters
from qnode.simulate.recording import SimulatedRecording
from qnode.tags.recorded_symbols import RecordedSymbols
from qnode.tags.site_recording import RecordedBlock, SiteManifest, SiteRecordingWriter
from qnode.tags.synchroniser import SyncResult
from qnode.tags.types import UNKNOWN_SYMBOL

DETECTOR = DetectorParameters(efficiency=0.5, dead_time_s=1e-6, dark_rate_hz=500.0)
LINK = LinkParameters(
    block=BlockParameters(sifted_bits=150_000, minimum_secret_bits=2048),
    estimation=EstimationParameters(estimator="rusca2018", x_mode="visibility", eps_sec=1e-9),
)
SIMULATION = SimulationParameters(attenuation_db=6.0, z_detector=DETECTOR, x_detector=DETECTOR)
SIMULATED = SimulatedRecording(SIMULATION, LINK)
RATE_HZ = LINK.source.qubit_rate_hz
BLOCKS = tuple(RecordedBlock(11 + k, k * RATE_HZ // 2 + 7, RATE_HZ // 2 - 7) for k in range(4))
ALICE = SiteManifest(
    format=1,
    role="alice",
    kme_id="kme-alice",
    peer_kme_id="kme-bob",
    simulated=True,
    run_id=7,
    began_at_s=1000.0,
    ended="enough",
    start_uncertainty_s=0.01,
    entries=0,
    blocks=BLOCKS,
    link=LINK,
    started_at_s=1000.0,
)
BOB = replace(
    ALICE, role="bob", kme_id="kme-bob", peer_kme_id="kme-alice", started_at_s=None, origin_s=1000.0
)


@cache
def live() -> tuple[SyncResult, ...]:
    """Return what Bob's synchroniser gave while the link ran."""
    blocks = SIMULATED.tags(2.1)
    return tuple(synchronised(blocks, SIMULATED.symbols, LINK, RunStart(), np.random.default_rng(1).bytes))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return record_both(tmp_path_factory.mktemp("recordings"))


def record_both(folder: Path) -> tuple[Path, Path]:
    """Record two seconds at both sites, as the nodes would hand them on; return Alice's folder and Bob's."""
    with SiteRecordingWriter(folder / "bob") as writer:
        for block in SIMULATED.tags(2.1):
            writer.add_tags(block.times_ps, block.channels)
        writer.finish(replace(BOB, entries=writer.entries, disorder_ps=writer.disorder_ps))
    with SiteRecordingWriter(folder / "alice") as writer:
        for result in live():
            slots = result.clicks.slots
            writer.add_symbols(slots, SIMULATED.symbols(slots))
            before = slots[result.clicks.outcomes == 3] - 1
            writer.add_symbols(before, SIMULATED.symbols(before))
        writer.finish(replace(ALICE, entries=writer.entries))
    return folder / "alice", folder / "bob"


def run(*words: str | Path) -> Any:
    return CliRunner().invoke(distill, [str(word) for word in words], standalone_mode=False)


def test_blocks_come_as_they_were_live_with_their_numbers(folders: tuple[Path, Path]) -> None:
    sites = recorded_sites(*folders)
    rows = dict(
        sifted_spans(synchronised(sites.tags(), sites.symbols, LINK, sites.start), sites.symbols, BLOCKS)
    )
    before = dict(sifted_spans(live(), SIMULATED.symbols, BLOCKS))
    # The first one began before there was any lock; there would be no saying how much of it is missing.
    assert list(rows) == list(before) == [12, 13, 14]
    for number, block in rows.items():
        as_it_was = before[number]
        assert block.span == as_it_was.span
        assert block.span.cut == 0
        assert len(block.received) == pytest.approx(len(as_it_was.received), rel=1e-3)
        assert block.alice.x_counts.central == pytest.approx(as_it_was.alice.x_counts.central, rel=1e-3)
        assert block.alice.x_counts.boundary == pytest.approx(as_it_was.alice.x_counts.boundary, rel=1e-3)


@pytest.mark.parametrize("apart_s", [0.02, -0.25, 1.0])
def test_clocks_that_were_apart_cost_no_block_and_are_told(
    folders: tuple[Path, Path], tmp_path: Path, apart_s: float
) -> None:
    alice, bob = folders[0], shutil.copytree(folders[1], tmp_path / "bob")
    manifest = bob / "recording.toml"
    text = manifest.read_text()
    manifest.write_text(text.replace("origin_s = 1000.0", f"origin_s = {1000.0 + apart_s!r}"))
    done = run(alice, bob, "--json")
    assert [row["block"] for row in msgspec.json.decode(done.stdout)["blocks"]] == [12, 13, 14]
    assert f"slots were {abs(apart_s):.3f} s from where the times of day put them" in done.stderr


def test_recordings_of_other_photons_are_one_clear_line(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qnode.offline.synchronise.SOUGHT_EVERYWHERE", 0)  # seconds each
    monkeypatch.setattr("qnode.offline.synchronise.MOST_IN_VAIN", 2)
    alice, bob = shutil.copytree(folders[0], tmp_path / "alice"), folders[1]
    symbols = np.load(alice / "symbols.npy")
    np.save(alice / "symbols.npy", np.roll(symbols, 1))
    done = run(alice, bob)
    assert done.return_value == 1
    (line,) = done.stderr.splitlines()
    assert "fit Alice's symbols nowhere within 0.32 s of where the times of day put them nor by Bob's" in line


@pytest.mark.parametrize("swapped", [False, True])
def test_two_folders_are_distilled_in_either_order(folders: tuple[Path, Path], swapped: bool) -> None:
    done = run(*(folders[::-1] if swapped else folders), "--json")
    report = msgspec.json.decode(done.stdout)
    assert done.return_value == 0
    assert [row["block"] for row in report["blocks"]] == [12, 13, 14]
    assert done.stderr == "qnode: left out, for want of lock at its beginning or its end: block 11\n"
    assert report["blocks_accepted"] == 3
    assert report["simulated"] is True
    assert all(0.005 < row["qber_z"] < 0.03 for row in report["blocks"])


def test_another_way_to_distil_two_recordings_may_be_asked_for(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    strict, other = tmp_path / "strict.toml", tmp_path / "other.toml"
    strict.write_text("[link.block]\nqber_z_limit = 0.001\n")
    report = msgspec.json.decode(run(*folders, "--json", "--config", strict).stdout)
    assert report["blocks_discarded"] == {"qber_z": 3}
    other.write_text("[link.source]\nmu = [0.4, 0.1]\n")
    refused = run(*folders, "--config", other)
    assert refused.return_value == 64
    assert "[link.source] is not that of the recording" in refused.stderr


known_slots = st.lists(st.integers(0, 400), min_size=0, max_size=60)


@given(known=known_slots, first=st.integers(0, 400), n=st.integers(0, 200), step=st.integers(1, 3))
def test_symbols_are_those_that_were_recorded_and_unknown_elsewhere(
    known: list[int], first: int, n: int, step: int
) -> None:
    slots = np.sort(np.array(known, np.int64))
    codes = (slots % 7).astype(np.uint8)
    asked = np.arange(first, first + n * step, step, dtype=np.int64)
    expected = [slot % 7 if slot in known else UNKNOWN_SYMBOL for slot in asked.tolist()]
    assert RecordedSymbols(slots, codes)(asked).tolist() == expected


def copied(folder: Path, to: Path, manifest: SiteManifest) -> Path:
    with SiteRecordingWriter(to) as writer:
        writer.finish(replace(manifest, entries=0))
    return to


@pytest.mark.parametrize(
    ("alice", "bob", "expected"),
    [
        (lambda m: m, lambda m: ALICE, "are both alice's: one recording of each site is needed"),
        (lambda m: BOB, lambda m: m, "are both bob's"),
        (lambda m: m, lambda m: replace(m, kme_id="kme-carol"), "are not of one link: kme-alice"),
        (lambda m: replace(m, run_id=8), lambda m: m, "are of two emission runs, 8 and 7"),
        (lambda m: replace(m, link=LinkParameters()), lambda m: m, "their [link] tables differ"),
        (lambda m: replace(m, blocks=BLOCKS[:2]), lambda m: replace(m, blocks=BLOCKS[2:]),
         "have no whole block in common (11 to 12 and 13 to 14)"),
        (lambda m: replace(m, blocks=()), lambda m: m, "no whole block in common (none and 11 to 14)"),
    ],
)  # fmt: skip
def test_recordings_that_do_not_belong_together_are_refused(
    tmp_path: Path,
    alice: Callable[[SiteManifest], SiteManifest],
    bob: Callable[[SiteManifest], SiteManifest],
    expected: str,
) -> None:
    one = copied(tmp_path, tmp_path / "one", alice(ALICE))
    other = copied(tmp_path, tmp_path / "other", bob(BOB))
    done = run(one, other)
    assert done.return_value == 64
    (line,) = done.stderr.splitlines()
    assert expected in line


def test_one_sites_folder_and_too_many_are_refused(tmp_path: Path) -> None:
    alice = copied(tmp_path, tmp_path / "alice", ALICE)
    done = run(alice)
    assert done.return_value == 64
    assert "is the recording of one site: name the other site's folder as well" in done.stderr
    assert run(alice, alice, alice).return_value == 64
    with pytest.raises(ConfigError, match="it cannot be played"):
        played_config(alice, None, loop=False)
    with pytest.raises(ConfigError, match="cannot be read"):
        recorded_sites(alice, tmp_path / "none")


def test_a_manifest_that_does_not_fit_its_arrays_is_refused(tmp_path: Path) -> None:
    folder = copied(tmp_path, tmp_path / "bob", BOB)
    np.save(folder / "channels.npy", np.zeros(3, np.int8))
    with pytest.raises(ConfigError, match="0 entries by the manifest, its arrays have 0 and 3"):
        recorded_sites(folder, folder)
    text = (folder / "recording.toml").read_text()
    (folder / "recording.toml").write_text(text.replace("origin_s", "origin"))
    with pytest.raises(ConfigError, match="unknown key origin, did you mean origin_s"):
        recorded_sites(folder, folder)
