"""Supervision over a real pseudo-terminal: unplugging, a wrong device, and the device again."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from importlib.metadata import EntryPoint
from typing import Any, ClassVar

import msgspec
import pytest
import structlog
import trio

from qnode.config import DeviceSection
from qnode.devices import registry
from qnode.devices.protocols import Device, DeviceIdentity
from qnode.devices.status import DeviceStatus
from qnode.devices.supervisor import supervise
from qnode.devices.transport import Transcript, check_address, open_transport
from qnode.devices.transport.lines import Lines
from qnode.emulate.ports import Faults, pty_port


class ThermometerConfig(msgspec.Struct, frozen=True):
    address: str

    def __post_init__(self) -> None:
        check_address(self.address, "serial")


class Thermometer:
    """The smallest driver: it asks for identity and temperature."""

    Config: ClassVar[type[msgspec.Struct]] = ThermometerConfig

    def __init__(self, lines: Lines, identity: DeviceIdentity) -> None:
        self._lines = lines
        self.identity = identity

    @classmethod
    @asynccontextmanager
    async def open(cls, config: Any) -> "AsyncIterator[Thermometer]":
        async with open_transport(config.address) as port:
            lines = Lines(port)
            model, serial = (await lines.ask("*IDN?", limit_s=20)).split(",")
            yield cls(lines, DeviceIdentity(model, serial))

    async def readings(self) -> dict[str, float]:
        return {"temperature_celsius": float(await self._lines.ask("T?", limit_s=20))}


class ThermometerEmulator:
    def __init__(self, serial: str) -> None:
        self.serial = serial

    async def serve(self, stream: trio.abc.Stream) -> None:
        pending = b""
        while data := await stream.receive_some():
            *lines, pending = (pending + data).split(b"\n")
            for line in lines:
                await stream.send_all(b"21.5\n" if line == b"T?" else f"thermometer,{self.serial}\n".encode())


@pytest.fixture(autouse=True)
def _driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    class Found(EntryPoint):
        def load(self) -> type[Thermometer]:
            return Thermometer

    entry = Found("thermometer", "here:Thermometer", "qnode.drivers")
    monkeypatch.setattr(registry, "entry_points", lambda **_: [entry])
    yield
    structlog.reset_defaults()


async def use_until_gone(device: Device) -> None:
    """Use it as a link does: whoever needs the device sees first that it is gone."""
    assert isinstance(device, Thermometer)
    while True:
        await device.readings()
        await trio.sleep(0.05)


async def until(board: dict[str, DeviceStatus], name: str, state: str, because: str = "") -> DeviceStatus:
    with trio.fail_after(60):
        while True:
            status = board.get(name)
            if status is not None and status.state.state == state and because in status.state.because:
                return status
            await trio.sleep(0.01)


async def test_an_unplugged_device_comes_back_by_itself_and_the_other_one_goes_on() -> None:
    board: dict[str, DeviceStatus] = {}
    transcripts: dict[str, Transcript] = {}
    faults, others = Faults(), Faults()
    async with (
        pty_port(ThermometerEmulator("S-1"), faults) as path,
        pty_port(ThermometerEmulator("S-2"), others) as other_path,
        trio.open_nursery() as nursery,
    ):
        for name, place, serial in (("lab", path, "S-1"), ("rack", other_path, "S-2")):
            section = DeviceSection(
                driver="thermometer", config={"address": f"serial://{place}"}, serial_number=serial
            )
            nursery.start_soon(
                partial(
                    supervise,
                    name,
                    section,
                    use_until_gone,
                    board=board,
                    allow_simulated=False,
                    transcripts=transcripts,
                )
            )
        assert (await until(board, "lab", "running")).serial == "S-1"
        await until(board, "rack", "running")

        faults.unplug()
        status = await until(board, "lab", "waiting")
        assert "gone" in status.state.because
        assert "no such line" in (await until(board, "lab", "waiting", "no such line")).state.because
        assert status.failing_since is not None
        assert status.retry_at is not None
        assert b"T?\n" in [one.data for one in transcripts["lab"].exchanges() if one.sent]

        faults.plug()
        began = trio.current_time()
        status = await until(board, "lab", "running")
        assert (status.serial, status.failing_since) == ("S-1", None)
        assert trio.current_time() - began < 5

        faults.unplug()
        await until(board, "lab", "waiting")
        faults.plug(ThermometerEmulator("S-3"))
        await until(board, "lab", "waiting", "expected serial number S-1, found S-3 (thermometer)")
        faults.unplug()
        faults.plug()
        await until(board, "lab", "running")

        assert board["rack"].restarts == 0
        assert board["rack"].well
        nursery.cancel_scope.cancel()
