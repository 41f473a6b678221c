"""Records a running site into a folder."""

import select
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qnode.operate.control.client import NoAnswer, open_recording_stream
from qnode.operate.recording.frames import (
    Begun,
    BrokenFrame,
    Ended,
    Frame,
    FrameReader,
    Symbols,
    Tags,
    WholeBlock,
)
from qnode.tags.site_recording import FORMAT, RecordedBlock, SiteManifest, SiteRecordingWriter

PATIENCE_S = 10.0  # for the daemon to send its remaining data
LOOK_S = 0.1
_RECEIVE_BYTES = 1 << 20


@dataclass(frozen=True)
class Recorded:
    """The result of a recording. ``manifest``: None if nothing was recorded. ``whole``: it ended as asked,
    or with its emission run; otherwise it is only the first part.
    """

    manifest: SiteManifest | None
    because: str
    whole: bool


def record_site(
    site: Path,
    writer: SiteRecordingWriter,
    *,
    duration_s: float | None,
    wait: Callable[[float], bool],
    tell: Callable[[str], None],
    link: str = "",
) -> Recorded:
    """Record the site whose control socket is ``site``; return when it has ended and is written.

    ``link``: of a site with several; empty: the first.

    Ends ``duration_s`` seconds after the first recorded block began, when ``wait(seconds)`` returns True, or
    with the site's emission run; ``tell`` gets a message about each wait.

    Raises:
        NodeNotRunning: no node serves ``site``.
        NoAnswer: the site refuses, or sends other data.
        OSError: the folder cannot be written.
    """
    with open_recording_stream(site, link=link, patience_s=PATIENCE_S) as (connection, whose):
        tell(f"{whose.role}@{whose.link} ({whose.kme_id}): waiting for the next block to begin")
        intake = _Intake(writer)
        asked_to_end_at: float | None = None
        began_at: float | None = None
        while not intake.ended:
            readable, _, _ = select.select([connection], [], [], LOOK_S)
            if readable:
                try:
                    received = connection.recv(_RECEIVE_BYTES)
                except ConnectionError:
                    received = b""
                if not received:
                    break
                intake.take(received)
            now = time.monotonic()
            if intake.begun is not None and began_at is None:
                began_at = now
                tell("recording")
            if asked_to_end_at is None:
                over = duration_s is not None and began_at is not None and now - began_at >= duration_s
                if over or wait(0):
                    asked_to_end_at = now
                    with suppress(OSError):  # the daemon may have ended
                        connection.shutdown(socket.SHUT_WR)
            elif now - asked_to_end_at > PATIENCE_S:
                break
        return intake.finish()


class _Intake:
    """Writes received frames."""

    def __init__(self, writer: SiteRecordingWriter) -> None:
        self._writer = writer
        self._reader = FrameReader()
        self._blocks: list[RecordedBlock] = []
        self.begun: Begun | None = None
        self.ended: Ended | None = None

    def take(self, received: bytes) -> None:
        """Write the frames that ``received`` completes.

        Raises:
            NoAnswer: the data is not a recording.
        """
        try:
            for frame in self._reader.frames(received):
                self._write(frame)
        except (BrokenFrame, ValueError) as error:
            raise NoAnswer(f"the node sent something else than a recording: {error}") from None

    def _write(self, frame: Frame) -> None:
        if isinstance(frame, Tags):
            self._writer.add_tags(np.frombuffer(frame.times_ps, "<i8"), np.frombuffer(frame.channels, "|i1"))
        elif isinstance(frame, Symbols):
            self._writer.add_symbols(np.frombuffer(frame.slots, "<i8"), np.frombuffer(frame.symbols, "|u1"))
        elif isinstance(frame, WholeBlock):
            self._blocks.append(frame.block)
        elif isinstance(frame, Begun):
            self.begun = frame
        else:
            self.ended = frame

    def finish(self) -> Recorded:
        """Write the manifest, and return the result of the recording."""
        ended = self.ended or Ended("the daemon went away")
        whole = self.ended is not None and not ended.fell_behind
        begun = self.begun
        if begun is None:
            return Recorded(None, ended.because, whole)
        manifest = SiteManifest(
            format=FORMAT,
            role=begun.role,
            kme_id=begun.kme_id,
            peer_kme_id=begun.peer_kme_id,
            simulated=begun.simulated,
            run_id=begun.run_id,
            began_at_s=begun.began_at_s,
            ended=ended.because,
            start_uncertainty_s=begun.start_uncertainty_s,
            entries=self._writer.entries,
            blocks=tuple(self._blocks),
            link=begun.link,
            started_at_s=begun.started_at_s,
            origin_s=begun.origin_s,
            first_slot=begun.first_slot,
            disorder_ps=self._writer.disorder_ps,
        )
        self._writer.finish(manifest)
        return Recorded(manifest, ended.because, whole)
