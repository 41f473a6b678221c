"""Bob's side of Cascade: he searches his errors in all passes at once and corrects them.

All searches advance in lock step: one request holds one query of each. Between an answer and the next
request he flips the bits found wrong, starts a search wherever that makes a known parity odd, and begins the
next pass when few searches are left. After the last pass comes the check; if it fails, an extra pass with a
fresh permutation and another check.
"""

import numpy as np

from qnode.distill.bits import Bits
from qnode.distill.reconcile._bob_kernels import BITS, absorb_answers, begin_blocks, examine_flips
from qnode.distill.reconcile._check import check_parities
from qnode.distill.reconcile._interface import (
    LeakCount,
    ReconciliationFailed,
    ReconciliationStatistics,
    leaked_bits,
)
from qnode.distill.reconcile._message import SHORT_BYTES, Kind, encode_check, encode_request
from qnode.distill.reconcile._nodes import NO_QUERIES, Octets, Queries, QueryLists, Words
from qnode.distill.reconcile._plan import CHECK_BITS, Plan
from qnode.distill.reconcile._shuffle import Shuffles, move_differences
from qnode.errors import ProtocolError


class CascadeCorrector:
    """Correct one frame (see ``Corrector``)."""

    def __init__(self, frame: Bits, plan: Plan, seed: bytes, leak_count: LeakCount) -> None:
        self._plan = plan
        self._seed = seed
        self._leak_count: LeakCount = leak_count
        self._frame = frame
        self._shuffles = Shuffles.of(plan)
        self._shuffles.draw(seed, 0)
        self._shuffled = self._shuffles.apply(0, frame.words)
        n_records = plan.n_slots * plan.stride_words
        self._records = np.zeros((n_records, 4), np.uint64)
        self._records[: plan.n_words, BITS] = self._shuffled
        self._tree = np.zeros(n_records, np.uint8)
        self._levels = np.array([plan.level(slot) for slot in range(plan.n_slots)], np.int64)
        self._queries = QueryLists()  # of the last request
        self._spare = QueryLists()
        self._codes: Octets = np.empty(0, np.uint8)
        self._places = np.empty((0, plan.n_slots), np.uint32)
        self._asked = Kind.BEGIN
        self._begun_passes = 0
        self._checks = 0
        self._disclosed_bits = 0
        self._rounds = 0
        self._corrected_errors = 0
        self._request_bytes = 0
        self._response_bytes = 0
        self._corrected: Bits | None = None

    @property
    def corrected(self) -> Bits:
        """The corrected frame (see ``Corrector``)."""
        if self._corrected is None:
            raise RuntimeError("reconciliation has not finished")
        return self._corrected

    @property
    def statistics(self) -> ReconciliationStatistics:
        """What has been spent so far."""
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
        return self._send(encode_request(Kind.BEGIN, b"", NO_QUERIES, NO_QUERIES, b""))

    def takes_long(self, message: bytes) -> bool:
        """Tell whether a pass begins, the check is due, or there is much to absorb (see ``Corrector``)."""
        return len(message) > SHORT_BYTES or self._asked is not Kind.SEARCH

    def receive(self, message: bytes) -> bytes | None:
        """Take an answer, return the next request (see ``Corrector``)."""
        octets = np.frombuffer(message, np.uint8)
        n_queries = self._queries.n_queries
        slot = self._plan.slot(self._begun_passes)
        n_blocks = self._plan.n_blocks(slot) if self._asked is Kind.BEGIN else 0
        n_answer_octets = (n_queries + 7) // 8
        n_octets = n_answer_octets + (n_blocks + 7) // 8
        if self._asked is Kind.CHECK:
            n_octets = CHECK_BITS // 8
        if octets.shape[0] != n_octets:
            raise ProtocolError(
                f"reconciliation: an answer of {octets.shape[0]} octets in place of {n_octets}"
            )
        self._response_bytes += len(message)
        self._rounds += 1
        if self._asked is Kind.CHECK:
            self._disclosed_bits += CHECK_BITS
            return self._conclude(message)
        self._disclosed_bits += n_queries + n_blocks
        return self._advance(octets[:n_answer_octets], octets[n_answer_octets:], n_blocks)

    def _advance(self, answers: Octets, blocks: Octets, n_blocks: int) -> bytes:
        """Absorb answers, then block parities of a pass just begun; return the next request."""
        plan, shuffles, before, after = self._plan, self._shuffles, self._queries, self._spare
        started = min(self._begun_passes, plan.n_slots)
        self._reserve(before.n_queries, n_blocks)
        n_words, n_trees, n_codes, n_flips = absorb_answers(
            answers, before.words, before.n_words, before.trees, before.n_trees,
            self._records, self._tree, self._levels, shuffles.gather, shuffles.inverse, shuffles.rotation,
            plan.stride_words, plan.n_words, plan.bitwise, started,
            after.words, after.trees, self._codes, self._places,
        )  # fmt: skip
        word_starts = tree_starts = NO_QUERIES
        after.n_words, after.n_trees = n_words, n_trees
        if n_flips:
            self._corrected_errors += n_flips
            if self._corrected_errors > plan.error_limit:
                raise ReconciliationFailed(f"more than {plan.error_limit} errors in {plan.n_bits} bits")
            after.n_words, after.n_trees = examine_flips(
                self._records, self._tree, self._levels, plan.stride_words, started,
                self._places, n_flips, after.words, n_words, after.trees, n_trees,
            )  # fmt: skip
            word_starts = after.words[n_words : after.n_words]
            tree_starts = after.trees[n_trees : after.n_trees]
        self._queries, self._spare = after, before
        odd_blocks = self._begin_pass(blocks, n_blocks) if n_blocks else b""
        return self._ask(self._codes[: (n_codes + 3) // 4].tobytes(), word_starts, tree_starts, odd_blocks)

    def _reserve(self, n_queries: int, n_blocks: int) -> None:
        """Make room: a query goes on in two nodes, or flips two bits that start a search in every pass."""
        self._spare.reserve(2 * n_queries * self._plan.n_slots + n_blocks)
        if 2 * n_queries > self._places.shape[0]:
            self._codes = np.empty(n_queries, np.uint8)
            self._places = np.empty((4 * n_queries, self._plan.n_slots), np.uint32)

    def _begin_pass(self, blocks: Octets, n_blocks: int) -> bytes:
        """Permute the frame as corrected so far, search in the odd blocks; return which they are, packed."""
        plan, queries = self._plan, self._queries
        slot, stride = plan.slot(self._begun_passes), plan.stride_words
        if self._begun_passes:
            self._shuffles.draw(self._seed, self._begun_passes)
            self._shuffles.invert(slot)
            first = slot * stride
            self._records[first : first + plan.n_words, BITS] = self._shuffles.apply(slot, self._pass_0())
        self._begun_passes += 1
        odd_blocks: Octets = np.empty(n_blocks, np.uint8)
        queries.n_words, queries.n_trees = begin_blocks(
            self._records, self._tree, plan.level(slot), slot, stride, blocks, odd_blocks,
            queries.words, queries.n_words, queries.trees, queries.n_trees,
        )  # fmt: skip
        return np.packbits(odd_blocks, bitorder="little").tobytes()

    def _ask(self, codes: bytes, word_starts: Queries, tree_starts: Queries, odd_blocks: bytes) -> bytes:
        """Choose between going on, beginning a pass, and the check."""
        plan = self._plan
        n_queries = self._queries.n_queries
        if self._begun_passes >= len(plan.levels):
            if n_queries == 0:
                self._asked = Kind.CHECK
                return self._send(encode_check())
            self._asked = Kind.SEARCH
        else:
            self._asked = Kind.BEGIN if n_queries < plan.early_start else Kind.SEARCH
        return self._send(encode_request(self._asked, codes, word_starts, tree_starts, odd_blocks))

    def _conclude(self, alice: bytes) -> bytes | None:
        """Finish if the check parities agree, else begin an extra pass."""
        pass_0 = self._pass_0()
        self._checks += 1
        if check_parities(pass_0, self._seed, self._checks) != alice:
            self._asked = Kind.BEGIN
            return self._send(encode_request(Kind.BEGIN, b"", NO_QUERIES, NO_QUERIES, b""))
        n_bits = self._frame.n_bits
        words = self._frame.words.copy()
        gather, rotation = self._shuffles.gather, self._shuffles.rotation
        move_differences(self._shuffled, pass_0, gather, rotation, self._plan.bitwise, words)
        self._corrected = Bits.from_bytes(words.tobytes()[: (n_bits + 7) // 8], n_bits)
        return None

    def _pass_0(self) -> Words:
        return np.ascontiguousarray(self._records[: self._plan.n_words, BITS])

    def _send(self, request: bytes) -> bytes:
        """Count a request, or give up where Alice would refuse it."""
        plan = self._plan
        if self._asked is Kind.CHECK:
            n_bits = CHECK_BITS
        else:
            n_bits = self._queries.n_queries
            if self._asked is Kind.BEGIN:
                n_bits += plan.n_blocks(plan.slot(self._begun_passes))
        if self._disclosed_bits + n_bits > plan.disclosure_limit_bits:
            raise ReconciliationFailed(
                f"more than {plan.disclosure_limit_bits} parities for {plan.n_bits} bits"
            )
        if self._rounds >= plan.request_limit:
            raise ReconciliationFailed(f"more than {plan.request_limit} rounds")
        self._request_bytes += len(request)
        return request
