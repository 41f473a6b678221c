"""The open devices of a link, by name, for its controllers."""

import math
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import trio

from qnode.devices.protocols import Device
from qnode.errors import DeviceError, TransientDeviceError

T = TypeVar("T")


class _Open(NamedTuple):
    device: Device
    limit_s: float
    failed: Callable[[Exception], None]
    users: set[trio.CancelScope]


class Instruments:
    """A fault that a controller meets is raised in the device's own task, so that it is opened again."""

    def __init__(self) -> None:
        self._open: dict[str, _Open] = {}
        self._changed = trio.Event()

    async def keep(
        self, name: str, device: Device, limit_s: float, use: Callable[[], Awaitable[None]]
    ) -> None:
        """Run ``use`` while ``device`` is available under ``name``; it answers within ``limit_s``.

        Raises:
            Exception: a controller's question failed with it.
        """
        put, failures = trio.open_memory_channel[Exception](math.inf)
        self._open[name] = _Open(device, limit_s, put.send_nowait, set())
        self._changed.set()
        self._changed = trio.Event()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_raise_first, failures)
                await use()
                nursery.cancel_scope.cancel()
        finally:
            for user in self._open.pop(name).users:
                user.cancel()

    async def opened(self, *names: str) -> None:
        """Return once all devices ``names`` are open."""
        while not all(name in self._open for name in names):
            await self._changed.wait()

    @contextmanager
    def while_open(self, *names: str) -> Iterator[None]:
        """Leave the block as soon as one of the devices is closed: opened again, it has its safe settings.

        Raises:
            DeviceError: one is not open, or was closed.
        """
        with trio.CancelScope() as scope:
            openings = [self._opening(name) for name in names]
            for opening in openings:
                opening.users.add(scope)
            try:
                yield
            finally:
                for opening in openings:
                    opening.users.discard(scope)
        if scope.cancelled_caught:
            raise DeviceError(f"device {' or '.join(dict.fromkeys(names))} was closed")

    async def ask(self, name: str, capability: Any, question: Callable[[Any], Awaitable[T]]) -> T:
        """Return the answer of the device ``name``, which must have ``capability`` (a protocol).

        Raises:
            DeviceError: the device is not open, lacks the capability, refused, failed or did not answer.
        """
        device, limit_s, failed, _ = self._opening(name)
        if not isinstance(device, capability):
            raise DeviceError(f"device {name} ({type(device).__name__}) is no {capability.__name__}")
        try:
            with trio.fail_after(limit_s):
                return await question(device)
        except trio.TooSlowError:
            silent = TransientDeviceError(f"did not answer a controller within {limit_s:g} s")
            failed(silent)
            raise DeviceError(f"device {name} {silent}") from None
        except TransientDeviceError as error:
            failed(error)
            raise DeviceError(f"device {name}: {error}") from error
        except DeviceError as error:
            raise DeviceError(f"device {name}: {error}") from error
        except Exception as error:
            failed(error)
            raise DeviceError(f"device {name} failed: {type(error).__name__}") from error

    def _opening(self, name: str) -> _Open:
        if name not in self._open:
            raise DeviceError(f"device {name} is not open")
        return self._open[name]


async def _raise_first(failures: trio.MemoryReceiveChannel[Exception]) -> None:
    raise await failures.receive()
