"""Bob's tags from the file of a time tagger: a file, and what its inputs were connected to.

What belongs to a file can be said beside it, in ``NAME.toml`` for the file ``NAME``: see `TagFileNotes`. What
the caller says takes precedence.
"""

from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from msgspec import Struct

from qnode.config import load
from qnode.errors import ConfigError
from qnode.tags.arrays import Disorder
from qnode.tags.channel_map import ChannelMap, channel_map
from qnode.tags.formats import TagFile, open_tag_file
from qnode.tags.tag_time import signed_64
from qnode.tags.types import X_CHANNEL, Z_CHANNEL, Channels, Times

MOST_TAGS: Final = 1 << 18
_RECORDS_AT_ONCE: Final = 1 << 16
_LATEST_S: Final = 4_102_444_800.0  # the year 2100


class TagFileNotes(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a file does not say of itself.

    ``channels``: as `qnode.tags.channel_map.channel_map` reads it. ``format``: one of
    `qnode.tags.formats.FORMATS`. ``began_at_s``: when the first tag came, Unix time by Bob's clock.
    """

    channels: str | None = None
    format: str | None = None
    began_at_s: float | None = None


@dataclass(frozen=True)
class Survey:
    """The tags of both arms, from one reading of the whole file.

    ``span_ps``: from the first to the latest. ``disorder_ps``: how far a tag may be earlier than one before
    it. ``lost``: tags that the device lost, as
    the file says. ``truncated``: why the file is not sound to its end, or "".
    """

    z_tags: int
    x_tags: int
    span_ps: int
    disorder_ps: int
    lost: int
    truncated: str


@dataclass(frozen=True, eq=False)
class FileTags:
    """The tags of both arms in a file; ``began_at_s``: when the first of them came, if that is known.

    ``first_ps``: the time of the first, as in the file, its delay included.
    """

    file: TagFile
    inputs: ChannelMap
    began_at_s: float | None
    first_ps: int

    @property
    def path(self) -> Path:
        """The file."""
        return self.file.path

    @property
    def lost(self) -> int:
        """The tags that the device lost, as the file says, up to where it has been read."""
        return self.file.summary.lost

    def parts(
        self, most_tags: int = MOST_TAGS, zero_ps: int = 0
    ) -> Generator[tuple[Times, Channels], None, None]:
        """Yield times, counted from ``zero_ps``, and channels, ``most_tags`` at a time, in the file's order.

        Raises:
            ConfigError: the file can no longer be read.
        """
        times, channels = np.empty(0, np.int64), np.empty(0, np.int8)
        zero = np.int64(signed_64(zero_ps))
        for block in self.file.blocks(_RECORDS_AT_ONCE):
            more_times, more_channels = self.inputs.apply(block.times_ps, block.channels)
            times = np.concatenate((times, more_times - zero))  # wraps like a counter
            channels = np.concatenate((channels, more_channels))
            while times.shape[0] >= most_tags:
                yield times[:most_tags].copy(), channels[:most_tags].copy()
                times, channels = times[most_tags:], channels[most_tags:]
        if times.shape[0]:
            yield times, channels

    def survey(self) -> Survey:
        """Read the whole file once.

        Raises:
            ConfigError: it can no longer be read, or an arm has no tags.
        """
        disorder, counts, span_ps = Disorder(), np.zeros(2, np.int64), 0
        for times, channels in self.parts(zero_ps=self.first_ps):
            disorder.see(times)
            span_ps = max(span_ps, int(times.max()))
            counts += np.bincount(channels, minlength=2)
        arms = (("z", self.inputs.z_input, counts[Z_CHANNEL]), ("x", self.inputs.x_input, counts[X_CHANNEL]))
        for arm, number, count in arms:
            if not count:
                raise ConfigError(
                    f"{self.path}: arm {arm} is at input {number}, which has no tags: "
                    f"qnode tags {self.path} shows the inputs that have some; name them with --channels"
                )
        summary = self.file.summary
        return Survey(
            z_tags=int(counts[Z_CHANNEL]),
            x_tags=int(counts[X_CHANNEL]),
            span_ps=span_ps,
            disorder_ps=disorder.most_ps,
            lost=summary.lost,
            truncated=summary.truncated,
        )


def file_tags(path: Path, given: TagFileNotes) -> FileTags:
    """Open a tag file with what was ``given``, and what is said beside it.

    Raises:
        ConfigError: it cannot be read, has no tags of either arm, or nobody says what its inputs were
            connected to.
    """
    beside = path.with_name(path.name + ".toml")
    notes = load(beside, TagFileNotes) if beside.exists() else TagFileNotes()
    text = given.channels or notes.channels
    if text is None:
        raise ConfigError(
            f"{path}: which inputs were the detectors at? Say --channels z=1,x=2, or in {beside}: "
            'channels = "z=1,x=2"'
        )
    try:
        inputs = channel_map(text)
    except ValueError as error:
        raise ConfigError(f"{beside if given.channels is None else path}: {error}") from None
    file = open_tag_file(path, given.format or notes.format)
    began_at_s = given.began_at_s if given.began_at_s is not None else notes.began_at_s
    if began_at_s is not None and not 0.0 <= began_at_s <= _LATEST_S:
        raise ConfigError(f"{path}: began at {began_at_s:g}: expected Unix time in seconds (date +%s.%N)")
    for times, _ in FileTags(file, inputs, began_at_s, 0).parts():
        return FileTags(file, inputs, began_at_s, int(times[0]))
    raise ConfigError(
        f"{path}: there are no tags at inputs {inputs.z_input} and {inputs.x_input}: "
        f"qnode tags {path} shows the inputs that have some; name them with --channels"
    )
