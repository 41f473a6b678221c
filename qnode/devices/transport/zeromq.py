"""ZeroMQ: requests and replies, or a stream of messages. Needs the extra `zmq`."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import ClassVar, Final

import trio
import zmq
from zmq.utils.monitor import recv_monitor_message

from qnode.devices.transport.address import Address
from qnode.devices.transport.base import Transport
from qnode.devices.transport.tcp import CONNECT_LIMIT_S
from qnode.devices.transport.transcript import Transcript
from qnode.errors import DeviceError, DeviceGone

LONGEST_MESSAGE_BYTES: Final = 1 << 23  # 2^20 tags of 8 bytes
WAITING_MESSAGES: Final = 32  # then the sender waits, or drops if it publishes
UNSENT_LIMIT_MS: Final = 500  # the wait at the end for messages that are not sent yet
# The descriptor of a socket tells changes of its state only, and any call takes them away: look again anyway.
LOOK_AGAIN_S: Final = 0.05
_KINDS: Final = {"req": zmq.REQ, "pull": zmq.PULL, "sub": zmq.SUB, "pair": zmq.PAIR}
_REFUSED: Final = zmq.EVENT_CLOSED | zmq.EVENT_CONNECT_RETRIED
_STRANGE: Final = (
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)


@asynccontextmanager
async def open_zmq(address: Address, transcript: Transcript, *, secret: bool) -> AsyncIterator[Transport]:
    """Connect a socket of the kind that the address names; see `open_transport`."""
    context = zmq.Context()
    socket = context.socket(_KINDS[address.options.get("socket", "req")])
    monitor = socket.get_monitor_socket()
    try:
        for option, value in (
            (zmq.LINGER, UNSENT_LIMIT_MS),
            (zmq.RCVHWM, WAITING_MESSAGES),
            (zmq.SNDHWM, WAITING_MESSAGES),
            (zmq.MAXMSGSIZE, LONGEST_MESSAGE_BYTES),
            (zmq.IPV6, 1),
        ):
            socket.setsockopt(option, value)
        if socket.type == zmq.REQ:  # a request without its reply does not bar the next one
            socket.setsockopt(zmq.REQ_RELAXED, 1)
            socket.setsockopt(zmq.REQ_CORRELATE, 1)
        if socket.type == zmq.SUB:
            socket.subscribe(b"")
        transport = ZmqTransport(address.text, transcript, socket, monitor, secret=secret)
        await transport.connect(f"tcp://{address.place}")
        yield transport
    finally:
        trio.lowlevel.notify_closing(socket.fileno())
        socket.disable_monitor()  # before its other end is closed: it says goodbye there, and would wait
        monitor.close(linger=0)
        socket.close()
        with trio.move_on_after(2 * UNSENT_LIMIT_MS / 1000) as scope:
            scope.shield = True
            await trio.to_thread.run_sync(context.term, abandon_on_cancel=True)


class ZmqTransport(Transport):
    """Whole messages over one socket; the parts of a message are joined."""

    keeps_messages: ClassVar[bool] = True

    def __init__(
        self,
        address: str,
        transcript: Transcript,
        socket: zmq.Socket[bytes],
        monitor: zmq.Socket[bytes],
        *,
        secret: bool,
    ) -> None:
        super().__init__(address, transcript, secret=secret)
        self._socket = socket
        self._monitor = monitor

    async def connect(self, endpoint: str) -> None:
        """Connect, and wait until the other end has answered in ZeroMQ's protocol."""
        why = f"no answer within {CONNECT_LIMIT_S:g} s"
        with trio.move_on_after(CONNECT_LIMIT_S):
            self._socket.connect(endpoint)
            while True:
                event = self._event()
                if event & zmq.EVENT_HANDSHAKE_SUCCEEDED:
                    return
                if event & _STRANGE:
                    raise DeviceError(f"{self.address}: expected ZeroMQ, another protocol answers: {_REMEDY}")
                if event & _REFUSED:
                    why = "connection refused"
                    break
                if not event:
                    await trio.sleep(LOOK_AGAIN_S / 10)
        raise DeviceGone(f"{self.address}: cannot be reached ({why}): switch the device on, {_REMEDY}")

    async def _send(self, data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        while True:
            self._check_there()
            try:
                self._socket.send(data, zmq.NOBLOCK)
            except zmq.Again:
                await trio.sleep(LOOK_AGAIN_S / 10)
            except zmq.ZMQError as error:
                raise DeviceError(f"{self.address}: cannot send: {error}") from None
            else:
                return

    async def _receive(self, most_bytes: int) -> bytes:
        while True:
            data = await self._receive_now()
            if data is not None:
                return data
            with trio.move_on_after(LOOK_AGAIN_S):
                await trio.lowlevel.wait_readable(self._socket.fileno())

    async def _receive_now(self) -> bytes | None:
        await trio.lowlevel.checkpoint()
        try:
            return b"".join(self._socket.recv_multipart(zmq.NOBLOCK))
        except zmq.ZMQError as error:
            if error.errno not in (zmq.EAGAIN, zmq.EFSM):  # no message yet, or no request to be answered
                raise
        self._check_there()
        return None

    def _check_there(self) -> None:
        """Raise DeviceGone after the connection was lost; the socket would wait for it without a word."""
        while event := self._event():
            if event & zmq.EVENT_DISCONNECTED:
                raise DeviceGone(f"{self.address}: gone (the device closed the connection): switch it on")

    def _event(self) -> int:
        """Return the next event of the connection, 0 if there is none."""
        if not self._monitor.poll(0):
            return 0
        return int(recv_monitor_message(self._monitor)["event"])


_REMEDY: Final = "check its network, host and port"
