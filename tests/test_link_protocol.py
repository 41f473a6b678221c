"""Which protocol has which kind and field of a message: marked at each, held in one place of a session."""

from collections.abc import Iterator
from typing import Any, get_args

import msgspec
import pytest
import trio
from link_room import Greetings, Two, greet_both, local_end
from test_protocol_1 import frozen_conversation, frozen_messages
from test_protocol_2 import tag_counts

from qnode.errors import ProtocolError
from qnode.keys import Assignment, Handover
from qnode.link import messages as m
from qnode.link.codec import decode, encode
from qnode.link.hello import LocalEnd
from qnode.link.protocol import PROTOCOL, check_said, later_fields, protocol_of
from qnode.link.session import open_session

KINDS: list[type[m.Message]] = [*get_args(m.SessionMessage), *get_args(m.HelloMessage)]
LATER_KINDS = (
    m.ReleaseAssignments(1, b""),
    m.VoidLost(1, b""),
    m.SaesRegistered((("a", "b"),)),
    m.StreamRequest(1, b""),
    m.StreamAnswer(1, b""),
)
ZEROS = ((0, 0),) * 5
# A message with all that its protocol says, and what of it came when.
WHOLE: list[tuple[m.Message, set[str]]] = [
    (m.ClicksEnded(1, 17, 0, bytes(16), False, tag_counts()), {"tags"}),
    (m.Sifted(1, b"k", b"d", 4, ZEROS, 0, False, (0, 0), 0), {"n_z_plus", "boundary"}),
    (m.Amplify(1, 2048, b"seed", 100, 2), {"refill_pads"}),
    (m.Assign(1, b"", 3), {"taken_chunks"}),
    (m.KeyAnswer(1, False, "full", True), {"share_used_up"}),
]


def test_what_is_not_marked_is_what_protocol_1_had() -> None:
    had: dict[str, set[str]] = {}
    for _, said in frozen_messages():
        had.setdefault(said["kind"], set()).update(said.keys() - {"kind"})
    unmarked = {
        str(kind.__struct_config__.tag): set(kind.__struct_fields__) - later_fields(kind).keys()
        for kind in KINDS
        if protocol_of(kind) == 1
    }
    assert unmarked == had


def test_every_mark_names_a_protocol_that_there_is_and_marked_fields_can_be_left_unsaid() -> None:
    for kind in KINDS:
        assert 1 <= protocol_of(kind) <= PROTOCOL
        defaults = {field.name: field.default for field in msgspec.structs.fields(kind)}
        for name, since in later_fields(kind).items():
            assert protocol_of(kind) < since.protocol == protocol_of(kind, name) <= PROTOCOL
            assert defaults[name] is None or defaults[name] is msgspec.UNSET


def test_what_key_stores_say_to_each_other_within_messages_of_protocol_1_is_as_it_was() -> None:
    """Their content is opaque to the link and cannot be marked: it must not change."""
    seen: dict[type[Any], set[str]] = {}
    for _, payload in frozen_conversation()[4:]:
        message = decode(payload)
        if isinstance(message, m.Assign):
            seen[Assignment] = set(msgspec.msgpack.decode(message.assignment))
        elif isinstance(message, m.GiveAway):
            seen[Handover] = set(msgspec.msgpack.decode(message.handover))
    assert seen == {kind: set(kind.__struct_fields__) for kind in (Assignment, Handover)}


def too_new() -> Iterator[tuple[m.Message, str]]:
    """Yield messages that protocol 1 does not have, and what names the reason."""
    for message in LATER_KINDS:
        yield message, f"{type(message).__name__}: said, but protocol 1 does not know it"
    for whole, later in WHOLE:
        for name in sorted(later):
            old = {other: None for other in later if other != name}
            yield msgspec.structs.replace(whole, **old), f"{name}: said, but protocol 1 does not know it"


def too_old() -> Iterator[tuple[m.Message, str]]:
    """Yield messages that lack what protocol 2 says."""
    for whole, later in WHOLE:
        for name in sorted(later):
            if not later_fields(type(whole))[name].optional:
                message = msgspec.structs.replace(whole, **{name: None})
                yield message, f"{name}: not said, but protocol 2 says it"


CASES = [(1, *case) for case in too_new()] + [(2, *case) for case in too_old()]


@pytest.mark.parametrize(("protocol", "message", "reason"), CASES)
async def test_a_session_neither_sends_nor_takes_what_its_protocol_does_not_have(
    protocol: int, message: m.Message, reason: str
) -> None:
    ends = Two(local_end("alice", protocol=protocol), local_end("bob", protocol=protocol))
    greeted = await greet_both(ends.alice, ends.bob)
    block = "block 1: " if hasattr(message, "block_id") else ""
    with trio.fail_after(60):
        async with open_session(greeted.frames.alice, ends.alice, greeted.alice) as session:
            assert session.knows(type(message)) == (type(message) not in map(type, LATER_KINDS))
            with pytest.raises(ProtocolError, match=reason):
                await session.send(message)
    greeted = await greet_both(ends.alice, ends.bob)
    await greeted.frames.bob.send(encode(m.BlockProposed(1, 1, 0, 10)))
    await greeted.frames.bob.send(encode(message))
    with pytest.raises(ProtocolError, match=f"^{block}{reason}$"):
        await hear_proposal(greeted, ends.alice)


async def hear_proposal(greeted: Greetings, alice: LocalEnd) -> None:
    """Run Alice's session until what follows the proposal of a block ends it."""
    with trio.fail_after(60):
        async with open_session(greeted.frames.alice, alice, greeted.alice) as session:
            assert isinstance(await session.receive(), m.BlockProposed)
            await trio.sleep_forever()


def test_what_a_protocol_has_is_said_in_it() -> None:
    for message in (*LATER_KINDS, *(whole for whole, _ in WHOLE)):
        check_said(message, PROTOCOL)
    check_said(m.KeyAnswer(1, True), PROTOCOL)  # optional
    for payload, said in frozen_messages():
        if said["kind"] not in ("hello", "hello_proof", "refused"):
            check_said(decode(payload), 1)
