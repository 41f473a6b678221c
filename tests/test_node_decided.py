"""The node's table of decided blocks: what a row says, and which rows are kept and asked for."""

import math
import time
from pathlib import Path

import msgspec
import pytest

from qnode.block.decision import decide, key_length
from qnode.block.span import BlockSpan
from qnode.config import LinkParameters, ReceiverParameters, SiteConfig, load
from qnode.distill.block_counts import BlockCounts
from qnode.distill.check_table import CHECKS
from qnode.distill.counts import Pair, TagCounts, XCounts
from qnode.distill.keylength import Assumption
from qnode.keys import Counts, PadsLeft, Positions
from qnode.link.authentication import epsilon_of_tag
from qnode.node.status.block_table import BlockTable, KnownOfBlock
from qnode.node.status.link_figures import LinkFigures
from qnode.operate.blocks.row import KEPT_BLOCKS, LONGEST_DETAIL_CHARACTERS, DecidedBlock
from qnode.operate.control.client import LONGEST_RESPONSE_BYTES, Response

LINK = LinkParameters(receiver=ReceiverParameters(dead_time_s=59e-6))
X = XCounts(
    c_plus=Pair(32_000, 6_750),
    c_z=Pair(542_600, 94_300),
    e_same=Pair(135_500, 23_800),
    e_plus=Pair(138_900, 25_000),
    e_dark=Pair(1_745, 600),
)
COUNTS = BlockCounts(
    n_z=Pair(851_800, 148_200),
    m_z=Pair(11_900, 3_070),
    x=X,
    alice_parities=118_000,
    reconciliation_leak_bits=118_000,
    method="cascade",
    n_slots=75e9,
    late=Pair(425_900, 74_100),
    n_z_plus=Pair(851_800, 148_200),
    boundary=1_274_000,
    tags=TagCounts(
        cross_clicks=56,
        double_clicks=0,
        out_of_gate=160_000,
        too_close=0,
        live_slots=(round(75e9 / 16),) * 16,
        z_clicks=(125_000,) * 16,
        x_clicks=(125_100,) * 16,
    ),
)
SPAN = BlockSpan(run_id=1, first_slot=0, n_slots=round(125.0 * LINK.source.qubit_rate_hz))


def figures() -> LinkFigures:
    """Return the figures of a site; of its configuration only the link and the names are looked at."""
    config = load(Path(__file__).parent.parent / "config" / "bob.toml", SiteConfig)
    return LinkFigures(msgspec.structs.replace(config, link=LINK))


def test_an_accepted_block_shows_every_public_figure() -> None:
    book, result = figures(), decide(COUNTS, LINK)
    book.blocks.sifted(7, COUNTS.n_z, X, SPAN)
    book.blocks.verified(7, COUNTS)
    book.blocks.accepted(7, COUNTS, result, SPAN, 0.5)
    (row,) = book.blocks.table.latest(10)
    assert None not in msgspec.structs.astuple(row)
    assert [found.check for found in row.checks] == [check.name for check in CHECKS]
    assert all(found.plausible for found in row.checks)
    assert book.status().quantum.checks == row.checks
    assert row.decided_at_s == pytest.approx(time.time(), abs=60)
    expected = {
        "block_id": 7,
        "outcome": "accepted",
        "span_s": 125.0,
        "n_z_signal": 851_800,
        "m_z_decoy": 3_070,
        "c_plus_signal": 32_000,
        "c_z_decoy": 94_300,
        "e_same_signal": 135_500,
        "e_plus_decoy": 25_000,
        "e_dark_signal": 1_745,
        "alice_parities": 118_000,
        "lambda_ec_bits": COUNTS.lambda_ec_bits,
        "f_ec": COUNTS.f_ec,
        "reconciliation": "cascade",
        "estimator": "eur",
        "x_mode": LINK.estimation.x_mode,
        "eps_sec": 1e-10,
        "eps_cor": 1e-15,
        "phi_z_upper": result.phi_z_upper,
        "secret_bits": result.length,
    }
    assert {name: getattr(row, name) for name in expected} == expected
    assert result.length > 0
    assert (row.n_z, row.qber_z) == (1_000_000, COUNTS.qber_z)


def test_a_block_that_was_lost_shows_how_far_it_came() -> None:
    book = figures()
    book.blocks.lost(1, "link", "the session ended")
    book.blocks.announced(2, 24.0)
    book.blocks.lost(2, "lock", "")
    book.blocks.sifted(3, COUNTS.n_z, X, SPAN)
    book.blocks.sampled(3, 900, 4096)
    book.blocks.lost(3, "qber_z", "21.97% is above the limit")
    book.blocks.sifted(4, COUNTS.n_z, X, SPAN)
    book.blocks.verified(4, COUNTS)
    book.blocks.lost(4, "key_length", "too little")
    cut, announced, sampled, verified = book.blocks.table.latest(10)
    assert (cut.outcome, cut.detail, cut.span_s, cut.n_z, cut.c_z_signal) == (
        "link",
        "the session ended",
        None,
        None,
        None,
    )
    assert (announced.span_s, announced.n_z) == (24.0, None)
    # A sample's errors are not told apart by intensity, so m_Z stays unknown.
    assert (sampled.span_s, sampled.n_z, sampled.c_z_decoy, sampled.qber_z) == (
        125.0,
        1_000_000,
        94_300,
        None,
    )
    assert sampled.lambda_ec_bits is None
    assert (verified.qber_z, verified.lambda_ec_bits) == (COUNTS.qber_z, COUNTS.lambda_ec_bits)
    assert (verified.secret_bits, verified.phi_z_upper) == (0, None)
    assert book.status().block.in_flight == 0
    assert book.status().totals.measured_bits == 4096 + 1_000_000


def test_counts_that_are_not_of_this_link_raise_an_alarm_until_a_block_is_accepted() -> None:
    book, result = figures(), decide(COUNTS, LINK)

    def raised() -> set[str]:
        return {alarm.name for alarm in book.status().alarms}

    for reason in ("cross_clicks", "contradiction"):
        book.blocks.sifted(7, COUNTS.n_z, X, SPAN)
        book.blocks.lost(7, reason, "not of this link")
        assert "counts.implausible" in raised()
        book.blocks.sifted(8, COUNTS.n_z, X, SPAN)
        book.blocks.verified(8, COUNTS)
        book.blocks.accepted(8, COUNTS, result, SPAN, 0.5)
        assert "counts.implausible" not in raised()
    book.blocks.lost(9, "link", "the session ended")
    assert raised() == {"block.discarded"}


def test_the_sum_of_epsilons_counts_each_tag_and_each_opened_block() -> None:
    book = figures()
    counts = Counts(**dict.fromkeys(Counts.__struct_fields__, 0))
    book.note_store(counts, PadsLeft(send=1, receive=1, used=0), Positions(epsilon=2e-20))
    assert book.status().keys.epsilon_total == pytest.approx(2e-20, abs=0.0)
    book.note_store(counts, PadsLeft(send=1, receive=1, used=1000), Positions(epsilon=2e-20))
    assert book.status().keys.epsilon_total == pytest.approx(2e-20 + 1000 * epsilon_of_tag(), abs=0.0)


def test_every_count_that_is_disclosed_is_charged_as_leak() -> None:
    each = math.ceil(math.log2(1_000_001))
    assert COUNTS.lambda_ec_bits == 118_000 + 4 * each
    assert msgspec.structs.replace(COUNTS, late=None).lambda_ec_bits == 118_000 + 2 * each


def test_nothing_is_credited_for_empty_qubits_where_the_positions_of_errors_are_public() -> None:
    def link_with(**reconciliation: str) -> LinkParameters:
        estimation = msgspec.structs.replace(LINK.estimation, estimator="rusca2018")
        changed = msgspec.structs.replace(LINK.reconciliation, **reconciliation)
        return msgspec.structs.replace(LINK, estimation=estimation, reconciliation=changed)

    public = key_length(COUNTS, link_with(leak_count="alice"))
    hidden = key_length(COUNTS, link_with(leak_count="both"))
    assert Assumption.EMPTY_CREDIT not in public.assumptions
    assert Assumption.EMPTY_CREDIT in hidden.assumptions


def ids(rows: list[DecidedBlock]) -> list[int]:
    return [row.block_id for row in rows]


def filled(*block_ids: int, kept: int = 4) -> BlockTable:
    decided = BlockTable(LINK, kept)
    for block_id in block_ids:
        decided.lost(block_id, "link", "", KnownOfBlock())
    return decided


def test_the_latest_rows_are_kept_and_come_oldest_first() -> None:
    decided = filled(1, 2, 3, 4, 5, 6)
    assert ids(decided.latest(100)) == [3, 4, 5, 6]
    assert ids(decided.latest(2)) == [5, 6]
    assert decided.latest(0) == decided.latest(-1) == []


def test_after_a_block_come_those_decided_later_whatever_their_numbers() -> None:
    decided = filled(1, 3, 2, 4)
    assert ids(decided.latest(100, after=3)) == [2, 4]
    assert ids(decided.latest(1, after=3)) == [4]
    assert decided.latest(100, after=4) == []


def test_after_a_block_that_is_forgotten_or_of_another_store_come_all() -> None:
    assert ids(filled(5, 6, 7, 8, 9).latest(100, after=5)) == [6, 7, 8, 9]
    assert ids(filled(1, 2).latest(100, after=900)) == [1, 2]
    assert filled().latest(100, after=900) == []


def test_what_a_peer_says_of_a_block_is_one_short_line() -> None:
    decided = filled()
    decided.lost(1, "peer", "a\nb\x1b[31m" + "c" * 5000, KnownOfBlock())
    (row,) = decided.latest(1)
    assert row.detail.startswith("a\\nb\\x1b[31mccc")
    assert len(row.detail) == LONGEST_DETAIL_CHARACTERS


def test_the_longest_answer_fits_what_callers_read() -> None:
    most = Pair(2**53, 2**53)
    decided, result = BlockTable(LINK), decide(COUNTS, LINK)
    counts = msgspec.structs.replace(COUNTS, n_z=most, m_z=most, x=XCounts(most, most, most, most, most))
    known = KnownOfBlock(span_s=1 / 3, n_z=most, x=counts.x, verified=counts)
    decided.lost(1, "reconciliation", "\U0001f511" * 5000, known)
    decided.accepted(2, known, result)
    longest = max(len(msgspec.json.encode(Response(blocks=[row]))) for row in decided.latest(2))
    assert longest * KEPT_BLOCKS < LONGEST_RESPONSE_BYTES
