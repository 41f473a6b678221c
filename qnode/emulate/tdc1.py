"""An S-Fifteen TDC1: text commands over a serial line, and a stream of 32-bit words.

Commands and words are those of the maker's Python library; what `*IDN?`, `level?` and `REFCLK?` answer word
for word is not published.
"""

from contextlib import aclosing
from typing import Final

import numpy as np
import numpy.typing as npt
import trio

from qnode.emulate.clicks import Clicks, dark_counts
from qnode.tags.types import X_CHANNEL, TagBlock, Times

Words = npt.NDArray[np.uint32]

TICK_PS: Final = 2000
HALF_TURN_TICKS: Final = 1 << 26
TURN_TICKS: Final = 1 << 27
MARKER_PHASE: Final = 3960
MARKER: Final = 0x11
FIFO_WORDS: Final = 1 << 16
NOTHING: Final = (np.empty(0, np.int64), np.empty(0, np.uint32))


class Tdc1Emulator:
    """A TDC1 behind a port, with detectors at two of its inputs.

    ``clicks`` come while it is served, or while it runs (`run`). ``silent``: it answers and sends nothing.
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
        self._z_bit, self._x_bit = 1 << (z_input - 1), 1 << (x_input - 1)
        self._answer_line = b""
        self._words: list[Words] = []
        self._ready = trio.Event()
        self._zero_ticks: int | None = None
        self._last = self._boundary = 0
        self._running = False
        self._waiting: tuple[Times, Words] = NOTHING

    async def run(self) -> None:
        """Let the clicks come, whether or not anybody is connected."""
        self._running = True
        await self._detect()

    async def serve(self, stream: trio.abc.Stream) -> None:
        """Answer one connection until it ends."""
        async with trio.open_nursery() as nursery:
            if not self._running:
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
        async with aclosing(self._clicks()) as clicks:
            async for block in clicks:
                self._see(block)

    def _see(self, block: TagBlock) -> None:
        """Put the words of a block of clicks into the buffer; later clicks wait."""
        until = block.until_ps // TICK_PS
        if not self.streaming:
            self._zero_ticks = None
            return
        if self._zero_ticks is None:
            self._zero_ticks, self._last = until, 0
            self._boundary = MARKER_PHASE + HALF_TURN_TICKS
            self._waiting = NOTHING
            return
        ticks, patterns = self._waiting
        until -= self._zero_ticks
        bits = np.where(block.channels == X_CHANNEL, self._x_bit, self._z_bit).astype(np.uint32)
        ticks = np.concatenate([ticks, block.times_ps // TICK_PS - self._zero_ticks])
        patterns = np.concatenate([patterns, bits])
        order = np.argsort(ticks, kind="stable")
        ticks, patterns = ticks[order], patterns[order]
        n_ready = int(np.searchsorted(ticks, until))
        began = int(np.searchsorted(ticks, 0))  # a click from before the start
        self._put(ticks[began:n_ready], patterns[began:n_ready], until)
        self._waiting = ticks[n_ready:], patterns[n_ready:]

    def _put(self, ticks: Times, patterns: Words, until: int) -> None:
        """Put words into the buffer: events of one tick in one word, a marker at each empty half turn."""
        events, firsts = np.unique(ticks, return_index=True)
        if events.shape[0]:
            patterns = np.bitwise_or.reduceat(patterns, firsts)
        markers = []
        while self._boundary < until:
            before = int(np.searchsorted(events, self._boundary))
            last = int(events[before - 1]) if before else self._last
            if last < self._boundary - HALF_TURN_TICKS:
                markers.append(self._boundary)
            self._boundary += HALF_TURN_TICKS
        if events.shape[0]:
            self._last = int(events[-1])
        times = np.concatenate([events, np.array(markers, np.int64)])
        words = (times % TURN_TICKS << 5).astype(np.uint32)
        words |= np.concatenate([patterns, np.full(len(markers), MARKER, np.uint32)])
        words = words[np.argsort(times, kind="stable")]
        room = FIFO_WORDS - sum(one.shape[0] for one in self._words)
        self.overflowed += max(0, words.shape[0] - room)
        if words.shape[0]:
            self._words.append(words[:room])
            self._ready.set()

    async def _send(self, stream: trio.abc.Stream) -> None:
        while True:
            await self._ready.wait()
            self._ready = trio.Event()
            text, self._answer_line = self._answer_line, b""
            stream_words, self._words = self._words, []
            self.sent_words += sum(one.shape[0] for one in stream_words)
            data = text + b"".join(one.astype("<u4").tobytes() for one in stream_words)
            lost = min(self.lose_bytes, len(data))
            self.lose_bytes -= lost
            if not self.silent:
                await stream.send_all(data[lost:])
