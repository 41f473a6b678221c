"""Between the node, which hands on what is recorded, and the control socket, which sends it.

A recording of a site is its key. So one is made only where the site file allows it, for one recorder at a
time, and what was opened before a recorder came is never handed to it (`qnode.node.quantum.recorder`).

The node never waits: what a slow recorder has not taken is held up to a bound, then that recording ends.
Threads of the node put while the event loop takes.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final

import structlog

from qnode.errors import QnodeError
from qnode.operate.recording.frames import Ended, Frame, Symbols, Tags, WholeBlock, encode_frame

log = structlog.get_logger()

MOST_HELD_BYTES: Final = 64 << 20


class RecordingRefused(QnodeError):
    """A recording is refused; the message states the reason and the remedy."""


class Recording:
    """One recording, from its request on. Thread-safe."""

    def __init__(self, most_held_bytes: int) -> None:
        self._most_held_bytes = most_held_bytes
        self._lock = threading.Lock()
        self._frames: deque[bytes] = deque()
        self._held_bytes = 0
        self._ended = ""
        self.since_s = time.time()
        self.tags = self.symbols = self.blocks = 0

    def __repr__(self) -> str:
        return f"Recording({self.tags} tags, {self.symbols} symbols, {self.blocks} blocks)"

    @property
    def ended(self) -> str:
        """The reason for its end; empty while it continues."""
        return self._ended

    def put(self, frame: Frame) -> None:
        """Queue ``frame``; no effect after the end of the recording."""
        if self.ended:
            return
        encoded = encode_frame(frame)
        with self._lock:
            if self._ended:
                return
            if self._held_bytes + len(encoded) > self._most_held_bytes:
                self._end(f"the recorder fell behind by {self._held_bytes >> 20} MiB", fell_behind=True)
                return
            self._add(encoded)
            if isinstance(frame, Tags):
                self.tags += len(frame.channels)
            elif isinstance(frame, Symbols):
                self.symbols += len(frame.symbols)
            elif isinstance(frame, WholeBlock):
                self.blocks += 1

    def end(self, because: str) -> None:
        """Accept no more frames; queued ones are still sent."""
        with self._lock:
            if not self._ended:
                self._end(because)

    def take(self) -> bytes | None:
        """Remove and return the oldest queued frame; None if there is none."""
        with self._lock:
            if not self._frames:
                return None
            encoded = self._frames.popleft()
            self._held_bytes -= len(encoded)
            return encoded

    def forget(self) -> None:
        """Discard the queued frames; blocks keep a reference to the recording, not to its data."""
        with self._lock:
            self._frames.clear()
            self._held_bytes = 0

    def _end(self, because: str, *, fell_behind: bool = False) -> None:
        self._ended = because
        self._add(encode_frame(Ended(because, fell_behind)))

    def _add(self, encoded: bytes) -> None:
        self._frames.append(encoded)
        self._held_bytes += len(encoded)


class Recordings:
    """The recordings of this site: at most one at a time.

    ``allowed``: the site file allows recordings. ``changed`` is called at the start of a recording (with its
    Unix time) and at its end (with None).
    """

    def __init__(
        self,
        *,
        allowed: bool = False,
        most_held_bytes: int = MOST_HELD_BYTES,
        changed: Callable[[float | None], None] = lambda _since_s: None,
    ) -> None:
        self._allowed = allowed
        self._most_held_bytes = most_held_bytes
        self._changed = changed
        self._present: Recording | None = None

    @property
    def current(self) -> Recording | None:
        """The present recording; None if there is none."""
        present = self._present
        return present if present is not None and not present.ended else None

    def begin(self, *, user: int, process: int) -> Recording:
        """Begin a recording for ``process`` of ``user``; `finish` must follow.

        Raises:
            RecordingRefused: recordings are not allowed, or another one is running.
        """
        if not self._allowed:
            raise RecordingRefused(
                "this site may not be recorded: set allow_recording = true in [operate] of its site file and "
                "start the daemon again; whoever reads a recording knows the keys"
            )
        if self._present is not None:
            raise RecordingRefused("this site is being recorded already")
        self._present = recording = Recording(self._most_held_bytes)
        self._changed(recording.since_s)
        log.warning("recording.started", user=user, process=process)
        return recording

    def finish(self, because: str) -> None:
        """Forget the present recording; ``because``: the reason, unless it has ended already."""
        recording, self._present = self._present, None
        if recording is None:
            return
        recording.end(because)
        recording.forget()
        self._changed(None)
        log.warning(
            "recording.ended",
            because=recording.ended,
            seconds=round(time.time() - recording.since_s, 3),
            tags=recording.tags,
            symbols=recording.symbols,
            blocks=recording.blocks,
        )
