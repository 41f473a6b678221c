"""HTTP/1.1 over plain loopback TCP: what is served, what is refused, and every deadline."""

import json
import socket
import struct
from typing import Any

import pytest
import structlog
import trio
import trio.testing
from http_support import HOST, read_all, respond, running, speak

from qnode.errors import StoreError
from qnode.http import Counters, Limits
from qnode.http._slots import ConnectionSlots

GET = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"
LAST = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answer with what arrived."""
    message = await receive()
    seen = {
        "method": scope["method"],
        "path": scope["path"],
        "raw_path": scope["raw_path"].decode(),
        "query": scope["query_string"].decode(),
        "scheme": scope["scheme"],
        "body": message["body"].decode(),
    }
    await respond(send, 200, json.dumps(seen).encode(), [(b"content-type", b"application/json")])


def seen(answer: bytes) -> Any:
    return json.loads(answer.partition(b"\r\n\r\n")[2])


async def test_a_request_reaches_the_application_as_written() -> None:
    async with running(echo) as server:
        answer = await speak(
            server.port,
            b"POST /a%2Fb/%C3%A9?x=1 HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\nconnection: close\r\n\r\nhi",
        )
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert b"\r\ndate: " in answer.lower()
        assert seen(answer) == {
            "method": "POST",
            "path": "/a/b/é",
            "raw_path": "/a%2Fb/%C3%A9",
            "query": "x=1",
            "scheme": "http",
            "body": "hi",
        }


async def test_absolute_targets_lose_scheme_and_host() -> None:
    async with running(echo) as server:
        answer = await speak(
            server.port, b"GET http://x/p?q HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
        )
        assert (seen(answer)["path"], seen(answer)["query"]) == ("/p", "q")


async def test_pipelined_requests_are_answered_in_order_on_one_connection() -> None:
    async with running(echo) as server:
        first, second = GET.replace(b"/ ", b"/1 ", 1), LAST.replace(b"/ ", b"/2 ", 1)
        answer = await speak(server.port, first + second)
        assert answer.count(b"HTTP/1.1 200") == 2
        assert answer.index(b'"/1"') < answer.index(b'"/2"')
        assert server.counters.connections == 1


async def test_requests_that_come_in_one_piece_leave_turns_to_others() -> None:
    turns, seen_at = 0, list[int]()

    async def note(scope: Any, receive: Any, send: Any) -> None:
        seen_at.append(turns)
        await respond(send, 200, b"")

    async with running(note) as server, trio.open_nursery() as nursery:

        async def count() -> None:
            nonlocal turns
            while True:
                await trio.lowlevel.checkpoint()
                turns += 1

        nursery.start_soon(count)
        await speak(server.port, GET * 19 + LAST)
        nursery.cancel_scope.cancel()
    assert len(seen_at) == 20
    assert seen_at[-1] - seen_at[0] >= 18  # a turn is counted before or after the request in it


async def test_a_chunked_body_arrives_whole() -> None:
    async with running(echo) as server:
        answer = await speak(
            server.port,
            b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n"
            b"2\r\nab\r\n1\r\nc\r\n0\r\n\r\n",
        )
        assert seen(answer)["body"] == "abc"


async def test_head_has_the_headers_of_get_and_no_body() -> None:
    async with running(echo) as server:
        answer = await speak(server.port, LAST.replace(b"GET", b"HEAD"))
        head, _, body = answer.partition(b"\r\n\r\n")
        assert b"content-length: " in head.lower()
        assert body == b""


async def test_a_client_that_expects_100_gets_it_before_its_body() -> None:
    async with running(echo) as server, await trio.open_tcp_stream(HOST, server.port) as stream:
        await stream.send_all(
            LAST.replace(b"GET", b"POST")[:-2] + b"content-length: 2\r\nexpect: 100-continue\r\n\r\n"
        )
        assert (await stream.receive_some()).startswith(b"HTTP/1.1 100 ")
        await stream.send_all(b"ok")
        assert seen(await read_all(stream))["body"] == "ok"


async def test_an_http_1_0_client_gets_its_answer_and_the_end() -> None:
    async with running(echo) as server:
        assert (await speak(server.port, b"GET / HTTP/1.0\r\n\r\n")).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    ("text", "status"),
    [
        (
            b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
        ),
        (b"POST / HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabcd", 400),
        (b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: gzip\r\n\r\n", 501),
        (b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00", 400),
        (b"hello\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: x\r\nbad header\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: x\r\na: " + b"a" * 16384 + b"\r\n\r\n", 431),
        (b"GET /" + b"a" * 20000, 431),
        (b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 65537\r\n\r\n", 413),
        (b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 65537\r\nexpect: 100-continue\r\n\r\n", 413),
        (b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n10001\r\n" + b"a" * 65537, 413),
    ],
    ids=[
        "two framings",
        "chunked in 1.0",
        "two lengths",
        "negative length",
        "other coding",
        "bad chunk",
        "no host",
        "TLS to a plain port",
        "garbage",
        "bad header",
        "long header",
        "long target",
        "announced body",
        "announced body with 100-continue",
        "chunked body",
    ],
)
async def test_hostile_requests_are_refused_and_never_reach_the_application(text: bytes, status: int) -> None:
    async def never(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError("reached")

    with structlog.testing.capture_logs() as logs:
        async with running(never, limits=Limits(linger_s=0.05)) as server:
            answer = await speak(server.port, text)
            assert answer.startswith(b"HTTP/1.1 %d " % status)
            assert list(seen(answer)) == ["message"]
            assert server.counters.requests_refused == 1
            assert server.counters.connections_failed == 0
    (entry,) = [entry for entry in logs if entry["event"] == "http.request_refused"]
    assert "a" * 100 not in entry["reason"]


async def test_a_head_of_exactly_the_limit_is_served() -> None:
    async with running(echo, limits=Limits(head_bytes=1024)) as server:
        start = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\na: "
        padding = b"a" * (1024 - len(start) - 4)
        assert b" 200 " in (await speak(server.port, start + padding + b"\r\n\r\n"))[:20]
        assert b" 431 " in (await speak(server.port, start + padding + b"a\r\n\r\n"))[:20]


async def test_a_body_of_exactly_the_limit_is_served() -> None:
    async with running(echo) as server:
        head = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 65536\r\nconnection: close\r\n\r\n"
        assert len(seen(await speak(server.port, head + b"a" * 65536))["body"]) == 65536


async def test_a_client_still_sending_a_large_body_sees_the_413() -> None:
    async with running(echo) as server:
        head = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 524288\r\n\r\n"
        assert b" 413 " in (await speak(server.port, head + b"a" * 524288))[:20]


@pytest.mark.parametrize(
    ("text", "limits", "answer"),
    [
        (b"", Limits(idle_s=0.1), b""),
        (GET, Limits(idle_s=1.0), b"HTTP/1.1 200 "),
        (b"GET / HT", Limits(head_s=0.1, linger_s=0.05), b"HTTP/1.1 408 "),
        (GET[:-2] + b"content-length: 2\r\n\r\na", Limits(body_s=0.1, linger_s=0.05), b"HTTP/1.1 408 "),
    ],
    ids=["silent", "silent after a request", "slow head", "slow body"],
)
async def test_a_slow_client_is_closed_at_its_deadline(text: bytes, limits: Limits, answer: bytes) -> None:
    async with running(echo, limits=limits) as server:
        with trio.fail_after(60):
            assert (await speak(server.port, text))[: len(answer) or None] == answer


async def test_a_dribbling_head_does_not_move_its_deadline() -> None:
    async with (
        running(echo, limits=Limits(head_s=0.3, linger_s=0.05)) as server,
        await trio.open_tcp_stream(HOST, server.port) as stream,
        trio.open_nursery() as nursery,
    ):

        async def dribble() -> None:
            try:
                for byte in b"GET /" + b"a" * 10_000:
                    await stream.send_all(bytes([byte]))
                    await trio.testing.wait_all_tasks_blocked(0.02)
            except trio.BrokenResourceError:
                pass

        nursery.start_soon(dribble)
        with trio.fail_after(60):
            assert (await read_all(stream)).startswith(b"HTTP/1.1 408 ")
        nursery.cancel_scope.cancel()


async def flood(scope: Any, receive: Any, send: Any) -> None:
    """Send far more than any socket buffer holds."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for _ in range(64):
        await send({"type": "http.response.body", "body": bytes(1 << 20), "more_body": True})
    await send({"type": "http.response.body"})


async def test_a_client_that_does_not_read_is_dropped_at_the_send_deadline() -> None:
    with structlog.testing.capture_logs() as logs:
        async with (
            running(flood, limits=Limits(send_s=0.1)) as server,
            await trio.open_tcp_stream(HOST, server.port) as stream,
        ):
            await stream.send_all(GET)
            with trio.fail_after(60):
                while server.open_connections or not server.counters.requests:
                    await trio.testing.wait_all_tasks_blocked(0.01)
    gone = [entry for entry in logs if entry["event"] == "http.client_gone"]
    assert [entry["reason"] for entry in gone] == ["client does not read"]


async def test_cancellation_is_prompt_though_a_client_does_not_read() -> None:
    async with running(flood) as server:
        stream = await trio.open_tcp_stream(HOST, server.port)
        await stream.send_all(GET)
        await stream.receive_some()
        await trio.testing.wait_all_tasks_blocked(0.05)
        cancelled = trio.current_time()
    assert trio.current_time() - cancelled < Limits().send_s / 2
    await stream.aclose()


async def test_a_crash_becomes_500_without_details_and_the_server_goes_on() -> None:
    async def crash(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/store":
            raise StoreError("disk is full")
        if scope["path"] == "/crash":
            raise ValueError("s3cret")
        await respond(send, 200, b"fine")

    with structlog.testing.capture_logs() as logs:
        async with running(crash, limits=Limits(linger_s=0.05)) as server:
            answer = await speak(server.port, GET.replace(b"/ ", b"/crash ", 1))
            assert answer.startswith(b"HTTP/1.1 500 ")
            assert seen(answer) == {"message": "internal error"}
            assert b" 500 " in (await speak(server.port, GET.replace(b"/ ", b"/store ", 1)))[:20]
            assert (await speak(server.port, LAST)).endswith(b"fine")
    failed = [entry for entry in logs if entry["event"] == "http.connection_failed"]
    assert [(entry["error"], entry["message"]) for entry in failed] == [
        ("ValueError", None),
        ("StoreError", "disk is full"),
    ]
    assert failed[0]["where"][-1].endswith(" crash")
    assert "s3cret" not in repr(logs)


async def test_a_crash_after_the_head_cuts_the_answer() -> None:
    async def crash(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        raise RuntimeError

    async with running(crash) as server:
        with structlog.testing.capture_logs():
            answer = await speak(server.port, GET)
        assert b"half" in answer
        assert not answer.endswith(b"0\r\n\r\n")


async def test_an_application_without_an_answer_is_a_crash() -> None:
    async def silent(scope: Any, receive: Any, send: Any) -> None:
        return

    with structlog.testing.capture_logs():
        async with running(silent, limits=Limits(linger_s=0.05)) as server:
            assert b" 500 " in (await speak(server.port, GET))[:20]
            assert server.counters.connections_failed == 1


async def test_an_application_that_waits_learns_that_its_client_has_gone() -> None:
    learned = trio.Event()

    async def wait(scope: Any, receive: Any, send: Any) -> None:
        assert (await receive())["type"] == "http.request"
        assert (await receive())["type"] == "http.disconnect"
        learned.set()
        await respond(send, 200, b"")

    with structlog.testing.capture_logs():
        async with running(wait) as server:
            async with await trio.open_tcp_stream(HOST, server.port) as stream:
                await stream.send_all(GET)
            with trio.fail_after(60):
                await learned.wait()


async def test_a_full_house_drops_whoever_waited_longest_for_a_newcomer() -> None:
    async with running(echo, limits=Limits(connections=3, connections_per_client=2, rest_s=0.0)) as server:
        first, second = [await trio.open_tcp_stream(HOST, server.port) for _ in range(2)]
        for stream in (second, first, second):
            await stream.send_all(GET)
            await stream.receive_some()
        assert b" 200 " in (await speak(server.port, LAST))[:20]
        with trio.fail_after(60):
            assert await read_all(first) == b""
        await second.send_all(GET)
        assert (await second.receive_some()).startswith(b"HTTP/1.1 200 ")
        assert server.counters.connections_evicted == 1
        await first.aclose()
        await second.aclose()


async def test_connections_in_use_are_not_cut_for_another_of_their_client_which_is_told_503() -> None:
    limits = Limits(connections_per_client=3, surplus_connections=2, rest_s=1000.0, idle_s=1000.0)
    async with running(echo, limits=limits) as server:
        kept = [await trio.open_tcp_stream(HOST, server.port) for _ in range(3)]
        for _ in range(4):
            for stream in kept:
                await stream.send_all(GET)
                assert (await stream.receive_some()).startswith(b"HTTP/1.1 200 ")
            assert (await speak(server.port, GET)).startswith(b"HTTP/1.1 503 ")
        assert (server.counters.connections_evicted, server.counters.connections_refused) == (0, 4)
        silent = [await trio.open_tcp_stream(HOST, server.port) for _ in range(4)]
        with trio.fail_after(60):  # two have a surplus slot, two are closed at once
            assert [await read_all(stream) for stream in silent[2:]] == [b"", b""]
        for stream in [*kept, *silent]:
            await stream.aclose()


async def test_a_client_with_few_connections_enters_a_house_full_of_anothers_that_are_in_use() -> None:
    slots = ConnectionSlots(Limits(connections=4, connections_per_client=4), Counters())
    many = [slots.take("192.0.2.1") for _ in range(4)]
    for slot in many:
        assert slot is not None
        slot.proven = slot.used = True
    entered = slots.take("192.0.2.2")
    assert entered is not None
    assert not entered.surplus
    entered.proven = entered.used = True
    again = slots.take("192.0.2.1")
    assert again is not None
    assert again.surplus
    assert len(slots) == 4


async def test_addresses_of_one_ipv6_network_are_one_client() -> None:
    slots = ConnectionSlots(Limits(connections_per_client=2), Counters())
    taken = [slots.take(f"2001:db8:0:1::{number:x}") for number in range(9)]
    assert len(slots) == 2
    assert [slot.scope.cancel_called for slot in taken if slot] == [True] * 7 + [False] * 2
    assert not slots.take("2001:db8:0:2::1").surplus  # type: ignore[union-attr]


async def test_a_house_full_of_work_answers_503_to_a_newcomer() -> None:
    working, released = trio.Event(), trio.Event()

    async def work(scope: Any, receive: Any, send: Any) -> None:
        working.set()
        await released.wait()
        await respond(send, 200, b"done")

    async with (
        running(work, limits=Limits(connections=1)) as server,
        await trio.open_tcp_stream(HOST, server.port) as busy,
    ):
        await busy.send_all(LAST)
        await working.wait()
        answer = await speak(server.port, LAST)
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"\r\nretry-after: 2\r\n" in answer.lower()
        assert seen(answer) == {"message": "too many connections"}
        assert server.counters.connections_refused == 1
        released.set()
        assert (await read_all(busy)).endswith(b"done")


async def test_hundreds_of_idle_connections_keep_nobody_out() -> None:
    async with running(echo) as server:
        idle = [await trio.open_tcp_stream(HOST, server.port) for _ in range(300)]
        assert b" 200 " in (await speak(server.port, LAST))[:20]
        assert server.open_connections <= Limits().connections_per_client
        for stream in idle:
            await stream.aclose()


async def test_stop_answers_what_is_under_way_and_then_ends() -> None:
    working, released = trio.Event(), trio.Event()

    async def work(scope: Any, receive: Any, send: Any) -> None:
        working.set()
        await released.wait()
        await respond(send, 200, b"done")

    async with (
        running(work) as server,
        await trio.open_tcp_stream(HOST, server.port) as busy,
        await trio.open_tcp_stream(HOST, server.port) as idle,
    ):
        await busy.send_all(GET)
        await working.wait()
        server.stop()
        assert await read_all(idle) == b""
        released.set()
        answer = await read_all(busy)
        assert answer.endswith(b"done")
        assert b"connection: close" in answer.lower()
        with pytest.raises(OSError, match="connect"):
            await trio.open_tcp_stream(HOST, server.port)


async def test_connections_that_are_reset_leave_a_bounded_number_of_lines() -> None:
    async def reset(port: int) -> None:
        stream = await trio.open_tcp_stream(HOST, port)
        await stream.send_all(b"GE")
        await trio.testing.wait_all_tasks_blocked()
        stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await trio.aclose_forcefully(stream)

    with structlog.testing.capture_logs() as logs:
        async with running(echo) as server:
            for _ in range(50):
                await reset(server.port)
            while server.open_connections:
                await trio.testing.wait_all_tasks_blocked(0.01)
    assert 1 <= sum(entry["event"] == "http.client_gone" for entry in logs) <= 10


async def test_whoever_has_to_wait_for_its_handshake_takes_nobody_s_slot() -> None:
    slots = ConnectionSlots(Limits(connections=2, connections_per_client=2), Counters())
    first, second = slots.take(HOST), slots.take(HOST)
    waiting = slots.take(HOST, evicting=False)
    assert first is not None
    assert second is not None
    assert waiting is not None
    assert waiting.surplus
    assert not first.scope.cancel_called
    assert not second.scope.cancel_called
    slots.take(HOST)
    assert first.scope.cancel_called
