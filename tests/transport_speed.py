"""How fast the transports are, beside a bare read loop on the same link; and whether a paced stream is held.

    python tests/transport_speed.py [--megabytes 64]
    python tests/transport_speed.py --paced 300000 --seconds 600 [--link serial]

The sender is a process of its own, so that the CPU time is that of the reader alone. A paced sender does not
wait: it holds what the link does not take, and shows the most that it held. Every byte is compared.
"""

import argparse
import os
import socket
import subprocess
import sys
import time
import tty
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import numpy as np
import trio
import usb.core
import usb.util

from qnode.devices.transport import check_address, open_transport
from qnode.devices.transport.usb_bulk import READ_BYTES
from qnode.devices.transport.usb_socket import SocketBackend
from qnode.emulate.ports import USB_BULK_IN, USB_BULK_OUT, usb_port

LINKS: Final = ("serial", "tcp", "usb")
CHUNK_BYTES: Final = 1 << 16
PERIOD_S: Final = 0.01
MEGABYTE: Final = 1 << 20
START: Final = b"go\n"


# The sender's process


def counters(first: int, number: int) -> bytes:
    """Return ``number`` counters of 8 bytes, the first one ``first``."""
    return np.arange(first, first + number, dtype="<i8").tobytes()


class Sender:
    """Sends counters, at full speed or paced; ``rate`` in bytes a second, 0: as fast as it can."""

    def __init__(self, total: int, rate: int) -> None:
        self.total, self.rate = total // 8 * 8, rate
        self.most_held = 0

    async def serve(self, stream: trio.abc.Stream) -> None:
        while START not in await stream.receive_some():
            pass
        sent, began = 0, trio.current_time()
        while sent < self.total:
            due = self.total
            if self.rate:
                await trio.sleep(PERIOD_S)
                due = min(self.total, int((trio.current_time() - began) * self.rate) // 8 * 8)
                self.most_held = max(self.most_held, due - sent)
            while sent < due:
                number = min(due - sent, CHUNK_BYTES)
                await stream.send_all(counters(sent // 8, number // 8))
                sent += number
        print(self.most_held, flush=True)
        await trio.sleep_forever()


async def send(link: str, sender: Sender) -> None:
    """Serve one link; the first line on standard output is its address."""
    if link == "serial":
        master, slave = os.openpty()
        tty.setraw(slave)
        print(f"serial://{os.ttyname(slave)}?baud=3000000", flush=True)
        await sender.serve(trio.lowlevel.FdStream(master))
    elif link == "tcp":
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        print(f"tcp://127.0.0.1:{listener.socket.getsockname()[1]}", flush=True)
        await trio.serve_listeners(sender.serve, [listener])
    else:
        async with usb_port(sender) as address:
            print(address, flush=True)
            await trio.sleep_forever()


@contextmanager
def sending(link: str, total: int, rate: int = 0) -> Iterator[tuple[str, Callable[[], int]]]:
    """Run a sender; yields its address, and what returns the most bytes that it held, at its end."""
    command = [sys.executable, __file__, "--send", link, str(total), str(rate)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        told = process.stdout
        assert told is not None
        try:
            yield told.readline().strip(), lambda: int(told.readline())
        finally:
            process.kill()


# The reader


@contextmanager
def bare(address: str) -> Iterator[Callable[[], int]]:
    """Open the link without qnode's transport; yields a call that returns how many bytes it has read."""
    parts = check_address(address)
    if parts.kind == "usb":
        [device] = usb.core.find(find_all=True, backend=SocketBackend(parts.options["socket"]))
        usb.util.claim_interface(device, 0)
        device.write(USB_BULK_OUT, START)
        buffer = array("B", bytes(READ_BYTES))
        yield lambda: int(device.read(USB_BULK_IN, buffer, 1000))
        usb.util.dispose_resources(device)
        return
    if parts.kind == "serial":
        descriptor = os.open(parts.place, os.O_RDWR | os.O_NOCTTY)
    else:
        connection = socket.create_connection(parts.host_and_port())
        descriptor = connection.detach()
    try:
        os.write(descriptor, START)
        yield lambda: len(os.read(descriptor, CHUNK_BYTES))
    finally:
        os.close(descriptor)


def report(name: str, link: str, number: int, began: float, cpu: float) -> None:
    took, used = time.perf_counter() - began, time.process_time() - cpu
    megabytes = number / MEGABYTE
    print(f"{link:<7} {name:<10} {megabytes / took:9.1f} MB/s {1000 * used / megabytes:8.2f} ms CPU/MB")


def measure_bare(link: str, total: int) -> None:
    with sending(link, total) as (address, _), bare(address) as read:
        number, began, cpu = 0, time.perf_counter(), time.process_time()
        while number < total:
            number += read()
        report("bare", link, number, began, cpu)


async def measure_transport(link: str, total: int) -> None:
    with sending(link, total) as (address, _):
        async with open_transport(address) as port:
            await port.send(START)
            number, began, cpu = 0, time.perf_counter(), time.process_time()
            while number < total:
                number += len(await port.receive())
            report("transport", link, number, began, cpu)


async def hold_paced(link: str, rate: int, seconds: float) -> bool:
    """Read a paced stream; True when every byte has come as it was sent."""
    total = int(rate * seconds) // 8 * 8
    with sending(link, total, rate) as (address, most_held):
        async with open_transport(address) as port:
            await port.send(START)
            wrong, number, pending = 0, 0, b""
            cpu = time.process_time()
            while number < total:
                pending += await port.receive()
                whole = len(pending) // 8 * 8
                got = np.frombuffer(pending[:whole], dtype="<i8")
                wrong += int((got != np.arange(number // 8, (number + whole) // 8)).sum())
                number, pending = number + whole, pending[whole:]
            used = time.process_time() - cpu
            held = most_held()
    print(
        f"{link:<7} paced {rate:,} bytes/s for {seconds:g} s: {number:,} bytes, {8 * wrong:,} wrong or lost, "
        f"the sender held {held:,} bytes at most, {100 * used / seconds:.1f} % CPU"
    )
    return wrong == 0


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("--megabytes", type=int, default=64)
    options.add_argument("--link", choices=LINKS, action="append")
    options.add_argument("--paced", type=int, metavar="BYTES_PER_S")
    options.add_argument("--seconds", type=float, default=600.0)
    options.add_argument("--send", nargs=3, help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.send:
        link, total, rate = chosen.send
        trio.run(send, link, Sender(int(total), int(rate)))
        return 0
    well = True
    for link in chosen.link or LINKS:
        if chosen.paced:
            well &= trio.run(hold_paced, link, chosen.paced, chosen.seconds)
        else:
            measure_bare(link, chosen.megabytes * MEGABYTE)
            trio.run(measure_transport, link, chosen.megabytes * MEGABYTE)
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
