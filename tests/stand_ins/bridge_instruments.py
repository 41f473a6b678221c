"""Stand-ins for classes of pymeasure, for the child process of the bridge: properties, channels, faults."""

import os
import time
from pathlib import Path


class Adapter:
    """What a class of pymeasure closes."""

    def close(self) -> None:
        """Do nothing."""


class Bench:
    """An instrument whose settings outlive it, in a file; ``mood`` chooses a fault."""

    def __init__(self, resource: str, state: str, mood: str = "") -> None:
        if mood == "no such resource":
            raise OSError("VI_ERROR_RSRC_NFOUND (-1073807343):\nInsufficient location information")
        print("a library that prints")
        self.adapter = Adapter()
        self.id = f"MAKER,{resource},SN-1,1.0"
        self.mood = mood
        self.ready = False
        self._state = state

    @property
    def voa(self) -> "Bench":
        """A channel: the same object is enough."""
        return self

    def _read(self, name: str) -> float:
        if self.mood == "hangs" and name == "temperature":
            time.sleep(600)
        if self.mood == "crashes" and name == "temperature":
            os.abort()
        return float(self._lines()[name])

    def _lines(self) -> dict[str, str]:
        return dict(line.split() for line in Path(self._state).read_text().splitlines())

    def _write(self, name: str, value: float) -> None:
        if not -30 <= value <= 30:
            raise ValueError(f"Value of {value} is not in range [-30,30]")
        lines = self._lines()
        lines[name] = repr(min(value, 15.0) if self.mood == "truncates" else value)
        Path(self._state).write_text("".join(f"{key} {one}\n" for key, one in lines.items()))

    @property
    def temperature(self) -> float:
        """In degrees Celsius."""
        return self._read("temperature")

    @property
    def nothing(self) -> float:
        """No figure."""
        return float("nan")

    @property
    def attenuation(self) -> float:
        """In dB, negative."""
        return self._read("attenuation")

    @attenuation.setter
    def attenuation(self, value: float) -> None:
        self._write("attenuation", value)

    @property
    def voltage(self) -> float:
        """In millivolts."""
        return 1000 * self._read("voltage")

    @voltage.setter
    def voltage(self, value: float) -> None:
        self._write("voltage", value / 1000)
