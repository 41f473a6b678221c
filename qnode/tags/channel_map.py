"""Which input of a time tagger each arm of the receiver is connected to."""

import re
from dataclasses import dataclass
from typing import Final

import numpy as np

from qnode.choices import Arm, choices_of
from qnode.tags.types import X_CHANNEL, Z_CHANNEL, Channels, Times

MOST_DELAY_PS: Final = 1_000_000  # the default order window: tags of both inputs stay within it
_EXPECTED: Final = "expected z=INPUT,x=INPUT, each with a delay if needed, such as z=1,x=2+350ps"
_ARM: Final = re.compile(r"(?P<arm>[zx])=(?P<input>-?\d{1,5})(?:(?P<delay>[+-]\d{1,12})ps)?", re.ASCII)


@dataclass(frozen=True)
class ChannelMap:
    """The inputs of the Z and the X detector, numbered as in the file; each delay is added to its tags."""

    z_input: int
    x_input: int
    z_delay_ps: int = 0
    x_delay_ps: int = 0

    def __str__(self) -> str:
        return f"z={self.z_input}{_delay(self.z_delay_ps)},x={self.x_input}{_delay(self.x_delay_ps)}"

    @property
    def delay_spread_ps(self) -> int:
        """How much the delays may add to the disorder of the tags."""
        return abs(self.z_delay_ps - self.x_delay_ps)

    def apply(self, times_ps: Times, inputs: "np.ndarray") -> tuple[Times, Channels]:
        """Return times and channels of the tags of both arms, in their order; other tags are left out."""
        is_z = inputs == self.z_input
        mapped = is_z | (inputs == self.x_input)
        is_z = is_z[mapped]
        delays_ps = np.where(is_z, np.int64(self.z_delay_ps), np.int64(self.x_delay_ps))
        return times_ps[mapped] + delays_ps, np.where(is_z, np.int8(Z_CHANNEL), np.int8(X_CHANNEL))


def _delay(delay_ps: int) -> str:
    return f"{delay_ps:+}ps" if delay_ps else ""


def channel_map(text: str) -> ChannelMap:
    """Read a map such as ``z=1,x=2+350ps``.

    Raises:
        ValueError: it names no input, or one twice, or an impossible delay; the text says what was expected.
    """
    found = dict[str, tuple[int, int]]()
    for part in text.split(","):
        match = _ARM.fullmatch(part.strip())
        if match is None:
            raise ValueError(f"channels: {_EXPECTED}, got {text!r}")
        arm, number, delay_ps = match["arm"], int(match["input"]), int(match["delay"] or 0)
        if arm in found:
            raise ValueError(f"channels: {arm} is there twice in {text!r}: {_EXPECTED}")
        if abs(delay_ps) > MOST_DELAY_PS:
            raise ValueError(f"channels: a delay of {delay_ps} ps, expected at most {MOST_DELAY_PS} ps")
        found[arm] = number, delay_ps
    if set(found) != set(choices_of(Arm)):
        raise ValueError(f"channels: {_EXPECTED}, got {text!r}")
    (z_input, z_delay_ps), (x_input, x_delay_ps) = found["z"], found["x"]
    if z_input == x_input:
        raise ValueError(f"channels: both arms at input {z_input} in {text!r}: {_EXPECTED}")
    return ChannelMap(z_input, x_input, z_delay_ps, x_delay_ps)
