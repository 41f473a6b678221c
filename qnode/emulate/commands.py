"""Serving commands that are lines of text; each emulator says what it answers."""

from collections.abc import Callable

import trio

MOST_PENDING_BYTES = 65536


async def serve_commands(
    stream: trio.abc.Stream, answer: Callable[[str], bytes], *, command_end: bytes = b"\n"
) -> None:
    """Answer each command of one connection until it ends; b"" is no answer."""
    pending = b""
    while data := await stream.receive_some():
        pending = (pending + data)[-MOST_PENDING_BYTES:]
        *commands, pending = pending.split(command_end)
        for command in commands:
            said = answer(command.decode("ascii", "replace").strip())
            if said:
                await stream.send_all(said)
