"""The relay that makes the loopback link long."""

from pathlib import Path

import msgspec
import trio

from qnode.loopback.delay import delay_line
from qnode.loopback.prepare import LoopbackConfig, Staging, prepare
from qnode.loopback.run import sites_running

ROUND_TRIP_S = 0.2


async def _echo(stream: trio.SocketStream) -> None:
    async for piece in stream:
        await stream.send_all(piece)


async def _ports() -> tuple[list[trio.SocketListener], int, int]:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    spare = trio.socket.socket()
    await spare.bind(("127.0.0.1", 0))
    free = int(spare.getsockname()[1])
    spare.close()
    return listeners, int(listeners[0].socket.getsockname()[1]), free


async def test_every_byte_arrives_in_order_a_round_trip_later() -> None:
    listeners, target, port = await _ports()
    sent = bytes(range(256)) * 4096
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, _echo, listeners)
        async with delay_line(port, target, ROUND_TRIP_S):
            async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                started = trio.current_time()
                nursery.start_soon(stream.send_all, sent)
                received = bytearray(await stream.receive_some())
                assert trio.current_time() - started >= ROUND_TRIP_S
                while len(received) < len(sent):
                    received += await stream.receive_some()
            assert received == sent
        nursery.cancel_scope.cancel()


async def test_a_closed_end_closes_the_other_and_a_missing_target_refuses() -> None:
    listeners, target, port = await _ports()
    async with delay_line(port, target, 0.01):
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        far = await listeners[0].accept()
        await far.aclose()
        assert await stream.receive_some() == b""
        await stream.aclose()
        await listeners[0].aclose()
        async with await trio.open_tcp_stream("127.0.0.1", port) as refused:
            assert await refused.receive_some() == b""


async def test_the_lines_of_a_loopback_with_a_longer_round_trip_are_up_while_it_runs(tmp_path: Path) -> None:
    prepared = prepare(tmp_path / "data", LoopbackConfig(), Staging(round_trip_s=0.01, links=2))
    assert len(prepared.lines) == 2
    sites_elsewhere = msgspec.structs.replace(
        prepared, site_files={}, endpoints=msgspec.structs.replace(prepared.endpoints, links=[])
    )
    with trio.fail_after(60):
        async with sites_running(sites_elsewhere, lambda site, line: None):
            for line in prepared.lines:
                await (await trio.open_tcp_stream("127.0.0.1", line.bob_port)).aclose()
