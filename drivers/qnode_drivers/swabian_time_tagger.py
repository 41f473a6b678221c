"""Swabian Instruments Time Tagger 20, Ultra and X, through the maker's library in a process of its own."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any, ClassVar, Final

import numpy as np
import trio
from msgspec import Struct

from qnode.config.description import Described, Limits, check_limits
from qnode.devices.child import FIRST_ANSWER_LIMIT_S, Child, open_child
from qnode.devices.protocols import DeviceIdentity
from qnode.devices.tag_channels import TagChannels
from qnode.devices.tag_rates import TagRates
from qnode.errors import DeviceError, TransientDeviceError
from qnode.tags.types import TagBlock
from qnode.units import PS_PER_S

DEVICE: Final = "Swabian Time Tagger"
LIBRARY: Final = "qnode_drivers.swabian_library:SwabianLibrary"
REMEDY: Final = "pip install 'qnode[swabian]'"
PERIOD_S: Final = 0.05
READ_LIMIT_S: Final = 4.0  # a source is silent for less than 5 s
MOST_TAGS: Final = 1 << 20
MOST_INPUT: Final = 18
THRESHOLD_TOLERANCE_V: Final = 0.05
_THRESHOLD: Final = Limits(-2.5, 2.5)

# The kinds of events in the stream.
TIME_TAG, ERROR, _, _, MISSED_EVENTS = range(5)


class SwabianConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A Time Tagger on this machine's USB."""

    channels: Annotated[
        TagChannels, Described("inputs of the detectors: {z = 1, x = 2}; negative: falling edges")
    ]
    serial: Annotated[str, Described("serial number of the device; default: the only one")] = ""
    z_threshold_v: Annotated[
        float | None, Described("trigger level of the Z input; default: the device's", limits=_THRESHOLD)
    ] = None
    x_threshold_v: Annotated[
        float | None, Described("trigger level of the X input; default: the device's", limits=_THRESHOLD)
    ] = None

    def __post_init__(self) -> None:
        check_limits(self)
        for name, number in (("z", self.channels.z), ("x", self.channels.x)):
            if not 1 <= abs(number) <= MOST_INPUT:
                raise ValueError(
                    f"channels.{name}: expected an input from 1 to {MOST_INPUT}, negative for falling edges, "
                    f"got {number}"
                )

    def thresholds_v(self) -> dict[str, float]:
        """Return the trigger levels that are set, by input."""
        wanted = ((self.channels.z, self.z_threshold_v), (self.channels.x, self.x_threshold_v))
        return {str(abs(number)): level for number, level in wanted if level is not None}


class SwabianTimeTagger:
    """A Time Tagger whose stream runs."""

    Config: ClassVar[type[Struct]] = SwabianConfig
    paced = True

    def __init__(self, child: Child, identity: DeviceIdentity, channels: TagChannels) -> None:
        self.identity = identity
        self.origin_s = 0.0
        self._child = child
        self._channels = channels
        self._rates = TagRates()
        self._overflows = 0

    @classmethod
    @asynccontextmanager
    async def open(cls, config: SwabianConfig) -> AsyncIterator["SwabianTimeTagger"]:
        """Connect to the device and start its stream.

        Raises:
            DeviceError: no library, no device with this serial number, or a level reads back differently.
        """
        async with open_child(DEVICE, LIBRARY, REMEDY) as child:
            levels = config.thresholds_v()
            said = await child.ask(
                "open",
                limit_s=FIRST_ANSWER_LIMIT_S,
                serial=config.serial,
                thresholds_v=levels,
                inputs=[config.channels.z, config.channels.x],
                most_tags=MOST_TAGS,
            )
            for name, wanted in levels.items():
                got = said["thresholds_v"][name]
                if abs(got - wanted) > THRESHOLD_TOLERANCE_V:
                    raise DeviceError(
                        f"{DEVICE}: the trigger level of input {name} was set to {wanted:g} V and reads "
                        f"back as {got:g} V"
                    )
            device = cls(child, DeviceIdentity(said["model"], said["serial"]), config.channels)
            first = await device._read()
            device.origin_s = first["at_s"] - first["until_ps"] / PS_PER_S
            yield device

    async def tags(self) -> AsyncGenerator[TagBlock, None]:
        """Yield the tags of the stream; what the device missed is ``lost``, by its own count.

        Raises:
            DeviceGone, TransientDeviceError: the library crashed or hangs, its buffer was full, or the time
                of the device jumped.
        """
        while True:
            await trio.sleep(PERIOD_S)
            yield self._rates.see(await trio.to_thread.run_sync(self._block, await self._read()))

    async def readings(self) -> dict[str, float]:
        """Return rates since the last readings, lost tags, and overflows of the USB line."""
        await trio.lowlevel.checkpoint()
        return {**self._rates.readings(), "overflows_total": float(self._overflows)}

    async def _read(self) -> dict[str, Any]:
        got = await self._child.ask("read", limit_s=READ_LIMIT_S)
        self._overflows = got["overflows"]
        if got["is_full"]:
            raise TransientDeviceError(
                f"{DEVICE}: the library's buffer of {MOST_TAGS:,} tags was full, an unknown number of tags "
                "is lost: does this machine have too much to do?"
            )
        return got

    def _block(self, got: dict[str, Any]) -> TagBlock:
        kinds, inputs = got["kinds"], got["inputs"]
        if (kinds == ERROR).any():
            raise TransientDeviceError(f"{DEVICE}: it reports an error in its stream: its time has jumped")
        ours = (inputs == self._channels.z) | (inputs == self._channels.x)
        lost = int(got["missed"][(kinds == MISSED_EVENTS) & ours].sum(dtype=np.int64))
        are_tags = kinds == TIME_TAG
        return self._channels.block(got["times_ps"][are_tags], inputs[are_tags], got["until_ps"], lost)
