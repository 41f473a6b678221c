"""Requests to an interface without a network, and whether its answers are those of its description."""

import json
import re
from base64 import b64decode
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import trustme
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from qnode.asgi import Application

TYPES = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "null": type(None),
}


@dataclass
class Answer:
    """An answer of an application."""

    status: int
    headers: dict[str, str]
    content: bytes

    @property
    def body(self) -> Any:
        return json.loads(self.content)


def der(leaf: trustme.LeafCert) -> bytes:
    """Return a client's certificate as the server puts it into the scope."""
    return x509.load_pem_x509_certificate(leaf.cert_chain_pems[0].bytes()).public_bytes(Encoding.DER)


@dataclass
class Breaking:
    """The server's view of a client whose connection breaks while it is answered."""

    nothing_sent: bool
    client_gone: bool = False


async def ask(
    app: Application,
    certificate: bytes | None,
    method: str,
    target: str,
    body: bytes = b"",
    *,
    breaking: Breaking | None = None,
) -> Answer:
    """Send one request of the client with ``certificate``; ``target``: path and query, percent-encoded.

    Raises:
        OSError: the connection is ``breaking``.
    """
    path, _, query = target.partition("?")
    scope: dict[str, Any] = {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode("ascii"),
        "query_string": query.encode("ascii"),
        "headers": [],
        "client": ("127.0.0.1", 1),
        "extensions": {"tls": {"client_cert_der": certificate}},
    }
    if breaking is not None:
        scope["extensions"]["qnode.exchange"] = breaking
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        if breaking is not None:
            raise OSError("connection lost")
        sent.append(message)

    await app(scope, receive, send)
    start, *rest = sent
    headers = {name.decode(): value.decode() for name, value in start["headers"]}
    return Answer(start["status"], headers, b"".join(one["body"] for one in rest))


def operation(document: dict[str, Any], method: str, target: str) -> tuple[str, dict[str, Any] | None]:
    """Return the path and operation of ``document`` that a request calls; None if there is no operation."""
    path = target.partition("?")[0]
    for template, operations in document["paths"].items():
        if re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", template), path):
            return template, operations.get(method.lower())
    return path, None


def check_described(document: dict[str, Any], method: str, target: str, answer: Answer) -> None:
    """Check that ``document`` describes ``answer``: its status, the kind of its body, and the body."""
    assert answer.headers["content-length"] == str(len(answer.content))
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "no-store"
    _, called = operation(document, method, target)
    if called is None:
        assert answer.status in (404, 405)
        return
    described = called["responses"][str(answer.status)]
    schema = described["content"]["application/json"]["schema"]
    assert mismatch(document, schema, answer.body) == ""


def mismatch(document: dict[str, Any], schema: dict[str, Any], value: Any, where: str = "$") -> str:
    """Return where ``value`` differs from ``schema``, as far as descriptions of interfaces go; "" if nowhere.

    A member that the schema of an object does not name is a difference too, except in an object of no named
    members.
    """
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return mismatch(document, document["components"]["schemas"][name], value, where)
    if "anyOf" in schema:
        found = [mismatch(document, one, value, where) for one in schema["anyOf"]]
        return "" if "" in found else found[0]
    kind = schema["type"]
    if kind == "integer":
        right = type(value) is int
    else:
        right = isinstance(value, TYPES[kind])
    if not right:
        return f"{where}: expected {kind}, got {value!r}"
    if kind == "object" and "properties" in schema:
        for name in schema.get("required", ()):
            if name not in value:
                return f"{where}: {name} is missing"
        for name, member in value.items():
            if name not in schema["properties"]:
                return f"{where}: {name} is not described"
            if found_within := mismatch(document, schema["properties"][name], member, f"{where}.{name}"):
                return found_within
    if kind == "array":
        for index, item in enumerate(value):
            if found_within := mismatch(document, schema["items"], item, f"{where}[{index}]"):
                return found_within
    if kind == "string" and schema.get("format") == "uuid":
        UUID(value)
    if kind == "string" and schema.get("contentEncoding") == "base64":
        b64decode(value, validate=True)
    return ""
