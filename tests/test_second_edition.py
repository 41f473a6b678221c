"""Another edition of the API is one more table over the same delivery.

Edition 2 of ETSI GS QKD 014 is a draft whose text is not public. Known of it: paths below /kdapi/v2/, POST
only, SAE IDs in the body, initiator and target instead of master and slave. The names of the members below
are made up; the product gets a table when the text is published.
"""

from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
import pytest
import structlog
from etsi014_support import ENTRIES, A, B, MemorySupply
from http_support import Pki
from interface_support import ask, check_described, der
from msgspec import UNSET, Struct

from qnode import etsi014, skip
from qnode.delivery import Delivery, Given, Key, KeyRequest, Refusal, SaeDirectory
from qnode.delivery.application import application
from qnode.delivery.interface import Asked, Interface, Route
from qnode.delivery.reading import json_body

STATUSES = (400, 401, 503)


class NewKeys(Struct, frozen=True):
    target_sae_id: str = msgspec.field(name="target_SAE_ID")
    number: Any = UNSET
    size: Any = UNSET


class KnownKeys(Struct, frozen=True):
    initiator_sae_id: str = msgspec.field(name="initiator_SAE_ID")
    key_ids: tuple[UUID, ...] = msgspec.field(name="key_IDs")


class OneKey(Struct, frozen=True):
    key_id: UUID = msgspec.field(name="key_ID")
    key: bytes


class Keys(Struct, frozen=True):
    keys: list[OneKey]


class Problem(Struct, frozen=True):
    message: str


def second_edition(delivery: Delivery) -> Interface:
    """Return the whole table: this is what the product would have in one more file."""

    async def new_keys(asked: Asked) -> Given:
        wanted = json_body(asked.body, NewKeys)
        request = KeyRequest(number=wanted.number, size_bits=wanted.size)
        return await delivery.allocate(
            asked.caller, wanted.target_sae_id, request, asked.client_gone, named="target_SAE_ID"
        )

    async def known_keys(asked: Asked) -> Given:
        wanted = json_body(asked.body, KnownKeys)
        return await delivery.fetch(
            asked.caller, wanted.initiator_sae_id, wanted.key_ids, asked.client_gone, named="initiator_SAE_ID"
        )

    def refused(refusal: Refusal) -> Problem:
        return Problem(refusal.message)

    def container(keys: list[Key]) -> Keys:
        return Keys([OneKey(key.key_id, key.key) for key in keys])

    return Interface(
        name="etsi014",
        title="ETSI GS QKD 014 edition 2",
        version="2",
        summary="draft",
        routes=(
            Route("POST", "/kdapi/v2/enc_keys", "New keys", new_keys, Keys, STATUSES, body=NewKeys),
            Route("POST", "/kdapi/v2/dec_keys", "Known keys", known_keys, Keys, STATUSES, body=KnownKeys),
        ),
        container=container,
        refusal=refused,
        refusal_body=Problem,
    )


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(Path(tmp_path_factory.mktemp("pki")))


async def test_a_second_table_over_the_same_delivery_gives_the_same_keys_once(pki: Pki) -> None:
    supply = MemorySupply()
    at = {name: Delivery(SaeDirectory(name, ENTRIES), supply) for name in ("alice", "bob")}
    a, b = der(pki.ca.issue_cert(common_name=A)), der(pki.ca.issue_cert(common_name=B))
    second = {name: application(delivery, second_edition(delivery)) for name, delivery in at.items()}
    first = {name: etsi014.application(delivery) for name, delivery in at.items()}
    document = (await ask(second["alice"], a, "GET", "/openapi.json")).body

    async def post(name: str, certificate: bytes, call: str, body: dict[str, Any]) -> Any:
        target, content = f"/kdapi/v2/{call}", msgspec.json.encode(body)
        answer = await ask(second[name], certificate, "POST", target, content)
        check_described(document, "POST", target, answer)
        return answer

    with structlog.testing.capture_logs():
        got = await post("alice", a, "enc_keys", {"target_SAE_ID": B, "number": 3, "size": 128})
        ids = [entry["key_ID"] for entry in got.body["keys"]]
        # One by each interface at the other site; then all of them are gone for each.
        by_second = await post("bob", b, "dec_keys", {"initiator_SAE_ID": A, "key_IDs": ids[:1]})
        by_first = await ask(first["bob"], b, "GET", f"/api/v1/keys/{A}/dec_keys?key_ID={ids[1]}")
        skips = skip.application(at["bob"], lambda number: None)  # type: ignore[arg-type,return-value]
        by_skip = await ask(skips, b, "GET", f"/key/{UUID(ids[2]).hex}?remoteSystemID={A}")
        assert [by_second.body["keys"][0], by_first.body["keys"][0]] == got.body["keys"][:2]
        assert by_skip.status == 200
        for key_id in ids:
            again = await post("bob", b, "dec_keys", {"initiator_SAE_ID": A, "key_IDs": [key_id]})
            assert again.status == 400
        wrong = await post("alice", a, "enc_keys", {"target_SAE_ID": "nobody"})
        assert wrong.body["message"] == "target_SAE_ID is not an SAE to share keys with"
        assert (await post("alice", a, "enc_keys", {})).status == 400
        got = await ask(second["alice"], a, "GET", "/kdapi/v2/enc_keys")
        assert (got.status, got.headers["allow"]) == (405, "POST")
