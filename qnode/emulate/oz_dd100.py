"""An OZ Optics DD-100 attenuator as seen from its serial line."""

from collections.abc import Callable

import trio

from qnode.emulate.commands import serve_commands

STEPS_A_DB = 97


class OzDd100Emulator:
    """Tests read and set the attributes.

    ``attenuation_db``: None while unknown, as after a fault of the motor. ``limits_db``: Error-6 beyond.
    ``echo``: repeat the commands. ``sticks``: the motor does not move. ``heard``: the commands so far.
    ``moved`` is called after every move.
    """

    def __init__(self, serial: str = "123456-01") -> None:
        self.serial = serial
        self.attenuation_db: float | None = 3.0
        self.limits_db = (0.0, 60.0)
        self.echo = False
        self.silent = False
        self.sticks = False
        self.heard: list[str] = []
        self.moved: Callable[[], None] = lambda: None

    async def serve(self, stream: trio.abc.Stream) -> None:
        """Answer one connection."""
        await serve_commands(stream, self.answer, command_end=b"\r")

    def answer(self, command: str) -> bytes:
        """Return the lines that answer a command."""
        self.heard.append(command)
        if self.silent or not command:
            return b""
        said = self._lines(command)
        echo = [command] if self.echo else []
        ending = [] if said and said[-1].startswith("Error") else ["Done", ""]
        return "".join(f"{line}\r\n" for line in [*echo, *said, *ending]).encode()

    def _lines(self, command: str) -> list[str]:
        known = self.attenuation_db is not None
        if command == "CD":
            return ["OZ Optics DD-100-MC", f"S/N: {self.serial}", "Wavelength: 1550nm", "I.L.: 1.20dB"]
        if command == "A?":
            return [f"Atten:{self.attenuation_db:.2f}(dB)" if known else "Atten:unknown"]
        if command == "D":
            return [f"DPos:{self._steps()}", f"ATTEN:{self.attenuation_db:.2f}" if known else "ATTEN:unknown"]
        if command == "S?":
            return [f"Pos:{self._steps()}"]
        if command == "H":
            self.attenuation_db = self.limits_db[0]
            self.moved()
            return ["Diff=0"]
        if command in ("E0", "E1"):
            self.echo = command == "E1"
            return []
        if command.startswith("A"):
            return self._move(command[1:])
        return ["Error-2"]

    def _move(self, text: str) -> list[str]:
        try:
            wanted = float(text)
        except ValueError:
            return ["Error-2"]
        if not self.limits_db[0] <= wanted <= self.limits_db[1]:
            return ["Error-6"]
        if not self.sticks:
            self.attenuation_db = wanted
            self.moved()
        return [f"Pos:{self._steps()}"]

    def _steps(self) -> int:
        return round((self.attenuation_db or 0.0) * STEPS_A_DB)
