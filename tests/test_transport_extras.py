"""Transports that need an extra: ZeroMQ over real sockets, VISA over PyVISA's simulated instruments."""

import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import zmq

from qnode.devices.transport import open_transport
from qnode.devices.transport.lines import Lines
from qnode.devices.transport.worker import Worker
from qnode.emulate.ports import tcp_port
from qnode.errors import DeviceError, DeviceGone, TransientDeviceError

pytest.importorskip("pyvisa_sim")


@asynccontextmanager
async def zmq_server(kind: int) -> AsyncIterator[tuple[zmq.Socket[bytes], str]]:
    context = zmq.Context()
    socket = context.socket(kind)
    socket.setsockopt(zmq.LINGER, 0)
    port = socket.bind_to_random_port("tcp://127.0.0.1")
    try:
        yield socket, f"zmq://127.0.0.1:{port}"
    finally:
        socket.close()
        context.term()


async def answer(socket: zmq.Socket[bytes], *answers: bytes) -> None:
    for one in answers:
        while True:
            try:
                socket.recv(zmq.NOBLOCK)
                break
            except zmq.Again:
                await trio.sleep(0.005)
        socket.send(one)


async def test_requests_over_zeromq_are_answered_also_after_one_without_answer() -> None:
    async with zmq_server(zmq.REP) as (socket, address), open_transport(address) as port:
        lines = Lines(port, command_end=b"")
        with pytest.raises(TransientDeviceError, match=r"expected an answer to 'one' within 0.2 s, nothing"):
            await lines.ask("one", limit_s=0.2)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer, socket, b"late", b"ID900\n", b"")
            with trio.fail_after(30):
                assert await lines.ask("*IDN?", limit_s=20) == "ID900"
                assert await lines.ask("INPU1:ENAB ON", limit_s=20) == ""
        assert port.transcript.exchanges()[-2].data == b"ID900\n"


@pytest.mark.parametrize(("here", "there"), [(zmq.PUSH, "pull"), (zmq.PUB, "sub"), (zmq.PAIR, "pair")])
async def test_a_stream_over_zeromq_gives_whole_messages(here: int, there: str) -> None:
    async with zmq_server(here) as (socket, address), open_transport(f"{address}?socket={there}") as port:
        sent = [bytes([number]) * 100_000 for number in range(12)]
        if there == "sub":
            await trio.sleep(0.5)  # a publisher learns of its subscribers without telling
        for one in sent:
            socket.send(one)
        with trio.fail_after(30):
            assert [await port.receive() for _ in sent] == sent
        assert await port.discard() == 0


async def test_a_zeromq_device_that_is_switched_off_is_gone() -> None:
    async with zmq_server(zmq.REP) as (socket, address), open_transport(address) as port:
        socket.close()
        with pytest.raises(DeviceGone, match="gone"), trio.fail_after(30):
            await port.receive()
        with pytest.raises(DeviceGone, match="cannot be reached"):
            async with open_transport(address):
                pass


async def test_a_port_without_zeromq_is_told() -> None:
    class Telnet:
        async def serve(self, stream: trio.abc.Stream) -> None:
            await stream.send_all(b"login: " * 20)
            await stream.receive_some()

    async with tcp_port(Telnet()) as address:
        with pytest.raises(DeviceError, match=r"expected ZeroMQ, another protocol answers|cannot be reached"):
            async with open_transport(address.replace("tcp://", "zmq://")):
                pass


INSTRUMENTS = """
spec: "1.1"
devices:
  meter:
    eom:
      USB INSTR: {q: "\\n", r: "\\n"}
      ASRL INSTR: {q: "\\n", r: "\\n"}
    error: ERROR
    dialogues:
      - {q: "*IDN?", r: "MAKER,PM,42,1.0"}
      - {q: "*RST"}
resources:
  "USB0::0x1234::0x5678::42::INSTR": {device: meter}
  "ASRL1::INSTR": {device: meter}
"""


@pytest.fixture
def library(tmp_path: Path) -> str:
    path = tmp_path / "instruments.yaml"
    path.write_text(INSTRUMENTS)
    return f"?library={path}@sim"


@pytest.mark.parametrize("resource", ["USB0::0x1234::0x5678::42::INSTR", "ASRL1::INSTR"])
async def test_an_instrument_behind_visa_answers(library: str, resource: str) -> None:
    async with open_transport(f"visa://{resource}{library}") as port:
        lines = Lines(port)
        assert await lines.ask("*IDN?", limit_s=20) == "MAKER,PM,42,1.0"
        with pytest.raises(TransientDeviceError, match=r"expected an answer to '\*RST' within 0.1 s"):
            await lines.ask("*RST", limit_s=0.1)
        assert await lines.ask("*IDN?", limit_s=20) == "MAKER,PM,42,1.0"


@pytest.mark.parametrize("resource", ["USB0::0x1234::0x5678::43::INSTR", "COM1"])
async def test_a_visa_resource_that_is_not_there_is_told(library: str, resource: str) -> None:
    with pytest.raises(DeviceError, match=rf"^visa://{resource}"):
        async with open_transport(f"visa://{resource}{library}"):
            pass


async def test_a_missing_visa_library_is_told() -> None:
    with pytest.raises(DeviceError, match=r"no VISA library .*: install the maker's or pyvisa-py"):
        async with open_transport("visa://ASRL1::INSTR?library=/none.so@ivi"):
            pass


async def test_a_library_that_hangs_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qnode.devices.transport.worker.END_LIMIT_S", 0.05)
    hangs = threading.Event()
    worker = Worker("hangs")
    with trio.fail_after(30):
        with trio.move_on_after(0.05) as scope:
            await worker.run(hangs.wait)
        assert scope.cancelled_caught
        await worker.end(lambda: None)
    hangs.set()


async def test_a_device_whose_calls_hang_at_each_opening_takes_few_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("qnode.devices.transport.worker.END_LIMIT_S", 0.01)
    hangs, name = threading.Event(), "serial /dev/hangs"
    threads = threading.active_count()
    for _ in range(4):
        worker = Worker(name)
        with trio.move_on_after(0.01):
            await worker.run(hangs.wait)
        await worker.end(lambda: None)
    for _ in range(10):
        with pytest.raises(TransientDeviceError, match="4 earlier calls have not returned: unplug the"):
            Worker(name)
    assert threading.active_count() <= threads + 4
    other = Worker("another device")
    assert await other.run(lambda: 7) == 7
    await other.end(lambda: None)
    hangs.set()
    for one in threading.enumerate():
        if one.name == name:
            await trio.to_thread.run_sync(one.join)
    await Worker(name).end(lambda: None)


async def test_an_error_of_a_call_is_raised_where_it_is_awaited() -> None:
    worker = Worker("fails")
    with pytest.raises(ZeroDivisionError):
        await worker.run(lambda: 1 // 0)
    assert await worker.run(lambda: 7) == 7
    await worker.end(lambda: None)
