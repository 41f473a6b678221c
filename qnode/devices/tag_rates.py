"""Rates of the tags of a time tagger, for its readings."""

from qnode.tags.tag_time import signed_64
from qnode.tags.types import X_CHANNEL, TagBlock
from qnode.units import PS_PER_S


class TagRates:
    """Counts what a driver yields; ``lost_total``: tags that the device reported as lost."""

    def __init__(self) -> None:
        self.lost_total = 0
        self._z = self._x = 0
        self._from_ps: int | None = None
        self._until_ps = 0

    def see(self, block: TagBlock) -> TagBlock:
        """Count a block, and return it."""
        x = int((block.channels == X_CHANNEL).sum())
        self._z, self._x = self._z + block.channels.shape[0] - x, self._x + x
        self.lost_total += block.lost
        if self._from_ps is None:
            self._from_ps = block.until_ps
        self._until_ps = block.until_ps
        return block

    def readings(self) -> dict[str, float]:
        """Return the rates since the last readings, and the number of lost tags."""
        passed_s = signed_64(self._until_ps - (self._from_ps or 0)) / PS_PER_S
        per_s = 1 / passed_s if passed_s > 0 else 0.0
        found = {
            "z_rate_hz": self._z * per_s,
            "x_rate_hz": self._x * per_s,
            "lost_total": float(self.lost_total),
        }
        self._z = self._x = 0
        self._from_ps = self._until_ps
        return found
