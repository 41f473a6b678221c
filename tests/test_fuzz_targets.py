"""Decoders of bytes from outside raise only what they declare; `python tests/fuzz.py` looks for more."""

import random
from pathlib import Path

import pytest
from forging import flipped
from fuzz_target import NotTheSame, taken_again
from fuzz_targets import TARGETS, try_input

CORPUS = Path(__file__).parent / "corpus"
# What reads on until nothing more comes.
ENDS = {"frames": "closed the connection without a goodbye", "instrument": "silent"}


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_seeds_are_taken(name: str) -> None:
    target = TARGETS[name]
    for seed in target.seeds():
        if name in ENDS:
            with pytest.raises(target.errors, match=ENDS[name]):
                target.decode(seed)
        else:
            target.decode(seed)


def test_what_was_decoded_but_is_not_taken_again_is_a_fault_even_if_the_decoder_declares_its_error() -> None:
    (declared,) = TARGETS["message"].errors
    with pytest.raises(NotTheSame), taken_again():
        raise declared("as a decoder refuses")


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_seeds_what_a_fuzzer_found_and_damaged_seeds_are_decoded_or_refused(name: str) -> None:
    rng = random.Random(name)
    seeds = list(TARGETS[name].seeds())
    kept = [path.read_bytes() for path in sorted((CORPUS / name).glob("*"))]
    damaged = [flipped(rng, rng.choice(seeds)) for _ in range(10)]
    cut = [seed[: rng.randrange(len(seed))] for seed in seeds[:10]]
    for data in [b"", *seeds, *kept, *damaged, *cut]:
        try_input(name, data)
