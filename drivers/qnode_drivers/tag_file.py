"""A time tagger's file in place of the time tagger: it is played once, and then ends.

Channels, formats and the small file beside it: docs/tag-files.md. Tag time zero is the first tag of both
arms, so that a counter that ran for days before the measurement costs no accuracy.

Everyone who has the file, and hears what the sites announce, knows the keys: the device declares itself
simulated.
"""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
import trio
from msgspec import Struct

from qnode.config.description import Described, check_limits
from qnode.devices.protocols import DeviceIdentity
from qnode.devices.tag_channels import TagChannels
from qnode.errors import ConfigError
from qnode.tags.file_tags import FileTags, TagFileNotes, file_tags
from qnode.tags.types import NO_TAGS, TagBlock
from qnode_drivers.pacing import Pace, Speed, is_paced

MOST_TAGS = 1 << 19


class TdcConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Bob's time tags from the file of a time tagger (docs/tag-files.md)."""

    file: Annotated[Path, Described("the tag file")]
    channels: Annotated[
        TagChannels | None,
        Described("inputs of the detectors, as qnode tags shows them; default: FILE.toml's"),
    ] = None
    began_at_s: Annotated[
        float | None,
        Described(
            "when the first tag came, Unix time by Bob's clock; default: FILE.toml's",
            limits="a time in seconds",
        ),
    ] = None
    format: Annotated[str | None, Described("format of a file that does not show it")] = None
    speed: Speed = None

    def __post_init__(self) -> None:
        check_limits(self)


class TagFileTdc:
    """The file of a time tagger, played once."""

    Config: ClassVar[type[Struct]] = TdcConfig

    def __init__(self, tags: FileTags, began_at_s: float, speed: float | None) -> None:
        self._tags = tags
        self._began_at_s = began_at_s
        self._speed = speed

    @classmethod
    @asynccontextmanager
    async def open(cls, config: TdcConfig) -> AsyncIterator["TagFileTdc"]:
        """Open the file, and read its beginning.

        Raises:
            ConfigError: it cannot be read, has no tags at the inputs, or something that it does not say is
                missing.
        """
        channels = None if config.channels is None else str(config.channels.channel_map)
        notes = TagFileNotes(channels=channels, format=config.format, began_at_s=config.began_at_s)
        tags = await trio.to_thread.run_sync(file_tags, config.file, notes)
        if tags.began_at_s is None:
            raise ConfigError(
                f"{config.file}: when did its first tag come? Say began_at_s, Unix time in seconds"
            )
        yield cls(tags, tags.began_at_s, config.speed)

    @property
    def identity(self) -> DeviceIdentity:
        """The identity that the device reports."""
        device = self._tags.file.device
        return DeviceIdentity(f"tag file of {device}" if device else "tag file", self._tags.path.name, True)

    @property
    def paced(self) -> bool:
        """True at real time only: at any other speed the source waits for a slow consumer."""
        return is_paced(self._speed)

    @property
    def origin_s(self) -> float:
        """Bob's wall-clock time at tag time zero, the first tag."""
        return self._began_at_s

    async def tags(self) -> AsyncGenerator[TagBlock, None]:
        """Yield the tags of the file, then end; at real time also empty blocks in a silence."""
        pace, until_ps, latest_ps, told_lost = Pace(self._speed), 0, 0, 0
        spread_ps = self._tags.inputs.delay_spread_ps
        with closing(self._tags.parts(MOST_TAGS, self._tags.first_ps)) as parts:
            while (part := await trio.to_thread.run_sync(next, parts, None)) is not None:
                times, channels = part
                lost, told_lost = self._tags.lost - told_lost, self._tags.lost
                progress = np.maximum(np.maximum.accumulate(times), latest_ps)
                first = 0
                while first < times.shape[0]:
                    longest_ps = pace.block_ps(until_ps)
                    while self.paced and progress[first] - until_ps > longest_ps:
                        until_ps += longest_ps
                        await pace.wait_until_due(until_ps)
                        yield TagBlock(NO_TAGS.times_ps.copy(), NO_TAGS.channels.copy(), until_ps)
                    end_ps = int(progress[first]) + longest_ps
                    last = max(first + 1, int(np.searchsorted(progress, end_ps)))
                    latest_ps = int(progress[last - 1])
                    await pace.wait_until_due(latest_ps)
                    until_ps = max(until_ps, latest_ps - spread_ps)
                    yield TagBlock(times[first:last].copy(), channels[first:last].copy(), until_ps, lost)
                    first, lost = last, 0
        if self._tags.lost > told_lost:  # after the last tag
            yield TagBlock(
                NO_TAGS.times_ps.copy(), NO_TAGS.channels.copy(), until_ps, self._tags.lost - told_lost
            )
