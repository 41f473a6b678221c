"""Every list of words to choose from is in the code once, and what works on them knows all of them."""

import ast
import functools
from pathlib import Path
from typing import get_args

import pytest

from qnode import choices
from qnode.distill.keylength import ESTIMATORS
from qnode.distill.reconcile import METHODS

TOP = Path(__file__).parent.parent
LISTS = {name: kind for name, kind in vars(choices).items() if isinstance((*get_args(kind), 0)[0], str)}


@functools.cache
def lists_of_words() -> list[tuple[str, set[str]]]:
    """Return each Literal, list, tuple and set of words in the code, with its place."""
    found: list[tuple[str, set[str]]] = []
    for path in [*(TOP / "qnode").rglob("*.py"), *(TOP / "drivers").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.List | ast.Tuple | ast.Set):
                constants = [one.value for one in node.elts if isinstance(one, ast.Constant)]
                words = {one for one in constants if isinstance(one, str)}
                if len(words) == len(node.elts) > 1:
                    found.append((f"{path.relative_to(TOP)}:{node.lineno}", words))
    return found


@pytest.mark.parametrize("name", LISTS)
def test_a_list_of_choices_is_written_once(name: str) -> None:
    words = set(choices.choices_of(LISTS[name]))
    places = [place for place, others in lists_of_words() if others == words]
    assert len(places) == 1, places


def test_every_estimator_and_every_method_that_can_be_chosen_is_there() -> None:
    assert tuple(ESTIMATORS) == choices.choices_of(choices.EstimatorName)
    assert tuple(METHODS) == choices.choices_of(choices.ReconciliationMethod)
