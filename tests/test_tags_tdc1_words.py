"""The words of a TDC1: a real exchange, wraps, patterns, gaps, and words that no TDC1 sends."""

import numpy as np

from qnode.tags.formats.tdc1_words import MARKER, TICK_PS, WRAP_TICKS, Tdc1Decoder

# One second of a real device with two events, as the maker's example prints it: (count, pattern).
RECORDED = [
    (67112824, 0b10001),
    (3960, 0b10001),
    (23482717, 0b1),
    (3960, 0b10001),
    (67112824, 0b10001),
    (3960, 0b10001),
    (5058517, 0b1),
]
RECORDED_BYTES = bytes.fromhex(
    "11ef0180 11ef0100 a12bca2c 11ef0100 11ef0180 11ef0100 a1faa509".replace(" ", "")
)
RECORDED_S = [0.31540089, 0.8154234]


def words(*events: tuple[int, int]) -> "np.ndarray[tuple[int], np.dtype[np.uint32]]":
    return np.array([count << 5 | pattern for count, pattern in events], np.uint32)


def test_the_words_of_a_real_device_decode_to_its_times() -> None:
    decoder = Tdc1Decoder()
    sent = np.frombuffer(RECORDED_BYTES, "<u4").astype(np.uint32)
    assert np.array_equal(sent, words(*RECORDED))
    times_ps, inputs = decoder.decode(sent)
    assert np.allclose(times_ps / 1e12, RECORDED_S, atol=1e-8)
    assert inputs.tolist() == [1, 1]
    assert (decoder.wraps, decoder.markers, decoder.unsound) == (3, 5, 0)
    assert decoder.reached_ticks == 3 * WRAP_TICKS + 5058517


def test_a_word_with_several_inputs_is_as_many_tags_of_one_time() -> None:
    times_ps, inputs = Tdc1Decoder().decode(words((7, 0b1011), (9, 0b0100)))
    assert times_ps.tolist() == [14000, 14000, 14000, 18000]
    assert inputs.tolist() == [1, 2, 4, 3]


def test_no_time_is_lost_in_a_silence_of_many_wraps() -> None:
    decoder = Tdc1Decoder()
    half = WRAP_TICKS // 2
    silence = [(3960, 0x11), (3960 + half, 0x11)] * 10
    times_ps, _ = decoder.decode(words((1, 1), *silence, (5, 1)))
    assert (times_ps[1] - times_ps[0]) // TICK_PS == 10 * WRAP_TICKS + 4
    assert decoder.unsound == 0
    # Also when every second marker is missing, and each has the count of the one before it.
    decoder = Tdc1Decoder()
    decoder.decode(words(*[(3960, 0x11)] * 5))
    assert decoder.wraps == 4


def test_pieces_of_any_size_decode_as_the_whole() -> None:
    rng = np.random.default_rng(5)
    ticks = np.cumsum(rng.integers(1, WRAP_TICKS // 3, 2000))
    patterns = rng.integers(1, 16, 2000)
    sent = (ticks % WRAP_TICKS << 5 | patterns).astype(np.uint32)
    times_ps, inputs = Tdc1Decoder().decode(sent)
    assert times_ps.shape[0] == sum(int(pattern).bit_count() for pattern in patterns)
    assert np.array_equal(np.unique(times_ps) // TICK_PS, ticks - ticks[0] // WRAP_TICKS * WRAP_TICKS)
    decoder, parts = Tdc1Decoder(), []
    for part in np.array_split(sent, 37):
        parts.append(decoder.decode(part))
    assert np.array_equal(np.concatenate([part[0] for part in parts]), times_ps)
    assert np.array_equal(np.concatenate([part[1] for part in parts]), inputs)


def test_words_that_begin_at_a_wrong_byte_are_unsound() -> None:
    rng = np.random.default_rng(6)
    for mean_ticks in (100, 10_000, 1_000_000):  # 5 Mcps to 500 cps
        ticks = np.cumsum(rng.integers(1, 2 * mean_ticks, 400))
        sent = (ticks % WRAP_TICKS << 5 | rng.integers(1, 3, 400)).astype("<u4").tobytes()
        sound = Tdc1Decoder()
        sound.decode(np.frombuffer(sent, "<u4").astype(np.uint32))
        assert sound.unsound == 0
        for missing in (1, 2, 3):
            decoder = Tdc1Decoder()
            decoder.decode(np.frombuffer(sent[missing : missing - 4], "<u4").astype(np.uint32))
            assert decoder.unsound > 20, (mean_ticks, missing)


def test_a_marker_out_of_place_and_a_word_without_an_input_are_unsound_and_no_tags() -> None:
    decoder = Tdc1Decoder()
    times_ps, _ = decoder.decode(words((3960, 0x11), (5000, 0), (1_000_000, MARKER)))
    assert times_ps.shape[0] == 0
    assert decoder.unsound == 2


def test_after_a_gap_the_first_word_is_placed_at_its_time_nearest_to_the_expected_one() -> None:
    for expected in (0, 5 * WRAP_TICKS + 17, 5 * WRAP_TICKS + WRAP_TICKS // 2 - 1, -3 * WRAP_TICKS):
        for away in (0, 1, -1, WRAP_TICKS // 2 - 1, -WRAP_TICKS // 2):
            after = words(((expected + away) % WRAP_TICKS, 1))
            times_ps, _ = Tdc1Decoder.after_gap(expected, after).decode(after)
            assert times_ps[0] == (expected + away) * TICK_PS
