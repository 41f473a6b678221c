"""Blocks for the estimator `three_state`: of the link model, and of channels of which the truth is known."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from qnode.config import LinkParameters, SourceParameters
from qnode.distill.counts import Pair
from qnode.distill.keylength import EstimatorInput, binary_entropy
from qnode.simulate.model import expected_rates
from qnode.simulate.parameters import SimulationParameters

Matrix = NDArray[np.complex128]
EARLY, LATE = np.array([1, 0], dtype=complex), np.array([0, 1], dtype=complex)
PLUS, MINUS = (EARLY + LATE) / math.sqrt(2), (EARLY - LATE) / math.sqrt(2)
MOST_PHOTONS = 12


def link_inputs(
    mu: tuple[float, float],
    p_signal: float,
    n_z: float = 1e6,
    *,
    attenuation_db: float = 10.8,
    f_ec: float = 1.05,
    **changes: Any,
) -> EstimatorInput:
    """Return the expected block of the default link at these intensities."""
    link = LinkParameters(source=SourceParameters(mu=mu, p=(p_signal, 1.0 - p_signal)))
    simulation = msgspec.structs.replace(SimulationParameters(), attenuation_db=attenuation_db)
    rates = expected_rates(simulation, link)
    scale = n_z / rates.n_z.total

    def scaled(pair: Pair) -> Pair:
        return Pair(round(pair.signal * scale), round(pair.decoy * scale))

    m_z = scaled(rates.m_z)
    chosen: dict[str, Any] = {
        "n_z": scaled(rates.n_z),
        "m_z": m_z,
        "n_x": scaled(rates.x.c_z),
        "m_x": scaled(rates.x.c_plus),
        "e_same": scaled(rates.x.e_same),
        "e_plus": scaled(rates.x.e_plus),
        "e_dark": scaled(rates.x.e_dark),
        "n_z_plus": scaled(rates.n_z_plus),
        "boundary": float(round(rates.boundary * scale)),
        "mu": Pair(*mu),
        "p": Pair(p_signal, 1.0 - p_signal),
        "p_z": link.source.p_z,
        "x_scale": 2.0 * (1.0 - link.source.p_z) / link.source.p_z,
        "lambda_ec": f_ec * n_z * binary_entropy(m_z.total / n_z),
        "eps_sec": 1e-10,
        "verification_bits": 64,
    }
    return EstimatorInput(**{**chosen, **changes})


@dataclass(frozen=True)
class Seen:
    """Chances of a signal in one state: any click of the Z arm, a wrong bit there, |-> in the X arm."""

    total: float
    wrong: float
    minus: float


@dataclass(frozen=True)
class Attack:
    """What a channel does to each photon number. ``one``: to a photon, as Kraus operators (loss is allowed).

    ``empty``, ``several``: what Bob sees of no photon, and of n of them by Alice's state (0, 1, 2 for |+>).
    """

    one: list[Matrix]
    several: Callable[[int, int], Seen]
    empty: Seen = field(default=Seen(2e-5, 1e-5, 1e-5))

    def seen(self, photons: int, state: int) -> Seen:
        if photons == 0:
            return self.empty
        if photons > 1:
            return self.several(photons, state)
        sent = (EARLY, LATE, PLUS)[state]
        wrong = (LATE, EARLY, MINUS)[state]
        return Seen(
            self.chance(sent, EARLY) + self.chance(sent, LATE),
            *(self.chance(sent, v) for v in (wrong, MINUS)),
        )

    def chance(self, sent: Matrix, found: Matrix) -> float:
        return float(sum(abs(np.vdot(found, kraus @ sent)) ** 2 for kraus in self.one))

    def phase_error(self) -> float:
        """Return the phase error rate of one photon by its definition: |+> found as |-> and the other way."""
        wrong = self.chance(PLUS, MINUS) + self.chance(MINUS, PLUS)
        return wrong / (wrong + self.chance(PLUS, PLUS) + self.chance(MINUS, MINUS))


@dataclass(frozen=True)
class Truth:
    """What Eve knows and nobody else: one-photon detections among the sifted bits, and their phase errors."""

    detections: float
    errors: float

    @property
    def secret(self) -> float:
        return self.detections * (1.0 - binary_entropy(min(0.5, self.errors / self.detections)))


def attacked(
    attack: Attack,
    n_z: float = 1e6,
    *,
    mu: tuple[float, float] = (0.3, 0.1),
    p_signal: float = 0.6,
    p_z: float = 0.5,
    x_to_z: float = 1.2,
    rng: np.random.Generator | None = None,
    **changes: Any,
) -> tuple[EstimatorInput, Truth]:
    """Return a block under an attack and the truth about it: expected counts, or sampled ones with ``rng``.

    ``x_to_z``: efficiency of the X arm (both ports) to that of the Z arm.
    """
    chances = (p_z / 2.0, p_z / 2.0, 1.0 - p_z)
    rates = {name: [0.0, 0.0] for name in ("n", "m", "plus", "c", "d")}
    boundary = detections = 0.0
    for k, (mean, chosen) in enumerate(zip(mu, (p_signal, 1.0 - p_signal), strict=True)):
        for photons in range(MOST_PHOTONS):
            weight = chosen * math.exp(-mean) * mean**photons / math.factorial(photons)
            for state, share in enumerate(chances):
                seen = attack.seen(photons, state)
                rate = weight * share
                boundary += rate * x_to_z / 4.0 * seen.total
                if state == 2:
                    rates["plus"][k] += rate * seen.total
                    rates["d"][k] += rate * x_to_z / 2.0 * seen.minus
                    continue
                rates["n"][k] += rate * seen.total
                rates["m"][k] += rate * seen.wrong
                rates["c"][k] += rate * x_to_z / 2.0 * seen.minus
                detections += rate * seen.total if photons == 1 else 0.0
    scale = n_z / sum(rates["n"])

    def pair(name: str) -> Pair:
        expected = [scale * value for value in rates[name]]
        return Pair(*(expected if rng is None else rng.poisson(expected).tolist()))

    right = {"m": pair("m")}
    counts = {name: pair(name) for name in ("plus", "c", "d")}
    rates["n"] = [n - m for n, m in zip(rates["n"], rates["m"], strict=True)]
    correct = pair("n")
    all_boundary = scale * boundary if rng is None else float(rng.poisson(scale * boundary))
    chosen_inputs: dict[str, Any] = {
        "n_z": Pair(correct.signal + right["m"].signal, correct.decoy + right["m"].decoy),
        "m_z": right["m"],
        "n_x": counts["c"],
        "m_x": counts["d"],
        "n_z_plus": counts["plus"],
        "boundary": all_boundary,
        "e_same": Pair(0.0, 0.0),
        "e_plus": Pair(0.0, 0.0),
        "e_dark": Pair(0.0, 0.0),
        "mu": Pair(*mu),
        "p": Pair(p_signal, 1.0 - p_signal),
        "p_z": p_z,
        "x_scale": 2.0 * (1.0 - p_z) / p_z,
        "lambda_ec": 0.0,
    }
    truth = Truth(scale * detections, scale * detections * attack.phase_error())
    return EstimatorInput(**{**chosen_inputs, **changes}), truth


def _outer(left: Matrix, right: Matrix) -> Matrix:
    return np.asarray(np.outer(left, right.conj()), complex)


def lossy(efficiency: float, *kraus: Matrix) -> list[Matrix]:
    """Return the Kraus operators after a loss."""
    return [math.sqrt(efficiency) * one for one in kraus]


def damping(strength: float, towards: Matrix = PLUS) -> list[Matrix]:
    """Return amplitude damping towards |+> (or |->), which the visibility does not see."""
    away = MINUS if towards is PLUS else PLUS
    stay = _outer(towards, towards) + math.sqrt(1.0 - strength) * _outer(away, away)
    return [stay, math.sqrt(strength) * _outer(towards, away)]


def intercept_resend(share: float, basis: tuple[Matrix, Matrix]) -> list[Matrix]:
    """Return measure and resend in a basis, done to a share of the photons."""
    kept: Matrix = np.eye(2, dtype=np.complex128) * math.sqrt(1.0 - share)
    return [kept, *(_outer(v, v) * math.sqrt(share) for v in basis)]


def random_channel(rng: np.random.Generator) -> list[Matrix]:
    """Return three random Kraus operators that lose, disturb and prefer states at will."""
    kraus: list[Matrix] = [rng.normal(size=(2, 2)) + 1j * rng.normal(size=(2, 2)) for _ in range(3)]
    most = float(np.linalg.eigvalsh(sum(k.conj().T @ k for k in kraus))[-1])
    return [k * math.sqrt(rng.uniform(0.05, 1.0) / most) for k in kraus]


def clean(efficiency: float = 1e-2, error: float = 0.01) -> Callable[[int, int], Seen]:
    """Return what an honest channel shows of several photons: as if the first to arrive were alone."""

    def seen(photons: int, state: int) -> Seen:
        total = 1.0 - (1.0 - efficiency) ** photons
        minus = error if state == 2 else 0.5
        wrong = 0.5 if state == 2 else error
        return Seen(total, total * wrong, total * minus)

    return seen
