"""How many photons of each state reach which detector, and where in the slot: one table.

``light[detector, code, place]`` is the mean number of detections a qubit gives. Detector 0 is the Z arm with
the places early, late (the third is empty); detector 1 the monitored port of the X arm with the places early
bin by the short arm (the boundary slot E_i), centre (C_i), late bin by the long arm (E_i+1). Places lie one
bin spacing apart. The codes are Alice's symbol codes and, as nobody but Eve sends |->, code 3 and 7 for that.

A state is its Bloch vector (x towards |+>, z towards early). Light in the wrong bin has no fixed phase and
only shortens z; neighbouring qubits have random phases, so their overlap in E_i averages out.
"""

import math

import numpy as np
import numpy.typing as npt

from qnode.config import LinkParameters
from qnode.kernels import kernel
from qnode.simulate.parameters import Settings, SimulationParameters
from qnode.units import transmission

Light = npt.NDArray[np.float64]

STATES = 4  # 0 early, 1 late, 2 |+>, 3 |-> (sent by Eve alone)
CODES = 8  # the state, plus 4 for the decoy intensity
PLACES = 3
MINUS = 3


@kernel
def fill_light(
    arriving: Light, contrast: float, wrong_bin: float, damping: float, blinded: bool, light: Light
) -> None:
    """Fill ``light``, shape (2, 8, 3).

    ``arriving[detector, intensity]``: mean detections a qubit if the arm had no interferometer. ``contrast``:
    visibility times the cosine of the interferometer's phase. ``damping``: the chance that |-> decays to |+>.
    """
    for code in range(8):
        state, intensity = code & 3, code >> 2
        z = 1.0 if state == 0 else (-1.0 if state == 1 else 0.0)
        x = 1.0 if state == 2 else (-1.0 if state == 3 else 0.0)
        x = damping + (1.0 - damping) * x
        z = math.sqrt(1.0 - damping) * (1.0 - 2.0 * wrong_bin) * z
        in_z, in_x = arriving[0, intensity], arriving[1, intensity]
        if blinded:
            # Pulses tailored to one outcome each: Z states (twice as bright, as she measures Z in half of the
            # slots) make the Z detector click, |-> the X detector, |+> nothing.
            light[0, code, 0] = 2.0 * in_z if state == 0 else 0.0
            light[0, code, 1] = 2.0 * in_z if state == 1 else 0.0
            light[0, code, 2] = 0.0
            light[1, code, 0] = 0.0
            light[1, code, 1] = in_x if state == 3 else 0.0
            light[1, code, 2] = 0.0
        else:
            light[0, code, 0] = in_z * (1.0 + z) / 2.0
            light[0, code, 1] = in_z * (1.0 - z) / 2.0
            light[0, code, 2] = 0.0
            light[1, code, 0] = in_x * (1.0 + z) / 8.0
            light[1, code, 1] = in_x * (1.0 - contrast * x) / 4.0
            light[1, code, 2] = in_x * (1.0 - z) / 8.0


def arriving_light(simulation: SimulationParameters, link: LinkParameters, settings: Settings) -> Light:
    """Return the mean detections a qubit by detector and intensity, shape (2, 2).

    Photon-number splitting: of n photons n - 1 go on, through a channel that Eve makes just good enough for
    the signal to arrive as often as before.
    """
    through = transmission(settings.attenuation_db + settings.eve_added_loss_db)
    mu = np.array(link.source.mu)
    split = mu - 1.0 + np.exp(-mu)  # mean of n - 1 photons where there is one at least
    kept = min(1.0, mu[0] * through / split[0])
    photons = (1.0 - settings.eve_pns) * mu * through + settings.eve_pns * kept * split
    share = link.receiver.p_z
    arms = (
        share * transmission(simulation.z_arm_loss_db) * simulation.z_detector.efficiency,
        (1.0 - share) * transmission(simulation.x_arm_loss_db) * simulation.x_detector.efficiency,
    )
    return np.asarray((photons if settings.source_on else 0.0 * photons) * np.array(arms)[:, np.newaxis])


def contrast(simulation: SimulationParameters, phases_rad: Light) -> Light:
    """Return visibility times the cosine of the interferometer's phase errors."""
    return np.asarray(simulation.visibility * np.cos(phases_rad))


def wrong_bin(simulation: SimulationParameters, biases_rad: Light) -> Light:
    """Return the light in the wrong bin: the extinction at best bias, and what a wrong bias lets through."""
    best = simulation.wrong_bin_fraction
    return np.asarray(best + (1.0 - 2.0 * best) * np.sin(biases_rad / 2.0) ** 2)


def light_sent(simulation: SimulationParameters, link: LinkParameters, settings: Settings) -> Light:
    """Return the table by what *Alice* sent, averaged over what Eve makes of it, shape (2, 8, 3)."""
    light = np.zeros((2, CODES, PLACES))
    fill_light(
        arriving_light(simulation, link, settings),
        float(contrast(simulation, np.array(settings.interferometer_phase_rad))),
        float(wrong_bin(simulation, np.array(settings.modulator_bias_rad))),
        settings.eve_damping,
        settings.eve_blinding,
        light,
    )
    attacked = 1.0 if settings.eve_blinding else settings.eve_intercept
    sent = np.zeros_like(light)
    for code in range(CODES):
        state, decoy = code & 3, code & 4
        found = np.zeros(STATES)
        for same, others in (((0, 1), (2, 3)), ((2, 3), (0, 1))):
            if state in same:  # Eve's basis fits in one half of the cases, else she finds either at random
                found[state] = 0.5
                found[list(others)] = 0.25
        sent[:, code] = (1.0 - attacked) * light[:, code]
        sent[:, code] += attacked * np.einsum("s,dsp->dp", found, light[:, decoy : decoy + STATES])
    return sent
