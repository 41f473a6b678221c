"""Alice's light between her transmitter and the fibre, where instruments of their own stand."""

from collections.abc import Callable

import trio

from qnode.units import transmission


class Beam:
    """``power_w``: gives the power before the attenuator.

    ``attenuator_db``: its attenuation, beyond that at which the mean photon numbers are right.
    ``biases_rad``: how far each bias controller is from the best bias of its modulator. ``changed``: is set
    at the next `note_change`, which puts another event in its place.
    """

    def __init__(self) -> None:
        self.power_w: Callable[[], float] = lambda: 0.0
        self.attenuator_db = 0.0
        self.biases_rad: dict[str, float] = {}
        self.changed = trio.Event()

    def note_change(self) -> None:
        """Wake who follows the light."""
        self.changed.set()
        self.changed = trio.Event()

    def power_behind_w(self) -> float:
        """Return the power at a tap behind the attenuator."""
        return self.power_w() * transmission(self.attenuator_db)
