"""A cut anywhere in a block's dialogue: the sites meet again, agree on every key, and go on."""

import random
from collections.abc import Iterator

import pytest
from cuts import Cut, Trial, at_every_byte, at_every_frame, failures, repeat
from keys_support import memory_folder


@pytest.fixture(scope="module")
def trial() -> Iterator[Trial]:
    with memory_folder() as folder:
        yield Trial(folder)


def told(found: Iterator[tuple[Cut, str]]) -> list[str]:
    return [f"{what} ({repeat(cut)})" for cut, what in found]


def test_after_a_cut_between_any_two_frames_of_three_blocks_both_sites_hold_the_same_keys(
    trial: Trial,
) -> None:
    assert told(failures(trial, at_every_frame(trial, 3, "ldpc"))) == []


def test_after_a_cut_at_any_byte_of_a_block_both_sites_hold_the_same_keys(trial: Trial) -> None:
    """A sample of the bytes; ``python tests/cuts.py`` tries all of them."""
    cuts = at_every_byte(trial)
    assert len(cuts) <= 20_000
    assert told(failures(trial, random.Random(20).sample(cuts, 60))) == []
