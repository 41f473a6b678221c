"""What a case is: it prepares a checkout, and returns the function that measures it once."""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from qnode.bench.against.checkout import Checkout

Figures = dict[str, float]
Measure = Callable[[], Figures]


class Case(Protocol):
    """Prepares a checkout for one case, in a folder of its own. Raises CaseFailed, as the function does."""

    def __call__(self, checkout: Checkout, folder: Path, /, *, quick: bool) -> Measure:
        """Return the function that measures once."""
