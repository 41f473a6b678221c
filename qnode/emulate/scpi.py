"""Instruments that answer text with text: an attenuator in several dialects, anything with set answers."""

from collections import deque
from collections.abc import Callable

import trio

from qnode.emulate.commands import serve_commands

UNDEFINED = '-113,"Undefined header"'
OUT_OF_RANGE = '-222,"Data out of range"'
NO_ERROR = '+0,"No error"'


class ScpiEmulator:
    """An instrument with ``answers`` by question, and ``allowed`` commands that have none.

    Tests read and set the attributes. ``heard``: all lines so far. ``silent``: it answers no more.
    """

    def __init__(
        self,
        identity: str = "MAKER,MODEL,SN-1,1.0",
        answers: dict[str, str | Callable[[], str]] | None = None,
        allowed: tuple[str, ...] = (),
        line_end: bytes = b"\n",
    ) -> None:
        self.identity = identity
        self.answers = dict(answers or {})
        self.allowed = allowed
        self.line_end = line_end
        self.errors: deque[str] = deque()
        self.silent = False
        self.heard: list[str] = []

    async def serve(self, stream: trio.abc.Stream) -> None:
        """Answer one connection."""
        await serve_commands(stream, self.answer, command_end=self.line_end)

    def answer(self, command: str) -> bytes:
        """Return what answers one line."""
        self.heard.append(command)
        said = None if self.silent else self.said(command)
        return b"" if said is None else said.encode() + self.line_end

    def said(self, command: str) -> str | None:
        """Return the answer as text; None is no answer."""
        if command in ("*IDN?", "IDN?"):
            return self.identity
        if command.lstrip(":").upper() == "SYST:ERR?":
            return self.errors.popleft() if self.errors else NO_ERROR
        if command in self.answers:
            found = self.answers[command]
            return found if isinstance(found, str) else found()
        if command not in self.allowed:
            self.errors.append(UNDEFINED)
        return None


class ScpiAttenuatorEmulator(ScpiEmulator):
    """An attenuator whose command is ``header``, such as `:INP:ATT` or `ATT`.

    ``sign``: -1 for instruments that call 3 dB of attenuation -3. ``suffix``: the unit that it wants.
    ``clamps_db``: what it sets instead of more. ``form``: how it writes figures.
    """

    def __init__(
        self,
        header: str = ":INP:ATT",
        *,
        identity: str = "HEWLETT-PACKARD,HP8156A,3328G00123,1.01",
        limits_db: tuple[float, float] = (0.0, 60.0),
        sign: float = 1.0,
        suffix: str = "",
        form: str = "{:+.8E}",
        allowed: tuple[str, ...] = (),
    ) -> None:
        super().__init__(identity, allowed=allowed)
        self.header = header
        self.limits_db = limits_db
        self.sign = sign
        self.suffix = suffix
        self.form = form
        self.attenuation_db = limits_db[0]
        self.clamps_db = limits_db[1]

    def said(self, command: str) -> str | None:
        """Return the answer as text; None is no answer."""
        figures = {"": self.attenuation_db, " MIN": self.limits_db[0], " MAX": self.limits_db[1]}
        for which, figure in figures.items():
            if command == f"{self.header}?{which}":
                return self.form.format(self.sign * figure)
        if command.startswith(f"{self.header} "):
            self._set(command.removeprefix(f"{self.header} ").removesuffix(self.suffix).strip())
            return None
        return super().said(command)

    def _set(self, text: str) -> None:
        try:
            wanted = self.sign * float(text)
        except ValueError:
            self.errors.append('-104,"Data type error"')
            return
        if not self.limits_db[0] <= wanted <= self.limits_db[1]:
            self.errors.append(OUT_OF_RANGE)
            return
        self.attenuation_db = min(wanted, self.clamps_db)
