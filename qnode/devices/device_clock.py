"""The clock of a device beside this machine's: whether its times can be right."""

from typing import Final

from qnode.errors import TransientDeviceError

_WORST_CLOCK: Final = 1e-3  # relative; crystals have some 50 ppm


class DeviceClock:
    """Compares the times in what a device sends with its arrival, which may be late, but never early.

    ``most_early_s``: allowed for the reading of this machine's clock. ``most_late_s``, for longer than
    ``longest_late_s``: then ``because`` is the end of the error.
    """

    def __init__(
        self, *, most_early_s: float, most_late_s: float, longest_late_s: float, because: str
    ) -> None:
        self._most_early_s = most_early_s
        self._most_late_s = most_late_s
        self._longest_late_s = longest_late_s
        self._because = because
        self._lead_s: float | None = None
        self._lead_at_s = 0.0
        self._late_since_s: float | None = None

    def expected_s(self, at_s: float) -> float:
        """Return the device's time in what arrives at ``at_s`` (monotonic) without delay."""
        return at_s + (self._lead_s or 0.0) - _WORST_CLOCK * (at_s - self._lead_at_s)

    def trust(self, device_s: float, at_s: float) -> None:
        """Take the device's time in what came at ``at_s`` for right: what came before may have been late."""
        self._lead_s, self._lead_at_s = max(device_s - at_s, self.expected_s(at_s) - at_s), at_s

    def agrees(self, device_s: float, at_s: float) -> bool:
        """Note the device's time in what came at ``at_s``; False if it came before its time.

        Raises:
            TransientDeviceError: it has been late for too long.
        """
        late_s = self.expected_s(at_s) - device_s
        if self._lead_s is None or late_s <= 0:
            if self._lead_s is not None and late_s < -self._most_early_s:
                return False
            self._lead_s, self._lead_at_s = device_s - at_s, at_s
        if late_s < self._most_late_s:
            self._late_since_s = None
        elif self._late_since_s is None:
            self._late_since_s = at_s
        elif at_s - self._late_since_s > self._longest_late_s:
            raise TransientDeviceError(
                f"its times are {late_s:.3f} s behind this machine's clock: {self._because}"
            )
        return True
