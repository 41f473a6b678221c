"""The whole link: both daemons as processes, over TCP and TLS, at full speed, to stored keys."""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import trio

from qnode.bench.links import TURIN
from qnode.bench.results import BenchResult, Effort, Machine, summary
from qnode.loopback.prepare import LoopbackConfig, Staging, prepare
from qnode.loopback.result import LinkResult
from qnode.loopback.run import run_prepared
from qnode.operate.status.model import NodeStatus

_SETTLED_S = 2.0  # a link needs some seconds to reach its full rate


@dataclass
class Meter:
    """Reads a growing figure from Bob's status and turns it into rates over wall time.

    ``reading``: the figure, 0 before it grows. The first two seconds after its first growth are not counted.
    Rates are means over at least ``interval_s``.
    """

    reading: Callable[[NodeStatus], float]
    seconds: float
    interval_s: float = 2.0
    rates: list[float] = field(default_factory=list)
    _since: tuple[float, float] | None = None
    _began_s: float | None = None

    def see(self, _result: LinkResult, status: NodeStatus) -> bool:
        """Add a status; return whether the measurement is complete."""
        now_s, value = trio.current_time(), self.reading(status)
        if self._began_s is None:
            if value > 0.0:
                self._began_s = now_s
            return False
        if now_s < self._began_s + _SETTLED_S:
            return False
        if self._since is None:
            self._since = now_s, value
        elif now_s - self._since[0] >= self.interval_s:
            self.rates.append((value - self._since[1]) / (now_s - self._since[0]))
            self._since = now_s, value
        return bool(self.rates) and now_s >= self._began_s + _SETTLED_S + self.seconds


def run_metered(config: LoopbackConfig, meter: Meter) -> LinkResult:
    """Run a link in a folder of its own until ``meter`` has seen enough; return the result."""
    with tempfile.TemporaryDirectory(prefix="qnode-bench-") as directory:
        prepared = prepare(Path(directory), config, Staging())
        outcome = trio.run(partial(run_prepared, prepared, config.link.source.p_z, meter.see, exchange=False))
    return outcome.result


def turin(_machine: Machine, effort: Effort) -> Iterator[BenchResult]:
    """Measure simulated seconds a second of the Turin link, to stored keys; wall time, both cores."""
    meter = Meter(_tag_time_s, effort.link_s)
    result = run_metered(TURIN, meter)
    wanted = TURIN.link.block.sifted_bits
    n_bits = wanted if isinstance(wanted, int) else None
    yield summary("turin", meter.rates, "simulated s / s", n_bits=n_bits, qber=result.qber_z, f=result.f_ec)


def _tag_time_s(status: NodeStatus) -> float:
    """Return the tag time that has passed since there was lock."""
    return status.quantum.tag_time_s or 0.0 if status.quantum.locked else 0.0
