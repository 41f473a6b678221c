"""Attenuators that speak SCPI or nearly: byte by byte in each dialect, against emulators, through faults."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from driver_support import Replayed, Transcript, answered, refused
from qnode_drivers.scpi_attenuator import ScpiAttenuator, ScpiAttenuatorConfig

from qnode.devices.conformance import check_driver
from qnode.devices.registry import driver_config
from qnode.emulate.ports import pty_port, tcp_port
from qnode.emulate.scpi import ScpiAttenuatorEmulator
from qnode.errors import ConfigError, DeviceError

# Commands of the makers' manuals (Agilent 8156A and 816x, EXFO FVA, JDS Uniphase HA9); the sign of the EXFO
# FVA-3100 is second-hand.
HP = b"HEWLETT-PACKARD,HP8156A,3328G00123,1.01\n"
NO_ERROR = (b":SYST:ERR?\n", b'+0,"No error"\n')
LIMITS = [(b":INP:ATT? MIN\n", b"+0.00000000E+00\n"), (b":INP:ATT? MAX\n", b"+6.00000000E+01\n")]
LIMITS_2 = [(b":INP2:ATT? MIN\n", b"+0.00000000E+00\n"), (b":INP2:ATT? MAX\n", b"+6.00000000E+01\n")]
LIMITS_FVA = [(b"ATT? MIN\n", b"-1.500\n"), (b"ATT? MAX\n", b"-60.000\n")]
LIMITS_HA = [(b"ATT? MIN\n", b"0.000\n"), (b"ATT? MAX\n", b"100.000\n")]
TRANSCRIPTS: dict[str, tuple[Transcript, Transcript, Transcript]] = {  # opened, at its most, at 32.15 dB
    "scpi": (
        [(b"*IDN?\n", HP), NO_ERROR, *LIMITS, *LIMITS],
        [(b":INP:ATT 60.000\n", b""), NO_ERROR, (b":INP:ATT?\n", b"+6.00000000E+01\n")],
        [(b":INP:ATT 32.150\n", b""), NO_ERROR, (b":INP:ATT?\n", b"+3.21500000E+01\n")],
    ),
    "keysight-816x": (
        [(b"*IDN?\n", HP), NO_ERROR, *LIMITS_2, *LIMITS_2],
        [(b":INP2:ATT 60.000\n", b""), NO_ERROR, (b":INP2:ATT?\n", b"+6.00000000E+01\n")],
        [(b":INP2:ATT 32.150\n", b""), NO_ERROR, (b":INP2:ATT?\n", b"+3.21500000E+01\n")],
    ),
    "exfo-fva-3100": (
        [(b"*IDN?\n", b"EXFO,FVA-3100,243478,1.2\n"), *LIMITS_FVA, *LIMITS_FVA],
        [(b"ATT -60.000 DB\n", b""), (b"ATT?\n", b"-60.000\n")],
        [(b"ATT -32.150 DB\n", b""), (b"ATT?\n", b"-32.150\n")],
    ),
    "jdsu-ha": (
        [(b"IDN?\n", b"JDS,HA9,0,1.0\n"), *LIMITS_HA, *LIMITS_HA],
        [(b"ATT 100.000 DB\n", b""), (b"ATT?\n", b"100.000\n")],
        [(b"ATT 32.150 DB\n", b""), (b"ATT?\n", b"32.150\n")],
    ),
}


def emulated(preset: str) -> ScpiAttenuatorEmulator:
    if preset == "exfo-fva-3100":
        return ScpiAttenuatorEmulator(
            "ATT",
            identity="EXFO,FVA-3100,243478,1.2",
            limits_db=(1.5, 60.0),
            sign=-1.0,
            suffix="DB",
            form="{:.3f}",
        )
    if preset == "jdsu-ha":
        return ScpiAttenuatorEmulator(
            "ATT", identity="JDS,HA9,0,1.0", limits_db=(0.0, 100.0), suffix="DB", form="{:.3f}"
        )
    return ScpiAttenuatorEmulator(":INP2:ATT" if preset == "keysight-816x" else ":INP:ATT")


@asynccontextmanager
async def opened(emulator: ScpiAttenuatorEmulator, **keys: Any) -> AsyncIterator[ScpiAttenuator]:
    async with (
        tcp_port(emulator) as address,
        ScpiAttenuator.open(ScpiAttenuatorConfig(address=address, **keys)) as device,
    ):
        yield device


@pytest.mark.parametrize("preset", TRANSCRIPTS)
async def test_it_speaks_as_each_maker_writes(preset: str) -> None:
    opening, most, middle = TRANSCRIPTS[preset]
    replayed = Replayed([*opening, *most, *middle, *most])
    async with tcp_port(replayed) as address:
        table = {"address": address, "preset": preset, "channel": 2}
        config = driver_config(ScpiAttenuator, table, "test")
        async with ScpiAttenuator.open(config) as device:  # type: ignore[arg-type]
            await device.set_attenuation_db(32.15)
            limits_db = device.attenuation_limits_db
    assert replayed.left == []
    assert limits_db == tuple(abs(float(said)) for _, said in opening[-2:])


@pytest.mark.parametrize("preset", TRANSCRIPTS)
def test_the_emulator_answers_as_each_maker_writes(preset: str) -> None:
    opening, most, middle = TRANSCRIPTS[preset]
    whole = [*opening, *most, *middle]
    assert answered(emulated(preset).answer, whole) == whole


@pytest.mark.parametrize("preset", TRANSCRIPTS)
async def test_it_conforms_over_a_serial_line(preset: str) -> None:
    emulator = emulated(preset)
    async with pty_port(emulator) as path:
        table = {"address": f"serial://{path}", "preset": preset, "channel": 2}
        await check_driver(
            ScpiAttenuator, table, is_safe=lambda: emulator.attenuation_db == emulator.limits_db[1]
        )


async def test_it_conforms_over_tcp_with_a_shutter_and_commands_of_its_own() -> None:
    shutter = {"open": True}
    emulator = ScpiAttenuatorEmulator("VOA:LEVEL", allowed=("WAV 1550NM",))
    said = emulator.said

    def with_shutter(command: str) -> str | None:
        if command in ("SHUT 1", "SHUT 0"):
            shutter["open"] = command == "SHUT 0"
            return None
        return said(command)

    emulator.said = with_shutter  # type: ignore[method-assign]
    async with tcp_port(emulator) as address:
        table = {
            "address": address,
            "setting": "VOA:LEVEL {value:.2f}",
            "query": "VOA:LEVEL?",
            "least": "VOA:LEVEL? MIN",
            "most": "VOA:LEVEL? MAX",
            "safe_commands": ["SHUT 1"],
            "ready_commands": ["WAV 1550NM", "SHUT 0"],
        }
        await check_driver(ScpiAttenuator, table)
    assert emulator.attenuation_db == 60
    assert not shutter["open"]
    first = [command for command in emulator.heard if not command.endswith("?") and "? M" not in command]
    assert first[:4] == ["VOA:LEVEL 60.00", "SHUT 1", "WAV 1550NM", "SHUT 0"]


def clamping(emulator: ScpiAttenuatorEmulator) -> None:
    emulator.clamps_db = 40.0


def shorter(emulator: ScpiAttenuatorEmulator) -> None:
    emulator.limits_db = (0.0, 30.0)


def chatty(emulator: ScpiAttenuatorEmulator) -> None:
    emulator.answers[":INP:ATT?"] = "ready"
    emulator.header = ":OTHER"


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (clamping, "attenuation_db was set to 60 and reads back as 40 after 0.1 s"),
        (shorter, "refused ':INP:ATT 60.000': -222,\"Data out of range\""),
        (chatty, r"expected a number as answer to :INP:ATT\?, 'ready' came: is it another device"),
    ],
)
async def test_a_fault_while_opening_is_one_clear_line(
    fault: Callable[[ScpiAttenuatorEmulator], None], said: str
) -> None:
    emulator = ScpiAttenuatorEmulator()
    fault(emulator)
    errors = "" if fault is chatty else ":SYST:ERR?"
    with refused(said):
        async with opened(emulator, limits_db=(0.0, 60.0), settling_s=0.1, errors=errors):
            pass


async def test_a_garbled_answer_is_not_taken_for_the_most_attenuation() -> None:
    emulator = ScpiAttenuatorEmulator()
    answers = iter(["+0.6", "+60.0"])
    said = emulator.said
    emulator.said = (  # type: ignore[method-assign]
        lambda command: next(answers) if command == ":INP:ATT? MAX" else said(command)
    )
    with refused(r"expected limits in dB twice alike, \[0.0, 0.6\] and \[0.0, 60.0\] came: set limits_db"):
        async with opened(emulator):
            pass


async def test_an_attenuation_that_it_cannot_have_is_no_reading() -> None:
    emulator = ScpiAttenuatorEmulator()
    async with opened(emulator) as device:
        emulator.attenuation_db = 600.0
        with refused("expected an attenuation in dB of 0 to 60, 600 came: is it garbled"):
            await device.attenuation_db()


async def test_an_error_of_an_earlier_user_is_not_taken_for_ones_own() -> None:
    emulator = ScpiAttenuatorEmulator()
    emulator.errors.extend(['-410,"Query INTERRUPTED"'] * 3)
    async with opened(emulator):
        assert emulator.attenuation_db == 60


async def test_another_device_is_refused_and_nothing_is_set() -> None:
    emulator = ScpiAttenuatorEmulator(identity="Siglent,SPD3303X,SPD3X,1.01")
    with refused("expected a device with '3328G00123' in its identity, 'Siglent,SPD3303X,SPD3X,1.01' came"):
        async with opened(emulator, identity="3328G00123"):
            pass
    assert emulator.heard == ["*IDN?"]


async def test_a_working_point_is_set_once_it_is_safe_and_left_again() -> None:
    emulator = ScpiAttenuatorEmulator(allowed=(":OUTP ON",))
    async with opened(emulator, working_db=17.5, ready_commands=(":OUTP ON",)):
        settings = [command for command in emulator.heard if "?" not in command]
        assert settings == [":INP:ATT 60.000", ":OUTP ON", ":INP:ATT 17.500"]
    assert emulator.attenuation_db == 60


async def test_the_shutter_is_closed_although_the_attenuator_is_stuck() -> None:
    emulator = ScpiAttenuatorEmulator(allowed=(":OUTP OFF",))
    table: dict[str, Any] = {"safe_commands": (":OUTP OFF",), "settling_s": 0.1}
    async with opened(emulator, **table) as device:
        await device.set_attenuation_db(20.0)
        emulator.clamps_db = 20.0
        emulator.heard.clear()
    # Before the reading back, which may take longer than the way out has.
    assert [one for one in emulator.heard if "ERR" not in one][:3] == [
        ":INP:ATT 60.000",
        ":OUTP OFF",
        ":INP:ATT?",
    ]
    emulator.heard.clear()
    with refused("attenuation_db was set to 60 and reads back as 20"):
        async with opened(emulator, **table):
            pass
    assert ":OUTP OFF" in emulator.heard


async def test_a_value_outside_the_limits_is_not_sent() -> None:
    emulator = ScpiAttenuatorEmulator()
    async with opened(emulator) as device:
        assert (device.identity.model, device.identity.serial) == ("HEWLETT-PACKARD HP8156A", "3328G00123")
        heard = len(emulator.heard)
        with pytest.raises(DeviceError, match="an attenuation in dB of 0 to 60, got 61: not set"):
            await device.set_attenuation_db(61)
        assert len(emulator.heard) == heard


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"setting": "ATT 3"}, r"setting: expected a command with \{value\} in it"),
        ({"setting": "ATT {decibel}"}, r"setting: expected \{value\} and \{channel\} only, got 'decibel'"),
        ({"limits_db": [60.0, 0.0]}, r"limits_db: expected two figures, the least first, got \[60.0, 0.0\]"),
        ({"scale": 0.0}, "scale: expected another figure than 0"),
        ({"identify": "", "identity": "SN-1"}, "identity: there is no question for it, set identify"),
        ({"preset": "exfo"}, "preset"),
        ({"slot": 2}, "slot"),
        ({"address": "voa"}, "address: expected"),
    ],
)
def test_a_wrong_table_is_refused_with_the_key_and_the_remedy(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        driver_config(ScpiAttenuator, {"address": "tcp://voa:5025", **keys}, "[devices.voa.config]")
