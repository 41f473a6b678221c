"""From the tag frames of the open device protocol to blocks of tags, with an exact count of what was lost."""

import struct
from typing import Final

import numpy as np

from qnode.errors import DeviceError, TransientDeviceError
from qnode.tags.open_protocol import (
    MOST_TAGS_IN_FRAME,
    TAGS_HEAD_BYTES,
    ByteArray,
    ScannedFrame,
    decode_tags,
)
from qnode.tags.tag_time import signed_64
from qnode.tags.types import TagBlock

_ROOM: Final = 1 << 17  # tags of one block
_MOST_BLOCKS: Final = 64  # when nobody takes them, later tags are dropped and counted
# More than so many tags cannot have been lost between two frames: the count is broken.
_MOST_LOST: Final = 1 << 40


class TagStream:
    """The tags of one start of a TDC. Feed its frames in order of arrival, then take the blocks.

    ``tick``: picoseconds of a tick as numerator and denominator. ``channels``: device channel to tag channel.
    """

    def __init__(self, epoch: int, tick: tuple[int, int], channels: dict[int, int]) -> None:
        self.epoch = epoch
        self._tick = tick
        self._map = np.full(16, -1, np.int8)
        for device, channel in channels.items():
            self._map[device] = channel
        self._next = 0  # the number of the next tag
        self._until_ticks: int | None = None
        self._lost_before = 0
        self._n = 0
        self._blocks: list[TagBlock] = []
        self._times, self._channels = np.empty(_ROOM, np.int64), np.empty(_ROOM, np.int8)
        self._closed: int | None = None  # the time that the last block reached
        self.lost = self.repeated_frames = self.stale_frames = self.unmapped = 0

    def feed(self, data: ByteArray, frame: ScannedFrame) -> None:
        """Take one tag frame.

        Raises:
            TransientDeviceError: the device's time or count went back.
            DeviceError: firmware that follows the protocol does not send this.
        """
        if frame.length < TAGS_HEAD_BYTES or frame.length % 4:
            raise DeviceError(f"a tag frame of {frame.length} bytes, expected 32 and 4 for each record")
        head = data[frame.start : frame.start + TAGS_HEAD_BYTES].tobytes()
        epoch, tags, _, first, time, until = struct.unpack("<IHHQQQ", head)
        if epoch != self.epoch:
            self.stale_frames += 1  # from before the start
            return
        if first < self._next or (tags == 0 and first == self._next and until < (self._until_ticks or 0)):
            if first + tags > self._next or until > (self._until_ticks or 0):
                raise TransientDeviceError("the device counts its tags anew without having told so")
            self.repeated_frames += 1
            return
        if self._until_ticks is not None and until < self._until_ticks:
            raise TransientDeviceError("the clock of the device went back")
        lost = first - self._next
        if lost > _MOST_LOST:
            raise DeviceError(
                f"{lost} tags lost between two frames by its count, expected at most {_MOST_LOST}"
            )
        if lost:
            self._close()
            self._lost_before += lost
            self.lost += lost
        elif self._n + MOST_TAGS_IN_FRAME > _ROOM:
            self._close()
        numerator, denominator = self._tick
        base_ps, rest = divmod(time * numerator, denominator)
        times, channels = self._times[self._n :], self._channels[self._n :]
        found, kept = decode_tags(
            data, frame, signed_64(base_ps), rest, self._tick, self._map, times, channels
        )
        if found != tags:
            raise DeviceError(f"a tag frame says it has {tags} tags, its records do not fit that")
        self._next = first + tags
        self._until_ticks = until
        self._n += kept
        self.unmapped += found - kept

    def counts(self) -> dict[str, float]:
        """Return what was lost or dropped so far, as readings."""
        return {
            "tags_lost_count": float(self.lost),
            "repeated_frames_count": float(self.repeated_frames),
            "stale_frames_count": float(self.stale_frames),
            "unused_input_tags_count": float(self.unmapped),
        }

    def take(self) -> list[TagBlock]:
        """Return the blocks of the frames so far, each without a loss inside."""
        self._close()
        blocks, self._blocks = self._blocks, []
        return blocks

    def _close(self) -> None:
        """End the present block, if any frame has come since the last."""
        if self._until_ticks is None or not (
            self._n or self._lost_before or self._until_ticks != self._closed
        ):
            return
        until_ps = signed_64(self._until_ticks * self._tick[0] // self._tick[1])
        if len(self._blocks) >= _MOST_BLOCKS:
            self._lost_before += self._n
            self.lost += self._n
        else:
            times, channels = self._times[: self._n].copy(), self._channels[: self._n].copy()
            self._blocks.append(TagBlock(times, channels, until_ps, self._lost_before))
            self._closed, self._lost_before = self._until_ticks, 0
        self._n = 0
