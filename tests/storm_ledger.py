"""Files of tags, written at both ends of a device's port in two processes, and their comparison.

The device's file: each block that its detectors gave, and of it what it has counted. The driver's file: each
block that it has yielded, and the number of tags that it says were lost before it.
"""

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

_HEAD = struct.Struct("<IIqI")  # epoch, tags, origin of the times or lost tags, clicks that were not counted
_TIME_BYTES, _CHANNEL_BYTES = 8, 1

Times = npt.NDArray[np.int64]


class LedgerWriter:
    """Appends records; each is in the file before the function returns, also if the process is killed."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def write(
        self, epoch: int, times: Times, channels: npt.NDArray[np.int8], more: int, uncounted: int = 0
    ) -> None:
        """Append a block; ``more``: the driver's lost tags, or the device's time zero in ps."""
        head = _HEAD.pack(epoch, times.size, more, uncounted)
        os.write(self._file, head + times.astype("<i8").tobytes() + channels.astype(np.int8).tobytes())


@dataclass(frozen=True)
class Record:
    """One block of a file."""

    epoch: int
    times: Times
    channels: npt.NDArray[np.int8]
    more: int
    uncounted: int


def records(path: Path) -> Iterator[Record]:
    """Yield the whole records of a file; the last one may be cut by the end of its process."""
    with path.open("rb") as file:
        while len(head := file.read(_HEAD.size)) == _HEAD.size:
            epoch, tags, more, uncounted = _HEAD.unpack(head)
            body = file.read(tags * (_TIME_BYTES + _CHANNEL_BYTES))
            if len(body) < tags * (_TIME_BYTES + _CHANNEL_BYTES):
                return
            times = np.frombuffer(body, "<i8", tags)
            channels = np.frombuffer(body, np.int8, offset=tags * _TIME_BYTES)
            yield Record(epoch, times, channels, more, uncounted)


@dataclass
class Account:
    """What became of each click, in tags.

    ``received`` and ``lost`` are the driver's figures. ``after_end``: the device counted them after the last
    block that came of an opening: nothing of the opening can tell of them. ``not_counted``: clicks while no
    host had the device started.
    """

    clicks: int = 0
    not_counted: int = 0
    received: int = 0
    lost: int = 0
    after_end: int = 0
    openings: int = 0
    wrong: list[str] = field(default_factory=list)


class _Epoch:
    """The tags that the device has counted since one start: read once, in order."""

    def __init__(self) -> None:
        self.times: list[Times] = []
        self.channels: list[npt.NDArray[np.int8]] = []

    def joined(self) -> tuple[Times, npt.NDArray[np.int8]]:
        """Return times and channels of all of them."""
        return np.concatenate(self.times), np.concatenate(self.channels)


def account(device_files: list[Path], driver_file: Path) -> Account:
    """Compare tag by tag: every one that was yielded is at its place in the device's count.

    ``device_files``: one for each process that the device has had. No click has two places, and no place is
    yielded twice; so no click was counted twice.
    """
    found = Account()
    epochs = _counted(device_files, found)
    yielded: dict[int, list[Record]] = {}
    for one in records(driver_file):
        yielded.setdefault(one.epoch, []).append(one)
    for epoch, blocks in yielded.items():
        found.openings += 1
        found.received += sum(block.times.size for block in blocks)
        found.lost += sum(block.more for block in blocks)
        if epoch not in epochs:
            if any(block.times.size or block.more for block in blocks):
                found.wrong.append(f"epoch {epoch}: tags of a start that the device does not know")
            continue
        times, channels = epochs.pop(epoch).joined()
        place = _compare(epoch, times, channels, blocks, found.wrong)
        found.after_end += times.size - place
    found.after_end += sum(sum(part.size for part in rest.times) for rest in epochs.values())
    counted = found.received + found.lost + found.after_end
    if found.clicks != counted + found.not_counted:
        found.wrong.append(f"{found.clicks} clicks, but {counted} + {found.not_counted} accounted for")
    return found


def _counted(device_files: list[Path], found: Account) -> dict[int, _Epoch]:
    epochs: dict[int, _Epoch] = {}
    for path in device_files:
        latest_ps = -1
        for one in records(path):
            found.clicks += one.times.size + one.uncounted
            found.not_counted += one.uncounted
            if not one.times.size:
                continue
            true_ps = one.times + one.more
            if int(true_ps.min()) < latest_ps - _DISORDER_PS:
                found.wrong.append(f"{path.name}: the detectors gave a click again")
            latest_ps = max(latest_ps, int(true_ps.max()))
            epoch = epochs.setdefault(one.epoch, _Epoch())
            epoch.times.append(one.times)
            epoch.channels.append(one.channels)
    return epochs


_DISORDER_PS = 1_000_000  # clicks of neighbouring blocks may overlap by their jitter


def _compare(
    epoch: int, times: Times, channels: npt.NDArray[np.int8], blocks: list[Record], wrong: list[str]
) -> int:
    """Compare the blocks of an opening with what the device counted; return the place after the last."""
    place = 0
    for block in blocks:
        place += block.more
        end = place + block.times.size
        same = np.array_equal(times[place:end], block.times)
        if not (same and np.array_equal(channels[place:end], block.channels)):
            wrong.append(f"epoch {epoch}: the tags from {place} on are not those that the device counted")
            return min(end, times.size)
        place = end
    return place
