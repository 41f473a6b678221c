"""Both sites in one process: from tags and symbols to key."""

from collections.abc import Iterator
from functools import cache
from itertools import islice, pairwise

import msgspec.structs
import numpy as np
import pytest

from qnode.choices import LockState
from qnode.config import BlockParameters, EstimationParameters, LinkParameters
from qnode.distill.bits import Bits
from qnode.offline import distillation
from qnode.offline.distillation import DistilledBlock, correct
from qnode.offline.sifting import BothSides, sifted_blocks
from qnode.offline.synchronise import NotAligned, RunStart, synchronised
from qnode.simulate.parameters import DetectorParameters, SimulationParameters
from qnode.simulate.recording import SimulatedRecording
from qnode.tags.synchroniser import SyncResult
from qnode.tags.types import TagBlock

DETECTOR = DetectorParameters(efficiency=0.5, dead_time_s=1e-6, dark_rate_hz=500.0)
SIFTED_BITS = 150_000
LINK = LinkParameters(
    block=BlockParameters(sifted_bits=SIFTED_BITS, minimum_secret_bits=2048),
    estimation=EstimationParameters(estimator="eur", x_mode="visibility", eps_sec=1e-9),
)
SIMULATION = SimulationParameters(attenuation_db=6.0, z_detector=DETECTOR, x_detector=DETECTOR)
RECORDING = SimulatedRecording(SIMULATION, LINK)
DURATION_S = 3.0


def seeded(seed: int) -> "np.random.Generator":
    return np.random.default_rng(seed)


@cache
def tags() -> tuple[TagBlock, ...]:
    return tuple(RECORDING.tags(DURATION_S))


@cache
def results() -> tuple[SyncResult, ...]:
    return tuple(synchronised(tags(), RECORDING.symbols, LINK, RunStart(), seeded(1).bytes))


@cache
def sifted() -> tuple[BothSides, ...]:
    return tuple(sifted_blocks(results(), RECORDING.symbols, LINK))


@cache
def distilled() -> tuple[DistilledBlock, ...]:
    return tuple(distillation.distilled(results(), RECORDING.symbols, LINK, seeded(2).bytes))


def test_blocks_follow_each_other_and_have_about_the_wanted_size() -> None:
    blocks = sifted()
    assert len(blocks) >= 3
    for before, after in pairwise(blocks):
        assert after.span.first == before.span.end
    for block in blocks:
        assert len(block.received) == len(block.alice.bits)
        assert abs(len(block.received) - SIFTED_BITS) < 10 * SIFTED_BITS**0.5 + 1500


def test_blocks_become_equal_keys_at_both_sites() -> None:
    for block in distilled():
        # Both sites' keys were compared before this one was returned.
        assert (block.lost, block.detail) == ("", "")
        assert block.counts is not None
        assert block.result is not None
        assert block.secret_bits == block.result.length > LINK.block.minimum_secret_bits
        assert 0.005 < block.counts.qber_z < 0.03
        assert 1.0 < block.counts.f_ec < (1.15 if block.number > 1 else 1.5)
        assert block.counts.lambda_ec_bits > block.counts.shannon_bits


def test_the_shares_of_plus_and_of_boundary_clicks_are_those_of_honest_light() -> None:
    counts = [block.counts for block in distilled() if block.counts is not None]
    n_plus = sum(one.n_z_plus.total for one in counts if one.n_z_plus is not None)
    n_z = sum(one.n_z.total for one in counts)
    n_boundary = sum(one.boundary for one in counts if one.boundary is not None)
    c_z = sum(one.x.c_z.total for one in counts)
    p_z, p_x = LINK.source.p_z, 1 - LINK.source.p_z
    # One half each without Eve (security reference, supplement S2); a few standard deviations of the counts.
    rho = n_plus / n_z * p_z / (2 * p_x)
    t2 = c_z / n_boundary * (p_z / 2 + p_x * rho) / p_z
    assert rho == pytest.approx(0.5, rel=5 * (1 / n_plus + 1 / n_z) ** 0.5)
    assert t2 == pytest.approx(0.5, rel=5 * (1 / c_z + 1 / n_boundary) ** 0.5)
    assert all(one.boundary is not None and one.boundary > one.x.boundary for one in counts)


def test_the_first_block_pays_for_the_sample_that_is_its_estimate() -> None:
    first, second = distilled()[:2]
    assert first.counts is not None
    assert second.counts is not None
    extra = first.counts.alice_parities / first.counts.shannon_bits - second.counts.f_ec
    assert extra * first.counts.shannon_bits > 2000


def test_blocks_too_short_for_key_pay_for_one_sample_in_all() -> None:
    short = msgspec.structs.replace(LINK, block=BlockParameters(sifted_bits=10_000, minimum_secret_bits=8192))
    first, *others = islice(distillation.distilled(results(), RECORDING.symbols, short, seeded(2).bytes), 6)
    assert {block.lost for block in (first, *others)} == {"key_length"}
    assert first.counts is not None
    assert first.counts.alice_parities > 4096
    for block in others:
        assert block.counts is not None
        assert block.counts.alice_parities < 0.25 * block.sifted_bits


def test_each_block_has_the_counts_of_its_tags() -> None:
    statistics = results()[-1].statistics
    blocks = sifted()
    for block in blocks:
        span, tags = block.span, block.tags
        assert sum(tags.live_slots) == span.end - span.first - span.cut
        assert sum(tags.z_clicks) + sum(tags.x_clicks) == block.clicks
        assert max(tags.z_clicks) < 1.1 * min(tags.z_clicks)
    # The blocks are most of the recording.
    for kind in ("cross_clicks", "out_of_gate"):
        seen, told = getattr(statistics, kind), sum(getattr(block.tags, kind) for block in blocks)
        assert 0.5 * seen < told <= seen
    counts = distilled()[0].counts
    assert counts is not None
    assert counts.tags == blocks[0].tags


def test_slots_without_light_are_not_live() -> None:
    def interrupted() -> Iterator[TagBlock]:
        for block in tags():
            lit = (block.times_ps < 1.5e12) | (block.times_ps > 1.6e12)
            yield TagBlock(block.times_ps[lit], block.channels[lit], block.until_ps)

    again = synchronised(interrupted(), RECORDING.symbols, LINK, RunStart(), seeded(1).bytes)
    blocks = tuple(sifted_blocks(again, RECORDING.symbols, LINK))
    cut = [block.span.end - block.span.first - sum(block.tags.live_slots) for block in blocks]
    assert cut == [block.span.cut for block in blocks]
    # A sub-interval of 50 ms in which there was some light is a good one.
    assert 0.04 < sum(cut) / LINK.source.qubit_rate_hz < 0.1


def test_the_same_input_gives_the_same_key() -> None:
    again = next(distillation.distilled(results(), RECORDING.symbols, LINK, seeded(2).bytes))
    key, other = again.key, distilled()[0].key
    assert key is not None
    assert other is not None
    assert key.equals(other)


def test_what_gives_no_key_says_why() -> None:
    def limited(**limits: float) -> DistilledBlock:
        block = msgspec.structs.replace(LINK.block, **limits)
        link = msgspec.structs.replace(LINK, block=block)
        return next(distillation.distilled(results(), RECORDING.symbols, link, seeded(3).bytes))

    assert limited(qber_z_limit=0.001).lost == "qber_z"
    assert limited(minimum_secret_bits=140_000).lost == "key_length"
    assert limited(minimum_secret_bits=1_000_000).lost == "too_few_bits"
    assert limited(qber_z_limit=0.001).key is None


def beginning() -> Iterator[TagBlock]:
    """Yield tags of a third of a second, few at once."""
    block = tags()[0]
    for first in range(0, min(block.times_ps.size, 600_000), 20_000):
        times_ps = block.times_ps[first : first + 20_000]
        yield TagBlock(times_ps, block.channels[first : first + 20_000], int(times_ps[-1]))


def test_symbols_of_another_run_are_said_to_fit_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qnode.offline.synchronise.SOUGHT_EVERYWHERE", 0)  # seconds each
    monkeypatch.setattr("qnode.offline.synchronise.MOST_IN_VAIN", 2)
    another = SimulatedRecording(SIMULATION, LINK, symbol_key=99)
    with pytest.raises(
        NotAligned, match=r"nowhere within 0\.32 s of where the times of day put them; the sites'"
    ):
        list(synchronised(beginning(), another.symbols, LINK, RunStart(), seeded(1).bytes))


@pytest.mark.parametrize("apart_s", [0.02, -0.25])
def test_slots_are_found_where_a_running_node_finds_them_and_the_difference_is_told(apart_s: float) -> None:
    told = list[float]()
    found = synchronised(
        beginning(), RECORDING.symbols, LINK, RunStart(apart_s), seeded(1).bytes, astray=told.append
    )
    assert list(found)[-1].state is LockState.LOCKED
    assert told == [pytest.approx(-apart_s, abs=1e-3)]


@pytest.mark.parametrize("n", [20_000, 300_000])
def test_correction_counts_what_alice_discloses(n: int) -> None:
    rng = seeded(n)
    ours = rng.integers(0, 2, n, dtype=np.uint8)
    theirs = ours ^ (rng.random(n) < 0.02).astype(np.uint8)
    done = correct(Bits.pack(ours), Bits.pack(theirs), LINK, 0.02, rng.bytes)
    assert np.array_equal(done.key.unpack(), ours)
    assert done.disclosed.parities == done.disclosed.leak_bits > 0.14 * n
    assert done.rounds > 10
