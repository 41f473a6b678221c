"""All stages of `qnode bench` by name, in the order of a photon's path."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from types import MappingProxyType
from typing import Final

from qnode.bench.amplification import amplification, verification
from qnode.bench.correction import correction
from qnode.bench.help_pages import help_pages
from qnode.bench.pair import pair
from qnode.bench.results import QUICK, THOROUGH, BenchResult, Effort, Machine
from qnode.bench.sifting import sift
from qnode.bench.start import start
from qnode.bench.whole_link import turin
from qnode.distill.reconcile import METHODS

Stage = Callable[[Machine, Effort], Iterator[BenchResult]]


def stages(*, quick: bool) -> Mapping[str, Stage]:
    """Return the stages this version has; ``quick`` omits long measurements."""
    found: dict[str, Stage] = {"sift": sift}
    for method in METHODS:
        found[method] = partial(correction, method, all_sizes=not quick)
    found["verify"] = verification
    found["amplify"] = partial(amplification, all_sizes=not quick)
    found["help"] = help_pages
    found["start"] = start
    found["turin"] = turin
    found["pair"] = pair
    return MappingProxyType(found)


def effort(*, quick: bool) -> Effort:
    """Return the measuring time of each figure."""
    return QUICK if quick else THOROUGH


NAMES: Final = tuple(stages(quick=False))
