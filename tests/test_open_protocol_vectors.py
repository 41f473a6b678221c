"""The bytes of docs/device-protocol.md are those of the driver's codec, and those of the emulator."""

import re
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import trio.testing
from qnode_drivers import open_protocol as driver
from qnode_drivers.open_protocol_tags import TagStream

from qnode.config import SourceParameters
from qnode.emulate import open_protocol as device
from qnode.emulate.open_protocol_tdc import tag_payload
from qnode.emulate.open_protocol_transmitter import OpenTransmitterEmulator
from qnode.simulate.fibre_address import fibre_at
from qnode.simulate.parameters import SimulationParameters
from qnode.tags.open_protocol import ScannedFrame, scan
from qnode.tags.types import UNKNOWN_SYMBOL

PAGE = (Path(__file__).parent.parent / "docs" / "device-protocol.md").read_text()
EPOCH, RATE_MILLIHERTZ, HALF = 0x01020304, 600_000_000_000, 1 << 31
TICKS = np.array([0, 1200, 1000, 300_000_000], np.int64) + 5_000_000_000_000


def vectors() -> dict[str, bytes]:
    text = PAGE.rsplit("```text\n", 1)[1].split("```")[0]
    found = re.findall(r"^([\w-]+)\n((?:  [0-9a-f ]+\n)+)", text, re.MULTILINE)
    return {name: bytes.fromhex(lines) for name, lines in found}


BYTES = vectors()
REQUESTS = {
    "safe": driver.frame(driver.Kind.SAFE, 1),
    "hello": driver.frame(driver.Kind.HELLO, 2, driver.hello()),
    "get": driver.frame(driver.Kind.GET, 3, driver.encode_names([(1, 0), (8, 0)])),
    "set": driver.frame(driver.Kind.SET, 4, driver.encode_entries([driver.Entry(3, 0, HALF)])),
    "start": driver.frame(driver.Kind.START, 5, driver.start(EPOCH)),
    "stop": driver.frame(driver.Kind.STOP, 6),
    "now": driver.frame(driver.Kind.NOW, 7),
    "health": driver.frame(driver.Kind.HEALTH, 8),
    "look-up": driver.frame(
        driver.Kind.LOOK_UP, 16, driver.look_up(EPOCH, np.array([0, 5, 1005], np.int64) + 600_000_000)
    ),
    "read": driver.frame(driver.Kind.READ, 17, driver.read_range(EPOCH, 100, 4)),
}


def payload(name: str) -> bytes:
    """Return the payload of a frame as the driver's side finds it."""
    data = np.frombuffer(BYTES[name], np.uint8)
    found = scan(data)
    (frame,) = found.frames
    assert (found.consumed, found.noise_bytes, found.broken) == (data.size, 0, 0)
    return BYTES[name][frame.start : frame.start + frame.length]


def test_the_page_names_every_kind_of_frame() -> None:
    kinds = {frame[2] for frame in BYTES.values()}
    assert kinds == {kind | answer for kind in range(1, 11) for answer in (0, 0x80)} | {0x40, 0x41, 0xFF}


@pytest.mark.parametrize("name", REQUESTS)
def test_the_driver_sends_the_bytes_of_the_page(name: str) -> None:
    assert REQUESTS[name] == BYTES[name]


def test_the_driver_reads_the_answers_of_the_page() -> None:
    assert payload("safe-answer") == payload("stop-answer") == b""
    assert driver.read_hello(payload("hello-answer")) == driver.Hello(
        1, (1, 1), driver.DeviceKind.TRANSMITTER, False, 8, "T-600", "0042", "1.0"
    )
    settings = [driver.Entry(1, 0, RATE_MILLIHERTZ), driver.Entry(8, 0, 1_200_000_000)]
    assert driver.read_entries(payload("get-answer")) == settings
    assert driver.read_entries(payload("set-answer")) == [driver.Entry(3, 0, HALF)]
    assert driver.read_position(payload("start-answer")) == (EPOCH, True, 0)
    assert driver.read_position(payload("now-answer")) == (EPOCH, True, 600_000_000)
    health = driver.read_entries(payload("health-answer"))
    assert driver.readings_of(health) == {"temperature_0_celsius": 31.5, "clock_locked": 1.0}
    assert driver.read_event(payload("event")) == (1, EPOCH + 1, 0, "reset")
    assert driver.read_error(payload("error")) == "error 2: unknown"
    for name, first, codes in (
        ("look-up-answer", 600_000_000, [6, 1, UNKNOWN_SYMBOL]),
        ("read-answer", 100, [0, 1, 2, 5]),
    ):
        found = driver.read_symbols(np.frombuffer(payload(name), np.uint8))
        assert found is not None
        assert (found.epoch, found.first, found.codes.tolist()) == (EPOCH, first, codes)


def test_the_driver_reads_the_tags_of_the_page() -> None:
    stream = TagStream(EPOCH, (1, 1), {0: 0, 1: 1})
    for name in ("tags", "tags-none"):
        data = np.frombuffer(BYTES[name], np.uint8)
        stream.feed(data, ScannedFrame(0x40, 0, 8, data.size - 12))
    (block,) = stream.take()
    assert block.times_ps.tolist() == TICKS.tolist()
    assert block.channels.tolist() == [0, 1, 0, 1]
    assert (block.until_ps, block.lost) == (5_000_400_000_000, 1000)


def test_the_emulator_sends_the_tags_of_the_page() -> None:
    inputs = np.array([0, 1, 0, 1], np.uint32)
    tags = tag_payload(EPOCH, 1000, TICKS, inputs, 5_000_300_000_000)
    assert device.built_frame(0x40, 0, tags) == BYTES["tags"]
    none = tag_payload(EPOCH, 1004, TICKS[:0], inputs[:0], 5_000_400_000_000)
    assert device.built_frame(0x40, 0, none) == BYTES["tags-none"]


class Bench(OpenTransmitterEmulator):
    """The transmitter of the page: its symbols and its time are fixed."""

    def position(self) -> int:
        return 600_000_000 if device.NOW in self.requests else 0

    async def start(self, epoch: int) -> None:
        self.epoch, self.running = epoch, True

    async def stop(self) -> None:
        self.running = False

    def _looked_up(self, epoch: int, slots: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        at = {600_000_000: 6, 600_000_005: 1, 100: 0, 101: 1, 102: 2, 103: 5}
        return np.array([at.get(int(slot), 15) for slot in slots], np.uint8)


async def test_the_emulator_answers_the_requests_of_the_page_with_its_bytes(tmp_path: Path) -> None:
    bench = Bench(
        fibre_at(str(tmp_path / "x" / "fibre.sock")),
        SimulationParameters(),
        SourceParameters(),
        simulated=False,
    )
    bench.model, bench.serial, bench.firmware = "T-600", "0042", "1.0"
    bench.health = {(1, 0): 31_500, (4, 0): 1}
    bench.settings[8, 0] = 1_200_000_000
    ours, its = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.serve, its)
        for name in ("safe", "hello", "get", "set", "start", "now", "health", "look-up", "read", "stop"):
            await ours.send_all(BYTES[name])
            expected = BYTES[f"{name}-answer"]
            answer = b""
            while len(answer) < len(expected):
                answer += await ours.receive_some()
            assert answer == expected, name
        bench.epoch += 1
        bench.requests.clear()
        await bench.tell(device.BEGAN_AGAIN, "reset")
        assert await ours.receive_some() == BYTES["event"]
        await bench.send(device.built_frame(0xFF, 9, b"\x02\x00unknown"))
        assert await ours.receive_some() == BYTES["error"]
        nursery.cancel_scope.cancel()
