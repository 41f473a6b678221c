"""Alice's side of Cascade: answers, counts, and refuses requests that no honest run makes."""

import numpy as np

from qnode.choices import LeakCount
from qnode.distill.bits import Bits
from qnode.distill.reconcile.base.interface import leaked_bits
from qnode.distill.reconcile.cascade.alice_kernels import (
    FollowStatus,
    answer_queries,
    begin_pass,
    follow_request,
)
from qnode.distill.reconcile.cascade.check import check_tag
from qnode.distill.reconcile.cascade.message import (
    SHORT_BLOCK_BITS,
    SHORT_BYTES,
    Kind,
    Request,
    decode_request,
)
from qnode.distill.reconcile.cascade.nodes import Layout, QueryList
from qnode.distill.reconcile.cascade.plan import CHECK_BITS, Plan
from qnode.distill.reconcile.cascade.shuffle import Shuffles
from qnode.errors import ProtocolError

_COMPLAINTS = {
    FollowStatus.NO_SUCH_NODE: "a search at no node of a begun pass",
    FollowStatus.NOT_IN_ORDER: "searches that start in no order",
    FollowStatus.PADDING_IS_SET: "padding bits are set",
}


class CascadeResponder:
    """Answer one block's requests (see ``Responder``).

    Holds half an octet for each bit of the key, and the tables of one segment's permutations.
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
        self._words = np.empty(int(layout.n_records), np.uint64)
        self._levels = np.array([plan.level(slot) for slot in range(plan.n_slots)], np.int64)
        self._queries = QueryList(plan.n_segments)  # of the last request
        self._spare = QueryList(plan.n_segments)
        self._depth = 1
        self._leap = 1
        self._n_codes = 0  # bits that Bob must send about the queries of the last request
        self._begun_passes = 0
        self._checks = 0
        self._requests = 0
        self._disclosed_bits = 0
        self._last_kind = Kind.SEARCH
        self._refused = False

    @property
    def disclosed_bits(self) -> int:
        """Parities disclosed so far."""
        return self._disclosed_bits

    @property
    def leaked_bits(self) -> int:
        """``disclosed_bits`` under the chosen ``LeakCount``."""
        return leaked_bits(self._disclosed_bits, self._leak_count)

    def takes_long(self, message: bytes) -> bool:
        """Return whether ``message`` asks much, or concerns all bits of a long block (see ``Responder``)."""
        on_all_bits = message[:1] != bytes((Kind.SEARCH,))
        return len(message) > SHORT_BYTES or (on_all_bits and self._plan.n_bits > SHORT_BLOCK_BITS)

    def respond(self, message: bytes) -> bytes:
        """Answer one request (see ``Responder``)."""
        if self._refused:
            raise ProtocolError("reconciliation: a request after a refused one")
        self._refused = True  # until this request is checked
        self._requests += 1
        if self._requests > self._plan.request_limit:
            raise ProtocolError(f"reconciliation: more than {self._plan.request_limit} requests for a block")
        request = decode_request(message)
        if request.kind == Kind.CHECK:
            response = self._check()
        elif request.kind == Kind.BEGIN:
            response = self._begin(request)
        else:
            response = self._search(request)
        self._refused = False
        return response

    def _check(self) -> bytes:
        if self._begun_passes < len(self._plan.levels) or self._last_kind is Kind.CHECK:
            raise ProtocolError("reconciliation: a check out of turn")
        self._disclose(CHECK_BITS)
        self._queries.clear()  # Bob checks only when all searches have ended
        self._n_codes = 0
        self._last_kind = Kind.CHECK
        self._checks += 1
        return check_tag(self._key, self._seed, self._checks)

    def _begin(self, request: Request) -> bytes:
        plan = self._plan
        is_extra = self._begun_passes >= len(plan.levels)
        if is_extra and self._last_kind is not Kind.CHECK:
            raise ProtocolError("reconciliation: an extra pass without a check before it")
        n_answers = self._follow(request)
        if is_extra and n_answers:
            raise ProtocolError("reconciliation: a search besides an extra pass")
        slot = plan.slot(self._begun_passes)
        n_blocks = plan.n_blocks(slot)
        self._disclose(n_answers + plan.n_segments * n_blocks)
        self._last_kind = Kind.BEGIN
        self._shuffles.draw(self._seed, self._begun_passes)
        self._begun_passes += 1
        parities = np.zeros((plan.n_segments * n_blocks + 7) // 8, np.uint8)
        begin_pass(
            self._key.words, self._words, slot, plan.level(slot), n_blocks,
            self._shuffles.forward[slot], plan.bitwise, self._layout, parities,
        )  # fmt: skip
        return self._answers(n_answers) + parities.tobytes()

    def _search(self, request: Request) -> bytes:
        if self._last_kind is Kind.CHECK:
            raise ProtocolError("reconciliation: a search after a check without a new pass")
        n_answers = self._follow(request)
        if n_answers == 0:
            raise ProtocolError("reconciliation: a request that asks nothing")
        self._disclose(n_answers)
        self._last_kind = Kind.SEARCH
        return self._answers(n_answers)

    def _follow(self, request: Request) -> int:
        """Turn the queries of the last request into those of this one; return the number of parities."""
        plan, before, after = self._plan, self._queries, self._spare
        slot = max(0, plan.slot(self._begun_passes - 1))
        n_blocks = plan.n_blocks(slot) if self._last_kind is Kind.BEGIN else 0
        n_all_blocks = plan.n_segments * n_blocks
        body = request.body
        n_octets = (self._n_codes + 7) // 8 + 4 * request.n_starts + (n_all_blocks + 7) // 8
        if body.shape[0] != n_octets:
            raise ProtocolError("reconciliation: a request of the wrong length")
        after.reserve(1 + self._n_codes + request.n_starts + n_all_blocks)
        status, after.n, n_answers, n_codes = follow_request(
            body, self._n_codes, request.n_starts,
            self._depth, self._leap, slot, n_blocks, self._levels, min(self._begun_passes, plan.n_slots),
            self._layout, before.nodes, before.counts, after.nodes, after.counts, request.depth, request.leap,
        )  # fmt: skip
        if status != FollowStatus.GOOD:
            raise ProtocolError(f"reconciliation: {_COMPLAINTS[FollowStatus(status)]}")
        self._queries, self._spare = after, before
        self._depth, self._leap, self._n_codes = request.depth, request.leap, n_codes
        return int(n_answers)

    def _answers(self, n_answers: int) -> bytes:
        answers = np.empty((n_answers + 63) // 64, np.uint64)
        queries = self._queries
        answer_queries(self._words, queries.nodes, queries.n, self._depth, self._leap, self._layout, answers)
        return answers.astype("<u8", copy=False).tobytes()[: (n_answers + 7) // 8]

    def _disclose(self, n_bits: int) -> None:
        """Count before anything is sent."""
        if self._disclosed_bits + n_bits > self._plan.disclosure_limit_bits:
            raise ProtocolError(
                f"reconciliation: more than {self._plan.disclosure_limit_bits} parities asked of a block"
            )
        self._disclosed_bits += n_bits
