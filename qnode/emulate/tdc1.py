"""An S-Fifteen TDC1: text commands over a serial line, and a stream of 32-bit words.

Commands and words are those of the maker's Python library; what `*IDN?`, `level?` and `REFCLK?` answer word
for word is not published.
"""

import struct
from collections import deque
from typing import Final

import trio

from qnode.emulate.clicks import Clicks, dark_counts
from qnode.tags.types import X_CHANNEL

TICK_PS: Final = 2000
HALF_TURN_TICKS: Final = 1 << 26
TURN_TICKS: Final = 1 << 27
MARKER_PHASE: Final = 3960
MARKER: Final = 0x11
FIFO_WORDS: Final = 1 << 16


class Tdc1Emulator:
    """A TDC1 behind a port, with detectors at two of its inputs.

    ``clicks`` come whether or not anybody listens. ``silent``: answers nothing and sends nothing.
    ``overflowed``: words that found the buffer full. ``sent_words``: words that were put into the line.
    ``lose_bytes``: so many bytes of the stream vanish next.
    """

    def __init__(self, clicks: Clicks | None = None, *, z_input: int = 1, x_input: int = 2) -> None:
        self.identity = "TDC1_00141"
        self.level_v = -0.5
        self.reference = 0
        self.streaming = False
        self.silent = False
        self.overflowed = 0
        self.sent_words = 0
        self.lose_bytes = 0
        self.commands: list[str] = []
        self._clicks = clicks or dark_counts(500.0)
        self._bits = {X_CHANNEL: 1 << (x_input - 1)}
        self._z_bit = 1 << (z_input - 1)
        self._answer_line = b""
        self._words = deque[int]()
        self._ready = trio.Event()
        self._zero_ticks: int | None = None
        self._last = self._boundary = 0

    async def serve(self, stream: trio.abc.Stream) -> None:
        """Answer one connection until it ends."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._detect)
            nursery.start_soon(self._send, stream)
            pending = b""
            while data := await stream.receive_some(4096):
                *lines, pending = (pending + data.replace(b"\r", b"\n")).split(b"\n")
                for line in lines:
                    for command in line.decode("ascii", "replace").split(";"):
                        self._execute(command.strip())
            nursery.cancel_scope.cancel()

    def _execute(self, command: str) -> None:
        if not command or self.silent:
            return
        self.commands.append(command)
        word, _, value = command.upper().partition(" ")
        if word == "*IDN?":
            self._say(self.identity)
        elif word == "LEVEL?":
            self._say(f"{self.level_v:.3f} V")
        elif word == "REFCLK?":
            self._say(str(self.reference))
        elif word in ("NIM", "TTL"):
            self.level_v = {"NIM": -0.5, "TTL": 1.0}[word]
        elif word in ("NEG", "POS"):
            self.level_v = float(value)
        elif word == "REFCLK":
            self.reference = int(value)
        elif word == "COUNTS?":
            self.streaming, self._zero_ticks = True, None
            self._words.clear()
        elif word == "ABORT":
            self.streaming = False
            self._words.clear()

    def _say(self, line: str) -> None:
        self._answer_line += line.encode() + b"\r\n"
        self._ready.set()

    async def _detect(self) -> None:
        """Turn the clicks into words while the device streams."""
        waiting: list[tuple[int, int]] = []
        async for block in self._clicks():
            until = block.until_ps // TICK_PS
            if not self.streaming:
                waiting.clear()
                continue
            if self._zero_ticks is None:
                self._zero_ticks, self._last = until, 0
                self._boundary = MARKER_PHASE + HALF_TURN_TICKS
                continue
            for time_ps, channel in zip(block.times_ps.tolist(), block.channels.tolist(), strict=True):
                waiting.append((time_ps // TICK_PS - self._zero_ticks, self._bits.get(channel, self._z_bit)))
            waiting.sort()
            ready = [one for one in waiting if one[0] < until - self._zero_ticks]
            del waiting[: len(ready)]
            self._put(ready, until - self._zero_ticks)

    def _put(self, events: list[tuple[int, int]], until: int) -> None:
        """Put words into the buffer: events of one tick in one word, a marker at each empty half turn."""
        merged: dict[int, int] = {}
        for tick, bit in events:
            merged[tick] = merged.get(tick, 0) | bit
        for tick, pattern in merged.items():
            self._mark(tick)
            self._put_word(tick, pattern)
            self._last = tick
        self._mark(until)

    def _mark(self, until: int) -> None:
        while self._boundary < until:
            if self._last < self._boundary - HALF_TURN_TICKS:
                self._put_word(self._boundary, MARKER)
            self._boundary += HALF_TURN_TICKS

    def _put_word(self, tick: int, pattern: int) -> None:
        if tick < 0:
            return
        if len(self._words) >= FIFO_WORDS:
            self.overflowed += 1
            return
        self._words.append((tick % TURN_TICKS) << 5 | pattern)
        self._ready.set()

    async def _send(self, stream: trio.abc.Stream) -> None:
        while True:
            await self._ready.wait()
            self._ready = trio.Event()
            text, self._answer_line = self._answer_line, b""
            words = list(self._words)
            self._words.clear()
            self.sent_words += len(words)
            data = text + struct.pack(f"<{len(words)}I", *words)
            lost = min(self.lose_bytes, len(data))
            self.lose_bytes -= lost
            if not self.silent:
                await stream.send_all(data[lost:])
