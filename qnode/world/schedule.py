"""What happens in a run, drawn from its seed before it begins."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from qnode.choices import ROLES, Role

# What may happen, and how often beside the others.
FAULTS: Final[Mapping[str, float]] = MappingProxyType(
    {
        "cut": 4.0,
        "silence": 2.0,
        "silence one way": 2.0,
        "down": 2.0,
        "slow path": 1.0,
        "faults of the next connections": 4.0,
        "at a message": 10.0,
        "stranger": 1.0,
        "stop": 1.5,
        "kill": 1.5,
        "power": 2.0,
        "power in a change": 5.0,
        "disk full": 1.0,
        "disk hangs": 1.5,
        "old database": 1.0,
        "damaged unit": 0.7,
        "emission restarts": 1.5,
        "transmitter gone": 1.0,
        "slots counted anew": 1.0,
        "no lock": 1.0,
        "noise": 1.5,
        "short record": 0.7,
        "a correction that errs": 1.5,
        "time of day set": 0.7,
        "new pre-shared key": 0.4,
        "burst of requests": 1.5,
    }
)

MOST_FAULTS: Final = 12
LIVENESS_FROM_S: Final = 480.0
"""Shorter runs end before it could be seen whether the sites recover in time."""


@dataclass(frozen=True)
class Fault:
    """``name`` of `FAULTS` at ``at_s``, for ``lasts_s`` where it lasts; ``seed``: of what else it draws."""

    at_s: float
    name: str
    lasts_s: float
    seed: int


@dataclass(frozen=True)
class Schedule:
    """All that is fixed before a run begins. Faults end at ``heals_at_s``, the run at ``ends_at_s``."""

    seed: int
    ends_at_s: float
    heals_at_s: float
    block_s: float
    delay_s: float
    pads: int
    refill_pads: int
    most_chunks: int
    key_lifetime_s: float
    stock_per_pair: int
    pause_s: Mapping[Role, float]
    """Between the requests of a site's masters, at the mean."""
    slow_share: float
    """Of the work in threads; late by ``late_s`` at the mean."""
    late_s: float
    faults: Sequence[Fault] = field(default=())

    @property
    def checks_liveness(self) -> bool:
        """Tell whether the sites are held to recover in time."""
        return self.ends_at_s >= LIVENESS_FROM_S


def drawn_schedule(
    seed: int, duration_s: float, *, forced: Sequence[str] = (), most_faults: int = MOST_FAULTS
) -> Schedule:
    """Return the schedule of ``seed``; ``forced``: faults that happen in any case, besides what is drawn."""
    rng = random.Random(f"schedule {seed}")
    heals_at_s = 0.6 * duration_s
    names = list(FAULTS)
    chosen = [*forced, *rng.choices(names, list(FAULTS.values()), k=rng.randint(0, most_faults))]
    faults = sorted(
        (
            Fault(
                at_s=rng.uniform(1.0, heals_at_s),
                name=name,
                lasts_s=rng.choice((rng.uniform(0.0, 3.0), rng.uniform(0.0, 30.0))),
                seed=rng.randrange(1 << 30),
            )
            for name in chosen
        ),
        key=lambda fault: fault.at_s,
    )
    return Schedule(
        seed=seed,
        ends_at_s=duration_s,
        heals_at_s=heals_at_s,
        block_s=30.0 if duration_s >= LIVENESS_FROM_S else 8.0,
        delay_s=rng.choice((0.0005, 0.0005, 0.005, 0.1)),
        pads=rng.choice((400, 400, 400, 40)),
        refill_pads=rng.choice((2, 3, 6)),
        most_chunks=rng.choice((1 << 20, 1 << 20, 1 << 20, 60)),
        key_lifetime_s=rng.choice((1e6, 1e6, 1e6, 90.0)),
        stock_per_pair=rng.choice((0, 4, 16)),
        pause_s={role: rng.choice((2.0, 5.0, 15.0, 60.0)) for role in ROLES},
        slow_share=rng.choice((0.0, 0.02, 0.1)),
        late_s=rng.choice((0.001, 0.02, 0.2)),
        faults=tuple(faults),
    )
