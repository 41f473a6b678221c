"""What a check of a block's plausibility found: part of a block's public record, and of a node's status."""

from msgspec import Struct


class Finding(Struct, frozen=True, array_like=True):
    """What one check found: ``value``, and the limits within which it is plausible (None: no limit there).

    ``points_to``: what a value beyond the limits points to, empty where it is plausible.
    """

    check: str
    value: float
    least: float | None
    most: float | None
    points_to: str = ""

    @property
    def too_low(self) -> bool:
        """Tell whether the value lies below its limits."""
        return self.least is not None and not self.value >= self.least

    @property
    def too_high(self) -> bool:
        """Tell whether the value lies above its limits."""
        return self.most is not None and not self.value <= self.most

    @property
    def plausible(self) -> bool:
        """Tell whether the value lies within the limits (not a number does not)."""
        return not (self.too_low or self.too_high)

    @property
    def limits(self) -> str:
        """The limits in words."""
        if self.least is None:
            return f"at most {self.most:.6g}"
        return f"at least {self.least:.6g}" if self.most is None else f"{self.least:.6g} to {self.most:.6g}"

    def __str__(self) -> str:
        text = f"{self.value:.6g}, plausible {self.limits}"
        return f"{text}: points to {self.points_to}" if self.points_to else text
