"""Many random sets of counts for every estimator, with a count of forbidden results.

Forbidden: an error other than a refusal, a length below zero or above the sifted bits, more key from a worse
block.
"""

import math
import os
from collections.abc import Iterator
from typing import Final

import msgspec
import numpy as np

from qnode.bench.count_sets import KINDS, CountSet, count_set, worsened
from qnode.distill.keylength import EstimatorInput, KeyLength, binary_entropy, estimate
from qnode.errors import FieldError
from qnode.offline.workers import worker_processes

CLOSED_FORMS: Final = ("rusca2018", "eur", "wiesemann2024")
# For `three_state`, X errors that only signals make are evidence of several photons (docs/three_state.md).
# Its tangent is this near to the best one, as a share of the sifted bits. Leak and eps_cor are subtracted
# from the length alone, so the tangent does not matter for them.
_EVIDENCE: Final = {("three_state", "errors X")}
_TANGENT: Final = {"three_state": 2e-5}
_CHUNK: Final = 1000
_EXAMPLES: Final = 20


class KindResult(msgspec.Struct, kw_only=True):
    """The results of the estimators for all sets of one kind; ``accepted``: every estimator gave key."""

    sets: int = 0
    accepted: int = 0
    estimates: int = 0
    with_key: int = 0
    refused: int = 0
    crashed: int = 0
    out_of_range: int = 0

    def add(self, other: "KindResult") -> None:
        """Add the figures of ``other``."""
        for name in self.__struct_fields__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


class KeyLengthSoak(msgspec.Struct, kw_only=True):
    """The result of a soak. ``worse_pairs``: comparisons of a block with a worse one, by kind of change.

    ``more_key``: the comparisons in which the worse block gave more. ``examples`` names sets (by index) that
    failed.
    """

    kinds: dict[str, KindResult]
    refused_fields: dict[str, int]
    worse_pairs: dict[str, int]
    more_key: dict[str, int]
    examples: list[str]

    @classmethod
    def empty(cls) -> "KeyLengthSoak":
        """Return a result of no sets."""
        return cls(
            kinds={kind: KindResult() for kind in KINDS},
            refused_fields={},
            worse_pairs={},
            more_key={},
            examples=[],
        )

    @property
    def sets(self) -> int:
        """Return the number of sets of all kinds."""
        return sum(kind.sets for kind in self.kinds.values())

    @property
    def failures(self) -> int:
        """Return the number of forbidden results."""
        return sum(self.more_key.values()) + sum(k.crashed + k.out_of_range for k in self.kinds.values())

    def add(self, other: "KeyLengthSoak") -> None:
        """Add the figures of ``other``."""
        for kind, result in other.kinds.items():
            self.kinds[kind].add(result)
        for mine, others in (
            (self.refused_fields, other.refused_fields),
            (self.worse_pairs, other.worse_pairs),
            (self.more_key, other.more_key),
        ):
            for name, count in others.items():
                mine[name] = mine.get(name, 0) + count
        self.examples = (self.examples + other.examples)[:_EXAMPLES]


def soak_key_lengths(
    n_sets: int,
    *,
    seed: int,
    estimators: tuple[str, ...] = CLOSED_FORMS,
    compare_one_in: int = 64,
    processes: int | None = None,
) -> Iterator[KeyLengthSoak]:
    """Run the estimators on ``n_sets`` sets and yield the sum so far after every thousand.

    One set in ``compare_one_in`` is also compared with worse ones. ``processes``: their number, None: one per
    processor; the result does not depend on it.
    """
    done = KeyLengthSoak.empty()
    starts = range(0, n_sets, _CHUNK)
    jobs = [(seed, start, min(start + _CHUNK, n_sets), estimators, compare_one_in) for start in starts]
    count = processes or os.cpu_count() or 1
    if count == 1:
        for job in jobs:
            done.add(_chunk(job))
            yield done
        return
    with worker_processes(count) as workers:
        for part in workers.map(_chunk, jobs):
            done.add(part)
            yield done


def _chunk(job: tuple[int, int, int, tuple[str, ...], int]) -> KeyLengthSoak:
    seed, first, end, estimators, compare_one_in = job
    found = KeyLengthSoak.empty()
    for index in range(first, end):
        chosen = count_set(seed, index)
        if index % compare_one_in:
            _look_at(chosen, index, estimators, found, None)
        else:
            _look_at(chosen, index, estimators, found, np.random.default_rng((seed, index, 1)))
    return found


def variants(inputs: EstimatorInput, estimators: tuple[str, ...]) -> Iterator[tuple[str, EstimatorInput]]:
    """Yield each estimator with its inputs; ``eur`` comes with both of its statistics.

    ``three_state`` and ``wiesemann2024`` have one vacuum rule, and the former one X mode.
    """
    replace = msgspec.structs.replace
    for estimator in estimators:
        if estimator == "eur":
            yield estimator, replace(inputs, statistics="hoeffding")
        asked = inputs if estimator in ("rusca2018", "eur") else replace(inputs, vacuum_rule="min")
        if estimator == "three_state" and inputs.boundary is not None:
            asked = replace(asked, x_mode="visibility + asymmetry")
        yield estimator, asked


def _look_at(
    chosen: CountSet,
    index: int,
    estimators: tuple[str, ...],
    found: KeyLengthSoak,
    rng: np.random.Generator | None,
) -> None:
    kind = found.kinds[chosen.kind]
    kind.sets += 1
    lengths = []
    worse = {} if rng is None else worsened(rng, chosen.inputs)
    for estimator, inputs in variants(chosen.inputs, estimators):
        kind.estimates += 1
        result = _estimate(inputs, estimator, kind, found, f"set {index}, {estimator}")
        lengths.append(0 if result is None else result.length)
        if result is None:
            continue
        for what, changed in worse.items():
            if (estimator, what) in _EVIDENCE:
                continue
            asked = msgspec.structs.replace(
                changed,
                statistics=inputs.statistics,
                vacuum_rule=inputs.vacuum_rule,
                x_mode=inputs.x_mode,
            )
            name = f"set {index}, {estimator}, {what}"
            aside = KindResult()  # the share of refused sets counts the drawn sets alone
            after = _estimate(asked, estimator, aside, found, name)
            kind.crashed += aside.crashed
            kind.out_of_range += aside.out_of_range
            if after is None:
                continue
            found.worse_pairs[what] = found.worse_pairs.get(what, 0) + 1
            step = one_step_bits(after) if "errors" in what else 0.0
            if what not in ("leak", "eps_cor"):
                step += _TANGENT.get(estimator, 0.0) * inputs.n_z.total
            if after.length > result.length + step:
                found.more_key[what] = found.more_key.get(what, 0) + 1
                found.examples.append(f"{name}: {after.length} bits after {result.length}")
    kind.with_key += sum(length > 0 for length in lengths)
    kind.accepted += all(length > 0 for length in lengths)


def _estimate(
    inputs: EstimatorInput, estimator: str, kind: KindResult, found: KeyLengthSoak, name: str
) -> KeyLength | None:
    """Return the result, or None after counting a refusal or a crash."""
    try:
        result = estimate(inputs, estimator)
    except FieldError as refused:
        kind.refused += 1
        found.refused_fields[refused.field] = found.refused_fields.get(refused.field, 0) + 1
        return None
    except Exception as crash:  # noqa: BLE001  # the soak looks for any other error
        kind.crashed += 1
        found.examples.append(f"{name}: {type(crash).__name__}: {crash}")
        return None
    if not (0 <= result.length <= inputs.n_z.total and math.isfinite(result.length_unfloored)):
        kind.out_of_range += 1
        found.examples.append(f"{name}: {result.length} bits of {inputs.n_z.total:.0f}")
    return result


def one_step_bits(result: KeyLength) -> float:
    """Return the bits for one unseen error: exact sampling bounds count whole errors and move in steps."""
    c, phi = result.s_z1_lower, result.phi_z_upper
    if c < 1 or result.length == 0:
        return 0.0
    return c * (binary_entropy(min(0.5, phi + 1 / math.floor(c))) - binary_entropy(phi)) + 1
