"""Faults of the port between an emulator and its user, which a test switches on and off while it is open."""

import random
from contextlib import suppress

import trio

from qnode.emulate.emulator import Emulator


class Faults:
    """Faults of one port.

    ``silent``: nothing passes in either direction. ``noise``: the probability with which a byte to the host
    is replaced. ``halves``: only the first half of each piece to the host passes.
    """

    def __init__(self, seed: int = 0) -> None:
        self.silent = False
        self.noise = 0.0
        self.halves = False
        self._random = random.Random(seed)  # noqa: S311
        self._plugged = trio.Event()
        self._plugged.set()
        self._replacement: Emulator | None = None
        self._present = trio.CancelScope()
        self._streams: set[FaultyStream] = set()

    async def babble(self, data: bytes) -> None:
        """Send ``data`` to the host on each open connection, beside what the emulator says."""
        for stream in list(self._streams):
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                await stream.send_past(data)

    def reset(self) -> None:
        """Start the device again: each connection is served from the beginning, or closed if it can be."""
        for stream in self._streams:
            stream.scope.cancel()

    def unplug(self) -> None:
        """Take the device away until `plug`."""
        if self._plugged.is_set():
            self._plugged = trio.Event()
            self._present.cancel()

    def plug(self, other: Emulator | None = None) -> None:
        """Plug the device in again, or the ``other`` one, which stays until it is unplugged."""
        self._replacement = other
        self._plugged.set()

    # For ports

    async def present(self, emulator: Emulator) -> tuple[trio.CancelScope, Emulator]:
        """Wait until a device is plugged in; return the scope that its unplugging cancels, and the device."""
        await self._plugged.wait()
        self._present = trio.CancelScope()
        return self._present, self._replacement or emulator

    async def serve(self, emulator: Emulator, stream: trio.abc.Stream, *, stays: bool) -> None:
        """Serve ``stream`` through the faults; one that ``stays`` is served again after a reset."""
        while True:
            faulty = FaultyStream(stream, self)
            self._streams.add(faulty)
            try:
                with faulty.scope:
                    await serve(emulator, faulty)
            finally:
                self._streams.discard(faulty)
            if not (stays and faulty.scope.cancelled_caught):
                return

    def spoiled(self, data: bytes) -> bytes:
        """Return what arrives of ``data`` at the host."""
        if self.silent:
            return b""
        if self.halves:
            data = data[: len(data) // 2]
        if self.noise:
            chosen = self._random
            data = bytes(chosen.randrange(256) if chosen.random() < self.noise else byte for byte in data)
        return data


class FaultyStream(trio.abc.Stream):
    """The emulator's side of a connection with faults; ``scope`` is cancelled by a reset."""

    def __init__(self, stream: trio.abc.Stream, faults: Faults) -> None:
        self.scope = trio.CancelScope()
        self._stream = stream
        self._faults = faults
        self._sending = trio.Lock()

    async def send_past(self, data: bytes) -> None:
        """Send ``data`` as it is."""
        async with self._sending:
            await self._stream.send_all(data)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send what the faults leave of ``data``."""
        arrives = self._faults.spoiled(bytes(data))
        if arrives:
            await self.send_past(arrives)
        else:
            await trio.lowlevel.checkpoint()

    async def wait_send_all_might_not_block(self) -> None:
        """Wait for the connection."""
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Return what the host has sent while the line was not silent."""
        while True:
            data = bytes(await self._stream.receive_some(max_bytes))
            if not data or not self._faults.silent:
                return data

    async def aclose(self) -> None:
        """Close the connection."""
        await self._stream.aclose()


async def serve(emulator: Emulator, stream: trio.abc.Stream) -> None:
    """Serve one connection until it ends; an end by the host is none of the emulator's faults."""
    try:
        await emulator.serve(stream)
    except* (trio.BrokenResourceError, trio.ClosedResourceError):
        pass
