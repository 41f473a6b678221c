"""The loss of the quantum channel from the click rates of Bob's Z arm."""

import math
from typing import Final, NamedTuple

from qnode.config import LinkParameters
from qnode.node.status.quantum_figures import RATES_WINDOW_S

# How well a declared dead time is known. Near saturation, a click rate tells the dead time and not the loss.
DEAD_TIME_UNCERTAINTY: Final = 0.01
MOST_ERROR_DB: Final = 3.0


class Loss(NamedTuple):
    """A loss, and the half width of the interval in which it lies; both in dB."""

    loss_db: float
    error_db: float


def loss_of(
    click_rates_hz: dict[str, float], out_of_gate: float, link: LinkParameters, efficiency: float
) -> Loss | None:
    """Return the loss between the sites; None if it is unknown, or known to less than 3 dB.

    ``click_rates_hz``: clicks in gates by arm; ``out_of_gate``: the share of tags outside the gates.
    ``efficiency``: the chance that a photon in Bob's Z arm clicks. Clicks without light count as light.
    """
    clicks_hz = {arm: rate_hz / (1.0 - out_of_gate) for arm, rate_hz in click_rates_hz.items()}
    z_hz = clicks_hz.get("z", 0.0)
    if z_hz <= 0.0 or efficiency <= 0.0:
        return None
    source, receiver = link.source, link.receiver
    blanking_hz = sum(clicks_hz.values()) if receiver.dead_time == "joint" else z_hz
    blanked = blanking_hz * receiver.dead_time_s
    chance = 1.0 / math.sqrt(z_hz * RATES_WINDOW_S)
    doubt = blanked * math.hypot(DEAD_TIME_UNCERTAINTY, chance)
    live = 1.0 - blanked
    if live - doubt <= 0.0:
        return None
    photons_hz = source.qubit_rate_hz * sum(p * mu for p, mu in zip(source.p, source.mu, strict=True))
    detected = z_hz / live / (photons_hz * receiver.p_z * efficiency)
    error_db = 10.0 * math.log10(live / (live - doubt) * (1.0 + chance))
    return Loss(-10.0 * math.log10(detected), error_db) if error_db <= MOST_ERROR_DB else None
