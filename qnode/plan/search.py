"""Maximising a function of a few bounded numbers without derivatives: the simplex of Nelder and Mead.

J. A. Nelder and R. Mead, The Computer Journal 7, 308 (1965). Each number runs over an open interval, which
the logistic function maps to the whole line, so that no step leaves it. The search is deterministic.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Objective = Callable[[Sequence[float]], float]


@dataclass(frozen=True)
class Interval:
    """The open interval in which one number is searched."""

    low: float
    high: float

    def to_line(self, value: float) -> float:
        """Return the position of ``value`` on the line; a value outside is moved just inside."""
        share = (value - self.low) / (self.high - self.low)
        share = min(max(share, 1e-6), 1.0 - 1e-6)
        return math.log(share / (1.0 - share))

    def from_line(self, x: float) -> float:
        """Return the number at a position on the line."""
        share = 1.0 / (1.0 + math.exp(-x)) if x > -700.0 else 0.0
        return self.low + share * (self.high - self.low)


@dataclass(frozen=True)
class Found:
    """The best arguments, their value, and the number of evaluations."""

    arguments: tuple[float, ...]
    value: float
    evaluations: int


def maximise(
    objective: Objective,
    intervals: Sequence[Interval],
    start: Sequence[float],
    *,
    step: float = 0.4,
    tolerance: float = 1e-4,
    most_evaluations: int = 400,
) -> Found:
    """Climb from ``start`` until the simplex' values differ by less than ``tolerance`` of the best.

    The simplex is restarted around the best point until there is no more gain, because a simplex that has
    collapsed along a ridge stops too early. ``step``: the first simplex' edges, on the line.
    """
    count = _Counter(objective, intervals)
    best = count.vertex([interval.to_line(value) for interval, value in zip(intervals, start, strict=True)])
    while count.evaluations < most_evaluations:
        better = _climb(count, best, step, tolerance, most_evaluations)
        gained = better.value - best.value
        best = better
        if gained <= tolerance * abs(best.value):
            break
        step *= 0.5
    return Found(count.arguments(best.place), best.value, count.evaluations)


@dataclass(frozen=True)
class _Vertex:
    place: list[float]
    value: float


class _Counter:
    """The objective on the line, and the number of evaluations."""

    def __init__(self, objective: Objective, intervals: Sequence[Interval]) -> None:
        self._objective = objective
        self._intervals = intervals
        self.evaluations = 0

    def arguments(self, place: Sequence[float]) -> tuple[float, ...]:
        return tuple(i.from_line(x) for i, x in zip(self._intervals, place, strict=True))

    def vertex(self, place: list[float]) -> _Vertex:
        self.evaluations += 1
        return _Vertex(place, self._objective(self.arguments(place)))


def _climb(count: _Counter, best: _Vertex, step: float, tolerance: float, most: int) -> _Vertex:
    """Run one simplex from ``best`` until it has contracted."""
    simplex = [best]
    for axis in range(len(best.place)):
        place = list(best.place)
        place[axis] += step
        simplex.append(count.vertex(place))
    while True:
        simplex.sort(key=lambda vertex: -vertex.value)
        spread = simplex[0].value - simplex[-1].value
        if spread <= tolerance * abs(simplex[0].value) or count.evaluations >= most:
            return simplex[0]
        _improve(count, simplex)


def _improve(count: _Counter, simplex: list[_Vertex]) -> None:
    """Replace the worst vertex by a better one on the line through the others' centre, or shrink."""
    worst, others = simplex[-1], simplex[:-1]
    centre = [sum(values) / len(others) for values in zip(*(v.place for v in others), strict=True)]

    def along(factor: float) -> _Vertex:
        return count.vertex([c + factor * (c - w) for c, w in zip(centre, worst.place, strict=True)])

    reflected = along(1.0)
    if reflected.value > simplex[0].value:
        expanded = along(2.0)
        simplex[-1] = expanded if expanded.value > reflected.value else reflected
    elif reflected.value > others[-1].value:
        simplex[-1] = reflected
    else:
        contracted = along(0.5 if reflected.value > worst.value else -0.5)
        if contracted.value > max(worst.value, reflected.value):
            simplex[-1] = contracted
            return
        first = simplex[0].place
        for i, vertex in enumerate([*others[1:], worst], start=1):
            simplex[i] = count.vertex([(a + b) / 2.0 for a, b in zip(first, vertex.place, strict=True)])
