"""Drivers of instruments with lines of text through faults of their port: no wrong figure, a clear error."""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import pytest
import trio
from msgspec import Struct
from qnode_drivers.optilab_bcb4 import OptilabBcb4
from qnode_drivers.oz_dd100 import OzDd100
from qnode_drivers.scpi_attenuator import ScpiAttenuator
from qnode_drivers.scpi_sensor import ScpiSensor
from structlog.testing import capture_logs

from qnode.devices import scpi
from qnode.devices.readings import read
from qnode.devices.registry import DriverClass, driver_config
from qnode.emulate.faults import Faults
from qnode.emulate.optilab_bcb4 import OptilabBcb4Emulator
from qnode.emulate.oz_dd100 import OzDd100Emulator
from qnode.emulate.ports import Emulator, pty_port
from qnode.emulate.scpi import ScpiAttenuatorEmulator, ScpiEmulator
from qnode.errors import DeviceError, first_of

MOST_OPENINGS = 10
BABBLE = b"\xff\x00\x80" * 500 + b"boot 3.1\r\nready\r\n"

Device = tuple[DriverClass, dict[str, Any], Emulator, Any]


def devices() -> list[Device]:
    """Return drivers with their table, emulator, and what they read."""
    bias = OptilabBcb4Emulator()
    bias.mode, bias.manual_v = 5, 1.25
    return [
        (
            OptilabBcb4,
            {"identity": "1.3.3"},
            bias,
            {
                "bias_v": pytest.approx(1.25, abs=2e-3),
                "bias_lock_on": 0.0,
                "monitor_power_w": pytest.approx(1e-5, rel=0.03),
                "half_wave_v": pytest.approx(4.2, abs=2e-3),
            },
        ),
        (OzDd100, {"identity": "123456-01"}, OzDd100Emulator(), {"attenuation_db": 60.0}),
        (ScpiAttenuator, {"identity": "3328G00123"}, ScpiAttenuatorEmulator(), {"attenuation_db": 60.0}),
        (
            ScpiSensor,
            {"identity": "SN-1", "readings": {"x_k": {"query": "X?"}}},
            ScpiEmulator(answers={"X?": "3"}),
            {"x_k": 3.0},
        ),
    ]


class Stage:
    """One device behind a port with faults."""

    def __init__(self, driver: DriverClass, config: Struct, truth: Any, faults: Faults) -> None:
        self.driver, self.config, self.truth, self.faults = driver, config, truth, faults

    async def once(self, during: Callable[[], Awaitable[None]]) -> str:
        """Open, read the truth, let something happen, read again; return the error, "" if there was none."""
        try:
            async with self.driver.open(self.config) as device:
                assert await read(device) == self.truth
                await during()
                found = await read(device)
                assert self.faults.noise or found == self.truth
                assert all(abs(value) < 1e3 for value in found.values())
        except (Exception, BaseExceptionGroup) as error:
            first = first_of(error)
            if not isinstance(first, DeviceError):
                raise
            assert "\n" not in str(first)
            assert str(first)
            return str(first)
        return ""

    async def heals(self) -> None:
        """Open again as the supervisor does, until it works."""
        for _ in range(MOST_OPENINGS):
            if not await self.once(trio.lowlevel.checkpoint):
                return
            await trio.sleep(0.2)
        raise AssertionError(
            f"{self.driver.__name__} does not come back: {await self.once(trio.sleep_forever)}"
        )

    async def storm(self) -> None:
        """Let each fault come and go."""
        faults = self.faults

        async def silence() -> None:
            faults.silent = True

        async def halves() -> None:
            faults.halves = True

        async def noise() -> None:
            faults.noise = 0.4

        async def unplug() -> None:
            faults.unplug()

        async def reset() -> None:
            faults.reset()

        said = await self.once(silence)
        assert "nothing came" in said, said
        faults.silent = False
        await self.heals()
        said = await self.once(halves)
        assert "came" in said, said
        faults.halves = False
        await self.heals()
        await self.once(noise)
        faults.noise = 0.0
        await self.heals()
        assert not await self.once(partial(faults.babble, BABBLE))
        await self.once(reset)
        await self.heals()
        assert await self.once(unplug)
        assert await self.once(trio.lowlevel.checkpoint), "opened a device that is not there"
        faults.plug(ScpiEmulator("OTHER,THING,SN-99,1.0"))
        said = await self.once(trio.lowlevel.checkpoint)
        assert said, "another device was taken for this one"
        faults.unplug()
        faults.plug()
        await self.heals()


async def test_a_storm_of_faults_gives_no_wrong_figure_and_heals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scpi, "ANSWER_LIMIT_S", 2.0)

    async def one(driver: DriverClass, table: dict[str, Any], emulator: Emulator, truth: Any) -> None:
        faults = Faults(seed=7)
        async with pty_port(emulator, faults) as path:
            config = driver_config(driver, {**table, "address": f"serial://{path}"}, "test")
            await Stage(driver, config, truth, faults).storm()

    with capture_logs(), trio.fail_after(240):
        async with trio.open_nursery() as nursery:
            for device in devices():
                nursery.start_soon(one, *device)
