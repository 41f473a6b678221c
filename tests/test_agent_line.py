"""The line between two agents over real TCP and TLS: the other agent and nobody else, one at a time."""

import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import msgspec
import pytest
import structlog
import trio
import trio.testing
from agent_support import agent_tables, issue, written
from http_support import HOST, Pki
from structlog.typing import EventDict

from qnode.agent.config import LineSection, load_agent
from qnode.agent.line import LineKeeper, StreamLine
from qnode.agent.messages import Alive, Line, Message, encode
from qnode.errors import LinkError, ProtocolError
from qnode.peer_tls import peer_contexts

HELLO = Alive(active="key-1", trouble="")
NO_TEXT = encode(HELLO).replace(b"key-1", b"\xff" * 5)


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    made = Pki(tmp_path_factory.mktemp("pki"))
    for name in ("agent-a", "agent-b", "sae-a", "sae-b"):
        issue(made, name)
    return made


class Echo:
    """Says one thing, and keeps what comes."""

    def __init__(self) -> None:
        self.line_trouble = ""
        self.heard: list[Message] = []
        self.conversations = 0
        self.present = 0
        self.most = 0
        self.changed = trio.Event()

    async def converse(self, line: Line) -> None:
        self.conversations += 1
        self.present += 1
        self.most = max(self.most, self.present)
        try:
            await line.send(HELLO)
            while True:
                self.heard.append(await line.receive())
                self.changed.set()
        finally:
            self.present -= 1


def section(pki: Pki, role: str, **changes: object) -> LineSection:
    line = load_agent(written(pki.folder, agent_tables(pki.folder, role), f"{role}.toml")).line
    return msgspec.structs.replace(line, **changes)


@asynccontextmanager
async def listening(pki: Pki) -> AsyncIterator[tuple[LineKeeper, Echo]]:
    own = section(pki, "initiator", listen=f"{HOST}:0", connect=None)
    echo = Echo()
    keeper = LineKeeper(own, peer_contexts(own.tls(), "line"), echo)
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            await nursery.start(keeper.run)
            yield keeper, echo
            nursery.cancel_scope.cancel()


def connecting(pki: Pki, keeper: LineKeeper, **changes: object) -> tuple[LineKeeper, Echo]:
    other = section(pki, "responder", listen=None, connect=f"{HOST}:{keeper.port}", **changes)
    echo = Echo()
    return LineKeeper(other, peer_contexts(other.tls(), "line"), echo), echo


@contextmanager
def noting(name: str, told: trio.Event) -> Iterator[None]:
    """Set ``told`` when an event of this name is logged."""

    def look(_logger: object, _method: str, event: EventDict) -> EventDict:
        if event["event"] == name:
            told.set()
        raise structlog.DropEvent

    before = structlog.get_config()["processors"]
    structlog.configure(processors=[look])
    try:
        yield
    finally:
        structlog.configure(processors=before)


async def until(echo: Echo) -> None:
    await echo.changed.wait()
    echo.changed = trio.Event()


async def test_two_agents_hear_each_other_and_meet_again_after_a_cut(pki: Pki) -> None:
    async with listening(pki) as (keeper, here):
        other, there = connecting(pki, keeper)
        for _ in range(2):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(other.run)
                await until(here)
                await until(there)
                nursery.cancel_scope.cancel()
        assert here.heard == there.heard == [HELLO] * 2


async def test_a_newer_line_of_the_same_agent_replaces_the_older_one(pki: Pki) -> None:
    async with listening(pki) as (keeper, here), trio.open_nursery() as nursery:
        for number in (1, 2):
            other, there = connecting(pki, keeper)
            nursery.start_soon(other.run)
            await until(here)
            await until(there)
            assert here.conversations >= number
        assert here.most == 1
        nursery.cancel_scope.cancel()


async def test_nobody_but_the_named_agent_is_let_in(pki: Pki, tmp_path: Path) -> None:
    stranger = Pki(tmp_path)
    issue(stranger, "agent-b")
    refused = [
        {"certificate": pki.folder / "sae-b.pem", "key": pki.folder / "sae-b.key"},
        {"certificate": tmp_path / "agent-b.pem", "key": tmp_path / "agent-b.key"},
    ]
    async with listening(pki) as (keeper, here):
        for changes in refused:
            told = trio.Event()
            with noting("line.refused", told):
                other, there = connecting(pki, keeper, **changes)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(other.run)
                    await told.wait()
                    nursery.cancel_scope.cancel()
            assert not there.heard
        assert here.conversations == 0
        assert "was refused: the certificate is not accepted" in here.line_trouble


async def test_strangers_that_say_nothing_or_garbage_do_not_keep_the_agent_out(pki: Pki) -> None:
    async with listening(pki) as (keeper, here):
        assert keeper.port is not None
        streams = [await trio.open_tcp_stream(HOST, keeper.port) for _ in range(60)]
        for stream in streams[::2]:
            await stream.send_all(b"GET / HTTP/1.1\r\n\r\n")
        other, _ = connecting(pki, keeper)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(other.run)
            await until(here)
            nursery.cancel_scope.cancel()
        for stream in streams:
            await trio.aclose_forcefully(stream)


async def test_the_line_is_tls_1_3_alone(pki: Pki) -> None:
    async with listening(pki) as (keeper, _):
        assert keeper.port is not None
        context = pki.client_context(None)
        context.load_cert_chain(pki.folder / "agent-b.pem", pki.folder / "agent-b.key")
        context.check_hostname = False
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        stream = await trio.open_ssl_over_tcp_stream(HOST, keeper.port, ssl_context=context)
        with pytest.raises(trio.BrokenResourceError):
            await stream.do_handshake()
        await trio.aclose_forcefully(stream)


async def test_an_agent_that_does_not_answer_is_tried_again_with_longer_pauses(pki: Pki) -> None:
    async with listening(pki) as (keeper, _):
        pass
    other, _ = connecting(pki, keeper)
    with structlog.testing.capture_logs() as events:
        with trio.move_on_after(1.0):
            await other.run()
    assert len(events) == 1  # the same reason is told once
    assert "does not answer" in other.agent.line_trouble


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"\x00\x00\x00\x03abc", "no message"),
        (len(NO_TEXT).to_bytes(4, "big") + NO_TEXT, "no message"),
        (b"\x00\x10\x00\x00", "a message of 1048576 bytes; most is 16384"),
        (b"\x00\x00", "closed the line"),
    ],
)
async def test_what_is_no_message_ends_the_line(data: bytes, told: str) -> None:
    near, far = trio.testing.memory_stream_pair()
    line = StreamLine(near)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(line.read)
        await far.send_all(data)
        await far.aclose()
        with pytest.raises(LinkError, match=told) as error:
            await line.receive()
    assert isinstance(error.value, ProtocolError) is ("message" in told)


async def test_messages_pass_whole_however_the_bytes_are_cut() -> None:
    near, far = trio.testing.memory_stream_pair()
    here, there = StreamLine(near), StreamLine(far)
    cut: list[bytes] = []
    with trio.CancelScope():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(here.send, HELLO)
            cut.append(bytes(await far.receive_some()))
            nursery.start_soon(there.read)
            for byte in cut[0] * 3:
                await near.send_all(bytes([byte]))
            assert [await there.receive() for _ in range(3)] == [HELLO] * 3
            nursery.cancel_scope.cancel()
