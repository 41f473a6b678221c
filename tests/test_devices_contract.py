"""What a driver hands over is looked at by the node: one sentence says what is wrong and how to mend it."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from qnode.devices.contract import (
    emission_run_fault,
    readings_fault,
    symbols_fault,
    tag_block_fault,
    tag_source_fault,
)
from qnode.devices.protocols import EmissionRun
from qnode.tags.types import TagBlock

BLOCK = TagBlock(np.arange(3, dtype=np.int64), np.zeros(3, np.int8), 10)
RUN = EmissionRun(run_id=2**63 - 1, started_at_s=1.8e9)
SLOTS = np.arange(3, dtype=np.int64)


def block(**fields: Any) -> TagBlock:
    """Return a block with fields of any type."""
    return TagBlock(**{**vars(BLOCK), **fields})


def test_what_is_right_has_no_fault() -> None:
    nothing = np.zeros(0, np.int64)
    assert tag_block_fault(BLOCK) == ""
    assert tag_block_fault(TagBlock(nothing, np.zeros(0, np.int8), -(2**70), lost=7)) == ""
    assert emission_run_fault(RUN) == ""
    assert emission_run_fault(EmissionRun(run_id=0, started_at_s=0)) == ""
    assert symbols_fault(SLOTS, np.zeros(3, np.uint8)) == ""
    assert symbols_fault(nothing, np.zeros(0, np.uint8)) == ""
    assert readings_fault({"temperature_celsius": 21.5, "bias_volts": np.float64(30.0), "pulses": 7}) == ""


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ((1, 2), "tags() yielded a tuple, expected a TagBlock"),
        (
            block(times_ps=[1, 2, 3]),
            "times_ps is a list, expected a numpy array of int64, shape (n,)",
        ),
        (
            block(times_ps=np.arange(3.0)),
            "times_ps is an array of float64, expected a numpy array of",
        ),
        (block(channels=np.zeros(3, np.uint8)), "channels is an array of uint8, expected a numpy"),
        (block(channels=np.zeros((3, 1), np.int8)), "channels has 2 dimensions"),
        (
            block(channels=np.zeros(2, np.int8)),
            "times_ps has 3 tags and channels 2, expected as many",
        ),
        (block(until_ps=np.int64(10)), "until_ps is 10 (int64), expected an int of picoseconds"),
        (block(until_ps=10.0), "until_ps is 10.0 (float), expected an int"),
        (block(lost=-1), "lost is -1 (int), expected an int, 0 or more"),
        (block(lost=True), "lost is True (bool), expected an int"),
    ],
)
def test_a_tag_block_that_is_wrong_is_described(wrong: Any, said: str) -> None:
    assert said in tag_block_fault(wrong)


@pytest.mark.parametrize(
    ("paced", "origin_s", "said"),
    [
        (1, 0.0, "paced is 1 (int), expected True or False"),
        (True, float("nan"), "origin_s is nan (float), expected seconds of Bob's time of day"),
        (True, np.float32(0.5), "origin_s is 0.5 (float32)"),
        (False, None, "origin_s is None"),
    ],
)
def test_a_tag_source_that_is_wrong_about_itself_is_described(paced: Any, origin_s: Any, said: str) -> None:
    source: Any = SimpleNamespace(paced=paced, origin_s=origin_s)
    assert said in tag_source_fault(source)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (7, "runs() yielded 7 (int), expected an EmissionRun"),
        (EmissionRun(2**63, 0.0), "run_id is 9223372036854775808 (int), expected a random int from 0 to"),
        (EmissionRun(-1, 0.0), "run_id is -1 (int)"),
        (EmissionRun(np.int64(7), 0.0), "run_id is 7 (int64)"),  # type: ignore[arg-type]
        (
            EmissionRun(7, float("inf")),
            "started_at_s is inf (float), expected seconds of Alice's time of day",
        ),
    ],
)
def test_an_emission_run_that_is_wrong_is_described(wrong: Any, said: str) -> None:
    assert said in emission_run_fault(wrong)


@dataclass
class Key:
    bits: str = "110"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (
            np.zeros(3, np.int64),
            "what symbols() returned is an array of int64, expected a numpy array of uint8",
        ),
        (np.zeros(2, np.uint8), "symbols() returned 2 symbols for 3 slots, expected one for each slot"),
        (Key(), "what symbols() returned is a Key, expected"),
    ],
)
def test_an_answer_to_a_look_up_that_is_wrong_is_described_and_not_shown(wrong: Any, said: str) -> None:
    assert said in symbols_fault(SLOTS, wrong)
    assert "110" not in symbols_fault(SLOTS, wrong)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({}, "readings() returned a dict, expected a dict with a figure or more"),
        ({"temperature in C": 1.0}, "a reading is named a str, expected an identifier"),
        (
            {"temperature_celsius": float("nan")},
            "reading temperature_celsius is nan (float), expected a finite",
        ),
        ({"bias_volts": np.float32(1.0)}, "reading bias_volts is 1.0 (float32), expected a finite float"),
        ({"on": True}, "reading on is True (bool)"),
        (
            {"detector_temperature_k": -50.0},
            "reading detector_temperature_k is -50.0 (float), expected kelvins",
        ),
    ],
)
def test_readings_that_are_wrong_are_described(wrong: Any, said: str) -> None:
    assert said in readings_fault(wrong)
