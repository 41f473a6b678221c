"""One-decoy bounds on empty and one-photon detections (Rusca 2018, appendix A)."""

import math
from dataclasses import dataclass

from qnode.distill.counts import Pair
from qnode.distill.keylength.inputs import VacuumRule
from qnode.distill.keylength.limits import CountLimits


@dataclass(frozen=True)
class Source:
    """Alice's two intensities (mean photons per qubit, signal first) and how often she chooses each."""

    mu: Pair
    p: Pair

    def tau(self, n: int) -> float:
        """Return the probability that a qubit leaves with exactly ``n`` photons."""
        return math.fsum(
            p * math.exp(-mu) * mu**n / math.factorial(n)
            for mu, p in ((self.mu.signal, self.p.signal), (self.mu.decoy, self.p.decoy))
        )

    @property
    def weight(self) -> Pair:
        """Return e^mu_k / p_k, which turns counts into the n+-_k of the paper."""
        return Pair(math.exp(self.mu.signal) / self.p.signal, math.exp(self.mu.decoy) / self.p.decoy)

    @property
    def gap(self) -> float:
        """Return mu1 - mu2."""
        return self.mu.signal - self.mu.decoy


def empty_lower(source: Source, n: CountLimits) -> float:
    """Return the lower bound on empty-qubit detections (A19), before clipping."""
    signal = source.mu.decoy * source.weight.signal * n.signal_upper
    decoy = source.mu.signal * source.weight.decoy * n.decoy_lower
    return source.tau(0) / source.gap * (decoy - signal)


def one_photon_lower(source: Source, n: CountLimits, empty_upper: float) -> float:
    """Return the lower bound on one-photon detections (A17), before clipping."""
    mu1, mu2 = source.mu.signal, source.mu.decoy
    square = (mu2 / mu1) ** 2
    bracket = (
        source.weight.decoy * n.decoy_lower
        - square * source.weight.signal * n.signal_upper
        - (1.0 - square) * empty_upper / source.tau(0)
    )
    return source.tau(1) * mu1 / (mu2 * source.gap) * bracket


def one_photon_errors_upper(source: Source, m: CountLimits) -> float:
    """Return the upper bound on one-photon errors (A22), not below zero."""
    difference = source.weight.signal * m.signal_upper - source.weight.decoy * m.decoy_lower
    return max(0.0, source.tau(1) / source.gap * difference)


def empty_errors_upper(source: Source, m: CountLimits, m_total: float, rule: VacuumRule) -> float:
    """Return the upper bound on errors of empty qubits by the rule (A16 for form E, A14 for form A)."""
    k1 = source.tau(0) * source.weight.signal * m.signal_upper
    k2 = source.tau(0) * source.weight.decoy * m.decoy_upper
    match rule:
        case "min":
            return min(k1, k2)
        case "k1":
            return k1
        case "k2":
            return k2
        case "form_a":
            return m_total
        case "min3":
            return min(k1, k2, m_total)
        case "max3":
            return max(k1, k2, m_total)
