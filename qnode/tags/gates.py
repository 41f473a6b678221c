"""Gates: the arrival times of each outcome.

Gates follow from the configuration alone, never from the data of a block. Times are relative to the early
pulse of a slot: the Z arm sees pulses at 0 and at the bin spacing. In the X arm the central slot C lies at
the spacing, and the boundary slot E collects the early bin of the slot's own qubit at 0 and the late bin of
the qubit before, by the long arm, at twice the spacing less a period. The two coincide only if the spacing is
half a period. Otherwise the E gate is wider, so that it accepts the same fraction of its light as the C gate,
because the estimator uses ratios of the two (security reference, 3.1).
"""

import math
from dataclasses import dataclass
from typing import Final

from qnode.config import ReceiverParameters, SourceParameters

_BISECTIONS: Final = 60


@dataclass(frozen=True)
class Gate:
    """The window ``centre_ps`` +- ``half_width_ps``, and the arrival times of its light (one or two)."""

    centre_ps: float
    half_width_ps: float
    arrivals_ps: tuple[float, ...]

    def accepts(self, time_ps: float) -> bool:
        """Return whether a click at ``time_ps`` is in the gate (the later edge excluded)."""
        return -self.half_width_ps <= time_ps - self.centre_ps < self.half_width_ps


@dataclass(frozen=True)
class Gates:
    """All gates of a receiver, times relative to the early pulse of a slot of ``period_ps``."""

    period_ps: float
    early: Gate
    late: Gate
    central: Gate
    boundary: Gate

    @property
    def skew_ps(self) -> float:
        """Bin spacing less half a period: the distance of the late bin from its position in an even comb."""
        return self.late.centre_ps - self.early.centre_ps - self.period_ps / 2.0


def acceptance(gate: Gate, jitter_ps: float) -> float:
    """Return the fraction of the gate's light inside the gate, for Gaussian jitter.

    For one arrival time at the centre: erf(w / (2 sqrt2 sigma)) (security reference, 5.2).
    """
    return leak(gate, gate.arrivals_ps, jitter_ps)


def leak(gate: Gate, arrivals_ps: tuple[float, ...], jitter_ps: float) -> float:
    """Return the fraction of light, equal parts at ``arrivals_ps``, inside ``gate``."""
    if jitter_ps == 0.0:
        return sum(gate.accepts(arrival) for arrival in arrivals_ps) / len(arrivals_ps)
    scale = 1.0 / (math.sqrt(2.0) * jitter_ps)
    total = 0.0
    for arrival in arrivals_ps:
        offset = gate.centre_ps - arrival
        upper = math.erf((offset + gate.half_width_ps) * scale)
        lower = math.erf((offset - gate.half_width_ps) * scale)
        total += (upper - lower) / 2.0
    return total / len(arrivals_ps)


def gates(source: SourceParameters, receiver: ReceiverParameters) -> Gates:
    """Compute the gates for the configured spacing, width and jitter.

    Raises:
        ValueError: with this spacing and width a gate would reach into the neighbouring bin's half slot.
    """
    period = source.period_ps
    spacing = source.bin_spacing_ps
    half = receiver.gate_width_ps / 2.0
    central = Gate(spacing, half, (spacing,))
    long_arm = 2.0 * spacing - period
    boundary = _matched(long_arm / 2.0, (0.0, long_arm), receiver.jitter_ps, central)
    placed = Gates(period, Gate(0.0, half, (0.0,)), Gate(spacing, half, (spacing,)), central, boundary)
    # In the comb of ticks, the Z bins are symmetric about the ticks, and both X slots are half a skew away.
    furthest = abs(placed.skew_ps) / 2.0 + max(half, boundary.half_width_ps)
    if furthest > period / 4.0:
        raise ValueError(
            f"link.source.bin_spacing_ps: with {spacing:.1f} ps in a slot of {period:.1f} ps and gates of "
            f"{receiver.gate_width_ps:.1f} ps a gate would reach into the next bin; use narrower gates"
        )
    return placed


def _matched(centre_ps: float, arrivals_ps: tuple[float, ...], jitter_ps: float, reference: Gate) -> Gate:
    """Return the gate at ``centre_ps`` whose acceptance equals that of ``reference``."""
    wanted = acceptance(reference, jitter_ps)
    offset = abs(arrivals_ps[0] - centre_ps)
    low, high = 0.0, reference.half_width_ps + offset
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2.0
        if acceptance(Gate(centre_ps, middle, arrivals_ps), jitter_ps) < wanted:
            low = middle
        else:
            high = middle
    return Gate(centre_ps, high, arrivals_ps)
