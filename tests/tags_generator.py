"""A small generator of Bob's tags for the tests of `qnode.tags` and of sifting: no physics beyond timing."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from qnode.kernels import kernel
from qnode.tags.types import DECOY, X_CHANNEL, X_PLUS, Z_CHANNEL, Z_EARLY, Z_LATE, Codes, Slots, TagBlock

SLOT_HZ = 600_000_000
PERIOD_PS = 1e12 / SLOT_HZ


def symbols(slots: Slots) -> Codes:
    """Alice's symbols: a keyed counter generator, so that any slot can be looked up. Half Z, 0.3 decoy."""
    codes = np.empty(slots.shape, np.uint8)
    _symbols(np.ascontiguousarray(slots), codes)
    return codes


@kernel
def _symbols(slots: Slots, codes: Codes) -> None:
    for i in range(slots.size):
        x = np.uint64(slots[i]) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(0xD1B54A32D192ED03)
        x ^= x >> np.uint64(30)
        x *= np.uint64(0xBF58476D1CE4E5B9)
        x ^= x >> np.uint64(27)
        x *= np.uint64(0x94D049BB133111EB)
        x ^= x >> np.uint64(31)
        is_z = np.uint64((x & np.uint64(1 << 20)) != 0)
        decoy = np.uint64((x & np.uint64(0xFFFF)) < np.uint64(19661))
        state = is_z * (x >> np.uint64(63)) + (np.uint64(1) - is_z) * np.uint64(X_PLUS)
        codes[i] = state + decoy * np.uint64(DECOY)


@dataclass
class Link:
    """What the tags look like. Rates are of clicks, each detector's half of them, noise uniform in time."""

    rate_hz: float = 31_000.0
    noise_share: float = 0.05
    qber: float = 0.01
    visibility: float = 0.95
    spacing_ps: float = 800.0
    jitter_ps: float = 92.0
    ppm: float = 30.0
    walk: float = 1e-9
    drift_ps_per_s: float = 2.8
    dead_ps: float = 25e6
    start_ps: int = 7_000_000_000
    first_slot: int = 123_456_789
    off_s: tuple[float, float] = (0.0, 0.0)
    dark_hz: float = 3500.0
    step_s: float = 1e9
    step_ps: float = 0.0
    lookup: Callable[[Slots], Codes] = field(default=symbols)

    def tags(self, seconds: float, seed: int) -> "Recorded":
        """Generate ``seconds`` of tags; slot ``first_slot`` arrives at Bob's time ``start_ps``."""
        rng = np.random.default_rng(seed)
        parts = [self._z_arm(rng, seconds), self._x_arm(rng, seconds)]
        alice_ps = np.concatenate(parts)
        channels = np.repeat(np.array([Z_CHANNEL, X_CHANNEL], np.int8), [part.size for part in parts])
        grid = np.arange(0.0, seconds + 0.01, 1e-3)
        rate = np.cumsum(rng.normal(0.0, self.walk * np.sqrt(1e-3), grid.size))
        phase = np.cumsum(rate) * 1e-3 * 1e12 + self.drift_ps_per_s * grid
        bob_ps = alice_ps * (1.0 + self.ppm * 1e-6) + np.interp(alice_ps * 1e-12, grid, phase)
        bob_ps += np.where(alice_ps > self.step_s * 1e12, self.step_ps, 0.0)
        times = np.rint(bob_ps).astype(np.int64) + self.start_ps
        order = np.argsort(times, kind="stable")
        until = self.start_ps + int(seconds * 1e12 * (1.0 + self.ppm * 1e-6))
        return Recorded(TagBlock(times[order], channels[order], until), self)

    def _moments(self, rng: np.random.Generator, seconds: float) -> npt.NDArray[np.float64]:
        mean = 2e12 / self.rate_hz
        n = int(seconds * 1e12 / mean * 1.1) + 100
        dead = min(self.dead_ps, 0.9 * mean)
        moments = np.cumsum(dead + rng.exponential(mean - dead, n))
        return moments[moments < seconds * 1e12 - 1e6]

    def _lit(self, rng: np.random.Generator, moments: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
        off = (moments >= self.off_s[0] * 1e12) & (moments < self.off_s[1] * 1e12)
        return ~off & (rng.random(moments.size) >= self.noise_share)

    def _thin(
        self, rng: np.random.Generator, moments: npt.NDArray[np.float64], times: npt.NDArray[np.float64]
    ) -> npt.NDArray[np.float64]:
        off = (moments >= self.off_s[0] * 1e12) & (moments < self.off_s[1] * 1e12)
        keep = ~off | (rng.random(moments.size) < self.dark_hz / (self.rate_hz / 2))
        jitter = rng.normal(0.0, self.jitter_ps, moments.size)
        return np.where(self._is_light, times + jitter, moments)[keep]

    def _z_arm(self, rng: np.random.Generator, seconds: float) -> npt.NDArray[np.float64]:
        moments = self._moments(rng, seconds)
        self._is_light = self._lit(rng, moments)
        slots = (moments / PERIOD_PS).astype(np.int64)
        kind = self.lookup(slots + self.first_slot) & 3
        coin = rng.integers(0, 2, slots.size).astype(np.uint8)
        late = np.where(kind == X_PLUS, coin, kind ^ (rng.random(slots.size) < self.qber))
        return self._thin(rng, moments, slots * PERIOD_PS + late * self.spacing_ps)

    def _x_arm(self, rng: np.random.Generator, seconds: float) -> npt.NDArray[np.float64]:
        moments = self._moments(rng, seconds)
        self._is_light = self._lit(rng, moments)
        base = (moments / PERIOD_PS).astype(np.int64)
        # Among the next slots the first event that light can cause: central, short-arm early, long-arm late.
        times = np.zeros(base.size)
        undecided = np.ones(base.size, np.bool_)
        for step in range(12):
            slots = base + step
            kind = self.lookup(slots + self.first_slot) & 3
            draw = rng.random(base.size)
            which = rng.integers(
                0, 4, base.size
            )  # 0, 1: central; 2: early by the short arm; 3: late by the long
            central = np.where(kind == X_PLUS, (1.0 - self.visibility), 1.0)
            chance = np.where(
                which < 2,
                central,
                np.where(kind == X_PLUS, 0.5, np.where(which == 2, kind == Z_EARLY, kind == Z_LATE)),
            )
            hit = undecided & (draw < chance)
            arrival = np.where(which < 2, self.spacing_ps, np.where(which == 2, 0.0, 2 * self.spacing_ps))
            times[hit] = (slots * PERIOD_PS + arrival)[hit]
            undecided &= ~hit
        return self._thin(rng, moments, np.where(undecided, moments, times))


@dataclass
class Recorded:
    """Generated tags with the truth about them."""

    tags: TagBlock
    link: Link

    def blocks(self, span_s: float = 0.05, scramble_ps: int = 0, seed: int = 0) -> Iterator[TagBlock]:
        """Yield blocks as a TDC would; ``scramble_ps``: tags are noticed that much late at random."""
        times, channels = self.tags.times_ps, self.tags.channels
        noticed = times
        if scramble_ps:
            noticed = times + np.random.default_rng(seed).integers(0, scramble_ps, times.size)
        order = np.argsort(noticed, kind="stable")
        noticed = noticed[order]
        border = self.link.start_ps
        first = 0
        while border < self.tags.until_ps:
            border = min(border + int(span_s * 1e12), self.tags.until_ps)
            last = int(np.searchsorted(noticed, border))
            chosen = order[first:last]
            yield TagBlock(times[chosen], channels[chosen], border)
            first = last
