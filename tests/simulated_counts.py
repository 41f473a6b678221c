"""Counting clicks of a simulated link without synchronisation: equal clocks let slots follow by division."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import msgspec
import numpy as np
import pytest

from qnode.config import LinkParameters
from qnode.distill.counts import Pair, XCounts
from qnode.simulate.generator import KNOTS_PER_S, Lit, TagGenerator
from qnode.simulate.model import LinkRates
from qnode.simulate.parameters import Settings, SimulationParameters
from qnode.simulate.symbols import symbols
from qnode.tags.acceptance import Singled, one_per_slot
from qnode.tags.gates import Gate, gates
from qnode.tags.types import (
    OUTCOME_BOUNDARY,
    OUTCOME_CENTRAL,
    OUTCOME_LATE,
    X_CHANNEL,
    X_PLUS,
    Z_CHANNEL,
    Channels,
    Clicks,
    Codes,
    Slots,
    TagBlock,
    Times,
)

KEY = 0x0123_4567_89AB_CDEF
_BOUNDARY = {
    (0, 0): ("e_same", 1),
    (1, 1): ("e_same", 0),
    (0, 2): ("e_plus", 1),
    (2, 1): ("e_plus", 0),
    (0, 1): ("e_dark", 1),
}


@dataclass(frozen=True, eq=False)
class Tags:
    """All tags of some seconds."""

    times_ps: Times
    channels: Channels
    seconds: int
    first_arrival_ps: float


@dataclass(frozen=True, eq=False)
class Counts:
    """What was counted in some seconds."""

    n_z: Pair
    m_z: Pair
    x: XCounts
    clicks: tuple[int, int]
    n_z_plus: Pair
    boundary: int
    cross_clicks: int
    out_of_gate: int


def assert_counts_fit(counts: Counts, rates: LinkRates, seconds: float) -> None:
    """Every class within five standard deviations."""
    pairs = [(counts.n_z, rates.n_z), (counts.m_z, rates.m_z), (counts.n_z_plus, rates.n_z_plus)]
    pairs += [(getattr(counts.x, name), getattr(rates.x, name)) for name in XCounts.__struct_fields__]
    totals: list[tuple[float, float]] = [
        (counts.boundary, rates.boundary),
        (counts.cross_clicks, rates.cross_clicks),
    ]
    totals += [(counts.out_of_gate, rates.out_of_gate)]
    totals += [(got.signal, rate.signal) for got, rate in pairs] + [
        (got.decoy, rate.decoy) for got, rate in pairs
    ]
    for got, expected_hz in totals:
        expected = expected_hz * seconds
        assert abs(got - expected) <= 5 * math.sqrt(expected) + 3
    for got, load in zip(counts.clicks, (rates.z_detector, rates.x_detector), strict=True):
        assert got == pytest.approx(load.clicks_hz * seconds, abs=5 * math.sqrt(load.clicks_hz * seconds))


def still(simulation: SimulationParameters) -> SimulationParameters:
    """Return the same link with clocks that run alike and a fibre that does not change."""
    return msgspec.structs.replace(
        simulation, clock_offset_ppm=0.0, clock_walk_per_root_s=0.0, fibre_delay_drift_ns_per_hour=0.0
    )


def _blocks(
    simulation: SimulationParameters, link: LinkParameters, seconds: int, settings: Settings | None
) -> Iterator[tuple[TagGenerator, TagBlock]]:
    """Yield the blocks of ``seconds`` of an uninterrupted run, and what makes them."""
    generator = TagGenerator(simulation, link)
    settings = simulation.settings_at(0.0) if settings is None else settings
    while generator.knot < seconds * KNOTS_PER_S:
        yield generator, generator.step(seconds * KNOTS_PER_S, settings, Lit(KEY, 0))


def record(
    simulation: SimulationParameters, link: LinkParameters, seconds: int, settings: Settings | None = None
) -> Tags:
    """Generate ``seconds`` of tags of an uninterrupted run."""
    made = list(_blocks(simulation, link, seconds, settings))
    return Tags(
        np.concatenate([block.times_ps for _, block in made]),
        np.concatenate([block.channels for _, block in made]),
        seconds,
        made[0][0].first_arrival_ps,
    )


def counted(
    simulation: SimulationParameters, link: LinkParameters, seconds: int, settings: Settings | None = None
) -> Counts:
    """Count ``seconds`` of an uninterrupted run while they are generated, however many tags there are."""
    counter: _Counter | None = None
    for generator, block in _blocks(simulation, link, seconds, settings):
        counter = counter or _Counter(link, generator.first_arrival_ps)
        counter.add(block.times_ps, block.channels, block.until_ps)
    assert counter is not None
    return counter.finish()


def count(tags: Tags, link: LinkParameters) -> Counts:
    """Sort the tags into the classes of a block, one click a slot."""
    counter = _Counter(link, tags.first_arrival_ps)
    counter.add(tags.times_ps, tags.channels, None)
    return counter.finish()


def _inside(times: np.ndarray, gate: Gate, period: float) -> tuple[np.ndarray, Slots]:
    """Return which clicks (and with them which slots) lie in ``gate``."""
    shifted = times - gate.centre_ps + period / 2.0
    slots = np.floor(shifted / period).astype(np.int64)
    within = np.abs(shifted - slots * period - period / 2.0) < gate.half_width_ps
    return within, slots[within]


def _pair(codes: Codes) -> Pair:
    decoys = int(np.count_nonzero(codes & 4))
    return Pair(codes.size - decoys, decoys)


class _Counter:
    """Counts tags block by block; the last slots of each wait for the tags of the next."""

    def __init__(self, link: LinkParameters, first_arrival_ps: float) -> None:
        self._source, self._gates = link.source, gates(link.source, link.receiver)
        self._first_arrival_ps = first_arrival_ps
        self._random = np.random.default_rng(5)
        self._since_ps, self._channels = np.empty(0), np.empty(0, np.int8)
        self._reached = -(1 << 62)
        self._sums: list[Counts] = []
        self._tags, self._in_gates = np.zeros(2, np.int64), 0

    def add(self, times_ps: Times, channels: Channels, until_ps: int | None) -> None:
        """Take the next tags, complete before ``until_ps``; None: there are no more."""
        period = self._source.period_ps
        self._tags += np.bincount(channels, minlength=2)
        since = np.concatenate((self._since_ps, times_ps - self._first_arrival_ps))
        channels = np.concatenate((self._channels, channels))
        end = 1 << 62
        if until_ps is not None:
            end = math.floor((until_ps - self._first_arrival_ps) / period) - 2
        self._count(since[channels == Z_CHANNEL], since[channels == X_CHANNEL], end)
        left = since >= (end - 2) * period
        self._since_ps, self._channels, self._reached = since[left], channels[left], end

    def finish(self) -> Counts:
        """Return the sums."""
        if self._reached < 1 << 62:
            self.add(np.empty(0, np.int64), np.empty(0, np.int8), None)
        return Counts(
            sum_of([one.n_z for one in self._sums]),
            sum_of([one.m_z for one in self._sums]),
            XCounts(**{
                name: sum_of([getattr(one.x, name) for one in self._sums])
                for name in XCounts.__struct_fields__
            }),
            (int(self._tags[Z_CHANNEL]), int(self._tags[X_CHANNEL])),
            sum_of([one.n_z_plus for one in self._sums]),
            sum(one.boundary for one in self._sums),
            sum(one.cross_clicks for one in self._sums),
            int(self._tags.sum()) - self._in_gates,
        )  # fmt: skip

    def _count(self, z: np.ndarray, x: np.ndarray, end: int) -> None:
        """Count the slots from `_reached` to ``end``."""
        source, placed = self._source, self._gates
        by_outcome = []
        for times, gate in ((z, placed.early), (z, placed.late), (x, placed.central), (x, placed.boundary)):
            slots = _inside(times, gate, source.period_ps)[1]
            by_outcome.append(slots[(slots >= self._reached) & (slots < end)])
        singled = _one_per_slot(by_outcome, self._random)
        slots, outcomes = singled.clicks.slots, singled.clicks.outcomes
        codes = symbols(KEY, slots, source)
        in_z = outcomes <= OUTCOME_LATE
        sifted = in_z & (codes & 3 != X_PLUS)
        central = codes[outcomes == OUTCOME_CENTRAL]
        slots_at = slots[outcomes == OUTCOME_BOUNDARY]
        pair = np.stack([symbols(KEY, slots_at - 1, source), symbols(KEY, slots_at, source)])
        classes: dict[str, list[Codes]] = {"e_same": [], "e_plus": [], "e_dark": []}
        for (before, own), (name, carrier) in _BOUNDARY.items():
            classes[name].append(pair[carrier, (pair[0] & 3 == before) & (pair[1] & 3 == own)])
        self._in_gates += sum(part.size for part in by_outcome)
        self._sums.append(
            Counts(
                _pair(codes[sifted]),
                _pair(codes[sifted & (codes & 3 != outcomes)]),
                XCounts(
                    c_plus=_pair(central[central & 3 == X_PLUS]),
                    c_z=_pair(central[central & 3 != X_PLUS]),
                    **{name: _pair(np.concatenate(codes)) for name, codes in classes.items()},
                ),
                (0, 0),
                _pair(codes[in_z & (codes & 3 == X_PLUS)]),
                int(slots_at.size),
                singled.cross_clicks.shape[0],
                0,
            )
        )


def sum_of(pairs: list[Pair]) -> Pair:
    """Return the sums of both intensities."""
    return Pair(sum(one.signal for one in pairs), sum(one.decoy for one in pairs))


def _one_per_slot(by_outcome: list[Slots], random: np.random.Generator) -> Singled:
    """Return the clicks as the receiver keeps them, given the slots of each outcome."""
    slots = np.concatenate(by_outcome)
    outcomes = np.repeat(np.arange(4, dtype=np.uint8), [part.size for part in by_outcome])
    order = np.argsort(slots, kind="stable")
    together = Clicks(slots[order], outcomes[order])
    return one_per_slot(together, random.bytes)
