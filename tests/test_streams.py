"""The streams of a socket and of TLS keep the contract of trio's streams, but for needless turns."""

import socket
import ssl
from collections.abc import Iterator

import pytest
import trio
import trio.testing
import trustme
from hypothesis import given, settings
from hypothesis import strategies as st

from qnode.streams import LeanStream, TlsStream, Wire, lean, receive_into

HOST = "site.example"
Pair = tuple[trio.abc.Stream, trio.abc.Stream]


OPENED: list[socket.socket] = []


@pytest.fixture(autouse=True)
def every_socket_is_closed() -> Iterator[None]:
    yield
    while OPENED:
        OPENED.pop().close()


def socket_pair() -> tuple[socket.socket, socket.socket]:
    pair = socket.socketpair()
    OPENED.extend(pair)
    return pair


def wires() -> tuple[Wire, Wire]:
    ours, theirs = socket_pair()
    return Wire(ours), Wire(theirs)


def clogged_wires() -> tuple[Wire, Wire]:
    pair = socket_pair()
    for one in pair:
        one.setblocking(False)
        try:
            while True:
                one.send(bytes(1 << 16))
        except BlockingIOError:
            pass
    return Wire(pair[0]), Wire(pair[1])


class Contexts:
    def __init__(self) -> None:
        authority = trustme.CA()
        self.server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.server.num_tickets = 0
        authority.issue_cert(HOST).configure_cert(self.server)
        self.client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self.client.check_hostname = False
        authority.configure_trust(self.client)
        self.stranger = ssl.create_default_context()
        self.stranger.check_hostname = False

    def streams(self, ends: Pair | None = None) -> tuple[TlsStream, TlsStream]:
        server, client = ends or wires()
        return (
            TlsStream(server, self.server, server_side=True),
            TlsStream(client, self.client, server_side=False),
        )

    async def secured(self, ends: Pair | None = None) -> tuple[TlsStream, TlsStream]:
        both = self.streams(ends)
        async with trio.open_nursery() as nursery:
            for one in both:
                nursery.start_soon(one.handshake)
        return both


@pytest.fixture(scope="module")
def contexts() -> Contexts:
    return Contexts()


@pytest.fixture
def each_call_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """trio's checks expect a turn of the scheduler in each call."""
    monkeypatch.setattr(lean, "CALLS_WITHOUT_A_TURN", 0)


@pytest.mark.usefixtures("each_call_a_turn")
async def test_a_wire_keeps_the_contract_of_a_half_closeable_stream() -> None:
    async def make() -> tuple[Wire, Wire]:
        return wires()

    async def clog() -> tuple[Wire, Wire]:
        return clogged_wires()

    await trio.testing.check_half_closeable_stream(make, clog)


@pytest.mark.usefixtures("each_call_a_turn")
async def test_tls_keeps_the_contract_of_a_stream(contexts: Contexts) -> None:
    await trio.testing.check_two_way_stream(contexts.secured, None)


async def test_a_call_that_need_not_wait_takes_no_turn_but_each_seventeenth_does() -> None:
    one, _other = wires()
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(count)
        await trio.lowlevel.checkpoint()
        before = turns
        for _ in range(lean.CALLS_WITHOUT_A_TURN):
            await one.send_all(b"x")
        assert turns == before
        for _ in range(
            lean.CALLS_WITHOUT_A_TURN + 2
        ):  # two turns at least, in whatever order tasks have them
            await one.send_all(b"x")
        assert turns > before
        nursery.cancel_scope.cancel()


async def test_a_wire_that_need_not_wait_can_be_cancelled_all_the_same() -> None:
    one, _other = wires()
    with trio.CancelScope() as scope:
        scope.cancel()
        await one.send_all(b"x")
    assert scope.cancelled_caught
    assert one.sent_bytes == 0


@given(st.lists(st.integers(0, 200_000), min_size=1, max_size=5), st.integers(1, 300_000), st.booleans())
@settings(max_examples=25, deadline=None)
def test_what_is_sent_over_tls_arrives_whole_and_in_order(
    contexts: Contexts, sizes: list[int], buffer_bytes: int, over_a_wire: bool
) -> None:
    messages = [bytes([number]) * size for number, size in enumerate(sizes)]
    arrived = bytearray()

    async def send(stream: TlsStream) -> None:
        for message in messages:
            await stream.send_all(message)
        await stream.aclose()

    async def receive(stream: TlsStream) -> None:
        buffer = memoryview(bytearray(buffer_bytes))
        while received := await receive_into(stream, buffer):
            arrived.extend(buffer[:received])
        assert await receive_into(stream, buffer) == 0  # still at its end
        await stream.aclose()

    async def main() -> None:
        ends: Pair = wires() if over_a_wire else trio.testing.lockstep_stream_pair()
        server, client = await contexts.secured(ends)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send, server)
            nursery.start_soon(receive, client)

    trio.run(main)
    assert arrived == b"".join(messages)


async def test_both_directions_at_once_do_not_block_each_other(contexts: Contexts) -> None:
    size = 3_000_000

    async def receive(stream: TlsStream) -> None:
        left = size
        while left:
            left -= len(await stream.receive_some())

    async with trio.open_nursery() as nursery:
        for one in await contexts.secured():
            nursery.start_soon(one.send_all, bytes(size))
            nursery.start_soon(receive, one)


async def test_an_end_without_tls_s_own_end_is_an_end(contexts: Contexts) -> None:
    server, client = await contexts.secured()
    await server.send_all(b"last words")
    await server.transport.aclose()
    assert await client.receive_some() == b"last words"
    assert await client.receive_some() == b""


async def test_a_changed_record_breaks_the_connection_for_good(contexts: Contexts) -> None:
    server, client = await contexts.secured()
    await server.send_all(b"sound")
    await server.transport.send_all(b"\x17\x03\x03\x00\x20" + bytes(32))
    received = await client.receive_some()
    assert received == b"sound"
    for _ in range(2):
        with pytest.raises(trio.BrokenResourceError):
            await client.receive_some()


async def test_a_failed_handshake_leaves_the_alert_for_the_other_end(contexts: Contexts) -> None:
    server, client = contexts.streams()
    stranger = TlsStream(client.transport, contexts.stranger, server_side=False)
    errors: list[BaseException | None] = []

    async def greet(stream: TlsStream) -> None:
        try:
            await stream.handshake()
        except trio.BrokenResourceError as error:
            errors.append(error.__cause__)
            await stream.transport.send_all(stream.unsent())
            await stream.aclose()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(greet, stranger)
        with pytest.raises(trio.BrokenResourceError) as refused:
            await server.handshake()
    assert isinstance(errors[0], ssl.SSLCertVerificationError)
    assert "ALERT" in str(refused.value.__cause__)


async def test_what_tls_itself_says_between_data_is_no_data(contexts: Contexts) -> None:
    # Session tickets, for Python's module cannot ask for new keys.
    contexts.server.num_tickets = 2
    try:
        server, client = await contexts.secured()
        await server.send_all(b"after the tickets")
        assert await client.receive_some() == b"after the tickets"
    finally:
        contexts.server.num_tickets = 0


async def test_only_one_task_sends_at_a_time(contexts: Contexts) -> None:
    for one, _ in (clogged_wires(), await contexts.secured()):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.send_all, bytes(10_000_000))
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(trio.BusyResourceError):
                await one.send_all(b"x")
            nursery.cancel_scope.cancel()


async def test_over_takes_trio_s_socket_over() -> None:
    ours, theirs = socket_pair()
    stream = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
    wire = Wire.over(stream)
    assert stream.socket.fileno() == -1
    await wire.send_all(b"mine now")
    assert theirs.recv(100) == b"mine now"
    await wire.aclose()


async def test_a_message_that_was_cut_off_is_the_last_one(contexts: Contexts) -> None:
    server, _client = await contexts.secured()
    with trio.move_on_after(0.05) as scope:
        await server.send_all(bytes(10_000_000))  # nobody reads
    assert scope.cancelled_caught
    with pytest.raises(trio.BrokenResourceError, match="cut off"):
        await server.send_all(b"more")
    await server.aclose()
    with pytest.raises(trio.ClosedResourceError):
        await server.send_all(b"more")


async def test_an_other_end_that_asks_for_new_keys_without_limit_is_given_up(contexts: Contexts) -> None:
    server, _client = await contexts.secured()
    server._outgoing.write(bytes(70_000))  # as many answers
    with pytest.raises(trio.BrokenResourceError, match="too many new keys"):
        await server.receive_some()


async def test_many_small_records_do_not_keep_other_tasks_waiting(contexts: Contexts) -> None:
    server, client = await contexts.secured()
    for _ in range(300):
        server._encrypt(memoryview(b"x"))
    await server._flush()
    await trio.testing.wait_all_tasks_blocked()
    sizes: list[int] = []
    while sum(sizes) < 300:
        sizes.append(len(await client.receive_some(1000)))
    assert max(sizes) <= 64


async def test_what_cannot_be_sent_at_once_goes_out_before_what_is_sent_next(contexts: Contexts) -> None:
    async def finish(sender: LeanStream) -> None:
        await sender.send_all(b"c")
        assert sender.send_at_once(b"d")
        await sender.aclose()

    for sender, receiver in (wires(), await contexts.secured()):
        assert sender.send_at_once(b"a")
        assert not sender.send_at_once(b"b" * 4_000_000)  # more than a socket takes
        with pytest.raises(trio.BusyResourceError):
            sender.send_at_once(b"too early")
        arrived = bytearray()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(finish, sender)
            while received := await receiver.receive_some():
                arrived += received
        assert arrived == b"a" + b"b" * 4_000_000 + b"cd"


async def test_what_is_sent_at_once_on_a_closed_stream_is_refused(contexts: Contexts) -> None:
    for sender, receiver in (wires(), await contexts.secured()):
        await receiver.aclose()
        await sender.aclose()
        with pytest.raises(trio.ClosedResourceError):
            sender.send_at_once(b"x")


class Between(trio.abc.Stream):
    """A stream over another one, which notes how much it is asked for."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self.asked: list[int | None] = []

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        self.asked.append(max_bytes)
        return await self.stream.receive_some(max_bytes)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self.stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self.stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        await self.stream.aclose()


async def test_a_handshake_keeps_no_large_buffer_while_it_waits(contexts: Contexts) -> None:
    server, client = wires()
    between = Between(server)
    await contexts.secured((between, client))
    assert between.asked
    assert all(asked is not None and asked <= 16 << 10 for asked in between.asked)
