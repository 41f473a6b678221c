"""`qnode soak`: made-up blocks are what they claim, sums are right, and a wrong block is told."""

import json
from itertools import islice
from typing import Any

import pytest
from click.testing import CliRunner

from qnode.bench.soak import SoakResult, soak
from qnode.cli.exits import EXIT_USAGE
from qnode.cli.main import main
from qnode.cli.soak import soak_command


def test_soaked_blocks_have_the_errors_asked_for_and_end_right() -> None:
    blocks = list(islice(soak("cascade", 50_000, 0.02, seed=1), 5))
    n_errors = sum(block.n_errors for block in blocks)
    assert abs(n_errors - 5000) < 5 * 5000**0.5
    for block in blocks:
        assert not block.failed
        assert not block.wrong
        assert block.statistics.corrected_errors == block.n_errors
        assert block.alice_s > 0
        assert block.bob_s > 0
    result = SoakResult.of(blocks)
    assert (result.n_blocks, result.n_bits) == (5, 250_000)
    assert 1.0 < result.f_ec < 1.1
    assert result.rounds_max >= result.rounds_mean > 5
    again = SoakResult.of(list(islice(soak("cascade", 50_000, 0.02, seed=1), 5)))
    assert again.f_ec == result.f_ec


def test_a_hopeless_block_counts_as_failed() -> None:
    blocks = list(islice(soak("cascade", 5000, 0.4, seed=1, qber_estimate=0.02), 2))
    assert all(block.failed for block in blocks)
    good = next(soak("cascade", 5000, 0.02, seed=1))
    assert SoakResult.of([good, *blocks]).failed_blocks == 2


@pytest.mark.parametrize("n_bits", [64, 1000])
def test_blocks_without_errors_can_be_soaked(n_bits: int) -> None:
    block = next(soak("cascade", n_bits, 0.0, seed=1))
    assert block.n_errors == block.statistics.corrected_errors == 0
    assert not block.wrong


def run(*words: str) -> Any:
    return CliRunner().invoke(soak_command, words, standalone_mode=False)


@pytest.mark.parametrize("method", ["cascade", "ldpc"])
def test_the_command_says_what_it_found(method: str) -> None:
    done = run("--method", method, "--block", "50000", "--bits", "200000", "--qber", "0.02", "--json")
    assert done.return_value == 0
    found = json.loads(done.stdout)
    assert (found["n_blocks"], found["wrong_blocks"], found["failed_blocks"]) == (4, 0, 0)
    assert found["f_ec"] > 1.0
    assert "4 blocks" in run("--block", "50000", "--bits", "200000", "--qber", "0.02").stdout


@pytest.mark.parametrize("words", [("--bits", "-5"), ("--bits", "0"), ("--block", "0")])
def test_the_command_refuses_numbers_of_bits_below_one_as_a_usage_error(
    words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["qnode", "soak", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == EXIT_USAGE


@pytest.mark.parametrize("words", [("--qber", "0.6"), ("--block", "10"), ("--estimate", "-1")])
def test_the_command_refuses_what_cannot_be(words: tuple[str, ...]) -> None:
    done = run("--bits", "1000", *words)
    assert done.return_value == EXIT_USAGE
    assert words[0].strip("-")[:3] in done.stderr or "key" in done.stderr


def test_the_command_fails_when_no_block_is_corrected() -> None:
    done = run("--block", "5000", "--bits", "5000", "--qber", "0.45", "--estimate", "0.02")
    assert done.return_value == 1
