"""What Eve's attacks do to the clicks: the simulation against the model, and the model against physics."""

import hashlib

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
from simulated_counts import KEY, Tags, assert_counts_fit, count, counted, record, still

from qnode.choices import Arm
from qnode.config import LinkParameters, ReceiverParameters, SourceParameters, convert
from qnode.distill.counts import Pair, XCounts
from qnode.distill.estimation import boundary_terms, visibility_error
from qnode.errors import ConfigError
from qnode.simulate.generator import KNOTS_PER_S, Lit, TagGenerator
from qnode.simulate.jitter import acceptance
from qnode.simulate.model import LinkRates, expected_rates
from qnode.simulate.parameters import DetectorParameters, ScheduledChange, Settings, SimulationParameters
from qnode.tags.types import X_CHANNEL, Z_CHANNEL

LINK = LinkParameters()
TURIN = still(SimulationParameters())
FAST = DetectorParameters(efficiency=0.88, dark_rate_hz=100.0, afterpulse_probability=0.0, dead_time_s=0.0)
HONEST = Settings()
CAREFUL = Settings(eve_careful_blinding=True)
STEERING = Settings(eve_steering=True)


def rates_under(settings: Settings) -> LinkRates:
    return expected_rates(TURIN, LINK, settings)


def relative(rates: LinkRates, honest: LinkRates) -> dict[str, float]:
    """How far each announced count is from the honest one."""

    def counts(of: LinkRates) -> dict[str, Pair]:
        by_class = {name: getattr(of.x, name) for name in XCounts.__struct_fields__}
        return {"n_z": of.n_z, "m_z": of.m_z, "n_z_plus": of.n_z_plus, **by_class}

    expected = counts(honest)
    return {
        f"{name} {intensity}": getattr(pair, intensity) / getattr(expected[name], intensity) - 1.0
        for name, pair in counts(rates).items()
        for intensity in ("signal", "decoy")
    }


@pytest.mark.parametrize(
    "attack",
    [
        CAREFUL,
        STEERING,
        Settings(eve_time_shift_ps=150.0),
        Settings(eve_after_gate=0.3),
        Settings(eve_burst_hz=3e5),
        Settings(eve_burst_hz=3e5, eve_burst_arm="z"),
        Settings(mu_sent=(0.2, 0.5)),
        Settings(eve_intercept=0.2, eve_time_shift_ps=80.0, eve_after_gate=0.1, eve_burst_hz=2e4),
        Settings(eve_careful_blinding=True, eve_added_loss_db=12.0),
    ],
)
def test_clicks_under_attack_follow_the_model(attack: Settings) -> None:
    assert_counts_fit(counted(TURIN, LINK, 30, attack), rates_under(attack), 30)


@pytest.mark.parametrize("attack", [STEERING, Settings(eve_time_shift_ps=250.0), Settings(eve_burst_hz=1e6)])
def test_attacks_on_a_link_without_dead_time_follow_the_model(attack: Settings) -> None:
    link = LinkParameters(
        source=SourceParameters(mu=(0.47, 0.14), p_z=0.9), receiver=ReceiverParameters(p_z=0.9)
    )
    fast = msgspec.structs.replace(
        TURIN, attenuation_db=20.0, visibility=0.98, z_detector=FAST, x_detector=FAST
    )
    settings = msgspec.structs.replace(attack, attenuation_db=20.0)
    assert_counts_fit(counted(fast, link, 1, settings), expected_rates(fast, link, settings), 1)


def test_a_careful_blinder_shows_in_the_cross_clicks_alone() -> None:
    honest, careful = rates_under(HONEST), rates_under(CAREFUL)
    assert all(abs(excess) < 2e-3 for excess in relative(careful, honest).values())
    for load in ("z_detector", "x_detector"):
        assert getattr(careful, load).clicks_hz == pytest.approx(getattr(honest, load).clicks_hz, rel=1e-3)
    assert careful.boundary == pytest.approx(honest.boundary, rel=2e-3)
    assert careful.out_of_gate == pytest.approx(honest.out_of_gate, rel=2e-3)
    assert honest.cross_clicks > 0.2
    assert careful.cross_clicks == 0.0
    assert rates_under(Settings(eve_blinding=True)).cross_clicks < 0.02
    seconds = 60
    assert counted(TURIN, LINK, seconds).cross_clicks > 0.1 * seconds
    assert counted(TURIN, LINK, seconds, CAREFUL).cross_clicks == 0


def test_a_careful_blinder_keeps_the_share_of_the_intensities_where_much_light_arrives() -> None:
    bright = msgspec.structs.replace(TURIN, attenuation_db=0.0, z_detector=FAST, x_detector=FAST)
    honest, careful = (
        expected_rates(bright, LINK, msgspec.structs.replace(attack, attenuation_db=0.0))
        for attack in (HONEST, CAREFUL)
    )
    # Clicks of the Z arm: what is in cross clicks is shared out, so it is the detector's clicks that compare.
    assert careful.z_detector.clicks_hz == pytest.approx(honest.z_detector.clicks_hz, rel=1e-9)


def test_steering_shows_in_the_boundary_slots_that_no_longer_follow_the_bits() -> None:
    honest, steered = rates_under(HONEST), rates_under(STEERING)
    assert steered.n_z.total == pytest.approx(honest.n_z.total, rel=2e-3)
    assert steered.qber_z == pytest.approx(honest.qber_z, rel=5e-3)
    assert visibility_error(steered.x, 0.5) == pytest.approx(visibility_error(honest.x, 0.5), rel=0.01)
    assert steered.x.e_dark.total == pytest.approx(steered.x.e_same.total / 2.0, rel=0.01)
    assert boundary_terms(honest.x, 0.5).asymmetry == pytest.approx(0.0, abs=0.01)
    # Neither visibility nor asymmetry sees that every phase is lost: bit errors in the boundary slots do.
    assert boundary_terms(steered.x, 0.5).asymmetry == pytest.approx(0.0, abs=0.01)
    assert boundary_terms(honest.x, 0.5).t4 == pytest.approx(honest.qber_z, abs=0.005)
    assert boundary_terms(steered.x, 0.5).t4 == pytest.approx(0.5, abs=0.01)
    # What is left are boundary clicks of the qubit before.
    assert 0.2 * honest.cross_clicks < steered.cross_clicks < 0.4 * honest.cross_clicks


def test_shifted_light_is_lost_at_the_gates_edges_as_its_jitter_says() -> None:
    shift_ps, width_ps = 250.0, LINK.receiver.gate_width_ps
    honest, shifted = rates_under(HONEST), rates_under(Settings(eve_time_shift_ps=shift_ps))
    inside = [acceptance(TURIN.jitter, offset, width_ps) for offset in (0.0, -shift_ps, shift_ps)]
    expected = (inside[1] + inside[2]) / 2.0 / inside[0]
    assert shifted.n_z.total / honest.n_z.total == pytest.approx(expected, rel=0.05)
    assert shifted.z_detector.clicks_hz == pytest.approx(honest.z_detector.clicks_hz)
    small = rates_under(Settings(eve_time_shift_ps=20.0))
    assert small.n_z.total == pytest.approx(honest.n_z.total, rel=0.005)  # nearly nothing is seen of that


def test_light_after_the_gates_is_out_of_them() -> None:
    honest, late = rates_under(HONEST), rates_under(Settings(eve_after_gate=0.25))
    assert late.n_z.total == pytest.approx(0.75 * honest.n_z.total, rel=0.02)
    clicks_hz = honest.z_detector.clicks_hz + honest.x_detector.clicks_hz
    assert late.out_of_gate - honest.out_of_gate == pytest.approx(0.25 * clicks_hz, rel=0.08)


@pytest.mark.parametrize(("arm", "dead", "live"), [("x", X_CHANNEL, Z_CHANNEL), ("z", Z_CHANNEL, X_CHANNEL)])
def test_bursts_keep_the_detector_of_one_arm_dead_by_clicks_between_its_gates(
    arm: Arm, dead: int, live: int
) -> None:
    bursts = Settings(eve_burst_hz=2e7, eve_burst_arm=arm)
    honest, dazzled = record(TURIN, LINK, 10), record(TURIN, LINK, 10, bursts)
    at_honest, at_dazzled = in_the_slot(honest, dead), in_the_slot(dazzled, dead)
    most_hz = 1.0 / TURIN.z_detector.dead_time_s
    assert most_hz * 0.99 < at_dazzled.size / 10 <= most_hz
    assert in_the_slot(dazzled, live).size == pytest.approx(in_the_slot(honest, live).size, rel=0.01)
    midway = (LINK.source.bin_spacing_ps + LINK.source.period_ps) / 2.0
    between = np.abs(at_dazzled - midway) < 200.0
    assert between.mean() > 0.85
    assert (np.abs(at_honest - midway) < 200.0).mean() < 0.05


def in_the_slot(tags: Tags, channel: int) -> npt.NDArray[np.float64]:
    """Where in its slot each tag of a channel lies, ps from the early pulse on."""
    since_ps: npt.NDArray[np.float64] = (
        tags.times_ps[tags.channels == channel] - tags.first_arrival_ps
    ) % LINK.source.period_ps
    return since_ps


def test_other_intensities_than_configured_are_a_simulation_parameter_and_a_scheduled_change() -> None:
    swapped = msgspec.structs.replace(TURIN, mu_sent=(0.2, 0.5))
    assert expected_rates(swapped, LINK) == rates_under(Settings(mu_sent=(0.2, 0.5)))
    wanted = msgspec.structs.replace(LINK, source=msgspec.structs.replace(LINK.source, mu=(0.2, 0.5)))
    assert expected_rates(swapped, LINK) == expected_rates(TURIN, wanted)
    table = {"schedule": [{"at_s": 1, "mu_sent": [0.5, 0.3]}, {"at_s": 2, "mu_sent": [0.5, 0.2]}]}
    scheduled = convert(table, SimulationParameters, where="test")
    assert [scheduled.settings_at(at_s).mu_sent for at_s in (0.0, 1.0, 2.0)] == [None, (0.5, 0.3), (0.5, 0.2)]
    for wrong in (
        {"mu_sent": [0.5]},
        {"mu_sent": [0.5, 0.0]},
        {"schedule": [{"at_s": 1, "mu_sent": [11, 1]}]},
    ):
        with pytest.raises(ConfigError):
            convert(wrong, SimulationParameters, where="test")


def test_an_attack_begins_and_ends_when_the_schedule_says() -> None:
    simulation = msgspec.structs.replace(
        TURIN,
        schedule=(
            ScheduledChange(at_s=10.0, eve_careful_blinding=True),
            ScheduledChange(at_s=20.0, eve_careful_blinding=False, eve_steering=True),
            ScheduledChange(at_s=30.0, eve_steering=False),
        ),
    )
    generator, blocks = TagGenerator(simulation, LINK), []
    for from_s in range(0, 40, 10):
        settings = simulation.settings_at(from_s + 0.5)
        while generator.knot < (from_s + 10) * KNOTS_PER_S:
            blocks.append(generator.step((from_s + 10) * KNOTS_PER_S, settings, Lit(KEY, 0)))
    times, channels = (
        np.concatenate([getattr(b, name) for b in blocks]) for name in ("times_ps", "channels")
    )
    dark, cross = [], []
    for from_s in range(0, 40, 10):
        part = (times >= from_s * 10**12) & (times < (from_s + 10) * 10**12)
        counts = count(Tags(times[part], channels[part], 10, generator.first_arrival_ps), LINK)
        dark.append(counts.x.e_dark.total / counts.x.e_same.total)
        cross.append(counts.cross_clicks)
    assert dark == pytest.approx([0.016, 0.016, 0.5, 0.016], abs=0.03)
    assert cross[1] == 0
    assert min(cross[0], cross[3]) > 0


def test_of_several_ways_to_rule_the_detectors_one_holds() -> None:
    every = Settings(eve_blinding=True, eve_careful_blinding=True, eve_steering=True, eve_intercept=0.1)
    assert rates_under(every) == rates_under(Settings(eve_blinding=True))
    two = Settings(eve_careful_blinding=True, eve_steering=True, eve_intercept=0.1)
    assert rates_under(two) == rates_under(CAREFUL)


@pytest.mark.parametrize(("attack", "knots"), [(CAREFUL, 150), (Settings(eve_time_shift_ps=1e4), 3)])
def test_the_steps_do_not_change_the_tags_of_attacks(attack: Settings, knots: int) -> None:
    busy = DetectorParameters(efficiency=0.9, dead_time_s=1e-6 if attack is CAREFUL else 20e-9)
    dense = msgspec.structs.replace(TURIN, z_detector=busy, x_detector=busy)
    settings = msgspec.structs.replace(attack, attenuation_db=0.0, eve_after_gate=0.3, eve_burst_hz=1e5)

    def tags(steps: list[int]) -> list[np.ndarray]:
        generator, blocks = TagGenerator(dense, LINK), []
        for until in steps:
            while generator.knot < until:
                blocks.append(generator.step(until, settings, Lit(KEY, 0)))
        return [np.concatenate([getattr(b, name) for b in blocks]) for name in ("times_ps", "channels")]

    whole, parts = tags([knots]), tags(list(range(1, knots + 1)))
    assert whole[0].size > 1_000_000
    assert all(np.array_equal(one, other) for one, other in zip(parts, whole, strict=True))


def test_no_tag_lies_before_what_was_promised_when_eve_begins_to_shift() -> None:
    busy = DetectorParameters(efficiency=0.9, dead_time_s=0.0, afterpulse_probability=0.0)
    dense = msgspec.structs.replace(TURIN, attenuation_db=0.0, z_detector=busy, x_detector=busy)
    generator, promised = TagGenerator(dense, LINK), -(2**62)
    for knot in range(1, 7):
        shift_ps = 1e4 * (knot % 2)
        settings = Settings(attenuation_db=0.0, mu_sent=(2.0, 2.0), eve_time_shift_ps=shift_ps)
        while generator.knot < knot:
            block = generator.step(knot, settings, Lit(KEY, 0))
            assert block.times_ps.min(initial=2**62) >= promised
            assert block.until_ps >= promised
            promised = block.until_ps


@pytest.mark.parametrize(
    ("simulation", "settings", "digest"),
    [  # written down before there were the attacks of this file
        (SimulationParameters(), HONEST, "52ff131b1442b12d"),
        (SimulationParameters(seed=2), HONEST, "2c64aeddc7fe37f4"),
        (SimulationParameters(hold_off="joint"), HONEST, "4f05c1a50640447f"),
        (SimulationParameters(), Settings(attenuation_db=30.0), "3f0f9fc7bd61d82a"),
        (SimulationParameters(), Settings(eve_intercept=0.3), "92d0fcd7e18e8f71"),
        (SimulationParameters(), Settings(eve_blinding=True), "c9a133d10d9dcc62"),
        (
            SimulationParameters(),
            Settings(eve_pns=1.0, eve_damping=0.1, eve_added_loss_db=1.0),
            "8b46770c5a87f305",
        ),
    ],
)
def test_the_honest_link_and_the_older_attacks_give_the_tags_they_always_gave(
    simulation: SimulationParameters, settings: Settings, digest: str
) -> None:
    generator, tags = TagGenerator(simulation, LINK), hashlib.sha256()
    while generator.knot < 4 * KNOTS_PER_S:
        block = generator.step(4 * KNOTS_PER_S, settings, Lit(KEY, 0))
        tags.update(block.times_ps.astype("<i8").tobytes())
        tags.update(block.channels.tobytes())
    assert tags.hexdigest()[:16] == digest
