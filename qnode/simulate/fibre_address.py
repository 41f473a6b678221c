"""The address of the simulated fibre: a private Unix socket, or a TCP address for a trial on two hosts.

Over TCP anyone on the path can read Alice's symbols: simulated keys protect nothing.
"""

import ipaddress
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import structlog
import trio

from qnode.errors import DeviceError

TCP_PREFIX = "tcp://"
_LONGEST_ADDRESS = 100  # of a Unix socket; the kernel's limit is 107
_CONNECTING_S = 5.0
# A connection to a silent host ends after about this time, and the light stops.
_SILENT_S = 10
_MOST_TOLD = 16

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

log = structlog.get_logger()


class FibreAddress(Protocol):
    """The way in which the two ends of a simulated fibre connect."""

    retry_s: float
    in_the_clear: bool

    async def listen(self) -> list[trio.SocketListener]:
        """Open Alice's end. Raises DeviceError."""

    def admits(self, stream: trio.SocketStream) -> bool:
        """Return whether a connected client may be Bob's end."""

    def left(self) -> None:
        """Clean up after Alice's end was closed."""

    async def connect(self) -> trio.SocketStream:
        """Connect Bob's end. Raises OSError."""


def fibre_at(fibre: str, fibre_peer: str | None = None) -> FibreAddress:
    """Return the address that ``fibre`` names: a path, or ``tcp://HOST:PORT`` (without host: this machine).

    ``fibre_peer``: the address or network from which Bob's end may connect over TCP; this machine if None.

    Raises:
        ValueError: the message states the expected form.
    """
    if not fibre.startswith(TCP_PREFIX):
        if fibre_peer is not None:
            raise ValueError(f'fibre_peer: has a meaning only with fibre = "{TCP_PREFIX}HOST:PORT"')
        return UnixFibre(Path(fibre))
    host, colon, port = fibre.removeprefix(TCP_PREFIX).rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not (colon and port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise ValueError(f"fibre: expected a path or {TCP_PREFIX}HOST:PORT, got {fibre!r}")
    if fibre_peer is None:
        return TcpFibre(host or "127.0.0.1", int(port))
    try:
        network = ipaddress.ip_network(fibre_peer, strict=False)
    except ValueError:
        raise ValueError(f"fibre_peer: expected an address or a network, got {fibre_peer!r}") from None
    return TcpFibre(host or "127.0.0.1", int(port), network)


@dataclass
class TcpFibre:
    """A TCP address; only ``peer`` (this machine if None) is admitted, others are refused without reading."""

    host: str
    port: int
    peer: Network | None = None

    retry_s = 0.5
    in_the_clear = True

    def __post_init__(self) -> None:
        self._told: set[str] = set()
        self._warned = False

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{TCP_PREFIX}{host}:{self.port}"

    async def listen(self) -> list[trio.SocketListener]:
        """Listen at the address, and log a warning that all data there is readable.

        Raises:
            DeviceError: the address is not available; another process may listen there.
        """
        try:
            listeners = await trio.open_tcp_listeners(self.port, host=self.host)
        except OSError as error:
            raise DeviceError(f"{self}: the simulated fibre cannot listen: {error.strerror}") from None
        self._warn()
        return listeners

    def admits(self, stream: trio.SocketStream) -> bool:
        """Return whether the client's address is the peer's; warnings name the first strangers."""
        with suppress(OSError):
            address = _plain(stream.socket.getpeername()[0])
            if address.is_loopback if self.peer is None else address in self.peer:
                _give_up_when_silent(stream)
                return True
            if str(address) not in self._told and len(self._told) < _MOST_TOLD:
                self._told.add(str(address))
                log.warning("fibre.stranger", fibre=str(self), address=str(address), admitted=self._admitted)
        return False

    def left(self) -> None:
        """Nothing remains of a TCP address."""

    async def connect(self) -> trio.SocketStream:
        """Connect to the transmitter's end.

        Raises:
            OSError: no answer in time.
        """
        with trio.move_on_after(_CONNECTING_S):
            stream = await trio.open_tcp_stream(self.host, self.port)
            _give_up_when_silent(stream)
            self._warn()
            return stream
        raise TimeoutError(f"{self} does not answer within {_CONNECTING_S:g} s")

    @property
    def _admitted(self) -> str:
        return "this machine" if self.peer is None else str(self.peer)

    def _warn(self) -> None:
        if self._warned:
            return
        self._warned = True
        log.warning(
            "fibre.in_the_clear",
            fibre=str(self),
            because="the simulated fibre runs over TCP: whoever can read it has the keys",
        )


def _plain(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Return an address without the IPv6 form of IPv4 and without the zone."""
    found = ipaddress.ip_address(address.partition("%")[0])
    return getattr(found, "ipv4_mapped", None) or found


def _give_up_when_silent(stream: trio.SocketStream) -> None:
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _SILENT_S // 2)
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 2)
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * _SILENT_S)


class UnixFibre:
    """A Unix socket, readable by the owner alone."""

    retry_s = 0.02
    in_the_clear = False

    def __init__(self, path: Path) -> None:
        self._path = path
        self._identity: os.stat_result | None = None

    def __str__(self) -> str:
        return str(self._path)

    async def listen(self) -> list[trio.SocketListener]:
        """Listen at the path; the folder is made if needed, and must be as private as the socket.

        Raises:
            DeviceError: the folder is open to others, or another process already listens there.
        """
        path = self._path
        _make_private_folder(path.parent)
        try:
            stream = await self.connect()
        except OSError:
            path.unlink(missing_ok=True)  # absent, or left behind by a killed process
        else:
            await stream.aclose()
            raise DeviceError(f"{path}: another transmitter uses this simulated fibre")
        sock = trio.socket.socket(trio.socket.AF_UNIX)
        try:
            with _short(path) as address:
                await sock.bind(address)
                os.chmod(address, 0o600)  # noqa: PTH101 (an address, not a path)
            sock.listen()
            self._identity = os.stat(path)  # noqa: PTH116 (compared below)
            return [trio.SocketListener(sock)]
        except OSError as error:
            sock.close()
            raise DeviceError(f"{path}: cannot listen: {error.strerror}") from None

    def admits(self, stream: trio.SocketStream) -> bool:
        """Admit every client that can open the socket."""
        return True

    def left(self) -> None:
        """Remove the socket, unless it now belongs to a successor."""
        with suppress(FileNotFoundError):
            if self._identity is not None and os.path.samestat(self._identity, self._path.stat()):
                self._path.unlink()

    async def connect(self) -> trio.SocketStream:
        """Connect to the transmitter's end.

        Raises:
            OSError: nobody listens.
        """
        with _short(self._path) as address:
            return await trio.open_unix_socket(address)


def _make_private_folder(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except OSError as error:
        raise DeviceError(f"{folder}: cannot hold the simulated fibre: {error.strerror}") from None
    if status.st_mode & 0o077 or status.st_uid != os.geteuid():
        raise DeviceError(f"{folder}: the simulated fibre needs a folder that is its owner's alone (0700)")


@contextmanager
def _short(path: Path) -> Iterator[str]:
    """Yield an address for ``path`` that the kernel accepts, for any length of the path."""
    if len(os.fsencode(path)) <= _LONGEST_ADDRESS:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
