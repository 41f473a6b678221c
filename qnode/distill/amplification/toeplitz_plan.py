"""How a rectangular matrix of words is covered by square tiles, at the least work."""

import math
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

TILE_UNIT: Final = 64
_BASES: Final = (64, 192)


@dataclass(frozen=True)
class Plan:
    """How a matrix of words is covered by square tiles, each word by one tile.

    ``tiles`` (int64, shape ``(number, 3)``) holds first row, first column and size of each; a size is 64 or
    192 times a power of two. ``rows`` and ``columns`` are where the tiles end: they may reach past the
    matrix, where the seed or the vector is zero. ``largest`` is the size of the largest tile.
    """

    rows: int
    columns: int
    largest: int
    tiles: npt.NDArray[np.int64]


class _Region(NamedTuple):
    """A rectangle still to be covered, and whether tiles may reach past its lower and its right edge."""

    height: int
    width: int
    open_below: bool
    open_right: bool


class _Cover(NamedTuple):
    """A region's cheapest first tiles, ``down`` times ``along`` of one size; strips remain below, beside."""

    cost: float
    size: int = 0
    down: int = 0
    along: int = 0


def word_products(plan: Plan) -> float:
    """Return how many products of two words the tiles take: three for each halving, six for three thirds."""
    sides = plan.tiles[:, 2]
    in_thirds = sides % 3 == 0
    halvings = np.log2(np.where(in_thirds, sides // 3, sides))
    return float((3.0**halvings * np.where(in_thirds, 6.0, 1.0)).sum())


@lru_cache(maxsize=64)
def plan_product(rows: int, columns: int) -> Plan:
    """Return the cheapest cover of ``rows`` x ``columns`` words of its kind.

    A region is covered by equal tiles, and what they leave below and beside by smaller ones in the same way.
    Tiles may reach past the matrix: rounding a side up often costs less than strips of small tiles.
    """
    height, width = (-(-side // TILE_UNIT) * TILE_UNIT for side in (rows, columns))
    known: dict[_Region, _Cover] = {}
    tiles: list[tuple[int, int, int]] = []
    pending = [(0, 0, _Region(height, width, True, True))]
    while pending:
        row, column, region = pending.pop()
        cover = _cheapest(region, known)
        size = cover.size
        tiles += [
            (row + i * size, column + j * size, size) for i in range(cover.down) for j in range(cover.along)
        ]
        below, beside = _rests(region, size, cover.down, cover.along)
        if below:
            pending.append((row + cover.down * size, column, below))
        if beside:
            pending.append((row, column + cover.along * size, beside))
    return Plan(
        rows=max(row + size for row, _, size in tiles),
        columns=max(column + size for _, column, size in tiles),
        largest=max(size for _, _, size in tiles),
        tiles=np.array(tiles, np.int64),
    )


def _cheapest(region: _Region, known: dict[_Region, _Cover]) -> _Cover:
    if region in known:
        return known[region]
    side = min(region.height, region.width)
    sizes = _sizes(2 * side)
    fitting = sum(size <= side for size in sizes)
    best = _Cover(math.inf)
    for size in reversed(sizes[fitting - 1 : fitting + 1]):
        for down in _numbers(region.height, size, region.open_below):
            for along in _numbers(region.width, size, region.open_right):
                cost = down * along * _tile_cost(size)
                if cost >= best.cost:
                    continue
                for rest in _rests(region, size, down, along):
                    if rest and cost < best.cost:
                        cost += _cheapest(rest, known).cost
                if cost < best.cost:
                    best = _Cover(cost, size, down, along)
    known[region] = best
    return best


def _numbers(side: int, size: int, is_open: bool) -> list[int]:
    """Return how many tiles along a side come into question, at least one: those that fit, or one more."""
    fitting = side // size
    return [number for number in (fitting, fitting + 1) if number and (number * size <= side or is_open)]


def _rests(region: _Region, size: int, down: int, along: int) -> tuple[_Region | None, _Region | None]:
    """Return what ``down`` x ``along`` tiles leave below, over the whole width, and beside them."""
    height, width = region.height - down * size, region.width - along * size
    below = _Region(height, region.width, region.open_below, region.open_right) if height > 0 else None
    if width <= 0:
        return below, None
    covered = min(region.height, down * size)
    return below, _Region(covered, width, region.open_below and below is None, region.open_right)


@cache
def _sizes(limit: int) -> tuple[int, ...]:
    """Return all sizes of tiles up to ``limit``, smallest first."""
    powers = range(max(1, limit).bit_length())
    return tuple(sorted(base << power for power in powers for base in _BASES if base << power <= limit))


@cache
def _tile_cost(size: int) -> float:
    """Return about how many cycles a tile takes: the products, and what grows only as its side."""
    return 0.95 * math.pow(size, math.log2(3)) + 18.0 * size + 1000.0
