"""Counting clicks of a simulated link without synchronisation: equal clocks let slots follow by division."""

from dataclasses import dataclass

import msgspec
import numpy as np

from qnode.config import LinkParameters
from qnode.distill.counts import Pair, XCounts
from qnode.simulate.generator import KNOTS_PER_S, Lit, TagGenerator
from qnode.simulate.parameters import Settings, SimulationParameters
from qnode.simulate.symbols import symbols
from qnode.tags.gates import Gate, gates
from qnode.tags.types import X_CHANNEL, X_PLUS, Z_CHANNEL, Channels, Codes, Slots, Times

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


def still(simulation: SimulationParameters) -> SimulationParameters:
    """Return the same link with clocks that run alike and a fibre that does not change."""
    return msgspec.structs.replace(
        simulation, clock_offset_ppm=0.0, clock_walk_per_root_s=0.0, fibre_delay_drift_ns_per_hour=0.0
    )


def record(
    simulation: SimulationParameters, link: LinkParameters, seconds: int, settings: Settings | None = None
) -> Tags:
    """Generate ``seconds`` of tags of an uninterrupted run."""
    generator = TagGenerator(simulation, link)
    settings = simulation.settings_at(0.0) if settings is None else settings
    blocks = []
    while generator.knot < seconds * KNOTS_PER_S:
        blocks.append(generator.step(seconds * KNOTS_PER_S, settings, Lit(KEY, 0)))
    return Tags(
        np.concatenate([block.times_ps for block in blocks]),
        np.concatenate([block.channels for block in blocks]),
        seconds,
        generator.first_arrival_ps,
    )


def _inside(times: np.ndarray, gate: Gate, period: float) -> tuple[np.ndarray, Slots]:
    """Return which clicks (and with them which slots) lie in ``gate``."""
    shifted = times - gate.centre_ps + period / 2.0
    slots = np.floor(shifted / period).astype(np.int64)
    within = np.abs(shifted - slots * period - period / 2.0) < gate.half_width_ps
    return within, slots[within]


def _pair(codes: Codes) -> Pair:
    decoys = int(np.count_nonzero(codes & 4))
    return Pair(codes.size - decoys, decoys)


def count(tags: Tags, link: LinkParameters) -> Counts:
    """Sort the tags into the classes of a block."""
    source, period = link.source, link.source.period_ps
    placed = gates(source, link.receiver)
    since = tags.times_ps - tags.first_arrival_ps
    z, x = since[tags.channels == Z_CHANNEL], since[tags.channels == X_CHANNEL]
    kept, wrong = [], []
    for outcome, gate in enumerate((placed.early, placed.late)):
        codes = symbols(KEY, _inside(z, gate, period)[1], source)
        codes = codes[codes & 3 != X_PLUS]
        kept.append(codes)
        wrong.append(codes[codes & 3 != outcome])
    central = symbols(KEY, _inside(x, placed.central, period)[1], source)
    slots = _inside(x, placed.boundary, period)[1]
    pair = np.stack([symbols(KEY, slots - 1, source), symbols(KEY, slots, source)])
    classes: dict[str, list[Codes]] = {"e_same": [], "e_plus": [], "e_dark": []}
    for (before, own), (name, carrier) in _BOUNDARY.items():
        classes[name].append(pair[carrier, (pair[0] & 3 == before) & (pair[1] & 3 == own)])
    return Counts(
        _pair(np.concatenate(kept)),
        _pair(np.concatenate(wrong)),
        XCounts(
            c_plus=_pair(central[central & 3 == X_PLUS]),
            c_z=_pair(central[central & 3 != X_PLUS]),
            **{name: _pair(np.concatenate(codes)) for name, codes in classes.items()},
        ),
        (z.size, x.size),
    )
