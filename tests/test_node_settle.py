"""What a block costs and refills: its failure probability, its tags, the pads that its key gives back."""

import pytest
from msgspec.structs import replace

from qnode.config import LinkParameters
from qnode.errors import ProtocolError
from qnode.keys import PadsLeft
from qnode.node.dialogue.commit import PADS_OF_A_BLOCK, block_epsilon, check_refill, refill_pads

LINK = LinkParameters()
MOST = LINK.keys.refill_pads_per_direction
RESERVE = LINK.keys.reserve_pads_per_direction


def left(send: int, receive: int) -> PadsLeft:
    return PadsLeft(send=send, receive=receive, used=0)


def test_a_block_costs_secrecy_and_correctness() -> None:
    estimation = replace(LINK.estimation, eps_sec=3e-10, eps_cor=2e-10)
    assert block_epsilon(replace(LINK, estimation=estimation)) == pytest.approx(5e-10, rel=1e-12)


@pytest.mark.parametrize(
    ("send", "receive", "expected"),
    [
        (RESERVE, RESERVE, PADS_OF_A_BLOCK),
        (RESERVE - 1, RESERVE, MOST),
        (RESERVE, RESERVE - 1, MOST),
    ],
)
def test_a_block_refills_what_it_uses_and_more_below_the_reserve(
    send: int, receive: int, expected: int
) -> None:
    assert refill_pads(left(send, receive), LINK) == expected


@pytest.mark.parametrize("pads", [PADS_OF_A_BLOCK, MOST])
def test_a_refill_within_the_limits_is_taken(pads: int) -> None:
    check_refill(pads, LINK)
    check_refill(None, LINK)  # of protocol 1, which fixes it


@pytest.mark.parametrize("pads", [PADS_OF_A_BLOCK - 1, MOST + 1])
def test_a_refill_that_the_link_does_not_allow_is_refused(pads: int) -> None:
    with pytest.raises(ProtocolError, match="refill_pads"):
        check_refill(pads, LINK)
