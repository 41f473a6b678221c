"""A peer that sends wrong values: its session ends or the block is discarded, by name; all else continues."""

import random
import re
from collections.abc import Iterator

import pytest
import structlog.testing
from keys_support import memory_folder
from liar import ANSWERS, category, judged, row_of, rows_of
from liar_deeds import BY_KIND, HELLO, MANNERS, Deed, may_be_taken
from liar_trial import Trial, is_formal
from lies import lies_about, payload_of

from qnode.config import Role
from qnode.errors import ProtocolError
from qnode.link import messages as m
from qnode.link.codec import decode, decode_hello
from qnode.link.protocol import PROTOCOL, check_said

ROLES: tuple[Role, Role] = ("alice", "bob")


@pytest.fixture(scope="module")
def trial() -> Iterator[Trial]:
    with memory_folder() as folder, structlog.testing.capture_logs():
        yield Trial(folder)


def wrongly_answered(trial: Trial, deeds: list[Deed]) -> list[str]:
    tolds = [judged(trial.lie(deed)) for deed in deeds]
    return [f"{told.deed.name}: {told.answered}: {told.faults}" for told in tolds if told.faults]


def drawn(trial: Trial, liar: Role) -> list[Deed]:
    """Return sixty lies, about each kind of message and some of its fields; `tests/liar.py` tells all."""
    rng = random.Random(f"liar {liar}")
    by_field: dict[tuple[str, str], list[Deed]] = {}
    for deed in trial.deeds():
        if deed.liar == liar:
            what = first_part(deed.field) or deed.how.partition(" ")[0]
            by_field.setdefault((deed.kind, what), []).append(deed)
    places = list(by_field)
    rng.shuffle(places)
    each = {kind: (kind, what) for kind, what in places}
    chosen = dict.fromkeys([*each.values(), *places])
    return [rng.choice(by_field[place]) for place in list(chosen)[:60]]


def test_every_kind_of_message_is_lied_about_by_whom_it_is_said(trial: Trial) -> None:
    lied = {(deed.liar, deed.kind) for deed in trial.deeds()}
    never = {"ping", "pong", "refused"}
    assert {kind for _, kind in lied} == BY_KIND.keys() - never
    for liar in ROLES:
        assert {kind for who, kind in lied if who == liar} == trial.samples[liar].keys() - never


def test_the_table_of_answers_has_a_row_for_each_field_that_can_be_lied_about(trial: Trial) -> None:
    known = {(kind, liar, first_part(field)) for kind, liar, field in rows_of(ANSWERS.read_text())}
    assert {(kind, liar, first_part(field)) for kind, liar, field in map(row_of, trial.deeds())} <= known


def first_part(field: str) -> str:
    return re.split(r"[.\[]", field)[0]


def test_a_message_of_a_wrong_form_is_refused_before_anybody_acts_on_it(trial: Trial) -> None:
    """Each field without its value, of another type, beyond its limits; each message with another field."""
    refused: dict[str, set[str]] = {}
    for liar in ROLES:
        for kind, sample in trial.samples[liar].items():
            for lie in lies_about(sample):
                if is_formal(lie):
                    refused.setdefault(kind, set()).add(lie.field.partition(".")[0].partition("[")[0])
                    with pytest.raises(ProtocolError):
                        read_as(kind, payload_of(lie.said))
    for kind, fields in refused.items():
        known = set(BY_KIND[kind].__struct_fields__)
        assert fields >= known - {"since_2"}, kind


def read_as(kind: str, payload: bytes) -> None:
    message = decode_hello(payload) if kind in (*HELLO, "refused") else decode(payload)
    check_said(message, PROTOCOL)


@pytest.mark.parametrize("liar", ROLES)
def test_a_lie_ends_the_session_or_the_block_and_the_next_session_works(trial: Trial, liar: Role) -> None:
    """One lie about each field; ``python tests/liar.py`` tells all of them."""
    assert wrongly_answered(trial, drawn(trial, liar)) == []


@pytest.mark.parametrize("liar", ROLES)
def test_no_message_of_a_block_passes_that_its_tag_does_not_cover(trial: Trial, liar: Role) -> None:
    deeds = [
        Deed(liar, kind, lie.field, lie.how, authentic=False)
        for kind, sample in trial.samples[liar].items()
        if isinstance(sample, m.DialogueMessage)
        for lie in lies_about(sample)
        if lie.field != "block_id" and not is_formal(lie)
    ]
    chosen = random.Random(f"untagged {liar}").sample(deeds, 25)
    assert not [deed for deed in chosen if may_be_taken(deed)]
    assert wrongly_answered(trial, chosen) == []


@pytest.mark.parametrize("liar", ROLES)
@pytest.mark.parametrize("manner", MANNERS)
def test_messages_that_are_missing_late_or_repeated_hold_nothing_up_for_ever(
    trial: Trial, liar: Role, manner: str
) -> None:
    deeds = [deed for deed in trial.deeds() if (deed.liar, deed.how, deed.authentic) == (liar, manner, True)]
    assert wrongly_answered(trial, random.Random(manner).sample(deeds, 5)) == []


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("alice/sifted//omitted", "session ended ProtocolError"),
        ("alice/block_agreed//a hundred times", "session ended ProtocolError"),
        ("alice/key_answer//omitted", "session ended ProtocolError"),
        ("bob/verify_begin//omitted", "session ended ProtocolError"),
        ("bob/verified/equal/the contrary", "block discarded verification"),
        ("alice/amplify/length/one more", "block discarded disagreement"),
        ("alice/amplify/lambda_ec_bits/one less", "block discarded disagreement"),
        ("bob/transcript_tag/tag/first bit changed", "session ended AuthenticationError"),
        ("alice/prepared/tag/last bit changed", "session ended AuthenticationError"),
        ("bob/prepared/pad_index/one more", "session ended AuthenticationError"),
        ("alice/block_state_answer/states[0].block_id/one less", "session ended ProtocolError"),
        ("alice/hello/last_block_id/the largest", "session ended ProtocolError"),
        ("bob/hello/generation/the largest", "session ended ProtocolError"),
        ("bob/block_proposed/block_id/the largest", "session ended ProtocolError"),
        ("bob/block_proposed/block_id/one less", "session ended ProtocolError"),
        ("alice/assign/assignment.assignment_id/the largest", "refused"),
        ("bob/give_away/handover.handover_id/the largest", "refused"),
        ("alice/hello/positions.pad_segments[0][1]/negative", "session ended ProtocolError"),
    ],
)
def test_what_a_lie_is_answered_with(trial: Trial, name: str, answer: str) -> None:
    liar, kind, field, how = name.split("/")
    told = judged(trial.lie(Deed(ROLES[liar == "bob"], kind, field, how)))
    assert (category(told.answered), told.faults) == (answer, [])
