"""The simulated link against its analytic model, and the model against the published table."""

import msgspec
import pytest
from simulated_counts import assert_counts_fit, counted, still

from qnode.config import LinkParameters, ReceiverParameters, SourceParameters, convert
from qnode.distill.estimation import boundary_terms, visibility_error
from qnode.errors import ConfigError
from qnode.simulate.light import arriving_light, light_sent
from qnode.simulate.model import LinkRates, expected_rates
from qnode.simulate.parameters import Change, DetectorParameters, Settings, SimulationParameters

LINK = LinkParameters()
TURIN = SimulationParameters()
FAST = DetectorParameters(efficiency=0.88, dark_rate_hz=100.0, afterpulse_probability=0.0, dead_time_s=0.0)


def at(attenuation_db: float) -> SimulationParameters:
    return still(msgspec.structs.replace(TURIN, attenuation_db=attenuation_db))


@pytest.mark.parametrize(
    ("attenuation_db", "sifted_hz", "qber_z", "vis", "saturation_z", "saturation_x"),
    [
        (5.5, 7656, 0.0146, 0.029, 320, 97),
        (10.8, 7594, 0.0150, 0.030, 95, 29),
        (13.5, 7521, 0.0154, 0.031, 51, 15),
        (16.3, 7382, 0.0164, 0.034, 27, 8),
        (19.0, 7143, 0.0181, 0.038, 14, 4),
        (21.8, 6723, 0.0214, 0.045, 7.5, 2.3),
        (25.0, 5939, 0.0287, 0.062, 3.6, 1.1),
    ],
)
def test_the_model_gives_the_published_table(
    attenuation_db: float,
    sifted_hz: float,
    qber_z: float,
    vis: float,
    saturation_z: float,
    saturation_x: float,
) -> None:
    rates = expected_rates(at(attenuation_db), LINK)
    assert rates.n_z.total == pytest.approx(sifted_hz, rel=0.002)
    assert rates.qber_z == pytest.approx(qber_z, abs=1e-4)
    assert visibility_error(rates.x, LINK.source.p_z) == pytest.approx(vis, abs=0.0011)
    assert rates.z_detector.saturation == pytest.approx(saturation_z, rel=0.01, abs=0.5)
    assert rates.x_detector.saturation == pytest.approx(saturation_x, rel=0.01, abs=0.5)


@pytest.mark.parametrize("attenuation_db", [5.5, 10.8, 19.0, 28.0])
def test_clicks_follow_the_model(attenuation_db: float) -> None:
    seconds = 40
    counts = counted(at(attenuation_db), LINK, seconds)
    rates = expected_rates(at(attenuation_db), LINK)
    assert_counts_fit(counts, rates, seconds)
    assert counts.n_z.total / seconds == pytest.approx(rates.n_z.total, rel=0.02)
    assert counts.x.c_z.total / seconds == pytest.approx(rates.x.c_z.total, rel=0.02)
    if attenuation_db == 10.8:
        assert counts.m_z.total / counts.n_z.total == pytest.approx(0.0150, abs=0.001)


def test_the_fast_link_and_a_joint_hold_off_follow_the_model() -> None:
    link = LinkParameters(
        source=SourceParameters(mu=(0.47, 0.14), p_z=0.9), receiver=ReceiverParameters(p_z=0.9)
    )
    fast = msgspec.structs.replace(at(6.0), visibility=0.98, z_detector=FAST, x_detector=FAST)
    settings = Settings(attenuation_db=20.0)
    assert_counts_fit(counted(fast, link, 1, settings), expected_rates(fast, link, settings), 1)
    # So bright that in every twelfth slot of the X arm both detectors click.
    assert_counts_fit(counted(fast, link, 1), expected_rates(fast, link), 1)
    joint = msgspec.structs.replace(at(10.8), hold_off="joint")
    assert_counts_fit(counted(joint, LINK, 40), expected_rates(joint, LINK), 40)


@pytest.mark.parametrize(
    "attack",
    [
        Settings(eve_intercept=1.0),
        Settings(eve_intercept=0.1),
        Settings(eve_damping=0.06),
        Settings(eve_pns=1.0),
        Settings(eve_added_loss_db=10.0),
        Settings(eve_blinding=True),
        Settings(source_on=False),
        Settings(interferometer_phase_rad=0.5, modulator_bias_rad=0.3),
    ],
)
def test_what_eve_and_bad_bias_do_follows_the_model(attack: Settings) -> None:
    assert_counts_fit(counted(at(10.8), LINK, 15, attack), expected_rates(at(10.8), LINK, attack), 15)


def noiseless(settings: Settings) -> LinkRates:
    quiet = DetectorParameters(dark_rate_hz=0.0, afterpulse_probability=0.0)
    ideal = msgspec.structs.replace(
        at(10.8), z_detector=quiet, x_detector=quiet, wrong_bin_fraction=0.0, visibility=1.0
    )
    return expected_rates(msgspec.structs.replace(ideal, jitter=TURIN.jitter), LINK, settings)


def test_intercepting_everything_costs_a_quarter_in_both_bases() -> None:
    rates = noiseless(Settings(eve_intercept=1.0))
    assert rates.qber_z == pytest.approx(0.25, abs=0.002)
    assert visibility_error(rates.x, 0.5) == pytest.approx(0.25, abs=0.002)
    tenth = noiseless(Settings(eve_intercept=0.1))
    assert tenth.qber_z == pytest.approx(0.025, abs=0.002)


def test_damping_towards_plus_shows_in_the_asymmetry_alone() -> None:
    clean, damped = noiseless(Settings()), noiseless(Settings(eve_damping=0.06))
    assert damped.x.c_plus.total == pytest.approx(clean.x.c_plus.total, rel=0.02)
    assert visibility_error(damped.x, 0.5) == pytest.approx(0.0, abs=0.002)
    assert damped.qber_z - clean.qber_z == pytest.approx(0.06 / 4, abs=0.001)
    assert boundary_terms(clean.x, 0.5).asymmetry == pytest.approx(0.0, abs=0.002)
    # e_full = 2 t1 + A with t1 near 0: the phase error g/2 that the visibility does not see.
    assert boundary_terms(damped.x, 0.5).asymmetry == pytest.approx(0.06 / 2, abs=0.003)


def test_photon_number_splitting_shows_in_the_decoy_alone() -> None:
    clean, split = (expected_rates(at(10.8), LINK, Settings(eve_pns=share)) for share in (0.0, 1.0))
    assert split.n_z.signal == pytest.approx(clean.n_z.signal, rel=0.1)
    assert split.n_z.decoy < 0.55 * clean.n_z.decoy
    assert split.qber_z == pytest.approx(clean.qber_z, abs=5e-4)


def test_blinding_leaves_no_errors_and_no_light_in_the_boundary_slots() -> None:
    rates = expected_rates(at(10.8), LINK, Settings(eve_blinding=True))
    assert rates.qber_z < 0.001
    assert rates.x.c_plus.total < 0.001 * rates.x.c_z.total
    assert rates.x.e_same.total < 0.002 * rates.x.c_z.total


def test_light_is_shared_out_as_in_the_optics_table() -> None:
    light = light_sent(TURIN, LINK, Settings())
    arriving = arriving_light(TURIN, LINK, Settings())
    extinction = TURIN.wrong_bin_fraction
    for decoy in (0, 1):
        z, x = arriving[0, decoy], arriving[1, decoy]
        assert light[0, 4 * decoy] == pytest.approx([z * (1 - extinction), z * extinction, 0])
        assert light[0, 4 * decoy + 2] == pytest.approx([z / 2, z / 2, 0])
        assert light[1, 4 * decoy + 1] == pytest.approx([x * extinction / 4, x / 4, x * (1 - extinction) / 4])
        assert light[1, 4 * decoy + 2] == pytest.approx([x / 8, x * 0.05 / 4, x / 8])


def test_a_simulation_table_is_checked() -> None:
    table = {"attenuation_db": 6, "z_detector": {"dead_time_s": 0}, "schedule": [{"at_s": 5, "eve_pns": 0.5}]}
    simulation = convert(table, SimulationParameters, where="test")
    assert simulation.settings_at(4.9) == Settings(attenuation_db=6.0)
    assert simulation.settings_at(5.0) == Settings(attenuation_db=6.0, eve_pns=0.5)
    for wrong in (
        {"atenuation_db": 6},
        {"visibility": 1.5},
        {"z_detector": {"efficiency": -0.1}},
        {"schedule": [{"at_s": 1, "eve_intercept": 2.0}]},
        {"schedule": [{"eve_intercept": 0.2}]},
    ):
        with pytest.raises(ConfigError):
            convert(wrong, SimulationParameters, where="test")
    both = Change(eve_intercept=0.5, source_on=False).merged(Change(source_on=True))
    assert both == Change(eve_intercept=0.5, source_on=True)
