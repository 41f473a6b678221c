"""The open devices of a link, by name, for its controllers."""

import math
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, TypeVar

import trio

from qnode.devices.protocols import Device
from qnode.errors import DeviceError, TransientDeviceError

T = TypeVar("T")


class _Open(NamedTuple):
    device: Device
    limit_s: float
    failed: Callable[[Exception], None]


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
        self._open[name] = _Open(device, limit_s, put.send_nowait)
        self._changed.set()
        self._changed = trio.Event()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_raise_first, failures)
                await use()
                nursery.cancel_scope.cancel()
        finally:
            del self._open[name]

    async def opened(self, name: str) -> None:
        """Return once the device ``name`` is open."""
        while name not in self._open:
            await self._changed.wait()

    async def ask(self, name: str, capability: Any, question: Callable[[Any], Awaitable[T]]) -> T:
        """Return the answer of the device ``name``, which must have ``capability`` (a protocol).

        Raises:
            DeviceError: the device is not open, lacks the capability, refused, failed or did not answer.
        """
        if name not in self._open:
            raise DeviceError(f"device {name} is not open")
        device, limit_s, failed = self._open[name]
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


async def _raise_first(failures: trio.MemoryReceiveChannel[Exception]) -> None:
    raise await failures.receive()
