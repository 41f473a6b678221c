"""The Optilab BCB-4: byte by byte, against its emulator over a pty and TCP, and through faults."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from driver_support import Replayed, answered, refused
from qnode_drivers.optilab_bcb4 import OptilabBcb4, OptilabBcb4Config

from qnode.devices.capabilities import BiasControl, BiasLock
from qnode.devices.conformance import check_driver
from qnode.devices.protocols import Sensor
from qnode.devices.readings import read
from qnode.emulate.optilab_bcb4 import OptilabBcb4Emulator
from qnode.emulate.ports import pty_port, tcp_port

# The maker's commands: CR LF, the unit's address in the command; a setting is not acknowledged here.
TRANSCRIPT = [
    (b"READ1S\r\n", b"1100044\r\n"),
    (b"RFW1\r\n", b"1.3.3\r\n"),
    (b"READ1S\r\n", b"1100044\r\n"),
    (b"READ1V\r\n", b"08636\r\n"),
    (b"SET1M:5\r\n", b""),
    (b"READ1S\r\n", b"1500044\r\n"),
    (b"SET1V:08636\r\n", b""),
    (b"READ1V\r\n", b"08636\r\n"),
    (b"SET1V:05949\r\n", b""),
    (b"READ1V\r\n", b"05949\r\n"),
    (b"READ1S\r\n", b"1500044\r\n"),
    (b"READ1VPI\r\n", b"05053\r\n"),
]


@asynccontextmanager
async def opened(emulator: OptilabBcb4Emulator, **keys: object) -> AsyncIterator[OptilabBcb4]:
    async with (
        tcp_port(emulator) as address,
        OptilabBcb4.open(OptilabBcb4Config(address=address, **keys)) as device,  # type: ignore[arg-type]
    ):
        yield device


async def test_it_speaks_as_the_maker_writes() -> None:
    replayed = Replayed(TRANSCRIPT)
    async with (
        tcp_port(replayed) as address,
        OptilabBcb4.open(OptilabBcb4Config(address=address, identity="1.3")) as device,
    ):
        await device.set_bias_v(3.0)
        readings = await device.readings()
    assert replayed.left == []
    assert readings == {
        "monitor_power_w": pytest.approx(9.944e-6),
        "half_wave_v": pytest.approx(4.2, abs=2e-3),
    }


async def test_the_emulator_answers_as_the_maker_writes() -> None:
    assert answered(OptilabBcb4Emulator().answer, TRANSCRIPT) == TRANSCRIPT


async def test_it_conforms_over_a_serial_line() -> None:
    async with pty_port(OptilabBcb4Emulator()) as path:
        await check_driver(OptilabBcb4, {"address": f"serial://{path}"})


async def test_it_conforms_over_tcp_when_settings_are_acknowledged() -> None:
    emulator = OptilabBcb4Emulator(unit=3)
    emulator.acknowledges = "OK"
    async with tcp_port(emulator) as address:
        await check_driver(OptilabBcb4, {"address": address, "unit": 3})


async def test_it_holds_the_point_of_the_configuration_and_goes_on_after_leaving() -> None:
    emulator = OptilabBcb4Emulator()
    async with opened(emulator, point="minimum") as device:
        assert await device.bias_point() == "minimum"
        assert isinstance(device, BiasControl)
        assert isinstance(device, BiasLock)
        assert isinstance(device, Sensor)
        assert set(await read(device)) == {"bias_v", "bias_lock_on", "monitor_power_w", "half_wave_v"}
    assert emulator.mode == 4
    heard = len(emulator.heard)
    async with opened(emulator, point="minimum"):
        pass
    assert not any(command.startswith("SET") for command in emulator.heard[heard:])


def other(emulator: OptilabBcb4Emulator) -> None:
    emulator.answer = lambda command: b"TENMA 72-2540 V2.1\r\n"  # type: ignore[method-assign]


def for_another(emulator: OptilabBcb4Emulator) -> None:
    emulator.answer = lambda command: b"2100044\r\n"  # type: ignore[method-assign]


def next_unit(emulator: OptilabBcb4Emulator) -> None:
    emulator.unit = 2


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (other, "as answer to READ1S, 'TENMA 72-2540 V2.1' came: is it another device, or another unit"),
        (for_another, "as answer to READ1S, '2100044' came: is it another device, or another unit"),
        (next_unit, "expected an answer to 'READ1S' within 2 s, nothing came"),
    ],
)
async def test_a_fault_while_opening_is_one_clear_line(
    fault: Callable[[OptilabBcb4Emulator], None], said: str
) -> None:
    emulator = OptilabBcb4Emulator()
    fault(emulator)
    with refused(said):
        async with opened(emulator):
            pass


async def test_another_firmware_is_refused() -> None:
    with refused("expected a device with '2.0' in its identity, '1.3.3' came"):
        async with opened(OptilabBcb4Emulator(), identity="2.0"):
            pass


async def test_a_voltage_that_is_not_taken_over_is_told() -> None:
    emulator = OptilabBcb4Emulator()
    async with opened(emulator) as device:
        await device.set_bias_v(1.0)
        emulator.sticks = True
        with refused(r"bias_v was set to 2 and reads back as 0.999791 after 2 s"):
            await device.set_bias_v(2.0)
        with refused(r"expected a bias in V of -10.9787 to 10.97, got 11: not set"):
            await device.set_bias_v(11.0)
