"""Each site against a peer who says valid messages with wrong contents: no key of it, and a next session."""

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import trio
from conversation_room import (
    LINK,
    OFFSETS,
    RUN_ID,
    KeepingFigures,
    Lie,
    announcement,
    config_of,
    copied,
    fill_block,
    find_slots,
    hold_conversation,
    open_copy,
    other,
    photons,
)
from trio.testing import memory_stream_pair

from qnode.block.outcome import BlockLost
from qnode.config import LinkParameters, Role
from qnode.devices.protocols import EmissionRun
from qnode.errors import AuthenticationError, LinkError, ProtocolError
from qnode.keys import BlockState, SqliteKeyStore
from qnode.link.frames import FrameStream
from qnode.link.messages import (
    AlignmentResult,
    Amplify,
    BlockDiscarded,
    BlockProposed,
    BlockStateAnswer,
    ClickBatch,
    ClicksEnded,
    Message,
    Prepared,
    ReconcileBegin,
    Sifted,
    StateOfBlock,
    TranscriptTag,
    Verified,
    VerifyChallenge,
)
from qnode.node.quantum.bob import BobSide
from qnode.node.quantum.receiver_requests import AlignmentRequest
from qnode.node.quantum.transmitter_port import TransmitterPort
from qnode.tags.alignment import AlignmentProbe

ROLES: tuple[Role, Role] = ("alice", "bob")
LEFT_BY_FIXTURE = 3  # a block that Alice's store has prepared and that its session never confirmed
Work = Callable[[BobSide], Awaitable[None]]
replace = msgspec.structs.replace


@dataclass
class Link:
    """Both sites over several sessions, and what each has said."""

    stores: dict[Role, SqliteKeyStore]
    figures: dict[Role, KeepingFigures] = field(
        default_factory=lambda: {role: KeepingFigures(config_of(role, LINK)) for role in ROLES}
    )
    said: dict[Role, list[Message]] = field(default_factory=lambda: {role: [] for role in ROLES})

    async def meet(
        self,
        lies: dict[Role, Lie] | None = None,
        work: Work | None = None,
        parameters: LinkParameters = LINK,
        **sizes: int,
    ) -> dict[Role, LinkError | None]:
        """Hold one session, in which Bob fills a block; return by which error it ended at each site.

        ``sizes``: the most chunks of each site's store.
        """
        ended: dict[Role, LinkError | None] = {}
        self.said = {role: [] for role in ROLES}

        async def one(role: Role, stream: trio.abc.Stream) -> None:
            def lie(message: Message) -> Iterable[Message]:
                told = list((lies or {}).get(role, truth)(message))
                self.said[role] += told
                return told

            try:
                await hold_conversation(
                    role,
                    self.stores[role],
                    FrameStream(stream),
                    parameters,
                    figures=self.figures[role],
                    work=work or one_block,
                    lie=lie,
                    most_chunks=sizes.get(role, 1 << 20),
                )
                ended[role] = None
            except (LinkError, BaseExceptionGroup) as error:
                ended[role] = clearest(error)

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for role, stream in zip(ROLES, memory_stream_pair(), strict=True):
                    nursery.start_soon(one, role, stream)
        return ended

    def latest(self, role: Role) -> tuple[int, str]:
        """Return number and outcome of the latest block that was not lost with its session."""
        rows = [row for row in self.figures[role].blocks.table.latest(20) if row.outcome != "link"]
        return rows[-1].block_id, rows[-1].outcome

    def has_said(self, role: Role, kind: type[Message]) -> bool:
        return any(isinstance(message, kind) for message in self.said[role])


@pytest.fixture
def link(tmp_path: Path) -> Iterable[Link]:
    folder = copied(tmp_path / "data")
    with open_copy(folder, "alice") as alice, open_copy(folder, "bob") as bob:
        yield Link({"alice": alice, "bob": bob})


def truth(message: Message) -> Iterable[Message]:
    return [message]


def clearest(error: BaseException) -> LinkError:
    """Return the error that says most of those of one session; any other than of the link comes out."""
    if isinstance(error, BaseExceptionGroup):
        links, rest = error.split(LinkError)
        if rest is not None or links is None:
            raise error
        found = [clearest(one) for one in links.exceptions]
        return next((one for one in found if isinstance(one, AuthenticationError | ProtocolError)), found[0])
    assert isinstance(error, LinkError)
    return error


async def one_block(bob: BobSide) -> None:
    try:
        begin = await find_slots(bob)
    except trio.EndOfChannel:
        await trio.sleep_forever()  # the session is about to end with an error
    await fill_block(bob, begin)
    await trio.sleep(0.05)  # for Alice to hear the end of it


async def assert_key_is_made(link: Link) -> None:
    """Let the sites meet without a lie: all that was left open is settled, and both hold one key more."""
    ended = await link.meet()
    assert ended == {"alice": None, "bob": None}
    block_id, outcome = link.latest("bob")
    assert (block_id, outcome) == (link.latest("alice")[0], "accepted")
    states = {role: store.block_state(block_id) for role, store in link.stores.items()}
    assert states == dict.fromkeys(ROLES, BlockState.AVAILABLE)
    assert len({store.fingerprint(block_id) for store in link.stores.values()}) == 1
    assert all(store.unconfirmed_blocks() == [] for store in link.stores.values())


def changed(kind: type[Message], change: Callable[[Any], dict[str, Any]]) -> Lie:
    """Return a lie that changes fields of the messages of one kind."""

    def lie(message: Message) -> Iterable[Message]:
        return [replace(message, **change(message)) if isinstance(message, kind) else message]

    return lie


def flipped(tag: bytes) -> bytes:
    return bytes([tag[0] ^ 1]) + tag[1:]


def flip_tag(message: Any) -> dict[str, Any]:
    return {"tag": flipped(message.tag)}


def one_less(mask: bytes) -> bytes:
    """Return a mask without its first bit that is set."""
    first = next(i for i, octet in enumerate(mask) if octet)
    return mask[:first] + bytes([mask[first] & (mask[first] - 1)]) + mask[first + 1 :]


def within_the_probe(message: Message) -> Iterable[Message]:
    """Propose a span that begins with the slots of the alignment, and announce the clicks there."""
    if isinstance(message, BlockProposed):
        return [replace(message, first_slot=0, n_slots=message.n_slots + message.first_slot)]
    return [replace(message, first_slot=3000) if isinstance(message, ClickBatch) else message]


def correction_twice(message: Message) -> Iterable[Message]:
    return [message, message] if isinstance(message, ReconcileBegin) else [message]


def amplify_all_the_same(message: Message) -> Iterable[Message]:
    """Have Bob verify against another tag, and continue when Bob reports a difference."""
    if isinstance(message, VerifyChallenge):
        return [replace(message, tag=flipped(message.tag))]
    if isinstance(message, BlockDiscarded):
        return [Amplify(block_id=message.block_id, length=0, seed=b"", lambda_ec_bits=0, refill_pads=2)]
    return [message]


@dataclass(frozen=True)
class Told:
    """A lie, and what its session ends with at the site that is lied to, or why its block gives no key."""

    liar: Role
    lie: Lie
    ends: type[LinkError] | None
    says: str


REFUSED = {
    "clicks before the span": Told(
        "bob", changed(ClickBatch, lambda _: {"first_slot": 0}), ProtocolError, "clicks outside its span"
    ),
    "slots of an alignment": Told("bob", within_the_probe, ProtocolError, "that an alignment has given away"),
    "another number of clicks": Told(
        "bob", changed(ClicksEnded, lambda m: {"n_clicks": m.n_clicks + 1}), ProtocolError, "clicks said, not"
    ),
    "a second correction": Told("bob", correction_twice, ProtocolError, "begins a second time"),
    "another method": Told(
        "bob", changed(ReconcileBegin, lambda _: {"method": "ldpc"}), ProtocolError, "the sites agreed on"
    ),
    "more errors than bits": Told(
        "bob", changed(Verified, lambda _: {"m_z_decoy": 1 << 40}), ProtocolError, "more errors than bits"
    ),
    "a mask of fewer clicks": Told(
        "alice",
        changed(Sifted, lambda m: {"keep_mask": one_less(m.keep_mask)}),
        ProtocolError,
        "the keep mask does not fit its count",
    ),
    "a hash of another length": Told(
        "alice",
        changed(VerifyChallenge, lambda _: {"seed": bytes(16), "tag": bytes(16)}),
        ProtocolError,
        "verification seed of a wrong length",
    ),
    "a seed of another length": Told(
        "alice",
        changed(Amplify, lambda m: {"seed": m.seed + b"0"}),
        ProtocolError,
        "amplification seed of a wrong length",
    ),
    "a refill of all the key": Told(
        "alice", changed(Amplify, lambda _: {"refill_pads": 10_000}), ProtocolError, "refill_pads: 10000"
    ),
    "an offset not asked for": Told(
        "alice",
        changed(AlignmentResult, lambda _: {"offset": OFFSETS.stop}),
        ProtocolError,
        "which was not asked for",
    ),
} | {
    f"{what} of {liar}'s": Told(liar, changed(kind, flip_tag), AuthenticationError, "does not verify")
    for what, kind in (("the transcript", TranscriptTag), ("the word", Prepared))
    for liar in ROLES
}


@pytest.mark.parametrize("liar", ROLES)
async def test_a_lie_ends_the_session_and_gives_no_key(link: Link, liar: Role) -> None:
    lied_to = other(liar)
    store = link.stores[lied_to]
    for what, told in REFUSED.items():
        if told.liar != liar:
            continue
        last_block_id = store.last_block_id
        error = (await link.meet({liar: told.lie}))[lied_to]
        assert told.ends is not None
        assert isinstance(error, told.ends), what
        assert told.says in str(error), what
        new = [block for block in store.recent_blocks(10) if block.block_id > last_block_id]
        assert all(block.state != BlockState.AVAILABLE for block in new), what
    await assert_key_is_made(link)


LOST = {
    "unequal keys": Told("bob", changed(Verified, lambda _: {"equal": False}), None, "verification"),
    "another tag": Told("alice", changed(VerifyChallenge, flip_tag), None, "verification"),
    "another tag, and no heed": Told("alice", amplify_all_the_same, None, "verification"),
    "less key": Told("alice", changed(Amplify, lambda m: {"length": m.length - 256}), None, "disagreement"),
    "less disclosed": Told(
        "alice", changed(Amplify, lambda m: {"lambda_ec_bits": m.lambda_ec_bits - 1}), None, "disagreement"
    ),
}


async def test_a_block_on_which_the_sites_differ_gives_no_key(link: Link) -> None:
    for what, told in LOST.items():
        await link.meet({told.liar: told.lie})
        lied_to = other(told.liar)
        block_id, outcome = link.latest(lied_to)
        assert outcome == told.says, what
        assert link.stores[lied_to].block_state(block_id) == BlockState.UNKNOWN, what
    await assert_key_is_made(link)


async def test_a_block_is_not_given_up_by_a_peer_who_answers_for_another(link: Link) -> None:
    lie = changed(BlockStateAnswer, lambda _: {"states": (StateOfBlock(2, BlockState.AVAILABLE),)})
    error = (await link.meet({"bob": lie}))["alice"]
    assert isinstance(error, ProtocolError)
    assert link.stores["alice"].block_state(LEFT_BY_FIXTURE) == BlockState.PREPARED
    await assert_key_is_made(link)


async def test_a_site_says_that_it_holds_a_block_once_that_is_durable(link: Link) -> None:
    states: list[BlockState] = []

    def noting(role: Role) -> Lie:
        def lie(message: Message) -> Iterable[Message]:
            if isinstance(message, Prepared):
                states.append(link.stores[role].block_state(message.block_id))
            return [message]

        return lie

    await link.meet({role: noting(role) for role in ROLES})
    assert states == [BlockState.PREPARED] * 2


@pytest.mark.parametrize(("recorder", "kind"), [("alice", Sifted), ("bob", ClicksEnded)])
async def test_a_key_says_that_it_was_recorded_at_the_other_site(
    link: Link, recorder: Role, kind: type[Message]
) -> None:
    await link.meet({recorder: changed(kind, lambda _: {"recorded": True})})
    block_id, outcome = link.latest(other(recorder))
    assert outcome == "accepted"
    assert link.stores[other(recorder)].block_record(block_id).recorded


async def test_a_site_whose_store_is_full_discloses_nothing_of_a_block(link: Link) -> None:
    await link.meet(alice=1)
    assert link.latest("bob")[1] == "store_full"
    assert link.has_said("bob", ClicksEnded)
    assert not link.has_said("alice", Sifted)
    await link.meet(bob=1)
    assert link.latest("alice")[1] == "store_full"
    assert not link.has_said("bob", ClicksEnded)
    assert not any(link.has_said(role, TranscriptTag) for role in ROLES)


async def test_of_a_block_whose_sample_has_too_many_errors_no_parity_is_disclosed(link: Link) -> None:
    async def noisy_block(bob: BobSide) -> None:
        await fill_block(bob, await find_slots(bob), noisy=True)

    strict = replace(LINK, block=replace(LINK.block, qber_z_limit=0.03))
    await link.meet(work=noisy_block, parameters=strict)
    assert link.latest("bob")[1] == "qber_z"
    assert not link.has_said("bob", ReconcileBegin)


async def test_a_block_whose_slots_are_counted_anew_gives_no_key(link: Link) -> None:
    async def count_anew(bob: BobSide) -> None:
        begin = await find_slots(bob)
        assert bob._current is not None
        block = bob._current
        await bob.do(announcement(begin, begin + 1000))
        await bob.do(announcement(begin + 1000, begin + 2000, numbering=2))
        with trio.move_on_after(20):
            await block.decided.wait()
        await trio.sleep(0.05)  # for Alice to hear of it

    await link.meet(work=count_anew)
    outcomes = {role: {row.outcome for row in link.figures[role].blocks.table.latest(20)} for role in ROLES}
    assert outcomes["bob"] >= {"emission"}
    assert outcomes["alice"] >= {"emission"}


async def test_clicks_that_were_announced_are_not_given_away_to_an_alignment(link: Link) -> None:
    async def align_again(bob: BobSide) -> None:
        begin = await find_slots(bob)
        await fill_block(bob, begin)
        slots, outcomes = photons.clicks(begin, begin + 6000)
        of_z = outcomes <= photons.LATE
        ticks = 2 * slots[of_z] + outcomes[of_z]
        deliver, receive = trio.open_memory_channel[Any](1)
        offsets = range(int(ticks[0]) - 2000, int(ticks[0]) + 2000)
        await bob.do(AlignmentRequest(RUN_ID, AlignmentProbe(2, 0, ticks - ticks[0]), offsets, deliver))
        await receive.receive()

    ended = await link.meet(work=align_again)
    assert isinstance(ended["alice"], ProtocolError)
    assert "clicks that were announced" in str(ended["alice"])


def test_symbols_of_an_emission_run_that_has_ended_are_not_looked_up() -> None:
    port: Any = TransmitterPort()
    slots = np.arange(4)
    port.transmitter = type(
        "Transmitter", (), {"symbols": lambda self, run_id, slots: photons.symbols(slots)}
    )()
    port.run = EmissionRun(run_id=8, started_at_s=0.0)
    assert port.lookup(8, slots).size == 4
    for asked in (port.lookup, lambda run_id, _: port.ledger(run_id)):
        with pytest.raises(BlockLost, match="has ended"):
            asked(7, slots)
