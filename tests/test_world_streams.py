"""The in-memory connections of the simulated world do to bytes what their plan says, and nothing else."""

import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from qnode.world.streams import WINDOW_BYTES, Connection, Faults, drawn_faults

T = TypeVar("T")

CONTENT = random.Random(1).randbytes(3000)


def virtual(main: Callable[..., Awaitable[T]], *args: object) -> T:
    return trio.run(main, *args, clock=MockClock(autojump_threshold=0))


async def read_all(stream: trio.abc.ReceiveStream, *, limit_s: float = 60.0) -> tuple[bytes, str]:
    """Return what arrives, and how it ended: "end", "broken", or "silent" after ``limit_s``."""
    came = bytearray()
    with trio.move_on_after(limit_s):
        try:
            while data := await stream.receive_some(4096):
                came += data
        except trio.BrokenResourceError:
            return bytes(came), "broken"
        return bytes(came), "end"
    return bytes(came), "silent"


async def send_in_parts(stream: trio.abc.SendStream, parts: list[bytes]) -> None:
    try:
        for part in parts:
            await stream.send_all(part)
            await trio.sleep(0.01)
    except trio.BrokenResourceError:
        return
    await stream.aclose()


async def through(faults: Faults, parts: list[bytes], seed: int = 0) -> tuple[bytes, str]:
    connection = Connection(faults, rng=random.Random(seed))
    outcome = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send_in_parts, connection.a, parts)
        outcome.append(await read_all(connection.b))
        await connection.b.aclose()
    return outcome[0]


def parts_of(content: bytes, sizes: list[int]) -> list[bytes]:
    parts, at = [], 0
    for size in sizes:
        parts.append(content[at : at + size])
        at += size
    return [part for part in (*parts, content[at:]) if part]


sizes = st.lists(st.integers(1, 700), max_size=12)
places = st.integers(0, len(CONTENT) - 1)


@settings(max_examples=60, deadline=None)
@given(sizes, st.floats(0, 2), st.floats(0, 2), st.sampled_from([None, 1, 5, 900]), st.integers())
def test_bytes_arrive_in_order_and_unchanged_however_late_and_in_whatever_pieces(
    sizes: list[int], delay_s: float, jitter_s: float, piece: int, seed: int
) -> None:
    faults = Faults(delay_s=delay_s, jitter_s=jitter_s, largest_piece_bytes=piece)
    assert virtual(through, faults, parts_of(CONTENT, sizes), seed) == (CONTENT, "end")


@settings(max_examples=60, deadline=None)
@given(sizes, places)
def test_a_planned_end_or_silence_lets_exactly_the_bytes_before_it_arrive(sizes: list[int], at: int) -> None:
    parts = parts_of(CONTENT, sizes)
    assert virtual(through, Faults(end_after=at), parts) == (CONTENT[:at], "end")
    assert virtual(through, Faults(silent_after=at), parts)[0] == CONTENT[:at]


@settings(max_examples=60, deadline=None)
@given(sizes, places)
def test_a_planned_cut_breaks_both_ends_and_lets_no_byte_after_it_arrive(sizes: list[int], at: int) -> None:
    async def main() -> tuple[bytes, str]:
        connection = Connection(Faults(cut_after=at))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_in_parts, connection.a, parts_of(CONTENT, sizes))
            came, ending = await read_all(connection.b)
        with pytest.raises(trio.BrokenResourceError):
            await connection.a.send_all(b"more")
        with pytest.raises(trio.BrokenResourceError):
            await connection.a.receive_some()
        return came, ending

    came, ending = virtual(main)
    assert CONTENT[:at].startswith(came)
    assert ending == "broken"


@settings(max_examples=60, deadline=None)
@given(sizes, st.dictionaries(places, st.integers(1, 255), max_size=4))
def test_planned_changes_alter_those_bytes_alone(sizes: list[int], changes: dict[int, int]) -> None:
    expected = bytes(byte ^ changes.get(place, 0) for place, byte in enumerate(CONTENT))
    assert virtual(through, Faults(changes=changes), parts_of(CONTENT, sizes)) == (expected, "end")


def test_a_delay_is_that_long_on_the_virtual_clock() -> None:
    async def main() -> float:
        connection = Connection(Faults(delay_s=1.5))
        began = trio.current_time()
        await connection.a.send_all(b"x")
        assert await connection.b.receive_some() == b"x"
        return trio.current_time() - began

    assert virtual(main) == pytest.approx(1.5)


def test_a_sender_waits_while_too_much_is_under_way() -> None:
    async def main() -> None:
        connection = Connection()
        with trio.move_on_after(5) as waiting:
            await connection.a.send_all(bytes(WINDOW_BYTES + 1))
        assert waiting.cancelled_caught
        assert len(await connection.b.receive_some(2 * WINDOW_BYTES)) == WINDOW_BYTES
        await connection.a.send_all(b"again")

    virtual(main)


def test_a_half_open_connection_tells_neither_end() -> None:
    async def main() -> tuple[tuple[bytes, str], tuple[bytes, str]]:
        connection = Connection()
        connection.fall_silent()
        await connection.a.send_all(b"lost")
        await connection.b.send_all(b"lost as well")
        return await read_all(connection.a), await read_all(connection.b)

    assert virtual(main) == ((b"", "silent"), (b"", "silent"))


def test_closing_with_bytes_unread_or_sending_to_a_closed_end_breaks_the_connection() -> None:
    async def main() -> None:
        connection = Connection()
        await connection.a.send_all(b"unread")
        await connection.b.aclose()
        assert await read_all(connection.a) == (b"", "broken")
        connection = Connection()
        await connection.b.aclose()
        assert await read_all(connection.a) == (b"", "end")
        with pytest.raises(trio.BrokenResourceError):
            await connection.a.send_all(b"to nobody")
        with pytest.raises(trio.ClosedResourceError):
            await connection.b.receive_some()

    virtual(main)


def test_the_same_seed_draws_the_same_faults_and_the_same_pieces() -> None:
    async def pieces(seed: int) -> list[bytes | str]:
        rng = random.Random(seed)
        connection = Connection(drawn_faults(rng, 0.1, 3000), rng=rng)
        came: list[bytes | str] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_in_parts, connection.a, parts_of(CONTENT, [100] * 20))
            with trio.move_on_after(60):
                try:
                    while data := await connection.b.receive_some():
                        came.append(data)
                except trio.BrokenResourceError:
                    came.append("broken")
            nursery.cancel_scope.cancel()
        return came

    for seed in range(20):
        assert virtual(pieces, seed) == virtual(pieces, seed)


def test_a_cut_byte_is_counted_over_all_that_was_sent() -> None:
    for at in range(0, 40, 7):
        assert virtual(through, Faults(end_after=at), [b"0123456789"] * 4)[0] == (b"0123456789" * 4)[:at]
