"""Forged frames, replayed ones and others, on a live link: they end their own connection and nothing else."""

from forged_frames import forge

ROUNDS = (("caller", 1, 12), ("busy", 1, 3), ("relay", 1, 8), ("stranger", 1, 6), ("line", 1, 2))


def test_forged_frames_change_no_state_and_keys_flow_afterwards() -> None:
    """`python tests/forged_frames.py` sends a million."""
    met, _ = forge("test", ROUNDS)
    assert {place for place, _, _ in met} == {place for place, _, _ in ROUNDS}
    assert met.total() >= sum(forgeries for _, _, forgeries in ROUNDS)
