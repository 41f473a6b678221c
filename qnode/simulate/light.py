"""The table of light: the photons of each state at each detector and place in the slot.

``light[detector, code, place]`` is the mean number of detections per qubit. Detector 0 is the Z arm with
the places early, late (the third is empty); detector 1 the monitored port of the X arm with the places early
bin by the short arm (the boundary slot E_i), centre (C_i), late bin by the long arm (E_i+1). Places are
one bin spacing apart. The codes are Alice's symbol codes. Codes 3 and 7 are |->, which only Eve sends.

A state is its Bloch vector (x towards |+>, z towards early). Light in the wrong bin has no fixed phase and
only shortens z; neighbouring qubits have random phases, so their overlap in E_i averages out.
"""

import math

import numpy as np
import numpy.typing as npt

from qnode.config import LinkParameters
from qnode.kernels import inline_kernel, kernel
from qnode.simulate.parameters import Settings, SimulationParameters
from qnode.units import transmission

Light = npt.NDArray[np.float64]

# The maker of the light at the detectors. From BLINDED on Eve measures every qubit, and the codes are the
# results of Eve.
HONEST, BLINDED, CAREFUL, STEERED = 0, 1, 2, 3

STATES = 4  # 0 early, 1 late, 2 |+>, 3 |-> (sent by Eve alone)
CODES = 8  # the state, plus 4 for the decoy intensity
PLACES = 3
MINUS = 3


@inline_kernel
def _twice(light: float) -> float:
    """Return the light that makes a detector click twice as often; at most about 36."""
    return -math.log(max(2.0 * math.exp(-light) - 1.0, 2.0**-52))


@kernel
def fill_light(
    arriving: Light, contrast: float, wrong_bin: float, damping: float, maker: int, light: Light
) -> None:
    """Fill ``light``, shape (2, 8, 3).

    ``arriving[detector, intensity]``: mean detections a qubit if the arm had no interferometer. ``contrast``:
    visibility times the cosine of the interferometer's phase. ``damping``: the chance that |-> decays to |+>.
    ``maker``: the maker of the light, `HONEST` etc.
    """
    for code in range(8):
        state, intensity = code & 3, code >> 2
        z = 1.0 if state == 0 else (-1.0 if state == 1 else 0.0)
        x = 1.0 if state == 2 else (-1.0 if state == 3 else 0.0)
        x = damping + (1.0 - damping) * x
        z = math.sqrt(1.0 - damping) * (1.0 - 2.0 * wrong_bin) * z
        in_z, in_x = arriving[0, intensity], arriving[1, intensity]
        if maker in (CAREFUL, STEERED):
            # Eve measures in the basis of an arm in half of the slots, and doubles the light for the other
            # half.
            z_result = state < 2
            for place in range(3):
                light[0, code, place] = light[1, code, place] = 0.0
            if z_result:
                light[0, code, 0] = _twice(in_z) * (1.0 + z) / 2.0
                light[0, code, 1] = _twice(in_z) * (1.0 - z) / 2.0
            if z_result == (maker == CAREFUL):  # boundary slots: imitated, or the light of an X result
                light[1, code, 0] = in_x * (1.0 + z) / 4.0
                light[1, code, 2] = in_x * (1.0 - z) / 4.0
            if not z_result:
                light[1, code, 1] = in_x * (1.0 - contrast * x) / 2.0
        elif maker == BLINDED:
            # Pulses for one outcome each: Z states (twice as bright, because Eve measures Z in half of the
            # slots) make the Z detector click, |-> the X detector, |+> none.
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

    With photon-number splitting n - 1 of n photons continue, through a channel that Eve makes just good
    enough that the signal arrives as often as before.
    """
    through = transmission(settings.attenuation_db + settings.eve_added_loss_db)
    mu = np.array(link.source.mu if settings.mu_sent is None else settings.mu_sent)
    mu *= transmission(settings.source_attenuation_db + settings.attenuator_db)
    split = mu - 1.0 + np.exp(-mu)  # mean of n - 1 photons, if there is at least one
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
    """Return the light in the wrong bin: the extinction at the best bias, and the leakage of a wrong bias."""
    best = simulation.wrong_bin_fraction
    return np.asarray(best + (1.0 - 2.0 * best) * np.sin(biases_rad / 2.0) ** 2)


def maker(settings: Settings) -> int:
    """Return the maker of the light, for `fill_light`."""
    if settings.eve_blinding:
        return BLINDED
    if settings.eve_careful_blinding:
        return CAREFUL
    return STEERED if settings.eve_steering else HONEST


def attacked(settings: Settings) -> float:
    """Return the fraction of the qubits that Eve measures."""
    return settings.eve_intercept if maker(settings) == HONEST else 1.0


def light_sent(simulation: SimulationParameters, link: LinkParameters, settings: Settings) -> Light:
    """Return the table by the state that *Alice* sent, averaged over Eve's results, shape (2, 8, 3).

    The average is over the probabilities of a click, because Eve's results exclude each other.
    """
    light = np.zeros((2, CODES, PLACES))
    fill_light(
        arriving_light(simulation, link, settings),
        float(contrast(simulation, np.array(settings.interferometer_phase_rad))),
        float(wrong_bin(simulation, np.array(settings.modulator_bias_rad))),
        settings.eve_damping,
        maker(settings),
        light,
    )
    share = attacked(settings)
    if share == 0.0:
        return light
    total = light.sum(axis=2, keepdims=True)
    chances = light * np.divide(-np.expm1(-total), total, out=np.ones_like(total), where=total > 0.0)
    sent = np.zeros_like(light)
    for code in range(CODES):
        state, decoy = code & 3, code & 4
        found = np.zeros(STATES)
        for same, others in (((0, 1), (2, 3)), ((2, 3), (0, 1))):
            if state in same:  # Eve's basis is right in half of the cases; otherwise the result is random
                found[state] = 0.5
                found[list(others)] = 0.25
        sent[:, code] = (1.0 - share) * chances[:, code]
        sent[:, code] += share * np.einsum("s,dsp->dp", found, chances[:, decoy : decoy + STATES])
    clicks = sent.sum(axis=2, keepdims=True)
    return np.asarray(
        sent * np.divide(-np.log1p(-clicks), clicks, out=np.ones_like(clicks), where=clicks > 0.0)
    )
