"""The search for good weights: a barrier method in floating point, whose result is never trusted.

The unknowns are, each times 1/scale, the logarithms of the weights of what is seen (t_1, t_2 for the sifted
bits of either intensity, s_1, s_2 >= 0 for what a bit error weighs less, four >= 0 for what E, G, W and R
weigh more where none of them need be, one for each other class), and 1/scale itself. In these what is proven
is concave and the generators' conditions are convex (perspectives of exponentials), so there is one optimum.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from qnode.distill.keylength.yields import CLASSES, class_index

Array = NDArray[np.float64]

# Unknowns by place: t_1, t_2, s_1, s_2, four each of E, G, W, R, the six of P, C, D, that of B, and 1/scale.
_T, _S, _MORE, _SEEN, _B, _STRETCH = 0, 2, 4, 12, 18, 19
_UNKNOWNS: Final = 20
# A sifted bit has at least so many errors here, lest what errors weigh less be free.
_LEAST_ERRORS: Final = 1e-6
_NEWTON_STEPS: Final = 60
# The barrier's last weight as a share of the first, and by what it falls from one to the next.
_SMALLEST: Final = 1e-9
_FALL: Final = 20.0


@dataclass(frozen=True, eq=False)
class Task:
    """What is to be proven, in floating point; see `qnode.distill.keylength.certificate`.

    ``cone``: generators as rows. ``sifted`` bits and ``wrong`` ones by intensity, ``seen``: the six of P, C
    and D (by intensity, then kind). ``shape``: a_j. ``slopes``, ``constant``: of the allowance. ``values``:
    of E and G.
    """

    cone: Array
    sifted: Sequence[float]
    wrong: Sequence[float]
    seen: Sequence[float]
    boundary: float
    shape: Array
    slopes: Array
    constant: float
    values: tuple[float, float]


class Found(NamedTuple):
    """Weights by class and their scale, and the quotient of proven sum and scale that they come to, about."""

    classes: tuple[float, ...]
    scale: float
    quotient: float


def best_weights(task: Task, *, smallest: float = _SMALLEST) -> Found:
    """Return weights and the scale that prove about the largest quotient of proven sum and scale.

    ``smallest``: about how far from the best one, as a share.
    """
    problem = _Problem(task)
    v = problem.start()
    first = barrier = 0.1 * abs(problem.proven(v))
    while barrier > smallest * first:
        problem.centre(v, barrier)
        barrier /= _FALL
    return Found(tuple(np.exp(problem.logs(v)).tolist()), 1.0 / float(v[_STRETCH]), problem.proven(v))


class _Problem:
    """Proven sum and conditions as functions of the unknowns v: the logarithms are (M v + m) / v_last."""

    def __init__(self, task: Task) -> None:
        self.task = task
        M, m = np.zeros((len(CLASSES), _UNKNOWNS)), np.zeros(len(CLASSES))
        q = np.zeros(_UNKNOWNS)
        for k in (0, 1):
            for place, kind in enumerate(("E", "G", "W", "R")):
                M[class_index(kind, k), [_T + k, _MORE + 4 * k + place]] = 1.0
            M[class_index("W", k), _S + k] = -1.0
            m[class_index("E", k)], m[class_index("G", k)] = -task.values[0], -task.values[1]
            q[_T + k] = task.sifted[k]
            q[_S + k] = -max(task.wrong[k], _LEAST_ERRORS * task.sifted[k])
            for place, kind in enumerate(("P", "C", "D")):
                unknown = _SEEN + 3 * k + place
                M[class_index(kind, k), unknown] = 1.0
                q[unknown] = task.seen[3 * k + place]
        M[-1, _B], q[_B] = 1.0, task.boundary
        M[:, _STRETCH] = task.slopes
        q[_STRETCH] = -task.constant
        self.M, self.m, self.q = M, m, q
        # Unknowns that must stay positive.
        self.positive = np.array([*range(_S, _SEEN), _STRETCH])

    def start(self) -> Array:
        """Return unknowns at which every weight lies below one, so that every condition holds."""
        total = sum(self.task.sifted) + sum(self.task.seen) + self.task.boundary + len(CLASSES)
        step = float(np.sqrt(self.task.constant / total)) + float(self.task.slopes.max())
        v = np.full(_UNKNOWNS, -step)
        v[_T : _T + 2], v[_S:_SEEN], v[_STRETCH] = -2.0 * step, 0.5 * step, 1.0
        larger: float = max(1.0, *map(abs, self.task.values))
        scaled: Array = v * (larger / (0.5 * step))
        return scaled

    def logs(self, v: Array) -> Array:
        found: Array = (self.M @ v + self.m) / v[_STRETCH]
        return found

    def proven(self, v: Array) -> float:
        logs, a = self.logs(v), self.task.shape
        return float(self.q @ v + v[_STRETCH] * (a @ logs - a @ np.expm1(logs)))

    def centre(self, v: Array, barrier: float) -> None:
        """Move ``v`` to the minimum of -proven/barrier - sum log(slack)."""
        # Imported here: who only asks what an estimator assumes needs no compiler.
        from qnode.distill.keylength.newton import centre

        of_task = self.task.shape, self.task.cone
        centre(v, barrier, self.M, self.m, self.q, *of_task, self.positive, _NEWTON_STEPS)
