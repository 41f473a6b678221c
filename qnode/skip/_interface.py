"""The table of SKIP: paths, answers and statuses of draft-cisco-skip-02."""

import glob
import re
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from uuid import UUID

import structlog
import trio
from msgspec import UNSET

from qnode.asgi import Application
from qnode.delivery.application import application as serve
from qnode.delivery.calls import NOT_FOUND, Delivery, Given, KeyRequest
from qnode.delivery.directory import SaeEntry, system_id
from qnode.delivery.interface import Asked, Interface, Parameter, Route
from qnode.delivery.reading import integer, parameters
from qnode.delivery.refusal import Refusal, malformed
from qnode.delivery.supply import Key
from qnode.errors import DeviceError
from qnode.skip._bodies import CapabilitiesBody, EntropyBody, ErrorBody, KeyBody
from qnode.strangers import Budget

log = structlog.get_logger()

ENTROPY_BITS = 256
MOST_ENTROPY_BITS = 4096
ENTROPY_HZ = 10.0
ENTROPY_AT_ONCE = 20

_KEY_ID = re.compile(r"[0-9a-fA-F]{32}", re.ASCII)
_REMOTE = Parameter("remoteSystemID", {"type": "string", "minLength": 1}, required=True)

RandomBytes = Callable[[int], Awaitable[bytes]]


def application(delivery: Delivery, random_bytes: RandomBytes) -> Application:
    """Return the ASGI application of SKIP: /capabilities, /key, /key/{keyId}, /entropy.

    ``random_bytes(number)`` returns random bytes of full entropy, or raises DeviceError.
    """
    return serve(delivery, interface(delivery, random_bytes))


def interface(delivery: Delivery, random_bytes: RandomBytes) -> Interface:
    """Return the table of SKIP over ``delivery``."""
    limits = delivery.limits
    budget = Budget(rate_hz=ENTROPY_HZ, burst=ENTROPY_AT_ONCE)
    source = trio.Lock()  # the seeds of the link wait behind one encryptor at most
    size = {
        "type": "integer",
        "minimum": limits.min_key_size_bits,
        "maximum": limits.max_key_size_bits,
        "multipleOf": limits.size_step_bits,
        "default": limits.key_size_bits,
    }
    min_entropy = {"type": "integer", "minimum": 1, "maximum": MOST_ENTROPY_BITS, "default": ENTROPY_BITS}

    async def capabilities(asked: Asked) -> CapabilitiesBody:
        peers = delivery.directory.peers_of(asked.caller)
        return CapabilitiesBody(
            entropy=True,
            key=True,
            algorithm="QKD (simulated)" if delivery.simulated else "QKD",
            local_system_id=system_id(asked.caller),
            # The draft has patterns here; a name with a wildcard in it must match only itself.
            remote_system_id=[glob.escape(system_id(peer)) for peer in peers],
        )

    async def new_key(asked: Asked) -> Given:
        values = parameters(asked.query)
        remote = _remote(delivery, asked.caller, values)
        request = KeyRequest(size_bits=integer(values.get("size", UNSET)))
        with _statuses():
            return await delivery.allocate(
                asked.caller, remote, request, asked.client_gone, named="remoteSystemID"
            )

    async def key_with_id(asked: Asked) -> Given:
        if not _KEY_ID.fullmatch(asked.path["keyId"]):
            raise malformed("keyId is not 32 hexadecimal digits", "malformed keyId")
        remote = _remote(delivery, asked.caller, parameters(asked.query))
        key_id = UUID(hex=asked.path["keyId"])
        with _statuses():
            return await delivery.fetch(
                asked.caller, remote, (key_id,), asked.client_gone, named="remoteSystemID"
            )

    async def entropy(asked: Asked) -> EntropyBody:
        bits = integer(parameters(asked.query).get("minentropy", str(ENTROPY_BITS)))
        if not isinstance(bits, int) or not 1 <= bits <= MOST_ENTROPY_BITS:
            message = f"minentropy shall be an integer from 1 to {MOST_ENTROPY_BITS}"
            raise malformed(message, "minentropy out of range")
        if budget.spend(asked.caller.sae_id, trio.current_time()) is None:
            raise _no_entropy("the entropy for this encryptor is used up; ask again later", "too often")
        try:
            with trio.fail_after(limits.answer_s):
                async with source:
                    data = await random_bytes((bits + 7) // 8)
        except (DeviceError, trio.TooSlowError) as trouble:
            reason = str(trouble) or "random source took too long"
            raise _no_entropy("the random source is not available", reason) from None
        log.info("entropy.given", sae=asked.caller.sae_id, bits=8 * len(data))
        return EntropyBody(data.hex(), 8 * len(data))

    of_keys = (400, 401, 500, 503)
    return Interface(
        name="skip",
        title="Secure Key Integration Protocol (SKIP)",
        version="draft-cisco-skip-02",
        summary="Keys for an encryptor and its peer; keyId and key are hexadecimal",
        routes=(
            Route(
                "GET",
                "/capabilities",
                "The systems of this encryptor and of its peers",
                capabilities,
                CapabilitiesBody,
                (401,),
            ),
            Route("GET", "/key", "A new key", new_key, KeyBody, of_keys, (_REMOTE, Parameter("size", size))),
            Route(
                "GET", "/key/{keyId}", "The key that the peer got", key_with_id, KeyBody, of_keys, (_REMOTE,)
            ),
            Route(
                "GET",
                "/entropy",
                "Random bits",
                entropy,
                EntropyBody,
                (400, 401, 503),
                (Parameter("minentropy", min_entropy),),
            ),
        ),
        container=lambda keys: _key_body(delivery, keys),
        refusal=lambda refusal: ErrorBody(refusal.message),
        refusal_body=ErrorBody,
        closes=True,
        segments={"keyId": {"pattern": f"^{_KEY_ID.pattern}$"}},
    )


def _remote(delivery: Delivery, caller: SaeEntry, values: dict[str, str]) -> str:
    """Return the SAE ID of the system that a request names.

    Raises:
        Refusal: 400; the same answer for unknown systems and for those of other pairs.
    """
    if "remoteSystemID" not in values:
        raise malformed("remoteSystemID is missing", "no remoteSystemID")
    for peer in delivery.directory.peers_of(caller):
        if system_id(peer) == values["remoteSystemID"]:
            return peer.sae_id
    raise malformed("remoteSystemID is not a system to share keys with", "unknown system ID")


@contextmanager
def _statuses() -> Iterator[None]:
    """Give refusals of the delivery the statuses of the draft.

    A key of others is one that was not found (400, the same text); an error of the store is 500.
    """
    try:
        yield
    except Refusal as refusal:
        if refusal.status == 401:
            raise malformed(NOT_FOUND, refusal.reason) from None
        if refusal.internal:
            raise Refusal(500, refusal.message, reason=refusal.reason) from None
        raise


def _no_entropy(message: str, reason: str) -> Refusal:
    return Refusal(503, message, reason=reason, retry_after_s=1)


def _key_body(delivery: Delivery, keys: list[Key]) -> KeyBody:
    (key,) = keys
    return KeyBody(key.key_id.hex, key.key.hex(), True if delivery.simulated else UNSET)
