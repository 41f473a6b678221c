import numpy as np
import pytest
from tags_generator import symbols

from qnode.errors import ProtocolError
from qnode.tags.alignment import AlignmentProbe, correlate, offset_window
from qnode.tags.types import UNKNOWN_SYMBOL, X_PLUS, Codes, Slots

TRUE_OFFSET = 1_234_567_891
REACH = 300_000


def probe(
    n: int, noise: float, qber: float, seed: int, offset: int = TRUE_OFFSET, span_ticks: int = 6_000_000
) -> tuple[AlignmentProbe, int]:
    rng = np.random.default_rng(seed)
    absolute = np.sort(rng.choice(span_ticks, n, replace=False)).astype(np.int64) + offset
    slots, late = absolute // 2, absolute % 2
    kind = symbols(slots) & 3
    sent = np.where(kind == X_PLUS, late, kind)
    seen = np.where(rng.random(n) < noise, late, sent ^ (rng.random(n) < qber))
    absolute = np.unique(2 * slots + seen)
    return AlignmentProbe(7, 0, absolute - absolute[0]), int(absolute[0])


@pytest.mark.parametrize(("n", "noise", "qber"), [(300, 0.05, 0.015), (1024, 1 / 3, 0.11)])
@pytest.mark.parametrize("seed", range(3))
def test_the_offset_is_found_early_against_late_included(
    n: int, noise: float, qber: float, seed: int
) -> None:
    # An odd true offset and an even one: the halves of a slot are told apart either way.
    sent, truth = probe(n, noise, qber, seed, TRUE_OFFSET + seed)
    found = correlate(sent, symbols, truth - REACH, truth + REACH)
    assert found is not None
    assert found.offset == truth
    assert found.probe_number == 7
    assert found.significance >= 9
    assert found.last_slot == (int(sent.ticks[-1]) + truth) // 2


@pytest.mark.parametrize("edge", [0, 1, 63, 64, 16_383, 16_384, 2 * REACH - 1])
def test_every_place_in_the_window_is_searched(edge: int) -> None:
    sent, truth = probe(300, 0.0, 0.0, 5, span_ticks=1_000_000)
    first = truth - edge
    found = correlate(sent, symbols, first, first + 2 * REACH)
    assert found is not None
    assert found.offset == truth
    assert correlate(sent, symbols, truth + 1, truth + 1000) is None
    assert correlate(sent, symbols, truth - 1000, truth - 1) is None


def test_scores_are_those_of_a_plain_count() -> None:
    sent, truth = probe(123, 0.2, 0.05, 6, span_ticks=100_000)
    first, last = truth - 200, truth + 200
    scores = []
    for offset in range(first, last + 1):
        absolute = sent.ticks + offset
        kind = symbols(absolute // 2) & 3
        matches = np.count_nonzero((kind != X_PLUS) & (kind == absolute % 2))
        scores.append(2 * matches - np.count_nonzero(kind != X_PLUS))
    found = correlate(sent, symbols, first, last)
    assert found is not None
    assert found.score == max(scores)
    assert found.offset == first + int(np.argmax(scores))


def test_a_probe_whose_first_clicks_tell_nothing_is_searched_with_all() -> None:
    sent, truth = probe(900, 0.0, 0.015, 11)
    ticks = sent.ticks.copy()
    ticks[1:300] = np.sort(np.random.default_rng(12).choice(ticks[300], 299, replace=False)) | 1
    noisy = AlignmentProbe(7, 0, np.unique(ticks))
    found = correlate(noisy, symbols, truth - REACH, truth + REACH)
    assert found is not None
    assert found.offset == truth


def test_noise_does_not_lock() -> None:
    rng = np.random.default_rng(8)
    for _ in range(3):
        ticks = np.unique(rng.integers(0, 5_000_000, 600))
        assert correlate(AlignmentProbe(1, 0, ticks - ticks[0]), symbols, 10**9, 10**9 + 10**6) is None


def test_a_match_outside_the_window_and_too_few_clicks_are_refused() -> None:
    sent, truth = probe(300, 0.05, 0.01, 9)
    assert correlate(sent, symbols, truth + 10, truth + REACH) is None
    few, truth = probe(30, 0.0, 0.0, 9)
    assert correlate(few, symbols, truth - REACH, truth + REACH) is None


def test_slots_before_the_run_and_forgotten_symbols_count_neither_way() -> None:
    sent, truth = probe(400, 0.02, 0.01, 10, offset=1001, span_ticks=4_000_000)
    asked: list[int] = []

    def lookup(slots: Slots) -> Codes:
        asked.append(int(slots[0]))
        assert np.all(np.diff(slots) >= (1 if slots.size > sent.ticks.size else 0))
        return np.where(slots < 500_000, np.uint8(UNKNOWN_SYMBOL), symbols(slots)).astype(np.uint8)

    found = correlate(sent, lookup, truth - REACH, truth + REACH)
    assert found is not None
    assert found.offset == truth
    assert min(asked) >= 0


@pytest.mark.parametrize(
    "ticks", [[], [1, 2], [0, 5, 5], [0, 9, 3], [0, 2**40], list(range(10_000)), [0, -3]]
)
def test_probes_that_no_peer_would_send_are_refused(ticks: list[int]) -> None:
    with pytest.raises(ProtocolError):
        correlate(AlignmentProbe(1, 0, np.array(ticks, np.int64)), symbols, 0, 1000)


def test_the_window_follows_the_last_lock_when_there_was_one() -> None:
    ticks = np.zeros(1, np.int64)
    window = offset_window(AlignmentProbe(1, 0, ticks), 2.0, 0.010, 600_000_000)
    assert (window.start + window.stop) // 2 == 2_400_000_000
    assert len(window) == 24_000_001
    window = offset_window(AlignmentProbe(1, 0, ticks, 77), 2.0, 0.001, 600_000_000)
    assert (window.start, window.stop) == (77 - 1_200_000, 77 + 1_200_001)
