"""The words of a TDC1 as they arrive: lost bytes are noticed, and no garbled word becomes a tag.

The device numbers nothing, so a lost byte shows only in the words after it: they begin at a wrong byte. Such
words have markers out of place or no input, or their time runs many times too fast. So words wait until some
further ones have come, and each piece is compared with its alternatives, which begin one to three bytes
later, and with this machine's clock. What is in doubt is thrown away and counted. How many words were in the
bytes that never arrived, nobody knows.
"""

from typing import Final

import numpy as np

from qnode.devices.device_clock import DeviceClock
from qnode.devices.tag_channels import TagChannels
from qnode.errors import TransientDeviceError
from qnode.tags.formats.tdc1_words import TICK_PS, TIME_SHIFT, WRAP_TICKS, Inputs, Tdc1Decoder, Words
from qnode.tags.tag_time import signed_64
from qnode.tags.types import TagBlock, Times
from qnode.units import PS_PER_S

WORD_BYTES: Final = 4
HELD_WORDS: Final = 16
TICKS_PER_S: Final = PS_PER_S // TICK_PS
WRAP_S: Final = WRAP_TICKS / TICKS_PER_S
MUCH_FASTER: Final = 32  # from a wrong byte on, time runs 256 times too fast, or at random
MOST_EARLY_S: Final = WRAP_S / 2  # garbled words add whole turns of the counter
LONGEST_LATE_S: Final = 5.0
LONGEST_SEARCH_S: Final = 5.0  # in the dark, 25 words take 3.4 s
_TAIL_BYTES: Final = (HELD_WORDS + 1) * WORD_BYTES
_DOUBTFUL_BYTES: Final = 8 * WORD_BYTES  # at the beginning of a sound stretch: they may be so by chance
_MOST_SEARCHED_BYTES: Final = 4096


class Tdc1Stream:
    """Turns the bytes of one acquisition into tag blocks.

    ``lost_words``: thrown away. ``realignments``: how often the beginning of words was found again.
    ``has_begun``: whether sound words have come.
    """

    def __init__(self, channels: TagChannels) -> None:
        self.lost_words = 0
        self.realignments = 0
        self.has_begun = False
        self._channels = channels
        self._decoder = Tdc1Decoder()
        self._reached_ticks = self._newest_ticks = 0
        self._pending = b""
        self._unreported = 0
        self._clock = DeviceClock(
            most_early_s=MOST_EARLY_S,
            most_late_s=WRAP_S / 2,
            longest_late_s=LONGEST_LATE_S,
            because="bytes were lost over a whole turn of its counter, or more comes than the line carries",
        )
        self._searching_since_s: float | None = None

    @property
    def newest_ps(self) -> int:
        """The time of the last word that came, which may be held."""
        return self._newest_ticks * TICK_PS

    def feed(self, data: bytes, at_s: float) -> TagBlock:
        """Return the tags of words that are beyond doubt; ``at_s``: a monotonic clock when ``data`` came.

        Raises:
            TransientDeviceError: no words of a TDC1 can be found, or its counter lost a turn.
        """
        self._pending += data
        if self._searching_since_s is None:
            tags = self._decoded(at_s)
            if tags is not None:
                return self._block(*tags)
            self._searching_since_s = at_s
        self._search(at_s, self._searching_since_s)
        return self._block(np.empty(0, np.int64), np.empty(0, np.int16))

    def _decoded(self, at_s: float) -> tuple[Times, Inputs] | None:
        """Return the next tags, or None if the words are in doubt."""
        words = _words(self._pending)
        n_ready = max(0, words.shape[0] - HELD_WORDS)
        ready = self._decoder.copy()
        tags = ready.decode(words[:n_ready])
        reached_ticks = ready.reached_ticks
        all_of_it = ready.copy()
        all_of_it.decode(words[n_ready:])
        end = words.shape[0] * WORD_BYTES
        tail = self._pending[max(0, end - _TAIL_BYTES) :]
        if all_of_it.unsound or _offset_of(tail, 0, ready.phase) != 0:
            return None
        if words.shape[0] and not self._clock.agrees(all_of_it.reached_ticks / TICKS_PER_S, at_s):
            return None
        if words.shape[0]:
            self._newest_ticks = all_of_it.reached_ticks
            self.has_begun = True
        if n_ready:
            self._decoder, self._reached_ticks = ready, reached_ticks
            self._pending = self._pending[n_ready * WORD_BYTES :]
        return tags

    def _block(self, times_ps: Times, inputs: Inputs) -> TagBlock:
        lost, self._unreported = self._unreported, 0
        return self._channels.block(times_ps, inputs, signed_64(self._reached_ticks * TICK_PS), lost)

    def _search(self, at_s: float, since_s: float) -> None:
        """Find the byte at which words begin; throw away what comes before.

        Raises:
            TransientDeviceError: there has been none for seconds.
        """
        tail = self._pending[-_DOUBTFUL_BYTES - _TAIL_BYTES :]
        is_enough = len(tail) == _DOUBTFUL_BYTES + _TAIL_BYTES
        offset = _offset_of(tail, None, self._decoder.phase) if is_enough else None
        if offset is None:
            self._throw_away(max(0, len(self._pending) - _MOST_SEARCHED_BYTES))
            if at_s - since_s > LONGEST_SEARCH_S:
                raise TransientDeviceError(
                    f"no words of a TDC1 in what it sent for {LONGEST_SEARCH_S:g} s: is it one, and in "
                    "timestamp mode?"
                )
            return
        words = _words(tail[_DOUBTFUL_BYTES + offset :])
        began = self._reached_ticks + WRAP_TICKS // 2
        if self.has_begun:
            # The last word has just come. Time never goes back, even if this machine was late.
            expected = round(self._clock.expected_s(at_s) * TICKS_PER_S) - _passed_ticks(words)
            began = max(began, expected)
        self._decoder = Tdc1Decoder.after_gap(began, words, self._decoder.phase)
        if self.has_begun:
            # These times are right to the turn. If they are early, every piece before had come late.
            reached = self._decoder.copy()
            reached.decode(words)
            self._clock.trust(reached.reached_ticks / TICKS_PER_S, at_s)
        self._throw_away(len(self._pending) - _TAIL_BYTES + offset)
        self._searching_since_s = None
        self.realignments += 1

    def _throw_away(self, n_bytes: int) -> None:
        self._pending = self._pending[n_bytes:]
        n_words = -(-n_bytes // WORD_BYTES)
        self.lost_words += n_words
        self._unreported += n_words


def _words(data: bytes) -> Words:
    return np.frombuffer(data, "<u4", len(data) // WORD_BYTES).astype(np.uint32)


def _passed_ticks(words: Words) -> int:
    """Return the time from the first to the last of ``words``."""
    decoder = Tdc1Decoder()
    decoder.decode(words)
    return decoder.reached_ticks - int(words[0] >> TIME_SHIFT)


def _offset_of(tail: bytes, present: int | None, phase: int) -> int | None:
    """Return at which byte of ``tail`` words begin: ``present`` unless another one is clearly better.

    None if words are sound from none on.
    """
    if present is not None and len(tail) < _TAIL_BYTES:
        return present  # too few to judge
    passed: dict[int, int] = {}
    for offset in range(WORD_BYTES):
        words = _words(tail[offset:])
        decoder = Tdc1Decoder(phase)
        decoder.decode(words)
        if not decoder.unsound:
            passed[offset] = _passed_ticks(words)
    if not passed:
        return None
    best = min(passed, key=lambda offset: passed[offset])
    if present in passed and passed[best] * MUCH_FASTER > passed[present]:
        return present
    return best
