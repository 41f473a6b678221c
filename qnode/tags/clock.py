"""Clock recovery: the period and phase of a remote clock from time tags alone.

Each tag is a phasor at the clock's frequency; at the right frequency the phasors line up. The sum over
a band of frequencies is one Fourier transform of the phasors binned in time, after which Newton's method
climbs to the top of the peak. With bins 800 ps apart in a slot of 1666.7 ps the two bins nearly cancel at the
qubit rate, so the link asks for twice that rate: the bin clock, which has two ticks a slot.
"""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from qnode.tags.types import Times
from qnode.units import PS_PER_S

FEWEST_TAGS: Final = 16
_NEWTON_STEPS: Final = 6
_MOST_BINS: Final = 1 << 23


@dataclass(frozen=True)
class RecoveredClock:
    """A clock as the tags show it: ticks are centred on ``anchor_ps + phase_ps + k * period_ps``.

    ``anchor_ps`` lies in the middle of the tags, where phase and period are least correlated.
    ``phase_sigma_ps`` and ``rate_sigma`` (relative) are the standard errors.
    ``vector_strength``: length of the mean phasor, 1 for tags without jitter and noise.
    ``significance``: minus log10 of the probability that uniform noise gives such a strength anywhere in the
    searched band (Rayleigh's test, times the number of independent frequencies).
    """

    anchor_ps: int
    phase_ps: float
    period_ps: float
    phase_sigma_ps: float
    rate_sigma: float
    vector_strength: float
    significance: float
    n_tags: int


def recover_clock(
    times_ps: Times, nominal_period_ps: float, *, range_ppm: float = 100.0
) -> RecoveredClock | None:
    """Find the clock whose period lies within ``range_ppm`` of ``nominal_period_ps``.

    ``times_ps``: int64, shape ``(n,)``, in any order, of a stretch over which the clock keeps its phase to a
    small part of a period. Returns None if there are too few tags; otherwise the best clock,
    however weak: the caller checks its ``significance``.

    Raises:
        ValueError: the stretch is so long that the band has more frequencies than can be searched.
    """
    n = times_ps.shape[0]
    if n < FEWEST_TAGS:
        return None
    first = int(times_ps.min())
    span_ps = int(times_ps.max()) - first
    if span_ps <= 0:
        return None
    anchor = first + span_ps // 2
    t_s = (times_ps - anchor).astype(np.float64) / PS_PER_S
    nominal_hz = PS_PER_S / nominal_period_ps
    band_hz = nominal_hz * range_ppm * 1e-6
    turns = nominal_hz * t_s
    angle = (turns - np.rint(turns)) * (-2.0 * math.pi)
    phasors = np.cos(angle) + 1j * np.sin(angle)
    detuning_hz = _climb(t_s, phasors, _coarse_peak(t_s, phasors, span_ps / PS_PER_S, band_hz))

    total = complex(np.sum(phasors * np.exp(-2j * math.pi * detuning_hz * t_s)))
    strength = abs(total) / n
    frequency = nominal_hz + detuning_hz
    period = PS_PER_S / frequency
    independent = max(1.0, 2.0 * band_hz * span_ps / PS_PER_S)
    nats = n * strength**2 - math.log(independent)
    # Cramer-Rao for the mean direction and the frequency of phasors of length `strength` in unit noise.
    phase_sigma = period / (2.0 * math.pi * strength * math.sqrt(2.0 * n)) if strength > 0.0 else math.inf
    spread_s = float(np.std(t_s))
    rate_sigma = phase_sigma / PS_PER_S / spread_s
    return RecoveredClock(
        anchor_ps=anchor,
        # The phasors of ticks centred on phase x turn by -2 pi x / period.
        phase_ps=-math.atan2(total.imag, total.real) / (2.0 * math.pi) * period,
        period_ps=period,
        phase_sigma_ps=phase_sigma,
        rate_sigma=rate_sigma,
        vector_strength=strength,
        significance=max(0.0, nats) / math.log(10.0),
        n_tags=n,
    )


def residuals_ps(times_ps: Times, clock: RecoveredClock) -> npt.NDArray[np.float64]:
    """Return the distance of each tag from the nearest tick, at most half a period to either side."""
    offset = (times_ps - clock.anchor_ps).astype(np.float64) - clock.phase_ps
    turns = offset / clock.period_ps
    return np.asarray((turns - np.rint(turns)) * clock.period_ps, np.float64)


def _coarse_peak(
    t_s: npt.NDArray[np.float64], phasors: npt.NDArray[np.complex128], span_s: float, band_hz: float
) -> float:
    """Return the detuning (Hz) of the strongest of frequencies half a resolution apart."""
    bin_s = 1.0 / (8.0 * band_hz)  # the binning reduces the band edges by 2.6 %
    n_bins = int(span_s / bin_s) + 1
    if n_bins > _MOST_BINS:
        raise ValueError(f"a stretch of {span_s:.3g} s is too long to search {band_hz:.3g} Hz either side")
    index = np.minimum(((t_s - t_s.min()) / bin_s).astype(np.int64), n_bins - 1)
    binned = np.bincount(index, phasors.real, n_bins) + 1j * np.bincount(index, phasors.imag, n_bins)
    n_fft = 1 << (2 * n_bins - 1).bit_length()
    spectrum = np.abs(np.fft.fft(binned, n_fft))
    frequencies = np.fft.fftfreq(n_fft, bin_s)
    spectrum[np.abs(frequencies) > band_hz] = -1.0
    return float(frequencies[int(np.argmax(spectrum))])


def _climb(t_s: npt.NDArray[np.float64], phasors: npt.NDArray[np.complex128], start_hz: float) -> float:
    """Climb from ``start_hz`` to the maximum of the summed phasors' length by Newton's method."""
    detuning = start_hz
    longest_step = 0.25 / (float(t_s.max()) - float(t_s.min()))
    for _ in range(_NEWTON_STEPS):
        turned = phasors * np.exp(-2j * math.pi * detuning * t_s)
        s0 = complex(np.sum(turned))
        s1 = -2j * math.pi * complex(np.sum(turned * t_s))
        s2 = -4.0 * math.pi**2 * complex(np.sum(turned * t_s * t_s))
        slope = 2.0 * (s1 * s0.conjugate()).real
        curvature = 2.0 * (abs(s1) ** 2 + (s2 * s0.conjugate()).real)
        if curvature >= 0.0:
            break  # not on a peak: noise
        step = -slope / curvature
        detuning += max(-longest_step, min(longest_step, step))
        if abs(step) < 1e-6 * longest_step:
            break
    return detuning
