"""`qnode soak --keylength`: the sets are what they claim, failures are seen, and no estimator has one."""

import json
from typing import Any

import msgspec.structs
import pytest
from click.testing import CliRunner

from qnode.bench import keylength_soak
from qnode.bench.count_sets import KINDS, count_set
from qnode.bench.keylength_soak import KeyLengthSoak, soak_key_lengths
from qnode.cli.exits import EXIT_USAGE
from qnode.cli.soak import soak_command
from qnode.distill.keylength import EstimatorInput, KeyLength, estimate


def last(n_sets: int, **options: Any) -> KeyLengthSoak:
    *_, result = soak_key_lengths(n_sets, seed=4, processes=1, **options)
    return result


@pytest.fixture(scope="module")
def soaked() -> KeyLengthSoak:
    return last(700, compare_one_in=20)


def test_no_estimator_crashes_or_gives_more_bits_than_were_sifted(soaked: KeyLengthSoak) -> None:
    assert soaked.examples == []
    assert soaked.failures == 0


def test_a_worse_block_never_gives_more_key(soaked: KeyLengthSoak) -> None:
    assert len(soaked.worse_pairs) == 8
    assert min(soaked.worse_pairs.values()) >= 100
    assert soaked.more_key == {}


def test_three_state_gives_no_more_key_of_worse_blocks_either() -> None:
    result = last(60, estimators=("three_state",), compare_one_in=3)
    assert result.examples == []
    assert result.failures == 0
    assert "errors X" not in result.worse_pairs
    assert result.worse_pairs["errors X of one photon"] >= 10


def test_most_sets_are_possible_and_give_key_and_none_of_them_is_refused(soaked: KeyLengthSoak) -> None:
    assert soaked.kinds["possible"].accepted > 0.5 * soaked.sets
    assert soaked.kinds["possible"].refused == 0
    assert all(soaked.kinds[kind].sets > 30 for kind in KINDS)


def test_a_set_depends_on_seed_and_index_alone() -> None:
    assert count_set(3, 8) == count_set(3, 8)
    assert count_set(3, 8) != count_set(3, 9)
    assert count_set(3, 8) != count_set(4, 8)


def test_an_error_that_is_no_refusal_and_a_length_beyond_the_block_count_as_failures(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(inputs: EstimatorInput, estimator: str) -> KeyLength:
        if estimator == "eur":
            raise AssertionError("more bits than sifted")
        result = estimate(inputs, estimator)
        return msgspec.structs.replace(result, length=int(inputs.n_z.total) + 1)

    monkeypatch.setattr(keylength_soak, "estimate", broken)
    result = last(20, estimators=("eur", "wiesemann2024"), compare_one_in=1000)
    assert sum(kind.crashed for kind in result.kinds.values()) == 2 * 20
    assert sum(kind.out_of_range for kind in result.kinds.values()) >= 15
    assert "AssertionError: more bits than sifted" in result.examples[0]


def test_a_crash_at_a_worse_block_counts_as_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = [count_set(4, index).inputs.lambda_ec for index in range(20)]

    def broken(inputs: EstimatorInput, estimator: str) -> KeyLength:
        if inputs.lambda_ec not in drawn:
            raise ZeroDivisionError
        return estimate(inputs, estimator)

    monkeypatch.setattr(keylength_soak, "estimate", broken)
    assert last(20, compare_one_in=1).failures > 0


def test_more_key_from_a_worse_block_counts_as_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(inputs: EstimatorInput, estimator: str) -> KeyLength:
        result = estimate(inputs, estimator)
        return msgspec.structs.replace(result, length=int(inputs.lambda_ec) % 1000)

    monkeypatch.setattr(keylength_soak, "estimate", broken)
    assert last(20, compare_one_in=1).more_key["leak"] > 0


def run(*words: str) -> Any:
    return CliRunner().invoke(soak_command, words, standalone_mode=False)


def test_the_command_prints_figures_and_does_not_depend_on_the_number_of_processes() -> None:
    one = run("--keylength", "40", "--processes", "1", "--seed", "2", "--json")
    two = run("--keylength", "40", "--processes", "2", "--seed", "2", "--json")
    assert one.stdout == two.stdout
    assert sum(kind["sets"] for kind in json.loads(one.stdout)["kinds"].values()) == 40
    table = run("--keylength", "40", "--processes", "1", "--estimator", "wiesemann2024")
    assert "40 sets, 0 failures" in table.stdout
    assert table.return_value == 0


def test_the_command_refuses_an_unknown_estimator() -> None:
    assert run("--keylength", "40", "--estimator", "best").return_value == EXIT_USAGE
