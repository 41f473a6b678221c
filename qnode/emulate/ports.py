"""Ports behind which an emulator of a device answers: a pseudo-terminal, a TCP port, a USB device.

Each takes `Faults`, which can unplug the device and plug it in again under the same name.
"""

import json
import os
import socket
import tempfile
import tty
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import trio

from qnode.emulate.emulator import Emulator
from qnode.emulate.faults import Faults, serve

__all__ = ["Emulator", "Faults", "pty_port", "tcp_port", "usb_port"]

USB_BULK_OUT = 0x02
USB_BULK_IN = 0x82
USB_PACKET_BYTES = 512  # of a high-speed device


@asynccontextmanager
async def pty_port(emulator: Emulator, faults: Faults | None = None) -> AsyncIterator[str]:
    """Put the emulator behind a pseudo-terminal; gives a path that leads to it, for `serial://PATH`.

    The line stays when it is closed and opened again, as a real one does: one call of ``serve`` sees all.
    """
    with tempfile.TemporaryDirectory(prefix="qnode-") as folder:
        async with trio.open_nursery() as nursery:
            path = Path(folder, "line")
            await nursery.start(_keep_pty, path, emulator, faults)
            yield str(path)
            nursery.cancel_scope.cancel()


async def _keep_pty(
    path: Path, emulator: Emulator, faults: Faults | None, task_status: trio.TaskStatus[None]
) -> None:
    while True:
        scope, present = await faults.present(emulator) if faults else (trio.CancelScope(), emulator)
        master, slave = os.openpty()
        try:
            tty.setraw(slave)
            path.symlink_to(os.ttyname(slave))  # noqa: ASYNC240
            async with trio.lowlevel.FdStream(master) as stream:
                task_status.started()
                task_status = trio.TASK_STATUS_IGNORED
                with scope:
                    if faults:
                        await faults.serve(present, stream, stays=True)
                    else:
                        await serve(present, stream)
                    await trio.sleep_forever()
        finally:
            path.unlink(missing_ok=True)  # noqa: ASYNC240
            os.close(slave)


@asynccontextmanager
async def tcp_port(emulator: Emulator, faults: Faults | None = None, *, port: int = 0) -> AsyncIterator[str]:
    """Put the emulator behind a TCP port of this machine, any if 0; gives `tcp://127.0.0.1:PORT`."""
    [listener] = await trio.open_tcp_listeners(port, host="127.0.0.1")
    port = listener.socket.getsockname()[1]
    waiting = [listener]

    async def listen() -> list[trio.SocketListener]:
        return [waiting.pop()] if waiting else await trio.open_tcp_listeners(port, host="127.0.0.1")

    async with trio.open_nursery() as nursery:
        await nursery.start(_keep_listening, listen, _plain, emulator, faults)
        yield f"tcp://127.0.0.1:{port}"
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def usb_port(
    emulator: Emulator,
    faults: Faults | None = None,
    *,
    vendor: int = 0x1209,  # pid.codes, whose product 0001 is for tests
    product: int = 0x0001,
    serial: str = "0001",
) -> AsyncIterator[str]:
    """Put the emulator behind bulk endpoints of a USB device; gives its address `usb://...`.

    The device answers at a Unix socket, so that its user may be another process.
    """
    described: dict[str, int | str] = {
        "vendor": vendor,
        "product": product,
        "serial": serial,
        "bulk_out": USB_BULK_OUT,
        "bulk_in": USB_BULK_IN,
        "packet_bytes": USB_PACKET_BYTES,
    }
    with tempfile.TemporaryDirectory(prefix="qnode-") as folder:
        path = Path(folder, "usb")

        async def listen() -> list[trio.SocketListener]:
            path.unlink(missing_ok=True)  # noqa: ASYNC240
            bound = trio.socket.socket(socket.AF_UNIX)
            await bound.bind(str(path))
            bound.listen()
            return [trio.SocketListener(bound)]

        async with trio.open_nursery() as nursery:
            await nursery.start(_keep_listening, listen, _UsbDevice(described).connect, emulator, faults)
            yield f"usb://{vendor:04x}:{product:04x}/{serial}?socket={path}"
            nursery.cancel_scope.cancel()


Connect = Callable[[trio.SocketStream, Callable[[], Awaitable[None]]], Awaitable[None]]


async def _plain(stream: trio.SocketStream, answer: Callable[[], Awaitable[None]]) -> None:
    await answer()


class _UsbDevice:
    """What a connection to a USB device begins with: `?` asks what it is, `!` opens it for one user."""

    def __init__(self, described: dict[str, int | str]) -> None:
        self._described = described
        self._open = False

    async def connect(self, stream: trio.SocketStream, answer: Callable[[], Awaitable[None]]) -> None:
        asked = await stream.receive_some(1)
        if asked == b"?":
            await stream.send_all(json.dumps(self._described).encode() + b"\n")
        elif asked == b"!":
            await stream.send_all(b"B" if self._open else b"O")  # busy, or open
            if not self._open:
                self._open = True
                try:
                    await answer()
                finally:
                    self._open = False


async def _keep_listening(
    listen: Callable[[], Awaitable[list[trio.SocketListener]]],
    connect: Connect,
    emulator: Emulator,
    faults: Faults | None,
    task_status: trio.TaskStatus[None],
) -> None:
    while True:
        scope, present = await faults.present(emulator) if faults else (trio.CancelScope(), emulator)

        async def converse(stream: trio.SocketStream, present: Emulator = present) -> None:
            async with stream:
                if faults:
                    answer = partial(faults.serve, present, stream, stays=False)
                else:
                    answer = partial(serve, present, stream)
                with suppress(trio.BrokenResourceError):  # the other end has left
                    await connect(stream, answer)

        listeners = await listen()
        task_status.started()
        task_status = trio.TASK_STATUS_IGNORED
        with scope:
            await trio.serve_listeners(converse, listeners)
