"""How fast tags of the open device protocol come through each port, and what a million of them costs.

    python tests/measure_open_protocol.py                                    # a table, two seconds a line
    python tests/measure_open_protocol.py --port usb --rate 1e6 --seconds 600

The device is an emulator in a process of its own. A line "read" is a bare loop that reads the same bytes as
fast as they come and does nothing with them, "tags" is the driver. A rate is clicks a second; what was lost
of them is shown. Processor time is that of the reading process. Exit 1: a tag was lost, or the rate was not
held.
"""

import argparse
import math
import os
import resource
import struct
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass

import numpy as np
import trio
from qnode_drivers.open_protocol import DeviceKind, Kind, frame, start
from qnode_drivers.open_protocol_port import open_port
from qnode_drivers.open_protocol_tdc import OpenTdc, OpenTdcConfig

from qnode.devices.transport import SerialSettings, open_transport
from qnode.emulate import ports
from qnode.emulate.open_protocol import TAGS, built_frame
from qnode.emulate.open_protocol_tdc import RECORDS_IN_FRAME, OpenTdcEmulator, tag_payload
from qnode.tags.types import NO_TAGS, TagBlock

BAUD = 3_000_000
PORTS = ("pty", "tcp", "usb")
STEP_PS = 10**6  # between tags at the limit
FRAMES_AT_ONCE = 32
HELD = 0.98  # of the rate


class NoSupply:
    """The frames are made without clicks."""

    origin_s = time.time()

    async def tags(self) -> AsyncGenerator[TagBlock, None]:
        """Yield nothing."""
        while True:
            await trio.sleep(1.0)
            yield NO_TAGS


class Flood(OpenTdcEmulator):
    """Sends full frames at ``rate_hz``, or as fast as they are taken."""

    def __init__(self, rate_hz: float) -> None:
        super().__init__(NoSupply())
        self._step_ps = STEP_PS if math.isinf(rate_hz) else round(1e12 / rate_hz)
        self._is_paced = math.isfinite(rate_hz)

    async def run(self) -> None:
        """Send while the host wants it."""
        ticks = np.arange(RECORDS_IN_FRAME, dtype=np.int64) * self._step_ps
        inputs = (np.arange(RECORDS_IN_FRAME) % 2).astype(np.uint32)
        records = tag_payload(0, 0, ticks, inputs, 0)[32:]
        while True:
            if not self.running:
                await trio.sleep(0.001)
                continue
            began_s, epoch, number = time.monotonic(), self.epoch, 0
            while self.running and self.epoch == epoch:
                frames = []
                for _ in range(FRAMES_AT_ONCE):
                    at = number * RECORDS_IN_FRAME * self._step_ps
                    until = at + (RECORDS_IN_FRAME - 1) * self._step_ps
                    head = (epoch, RECORDS_IN_FRAME, 0, number * RECORDS_IN_FRAME, at, until)
                    frames.append(built_frame(TAGS, 0, struct.pack("<IHHQQQ", *head) + records))
                    number += 1
                    if self._is_paced:
                        break
                if self._is_paced:
                    await trio.sleep(max(0.0, began_s + until / 1e12 - time.monotonic()))
                await self.send(b"".join(frames))


async def serve(kind: str, rate_hz: float) -> None:
    """Serve a flood until standard input ends; the address is the first line of standard output."""
    device = Flood(rate_hz)
    opened = {"pty": ports.pty_port, "tcp": ports.tcp_port, "usb": ports.usb_port}[kind]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(device.run)
        async with opened(device) as place:
            print(f"serial://{place}" if kind == "pty" else place, flush=True)
            async with trio.lowlevel.FdStream(os.dup(0)) as stdin:
                async for _ in stdin:
                    pass
        nursery.cancel_scope.cancel()


@contextmanager
def served(kind: str, rate_hz: float) -> Iterator[str]:
    """Run the emulator in a process; gives its address."""
    command = [sys.executable, __file__, "--serve", kind, "--rate", str(rate_hz)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.stdin.close()


@dataclass
class Measured:
    """What one run gave."""

    tags: int
    lost: int
    passed_s: float
    processor_s: float

    @property
    def rate_hz(self) -> float:
        """Tags a second."""
        return self.tags / self.passed_s

    def __str__(self) -> str:
        bytes_per_tag = (32 + 12) / RECORDS_IN_FRAME + 4
        cost = self.processor_s / max(1, self.tags) * 1e6
        return (
            f"{self.rate_hz / 1e6:8.3f} Mtag/s {self.rate_hz * bytes_per_tag / 1e6:8.1f} MB/s"
            f" {cost:8.3f} s/Mtag {self.lost:8} lost"
        )


def processor_s() -> float:
    """Return the processor time of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def through_driver(address: str, seconds: float) -> Measured:
    """Count tags of the driver."""
    async with OpenTdc.open(OpenTdcConfig(address=address)) as tdc, aclosing(tdc.tags()) as tags:
        await anext(tags)
        began_s, used_s, number, lost = time.monotonic(), processor_s(), 0, 0
        async for block in tags:
            number += block.times_ps.size
            lost += block.lost
            if time.monotonic() - began_s >= seconds:
                break
        return Measured(number, lost, time.monotonic() - began_s, processor_s() - used_s)


async def bare(address: str, seconds: float) -> Measured:
    """Count bytes of the transport."""
    async with open_port(address, BAUD, DeviceKind.TDC, ""):
        pass  # stopped, whatever it did before
    async with open_transport(address, serial=SerialSettings(baud=BAUD), secret=True) as port:
        await port.send(frame(Kind.START, 1, start(1)))
        await port.receive(65536)
        began_s, used_s, number = time.monotonic(), processor_s(), 0
        while time.monotonic() - began_s < seconds:
            number += len(await port.receive(1 << 18))
        passed_s, used_s = time.monotonic() - began_s, processor_s() - used_s
    return Measured(number * RECORDS_IN_FRAME // (4 * RECORDS_IN_FRAME + 44), 0, passed_s, used_s)


def main() -> int:
    """Print the table; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--port", choices=PORTS, help="this port alone")
    parser.add_argument("--rate", type=float, help="at this rate alone; inf is the limit")
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--serve", choices=PORTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        trio.run(serve, options.serve, options.rate)
        return 0
    status = 0
    for kind in (options.port,) if options.port else PORTS:
        for rate_hz in (options.rate,) if options.rate else (5e4, 1e6, math.inf):
            with served(kind, rate_hz) as address:
                if math.isinf(rate_hz):
                    print(f"{kind:4} limit read {trio.run(bare, address, options.seconds)}", flush=True)
                tags = trio.run(through_driver, address, options.seconds)
                named = "limit" if math.isinf(rate_hz) else f"{rate_hz:5.0e}"
                print(f"{kind:4} {named} tags {tags}", flush=True)
                if tags.lost or (math.isfinite(rate_hz) and tags.rate_hz < HELD * rate_hz):
                    status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
