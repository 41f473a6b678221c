"""One connection of an application: reads calls within limits, answers them in turn."""

import structlog
import trio

from qnode.delivery import Refusal, SaeEntry
from qnode.etsi004.calls import StreamCalls
from qnode.etsi004.wire import (
    HEADER_BYTES,
    MOST_PAYLOAD_BYTES,
    Close,
    GetKey,
    Got,
    MalformedMessage,
    OpenConnect,
    Qos,
    Request,
    Service,
    Status,
    closed_payload,
    got_payload,
    message,
    opened_payload,
    read_header,
    read_request,
)
from qnode.http import Client, ClientGone

log = structlog.get_logger()

# Applications keep a connection open and ask now and then. At the limit of connections idle ones are closed.
IDLE_S = 3600.0
# Only a handshake checks a certificate, so a connection ends with the first answer after this time.
AGE_S = 86_400.0


class StreamConnection:
    """The calls of one client, over an open stream."""

    def __init__(self, calls: StreamCalls, client: Client) -> None:
        self._calls = calls
        self._client = client
        self.lost: str | None = None

    async def run(self) -> None:
        """Answer calls until one end closes the connection.

        Raises:
            ClientGone: the client disconnected during a call.
        """
        client, slot = self._client, self._client.slot
        while True:
            header = await self._read(HEADER_BYTES, IDLE_S, maybe_none=True)
            if not header:
                return
            version, service, size = read_header(header)
            if size > MOST_PAYLOAD_BYTES or service not in list(Service):
                self._refuse(f"service {service} with {size} bytes")
                return
            payload = await self._read(size, client.limits.body_s)
            slot.work()
            slot.used = True
            client.counters.requests += 1
            await self._answer(version, service, payload)
            if slot.last_request or slot.surplus or trio.current_time() - slot.opened > AGE_S:
                return
            slot.wait()

    async def apologise(self) -> None:
        """The protocol has no answer for an error of the server: the connection closes."""

    async def _answer(self, version: bytes, service: int, payload: bytes) -> None:
        caller: SaeEntry | None = None
        asked: Request | None = None
        got: Got | None = None
        try:
            asked = read_request(service, payload)
            tls = self._client.scope["extensions"].get("tls", {})
            caller = self._calls.delivery.directory.caller(tls.get("client_cert_der"))
            if self._client.slot.surplus:
                raise Refusal(503, "too many connections", reason="too many connections")
            status, content = await self._call(caller, asked)
            if isinstance(content, Got):
                got, content = content, got_payload(content)
        except (MalformedMessage, Refusal) as error:
            reason = error.reason if isinstance(error, Refusal) else str(error)
            status, content = _refusal(service, asked)
            self._note(caller, service, status, reason)
        else:
            if status >= Status.INSUFFICIENT_KEY:
                self._note(caller, service, status, status.name.lower())
        sent_before_bytes = self._client.wire.sent_bytes
        try:
            if got is not None and got.key and self._client.wire.gone:
                raise self._lose("client has disconnected")
            await self._send(message(version, service + 1, content))
        except ClientGone:
            nothing_sent = self._client.wire.sent_bytes == sent_before_bytes
            if got is not None and got.key and nothing_sent and caller is not None:
                assert isinstance(asked, GetKey)
                self._calls.take_back(caller, asked, got)
            raise

    async def _call(self, caller: SaeEntry, asked: Request) -> tuple[Status, bytes | Got]:
        if isinstance(asked, OpenConnect):
            opened = await self._calls.open_connect(caller, asked)
            content = opened_payload(opened.status, opened.qos, opened.stream_id, padded=asked.padded)
            return opened.status, content
        if isinstance(asked, GetKey):
            got = await self._calls.get_key(caller, asked, lambda: self._client.wire.gone)
            return got.status, got
        status = await self._calls.close(caller, asked)
        return status, closed_payload(status)

    def _note(self, caller: SaeEntry | None, service: int, status: Status, reason: str) -> None:
        """Count a refusal and log it; callers that are not an SAE of this site have a budget of lines."""
        told = {"call": Service(service).name, "status": int(status), "reason": reason}
        host = self._client.scope["client"][0]
        if caller is not None:
            self._calls.delivery.usage[caller.sae_id].requests_refused += 1
            log.info("stream.refused", sae=caller.sae_id, client=host, **told)
            return
        self._calls.delivery.requests_unauthorised["etsi004"] += 1
        self._client.strangers.write(
            "info", "stream.refused", self._client.slot.network, trio.current_time(), client=host, **told
        )

    def _refuse(self, what: str) -> None:
        """Note a message that is none of the protocol, after which the connection closes."""
        self._client.counters.requests_refused += 1
        host = self._client.scope["client"][0]
        self._client.strangers.write(
            "info",
            "stream.malformed",
            self._client.slot.network,
            trio.current_time(),
            client=host,
            reason=what,
        )

    async def _read(self, size: int, limit_s: float, *, maybe_none: bool = False) -> bytes:
        """Read ``size`` bytes; with ``maybe_none``, nothing if the client has no more calls.

        Raises:
            ClientGone: the client closed within a message, or was too slow.
        """
        data = bytearray()
        with trio.move_on_after(limit_s) as limit:
            while len(data) < size:
                try:
                    part = await self._client.stream.receive_some(size - len(data))
                except trio.BrokenResourceError:
                    raise self._lose("connection lost") from None
                if not part:
                    break
                data += part
                if maybe_none and len(data) < size:
                    limit.deadline = min(limit.deadline, trio.current_time() + self._client.limits.head_s)
        if len(data) == size or (maybe_none and not data):
            return bytes(data)
        raise self._lose("message is not complete")

    async def _send(self, data: bytes) -> None:
        try:
            with trio.fail_after(self._client.limits.send_s):
                await self._client.stream.send_all(data)
        except trio.TooSlowError:
            raise self._lose("client does not read") from None
        except trio.BrokenResourceError:
            raise self._lose("connection lost") from None

    def _lose(self, why: str) -> ClientGone:
        self.lost = why
        return ClientGone(why)


def _refusal(service: int, asked: Request | None) -> tuple[Status, bytes]:
    """Return the answer to a call that cannot be read, or whose caller is nobody."""
    if service == Service.OPEN_CONNECT:
        padded = isinstance(asked, OpenConnect) and asked.padded
        status = Status.NO_QKD_CONNECTION
        return status, opened_payload(status, Qos(), None, padded=padded or asked is None)
    status = Status.PEER_NOT_YET_CONNECTED
    if service == Service.GET_KEY:
        index = asked.index if isinstance(asked, GetKey) else 0
        return status, got_payload(Got(status=status, index=index))
    assert asked is None or isinstance(asked, Close)
    return status, closed_payload(status)
