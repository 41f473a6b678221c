"""The description of an interface in OpenAPI 3.1, made from its table, so that it cannot differ from it."""

import inspect
import re
from http import HTTPStatus
from typing import Any

import msgspec

from qnode.delivery.interface import Interface, Parameter, Route

PATH = "/openapi.json"

_SEGMENT = re.compile(r"\{(\w+)\}")
_COMPONENTS = "#/components/schemas/{name}"
# The server itself refuses what is too slow, too large, or failed.
_OF_THE_SERVER = (408, 431, 500)
_OF_THE_SERVER_WITH_BODY = (413,)


def description(interface: Interface) -> dict[str, Any]:
    """Return the OpenAPI document of ``interface``."""
    bodies = {interface.refusal_body, *(route.answer for route in interface.routes)}
    bodies |= {route.body for route in interface.routes if route.body is not None}
    ordered = sorted(bodies, key=lambda body: body.__name__)
    _, components = msgspec.json.schema_components(ordered, ref_template=_COMPONENTS)
    for component in components.values():
        component["description"] = inspect.cleandoc(component.get("description", ""))
    for place, schema in interface.fields.items():
        body, name = place.split(".")
        components[body]["properties"][name].update(schema)
    paths: dict[str, dict[str, Any]] = {}
    for route in interface.routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(interface, route)
    return {
        "openapi": "3.1.0",
        "info": {"title": interface.title, "version": interface.version, "summary": interface.summary},
        "security": [{"mutualTLS": []}],
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "mutualTLS": {"type": "mutualTLS", "description": "the certificate names the encryptor"}
            },
        },
    }


def _operation(interface: Interface, route: Route) -> dict[str, Any]:
    statuses = {*route.statuses, *_OF_THE_SERVER, *(_OF_THE_SERVER_WITH_BODY if route.body else ())}
    operation: dict[str, Any] = {
        "operationId": f"{route.method.lower()} {route.path}",
        "summary": route.summary,
        "parameters": [
            {
                "name": name,
                "in": "path",
                "required": True,
                "schema": {"type": "string", "minLength": 1, **interface.segments.get(name, {})},
            }
            for name in _SEGMENT.findall(route.path)
        ]
        + [_parameter(one) for one in route.query],
        "responses": {
            "200": {"description": HTTPStatus.OK.phrase, **_content(route.answer)},
            **{
                str(status): {"description": HTTPStatus(status).phrase, **_content(interface.refusal_body)}
                for status in sorted(statuses)
            },
        },
    }
    if route.body is not None:
        operation["requestBody"] = _content(route.body)
    return operation


def _parameter(one: Parameter) -> dict[str, Any]:
    return {"name": one.name, "in": "query", "required": one.required, "schema": dict(one.schema)}


def _content(body: type[msgspec.Struct]) -> dict[str, Any]:
    schema = {"$ref": _COMPONENTS.format(name=body.__name__)}
    return {"content": {"application/json": {"schema": schema}}}
