"""The correction of one block between the sites: the messages, and the place of the computation.

Bob requests and Alice answers, for the whole block at once. The methods (`qnode.distill.reconcile`) do no
I/O. Steps that may take milliseconds run in a worker thread. The many short steps are taken where the
message is read (`BlockChannel.converse`): a transfer to a thread, or to another task, costs more than a step.
"""

from dataclasses import dataclass

import numpy as np
import trio

from qnode.block.decision import check_qber
from qnode.block.disclosed import Disclosed
from qnode.block.outcome import BlockLost, Reason
from qnode.block.pipeline_depth import method_for
from qnode.block.sample import sample_of
from qnode.config import LinkParameters
from qnode.distill.bits import Bits
from qnode.distill.reconcile import (
    SEED_BYTES,
    Corrector,
    ReconciliationFailed,
    Responder,
    corrector,
    responder,
)
from qnode.errors import FieldError, ProtocolError
from qnode.link.messages import (
    DialogueMessage,
    ReconcileAnswer,
    ReconcileBegin,
    ReconcileRequest,
    SampleAnswer,
    SampleRequest,
    VerifyBegin,
)
from qnode.node.dialogue.channel import BlockChannel
from qnode.node.dialogue.context import BlockContext
from qnode.node.dialogue.observer import BlockObserver


@dataclass(frozen=True)
class Corrected:
    """Bob's corrected key, and the disclosure of its correction."""

    key: Bits
    disclosed: Disclosed


# Bob


async def correct(
    context: BlockContext,
    channel: BlockChannel,
    received: Bits,
    filled_in_s: float,
    qber_estimate: float | None,
    observer: BlockObserver,
) -> Corrected:
    """Correct ``received`` towards Alice's key; without an estimate a sample is disclosed first.

    ``filled_in_s``: the time to fill a block of this size.

    Raises:
        BlockLost: the error rate exceeds its limit, or the block cannot be corrected.
    """
    disclosed = Disclosed()
    if qber_estimate is None:
        qber_estimate = await _sample(channel, received, observer)
        check_qber(qber_estimate, context.link)
        disclosed = disclosed.and_sample(len(sample_of(received)), context.link)
    method = method_for(context.link, context.session.path_round_trip_s, len(received), filled_in_s)
    try:
        finished = await _correct(context, channel, received, method, qber_estimate)
    except ReconciliationFailed as error:
        await _sample(channel, received, observer)
        raise BlockLost(Reason.RECONCILIATION, str(error)) from None
    spent = finished.statistics
    return Corrected(
        finished.corrected, disclosed.and_reconciled(spent.disclosed_bits, spent.leaked_bits, method)
    )


async def _correct(
    context: BlockContext, channel: BlockChannel, received: Bits, method: str, qber_estimate: float
) -> Corrector:
    leak_count, block_id = context.link.reconciliation.leak_count, channel.block_id
    seed = await context.draw(SEED_BYTES)
    await channel.send(
        ReconcileBegin(block_id=block_id, method=method, seed=seed, qber_estimate=qber_estimate)
    )
    machine = await trio.to_thread.run_sync(
        lambda: corrector(method, received, seed=seed, qber_estimate=qber_estimate, leak_count=leak_count)
    )

    def ask_on(answer: ReconcileAnswer) -> ReconcileRequest | None:
        request = machine.receive(answer.payload)
        return None if request is None else ReconcileRequest(block_id=block_id, payload=request)

    def takes_long(answer: ReconcileAnswer) -> bool:
        return machine.takes_long(answer.payload)

    await channel.send(ReconcileRequest(block_id=block_id, payload=machine.start()))
    await channel.converse(ask_on, takes_long, ReconcileAnswer)
    return machine


async def _sample(channel: BlockChannel, received: Bits, observer: BlockObserver) -> float:
    """Return the error rate of a sample that Alice discloses."""
    await channel.send(SampleRequest(block_id=channel.block_id))
    answer = await channel.expect(SampleAnswer)
    mine = sample_of(received)
    try:
        theirs = Bits.from_bytes(answer.payload, len(mine))
    except ValueError as error:
        raise ProtocolError(f"block {channel.block_id}: sample: {error}") from None
    errors = int(np.bitwise_count(mine.words ^ theirs.words).sum())
    observer.sampled(channel.block_id, errors, len(mine))
    return errors / max(1, len(mine))


# Alice


async def answer_corrections(context: BlockContext, channel: BlockChannel, key: Bits) -> Disclosed:
    """Answer Bob's requests until Bob reports that the key is corrected (`VerifyBegin`)."""
    disclosed = Disclosed()
    machine: Responder | None = None
    method = ""

    def answer(message: DialogueMessage) -> ReconcileAnswer | None:
        if machine is None or not isinstance(message, ReconcileRequest):
            return None
        return ReconcileAnswer(block_id=channel.block_id, payload=machine.respond(message.payload))

    def takes_long(message: DialogueMessage) -> bool:
        return (
            machine is not None
            and isinstance(message, ReconcileRequest)
            and machine.takes_long(message.payload)
        )

    while True:
        message = await channel.converse(
            answer, takes_long, ReconcileBegin, ReconcileRequest, VerifyBegin, SampleRequest
        )
        if isinstance(message, SampleRequest):
            sample = sample_of(key)
            disclosed = disclosed.and_sample(len(sample), context.link)
            await channel.send(SampleAnswer(block_id=channel.block_id, payload=sample.to_bytes()))
        elif isinstance(message, ReconcileBegin):
            if machine is not None:
                raise ProtocolError(f"block {channel.block_id}: correction begins a second time")
            machine, method = await _responder(context.link, key, message), message.method
        elif machine is None:
            raise ProtocolError(f"block {channel.block_id}: {type(message).__name__} before correction began")
        elif not isinstance(message, VerifyBegin):
            raise AssertionError("every request of a correction that has begun is answered")
        else:
            return disclosed.and_reconciled(machine.disclosed_bits, machine.leaked_bits, method)


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
