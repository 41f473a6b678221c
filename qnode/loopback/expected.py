"""What a simulated link should give, for the site files of a loopback run."""

import functools
from typing import Any

import msgspec

from qnode.config import LinkParameters
from qnode.plan.forecast import USUAL_F_EC, forecast
from qnode.simulate.parameters import SimulationParameters
from qnode.units import transmission


def expected_tables(simulation: SimulationParameters, link: LinkParameters) -> dict[str, Any]:
    """Return the table ``[expected]`` of a site; without a rate if the model has none for such a link."""
    efficiency = simulation.z_detector.efficiency * transmission(simulation.z_arm_loss_db)
    rate = _secret_bits_per_s(msgspec.json.encode(simulation), msgspec.json.encode(link))
    return {
        "loss_db": simulation.attenuation_db,
        **({} if efficiency <= 0.0 else {"z_arm_efficiency": efficiency}),
        **({} if rate is None else {"secret_bits_per_s": rate}),
    }


@functools.cache  # several links of one run, and runs in one process, have equal parameters
def _secret_bits_per_s(simulation: bytes, link: bytes) -> float | None:
    try:
        return forecast(
            msgspec.json.decode(simulation, type=SimulationParameters),
            msgspec.json.decode(link, type=LinkParameters),
            USUAL_F_EC,
        ).secret_bits_per_s
    except ValueError:  # a link without any clicks
        return None
