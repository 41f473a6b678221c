"""S-Fifteen's time taggers: a1 words of TDC2 (timestamp7) and its forerunners, and files of TDC1 words.

a1: 64 bits, little-endian, time in 1/256 ns from bit 10 on; it wraps after 19.5 hours. The low 4 bits are the
inputs that fired: an event on several is as many tags of one time. Bit 4 marks an event that is no click: it
comes when a part of the counter rolls over. ``a1-swapped``, the legacy form, has the upper half first.
``a0`` and ``a2`` are the same words as lines of hexadecimal digits: the lower half and then the upper, or the
whole.
"""

import re
from collections.abc import Callable
from pathlib import Path
from string import hexdigits
from typing import Final

import numpy as np
import numpy.typing as npt

from qnode.kernels import inline_kernel, kernel
from qnode.tags.formats.model import FileChannels, TagFile, TagFileBlock, TagFileSummary
from qnode.tags.formats.pieces import DecodePiece, RawBytes, fixed_records
from qnode.tags.formats.tdc1_words import TICK_PS, Tdc1Decoder
from qnode.tags.types import Times

State = npt.NDArray[np.int64]

_A1_BYTES: Final = 8
_A1_BITS: Final = 54
_A1_UNIT_PS: Final = 1000 / 256
_TDC1_BYTES: Final = 4
_PATTERN: Final = 0x0F
_ROLLOVER: Final = 0x10
# Four bits for each pattern: how many inputs fired; two bits: the lowest of them, less 1.
_COUNTS: Final = sum(p.bit_count() << 4 * p for p in range(16))
_LOWEST: Final = sum(((p & -p).bit_length() - 1) << 2 * p for p in range(1, 16))
# What is recognised: of so many records at least this part is possible, each other than the one before.
_FEWEST_RECORDS: Final = 16
_MOST_POSSIBLE: Final = 0.95
_A1_LONGEST_STEP: Final = 1 << 38
_DIGIT_VALUES: Final = np.array(
    [int(chr(code), 16) if chr(code) in hexdigits else 255 for code in range(256)], np.uint64
)


def looks_like_a1(head: bytes) -> bool:
    """Tell whether the bytes that a file begins with may be a1 words."""
    return _are_a1(np.frombuffer(head, "<u8", len(head) // _A1_BYTES))


def looks_like_swapped_a1(head: bytes) -> bool:
    """Tell whether the bytes that a file begins with may be a1 words with their upper half first."""
    words = np.frombuffer(head, "<u8", len(head) // _A1_BYTES)
    return _are_a1(words << np.uint64(32) | words >> np.uint64(32))


def _are_a1(words: "npt.NDArray[np.uint64]") -> bool:
    # Differences modulo 2^54.
    steps = (np.diff(words >> np.uint64(10)) << np.uint64(64 - _A1_BITS)).view(np.int64) >> (64 - _A1_BITS)
    return _are_possible(words, (steps != 0) & (np.abs(steps) < _A1_LONGEST_STEP))


def looks_like_tdc1(head: bytes) -> bool:
    """Tell whether the bytes that a file begins with may be words of a TDC1."""
    words = np.frombuffer(head, "<u4", len(head) // _TDC1_BYTES)
    steps = np.diff(words & np.uint32(0xFFFF_FFE0)).view(np.int32)  # modulo 2^32, as the time in them is
    return _are_possible(words, steps > 0)


def _are_possible(words: "npt.NDArray[np.unsignedinteger]", are_steps: "npt.NDArray[np.bool_]") -> bool:
    are_events = (words & words.dtype.type(_PATTERN | _ROLLOVER)) != 0
    return bool(
        words.shape[0] >= _FEWEST_RECORDS
        and are_events.mean() >= _MOST_POSSIBLE
        and are_steps.mean() >= _MOST_POSSIBLE
    )


def open_a1(path: Path) -> TagFile:
    """Return the reader of a file of a1 words."""
    return _a1(path, "a1", is_swapped=False)


def open_swapped_a1(path: Path) -> TagFile:
    """Return the reader of a file of a1 words with their upper half first."""
    return _a1(path, "a1-swapped", is_swapped=True)


def open_a0(path: Path) -> TagFile:
    """Return the reader of a file of a1 words in hexadecimal, the lower half first, a half a line."""
    return _hexadecimal(path, "a0", (range(9, 17), range(8)), 18)


def open_a2(path: Path) -> TagFile:
    """Return the reader of a file of a1 words in hexadecimal, one a line."""
    return _hexadecimal(path, "a2", (range(16),), 17)


def looks_like_a0(head: bytes) -> bool:
    """Tell whether a file begins with a line of 8 hexadecimal digits."""
    return bool(re.match(rb"[0-9a-fA-F]{8}\n", head))


def looks_like_a2(head: bytes) -> bool:
    """Tell whether a file begins with a line of 16 hexadecimal digits."""
    return bool(re.match(rb"[0-9a-fA-F]{16}\n", head))


def _a1(path: Path, name: str, is_swapped: bool) -> TagFile:
    def new_decoder(summary: TagFileSummary) -> DecodePiece:
        decode = _a1_decoder(summary, is_swapped)
        return lambda raw: decode(raw.view("<u8"))

    return TagFile(path, name, "", _A1_UNIT_PS, fixed_records(path, 0, _A1_BYTES, new_decoder))


def _hexadecimal(path: Path, name: str, digits: tuple[range, ...], line_bytes: int) -> TagFile:
    """Return the reader of lines with the digits of a word, highest first, in these columns."""
    columns = [column for some in digits for column in some]
    ends = [column for column in range(line_bytes) if column not in columns]

    def new_decoder(summary: TagFileSummary) -> DecodePiece:
        decode = _a1_decoder(summary, is_swapped=False)

        def decode_text(raw: RawBytes) -> TagFileBlock:
            lines = raw.reshape(-1, line_bytes)
            values = _DIGIT_VALUES[lines[:, columns]]
            are_sound = (values < 16).all(axis=1) & (lines[:, ends] == ord("\n")).all(axis=1)
            n = lines.shape[0] if are_sound.all() else int(np.argmin(are_sound))
            if n < lines.shape[0]:
                summary.records -= lines.shape[0] - n
                summary.truncated = f"record {summary.records} is no hexadecimal word: {bytes(lines[n])!r}"
            words = np.zeros(n, np.uint64)
            for column in range(len(columns)):
                words = words << np.uint64(4) | values[:n, column]
            return decode(words)

        return decode_text

    return TagFile(path, name, "", _A1_UNIT_PS, fixed_records(path, 0, line_bytes, new_decoder))


def _a1_decoder(
    summary: TagFileSummary, is_swapped: bool
) -> Callable[["npt.NDArray[np.uint64]"], TagFileBlock]:
    state = np.array([0, -1], np.int64)

    def decode(words: "npt.NDArray[np.uint64]") -> TagFileBlock:
        n_tags = _count_a1(words, is_swapped)
        times, channels = np.empty(n_tags + 1, np.int64), np.empty(n_tags + 1, np.int16)
        summary.wraps += _decode_a1(words, is_swapped, times, channels, state)
        return TagFileBlock(times[:n_tags], channels[:n_tags])

    return decode


def open_tdc1(path: Path) -> TagFile:
    """Return the reader of a file of words of a TDC1."""

    def new_decoder(summary: TagFileSummary) -> DecodePiece:
        decoder = Tdc1Decoder()

        def decode(raw: RawBytes) -> TagFileBlock:
            block = TagFileBlock(*decoder.decode(raw.view("<u4")))
            summary.wraps = decoder.wraps
            return block

        return decode

    return TagFile(path, "tdc1", "", float(TICK_PS), fixed_records(path, 0, _TDC1_BYTES, new_decoder))


def warm() -> None:
    """Compile the kernels."""
    _a1_decoder(TagFileSummary(), is_swapped=False)(np.zeros(1, np.uint64))
    Tdc1Decoder().decode(np.zeros(1, np.uint32))


@inline_kernel
def _clicks(word: np.uint64) -> np.uint64:
    """Return the inputs that fired, none of an event that is no click."""
    rollover = (word >> np.uint64(4)) & np.uint64(1)
    return word & np.uint64(_PATTERN) & (rollover - np.uint64(1))


@kernel
def _count_a1(words: "npt.NDArray[np.uint64]", is_swapped: bool) -> int:
    n_tags = np.uint64(0)
    shift = np.uint64(32 if is_swapped else 0)
    for i in range(np.uint64(words.shape[0])):
        n_tags += (np.uint64(_COUNTS) >> (_clicks(words[i] >> shift) << np.uint64(2))) & np.uint64(7)
    return int(n_tags)


@kernel
def _decode_a1(
    words: "npt.NDArray[np.uint64]", is_swapped: bool, times: Times, channels: FileChannels, state: State
) -> int:
    """Decode, and return the number of rollover events. ``state``: time of the latest wrap, latest ticks
    (-1 before the first).

    There is room for one tag more than there are: an event that is no click writes where the next tag will.
    """
    u, s = np.uint64, np.int64
    start, before = state[0], state[1]
    wrap_ps, half = s(125 << (_A1_BITS - 5)), s(1 << (_A1_BITS - 1))
    n_tags, rollovers = u(0), u(0)
    for i in range(u(words.shape[0])):
        word = words[i]
        if is_swapped:
            word = word << u(32) | word >> u(32)
        ticks = s(word >> u(10))
        step = ticks - before
        if step < -half:
            start += wrap_ps
        elif step >= half and before >= 0:
            start -= wrap_ps
        before = ticks
        rollovers += (word >> u(4)) & u(1)
        pattern = _clicks(word)
        others = pattern & (pattern - u(1))
        time = start + ((ticks * 125 + 16) >> 5)
        times[n_tags] = time
        channels[n_tags] = np.int16(((u(_LOWEST) >> (pattern + pattern)) & u(3)) + u(1))
        n_tags += u(pattern != u(0))
        if others:
            for channel in range(2, 5):
                if others & u(1 << (channel - 1)):
                    times[n_tags] = time
                    channels[n_tags] = np.int16(channel)
                    n_tags += u(1)
    state[0], state[1] = start, before
    return int(rollovers)
