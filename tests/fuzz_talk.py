"""Targets: what encryptors, agents, operators and devices say."""

import math
import struct
from collections.abc import Callable, Iterable
from typing import Any

import msgspec
import numpy as np
import trio
from fuzz_target import Target, at_once, example, kinds, same, seeds_of, taken_again
from qnode_drivers import open_protocol
from qnode_drivers.open_protocol_tags import TagStream
from qnode_drivers.s_fifteen_stream import Tdc1Stream

from qnode.agent import messages as agent_messages
from qnode.delivery.reading import json_body, parameters
from qnode.delivery.refusal import Refusal
from qnode.devices.scpi import Scpi
from qnode.devices.tag_channels import TagChannels
from qnode.devices.transport.lines import Lines
from qnode.errors import DeviceError, ProtocolError, StoreError
from qnode.etsi004 import wire
from qnode.etsi014._bodies import KeyIdsBody, KeyRequestBody
from qnode.etsi014._reading import (
    key_ids_of_body,
    key_ids_of_query,
    key_request_of_body,
    key_request_of_query,
)
from qnode.operate.control import server as control
from qnode.operate.control.answers import Answers, LinkAnswers
from qnode.operate.control.client import UNREADABLE, Request
from qnode.operate.recording import frames as recording
from qnode.tags.open_protocol import scan

# Encryptors


def _http_request(data: bytes) -> None:
    """Read what the interfaces read of a request: a query and a body."""
    query, _, body = data.partition(b"\n")
    for read in (parameters, key_request_of_query, key_ids_of_query):
        _refused(read, query)
    for read_body in (key_request_of_body, key_ids_of_body):
        _refused(read_body, body)
    for kind in (KeyRequestBody, KeyIdsBody):
        decoded = _refused(lambda: json_body(body, kind))  # noqa: B023 - used within this turn
        if decoded is not None:
            with taken_again():
                same(json_body(msgspec.json.encode(decoded), kind), decoded)


def _refused(read: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return read(*arguments)
    except Refusal:
        return None


def _seeds_of_http_request() -> Iterable[bytes]:
    yield b"number=3&size=256\n" + b'{"number": 3, "size": 512, "additional_slave_SAE_IDs": ["sae-c"]}'
    yield b"key_ID=0192ce1b-3a2c-8f00-8000-0123456789ab\n" + (
        b'{"key_IDs": [{"key_ID": "0192ce1b-3a2c-8f00-8000-0123456789ab"}]}'
    )
    yield (
        b"remoteSystemID=sae%2Db&size=256\n"
        + b'{"extension_mandatory": [{"a": 1}], "extension_optional": [{}]}'
    )


def _stream_call(data: bytes) -> None:
    if len(data) >= wire.HEADER_BYTES:
        _, service, _ = wire.read_header(data[: wire.HEADER_BYTES])
        wire.read_request(service, data[wire.HEADER_BYTES :])


def _seeds_of_stream_calls() -> Iterable[bytes]:
    call = b"server://a\0client://b\0" + struct.pack("!7I", 32, 0, 0, 0, 0, 1000, 60)
    yield wire.message(b"\1\0\0", 2, call + b"application/json\0" + bytes(16))
    yield wire.message(b"\1\0\0", 2, call + b"application/json".ljust(256, b"\0") + bytes(range(16)))
    yield wire.message(b"\1\0\0", 4, bytes(range(16)) + struct.pack("!2I", 7, 1024))
    yield wire.message(b"\1\0\0", 8, bytes(range(16)))


# Operation


def _control_request(data: bytes) -> None:
    link = LinkAnswers(blocks=lambda count, after: [])
    answers = Answers(status=_no_status, events=lambda count: [], links={"": link, "other": link})
    try:
        request = msgspec.json.decode(data, type=Request)
    except UNREADABLE:
        stream: Any = None
        at_once(control._response(stream, answers, data))
    else:
        with taken_again():
            same(msgspec.json.decode(msgspec.json.encode(request), type=Request), request)


def _no_status() -> Any:
    raise StoreError("none here")


def _seeds_of_control_requests() -> Iterable[bytes]:
    for name in (
        "status",
        "events",
        "blocks",
        "subscribe",
        "exchanges",
        "record",
        "calibrate",
        "audit",
        "reload",
    ):
        yield msgspec.json.encode(
            Request(request=name, count=5, after=3, link="a", device="b", sudo_user="c")
        )
    yield msgspec.json.encode(Request(request="restore", preshared_key=bytes(40)))


def _recording(data: bytes) -> None:
    for frame in recording.FrameReader().frames(data):
        with taken_again():
            (again,) = recording.FrameReader().frames(recording.encode_frame(frame))
            same(again, frame)


def _agent_message(data: bytes) -> None:
    message = agent_messages.decode(data)
    with taken_again():
        same(agent_messages.decode(agent_messages.encode(message)), message)


# Devices


def _open_protocol(data: bytes) -> None:
    """Read a stream of frames, and what each of them holds."""
    buffer = np.frombuffer(data, np.uint8).copy()
    stream = TagStream(1, (1000, 1), {1: 0, 2: 1})
    scanned = scan(buffer)
    assert 0 <= scanned.consumed <= len(data)
    for frame in scanned.frames:
        payload = data[frame.start : frame.start + frame.length]
        for read in (
            open_protocol.read_hello,
            open_protocol.read_entries,
            open_protocol.read_position,
            open_protocol.read_event,
            open_protocol.read_error,
            lambda payload: open_protocol.read_symbols(np.frombuffer(payload, np.uint8)),
            lambda _: stream.feed(buffer, frame),  # noqa: B023 - used within this turn
        ):
            try:
                read(payload)
            except DeviceError:
                continue
    stream.take()


def _seeds_of_open_protocol() -> Iterable[bytes]:
    tags = struct.pack("<IHHQQQ", 1, 2, 0, 0, 10_000, 90_000) + struct.pack("<2I", 0x10000005, 0x20000007)
    frames = [open_protocol.frame(kind, 1, tags) for kind in open_protocol.Kind]
    yield b"".join(frames)
    yield open_protocol.hello() + open_protocol.frame(
        0x03, 2, open_protocol.encode_entries([open_protocol.Entry(1, 0, 5)])
    )


def _tdc1(data: bytes) -> None:
    channels = TagChannels(z=1, x=2)
    stream = Tdc1Stream(channels)
    for number, at in enumerate(range(0, len(data), 256)):
        stream.feed(data[at : at + 256], number / 100)


def _seeds_of_tdc1() -> Iterable[bytes]:
    yield b"".join(struct.pack("<I", (i * 2000) % 2**27 << 5 | 1 << i % 2) for i in range(200))
    yield b"\1" + b"".join(struct.pack("<I", (i * 900_000) % 2**27 << 5 | 1 << i % 4) for i in range(300))


class _Port:
    """A port of a device that says ``data`` and nothing more."""

    address = "tcp://fuzz"
    keeps_messages = True
    secret = False

    def __init__(self, data: bytes) -> None:
        self._pieces = [data[at : at + 100] for at in range(0, len(data), 100)]

    async def send(self, data: bytes) -> None:
        await trio.lowlevel.checkpoint()

    async def discard(self) -> None:
        await trio.lowlevel.checkpoint()

    async def receive(self) -> bytes:
        await trio.lowlevel.checkpoint()
        if not self._pieces:
            raise DeviceError("silent")
        return self._pieces.pop(0)


def _instrument(data: bytes) -> None:
    async def ask() -> None:
        port: Any = _Port(data)
        scpi = Scpi(Lines(port), "an instrument")
        while True:
            answer = await scpi.ask("READ?")
            scpi.field("READ?", answer, 0)
            assert math.isfinite(await scpi.number("READ?"))

    trio.run(ask)


def _seeds_of_instruments() -> Iterable[bytes]:
    yield b'1.5E-3,2,3\n+4.2\r\n0,"No error"\n-7\n'


TARGETS: dict[str, Target] = {
    "requests": Target(_http_request, (), _seeds_of_http_request),
    "etsi004": Target(_stream_call, (wire.MalformedMessage,), _seeds_of_stream_calls),
    "control": Target(_control_request, (), _seeds_of_control_requests),
    "recording": Target(
        _recording,
        (recording.BrokenFrame,),
        lambda: (recording.encode_frame(example(kind)) for kind in kinds(recording.Frame)),
    ),
    "agent": Target(
        _agent_message,
        (ProtocolError,),
        lambda: seeds_of(
            (agent_messages.Alive, agent_messages.Offer, agent_messages.Done, agent_messages.Hello)
        ),
    ),
    "open-protocol": Target(_open_protocol, (), _seeds_of_open_protocol),
    "tdc1": Target(_tdc1, (DeviceError,), _seeds_of_tdc1),
    "instrument": Target(_instrument, (DeviceError,), _seeds_of_instruments),
}
