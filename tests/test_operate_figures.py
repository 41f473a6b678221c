"""Secret key rate, loss, and how long keys last: as computed and as shown."""

import math

import pytest
from msgspec.structs import replace
from operate_support import well_status

from qnode.choices import DeadTime
from qnode.config import LinkParameters, ReceiverParameters
from qnode.node.status.key_use import KeyUse
from qnode.node.status.loss import loss_of
from qnode.node.status.secret_rate import SecretRate
from qnode.operate.status.model import ExpectedStatus
from qnode.operate.status.screen import status_lines
from qnode.simulate.model import expected_rates
from qnode.simulate.parameters import SimulationParameters
from qnode.units import transmission


def test_the_screen_shows_rate_and_loss_beside_the_plan_and_how_long_keys_last() -> None:
    well = well_status()
    status = well_status(
        quantum=replace(well.quantum, loss_db=10.84, loss_error_db=0.31),
        block=replace(well.block, secret_bits_per_s=2310.0),
        keys=replace(well.keys, used_bits_per_s=256.0, lasts_s=7260.0),
        expected=ExpectedStatus(secret_bits_per_s=2400.0, loss_db=10.8),
    )
    screen = "\n".join(status_lines(status))
    assert "loss 10.8 ±0.3 dB (plan 10.8 dB)" in screen
    assert "2.31 kb/s over 1 h, 96 % of plan" in screen
    assert "last 2 h 1 min at present use" in screen


def test_the_secret_rate_counts_discarded_blocks_and_forgets_those_older_than_an_hour() -> None:
    rate = SecretRate()
    assert rate.bits_per_s() is None
    rate.add(0.0, 10.0, 5000)
    rate.add(10.0, 10.0, 0)
    assert rate.bits_per_s() == pytest.approx(250.0)
    rate.add(3605.0, 10.0, 1000)
    assert rate.bits_per_s() == pytest.approx(50.0)
    rate.add(9000.0, 10.0, 700)
    assert rate.bits_per_s() == pytest.approx(70.0)


def test_the_use_of_keys_is_known_after_a_minute_and_starts_again_with_a_new_store() -> None:
    use = KeyUse()
    use.see(0.0, 1000)
    use.see(59.0, 1100)
    assert use.bits_per_s() is None
    use.see(100.0, 1100)
    assert use.bits_per_s() == pytest.approx(256.0)
    use.see(101.0, 3)
    assert use.bits_per_s() is None
    for at in range(200, 10_000, 100):
        use.see(float(at), 3)
    assert use.bits_per_s() == 0.0


@pytest.mark.parametrize("loss_db", [0.0, 10.0, 25.0])
@pytest.mark.parametrize(
    ("dead_time_s", "holding"), [(0.0, "independent"), (1e-6, "independent"), (1e-6, "joint")]
)
def test_the_loss_of_the_simulated_link_is_found_within_its_error(
    loss_db: float, dead_time_s: float, holding: DeadTime
) -> None:
    link = LinkParameters(receiver=ReceiverParameters(dead_time_s=dead_time_s, dead_time=holding))
    defaults = SimulationParameters()
    detector = replace(
        defaults.z_detector, dead_time_s=dead_time_s, dark_rate_hz=0.0, afterpulse_probability=0.0
    )
    world = replace(
        defaults, attenuation_db=loss_db, z_detector=detector, x_detector=detector, hold_off=holding
    )
    rates = expected_rates(world, link)
    clicks_hz = {"z": rates.z_detector.clicks_hz, "x": rates.x_detector.clicks_hz}
    found = loss_of(clicks_hz, 0.0, link, detector.efficiency * transmission(world.z_arm_loss_db))
    assert found is not None
    assert math.isclose(found.loss_db, loss_db, abs_tol=found.error_db + 0.1)


def test_the_loss_behind_saturated_detectors_is_unknown() -> None:
    link = LinkParameters(receiver=ReceiverParameters(dead_time_s=62.5e-6))
    assert loss_of({"z": 15_990.0, "x": 15_990.0}, 0.0, link, 0.2) is None
    assert loss_of({"z": 16_500.0, "x": 15_990.0}, 0.0, link, 0.2) is None
    assert loss_of({}, 0.0, link, 0.2) is None
