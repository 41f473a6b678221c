"""What the tags of honest simulated receivers show: no broken dead time, and cross clicks as by chance."""

import tomllib
from pathlib import Path
from typing import Literal

import msgspec.structs
import pytest

from qnode.config import LinkParameters, SourceParameters, convert
from qnode.distill.counts import TagCounts
from qnode.distill.sifting.announced import Announced
from qnode.distill.sifting.span_counts import SpanCounts
from qnode.offline.synchronise import RunStart, synchronised
from qnode.simulate.parameters import SimulationParameters
from qnode.simulate.recording import SimulatedRecording

CONFIG = Path(__file__).parent.parent / "config"
HoldOff = Literal["independent", "joint"]


def link_of(name: str) -> tuple[LinkParameters, SimulationParameters]:
    tables = tomllib.loads((CONFIG / f"{name}.toml").read_text())
    link = convert(tables["link"], LinkParameters, where="link")
    return link, convert(tables["simulation"], SimulationParameters, where="simulation")


def counted(
    name: str, duration_s: float, dead_time_s: float, hold_off: HoldOff, declared: HoldOff, seed: int
) -> tuple[TagCounts, SourceParameters]:
    """Count the tags of ``duration_s`` simulated seconds, from the first lock on."""
    link, simulation = link_of(name)
    receiver = msgspec.structs.replace(link.receiver, dead_time=declared, dead_time_s=dead_time_s)
    link = msgspec.structs.replace(link, receiver=receiver)
    simulation = msgspec.structs.replace(simulation, hold_off=hold_off, seed=seed)
    recording = SimulatedRecording(simulation, link)
    counts = first = None
    for result in synchronised(recording.tags(duration_s), recording.symbols, link, RunStart()):
        if counts is None:
            if len(result.clicks):
                first = result.reached
                left_s = duration_s - first / link.source.qubit_rate_hz - 0.05
                counts = SpanCounts(first, round(left_s * link.source.qubit_rate_hz))
            continue
        counts.add_clicks(Announced.of(result.clicks))
        counts.add_marks(result.marks)
        counts.add_cuts(result.cuts)
    assert counts is not None
    return counts.tag_counts(), link.source


def accidental(counts: TagCounts, source: SourceParameters) -> float:
    """Cross clicks that chance gives: clicks of both arms in one slot, which share its intensity."""
    mean = sum(mu * p for mu, p in zip(source.mu, source.p, strict=True))
    square = sum(mu * mu * p for mu, p in zip(source.mu, source.p, strict=True))
    pairs = sum(counts.z_clicks) * sum(counts.x_clicks) / sum(counts.live_slots)
    return pairs * square / mean**2


@pytest.mark.parametrize("hold_off", ["independent", "joint"])
def test_an_honest_receiver_at_turin_never_clicks_too_soon(hold_off: HoldOff) -> None:
    counts, source = counted("turin", 100.0, 62.5e-6, hold_off, hold_off, seed=41)
    assert counts.too_close == 0
    assert counts.double_clicks == 0
    clicks = sum(counts.z_clicks) + sum(counts.x_clicks)
    assert counts.out_of_gate / (counts.out_of_gate + clicks) == pytest.approx(0.0407, abs=0.002)
    if hold_off == "independent":
        expected = accidental(counts, source)
        assert abs(counts.cross_clicks - expected) < 5.0 * expected**0.5
        assert counts.cross_clicks > 20
    else:  # whoever clicks first blanks the other before its light of the same slot is told
        assert counts.cross_clicks < 10


def test_independent_detectors_that_are_declared_joint_are_found_out() -> None:
    counts, _ = counted("turin", 10.0, 62.5e-6, "independent", "joint", seed=42)
    assert counts.too_close > 100_000


def test_a_fast_link_has_as_many_cross_clicks_as_chance_gives() -> None:
    counts, source = counted("fast", 0.4, 0.0, "independent", "independent", seed=43)
    assert counts.cross_clicks == pytest.approx(accidental(counts, source), rel=0.03)
    assert counts.cross_clicks > 10_000
    clicks = sum(counts.z_clicks) + sum(counts.x_clicks)
    assert counts.double_clicks < 1e-4 * clicks
    assert counts.out_of_gate / (counts.out_of_gate + clicks) == pytest.approx(0.00123, rel=0.05)
    assert counts.too_close == 0
