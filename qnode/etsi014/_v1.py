"""Version 1 of the API: paths, methods and answers of ETSI GS QKD 014 V1.1.1."""

from collections.abc import Mapping
from typing import Any

from qnode.asgi import Application
from qnode.delivery.application import application as serve
from qnode.delivery.calls import Delivery, Given
from qnode.delivery.interface import Asked, Interface, Parameter, Route
from qnode.delivery.refusal import Refusal
from qnode.delivery.supply import Key
from qnode.etsi014 import _reading
from qnode.etsi014._bodies import (
    ErrorBody,
    KeyBody,
    KeyContainerBody,
    KeyIdsBody,
    KeyRequestBody,
    StatusBody,
)

_OTHER_IS_SLAVE = "/api/v1/keys/{slave_SAE_ID}"
_OTHER_IS_MASTER = "/api/v1/keys/{master_SAE_ID}"
_VENDOR = "qnode_"
_REFUSALS = (400, 401, 503)


def application(delivery: Delivery) -> Application:
    """Return the ASGI application of ``delivery``: /api/v1/keys/{SAE_ID}/status, enc_keys, dec_keys."""
    return serve(delivery, interface(delivery))


def interface(delivery: Delivery) -> Interface:
    """Return the table of version 1 over ``delivery``."""
    limits = delivery.limits
    number = {"type": "integer", "minimum": 1, "maximum": limits.max_key_per_request, "default": 1}
    size = {
        "type": "integer",
        "minimum": limits.min_key_size_bits,
        "maximum": limits.max_key_size_bits,
        "multipleOf": limits.size_step_bits,
        "default": limits.key_size_bits,
    }

    key_id = {"type": "string", "format": "uuid"}

    async def status(asked: Asked) -> StatusBody:
        stock = await delivery.status(asked.caller, _reading.sae_id(asked.path["slave_SAE_ID"]))
        return StatusBody(
            source_kme_id=delivery.directory.kme_id,
            target_kme_id=stock.slave.kme_id,
            master_sae_id=stock.master.sae_id,
            slave_sae_id=stock.slave.sae_id,
            key_size=limits.key_size_bits,
            stored_key_count=stock.stored_key_count,
            max_key_count=delivery.limits.max_key_count,
            max_key_per_request=limits.max_key_per_request,
            max_key_size=limits.max_key_size_bits,
            min_key_size=limits.min_key_size_bits,
            max_sae_id_count=limits.max_sae_id_count,
            status_extension=delivery.extension,
        )

    async def get_key(asked: Asked) -> Given:
        slave = _reading.sae_id(asked.path["slave_SAE_ID"])
        request = _reading.key_request_of_query(asked.query)
        return await delivery.allocate(asked.caller, slave, request, asked.client_gone)

    async def post_key(asked: Asked) -> Given:
        slave = _reading.sae_id(asked.path["slave_SAE_ID"])
        request = _reading.key_request_of_body(asked.body)
        return await delivery.allocate(asked.caller, slave, request, asked.client_gone)

    async def get_key_with_id(asked: Asked) -> Given:
        master = _reading.sae_id(asked.path["master_SAE_ID"])
        key_ids = _reading.key_ids_of_query(asked.query)
        return await delivery.fetch(asked.caller, master, key_ids, asked.client_gone)

    async def post_key_with_ids(asked: Asked) -> Given:
        master = _reading.sae_id(asked.path["master_SAE_ID"])
        key_ids = _reading.key_ids_of_body(asked.body)
        return await delivery.fetch(asked.caller, master, key_ids, asked.client_gone)

    key = f"{_OTHER_IS_SLAVE}/enc_keys"
    with_ids = f"{_OTHER_IS_MASTER}/dec_keys"
    of_request = (Parameter("number", number), Parameter("size", size))
    of_id = (Parameter("key_ID", key_id, required=True),)
    get_status = "Get status: the keys that the caller could get as master for this slave"
    return Interface(
        name="etsi014",
        title="ETSI GS QKD 014 V1.1.1",
        version="1",
        summary="Protocol and data format of REST-based key delivery API",
        routes=(
            Route("GET", f"{_OTHER_IS_SLAVE}/status", get_status, status, StatusBody, _REFUSALS),
            Route("GET", key, "Get key, as master", get_key, KeyContainerBody, _REFUSALS, of_request),
            Route(
                "POST",
                key,
                "Get key, as master",
                post_key,
                KeyContainerBody,
                _REFUSALS,
                body=KeyRequestBody,
            ),
            Route(
                "GET",
                with_ids,
                "Get key with key IDs, as slave",
                get_key_with_id,
                KeyContainerBody,
                _REFUSALS,
                of_id,
            ),
            Route(
                "POST",
                with_ids,
                "Get key with key IDs, as slave",
                post_key_with_ids,
                KeyContainerBody,
                _REFUSALS,
                body=KeyIdsBody,
            ),
        ),
        container=lambda keys: _container(delivery, keys),
        refusal=_error,
        refusal_body=ErrorBody,
        fields={
            "KeyRequestBody.number": number,
            "KeyRequestBody.size": size,
            "KeyRequestBody.additional_slave_SAE_IDs": {"maxItems": limits.max_sae_id_count},
            "KeyIdsBody.key_IDs": {"minItems": 1, "maxItems": limits.max_key_per_request},
            "KeyIdBody.key_ID": key_id,
        },
    )


def _error(refusal: Refusal) -> ErrorBody:
    return ErrorBody(refusal.message, tuple(map(dict, refusal.details)))


def _container(delivery: Delivery, keys: list[Key]) -> KeyContainerBody:
    bodies: list[KeyBody] = []
    told: Mapping[str, Any] | None = None
    extension: dict[str, Any] | None = None
    for key in keys:
        if key.extension is not told:  # keys of one block have the same extension
            told = key.extension
            named = {f"{_VENDOR}{name}": value for name, value in told.items()}
            extension = {**named, **(delivery.extension or {})} or None
        bodies.append(KeyBody(key.key_id, key.key, extension))
    return KeyContainerBody(keys=bodies, key_container_extension=delivery.extension)
