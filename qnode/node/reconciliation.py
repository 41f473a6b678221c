"""The correction of one block between the sites: what each says, and where it is worked out.

Bob asks, Alice answers, for the whole block at once; the method behind it (`qnode.distill.reconcile`) does no
I/O. Steps that may take milliseconds run in a worker thread, the many short ones in the event loop: handing
them over would cost more than they do.
"""

import secrets
from dataclasses import dataclass

import numpy as np
import trio

from qnode.config import LinkParameters
from qnode.distill.bits import Bits
from qnode.distill.reconcile import Corrector, ReconciliationFailed, Responder, corrector, responder
from qnode.errors import FieldError, ProtocolError
from qnode.link.messages import (
    ReconcileAnswer,
    ReconcileBegin,
    ReconcileRequest,
    SampleAnswer,
    SampleRequest,
    VerifyBegin,
)
from qnode.node.book import Book
from qnode.node.decision import check_qber, sample_leak_bits
from qnode.node.dialogue import BlockLost, Dialogue
from qnode.node.in_flight import method_for
from qnode.node.sample import sample_of
from qnode.node.settle import Site

SEED_BYTES = 32


@dataclass(frozen=True)
class Disclosed:
    """What correction by ``method`` gave away: Alice's ``parities``, ``leak_bits`` of lambda_EC."""

    parities: int = 0
    leak_bits: int = 0
    method: str = ""

    def and_sample(self, n_bits: int, link: LinkParameters) -> "Disclosed":
        """Add a disclosed sample of ``n_bits``."""
        return Disclosed(self.parities + n_bits, self.leak_bits + sample_leak_bits(n_bits, link), self.method)

    def and_reconciled(self, parities: int, leak_bits: int, method: str) -> "Disclosed":
        """Add what a finished correction counted."""
        return Disclosed(self.parities + parities, self.leak_bits + leak_bits, method)


@dataclass(frozen=True)
class Corrected:
    """Bob's corrected key, and what that disclosed."""

    key: Bits
    disclosed: Disclosed


# Bob


async def correct(
    site: Site,
    dialogue: Dialogue,
    received: Bits,
    filled_in_s: float,
    qber_estimate: float | None,
    book: Book,
) -> Corrected:
    """Correct ``received`` towards Alice's key; without an estimate a sample is disclosed first.

    ``filled_in_s``: how long a block like this takes to fill.

    Raises:
        BlockLost: the error rate is beyond its limit, or the block cannot be corrected.
    """
    disclosed = Disclosed()
    if qber_estimate is None:
        qber_estimate = await _sample(dialogue, received, book)
        check_qber(qber_estimate, site.link)
        disclosed = disclosed.and_sample(len(sample_of(received)), site.link)
    method = method_for(site.link, site.session.path_round_trip_s, len(received), filled_in_s)
    try:
        finished = await _correct(site, dialogue, received, method, qber_estimate)
    except ReconciliationFailed as error:
        await _sample(dialogue, received, book)
        raise BlockLost("reconciliation", str(error)) from None
    spent = finished.statistics
    return Corrected(
        finished.corrected, disclosed.and_reconciled(spent.disclosed_bits, spent.leaked_bits, method)
    )


async def _correct(
    site: Site, dialogue: Dialogue, received: Bits, method: str, qber_estimate: float
) -> Corrector:
    leak_count, block_id = site.link.reconciliation.leak_count, dialogue.block_id
    seed = secrets.token_bytes(SEED_BYTES)
    await dialogue.send(
        ReconcileBegin(block_id=block_id, method=method, seed=seed, qber_estimate=qber_estimate)
    )
    machine = await trio.to_thread.run_sync(
        lambda: corrector(method, received, seed=seed, qber_estimate=qber_estimate, leak_count=leak_count)
    )
    request: bytes | None = machine.start()
    while request is not None:
        await dialogue.send(ReconcileRequest(block_id=block_id, payload=request))
        answer = (await dialogue.expect(ReconcileAnswer)).payload
        if machine.takes_long(answer):
            request = await trio.to_thread.run_sync(machine.receive, answer)
        else:
            request = machine.receive(answer)
    return machine


async def _sample(dialogue: Dialogue, received: Bits, book: Book) -> float:
    """Return the error rate of a sample that Alice discloses."""
    await dialogue.send(SampleRequest(block_id=dialogue.block_id))
    answer = await dialogue.expect(SampleAnswer)
    mine = sample_of(received)
    try:
        theirs = Bits.from_bytes(answer.payload, len(mine))
    except ValueError as error:
        raise ProtocolError(f"block {dialogue.block_id}: sample: {error}") from None
    errors = int(np.bitwise_count(mine.words ^ theirs.words).sum())
    book.sampled(dialogue.block_id, errors, len(mine))
    return errors / max(1, len(mine))


# Alice


async def answer_corrections(site: Site, dialogue: Dialogue, key: Bits) -> Disclosed:
    """Answer Bob until he says that his key is corrected (`VerifyBegin`)."""
    disclosed = Disclosed()
    machine: Responder | None = None
    method = ""
    while True:
        message = await dialogue.expect(ReconcileBegin, ReconcileRequest, VerifyBegin, SampleRequest)
        if isinstance(message, SampleRequest):
            sample = sample_of(key)
            disclosed = disclosed.and_sample(len(sample), site.link)
            await dialogue.send(SampleAnswer(block_id=dialogue.block_id, payload=sample.to_bytes()))
        elif isinstance(message, ReconcileBegin):
            if machine is not None:
                raise ProtocolError(f"block {dialogue.block_id}: correction begins a second time")
            machine, method = await _responder(site.link, key, message), message.method
        elif machine is None:
            raise ProtocolError(
                f"block {dialogue.block_id}: {type(message).__name__} before correction began"
            )
        elif isinstance(message, VerifyBegin):
            return disclosed.and_reconciled(machine.disclosed_bits, machine.leaked_bits, method)
        else:
            assert isinstance(message, ReconcileRequest)
            request = message.payload
            if machine.takes_long(request):
                answer = await trio.to_thread.run_sync(machine.respond, request)
            else:
                answer = machine.respond(request)
            await dialogue.send(ReconcileAnswer(block_id=dialogue.block_id, payload=answer))


async def _responder(link: LinkParameters, key: Bits, begin: ReconcileBegin) -> Responder:
    settings = link.reconciliation
    if settings.method not in ("auto", begin.method):
        raise ProtocolError(f"correction by {begin.method!r}; the sites agreed on {settings.method!r}")
    try:
        return await trio.to_thread.run_sync(
            lambda: responder(
                begin.method,
                key,
                seed=begin.seed,
                qber_estimate=begin.qber_estimate,
                leak_count=settings.leak_count,
            )
        )
    except FieldError as error:
        raise ProtocolError(f"a correction that cannot begin: {error}") from None
