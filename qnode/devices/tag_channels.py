"""Which inputs of a time tagger are Bob's detectors, as a driver's configuration says."""

from typing import Annotated, Any, Final

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from qnode.config.description import Described, Limits, check_limits
from qnode.tags.channel_map import MOST_DELAY_PS, ChannelMap
from qnode.tags.types import TagBlock, Times

DELAY_LIMITS: Final = Limits(-MOST_DELAY_PS, MOST_DELAY_PS)


class TagChannels(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The table ``channels``: ``{z = 1, x = 2}``, by the numbers on the device."""

    z: Annotated[
        int,
        Described("input of the Z detector, by the number on the device", limits="an input of the device"),
    ]
    x: Annotated[
        int,
        Described("input of the X detector, by the number on the device", limits="an input of the device"),
    ]
    z_delay_ps: Annotated[int, Described("added to the times of the Z detector", limits=DELAY_LIMITS)] = 0
    x_delay_ps: Annotated[int, Described("added to the times of the X detector", limits=DELAY_LIMITS)] = 0

    def __post_init__(self) -> None:
        check_limits(self)
        if self.z == self.x:
            raise ValueError(f"z and x: expected two different inputs, got {self.z} twice")

    @property
    def channel_map(self) -> ChannelMap:
        """The same as a map of inputs to arms."""
        return ChannelMap(self.z, self.x, self.z_delay_ps, self.x_delay_ps)

    def check_inputs(self, first: int, last: int) -> None:
        """Refuse an input that the device does not have.

        Raises:
            ValueError: naming the key; for the ``__post_init__`` of a driver's configuration.
        """
        for name, number in (("z", self.z), ("x", self.x)):
            if not first <= number <= last:
                raise ValueError(f"channels.{name}: expected an input from {first} to {last}, got {number}")

    def block(self, times_ps: Times, inputs: npt.NDArray[Any], until_ps: int, lost: int = 0) -> TagBlock:
        """Return the tags of the two detectors, delayed and in order; other inputs are left out.

        ``times_ps`` in order, ``inputs`` of the same shape. ``until_ps``: all earlier times have come.
        """
        chosen = self.channel_map
        times, channels = chosen.apply(times_ps, inputs)
        if chosen.delay_spread_ps and times.shape[0]:
            order = np.argsort(times - times[0], kind="stable")  # times may wrap
            times, channels = times[order], channels[order]
        return TagBlock(times, channels, until_ps + min(self.z_delay_ps, self.x_delay_ps), lost)
