"""Records a simulated link without daemons: Bob's tags and the key of Alice's symbols."""

import secrets
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import msgspec
import numpy as np

from qnode.config import LinkParameters, tables
from qnode.errors import ConfigError
from qnode.simulate.generator import KNOT_S, KNOTS_PER_S, Lit, TagGenerator
from qnode.simulate.parameters import SimulationParameters
from qnode.simulate.randomness import GOLDEN
from qnode.tags.recording import FORMAT, Manifest, RecordingWriter
from qnode.tags.types import TagBlock
from qnode.units import PS_PER_S

# The detectors reach their usual rates in the first knot (10 ms); it is not recorded.
_SETTLING_KNOTS = 1
_NEVER_PS = 2**62
_JITTER_PS = 5_000


def steady_clocks(simulation: SimulationParameters) -> SimulationParameters:
    """Return the same link with clocks whose difference is constant, so that a recording can be looped."""
    return msgspec.structs.replace(simulation, clock_walk_per_root_s=0.0)


def record(
    folder: Path,
    simulation: SimulationParameters,
    link: LinkParameters,
    duration_s: float,
    ending: AbstractContextManager[Callable[[], bool]] | None = None,
) -> Manifest:
    """Record ``duration_s`` of simulated time, in whole hundredths of a second, into the new ``folder``.

    ``ending`` is entered before the folder is made. When the function that it yields returns True, the
    recording ends one hundredth of a second later, and is complete, as if that had been its duration.

    Raises:
        ConfigError: an impossible duration, or a folder that cannot be used.
    """
    knots = round(duration_s * KNOTS_PER_S)
    if knots < 1 or abs(knots - duration_s * KNOTS_PER_S) > 1e-6:
        raise ConfigError(f"duration: expected whole hundredths of a second, got {duration_s:g} s")
    rate, first, end = link.source.qubit_rate_hz, _SETTLING_KNOTS, _SETTLING_KNOTS + knots
    generator = TagGenerator(simulation, link)
    symbol_key = secrets.randbits(64)
    arrivals_ps = np.zeros(end + 1)

    def blocks(knot: int) -> Iterator[TagBlock]:
        """Yield the tags of one knot."""
        arrivals_ps[knot] = generator.arrival_ps
        settings = simulation.settings_at((knot - first + 0.5) * KNOT_S)
        while generator.knot <= knot:
            yield generator.step(knot + 1, settings, Lit(symbol_key, 0))

    for knot in range(first):
        deque(blocks(knot), maxlen=0)
    with ending or nullcontext(_never) as told, RecordingWriter(folder) as writer:
        knot, last = first, list[TagBlock]()
        # Between the bins, so that jitter moves hardly any click over the seam of a loop.
        zero_ps = int(np.floor(generator.arrival_ps - link.source.period_ps / 4))
        while knot <= end:
            if knot < end - 1 and told():
                end = knot + 1
            for block in blocks(knot):
                if knot >= end - 1:
                    last.append(block)  # the end of the span is known only after it
                else:
                    _write(writer, block, zero_ps, _NEVER_PS)
            knot += 1
        arrivals_ps = arrivals_ps[: end + 1]
        span_ps = float(arrivals_ps[end] - arrivals_ps[first])
        # In a loop the first tags follow the last ones: no detector may click twice there within its dead
        # time.
        end_ps = zero_ps + round(span_ps) - _longest_dead_time_ps(simulation)
        for block in last:
            _write(writer, block, zero_ps, end_ps)
        slots_at = np.arange(first, end + 1) * rate // KNOTS_PER_S - first * rate // KNOTS_PER_S
        line_ps = arrivals_ps[first] + span_ps * (slots_at / slots_at[-1])
        started_at_s = float(int(time.time()))
        manifest = Manifest(
            format=FORMAT,
            simulated=True,
            run_id=secrets.randbits(63),
            started_at_s=started_at_s,
            origin_s=started_at_s + simulation.fibre_delay_s,
            slots=int(slots_at[-1]),
            span_ps=span_ps,
            clock_drift_ps=float(np.abs(arrivals_ps[first:] - line_ps).max()),
            disorder_ps=writer.disorder_ps,
            z_tags=writer.z_tags,
            x_tags=writer.x_tags,
            link=link,
            simulation=tables(simulation),
        )
        # Counted from the first slot that is recorded.
        shifted_key = (symbol_key + first * rate // KNOTS_PER_S * int(GOLDEN)) % 2**64
        writer.finish(manifest, shifted_key)
    return manifest


def _never() -> bool:
    return False


def _longest_dead_time_ps(simulation: SimulationParameters) -> int:
    """Return the longer dead time, at most a knot, plus the largest jitter."""
    longest_s = max(simulation.z_detector.dead_time_s, simulation.x_detector.dead_time_s)
    return round(min(longest_s, KNOT_S) * PS_PER_S) + (_JITTER_PS if longest_s > 0.0 else 0)


def _write(writer: RecordingWriter, block: TagBlock, zero_ps: int, end_ps: int) -> None:
    """Write the tags from ``zero_ps`` up to ``end_ps``, counted from ``zero_ps``."""
    within = (block.times_ps >= zero_ps) & (block.times_ps < end_ps)
    writer.add(block.times_ps[within] - zero_ps, block.channels[within])
