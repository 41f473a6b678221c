"""All cases by name, and their figures of this code beside those of another checkout."""

import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Final

from msgspec import Struct

from qnode.bench.against import delivery, links, stages
from qnode.bench.against.case import Case, Figures, Measure
from qnode.bench.against.checkout import CaseFailed, Checkout
from qnode.bench.against.ratio import in_turn, ratio_of

CASES: Final[Mapping[str, Case]] = MappingProxyType(
    {
        "pair": links.pair,
        "turin": links.turin,
        "channel": stages.channel,
        "announcement": stages.announcement,
        "delivery": delivery.delivery,
        "far-away": delivery.far_away,
        **{name: stages.stage(name) for name in ("amplify", "sift", "cascade", "ldpc", "verify")},
    }
)
# Of all other figures, less is better.
MORE_IS_BETTER: Final = frozenset({links.PAIR_SHARE})
THIS, OTHER = "this", "the other"


class Compared(Struct, frozen=True, kw_only=True):
    """One figure of both: medians of the runs, and the ratio of this code to the other.

    ``low`` and ``high``: the interval that holds the true ratio with a probability of 95 %. ``note``: why
    there is no figure.
    """

    case: str
    name: str
    this: float | None = None
    other: float | None = None
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    runs: int = 0
    more_is_better: bool = False
    note: str = ""


class Side(Struct, frozen=True):
    """One of both checkouts."""

    version: str
    commit: str | None


class AgainstReport(Struct, frozen=True, kw_only=True):
    """The JSON object of `qnode bench --against DIR --json`."""

    processor: str
    cores: int
    python: str
    pairs: int
    this: Side
    other: Side
    results: list[Compared]


def compare(
    names: Sequence[str],
    this: Checkout,
    other: Checkout,
    *,
    pairs: int,
    quick: bool,
    tell: Callable[[str], None],
) -> Iterator[Compared]:
    """Yield the figures of each case when its last run is over; ``tell`` gets a line for each pair."""
    for name in names:
        with tempfile.TemporaryDirectory(prefix="qnode-against-") as folder:
            try:
                ours, theirs = (
                    _prepared(name, side, checkout, Path(folder, side), quick=quick)
                    for side, checkout in ((THIS, this), (OTHER, other))
                )
                found = []
                for number, (mine, its) in enumerate(in_turn(ours, theirs, pairs), 1):
                    found.append((mine, its))
                    both = [figure for figure in mine if figure in its]
                    told = ", ".join(f"{figure} {mine[figure]:.4g} ({its[figure]:.4g})" for figure in both)
                    tell(f"{number} of {pairs}: {told}")
            except CaseFailed as error:
                yield Compared(case=name, name=name, note=str(error))
            else:
                yield from compared(name, [mine for mine, _ in found], [its for _, its in found])


def _prepared(name: str, side: str, checkout: Checkout, folder: Path, *, quick: bool) -> Measure:
    """Prepare a checkout; return the function that measures it. The errors of both name the side."""
    folder.mkdir()
    with _blaming(side):
        measure = CASES[name](checkout, folder, quick=quick)

    def measure_once() -> Figures:
        with _blaming(side):
            return measure()

    return measure_once


@contextmanager
def _blaming(side: str) -> Iterator[None]:
    try:
        yield
    except CaseFailed as error:
        raise CaseFailed(f"not to be had of {side} checkout: {error}") from None


def compared(name: str, ours: list[Figures], theirs: list[Figures]) -> Iterator[Compared]:
    """Yield each figure of the runs of both, in pairs."""
    for figure in ours[0]:
        if figure not in theirs[0]:
            yield Compared(case=name, name=figure, note=f"not to be had of {OTHER} checkout")
            continue
        mine = [one[figure] for one in ours]
        other = [one[figure] for one in theirs]
        ratio = ratio_of(mine, other)
        yield Compared(
            case=name,
            name=figure,
            this=statistics.median(mine),
            other=statistics.median(other),
            ratio=ratio.ratio,
            low=ratio.low,
            high=ratio.high,
            runs=len(mine),
            more_is_better=figure in MORE_IS_BETTER,
        )
