"""Ports of emulators: their faults, unplugging, and a device that comes back under its name."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress

import pytest
import trio

from qnode.devices.transport import Transport, open_transport
from qnode.devices.transport.lines import Lines
from qnode.emulate.ports import Emulator, Faults, pty_port, tcp_port, usb_port
from qnode.errors import DeviceGone, TransientDeviceError


class Named:
    """Answers each line with its name and the number of the line since it was started."""

    def __init__(self, name: str = "first") -> None:
        self.name = name

    async def serve(self, stream: trio.abc.Stream) -> None:
        number, pending = 0, b""
        while data := await stream.receive_some():
            *whole, pending = (pending + data).split(b"\n")
            for _ in whole:
                number += 1
                await stream.send_all(f"{self.name} {number}\n".encode())


@asynccontextmanager
async def pty_address(emulator: Emulator, faults: Faults) -> AsyncIterator[str]:
    async with pty_port(emulator, faults) as path:
        yield f"serial://{path}"


Port = Callable[[Emulator, Faults], AbstractAsyncContextManager[str]]
PORTS = pytest.mark.parametrize("port", [pty_address, tcp_port, usb_port])


async def ask(port: Transport, limit_s: float = 30) -> str:
    return await Lines(port).ask("?", limit_s=limit_s)


async def opened_again(address: str) -> str:
    """Open as a supervisor does: again and again."""
    while True:
        try:
            async with open_transport(address) as port:
                return await ask(port)
        except TransientDeviceError:
            await trio.sleep(0.01)


@PORTS
async def test_an_unplugged_device_is_gone_and_comes_back_under_its_name(port: Port) -> None:
    faults = Faults()
    with trio.fail_after(60):
        async with port(Named(), faults) as address:
            async with open_transport(address) as line:
                assert await ask(line) == "first 1"
                faults.unplug()
                with pytest.raises(DeviceGone):
                    await line.receive()
            with pytest.raises(DeviceGone):
                async with open_transport(address):
                    pass
            faults.plug()
            assert await opened_again(address) == "first 1"


@PORTS
async def test_another_device_may_be_on_the_port(port: Port) -> None:
    faults = Faults()
    with trio.fail_after(60):
        async with port(Named(), faults) as address:
            faults.unplug()
            faults.plug(Named("other"))
            assert await opened_again(address) == "other 1"
            faults.unplug()
            faults.plug()
            await trio.testing.wait_all_tasks_blocked()
            assert await opened_again(address) == "first 1"


@PORTS
async def test_silence_and_half_lines_end_in_one_error_and_pass(port: Port) -> None:
    faults = Faults()
    with trio.fail_after(60):
        async with port(Named(), faults) as address, open_transport(address) as line:
            faults.silent = True
            with pytest.raises(TransientDeviceError, match="nothing came"):
                await ask(line, 0.1)
            faults.silent, faults.halves = False, True
            with pytest.raises(TransientDeviceError, match=r"b'firs' came"):
                await ask(line, 0.5)
            faults.halves = False
            assert (await ask(line)).startswith("first")


@PORTS
async def test_noise_is_seeded_and_babble_is_bounded(port: Port) -> None:
    faults = Faults(seed=1)
    with trio.fail_after(60):
        async with port(Named(), faults) as address, open_transport(address) as line:
            faults.noise = 1.0
            with pytest.raises(TransientDeviceError):
                await ask(line, 0.2)
            faults.noise = 0.0
            assert (await answered(line)).startswith("first")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(faults.babble, b"\xff" * (1 << 20))
                with pytest.raises(TransientDeviceError, match=r"at most 4,096 bytes, b'.xff.*came"):
                    await Lines(line).receive(limit_s=30)
                nursery.cancel_scope.cancel()
            assert sum(len(one.data) for one in line.transcript.exchanges()) <= 2 * 4096
            assert (await answered(line)).startswith("first")


async def answered(port: Transport) -> str:
    """Ask until nothing of what came before is left between here and the device."""
    while True:
        with suppress(TransientDeviceError):
            return await ask(port, 1)


@PORTS
async def test_a_reset_starts_the_device_again(port: Port) -> None:
    faults = Faults()
    with trio.fail_after(60):
        async with port(Named(), faults) as address:
            async with open_transport(address) as line:
                assert [await ask(line), await ask(line)] == ["first 1", "first 2"]
                faults.reset()
                if port is pty_address:  # a serial line stays
                    await trio.testing.wait_all_tasks_blocked()
                    assert await ask(line) == "first 1"
                else:
                    with pytest.raises(DeviceGone):
                        await line.receive()
            assert await opened_again(address)
