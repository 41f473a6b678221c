"""Transports over real pseudo-terminals and sockets: bytes, lines, deadlines, and one clear line of error."""

import os
import threading
import tty
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
import trio

from qnode.config import convert
from qnode.devices.transport import SerialSettings, Transcript, Transport, check_address, open_transport
from qnode.devices.transport.lines import Lines
from qnode.devices.transport.usb_socket import SocketBackend
from qnode.emulate.ports import pty_port, tcp_port, usb_port
from qnode.errors import ConfigError, DeviceError, DeviceGone, TransientDeviceError


class Echo:
    """Answers each line with its capitals; some commands make it misbehave."""

    def __init__(self) -> None:
        self.answers: dict[bytes, bytes] = {}

    async def serve(self, stream: trio.abc.Stream) -> None:
        pending = b""
        while data := await stream.receive_some():
            *lines, pending = (pending + data).split(b"\r\n")
            for line in lines:
                await stream.send_all(self.answers.get(line, line.upper() + b"\r\n"))


@asynccontextmanager
async def opened(kind: str, emulator: Echo) -> AsyncIterator[Transport]:
    if kind == "serial":
        async with pty_port(emulator) as path, open_transport(f"serial://{path}") as port:
            yield port
    else:
        async with (
            usb_port(emulator) if kind == "usb" else tcp_port(emulator) as address,
            open_transport(address) as port,
        ):
            yield port


def lines(port: Transport, longest_bytes: int = 4096) -> Lines:
    return Lines(port, line_end=b"\r\n", command_end=b"\r\n", longest_bytes=longest_bytes)


KINDS = pytest.mark.parametrize("kind", ["serial", "tcp", "usb"])


@KINDS
async def test_an_instrument_answers_lines_and_both_directions_are_recorded(kind: str) -> None:
    async with opened(kind, Echo()) as port:
        with trio.fail_after(20):
            assert await lines(port).ask("*idn?", limit_s=10) == "*IDN?"
        exchanges = port.transcript.exchanges()
    assert [(one.sent, one.data) for one in exchanges] == [(True, b"*idn?\r\n"), (False, b"*IDN?\r\n")]


@KINDS
async def test_what_came_unasked_is_no_answer(kind: str) -> None:
    echo = Echo()
    echo.answers[b"first"] = b"A\r\nB\r\nhalf"
    async with opened(kind, echo) as port:
        device = lines(port)
        with trio.fail_after(20):
            assert await device.ask("first", limit_s=10) == "A"
            while sum(len(one.data) for one in port.transcript.exchanges() if not one.sent) < 10:
                await device.receive(limit_s=10)
            assert await device.ask("second", limit_s=10) == "SECOND"


@pytest.mark.parametrize("opens_again", [False, True])
async def test_a_late_answer_is_not_taken_for_that_to_the_next_question(
    opens_again: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Slow(Echo):
        async def serve(self, stream: trio.abc.Stream) -> None:
            while data := await stream.receive_some():
                if data.startswith(b"slow"):
                    await trio.sleep(0.1)
                await stream.send_all(data.upper())

    monkeypatch.setattr("qnode.devices.transport.lines.QUIET_S", 1.0)
    with trio.fail_after(60):
        async with pty_port(Slow()) as path:
            async with open_transport(f"serial://{path}") as port:
                device = lines(port)
                with pytest.raises(TransientDeviceError, match="expected an answer to 'slow'"):
                    await device.ask("slow", limit_s=0.01)
                if not opens_again:
                    assert await device.ask("next", limit_s=20) == "NEXT"
            async with open_transport(f"serial://{path}") as port:
                assert await lines(port).ask("last", limit_s=20) == "LAST"


@KINDS
@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (b"", r"expected an answer to 'go' within 0.2 s, nothing came"),
        (b"half", r"expected an answer to 'go' within 0.2 s, b'half' came"),
        (b"\xff" * 3000, r"expected an answer to 'go' of at most 100 bytes, b'.*'... \(.* bytes\) came"),
        (b"\xff\r\n", r"expected an answer to 'go', b'.xff' came, which is no ascii text"),
    ],
)
async def test_a_bad_answer_is_one_error_with_what_was_expected_and_what_came(
    kind: str, answer: bytes, told: str
) -> None:
    echo = Echo()
    echo.answers[b"go"] = answer
    async with opened(kind, echo) as port:
        with pytest.raises(TransientDeviceError, match=told):
            await lines(port, longest_bytes=100).ask("go", limit_s=0.2)


@KINDS
async def test_tasks_that_share_an_instrument_get_their_own_answers(kind: str) -> None:
    async with opened(kind, Echo()) as port:
        device = lines(port)

        async def ask(text: str) -> None:
            for _ in range(20):
                assert await device.ask(text, limit_s=30) == text.upper()

        async with trio.open_nursery() as nursery:
            for text in ("a", "b", "c"):
                nursery.start_soon(ask, text)


async def test_a_device_that_takes_nothing_is_told_within_the_limit() -> None:
    class Deaf(Echo):
        async def serve(self, stream: trio.abc.Stream) -> None:
            await trio.sleep_forever()

    async with opened("serial", Deaf()) as port:

        async def fill() -> None:
            for _ in range(200):
                await lines(port).tell("1" * 1000, limit_s=0.1)

        with trio.fail_after(60), pytest.raises(TransientDeviceError, match=r"take '1+' within 0.1 s"):
            await fill()


async def test_an_address_that_cannot_be_used_is_the_devices_fault_alone() -> None:
    with pytest.raises(DeviceError, match="address: expected serial"):
        async with open_transport("com1"):
            pass
    with pytest.raises(DeviceError, match="baud: expected 50 to 12,000,000, got 1"):
        async with open_transport("serial:///dev/ttyUSB0", serial=SerialSettings(baud=1)):
            pass


async def test_a_command_is_one_line_of_text() -> None:
    async with opened("tcp", Echo()) as port:
        for command in ("one\ntwo", "23 µm"):
            with pytest.raises(DeviceError, match=r"line end inside|no ascii text"):
                await lines(port).ask(command)


@KINDS
async def test_a_large_transfer_passes_both_ways_unchanged(kind: str) -> None:
    class Mirror(Echo):
        async def serve(self, stream: trio.abc.Stream) -> None:
            while data := await stream.receive_some():
                await stream.send_all(data)

    sent = bytes(range(256)) * 1200
    got = bytearray()
    async with opened(kind, Mirror()) as port, trio.open_nursery() as nursery:
        nursery.start_soon(port.send, sent)
        with trio.fail_after(60):
            while len(got) < len(sent):
                got += await port.receive()
    assert got == sent


async def test_an_unplugged_serial_line_is_a_device_gone() -> None:
    master, slave = os.openpty()
    tty.setraw(slave)
    path = os.ttyname(slave)
    os.close(slave)
    async with open_transport(f"serial://{path}") as port:
        async with trio.open_nursery() as nursery:

            async def receive() -> None:
                with pytest.raises(DeviceGone, match=r"gone \(unplugged\): plug it in"):
                    await port.receive()

            nursery.start_soon(receive)
            await trio.testing.wait_all_tasks_blocked()
            os.close(master)
        with pytest.raises(DeviceGone):
            await port.send(b"x")
        with pytest.raises(DeviceGone):
            await port.discard()


async def test_a_connection_that_the_device_closes_is_a_device_gone() -> None:
    class Closing(Echo):
        async def serve(self, stream: trio.abc.Stream) -> None:
            await stream.aclose()

    async with opened("tcp", Closing()) as port:
        with pytest.raises(DeviceGone, match="the device closed the connection"):
            await port.receive()


async def test_a_usb_device_that_breaks_off_is_gone() -> None:
    class Closing(Echo):
        async def serve(self, stream: trio.abc.Stream) -> None:
            await stream.send_all(b"last words")

    async with opened("usb", Closing()) as port:
        with trio.fail_after(30):
            assert await port.receive() == b"last words"
            with pytest.raises(DeviceGone, match=r"gone \(No such device\): plug it in"):
                await port.receive()
            with pytest.raises(DeviceGone, match=r"gone \(No such device\): plug it in"):
                await port.send(bytes(4 << 20))


async def test_a_usb_device_is_found_by_its_serial_number() -> None:
    async with usb_port(Echo(), serial="SN 7") as address:
        async with open_transport(address) as port:
            with pytest.raises(TransientDeviceError, match="in use by another program: end it"):
                async with open_transport(address):
                    pass
            assert await lines(port).ask("a", limit_s=10) == "A"
        async with open_transport(address.replace("/SN 7", "")) as port:
            assert await lines(port).ask("b", limit_s=10) == "B"
        with pytest.raises(DeviceGone, match=r"expected the serial number SN 8, found SN 7: plug in"):
            async with open_transport(address.replace("SN 7", "SN 8")):
                pass
        with pytest.raises(DeviceGone, match=r"no USB device 1209:0002: plug it in or correct the address"):
            async with open_transport(address.replace(":0001", ":0002")):
                pass
        with pytest.raises(DeviceError, match=r"interface 3 is not there, or has not bulk endpoints"):
            async with open_transport(f"{address}&interface=3"):
                pass


async def test_a_usb_interface_is_left_to_its_kernel_driver_unless_it_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    taken: list[int] = []
    monkeypatch.setattr(SocketBackend, "is_kernel_driver_active", lambda *_: not taken)
    monkeypatch.setattr(SocketBackend, "detach_kernel_driver", lambda _, handle, number: taken.append(number))
    monkeypatch.setattr(SocketBackend, "attach_kernel_driver", lambda _, handle, number: taken.remove(number))
    async with usb_port(Echo()) as address:
        with pytest.raises(DeviceError, match=r"a driver of the kernel has it: .* with \?interface=0"):
            async with open_transport(address):
                pass
        async with open_transport(f"{address}&interface=0") as port:
            assert taken == [0]
            assert await lines(port).ask("a", limit_s=10) == "A"
        assert taken == []


async def test_a_serial_line_whose_opening_hangs_can_be_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qnode.devices.transport.worker.END_LIMIT_S", 0.05)
    hangs = threading.Event()

    def never_opens(*_: object, **__: object) -> None:
        hangs.wait()
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("serial.Serial", never_opens)
    with trio.fail_after(30):
        with trio.move_on_after(0.1) as scope:
            async with open_transport("serial:///dev/ttyUSB0"):
                pass
        assert scope.cancelled_caught
    hangs.set()


async def test_a_usb_device_waits_for_a_reader_that_is_slow() -> None:
    sent = 0

    class Flood(Echo):
        async def serve(self, stream: trio.abc.Stream) -> None:
            nonlocal sent
            while sent < 8 << 20:
                await stream.send_all(sent.to_bytes(8, "big") * 512)
                sent += 4096

    got = 0
    async with opened("usb", Flood()) as port:
        first = await port.receive(8)
        await trio.sleep(0.5)
        assert 0 < sent < 4 << 20  # only what the kernel holds for both sockets
        pending = bytearray(first)
        with trio.fail_after(60):
            while got < 8 << 20:
                while len(pending) >= 4096:
                    assert pending[:4096] == got.to_bytes(8, "big") * 512
                    del pending[:4096]
                    got += 4096
                if got < 8 << 20:
                    pending += await port.receive()


async def test_a_serial_line_in_use_is_refused_and_free_again_afterwards() -> None:
    async with pty_port(Echo()) as path:
        async with open_transport(f"serial://{path}"):
            with pytest.raises(TransientDeviceError, match="in use by another program: end it"):
                async with open_transport(f"serial://{path}"):
                    pass
        async with open_transport(f"serial://{path}?baud=115200") as port:
            assert await lines(port).ask("again", limit_s=10) == "AGAIN"


async def test_a_line_that_is_not_there_names_those_that_are() -> None:
    with pytest.raises(DeviceGone, match=r"no such line: plug the device in or correct the address \("):
        async with open_transport("serial:///dev/serial/by-id/usb-none"):
            pass


async def test_a_file_that_is_no_line_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DeviceError, match="no serial line: correct the address"):
        async with open_transport(f"serial://{tmp_path}/file"):
            pass


async def test_a_line_without_permission_names_the_rules_and_the_group() -> None:
    async with pty_port(Echo()) as link:
        path = os.readlink(link)  # noqa: PTH115
        os.chmod(path, 0)  # noqa: PTH101
        user = os.geteuid()
        if user == 0:  # root may open everything
            os.seteuid(65534)
        try:
            told = r"no permission \(group .*, mode 0000\): install systemd/99-qnode.rules, or add"
            with pytest.raises(DeviceError, match=told):
                async with open_transport(f"serial://{path}"):
                    pass
        finally:
            os.seteuid(user)


async def test_a_port_that_nobody_serves_cannot_be_reached() -> None:
    async with tcp_port(Echo()) as address:
        pass
    with pytest.raises(DeviceGone, match=r"cannot be reached \(Connection refused\): switch the device on"):
        async with open_transport(address):
            pass


async def test_key_material_is_not_recorded() -> None:
    async with pty_port(Echo()) as path, open_transport(f"serial://{path}", secret=True) as port:
        assert await lines(port).ask("tags", limit_s=10) == "TAGS"
        assert port.transcript.exchanges() == []
        port.transcript.note_received(b"frame 7")
        assert [one.data for one in port.transcript.exchanges()] == [b"frame 7"]


def test_a_transcript_keeps_the_last_4_kib_of_each_direction_in_order() -> None:
    times = iter(range(10_000))
    transcript = Transcript(now=lambda: float(next(times)))
    transcript.note_sent(b"command")
    for number in range(5000):
        transcript.note_received(number.to_bytes(2, "big"))
    transcript.note_received(b"")
    exchanges = transcript.exchanges()
    assert exchanges[0].data == b"command"
    received = b"".join(one.data for one in exchanges[1:])
    assert received == b"".join(number.to_bytes(2, "big") for number in range(5000 - 2048, 5000))
    transcript.note_received(bytes(4095))
    assert received.endswith(transcript.exchanges()[1].data)
    assert sum(len(one.data) for one in transcript.exchanges()) == 7 + 4096
    transcript.note_received(bytes(10_000))
    assert [len(one.data) for one in transcript.exchanges()] == [7, 4096]


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("/dev/ttyUSB0", "expected serial:///dev/serial/by-id/NAME or tcp://HOST:PORT or usb://"),
        ("serial://dev/x", "an absolute path"),
        ("serial:///dev/x?baud=fast", "baud: expected a whole number, got 'fast'"),
        ("serial:///dev/x?baud=1", "baud: expected 50 to 12,000,000, got 1"),
        ("serial:///dev/x?speed=9600", r"unknown option speed of serial:// \(known: baud, data_bits"),
        ("serial:///dev/x?parity=mark", "parity: expected N or E or O, got 'MARK'"),
        ("serial:///dev/x?baud", "OPTION=VALUE"),
        ("tcp://host", "expected host:port"),
        ("tcp://host:0", "expected a port from 1 to 65535"),
        ("tcp://host:1?x=1", r"unknown option x of tcp:// \(known: none\)"),
        ("usb://16c0", "expected usb://VENDOR:PRODUCT/SERIAL"),
        ("zmq://host:1?socket=dealer", "socket: expected req or pull or sub or pair, got 'dealer'"),
        ("visa://", "expected serial"),
        ("tcp://host\n:1", "expected serial"),
    ],
)
def test_a_wrong_address_is_refused_with_what_was_expected(address: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        check_address(address)


def test_only_the_kinds_that_a_driver_speaks_are_accepted() -> None:
    assert check_address("tcp://host:5", "serial", "tcp").host_and_port() == ("host", 5)
    with pytest.raises(ConfigError, match=r"expected serial://.* or tcp://HOST:PORT, got 'usb:"):
        check_address("usb://1234:5678", "serial", "tcp")


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    find: Callable[[str], None] = lambda name: None  # noqa: E731
    monkeypatch.setattr("importlib.util.find_spec", find)
    with pytest.raises(ConfigError, match=r"zmq:// needs pyzmq, .*: pip install 'qnode\[zmq\]'"):
        check_address("zmq://host:1")


class Config(msgspec.Struct, frozen=True):
    address: str

    def __post_init__(self) -> None:
        check_address(self.address, "serial", "tcp")


def test_a_drivers_table_names_its_place_when_the_address_is_wrong() -> None:
    with pytest.raises(ConfigError, match=r"^\[devices.tdc.config\]: address: expected serial"):
        convert({"address": "com1"}, Config, where="[devices.tdc.config]")


async def test_the_address_overrides_the_drivers_serial_settings() -> None:
    settings = SerialSettings(baud=9600, stop_bits=2)
    found = settings.of_address(check_address("serial:///dev/x?baud=115200&parity=e"))
    assert found == SerialSettings(baud=115200, parity="E", stop_bits=2)


async def test_the_last_command_before_a_line_is_closed_reaches_a_slow_device() -> None:
    """It may be the one that makes the hardware safe."""
    master, slave = os.openpty()
    os.set_blocking(master, False)
    try:
        tty.setraw(slave)
        for number in range(120):  # the kernel passes the bytes on when it finds the time
            async with open_transport(f"serial://{os.ttyname(slave)}") as port:
                os.write(master, b"x" * 3000)
                await port.send(b"laser off %d\r\n" % number)
            await trio.sleep(0.003)
            assert os.read(master, 100) == b"laser off %d\r\n" % number
    finally:
        os.close(master)
        os.close(slave)
