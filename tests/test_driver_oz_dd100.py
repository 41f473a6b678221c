"""The OZ Optics DD-100: byte by byte, against its emulator over a pty and TCP, and through faults."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from driver_support import Replayed, answered, refused
from qnode_drivers.oz_dd100 import OzDd100, OzDd100Config

from qnode.devices.capabilities import VariableAttenuator
from qnode.devices.conformance import check_driver
from qnode.emulate.oz_dd100 import OzDd100Emulator
from qnode.emulate.ports import pty_port, tcp_port
from qnode.errors import DeviceError

# After the maker's commands as two open drivers use them: CR ends a command, CR LF each line of an answer.
TRANSCRIPT = [
    (b"CD\r", b"OZ Optics DD-100-MC\r\nS/N: 123456-01\r\nWavelength: 1550nm\r\nI.L.: 1.20dB\r\nDone\r\n\r\n"),
    (b"A60.00\r", b"Pos:5820\r\nDone\r\n\r\n"),
    (b"A?\r", b"Atten:60.00(dB)\r\nDone\r\n\r\n"),
    (b"A12.34\r", b"Pos:1197\r\nDone\r\n\r\n"),
    (b"A?\r", b"Atten:12.34(dB)\r\nDone\r\n\r\n"),
    (b"A60.00\r", b"Pos:5820\r\nDone\r\n\r\n"),
    (b"A?\r", b"Atten:60.00(dB)\r\nDone\r\n\r\n"),
]


@asynccontextmanager
async def opened(emulator: OzDd100Emulator, **keys: object) -> AsyncIterator[OzDd100]:
    async with (
        tcp_port(emulator) as address,
        OzDd100.open(OzDd100Config(address=address, **keys)) as device,  # type: ignore[arg-type]
    ):
        yield device


async def test_it_speaks_as_the_maker_writes() -> None:
    replayed = Replayed(TRANSCRIPT)
    async with (
        tcp_port(replayed) as address,
        OzDd100.open(OzDd100Config(address=address, identity="123456-01")) as device,
    ):
        await device.set_attenuation_db(12.34)
    assert replayed.left == []


async def test_the_emulator_answers_as_the_maker_writes() -> None:
    emulator = OzDd100Emulator()
    assert answered(emulator.answer, TRANSCRIPT) == TRANSCRIPT


async def test_it_conforms_over_a_serial_line() -> None:
    emulator = OzDd100Emulator()
    async with pty_port(emulator) as path:
        table = {"address": f"serial://{path}"}
        await check_driver(OzDd100, table, is_safe=lambda: emulator.attenuation_db == 60)


async def test_it_conforms_over_tcp_with_echo() -> None:
    emulator = OzDd100Emulator()
    emulator.echo = True
    async with tcp_port(emulator) as address:
        await check_driver(OzDd100, {"address": address}, is_safe=lambda: emulator.attenuation_db == 60)


async def test_nothing_is_set_before_the_most_attenuation_and_the_serial_number_is_known() -> None:
    emulator = OzDd100Emulator()
    async with opened(emulator, identity="123456-01") as device:
        assert emulator.heard == ["CD", "A60.00", "A?"]
        assert device.identity.serial == "123456-01"
        assert isinstance(device, VariableAttenuator)
    assert emulator.heard[-2:] == ["A60.00", "A?"]


async def test_a_working_point_is_set_once_it_is_safe_and_left_again() -> None:
    emulator = OzDd100Emulator()
    async with opened(emulator, working_db=17.5):
        assert emulator.heard[:4] == ["CD", "A60.00", "A?", "A17.50"]
        assert emulator.attenuation_db == 17.5
    assert emulator.attenuation_db == 60
    with refused("expected an attenuation in dB of 0 to 60, got 70: not set"):
        async with opened(emulator, working_db=70.0):
            pass


async def test_another_device_on_the_port_is_refused_and_not_moved() -> None:
    emulator = OzDd100Emulator(serial="999999-99")
    with refused("expected a device with '123456-01' in its identity, .*999999-99.* came: another device"):
        async with opened(emulator, identity="123456-01"):
            pass
    assert emulator.heard == ["CD"]


def unknown(emulator: OzDd100Emulator) -> None:
    emulator.attenuation_db, emulator.sticks = None, True


def stuck(emulator: OzDd100Emulator) -> None:
    emulator.sticks = True


def short(emulator: OzDd100Emulator) -> None:
    emulator.limits_db = (0.0, 40.0)


def silent(emulator: OzDd100Emulator) -> None:
    emulator.silent = True


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (unknown, "does not know its attenuation: block the light, send H"),
        (stuck, "attenuation_db was set to 60 and reads back as 3 after 1 s, expected a difference of 0.05"),
        (short, "answered A60.00 with Error-6: a value beyond its range"),
        (silent, "expected an answer to 'CD' within 2 s, nothing came"),
    ],
)
async def test_a_fault_while_opening_is_one_clear_line(fault: object, said: str) -> None:
    emulator = OzDd100Emulator()
    fault(emulator)  # type: ignore[operator]
    with refused(said):
        async with opened(emulator):
            pass


async def test_a_value_outside_the_limits_is_refused_before_it_is_sent() -> None:
    emulator = OzDd100Emulator()
    async with opened(emulator, limits_db=(1.2, 60.0)) as device:
        heard = len(emulator.heard)
        with pytest.raises(DeviceError, match=r"an attenuation in dB of 1.2 to 60, got 0.5: not set"):
            await device.set_attenuation_db(0.5)
        assert len(emulator.heard) == heard


async def test_an_attenuation_that_it_cannot_have_is_no_reading() -> None:
    emulator = OzDd100Emulator()
    async with opened(emulator) as device:
        emulator.attenuation_db = 600.0
        with refused("expected an attenuation in dB of 0 to 60, 600 came: is it garbled"):
            await device.attenuation_db()
