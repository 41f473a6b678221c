"""Protocol 2: what its hello and its two larger messages say, and what a peer cannot say."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
import trio
from conversation_room import Known, copied, hold_conversation, open_copy, photons, seed_randomness
from hypothesis import given, settings
from hypothesis import strategies as st
from link_room import Greetings, greet_both, local_end
from trio.testing import memory_stream_pair

import qnode.node.dialogue.alice
import qnode.node.dialogue.bob
from qnode.config import LinkParameters, Role
from qnode.distill.counts import SPAN_PARTS, Pair, TagCounts, XCounts
from qnode.distill.sifting.announced import Announced
from qnode.distill.sifting.span_parts import PartCounts
from qnode.errors import LinkError, PeerRefused, ProtocolError
from qnode.link.frames import FrameStream
from qnode.link.hello import Greeted, Standing, _our_hello, find_differences
from qnode.link.messages import Sifted
from qnode.link.protocol import link_for_protocol, parameters_of_protocol_1, parameters_since_protocol_2
from qnode.node.dialogue.bob import BobBlock
from qnode.node.dialogue.claimed_counts import AnnouncedClicks, check_sifted, check_tags
from qnode.tags.types import OUTCOME_CENTRAL, OUTCOME_EARLY, Clicks, Slots

replace = msgspec.structs.replace


def with_estimation(**changes: Any) -> LinkParameters:
    """Return a link with values that not every version of the configuration may know."""
    return LinkParameters(estimation=replace(LinkParameters().estimation, **changes))


# The hello


async def greet(alice: LinkParameters, bob: LinkParameters, *, oldest_at_bob: bool = False) -> Greetings:
    versions = {"protocol": 1, "oldest_protocol": 1} if oldest_at_bob else {}
    return await greet_both(
        local_end("alice", parameters=alice), local_end("bob", parameters=bob, **versions)
    )


def test_the_tables_of_both_protocols_together_are_the_whole_link() -> None:
    link = with_estimation(asymmetry_bound="shares")
    old, _ = parameters_of_protocol_1(link)
    new = parameters_since_protocol_2(link)
    whole = msgspec.json.decode(msgspec.json.encode(link))
    merged = {
        name: value if name == "name" else old.get(name, {}) | new.get(name, {})
        for name, value in whole.items()
    }
    assert merged == whole
    assert old["estimation"]["asymmetry_bound"] == "joint"
    assert set(new) >= {"estimation", "receiver", "plausibility"}
    assert new["estimation"]["asymmetry_bound"] == "shares"


async def test_each_difference_in_what_protocol_2_added_is_named_on_both_sides() -> None:
    ours = with_estimation(asymmetry_bound="shares")
    theirs = with_estimation(asymmetry_bound="joint")
    theirs = replace(
        theirs,
        receiver=replace(theirs.receiver, dead_time_s=2e-5),
        plausibility=replace(theirs.plausibility, drift=0.3),
    )
    greeted = await greet(ours, theirs)
    assert isinstance(greeted.alice, PeerRefused)
    for part in (
        "link.estimation.asymmetry_bound: ours 'shares', theirs 'joint'",
        "link.receiver.dead_time_s: ours 0.0, theirs 2e-05",
        "link.plausibility.drift: ours 0.2, theirs 0.3",
    ):
        assert str(greeted.alice).count(part) == 1
    assert "link.receiver.dead_time_s: ours 2e-05, theirs 0.0" in str(greeted.bob)


async def test_a_peer_of_protocol_1_is_not_asked_for_what_he_cannot_say() -> None:
    link = with_estimation(asymmetry_bound="shares")
    link = replace(link, receiver=replace(link.receiver, dead_time_s=2e-5))
    greeted = await greet(link, with_estimation(asymmetry_bound="joint"), oldest_at_bob=True)
    assert isinstance(greeted.alice, Greeted)
    assert greeted.alice.protocol == greeted.bob.protocol == 1


async def test_a_peer_of_protocol_1_is_refused_where_its_counts_do_not_serve_the_estimator() -> None:
    link = with_estimation(estimator="three_state")
    greeted = await greet(link, with_estimation(estimator="eur"), oldest_at_bob=True)
    assert isinstance(greeted.alice, PeerRefused)
    assert 'link.estimation.estimator "three_state" needs counts that a peer of protocol 1' in str(
        greeted.alice
    )
    assert isinstance((await greet(link, link)).alice, Greeted)


def test_a_peer_of_protocol_2_that_says_nothing_new_of_the_link_is_refused() -> None:
    alice, bob = local_end("alice"), local_end("bob")
    ours = _our_hello(alice, Standing())
    theirs = _our_hello(bob, Standing())
    assert find_differences(alice, ours, theirs) == []
    differences = find_differences(alice, ours, replace(theirs, since_2=msgspec.UNSET))
    assert any(one.startswith("link.receiver: ours {") and one.endswith("absent") for one in differences)
    named = {one.split(":")[0] for one in differences}
    assert named >= {"link.estimation", "link.receiver", "link.plausibility"}


def test_blocks_with_a_peer_of_protocol_1_are_decided_by_the_joint_bound() -> None:
    link = with_estimation(asymmetry_bound="shares")
    assert link_for_protocol(link, 2) is link
    old = link_for_protocol(link, 1)
    assert old.estimation.asymmetry_bound == "joint"
    assert replace(old, estimation=link.estimation) == link
    joint = with_estimation(asymmetry_bound="joint")
    assert link_for_protocol(joint, 1) is joint


# Two sites of today


async def converse(folder: Path) -> dict[Role, Known | LinkError]:
    """Hold the conversation between two sites; return what each knows, or why its session ended."""
    known: dict[Role, Known | LinkError] = {}

    async def one(role: Role, stream: trio.abc.Stream) -> None:
        with open_copy(folder, role) as store:
            try:
                known[role] = await hold_conversation(role, store, FrameStream(stream))
            except LinkError as error:
                known[role] = error
            except BaseExceptionGroup as group:
                links, rest = group.split(LinkError)
                if rest is not None or links is None:
                    raise
                known[role] = first_of(links)

    roles: tuple[Role, Role] = ("alice", "bob")
    with trio.fail_after(300):
        async with trio.open_nursery() as nursery:
            for role, stream in zip(roles, memory_stream_pair(), strict=True):
                nursery.start_soon(one, role, stream)
    return known


def first_of(group: BaseExceptionGroup[LinkError]) -> LinkError:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, LinkError)
    return error


@pytest.mark.timeout(600)
async def test_both_sites_hold_the_same_counts_and_these_are_what_was_sent_and_detected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seed_randomness(monkeypatch)
    spans: dict[int, tuple[int, int]] = {}
    announce = BobBlock.announce

    async def noting(self: BobBlock, clicks: Any, *times: Any) -> None:
        spans[self.channel.block_id] = (self.span.first_slot, self.span.end_slot)
        await announce(self, clicks, *times)

    monkeypatch.setattr(BobBlock, "announce", noting)
    known = await converse(copied(tmp_path / "data"))
    alice, bob = known["alice"], known["bob"]
    assert isinstance(alice, Known)
    assert isinstance(bob, Known)
    assert alice.protocol == bob.protocol == 2
    assert bob.outcomes[6] == alice.outcomes[6]
    assert alice.counts == bob.counts
    counts = alice.counts[6]
    first, end = spans[6]
    slots, outcomes = photons.clicks(first, end)
    own = photons.symbols(slots)
    boundary = outcomes == photons.BOUNDARY
    assert counts.boundary == np.count_nonzero(boundary & (slots > first))
    assert counts.boundary is not None
    assert counts.boundary > counts.x.boundary
    followed = np.append((np.diff(slots) == 1) & boundary[1:], [False])
    on_plus = (outcomes <= photons.LATE) & (own & 3 == photons.X_PLUS) & ~followed
    decoy = own & photons.DECOY > 0
    on_plus_by_intensity = [int(np.count_nonzero(on_plus & one)) for one in (~decoy, decoy)]
    assert counts.n_z_plus == Pair(*on_plus_by_intensity)
    assert counts.tags is not None
    part = (slots - first) * SPAN_PARTS // (end - first)
    in_z = outcomes <= photons.LATE
    assert counts.tags.z_clicks == tuple(np.bincount(part[in_z], minlength=SPAN_PARTS))
    assert counts.tags.x_clicks == tuple(np.bincount(part[~in_z], minlength=SPAN_PARTS))


def one_more_z_click(tags: TagCounts) -> TagCounts:
    return replace(tags, z_clicks=(tags.z_clicks[0] + 1, tags.z_clicks[1] - 1, *tags.z_clicks[2:]))


@pytest.mark.timeout(600)
async def test_alice_discloses_nothing_to_a_bob_whose_tags_cannot_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Any] = []
    tag_counts = BobBlock.tag_counts
    monkeypatch.setattr(BobBlock, "tag_counts", lambda self: one_more_z_click(tag_counts(self)))
    monkeypatch.setattr(qnode.node.dialogue.alice, "Sifted", lambda **fields: told.append(fields))
    known = await converse(copied(tmp_path / "data"))
    assert isinstance(known["alice"], ProtocolError)
    assert "block 6: tags: other clicks" in str(known["alice"])
    assert not told


@pytest.mark.timeout(600)
async def test_bob_ends_the_session_with_an_alice_whose_totals_cannot_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        qnode.node.dialogue.alice, "Sifted", lambda **fields: Sifted(**(fields | {"boundary": 1}))
    )
    known = await converse(copied(tmp_path / "data"))
    assert isinstance(known["bob"], ProtocolError)
    assert "block 6: boundary: 1, not between" in str(known["bob"])


# What can be


def tag_counts(**changes: Any) -> TagCounts:
    """Return counts that fit `PARTS`: ten slots a part, a Z click in each, an X click in the first."""
    values: dict[str, Any] = {
        "cross_clicks": 3,
        "double_clicks": 2,
        "out_of_gate": 1000,
        "too_close": 0,
        "live_slots": (10,) * SPAN_PARTS,
        "z_clicks": (1,) * SPAN_PARTS,
        "x_clicks": (1,) + (0,) * (SPAN_PARTS - 1),
    }
    return TagCounts(**(values | changes))


def said(slots: Slots, is_z: npt.NDArray[np.bool_]) -> Announced:
    outcomes = np.where(is_z, OUTCOME_EARLY, OUTCOME_CENTRAL).astype(np.uint8)
    return Announced.of(Clicks(slots, outcomes))


def parts() -> PartCounts:
    counted = PartCounts(100, 10 * SPAN_PARTS)
    slots = np.array([100, 101, *range(115, 100 + 10 * SPAN_PARTS, 10)])
    counted.add(said(slots, np.arange(slots.size) != 1))
    return counted


N_CLICKS = SPAN_PARTS + 1


def test_tags_that_fit_what_was_announced_are_taken() -> None:
    check_tags(tag_counts(), N_CLICKS, parts())
    check_tags(tag_counts(live_slots=(0,) * SPAN_PARTS), N_CLICKS, parts())
    check_tags(tag_counts(cross_clicks=N_CLICKS, double_clicks=0), N_CLICKS, parts())


@pytest.mark.parametrize(
    "change",
    [
        {"z_clicks": (0, 2) + (1,) * (SPAN_PARTS - 2)},
        {"z_clicks": (2,) + (1,) * (SPAN_PARTS - 1)},
        {"x_clicks": (0, 1) + (0,) * (SPAN_PARTS - 2)},
        {"live_slots": (11,) + (10,) * (SPAN_PARTS - 1)},
        {"cross_clicks": N_CLICKS - 1},
        {"double_clicks": N_CLICKS + 1, "cross_clicks": 0},
    ],
)
def test_tags_that_do_not_fit_what_was_announced_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError, match="tags"):
        check_tags(tag_counts(**change), N_CLICKS, parts())


ANNOUNCED = AnnouncedClicks(z=10, central=6, boundary=5)
ZERO = Pair(0.0, 0.0)
X = XCounts(c_plus=ZERO, c_z=Pair(4.0, 2.0), e_same=Pair(1.0, 0.0), e_plus=Pair(0.0, 1.0), e_dark=ZERO)


def sifted(**changes: Any) -> Sifted:
    values: dict[str, Any] = {
        "block_id": 1,
        "keep_mask": b"",
        "decoy_bits": b"",
        "n_kept": 6,
        "x_counts": ((0, 0),) * 5,
        "dropped": 0,
        "recorded": False,
        "n_z_plus": (3, 1),
        "boundary": 4,
    }
    return Sifted(**(values | changes))


@pytest.mark.parametrize("boundary", [2, 5])
def test_totals_that_fit_what_was_announced_are_taken(boundary: int) -> None:
    check_sifted(sifted(boundary=boundary), X, ANNOUNCED)
    check_sifted(sifted(n_z_plus=None, boundary=None), X, ANNOUNCED)


@pytest.mark.parametrize(
    "change",
    [
        {"n_z_plus": (3, 2)},
        {"n_z_plus": (1 << 62, 1 << 62)},
        {"n_kept": 7},
        {"boundary": 1},
        {"boundary": 6},
        {"dropped": 16},
    ],
)
def test_totals_that_do_not_fit_what_was_announced_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError, match=r"n_z_plus|boundary|dropped"):
        check_sifted(sifted(**change), X, ANNOUNCED)


@settings(deadline=None)
@given(
    st.integers(0, 1 << 50),
    st.integers(1, 300) | st.integers(1, 1 << 44),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.booleans()), max_size=60),
    st.integers(0, 60),
)
def test_clicks_are_counted_in_the_part_of_the_span_that_the_formula_names(
    first: int, n_slots: int, places: list[tuple[float, bool]], split: int
) -> None:
    clicks = sorted({first + int(place * n_slots): is_z for place, is_z in places}.items())
    slots = np.array([slot for slot, _ in clicks], np.int64)
    is_z = np.array([is_z for _, is_z in clicks], np.bool_)
    counted = PartCounts(first, n_slots)
    counted.add(said(slots[:split], is_z[:split]))
    counted.add(said(slots[split:], is_z[split:]))
    expected = {True: [0] * SPAN_PARTS, False: [0] * SPAN_PARTS}
    for slot, of_z in clicks:
        expected[of_z][(slot - first) * SPAN_PARTS // n_slots] += 1
    assert (counted.z_clicks, counted.x_clicks) == (tuple(expected[True]), tuple(expected[False]))
    assert sum(counted.slots) == n_slots
    if n_slots <= 300:
        parts_of = [(slot * SPAN_PARTS) // n_slots for slot in range(n_slots)]
        assert counted.slots == tuple(np.bincount(parts_of, minlength=SPAN_PARTS))
