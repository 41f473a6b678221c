"""Bob's side of Cascade: searches errors in all passes and segments at once and corrects them.

All searches advance in lock step: one request has one query of each. Between an answer and the next request
Bob flips the wrong bits, starts a search wherever this makes a known parity odd, and begins the next pass
when few searches remain. After the last pass comes the check. If it fails, an extra pass with a fresh
permutation follows, and another check.
"""

import numpy as np
import numpy.typing as npt

from qnode.choices import LeakCount
from qnode.distill.bits import Bits
from qnode.distill.reconcile.base.interface import ReconciliationFailed, ReconciliationStatistics, leaked_bits
from qnode.distill.reconcile.cascade.bob_records import RECORD_WORDS, restore_key
from qnode.distill.reconcile.cascade.bob_round import Progress, absorb_answers
from qnode.distill.reconcile.cascade.check import check_tag
from qnode.distill.reconcile.cascade.message import (
    CHECK_REQUEST,
    SHORT_BLOCK_BITS,
    SHORT_BYTES,
    Kind,
    encode_request,
)
from qnode.distill.reconcile.cascade.nodes import Layout, Octets, QueryList
from qnode.distill.reconcile.cascade.plan import CHECK_BITS, MAX_DEPTH, Plan
from qnode.distill.reconcile.cascade.shuffle import Shuffles
from qnode.errors import ProtocolError

_FEW = 256  # flips per round for which there is always room


class CascadeCorrector:
    """Correct one block (see ``Corrector``).

    Holds about half an octet for each bit of the key and pass, one and a half after three passes, two if
    there is an extra pass, and the tables of one segment's permutations.
    """

    def __init__(self, key: Bits, plan: Plan, seed: bytes, leak_count: LeakCount) -> None:
        self._plan = plan
        self._seed = seed
        self._leak_count: LeakCount = leak_count
        self._key = key
        self._shuffles = Shuffles.of(plan)
        layout = Layout.of(plan)
        self._layout = layout.packed()
        # The memory of a slot is not used before its pass begins.
        self._records = np.empty(RECORD_WORDS * int(layout.n_records), np.uint64)
        self._layers = np.array(
            [(plan.level(slot) - 1) // MAX_DEPTH for slot in range(plan.n_slots)], np.int64
        )
        self._queries = QueryList(plan.n_segments)  # of the last request
        self._spare = QueryList(plan.n_segments)
        self._starts = np.empty(0, np.uint32)
        self._found = np.empty(_FEW, np.uint32)
        self._places = np.empty((plan.n_slots, _FEW), np.uint32)
        self._depth = 1
        self._leap = 1
        self._n_answers = 0  # parities that the last request's queries ask for
        self._n_codes = 0  # bits to send about them
        self._asked = Kind.BEGIN
        self._begun_passes = 0
        self._checks = 0
        self._disclosed_bits = 0
        self._rounds = 0
        self._n_flips = 0
        self._corrected_errors = 0
        self._request_bytes = 0
        self._response_bytes = 0
        self._corrected: Bits | None = None

    @property
    def corrected(self) -> Bits:
        """The corrected key (see ``Corrector``)."""
        if self._corrected is None:
            raise RuntimeError("reconciliation has not finished")
        return self._corrected

    @property
    def statistics(self) -> ReconciliationStatistics:
        """The costs so far."""
        return ReconciliationStatistics(
            disclosed_bits=self._disclosed_bits,
            leaked_bits=leaked_bits(self._disclosed_bits, self._leak_count),
            rounds=self._rounds,
            corrected_errors=self._corrected_errors,
            request_bytes=self._request_bytes,
            response_bytes=self._response_bytes,
        )

    def start(self) -> bytes:
        """Return the first request: begin pass 0."""
        return self._send(encode_request(Kind.BEGIN, 1, 1, 0, b"", b"", b""))

    def takes_long(self, message: bytes) -> bool:
        """Return whether there is much to process, or all bits of a long block (see ``Corrector``)."""
        on_all_bits = self._asked is not Kind.SEARCH
        return len(message) > SHORT_BYTES or (on_all_bits and self._plan.n_bits > SHORT_BLOCK_BITS)

    def receive(self, message: bytes) -> bytes | None:
        """Take an answer, return the next request (see ``Corrector``)."""
        plan = self._plan
        slot = plan.slot(self._begun_passes)
        n_blocks = plan.n_blocks(slot) if self._asked is Kind.BEGIN else 0
        n_answer_octets = (self._n_answers + 7) // 8
        n_octets = n_answer_octets + (plan.n_segments * n_blocks + 7) // 8
        if self._asked is Kind.CHECK:
            n_octets = CHECK_BITS // 8
        if len(message) != n_octets:
            raise ProtocolError(f"reconciliation: an answer of {len(message)} octets in place of {n_octets}")
        self._response_bytes += n_octets
        self._rounds += 1
        if self._asked is Kind.CHECK:
            self._disclosed_bits += CHECK_BITS
            return self._conclude(message)
        self._disclosed_bits += self._n_answers + plan.n_segments * n_blocks
        octets = np.frombuffer(message, np.uint8)
        return self._advance(octets[:n_answer_octets], slot, n_blocks, octets[n_answer_octets:])

    def _advance(self, answers: Octets, new_slot: int, n_blocks: int, block_parities: Octets) -> bytes:
        """Absorb answers, then block parities of a pass just begun; return the next request."""
        plan, shuffles, before, after = self._plan, self._shuffles, self._queries, self._spare
        n_lowest = before.n << self._depth
        begun = min(self._begun_passes, plan.n_slots)
        after.reserve(1 + n_lowest * (1 + begun) + plan.n_segments * n_blocks)
        if n_lowest * begun >= self._starts.shape[0]:
            self._starts = np.empty(1 + n_lowest * begun, np.uint32)
        if n_lowest > self._found.shape[0]:
            n_places = int(before.counts.max()) << self._depth
            if n_places > self._found.shape[0]:
                self._found = np.empty(n_places, np.uint32)
                self._places = np.empty((plan.n_slots, n_places), np.uint32)
        codes = np.zeros((self._n_codes + 7) // 8, np.uint8)
        odd_blocks = np.zeros(block_parities.shape[0], np.uint8)
        if n_blocks:
            shuffles.draw(self._seed, self._begun_passes)
            self._begun_passes += 1
        progress = Progress(*absorb_answers(
            answers, self._depth, self._leap, before.nodes, before.counts, self._records, self._layers,
            shuffles.forward, shuffles.inverse, plan.bitwise, begun, self._layout, self._found, self._places,
            codes, self._starts, new_slot, plan.level(new_slot), n_blocks, block_parities, odd_blocks,
            self._key.words, after.nodes, after.counts, plan.leap_bits, plan.round_budget_bits,
        ))  # fmt: skip
        self._n_flips += progress.n_flips
        if self._n_flips > plan.flip_limit:
            raise ReconciliationFailed(f"more than {plan.flip_limit} bits flipped of {plan.n_bits}")
        after.n = progress.n_queries
        self._queries, self._spare = after, before
        self._depth, self._leap = progress.depth, progress.leap
        self._n_answers, self._n_codes = progress.n_answers, progress.n_to_say
        return self._ask(codes.tobytes(), self._starts[: progress.n_starts], odd_blocks.tobytes())

    def _ask(self, codes: bytes, starts: npt.NDArray[np.uint32], odd_blocks: bytes) -> bytes:
        """Choose between continuing, beginning a pass, and the check."""
        plan, queries = self._plan, self._queries
        if self._begun_passes < len(plan.levels):
            self._asked = Kind.BEGIN if queries.n < plan.early_starts[self._begun_passes] else Kind.SEARCH
        elif queries.n == 0:
            self._asked = Kind.CHECK
            return self._send(CHECK_REQUEST)
        else:
            self._asked = Kind.SEARCH
        return self._send(
            encode_request(
                self._asked,
                self._depth,
                self._leap,
                starts.shape[0],
                codes,
                starts.astype("<u4").tobytes(),
                odd_blocks,
            )
        )

    def _conclude(self, alice: bytes) -> bytes | None:
        """Finish if the check agrees, else begin an extra pass."""
        plan = self._plan
        words = np.zeros_like(self._key.words)
        restore_key(self._records, self._shuffles.forward[0], plan.bitwise, self._layout, words)
        corrected = Bits.from_bytes(words.tobytes()[: (plan.n_bits + 7) // 8], plan.n_bits)
        self._checks += 1
        if check_tag(corrected, self._seed, self._checks) != alice:
            self._asked = Kind.BEGIN
            return self._send(encode_request(Kind.BEGIN, 1, 1, 0, b"", b"", b""))
        self._corrected_errors = int(np.bitwise_count(corrected.words ^ self._key.words).sum())
        self._corrected = corrected
        return None

    def _send(self, request: bytes) -> bytes:
        """Count a request, or fail if Alice would refuse it."""
        plan = self._plan
        if self._asked is Kind.CHECK:
            n_bits = CHECK_BITS
        else:
            n_bits = self._n_answers
            if self._asked is Kind.BEGIN:
                n_bits += plan.n_segments * plan.n_blocks(plan.slot(self._begun_passes))
        if self._disclosed_bits + n_bits > plan.disclosure_limit_bits:
            raise ReconciliationFailed(
                f"more than {plan.disclosure_limit_bits} parities for {plan.n_bits} bits"
            )
        if self._rounds >= plan.request_limit:
            raise ReconciliationFailed(f"more than {plan.request_limit} rounds")
        self._request_bytes += len(request)
        return request
