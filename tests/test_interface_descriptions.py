"""Every answer of an interface is one that its OpenAPI description has, and nothing described is missing."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode
from uuid import UUID

import pytest
import structlog
from etsi014_support import ENTRIES, A, B, C, MemorySupply, world
from http_support import Pki
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from interface_support import ask, check_described, der, mismatch, operation

from qnode import etsi014, skip
from qnode.asgi import Application
from qnode.delivery import Delivery, Key, SaeDirectory
from qnode.errors import DeviceError, LinkDown, NotEnoughKeys, StoreError

requests = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
IDS = st.sampled_from([A, B, C, "nobody", "a b/c", "*"]) | st.text(min_size=1, max_size=6)
NUMBERS = st.integers(-2, 140).map(str) | st.sampled_from(["", "1.0", "x", "64", "256", "65536", "65544"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 70_000) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=5,
)


class WoefulSupply(MemorySupply):
    """A supply that is now and then in trouble, of every kind that a supply may have."""

    def _trouble(self) -> None:
        match self.random.randrange(8):
            case 0:
                raise StoreError("disk full")
            case 1:
                raise LinkDown("cut")
            case 2:
                raise NotEnoughKeys(2, 1)

    async def stored_key_count(self, master: str, slave: str, size_bits: int) -> int:
        self._trouble()
        return await super().stored_key_count(master, slave, size_bits)

    async def allocate(self, master: str, slaves: tuple[str, ...], number: int, size_bits: int) -> list[Key]:
        self._trouble()
        return await super().allocate(master, slaves, number, size_bits)

    async def fetch(self, slave: str, master: str, key_ids: tuple[UUID, ...]) -> list[Key]:
        self._trouble()
        return await super().fetch(slave, master, key_ids)


class Place:
    """One site with both interfaces over one supply that knows every trouble."""

    def __init__(self, pki: Pki) -> None:
        self.supply = WoefulSupply(chunks=10**7)
        self.supply.extension = {"estimator": "rusca2018"}
        delivery = Delivery(SaeDirectory("bob", ENTRIES), self.supply, simulated=True)
        self.apps: dict[str, Application] = {
            "etsi014": etsi014.application(delivery),
            "skip": skip.application(delivery, self._random_bytes),
        }
        self.certificates = [
            *(der(pki.ca.issue_cert(common_name=name)) for name in (B, C, A, "stranger")),
            None,
        ]

    async def _random_bytes(self, number: int) -> bytes:
        if self.supply.random.random() < 0.2:
            raise DeviceError("sick")
        return self.supply.random.randbytes(number)

    def a_key_for_b(self) -> UUID:
        """Return the key_ID of a key that A got for B at the other site."""
        supply, key_id = self.supply, UUID(int=self.supply.random.getrandbits(128), version=4)
        supply.issued[key_id] = Key(key_id, supply.random.randbytes(32), supply.extension)
        supply.master_of[key_id], supply.named[key_id], supply.owed[key_id] = A, {B}, {B}
        return key_id


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(Path(tmp_path_factory.mktemp("pki")))


@pytest.fixture(scope="module")
def place(pki: Pki) -> Iterator[Place]:
    with structlog.testing.capture_logs():
        yield Place(pki)


async def document_of(place: Place, name: str) -> dict[str, Any]:
    answer = await ask(place.apps[name], place.certificates[0], "GET", "/openapi.json")
    assert answer.status == 200
    document: dict[str, Any] = answer.body
    return document


async def send(place: Place, name: str, client: int, method: str, target: str, body: bytes = b"") -> int:
    """Send one request, check its answer against the description, and return its status."""
    document = await document_of(place, name)
    answer = await ask(place.apps[name], place.certificates[client], method, target, body)
    check_described(document, method, target, answer)
    return answer.status


@requests
@given(
    client=st.sampled_from([0, 0, 0, 1, 2, 3, 4]),
    method=st.sampled_from(["GET", "GET", "POST", "POST", "HEAD", "PUT", "QUERY"]),
    other=IDS,
    call=st.sampled_from(["status", "enc_keys", "dec_keys", "", "more"]),
    query=st.dictionaries(st.sampled_from(["number", "size", "key_ID", "extension_optional"]), NUMBERS),
    body=st.just(b"")
    | st.binary(max_size=20)
    | st.dictionaries(
        st.sampled_from(["number", "size", "key_IDs", "additional_slave_SAE_IDs", "extension_mandatory"]),
        JSON,
    ).map(lambda value: json.dumps(value).encode()),
    known=st.booleans(),
)
async def test_every_answer_of_etsi_014_is_described(
    place: Place,
    client: int,
    method: str,
    other: str,
    call: str,
    query: dict[str, str],
    body: bytes,
    known: bool,
) -> None:
    if known and call == "dec_keys":  # else no dec_keys would ever succeed
        key_id = str(place.a_key_for_b())
        query, body, other = {"key_ID": key_id}, json.dumps({"key_IDs": [{"key_ID": key_id}]}).encode(), A
    target = f"/api/v1/keys/{quote(other, safe='')}/{call}?{urlencode(query)}"
    await send(place, "etsi014", client, method, target, body)


@requests
@given(
    client=st.sampled_from([0, 0, 0, 1, 2, 3, 4]),
    method=st.sampled_from(["GET", "GET", "GET", "GET", "HEAD", "POST"]),
    path=st.sampled_from(["/capabilities", "/key", "/key/", "/entropy", "/", "/keys"]),
    remote=st.just(A) | IDS,
    key_id=st.uuids().map(lambda one: one.hex) | st.text("0123456789abcdefG-", max_size=40),
    query=st.dictionaries(st.sampled_from(["size", "minentropy"]), NUMBERS),
    known=st.booleans(),
)
async def test_every_answer_of_skip_is_described(
    place: Place,
    client: int,
    method: str,
    path: str,
    remote: str,
    key_id: str,
    query: dict[str, str],
    known: bool,
) -> None:
    if path == "/key/":
        path += place.a_key_for_b().hex if known else key_id
    target = f"{path}?{urlencode({'remoteSystemID': remote, **query})}"
    await send(place, "skip", client, method, target)


async def test_every_described_status_occurs(pki: Pki) -> None:
    """Those of the server (408, 413, 431, 500) are shown by the tests of the server."""
    place, api = Place(pki), f"/api/v1/keys/{A}"
    seen: dict[tuple[str, str], set[int]] = {}
    documents = {name: await document_of(place, name) for name in place.apps}
    with structlog.testing.capture_logs():
        for _ in range(40):
            at_skip, by_get, by_post = (place.a_key_for_b() for _ in range(3))
            for name, method, target, body in [
                ("etsi014", "GET", f"{api}/status", ""),
                ("etsi014", "GET", "/api/v1/keys/nobody/status", ""),
                ("etsi014", "GET", f"{api}/enc_keys", ""),
                ("etsi014", "GET", f"{api}/enc_keys?size=1", ""),
                ("etsi014", "POST", f"{api}/enc_keys", ""),
                ("etsi014", "POST", f"{api}/enc_keys", "?"),
                ("etsi014", "GET", f"{api}/dec_keys?key_ID={by_get}", ""),
                ("etsi014", "GET", f"{api}/dec_keys?key_ID=", ""),
                ("etsi014", "POST", f"{api}/dec_keys", json.dumps({"key_IDs": [{"key_ID": str(by_post)}]})),
                ("etsi014", "POST", f"{api}/dec_keys", ""),
                ("skip", "GET", f"/key?remoteSystemID={A}", ""),
                ("skip", "GET", "/key", ""),
                ("skip", "GET", f"/key/{at_skip.hex}?remoteSystemID={A}", ""),
                ("skip", "GET", "/key/00", ""),
                ("skip", "GET", "/capabilities", ""),
                ("skip", "GET", "/entropy", ""),
                ("skip", "GET", "/entropy?minentropy=0", ""),
            ]:
                path, _ = operation(documents[name], method, target)
                for client in (0, 3):
                    status = await send(place, name, client, method, target, body.encode())
                    seen.setdefault((path, method), set()).add(status)
    for name, document in documents.items():
        for path, operations in document["paths"].items():
            for method, described in operations.items():
                of_the_server = {408, 413, 431, *([] if path.startswith("/key") else [500])}
                expected = {int(status) for status in described["responses"]} - of_the_server
                assert seen[path, method.upper()] == expected, (name, method, path)


async def test_the_description_is_behind_the_same_certificates(pki: Pki) -> None:
    with structlog.testing.capture_logs():
        async with world(pki) as two:
            encryptor = await two.client(A, "alice")
            answer = await encryptor.get("/openapi.json")
            assert answer.json()["openapi"] == "3.1.0"
            stranger = await two.client("stranger", "alice")
            assert (await stranger.get("/openapi.json")).status_code == 401
            refused = await encryptor.post("/openapi.json")
            assert (refused.status_code, refused.headers["allow"]) == (405, "GET")


@pytest.mark.parametrize("name", ["etsi014", "skip"])
async def test_a_description_names_every_limit_and_only_components_that_exist(
    place: Place, name: str
) -> None:
    document = await document_of(place, name)
    text = json.dumps(document)
    components = set(document["components"]["schemas"])
    assert set(re.findall(r"#/components/schemas/(\w+)", text)) <= components
    size = {"type": "integer", "minimum": 64, "maximum": 65536, "multipleOf": 8, "default": 256}
    assert json.dumps({"name": "size", "in": "query", "required": False, "schema": size}) in text
    ids = [one["operationId"] for paths in document["paths"].values() for one in paths.values()]
    assert len(ids) == len(set(ids)) > 3


def test_the_check_of_answers_finds_a_wrong_one() -> None:
    document = {"components": {"schemas": {"Key": {"type": "object", "properties": {}, "required": []}}}}
    key = {"type": "object", "properties": {"key": {"type": "string"}}, "required": ["key"]}
    for schema, right, wrong in (
        (key, {"key": "a"}, {}),
        (key, {"key": "a"}, {"key": 1}),
        (key, {"key": "a"}, {"key": "a", "more": 1}),
        ({"type": "array", "items": key}, [{"key": ""}], [{"key": None}]),
        ({"type": "integer"}, 1, True),
        ({"anyOf": [{"type": "null"}, {"type": "integer"}]}, None, "1"),
        ({"$ref": "#/components/schemas/Key"}, {}, []),
    ):
        assert mismatch(document, schema, right) == ""
        assert mismatch(document, schema, wrong) != ""
