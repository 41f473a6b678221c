"""The link and detector model of the security reference, section 5, with the parameters of 5.4."""

import math
from typing import Any

from qnode.distill.counts import Pair
from qnode.distill.keylength import EstimatorInput, binary_entropy

MU, P, P_Z = Pair(0.5, 0.2), Pair(0.7, 0.3), 0.5


def turin_inputs(attenuation_db: float, n_z: float, **settings: Any) -> EstimatorInput:
    """Return the expected counts of one block of ``n_z`` sifted bits, with f_EC = 1.16 and eps_sec = 1e-9."""
    counts = _rates(attenuation_db)
    scale = n_z / (counts["n_z"].total)
    pairs: dict[str, Any] = {
        name: Pair(pair.signal * scale, pair.decoy * scale) for name, pair in counts.items()
    }
    pairs["boundary"] = pairs["boundary"].total
    leak = 1.16 * n_z * binary_entropy(pairs["m_z"].total / n_z)
    chosen: dict[str, Any] = {"eps_sec": 1e-9, "eps_cor": 1e-15, "x_mode": "visibility", **settings}
    return EstimatorInput(
        mu=MU,
        p=P,
        p_z=P_Z,
        lambda_ec=leak,
        x_scale=2 * (1 - P_Z) / P_Z,
        **pairs,
        **chosen,
    )


def seconds(attenuation_db: float, n_z: float) -> float:
    """Return how long the block takes."""
    return n_z / _rates(attenuation_db)["n_z"].total


def _rates(attenuation_db: float) -> dict[str, Pair]:
    rate, dark, dead, after, efficiency = 600e6, 3500.0, 62.5e-6, 0.02, 0.2
    acceptance, window, e_z, visibility = 0.97, 400e-12, 0.0095, 0.95
    channel = 10 ** (-attenuation_db / 10)
    lam_z = [mu * channel * 0.5 * 10**-0.13 * efficiency for mu in (MU.signal, MU.decoy)]
    lam_x = [mu * channel * 0.5 * 10**-0.23 * efficiency for mu in (MU.signal, MU.decoy)]
    chances = (P.signal, P.decoy)
    incident_z = rate * sum(p * (1 - math.exp(-lam)) for p, lam in zip(chances, lam_z, strict=True))
    share = P_Z / 2 + (1 - P_Z) * (0.25 + (1 - visibility) / 4)
    incident_x = rate * sum(p * (1 - math.exp(-lam * share)) for p, lam in zip(chances, lam_x, strict=True))

    def live(incident: float) -> tuple[float, float]:
        clicks = (incident + dark) / (1 - after + (incident + dark) * dead)
        fraction = 1 - clicks * dead
        return fraction, (dark + after * clicks / fraction) * window

    (live_z, y_z), (live_x, y_x) = live(incident_z), live(incident_x)

    def pair(weight: float, noise: float, lam: list[float], fraction: float, noise_slots: float) -> Pair:
        values = [
            weight * p * rate * (acceptance * (1 - math.exp(-x * fraction)) + noise_slots * noise)
            for p, x in zip(chances, lam, strict=True)
        ]
        return Pair(*values)

    wrong = [
        live_z * rate * P_Z * p * (acceptance * e_z * (1 - math.exp(-x)) + y_z)
        for p, x in zip(chances, lam_z, strict=True)
    ]
    p_x = 1 - P_Z
    # In the boundary slots the wrong-bin fraction of a Z state shows as light where none is expected.
    return {
        "n_z": pair(live_z * P_Z, y_z, lam_z, 1.0, 2),
        "n_z_plus": pair(live_z * p_x, y_z, lam_z, 1.0, 2),
        "boundary": pair(live_x, y_x, lam_x, 0.25, 1),
        "m_z": Pair(*wrong),
        "n_x": pair(live_x * P_Z, y_x, lam_x, 0.25, 1),
        "m_x": pair(live_x * p_x, y_x, lam_x, (1 - visibility) / 4, 1),
        "e_same": pair(live_x * P_Z**2 / 2, y_x, lam_x, 0.25, 1),
        "e_plus": pair(live_x * P_Z * p_x, y_x, lam_x, 0.125 + e_z / 4, 1),
        "e_dark": pair(live_x * P_Z**2 / 4, y_x, lam_x, e_z / 2, 1),
    }
