"""Alice's side of Cascade: she answers, counts, and refuses what no honest run asks."""

import numpy as np
import numpy.typing as npt

from qnode.distill.bits import Bits
from qnode.distill.reconcile._alice_kernels import (
    FollowStatus,
    answer_queries,
    block_parities,
    follow_request,
    prefix_parities,
)
from qnode.distill.reconcile._check import check_parities
from qnode.distill.reconcile._interface import LeakCount, leaked_bits
from qnode.distill.reconcile._message import SHORT_BYTES, Kind, Request, decode_request
from qnode.distill.reconcile._nodes import QueryLists
from qnode.distill.reconcile._plan import CHECK_BITS, Plan
from qnode.distill.reconcile._shuffle import Shuffles
from qnode.errors import ProtocolError

_COMPLAINTS = {
    FollowStatus.WRONG_LENGTH: "a request of the wrong length",
    FollowStatus.NO_SUCH_NODE: "a search that starts at no node of a begun pass",
    FollowStatus.PADDING: "padding bits are set",
}


class CascadeResponder:
    """Answer one frame's requests (see ``Responder``)."""

    def __init__(self, frame: Bits, plan: Plan, seed: bytes, leak_count: LeakCount) -> None:
        self._plan = plan
        self._seed = seed
        self._leak_count: LeakCount = leak_count
        self._shuffles = Shuffles.of(plan)
        self._shuffles.draw(seed, 0)
        self._words = np.zeros(plan.n_slots * plan.stride_words, np.uint64)
        self._words[: plan.n_words] = self._shuffles.apply(0, frame.words)
        self._prefixes = np.empty((plan.n_slots, plan.stride_words + 1), np.uint8)
        self._levels = np.array([plan.level(slot) for slot in range(plan.n_slots)], np.int64)
        self._queries = QueryLists()  # of the last request
        self._spare = QueryLists()
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
        """Tell whether ``message`` begins a pass, asks for a check, or asks much (see ``Responder``)."""
        return len(message) > SHORT_BYTES or message[:1] != bytes((Kind.SEARCH,))

    def respond(self, message: bytes) -> bytes:
        """Answer one request (see ``Responder``)."""
        if self._refused:
            raise ProtocolError("reconciliation: a request after a refused one")
        self._refused = True  # until this request has proved good
        self._requests += 1
        if self._requests > self._plan.request_limit:
            raise ProtocolError(f"reconciliation: more than {self._plan.request_limit} requests for a frame")
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
        self._last_kind = Kind.CHECK
        self._checks += 1
        return check_parities(self._words[: self._plan.n_words], self._seed, self._checks)

    def _begin(self, request: Request) -> bytes:
        is_extra = self._begun_passes >= len(self._plan.levels)
        if is_extra and self._last_kind is not Kind.CHECK:
            raise ProtocolError("reconciliation: an extra pass without a check before it")
        self._follow(request)
        if is_extra and self._queries.n_queries:
            raise ProtocolError("reconciliation: a search besides an extra pass")
        slot = self._plan.slot(self._begun_passes)
        self._disclose(self._queries.n_queries + self._plan.n_blocks(slot))
        self._last_kind = Kind.BEGIN
        return self._answers() + self._begin_pass(slot)

    def _search(self, request: Request) -> bytes:
        if self._last_kind is Kind.CHECK:
            raise ProtocolError("reconciliation: a search after a check without a new pass")
        self._follow(request)
        if self._queries.n_queries == 0:
            raise ProtocolError("reconciliation: a request that asks nothing")
        self._disclose(self._queries.n_queries)
        self._last_kind = Kind.SEARCH
        return self._answers()

    def _follow(self, request: Request) -> None:
        """Turn the queries of the last request into those of this one."""
        plan, before, after = self._plan, self._queries, self._spare
        slot = plan.slot(self._begun_passes - 1)
        n_blocks = plan.n_blocks(slot) if self._last_kind is Kind.BEGIN else 0
        after.reserve(2 * before.n_queries + request.n_word_starts + request.n_tree_starts + n_blocks)
        status, after.n_words, after.n_trees = follow_request(
            request.body, request.n_word_starts, request.n_tree_starts, slot, n_blocks,
            self._levels, min(self._begun_passes, plan.n_slots), plan.stride_words,
            before.words, before.n_words, before.trees, before.n_trees, after.words, after.trees,
        )  # fmt: skip
        if status != FollowStatus.GOOD:
            raise ProtocolError(f"reconciliation: {_COMPLAINTS[FollowStatus(status)]}")
        self._queries, self._spare = after, before

    def _answers(self) -> bytes:
        queries = self._queries
        answers = np.empty((queries.n_queries + 7) // 8, np.uint8)
        answer_queries(
            self._words,
            self._prefixes,
            queries.words,
            queries.n_words,
            queries.trees,
            queries.n_trees,
            answers,
        )
        return answers.tobytes()

    def _begin_pass(self, slot: int) -> bytes:
        """Permute the frame for the next pass; return its block parities, packed."""
        plan = self._plan
        first = slot * plan.stride_words
        if self._begun_passes:
            self._shuffles.draw(self._seed, self._begun_passes)
            pass_0 = self._words[: plan.n_words]
            self._words[first : first + plan.n_words] = self._shuffles.apply(slot, pass_0)
        self._begun_passes += 1
        words = self._words[first : first + plan.stride_words]
        prefix_parities(words, self._prefixes[slot])
        parities: npt.NDArray[np.uint8] = np.empty(plan.n_blocks(slot), np.uint8)
        block_parities(words, plan.level(slot), parities)
        return np.packbits(parities, bitorder="little").tobytes()

    def _disclose(self, n_bits: int) -> None:
        """Count before anything is sent."""
        if self._disclosed_bits + n_bits > self._plan.disclosure_limit_bits:
            raise ProtocolError(
                f"reconciliation: more than {self._plan.disclosure_limit_bits} parities asked of a frame"
            )
        self._disclosed_bits += n_bits
