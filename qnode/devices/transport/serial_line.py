"""A serial line: pyserial opens and configures it, trio reads and writes its file descriptor."""

import errno
import fcntl
import grp
import os
import stat
import struct
import termios
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final

import serial
import trio

from qnode.devices.transport.address import Address, SerialSettings
from qnode.devices.transport.base import Transport
from qnode.devices.transport.descriptor import DescriptorTransport
from qnode.devices.transport.transcript import Transcript
from qnode.devices.transport.worker import Worker
from qnode.errors import DeviceError, DeviceGone, TransientDeviceError

BY_ID: Final = Path("/dev/serial/by-id")
UNSENT_LIMIT_S: Final = 1.0  # the wait at the end for bytes that the line has not sent yet
BAUD_TOLERANCE: Final = 0.02  # receiver and sender may differ by about 5 %
_GONE: Final = (errno.ENOENT, errno.ENXIO, errno.ENODEV, errno.EIO)
_TCGETS2: Final = 0x802C542A
_TERMIOS2: Final = struct.Struct("4IB19B2I")  # flags, discipline, control characters, both speeds


@asynccontextmanager
async def open_serial(
    address: Address, settings: SerialSettings, transcript: Transcript, *, secret: bool
) -> AsyncIterator[Transport]:
    """Open the line exclusively with ``settings``; see `open_transport`."""
    worker = Worker(f"serial {address.place}")  # to open and close a broken line may take long
    line = _Line(address, settings)
    descriptor = None
    try:
        descriptor = await worker.run(line.open)
        yield DescriptorTransport(
            address.text, transcript, descriptor, secret=secret, why_gone=lambda: "unplugged"
        )
    finally:
        if descriptor is not None:
            await _send_rest(descriptor)
            trio.lowlevel.notify_closing(descriptor)
        await worker.end(line.close)


class _Line:
    """The calls that may block; each runs in the worker."""

    def __init__(self, address: Address, settings: SerialSettings) -> None:
        self._address = address
        self._settings = settings
        self._port: serial.Serial | None = None

    def open(self) -> int:
        """Return the descriptor of the configured line."""
        settings = self._settings
        try:
            self._port = serial.Serial(
                self._address.place,
                settings.baud,
                settings.data_bits,
                settings.parity,
                settings.stop_bits,
                timeout=0,
                xonxoff=settings.flow == "xonxoff",
                rtscts=settings.flow == "rtscts",
                exclusive=True,
            )
            _configure(self._port.fd)
            _compare(self._address, settings, self._port.fd)
        except (OSError, ValueError, termios.error) as error:  # SerialException is an OSError
            raise _refusal(self._address, error) from None
        return int(self._port.fd)

    def close(self) -> None:
        if self._port is None:
            return
        with suppress(OSError, termios.error):
            fcntl.ioctl(self._port.fd, termios.TIOCNXCL)
        with suppress(OSError, termios.error):
            if _unsent(self._port.fd):  # else the kernel may wait for half a minute
                termios.tcflush(self._port.fd, termios.TCOFLUSH)
        self._port.close()


def _configure(descriptor: int) -> None:
    """Let a read without data wait instead of looking like the end, and keep other programs off."""
    attributes = termios.tcgetattr(descriptor)
    attributes[6][termios.VMIN], attributes[6][termios.VTIME] = 1, 0
    termios.tcsetattr(descriptor, termios.TCSANOW, attributes)
    if not os.ttyname(descriptor).startswith("/dev/pts/"):  # there it would outlive a crash of the node
        fcntl.ioctl(descriptor, termios.TIOCEXCL)


def _compare(address: Address, settings: SerialSettings, descriptor: int) -> None:
    """Read back the settings that the line has really taken."""
    buffer = bytearray(_TERMIOS2.size)
    fcntl.ioctl(descriptor, _TCGETS2, buffer)
    fields = _TERMIOS2.unpack(buffer)
    control, baud = fields[2], fields[-1]
    sizes = {termios.CS7: 7, termios.CS8: 8}
    parity = "N" if not control & termios.PARENB else "O" if control & termios.PARODD else "E"
    taken = (
        baud,
        sizes.get(control & termios.CSIZE, 0),
        parity,
        2 if control & termios.CSTOPB else 1,
    )
    wanted = (settings.baud, settings.data_bits, settings.parity, settings.stop_bits)
    if abs(baud - settings.baud) > BAUD_TOLERANCE * settings.baud or taken[1:] != wanted[1:]:
        raise DeviceError(
            f"{address.text}: the line has taken {_shown(taken)}, expected {_shown(wanted)}: "
            "choose settings that its converter can make"
        )


def _shown(values: tuple[int, int, str, int]) -> str:
    return "{} baud {}{}{}".format(*values)


def _refusal(address: Address, error: Exception) -> DeviceError:
    """Return the error for a line that could not be opened, with the remedy."""
    number = _number(error) or _number(error.__context__)
    path, text = Path(address.place), address.text
    if number == errno.ENOENT:
        return DeviceGone(f"{text}: no such line: plug the device in or correct the address{_present()}")
    if number in (errno.EACCES, errno.EPERM):
        return DeviceError(
            f"{text}: no permission ({_owner(path)}): install systemd/99-qnode.rules, or add the daemon's "
            f"user to the group of the line (usermod -a -G {_group(path)} USER) and start it again"
        )
    if number in (errno.EBUSY, errno.EAGAIN):
        return TransientDeviceError(
            f"{text}: in use by another program: end it (fuser -v {path} names it), and keep modem managers "
            "off with systemd/99-qnode.rules"
        )
    if number in _GONE:
        return DeviceGone(f"{text}: does not answer ({os.strerror(number or errno.EIO)}): plug it in again")
    if number in (errno.ENOTTY, errno.EISDIR, errno.EINVAL):
        return DeviceError(f"{text}: no serial line: correct the address{_present()}")
    return DeviceError(f"{text}: cannot be opened: {error}")


def _number(error: BaseException | None) -> int | None:
    """Return the number in an error of the system, pyserial or termios, if it has one."""
    first = error.args[0] if error is not None and error.args else None
    return first if isinstance(first, int) else None


def _present() -> str:
    """Name the lines that are there, at most four."""
    try:
        names = sorted(str(path) for path in BY_ID.iterdir())
    except OSError:
        names = []
    more = ", ..." if len(names) > 4 else ""
    return f" (present: {', '.join(names[:4])}{more})" if names else f" (nothing in {BY_ID})"


def _group(path: Path) -> str:
    try:
        return grp.getgrgid(path.stat().st_gid).gr_name
    except (OSError, KeyError):
        return "dialout"


def _owner(path: Path) -> str:
    try:
        return f"group {_group(path)}, mode {stat.S_IMODE(path.stat().st_mode):04o}"
    except OSError:
        return "not even to look"


async def _send_rest(descriptor: int) -> None:
    """Wait until the line has sent everything: the last command may be the one that makes it safe."""
    with trio.move_on_after(UNSENT_LIMIT_S) as scope:
        scope.shield = True
        with suppress(OSError):
            while _unsent(descriptor):  # noqa: ASYNC110 (nothing tells when it becomes 0)
                await trio.sleep(0.01)


def _unsent(descriptor: int) -> int:
    number: int = struct.unpack("i", fcntl.ioctl(descriptor, termios.TIOCOUTQ, b"\0" * 4))[0]
    return number
