"""The stream of an S-Fifteen TDC1: words of a count of 2 ns and a pattern of inputs.

A word has 32 bits, little-endian. Its upper 27 bits count ticks of 2 ns and wrap every 0.268 s. Bits 0 to 3
are the inputs 1 to 4 that fired in that tick, one or more. Bit 4 marks a word that is no event: the device
sends it at each half turn of the counter in which nothing fired, so that no wrap passes unseen.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

from qnode.kernels import kernel
from qnode.tags.types import Times

Words = npt.NDArray[np.uint32]
Inputs = npt.NDArray[np.int16]

TICK_PS: Final = 2000
TIME_SHIFT: Final = 5
WRAP_TICKS: Final = 1 << 27
MARKER: Final = 0x10
_HALF_WRAP: Final = WRAP_TICKS >> 1
_PHASE_TOLERANCE_TICKS: Final = 1 << 12  # markers are whole half turns apart
_NONE: Final = -1

# The state of a decoder.
_COUNT, _HIGH, _PHASE, _WRAPS, _MARKERS, _UNSOUND = range(6)


class Tdc1Decoder:
    """Decodes the words of one stream, piece after piece.

    ``phase``: the count of an earlier marker of the same device, -1 if there was none.
    """

    def __init__(self, phase: int = _NONE) -> None:
        self._state = np.array([_NONE, 0, phase, 0, 0, 0], np.int64)

    @property
    def phase(self) -> int:
        """The count of the last marker; -1 if there was none."""
        return int(self._state[_PHASE])

    @property
    def reached_ticks(self) -> int:
        """The time of the last word, wraps included; 0 before the first."""
        return int(self._state[_HIGH]) + max(0, int(self._state[_COUNT]))

    @property
    def wraps(self) -> int:
        """How often the counter has begun again."""
        return int(self._state[_WRAPS])

    @property
    def markers(self) -> int:
        """The number of words that were no events."""
        return int(self._state[_MARKERS])

    @property
    def unsound(self) -> int:
        """The number of words that no TDC1 sends: without an input, or a marker out of place.

        Lost bytes show in it: most words that begin at a wrong byte are unsound.
        """
        return int(self._state[_UNSOUND])

    def decode(self, words: Words) -> tuple[Times, Inputs]:
        """Return time (ps, modulo 2^64) and number (1 to 4) of each input that fired, in the order of words.

        Inputs of one word have the same time and come in the order of their numbers.
        """
        n = int(_number_of_tags(words))
        times_ps, inputs = np.empty(n, np.int64), np.empty(n, np.int16)
        _decode(words, self._state, times_ps, inputs)
        return times_ps, inputs

    def copy(self) -> "Tdc1Decoder":
        """Return a decoder that goes on from here."""
        other = Tdc1Decoder()
        other._state = self._state.copy()
        return other

    @classmethod
    def after_gap(cls, ticks: int, words: Words, phase: int = _NONE) -> "Tdc1Decoder":
        """Return a decoder that places the first of ``words`` at its time nearest to ``ticks``."""
        count = int(words[0] >> TIME_SHIFT)
        nearest = ticks + (count - ticks + _HALF_WRAP) % WRAP_TICKS - _HALF_WRAP
        decoder = cls(phase)
        decoder._state[_HIGH] = nearest - count
        return decoder


@kernel
def _number_of_tags(words: Words) -> int:
    n = 0
    for i in range(words.shape[0]):
        word = words[i]
        if not word & MARKER:
            n += (word & 1) + (word >> 1 & 1) + (word >> 2 & 1) + (word >> 3 & 1)
    return n


@kernel
def _decode(words: Words, state: Times, times_ps: Times, inputs: Inputs) -> None:
    last, high, phase = state[_COUNT], state[_HIGH], state[_PHASE]
    wraps = markers = unsound = n = 0
    for i in range(words.shape[0]):
        word = words[i]
        count = np.int64(word >> TIME_SHIFT)
        is_marker = (word & MARKER) != 0
        if last >= 0 and (count < last or (is_marker and count == last)):
            high += WRAP_TICKS
            wraps += 1
        last = count
        if is_marker:
            markers += 1
            apart = (count - phase + _PHASE_TOLERANCE_TICKS) % _HALF_WRAP
            unsound += phase >= 0 and apart > 2 * _PHASE_TOLERANCE_TICKS
            phase = count
            continue
        unsound += (word & 0xF) == 0
        for bit in range(4):
            if word >> bit & 1:
                times_ps[n] = (high + count) * TICK_PS
                inputs[n] = bit + 1
                n += 1
    state[_COUNT], state[_HIGH], state[_PHASE] = last, high, phase
    state[_WRAPS] += wraps
    state[_MARKERS] += markers
    state[_UNSOUND] += unsound
