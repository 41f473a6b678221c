"""Proof that both ends hold the same key: for one conversation, one key, one key_ID and one role."""

from hypothesis import given
from hypothesis import strategies as st

from qnode.agent.proof import PROOF_BYTES, conversation, proof, proves
from qnode.agent.tunnel import Role, TunnelKey

KEYS = st.builds(TunnelKey, st.uuids().map(str), st.binary(min_size=16, max_size=64))
SESSIONS = st.binary(min_size=32, max_size=32)


@given(KEYS, KEYS, SESSIONS, SESSIONS)
def test_a_proof_holds_for_its_own_key_conversation_and_role_alone(
    key: TunnelKey, other: TunnelKey, session: bytes, another: bytes
) -> None:
    roles: tuple[Role, Role] = ("initiator", "responder")
    for role, opposite in (roles, roles[::-1]):
        found = proof(key, session, role)
        assert len(found) == PROOF_BYTES
        assert proves(found, key, session, role)
        assert not proves(found, key, session, opposite)
        assert (
            not proves(found, TunnelKey(other.key_id, key.key), session, role) or other.key_id == key.key_id
        )
        assert not proves(found, TunnelKey(key.key_id, other.key), session, role) or other.key == key.key
        assert not proves(found, key, another, role) or another == session
        assert not proves(found[:-1], key, session, role)
        assert key.key not in found


@given(st.binary(), st.binary(), st.binary(), st.binary())
def test_two_conversations_have_one_name_only_if_both_hellos_are_the_same(
    first: bytes, second: bytes, other_first: bytes, other_second: bytes
) -> None:
    same = conversation(first, second) == conversation(other_first, other_second)
    assert same is ((first, second) == (other_first, other_second))


def test_bytes_do_not_move_from_one_hello_to_the_other() -> None:
    assert conversation(b"ab", b"c") != conversation(b"a", b"bc")
