"""The parts of the LDPC reconciler: codes, syndromes, decoder, interleaver, cut, rates."""

import hashlib
from collections.abc import Callable
from functools import cache
from itertools import combinations, pairwise
from typing import Any, cast

import numba
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qnode.distill.bits.array import Words
from qnode.distill.reconcile.ldpc import decoder as decoder_module
from qnode.distill.reconcile.ldpc import row
from qnode.distill.reconcile.ldpc.code import COLUMN_COUNTS, LIFTINGS, MAX_COLUMNS, Code, make_code
from qnode.distill.reconcile.ldpc.decoder import (
    START_RELIABILITY,
    Decoder,
    largest_message,
    normalisation,
)
from qnode.distill.reconcile.ldpc.frames import make_cut
from qnode.distill.reconcile.ldpc.interleave import Interleaver
from qnode.distill.reconcile.ldpc.rate import estimate_qber, extended, piece_limit, pieces_for, row_limit
from qnode.distill.reconcile.ldpc.syndrome import piece_syndromes, rest_syndromes
from qnode.errors import FieldError

SEED = bytes(range(32))
Bytes = npt.NDArray[np.uint8]
relaxed = settings(max_examples=40, deadline=None, derandomize=True)


def unpack(words: Words) -> Bytes:
    return np.unpackbits(np.ascontiguousarray(words).view(np.uint8), bitorder="little")


def pack(bits: Bytes) -> Words:
    return np.packbits(bits, bitorder="little").view(np.uint64)


def errors_of(code: Code, qber: float, rng: np.random.Generator) -> Bytes:
    return (rng.random(code.n_columns * code.lifting) < qber).astype(np.uint8)


def plain_syndromes(code: Code, borders: npt.NDArray[np.int32], bits: Bytes) -> Bytes:
    """Return the syndrome of each piece from the definition, shape ``(pieces, lifting)``."""
    columns = bits.reshape(code.n_columns, code.lifting)
    result = np.zeros((len(borders) - 1, code.lifting), np.uint8)
    for piece, (begin, end) in enumerate(pairwise(borders)):
        for edge in range(begin, end):
            result[piece] ^= np.roll(columns[code.columns[edge]], -code.shifts[edge])
    return result


# Codes


@pytest.mark.parametrize(
    ("n_rows", "n_columns", "lifting"), [(102, 800, 128), (74, 800, 128), (370, 800, 128), (60, 180, 64)]
)
def test_no_two_columns_close_a_cycle_of_four(n_rows: int, n_columns: int, lifting: int) -> None:
    code = make_code(n_rows, n_columns, lifting)
    borders = code.borders(n_rows)
    rows = np.repeat(np.arange(n_rows), np.diff(borders))
    met: dict[tuple[int, int], set[int]] = {}
    for column in range(n_columns):
        edges = np.flatnonzero(code.columns == column)
        for a, b in combinations(edges, 2):
            assert rows[a] != rows[b]
            difference = int(code.shifts[a] - code.shifts[b]) % lifting
            differences = met.setdefault((rows[a], rows[b]), set())
            assert difference not in differences
            differences.add(difference)


def test_columns_of_degree_two_form_no_loop() -> None:
    for n_rows in (29, 102, 370):
        code = make_code(n_rows, MAX_COLUMNS, LIFTINGS[-1])
        rows = np.repeat(np.arange(n_rows), np.diff(code.borders(n_rows)))
        group = list(range(n_rows))
        degrees = np.bincount(code.columns, minlength=MAX_COLUMNS)
        assert np.count_nonzero(degrees == 2) > 20
        for column in np.flatnonzero(degrees == 2):
            a, b = (group[row] for row in rows[code.columns == column])
            assert a != b
            group = [a if other == b else other for other in group]


def test_checks_have_nearly_equal_degrees() -> None:
    for n_rows in (29, 102, 370):
        degrees = np.diff(make_code(n_rows, MAX_COLUMNS, LIFTINGS[-1]).borders(n_rows))
        assert degrees.max() - degrees.min() <= 3


def test_codes_are_those_of_the_protocol() -> None:
    """Both sites draw the codes by themselves: a change here is a change of the protocol."""
    digest = hashlib.sha256()
    for n_rows, n_columns, lifting in (
        (102, 800, 128),
        (29, 777, 128),
        (14, 40, 64),
        (1, 1, 64),
        (370, 790, 128),
    ):
        code = make_code(n_rows, n_columns, lifting)
        for table in (code.columns, code.shifts, code.first, code.end):
            digest.update(table.astype("<i4").tobytes())
    assert digest.hexdigest()[:16] == "deab212b785d861a"


sizes = st.integers(1, 120).flatmap(
    lambda n_columns: st.tuples(st.integers(1, max(1, int(0.7 * n_columns))), st.just(n_columns))
)


@given(size=sizes, lifting=st.sampled_from(LIFTINGS))
@relaxed
def test_every_code_covers_every_column_and_splits_down_to_single_edges(
    size: tuple[int, int], lifting: int
) -> None:
    n_rows, n_columns = size
    code = make_code(n_rows, n_columns, lifting)
    assert set(code.columns.tolist()) == set(range(n_columns))
    assert code.shifts.min() >= 0
    assert code.shifts.max() < lifting
    assert code.borders(code.n_rows).size == n_rows + 1
    assert np.array_equal(code.borders(code.n_pieces), np.arange(code.n_pieces + 1))
    for n_pieces in range(n_rows, code.n_pieces + 1):
        assert np.all(np.diff(code.borders(n_pieces)) > 0)


# Syndromes


def test_a_row_that_a_cut_leaves_empty_is_dropped() -> None:
    code = make_code(284, 406, 64)
    assert code.n_rows < 284
    assert np.all(np.diff(code.borders(code.n_rows)) > 0)


@given(data=st.data(), size=sizes, lifting=st.sampled_from(LIFTINGS))
@relaxed
def test_what_was_disclosed_gives_the_syndromes_of_all_pieces(
    data: st.DataObject, size: tuple[int, int], lifting: int
) -> None:
    n_rows, n_columns = size
    code = make_code(n_rows, n_columns, lifting)
    bits = errors_of(code, 0.5, np.random.default_rng(data.draw(st.integers(0, 99))))
    n_first = data.draw(st.integers(n_rows, code.n_pieces))
    n_pieces = data.draw(st.integers(n_first, code.n_pieces))
    disclosed = np.concatenate(
        (
            piece_syndromes(code, pack(bits), 0, n_rows),
            piece_syndromes(code, pack(bits), n_rows, n_first),
            piece_syndromes(code, pack(bits), n_first, n_pieces),
        )
    )
    settled = rest_syndromes(code, disclosed)
    expected = plain_syndromes(code, code.borders(n_pieces), bits)
    assert np.array_equal(unpack(settled).reshape(expected.shape), expected)


# Decoder


@pytest.fixture(params=[64, 32, 16])
def width(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Decode in vectors of another width than this processor's best."""
    if request.param != row.WIDTH:
        monkeypatch.setattr(decoder_module, "_decode", decode_of_width(request.param))
    return int(request.param)


@cache
def decode_of_width(width: int) -> Callable[..., int]:
    """Compile the decoder for ``width``: what is emitted is decided when a call is first compiled."""
    best, kernel = row.WIDTH, cast(Any, decoder_module._decode)
    compiled: Callable[..., int] = numba.njit(nogil=True, error_model="numpy")(kernel.py_func)

    def decode(*arguments: Any) -> int:
        vars(row)["WIDTH"] = width
        try:
            return compiled(*arguments)
        finally:
            vars(row)["WIDTH"] = best

    return decode


def plain_decode(code: Code, n_pieces: int, target: Bytes, max_sweeps: int) -> Bytes | None:
    """Decode as ``decoder`` describes it, bit by bit of the definition, in wide integers."""
    borders = code.borders(n_pieces)
    lifting = code.lifting
    sums = np.full((code.n_columns, lifting), START_RELIABILITY, np.int64)
    messages = np.zeros((code.n_pieces, lifting), np.int64)
    unmet = int(target.sum())
    for _ in range(max_sweeps):
        factor = normalisation(unmet, target.size)
        unmet = 0
        for piece, (begin, end) in enumerate(pairwise(borders)):
            edges = range(begin, end)
            before = np.array([np.roll(sums[code.columns[e]], -code.shifts[e]) for e in edges])
            odd = target[piece].astype(np.int64)
            unmet += int(((np.sum(before < 0, axis=0) + odd) % 2).sum())
            incoming = np.clip(before - messages[begin:end], -128, 127)
            sizes = np.abs(incoming)
            ordered = np.sort(np.minimum(sizes, 127), axis=0)
            least = ordered[0]
            second = ordered[1] if len(edges) > 1 else np.full(lifting, 127)
            scaled = [
                np.minimum((size * factor + 32) >> 6, largest_message(code)) for size in (least, second)
            ]
            signs = (np.sum(incoming < 0, axis=0) + odd) % 2
            negative = (signs + (incoming < 0)) % 2 == 1
            size = np.where(sizes == least, scaled[1], scaled[0])
            messages[begin:end] = np.where(negative, -size, size)
            after = np.clip(incoming + messages[begin:end], -128, 127)
            for place, e in enumerate(edges):
                sums[code.columns[e]] = np.roll(after[place], code.shifts[e])
        if unmet == 0:
            errors = (sums < 0).astype(np.uint8)
            if np.array_equal(plain_syndromes(code, borders, errors.reshape(-1)), target):
                return errors.reshape(-1)
    return None


@pytest.mark.parametrize(
    ("n_rows", "n_pieces", "n_columns", "lifting", "qber"),
    [(12, 12, 50, 64, 0.02), (12, 17, 50, 64, 0.03), (40, 40, 60, 128, 0.07), (9, 10, 90, 128, 0.006)],
)
def test_every_width_decodes_bit_by_bit_as_the_definition(
    n_rows: int, n_pieces: int, n_columns: int, lifting: int, qber: float, width: int
) -> None:
    code = make_code(n_rows, n_columns, lifting)
    rng = np.random.default_rng(4)
    decoder = Decoder(code)
    n_found = 0
    for _ in range(6):
        errors = errors_of(code, qber, rng)
        syndromes = rest_syndromes(code, piece_syndromes(code, pack(errors), 0, n_pieces))
        target = unpack(syndromes).reshape(n_pieces, lifting)
        found = decoder.decode(syndromes, n_pieces, 0)
        expected = plain_decode(code, n_pieces, target, decoder.n_sweeps)
        assert (found is None) == (expected is None)
        if found is not None and expected is not None:
            assert np.array_equal(unpack(found), expected)
            n_found += 1
    assert n_found > 1


def test_widths_agree_on_long_frames_that_decode_and_that_do_not(width: int) -> None:
    code = make_code(101, 800, 128)
    decoder = Decoder(code)
    rng = np.random.default_rng(1)
    outcomes = []
    for qber in (0.0145, 0.0152, 0.017):
        syndromes = piece_syndromes(code, pack(errors_of(code, qber, rng)), 0, 101)
        found = decoder.decode(syndromes, 101, 0)
        outcomes.append((decoder.n_sweeps, None if found is None else int(np.bitwise_count(found).sum())))
    assert outcomes == [(26, 1515), (80, None), (32, None)]


def test_known_bits_help_and_stay_right() -> None:
    code = make_code(3, 9, 64)
    rng = np.random.default_rng(3)
    for n_known in (1, 63, 64):
        for _ in range(20):
            errors = errors_of(code, 0.02, rng)
            errors[-n_known:] = 0
            found = Decoder(code).decode(piece_syndromes(code, pack(errors), 0, 3), 3, n_known)
            if found is not None and np.array_equal(unpack(found), errors):
                break
        else:
            pytest.fail("nothing decodes")


@pytest.mark.parametrize(
    ("qber", "n_failures"), [(0.005, 5), (0.01, 5), (0.015, 5), (0.02, 5), (0.03, 5), (0.05, 5), (0.08, 5)]
)
def test_few_long_frames_fail_at_first(qber: float, n_failures: int) -> None:
    cut = make_cut(MAX_COLUMNS * LIFTINGS[-1])
    code = make_code(pieces_for(cut, qber), cut.n_columns, cut.lifting)
    decoder = Decoder(code)
    rng = np.random.default_rng(9)
    failed = 0
    for _ in range(16):
        errors = errors_of(code, qber, rng)
        found = decoder.decode(piece_syndromes(code, pack(errors), 0, code.n_rows), code.n_rows, 0)
        if found is None:
            failed += 1
        else:
            assert np.array_equal(unpack(found), errors)
    assert failed <= n_failures


# Interleaver


@given(n_words=st.integers(1, 400), seed=st.binary(min_size=32, max_size=32))
@relaxed
def test_the_interleaver_moves_every_bit_and_is_undone(n_words: int, seed: bytes) -> None:
    rng = np.random.default_rng(n_words)
    interleaver = Interleaver.draw(seed, n_words)
    words = rng.integers(0, 2**64, n_words, dtype=np.uint64)
    assert np.array_equal(interleaver.undo(interleaver.apply(words)), words)
    assert np.array_equal(interleaver.apply(interleaver.undo(words)), words)
    other = rng.integers(0, 2**64, n_words, dtype=np.uint64)
    assert np.array_equal(
        interleaver.apply(words) ^ interleaver.apply(other), interleaver.apply(words ^ other)
    )
    bits = rng.integers(0, 64 * n_words, 20)
    places = set()
    for bit in set(bits.tolist()):
        single = np.zeros(n_words, np.uint64)
        single[bit // 64] = np.uint64(1) << np.uint64(bit % 64)
        place = np.flatnonzero(unpack(interleaver.apply(single)))
        assert place.size == 1
        places.add(int(place[0]))
    assert len(places) == len(set(bits.tolist()))


@pytest.mark.parametrize("n_bits", [300_000, 1_000_000])
@pytest.mark.parametrize("step", [1, 64, 97])
def test_a_burst_is_spread_over_frames_and_columns_like_single_errors(n_bits: int, step: int) -> None:
    cut = make_cut(n_bits)
    n_burst = 3000
    bits = np.zeros(64 * cut.n_words, np.uint8)
    bits[step * np.arange(n_burst)] = 1
    frames = cut.split(Interleaver.draw(SEED, cut.n_words).apply(pack(bits)))
    assert int(np.bitwise_count(frames).sum()) == n_burst
    by_frame = np.bitwise_count(frames).sum(axis=1)
    mean = n_burst / cut.n_frames
    assert np.all(np.abs(by_frame - mean) < 5 * np.sqrt(mean))
    by_column = np.bitwise_count(frames.reshape(-1, cut.column_words)).sum(axis=1)
    assert by_column.max() < 8 + 3 * n_burst / by_column.size


# Cut and rates


@given(n_bits=st.integers(64, 1 << 27))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_frames_cover_a_block_and_know_at_most_a_column(n_bits: int) -> None:
    cut = make_cut(n_bits)
    stretches = [cut.stretch(frame) for frame in range(cut.n_frames)]
    assert stretches[0].start == 0
    assert stretches[-1].stop == cut.n_words == -(-n_bits // 64)
    assert all(a.stop == b.start for a, b in pairwise(stretches))
    assert 1 <= cut.n_columns <= MAX_COLUMNS
    for frame in {0, cut.n_frames // 2, cut.n_frames - 1}:
        assert 0 <= cut.n_known(frame) <= cut.lifting
    assert cut.n_columns <= max(COLUMN_COUNTS)


@given(n_words=st.integers(1, 5000))
@relaxed
def test_splitting_and_joining_give_the_block_back(n_words: int) -> None:
    cut = make_cut(64 * n_words)
    block = np.random.default_rng(n_words).integers(0, 2**64, n_words, dtype=np.uint64)
    assert np.array_equal(cut.join(cut.split(block)), block)


@pytest.mark.parametrize("n_bits", [63, (1 << 27) + 1, 0])
def test_blocks_that_are_too_short_or_too_long_are_refused(n_bits: int) -> None:
    with pytest.raises(FieldError, match="key"):
        make_cut(n_bits)


def test_the_error_fraction_is_read_off_the_unmet_checks() -> None:
    rng = np.random.default_rng(5)
    for n_rows, n_pieces in ((102, 102), (102, 130), (40, 75)):
        code = make_code(n_rows, 800, 128)
        for qber in (0.003, 0.01, 0.02):
            errors = errors_of(code, qber, rng)
            differences = rest_syndromes(code, piece_syndromes(code, pack(errors), 0, n_pieces))
            assert estimate_qber(code, differences) == pytest.approx(errors.mean(), rel=0.12)


def test_a_frame_that_failed_is_asked_for_more_up_to_its_limit() -> None:
    cut = make_cut(1_000_000)
    code = make_code(100, cut.n_columns, cut.lifting)
    limit = piece_limit(cut, code)
    assert extended(cut, code, 100, 0.0148) == 104
    assert extended(cut, code, 100, 0.002) == 150  # stuck: it had enough
    assert pieces_for(cut, 0.02, 1.03) < extended(cut, code, 100, 0.02) <= pieces_for(cut, 0.02, 1.08)
    assert extended(cut, code, 100, 0.4) == 200  # not more than twice at once: the estimate may be far off
    assert extended(cut, code, limit - 1, 0.4) == limit
    assert row_limit(cut) < limit <= cut.n_columns + 8
