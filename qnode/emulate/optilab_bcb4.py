"""An Optilab BCB-4 bias controller as seen from its serial line, with the modulator that it holds."""

import re
from collections.abc import Callable

import trio

from qnode.emulate.commands import serve_commands

FULL_SCALE_V = 21.95
TOP_V = 10.97
LEVELS = 1 << 14
QUADRATURE_RISING, QUADRATURE_FALLING, MAXIMUM, MINIMUM, MANUAL, MANUAL_WITH_DITHER = range(1, 7)


class OptilabBcb4Emulator:
    """Tests read and set the attributes.

    ``maximum_v``, ``half_wave_v``: the curve of the modulator; a lock finds its point of it at once.
    ``acknowledges``: what answers a setting, None for nothing. ``sticks``: a voltage is not taken over.
    ``moved`` is called after every setting.
    """

    def __init__(self, unit: int = 1, firmware: str = "1.3.3") -> None:
        self.unit = unit
        self.firmware = firmware
        self.mode = QUADRATURE_RISING
        self.manual_v = 0.26
        self.maximum_v = 1.5
        self.half_wave_v = 4.2
        self.power_w = 1e-5
        self.acknowledges: str | None = None
        self.silent = False
        self.sticks = False
        self.heard: list[str] = []
        self.moved: Callable[[], None] = lambda: None

    @property
    def bias_v(self) -> float:
        """The voltage on the modulator."""
        offsets = {QUADRATURE_RISING: -0.5, QUADRATURE_FALLING: 0.5, MAXIMUM: 0.0, MINIMUM: 1.0}
        if self.mode in offsets:
            return self.maximum_v + offsets[self.mode] * self.half_wave_v
        return self.manual_v

    async def serve(self, stream: trio.abc.Stream) -> None:
        """Answer one connection."""
        await serve_commands(stream, self.answer, command_end=b"\r\n")

    def answer(self, command: str) -> bytes:
        """Return what answers a command; nothing to one for another unit."""
        self.heard.append(command)
        if self.silent:
            return b""
        if command.startswith(("READ", "RFW")):
            said = self._read(command)
        else:
            said = self._set(command)
            self.moved()
        return b"" if said is None else f"{said}\r\n".encode()

    def _read(self, command: str) -> str | None:
        answers = {
            f"RFW{self.unit}": self.firmware,
            f"READ{self.unit}V": f"{self._level(self.bias_v):05d}",
            f"READ{self.unit}VPI": f"{self._level(self.half_wave_v):05d}",
            f"READ{self.unit}S": f"{self.unit}{self.mode}{round(self.power_w / 2.26e-7):05d}",
        }
        return answers.get(command)

    def _set(self, command: str) -> str | None:
        if found := re.fullmatch(rf"SET{self.unit}M:([1-6])", command):
            self.mode = int(found[1])
            return self.acknowledges
        if found := re.fullmatch(rf"SET{self.unit}V:(\d{{5}})", command):
            if not self.sticks and int(found[1]) < LEVELS:
                self.manual_v = TOP_V - int(found[1]) * FULL_SCALE_V / LEVELS
            return self.acknowledges
        if command == f"RESET{self.unit}":
            self.mode, self.manual_v = QUADRATURE_RISING, 0.26
            return self.acknowledges
        return None

    def _level(self, volts: float) -> int:
        return round((TOP_V - volts) * LEVELS / FULL_SCALE_V)
