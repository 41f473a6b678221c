"""The control socket: real Unix sockets, friendly and hostile callers."""

import json
import socket
import stat
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from itertools import islice
from pathlib import Path
from threading import Event, Thread
from typing import Any, get_args

import pytest
import trio
from blocks_support import accepted_block, lost_block
from hypothesis import given, settings
from hypothesis import strategies as st
from operate_support import well_status

from qnode.errors import ConfigError
from qnode.operate.blocks.row import DecidedBlock
from qnode.operate.control import client, listening, requests
from qnode.operate.control import server as control
from qnode.operate.control.answers import Answers, LinkAnswers
from qnode.operate.control.information import serve_information
from qnode.operate.control.requests import REQUESTS

EVENTS = [{"at": 1.0 + i, "level": "info", "event": "block.done", "block": i} for i in range(5)]


def recent_events(count: int) -> list[dict[str, Any]]:
    return EVENTS[-count:] if count > 0 else []


BLOCKS = [accepted_block(1), lost_block(3, "qber_z"), accepted_block(2)]


def decided_blocks(count: int, after: int | None) -> list[DecidedBlock]:
    # Which rows these are is the node's to decide; here it matters that both numbers arrive.
    place = [block.block_id for block in BLOCKS].index(after) + 1 if after is not None else 0
    return BLOCKS[place:][-count:]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "alice" / "control.sock"


ANSWERS = Answers(well_status, recent_events, {"turin": LinkAnswers(decided_blocks)})


@asynccontextmanager
async def served(path: Path) -> AsyncIterator[None]:
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            await nursery.start(control.serve_control, path, ANSWERS)
            yield
            nursery.cancel_scope.cancel()


async def exchange(path: Path, *sent: bytes) -> list[dict[str, Any]]:
    """Send raw bytes, finish sending, and return the lines that come until the node hangs up."""
    received = bytearray()
    async with await trio.open_unix_socket(path) as stream:
        try:
            for request in sent:
                await stream.send_all(request)
            await stream.send_eof()
            async for part in stream:
                received += part
        except (trio.BrokenResourceError, OSError):
            pass  # the node hung up while we were still sending
    return [json.loads(line) for line in received.splitlines()]


async def test_the_status_arrives_as_it_was_provided(path: Path) -> None:
    async with served(path):
        assert await control.ask_node(path) == well_status()


async def test_the_client_without_trio_gets_the_same(path: Path) -> None:
    async with served(path):
        raw = await trio.to_thread.run_sync(lambda: client.ask_status(path, patience_s=60))
        events = await trio.to_thread.run_sync(lambda: client.ask_events(path, 2, patience_s=60))
    assert client.decode_status(raw) == well_status()
    assert events == EVENTS[-2:]


async def test_decided_blocks_arrive_as_they_were_kept(path: Path) -> None:
    async with served(path):
        everything = await trio.to_thread.run_sync(lambda: client.ask_blocks(path, 4096, patience_s=60))
        newest = await trio.to_thread.run_sync(lambda: client.ask_blocks(path, 1, patience_s=60))
        later = await trio.to_thread.run_sync(lambda: client.ask_blocks(path, 9, after=1, patience_s=60))
        none = await trio.to_thread.run_sync(lambda: client.ask_blocks(path, 9, after=2, patience_s=60))
    assert everything == BLOCKS
    assert newest == BLOCKS[-1:]
    assert later == BLOCKS[1:]
    assert none == []


def test_each_request_that_a_client_can_make_is_answered() -> None:
    assert [*REQUESTS] == [*get_args(client.Request.__annotations__["request"])]


async def test_several_requests_share_a_connection(path: Path) -> None:
    async with served(path):
        answers = await exchange(path, b'{"request":"status"}\n{"request":"eve', b'nts","count":1}\n')
    assert [list(answer) for answer in answers] == [["status"], ["events"]]


async def test_a_subscriber_gets_one_status_after_another(path: Path) -> None:
    def look() -> list[object]:
        return list(islice(client.follow_status(path, interval_s=0.1, patience_s=60), 3))

    async with served(path):
        assert await trio.to_thread.run_sync(look) == [well_status()] * 3


@pytest.mark.parametrize(
    ("request_line", "expected"),
    [
        (b'{"request":"statsu"}', "did you mean status?"),
        (
            b'{"request":"shutdown"}',
            "unknown request (known: status, events, blocks, subscribe, exchanges, record, restore, ",
        ),
        (b'{"request":"status","key":1}', "not a request"),
        (b'{"request":"events","count":"all"}', "not a request"),
        (b'{"request":"blocks","after":"all"}', "not a request"),
        (b"[1,2]", "not a request"),
        (b"GET / HTTP/1.1", "one line of JSON"),
        (b"\xff\xfe\x00", "one line of JSON"),
        (b"", "one line of JSON"),
        (b"[" * 4000, "one line of JSON"),
    ],
)
async def test_a_broken_request_is_refused_and_the_next_one_answered(
    path: Path, request_line: bytes, expected: str
) -> None:
    async with served(path):
        refusal, answer = await exchange(path, request_line + b'\n{"request":"status"}\n')
    assert expected in refusal["error"]
    assert "status" in answer


async def test_a_socket_for_information_tells_status_and_events_and_refuses_everything_else(
    path: Path,
) -> None:
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            await nursery.start(serve_information, path, "an agent", well_status, recent_events)
            assert await control.ask_node(path) == well_status()
            refused = [b'{"request":"backup"}\n', b'{"count":1}\n', b"{\n", b"\xff\n", b"[" * 4000 + b"\n"]
            *errors, events = await exchange(path, *refused, b'{"request":"events","count":2,"new":1}\n')
            nursery.cancel_scope.cancel()
    assert events == {"events": EVENTS[-2:]}
    assert len(errors) == len(refused)
    for error in errors:
        assert error["error"].startswith("not a request of an agent (known: status, events): ")
    assert "unknown request 'backup'" in errors[0]["error"]


async def test_a_line_without_end_ends_the_connection_only(path: Path) -> None:
    async with served(path):
        answers = await exchange(path, *[b"x" * 65536] * 16)
        # Whether the refusal is still readable depends on who notices first; that it is bounded does not.
        assert all("a line is at most" in answer["error"] for answer in answers)
        assert len(answers) <= 1
        assert await control.ask_node(path) == well_status()


async def test_callers_that_leave_or_never_ask_do_no_harm(path: Path) -> None:
    async with served(path):
        silent = [await trio.open_unix_socket(path) for _ in range(listening.CONNECTIONS - 1)]
        assert await exchange(path, b'{"request":') == []
        assert await control.ask_node(path) == well_status()
        for stream in silent:
            await stream.aclose()


async def test_one_connection_too_many_is_told_so(path: Path) -> None:
    async with served(path):
        held = [await trio.open_unix_socket(path) for _ in range(listening.CONNECTIONS)]
        for stream in held:
            await stream.send_all(b'{"request":"events","count":0}\n')
            await stream.receive_some()
        with pytest.raises(client.NoAnswer, match="all 32 connections to the control socket are taken"):
            await control.ask_node(path)
        for stream in held:
            await stream.aclose()
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert await control.ask_node(path) == well_status()


async def test_a_caller_that_does_not_read_is_dropped(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listening, "SEND_LIMIT_S", 0.05)
    monkeypatch.setattr(requests, "SHORTEST_INTERVAL_S", 0.0)
    async with served(path), await trio.open_unix_socket(path) as stream:
        await stream.send_all(b'{"request":"subscribe","interval_s":0}\n')
        # Idle for longer than the limit: the sender was clogged, and has given up.
        await trio.testing.wait_all_tasks_blocked(0.15)
        total = 0
        async for part in stream:
            total += len(part)
        assert 0 < total < 10_000_000


async def test_only_owner_and_group_may_connect(path: Path) -> None:
    async with served(path):
        assert stat.S_IMODE((await trio.Path(path).stat()).st_mode) == 0o660


async def test_the_socket_file_is_gone_afterwards(path: Path) -> None:
    async with served(path):
        pass
    assert not await trio.Path(path).exists()
    with pytest.raises(client.NodeNotRunning):
        await control.ask_node(path)


async def test_the_socket_of_a_killed_daemon_is_replaced(path: Path) -> None:
    await trio.Path(path.parent).mkdir()
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(path))
    async with served(path):
        assert await control.ask_node(path) == well_status()


async def test_a_served_socket_is_refused_and_stays_served(path: Path) -> None:
    async with served(path):
        with pytest.RaisesGroup(pytest.RaisesExc(ConfigError, match="another daemon answers")):
            async with served(path):
                pass
        assert await control.ask_node(path) == well_status()


async def test_a_file_that_is_no_socket_is_left_alone(path: Path) -> None:
    await trio.Path(path.parent).mkdir()
    await trio.Path(path).write_text("precious")
    with pytest.RaisesGroup(pytest.RaisesExc(ConfigError, match="no socket lies there")):
        async with served(path):
            pass
    assert await trio.Path(path).read_text() == "precious"


async def test_a_path_too_long_for_a_socket_is_explained(tmp_path: Path) -> None:
    with pytest.RaisesGroup(pytest.RaisesExc(ConfigError, match="107 bytes")):
        async with served(tmp_path / ("x" * 120)):
            pass


@pytest.mark.parametrize(
    ("answer", "match"),
    [
        (b"hello\n", "not an answer"),
        (b'{"error":"busy"}\n', "busy"),
        (b'{"events":[]}\n', "something else than its status"),
        (b'{"status":{}}\n', "cannot be read"),
        (b'{"status":', "hung up"),
        (b"", "hung up"),
    ],
)
async def test_an_answer_that_is_none_is_no_answer(tmp_path: Path, answer: bytes, match: str) -> None:
    path = tmp_path / "s"

    async def answer_once(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some()
            await stream.send_all(answer)

    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path))
        bound.listen()
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(bound))
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.serve_listeners, answer_once, [listener])
                with pytest.raises(client.NoAnswer, match=match):
                    await control.ask_node(path)

                def ask() -> None:
                    client.decode_status(client.ask_status(path, patience_s=60))

                with pytest.raises(client.NoAnswer, match=match):
                    await trio.to_thread.run_sync(ask)
                nursery.cancel_scope.cancel()


def test_a_daemon_that_hangs_gives_no_answer_in_time(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(tmp_path / "s"))
        bound.listen()
        with pytest.raises(client.NoAnswer, match="no answer within"):
            client.ask_status(tmp_path / "s", patience_s=0.05)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.binary(max_size=200), max_size=6))
def test_no_garbage_stops_the_server(tmp_path_factory: pytest.TempPathFactory, parts: list[bytes]) -> None:
    path = tmp_path_factory.mktemp("c") / "s"

    async def run() -> None:
        async with served(path):
            for answer in await exchange(path, *parts):
                assert set(answer) <= {"error", "status", "events", "blocks"}
            assert await control.ask_node(path) == well_status()

    trio.run(run)


@contextmanager
def refusing(path: Path) -> Iterator[Event]:
    """Refuse one caller at ``path`` before it has asked anything; the event tells that this was done."""
    refused = Event()

    def refuse() -> None:
        connection, _ = listener.accept()
        connection.send(json.dumps({"error": listening.FULL}).encode() + b"\n")
        connection.close()
        refused.set()

    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen()
        thread = Thread(target=refuse)
        thread.start()
        yield refused
        thread.join()


@pytest.mark.parametrize(
    "ask",
    [
        lambda path: client.ask_status(path, patience_s=60),
        lambda path: ExitStack().enter_context(client.open_recording_stream(path, patience_s=60)),
    ],
)
def test_a_caller_that_is_refused_before_it_has_asked_hears_why(
    path: Path, ask: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with refusing(path) as refused:

        class LateSocket(socket.socket):
            def sendall(self, *args: Any) -> None:
                assert refused.wait(60)
                super().sendall(*args)

        monkeypatch.setattr(socket, "socket", LateSocket)
        with pytest.raises(client.NoAnswer, match="all 32 connections to the control socket are taken"):
            ask(path)
        monkeypatch.undo()


async def test_the_asynchronous_client_hears_it_too(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with refusing(path) as refused:

        async def connect(where: Path) -> trio.SocketStream:
            stream = await trio.open_unix_socket(where)
            await trio.to_thread.run_sync(refused.wait, 10)
            return stream

        monkeypatch.setattr(control, "_connect", connect)
        with pytest.raises(client.NoAnswer, match="all 32 connections to the control socket are taken"):
            await control.ask_node(path)
