"""The transports through the kernel's own USB, with true unplugging, in a small virtual machine.

    python tests/kernel_usb.py FOLDER

FOLDER holds an unpacked kernel package of Debian, whose modules make a USB device out of the machine itself:

    apt-get install --no-install-recommends qemu-system-x86 busybox-static kmod libusb-1.0-0
    apt-get download linux-image-6.1.0-NN-amd64 && dpkg-deb -x linux-image-*.deb FOLDER
    depmod -b FOLDER $(ls FOLDER/lib/modules)

The machine runs on this root file system, which it cannot change, without a network. About a minute.
"""

import os
import subprocess
import sys
import tty
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import trio
from qnode_drivers.oz_dd100 import OzDd100
from virtual_machine import run_machine

from qnode.devices.conformance import check_driver
from qnode.devices.transport import Transport, open_transport
from qnode.devices.transport.lines import Lines
from qnode.emulate.oz_dd100 import OzDd100Emulator
from qnode.errors import DeviceError, DeviceGone

HERE: Final = Path(__file__).resolve()
RUN_LIMIT_S: Final = 300
GADGET_MODULES: Final = ("dummy_hcd", "libcomposite", "usb_f_acm", "usb_f_ss_lb", "cdc_acm")
GADGET: Final = Path("/sys/kernel/config/usb_gadget/qnode")
CONTROLLER: Final = "dummy_udc.0"
SERIAL_NUMBER: Final = "SN42"
LINE: Final = Path("/dev/ttyACM0")
DEVICE_END: Final = Path("/dev/ttyGS0")
BULK: Final = f"usb://1d6b:0104/{SERIAL_NUMBER}"  # the loop-back function; the serial one has a kernel driver
STREAM_BYTES: Final = 2 << 20
GONE_LIMIT_S: Final = 1.0
RETURN_LIMIT_S: Final = 5.0
PASSED: Final = "KERNEL-USB-PASSED"


# Inside: a device with a serial line and a loop-back of bulk endpoints


def make_device(kernel: str) -> None:
    """Make the device; it is not plugged in."""
    for module in GADGET_MODULES:
        subprocess.run(["modprobe", "-d", kernel, module], check=True)
    for kind, place in (("configfs", "/sys/kernel/config"), ("devpts", "/dev/pts")):
        Path(place).mkdir(exist_ok=True)
        subprocess.run(["mount", "-t", kind, kind, place], check=True)
    for folder in ("strings/0x409", "configs/c.1", "functions/acm.GS0", "functions/Loopback.0"):
        (GADGET / folder).mkdir(parents=True)
    (GADGET / "idVendor").write_text("0x1d6b")
    (GADGET / "idProduct").write_text("0x0104")
    (GADGET / "strings/0x409/serialnumber").write_text(SERIAL_NUMBER)
    for function in ("acm.GS0", "Loopback.0"):
        (GADGET / "configs/c.1" / function).symlink_to(GADGET / "functions" / function)


def plug() -> None:
    """Plug the device in."""
    (GADGET / "UDC").write_text(f"{CONTROLLER}\n")


def unplug() -> None:
    """Take the device away."""
    (GADGET / "UDC").write_text("\n")


@asynccontextmanager
async def emulated(emulator: OzDd100Emulator) -> AsyncIterator[str]:
    """Have an emulator at the device's end of the serial line."""
    plug()
    await there(LINE)
    descriptor = os.open(DEVICE_END, os.O_RDWR | os.O_NOCTTY)
    tty.setraw(descriptor)
    async with trio.lowlevel.FdStream(descriptor) as stream, trio.open_nursery() as nursery:
        nursery.start_soon(emulator.serve, stream)
        yield f"serial://{LINE}"
        nursery.cancel_scope.cancel()


async def there(path: Path) -> None:
    """Wait until a file is there."""
    with trio.fail_after(30):
        while not path.exists():  # noqa: ASYNC110, ASYNC240
            await trio.sleep(0.02)


async def looped(port: Transport) -> float:
    """Send a stream that comes back, compare it, and return the bytes a second in each direction."""
    sent, got, began = os.urandom(STREAM_BYTES), bytearray(), trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(port.send, sent)
        while len(got) < len(sent):
            got += await port.receive()
    assert got == sent
    return STREAM_BYTES / (trio.current_time() - began)


async def gone_after(port: Transport) -> float:
    """Unplug the device, and return after what time its user has learnt it."""
    unplug()
    began = trio.current_time()
    try:
        while True:
            await port.receive()
    except DeviceGone as error:
        took = trio.current_time() - began
        assert took < GONE_LIMIT_S, took
        print(f"  unplugged: {error}")
        return took


async def back_after(address: str) -> float:
    """Plug the device in, and return after what time it could be opened."""
    plug()
    began = trio.current_time()
    while True:
        try:
            async with open_transport(address):
                took = trio.current_time() - began
                assert took < RETURN_LIMIT_S, took
                return took
        except DeviceError:
            await trio.sleep(0.02)


async def streamed(address: str) -> float:
    """Have a stream sent through the serial line, and return the bytes a second."""
    plug()
    await there(LINE)
    descriptor = os.open(DEVICE_END, os.O_RDWR | os.O_NOCTTY)
    tty.setraw(descriptor)
    sent, got = os.urandom(STREAM_BYTES), bytearray()
    async with (
        trio.lowlevel.FdStream(descriptor) as stream,
        open_transport(address) as port,
        trio.open_nursery() as nursery,
    ):
        began = trio.current_time()
        nursery.start_soon(stream.send_all, sent)
        while len(got) < len(sent):
            got += await port.receive()
        took = trio.current_time() - began
    assert got == sent
    return STREAM_BYTES / took


async def check_serial() -> None:
    """A driver passes the conformance kit; round trips; unplugging."""
    emulator = OzDd100Emulator()
    async with emulated(emulator) as address:
        await check_driver(OzDd100, {"address": address}, is_safe=lambda: emulator.attenuation_db == 60)
        print("  oz-dd100 passes the conformance kit")
        for baud in (9600, 3_000_000, 1_234_567):
            async with open_transport(f"{address}?baud={baud}") as port:
                lines = Lines(port, line_end=b"Done\r\n\r\n", command_end=b"\r")
                began = trio.current_time()
                for _ in range(20):
                    assert "Atten" in await lines.ask("A?", limit_s=10)
                print(f"  {baud} baud: {(trio.current_time() - began) * 50:.1f} ms a round trip")
        async with open_transport(address) as port:
            await refused(address, "in use by another program")
            took = await gone_after(port)
        await refused(address, "no such line")
    print(f"  gone after {took * 1000:.0f} ms, back after {await back_after(address):.2f} s")
    unplug()
    print(
        f"  {await streamed(f'{address}?baud=3000000') / 1e6:.2f} MB/s from the device, every byte compared"
    )


async def check_bulk() -> None:
    """The kernel's loop-back through both bulk endpoints; unplugging; the wrong device."""
    async with open_transport(BULK) as port:
        print(f"  {await looped(port) / 1e6:.2f} MB/s there and back, every byte compared")
        await refused(BULK, "in use by another program")
        took = await gone_after(port)
    await refused(BULK, "no USB device 1d6b:0104")
    print(f"  gone after {took * 1000:.0f} ms, back after {await back_after(BULK):.2f} s")
    await refused(BULK.replace(SERIAL_NUMBER, "SN43"), "expected the serial number SN43, found SN42")
    await refused(f"{BULK}?interface=7", "interface 7 is not there")


async def refused(address: str, told: str) -> None:
    """Check that an address is refused with a reason."""
    said = "it was opened"
    try:
        async with open_transport(address):
            pass
    except DeviceError as error:
        said = str(error)
    assert told in said, f"{address}: {said}"
    print(f"  refused: {said}")


def run_inside(kernel: str) -> None:
    """Make the device and check the transports."""
    make_device(kernel)
    checks: dict[str, Callable[[], Awaitable[None]]] = {
        "serial line": check_serial,
        "bulk endpoints": check_bulk,
    }
    for name, check in checks.items():
        print(f"{name}:")
        trio.run(check)
    print(PASSED)


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[1] == "--inside":
        run_inside(sys.argv[2])
    elif len(sys.argv) == 2 and Path(sys.argv[1], "boot").is_dir():
        folder = Path(sys.argv[1]).resolve()
        sys.exit(
            run_machine(folder, [str(HERE), "--inside", str(folder)], passed=PASSED, limit_s=RUN_LIMIT_S)
        )
    else:
        sys.exit(__doc__)
