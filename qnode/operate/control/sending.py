"""Sends what is longer than an answer: recordings, frame after frame, and backups."""

import socket
from contextlib import suppress
from typing import BinaryIO

import trio

from qnode.operate.control.listening import SEND_LIMIT_S
from qnode.operate.recording.recordings import Recording

RECORDING_PAUSE_S = 0.05


async def send_recording(stream: trio.SocketStream, recording: Recording) -> None:
    """Send a recording until it or the client ends."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_end_with_caller, stream, recording)
        await _send_frames(stream, recording)
        nursery.cancel_scope.cancel()


async def send_file(stream: trio.SocketStream, content: BinaryIO) -> None:
    """Send a file from its beginning; a client that is gone or does not read ends it."""
    content.seek(0)
    with suppress(OSError):
        await trio.to_thread.run_sync(_send_file, stream.socket.fileno(), content)


async def _end_with_caller(stream: trio.SocketStream, recording: Recording) -> None:
    """End the recording when the client finishes or disconnects; on cancellation, end sending at once."""
    try:
        with suppress(trio.BrokenResourceError):
            while await stream.receive_some():
                pass
        recording.end("the recorder had enough")
        await trio.sleep_forever()
    finally:
        with suppress(OSError):
            stream.socket.shutdown(socket.SHUT_RDWR)  # what was sent can still be read


async def _send_frames(stream: trio.SocketStream, recording: Recording) -> None:
    """Send frames as they come, until the last one or the caller does not take them."""
    while True:
        ended = recording.ended  # looked at before taking: after the last frame nothing follows
        try:
            # In a thread: a socket holds a tenth of a frame, and the event loop's turns may be far apart. It
            # is waited for, so that the socket's number is not another's before it ends.
            await trio.to_thread.run_sync(_send_held, stream.socket.fileno(), recording)
        except OSError:
            return
        if ended:
            return
        await trio.sleep(RECORDING_PAUSE_S)


def _send_held(descriptor: int, recording: Recording) -> None:
    """Send what is held; raises OSError when the caller is gone or does not read."""
    with socket.fromfd(descriptor, socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(SEND_LIMIT_S)
        while (frame := recording.take()) is not None:
            connection.sendall(frame)


def _send_file(descriptor: int, content: BinaryIO) -> None:
    """Send a file; raises OSError when the caller is gone or does not read."""
    with socket.fromfd(descriptor, socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(SEND_LIMIT_S)
        connection.sendfile(content)
