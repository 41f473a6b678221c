"""The process of a maker's library: ``python -m qnode.devices.child_main FD MODULE:CLASS``.

It makes one object of the class, calls the methods that the node asks for, one after the other, and ends with
the node. What the library prints goes to the standard error output, never between the frames.
"""

import fcntl
import importlib
import os
import signal
import socket
import sys
from typing import Any

import msgspec

from qnode.devices.child_frames import LENGTH, Answer, Request, answered, encoded


def main() -> None:
    """Serve until the node closes the channel."""
    _end_with_the_node()
    os.dup2(2, 1)
    channel = socket.socket(fileno=int(sys.argv[1]))
    decoder = msgspec.msgpack.Decoder(Request)
    adapter: Any = None
    while (frame := _received(channel)) is not None:
        request = decoder.decode(frame)
        try:
            if adapter is None:
                adapter = _adapter(sys.argv[2])
            answer = answered(request.number, getattr(adapter, request.call)(**request.arguments) or {})
        except ImportError as error:
            answer = Answer(request.number, {}, {}, _one_line(error), "missing")
        except Exception as error:  # noqa: BLE001 - whatever a library raises is for the node to judge
            answer = Answer(request.number, {}, {}, _one_line(error), type(error).__name__)
        channel.sendall(encoded(answer))
    os._exit(0)  # a library's own threads and destructors may hang


def _one_line(error: Exception) -> str:
    """Return the text of an exception as one line."""
    return " ".join(str(error).split())


def _end_with_the_node() -> None:
    """Let the kernel kill this process when the node, which holds the other end of our input, is gone.

    So it also ends while a library hangs and holds the interpreter's lock.
    """
    fcntl.fcntl(0, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(0, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(0, fcntl.F_SETFL, fcntl.fcntl(0, fcntl.F_GETFL) | os.O_ASYNC)


def _adapter(target: str) -> Any:
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)()


def _received(channel: socket.socket) -> bytes | None:
    """Return the next frame without its length, None at the end."""
    head = _exactly(channel, LENGTH.size)
    return None if head is None else _exactly(channel, LENGTH.unpack(head)[0])


def _exactly(channel: socket.socket, n_bytes: int) -> bytes | None:
    data = bytearray()
    while len(data) < n_bytes:
        part = channel.recv(n_bytes - len(data))
        if not part:
            return None
        data += part
    return bytes(data)


if __name__ == "__main__":
    main()
