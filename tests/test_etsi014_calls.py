"""The three calls of ETSI GS QKD 014 over real mutual TLS: bodies, errors and choices, row by row."""

import base64
import json
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import UUID, uuid4

import httpx
import msgspec
import pytest
import structlog
import trio
import trio.testing
from etsi014_support import ENTRIES, A, B, C, D, MemorySupply, World, world
from http_support import Pki

from qnode.delivery import ApiLimits, Key, SaeDirectory
from qnode.errors import KeyNotFound, StoreError

API = "/api/v1/keys"
NOT_FOUND = "one or more keys specified are not found on KME"


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(Path(tmp_path_factory.mktemp("pki")))


@pytest.fixture(autouse=True)
def logs() -> Any:
    with structlog.testing.capture_logs() as captured:
        yield captured


def refused(answer: httpx.Response, status: int, message: str | None = None) -> Any:
    """Check that ``answer`` is an Error as clause 6.5 has it; return its details."""
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert set(body) <= {"message", "details"}
    assert isinstance(body["message"], str)
    if message is not None:
        assert body["message"] == message
    return body.get("details")


def keys_of(answer: httpx.Response) -> dict[str, bytes]:
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "no-store"
    return {entry["key_ID"]: base64.b64decode(entry["key"], validate=True) for entry in answer.json()["keys"]}


def by_post(key_ids: list[str]) -> dict[str, Any]:
    return {"key_IDs": [{"key_ID": key_id} for key_id in key_ids]}


async def pair(place: World) -> tuple[httpx.AsyncClient, httpx.AsyncClient]:
    return await place.client(A, "alice"), await place.client(B, "bob")


# What works.


async def test_status_has_every_mandatory_field_and_nothing_else(pki: Pki) -> None:
    async with world(pki) as place:
        a, _ = await pair(place)
        assert (await a.get(f"{API}/{B}/status")).json() == {
            "source_KME_ID": "alice",
            "target_KME_ID": "bob",
            "master_SAE_ID": A,
            "slave_SAE_ID": B,
            "key_size": 256,
            "stored_key_count": 1000,
            "max_key_count": 1048576,
            "max_key_per_request": 128,
            "max_key_size": 65536,
            "min_key_size": 64,
            "max_SAE_ID_count": 8,
        }


async def test_both_ends_get_the_same_key_by_get(pki: Pki) -> None:
    async with world(pki) as place:
        a, b = await pair(place)
        keys = keys_of(await a.get(f"{API}/{B}/enc_keys"))
        (key_id,) = keys
        assert [len(key) for key in keys.values()] == [32]
        assert keys_of(await b.get(f"{API}/{A}/dec_keys", params={"key_ID": key_id})) == keys


async def test_both_ends_get_the_same_keys_by_post(pki: Pki) -> None:
    async with world(pki, MemorySupply(chunks=128 * 256)) as place:
        a, b = await pair(place)
        keys = keys_of(await a.post(f"{API}/{B}/enc_keys", json={"number": 128, "size": 65536}))
        assert [len(key) for key in keys.values()] == [8192] * 128
        assert keys_of(await b.post(f"{API}/{A}/dec_keys", json=by_post([*keys]))) == keys


async def test_get_takes_number_and_size(pki: Pki) -> None:
    async with world(pki) as place:
        a, _ = await pair(place)
        keys = keys_of(await a.get(f"{API}/{B}/enc_keys", params={"number": 3, "size": 64}))
        assert [len(key) for key in keys.values()] == [8, 8, 8]


@pytest.mark.parametrize("body", [b"", b"{}", b'{"additional_slave_SAE_IDs": []}'])
async def test_an_empty_post_is_one_default_key(pki: Pki, body: bytes) -> None:
    async with world(pki) as place:
        a, _ = await pair(place)
        assert len(keys_of(await a.post(f"{API}/{B}/enc_keys", content=body))) == 1


async def test_either_sae_may_be_master(pki: Pki) -> None:
    async with world(pki) as place:
        a, b = await pair(place)
        keys = keys_of(await b.get(f"{API}/{A}/enc_keys"))
        assert keys_of(await a.post(f"{API}/{B}/dec_keys", json=by_post([*keys]))) == keys


async def test_multicast_gives_each_named_slave_the_key_once(pki: Pki) -> None:
    async with world(pki) as place:
        a, b = await pair(place)
        c = await place.client(C, "bob")
        keys = keys_of(await a.post(f"{API}/{B}/enc_keys", json={"additional_slave_SAE_IDs": [C]}))
        for slave in (b, c):
            assert keys_of(await slave.post(f"{API}/{A}/dec_keys", json=by_post([*keys]))) == keys
            refused(await slave.post(f"{API}/{A}/dec_keys", json=by_post([*keys])), 400, NOT_FOUND)


async def test_an_sae_id_is_url_encoded_even_with_a_slash(pki: Pki) -> None:
    async with world(pki) as place:
        a, _ = await pair(place)
        assert (await a.get(f"{API}/{quote(C, safe='')}/status")).json()["slave_SAE_ID"] == C


async def test_one_connection_serves_many_calls(pki: Pki) -> None:
    async with world(pki) as place:
        a, _ = await pair(place)
        for _ in range(5):
            keys_of(await a.get(f"{API}/{B}/enc_keys"))
        assert place.servers["alice"].counters.connections == 1


async def test_unknown_members_and_parameters_are_ignored(pki: Pki) -> None:
    async with world(pki) as place:
        a, b = await pair(place)
        (key_id,) = keys_of(await a.get(f"{API}/{B}/enc_keys", params={"key_size": 512, "number": 1}))
        body = {"key_IDs": [{"key_ID": key_id, "master_SAE_ID": A}], "key_IDs_extension": {"x_y": 1}}
        keys_of(await b.post(f"{API}/{A}/dec_keys", json=body))
        keys_of(await a.post(f"{API}/{B}/enc_keys", json={"colour": "blue"}))


async def test_unknown_optional_extensions_are_ignored(pki: Pki) -> None:
    async with world(pki) as place:
        a, _ = await pair(place)
        body = {"extension_optional": [{"acme_route": "north"}]}
        assert len(keys_of(await a.post(f"{API}/{B}/enc_keys", json=body))) == 1


async def test_simulated_keys_say_so_everywhere(pki: Pki) -> None:
    simulated = {"qnode_simulated": True}
    async with world(pki, MemorySupply(extension={"estimator": "eur"}), simulated=True) as place:
        a, b = await pair(place)
        assert (await a.get(f"{API}/{B}/status")).json()["status_extension"] == simulated
        made = await a.get(f"{API}/{B}/enc_keys")
        got = await b.get(f"{API}/{A}/dec_keys", params={"key_ID": made.json()["keys"][0]["key_ID"]})
        for answer in (made.json(), got.json()):
            assert answer["key_container_extension"] == simulated
            assert answer["keys"][0]["key_extension"] == {"qnode_estimator": "eur", "qnode_simulated": True}


async def test_real_keys_carry_no_extension(pki: Pki) -> None:
    async with world(pki) as place:
        a, _ = await pair(place)
        answer = (await a.get(f"{API}/{B}/enc_keys")).json()
        assert set(answer) == {"keys"}
        assert set(answer["keys"][0]) == {"key_ID", "key"}


async def test_a_mandatory_extension_that_is_met_is_served(pki: Pki) -> None:
    async with world(pki) as place:
        a, _ = await pair(place)
        body = {"extension_mandatory": [{"qnode_simulated": False}, {}]}
        assert len(keys_of(await a.post(f"{API}/{B}/enc_keys", json=body))) == 1


# Errors that the text fixes.


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"[]",
        b"null",
        b'"x"',
        b'{"x": "\xff"}',
        b'{"x":' + b"[" * 30_000,
        b'{"additional_slave_SAE_IDs": "sae-c"}',
        b'{"additional_slave_SAE_IDs": [1]}',
        b'{"extension_mandatory": {"a": 1}}',
        b'{"extension_mandatory": ["a"]}',
        b'{"extension_optional": {}}',
        b'{"extension_optional": [1]}',
        *(
            b'{"%s": null}' % field
            for field in (
                b"number",
                b"size",
                b"additional_slave_SAE_IDs",
                b"extension_mandatory",
                b"extension_optional",
            )
        ),
        b"number=1",
    ],
)
async def test_malformed_request_is_400(pki: Pki, body: bytes) -> None:
    async with world(pki) as place:
        a, _ = await pair(place)
        refused(await a.post(f"{API}/{B}/enc_keys", content=body), 400)


async def test_a_slave_not_named_for_any_of_the_keys_is_401(pki: Pki) -> None:
    async with world(pki) as place:
        a, b = await pair(place)
        c = await place.client(C, "bob")
        mine = [*keys_of(await a.get(f"{API}/{quote(C, safe='')}/enc_keys"))]
        others = [*keys_of(await a.get(f"{API}/{B}/enc_keys"))]
        answer = await c.post(f"{API}/{A}/dec_keys", json=by_post(mine + others))
        assert refused(answer, 401, "not authorised") is None
        keys_of(await c.post(f"{API}/{A}/dec_keys", json=by_post(mine)))
        keys_of(await b.post(f"{API}/{A}/dec_keys", json=by_post(others)))


async def test_a_master_that_asks_for_the_key_it_was_given_is_401(
    pki: Pki, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def not_here(*_: Any) -> Any:
        raise KeyNotFound("the store of the master's site has wiped it")

    async with world(pki) as place:
        a, b = await pair(place)
        d = await place.client("encryptor-d.example", "alice")
        own = [*keys_of(await a.get(f"{API}/{B}/enc_keys"))]
        with monkeypatch.context() as patched:
            patched.setattr(place.supply, "fetch", not_here)
            for caller, sae_id in ((a, B), (a, A), (d, B)):
                answer = await caller.post(f"{API}/{sae_id}/dec_keys", json=by_post(own))
                assert answer.status_code == 401, (caller, sae_id)
            refused(await a.post(f"{API}/{B}/dec_keys", json=by_post([str(uuid4())])), 400, NOT_FOUND)
        keys_of(await b.post(f"{API}/{A}/dec_keys", json=by_post(own)))


async def test_a_size_off_the_step_of_8_is_400(pki: Pki) -> None:
    async with world(pki) as place:
        a, _ = await pair(place)
        details = refused(
            await a.get(f"{API}/{B}/enc_keys", params={"size": 257}), 400, "size shall be a multiple of 8"
        )
        assert details == [{"field": "size", "step": 8}]


async def test_an_unknown_mandatory_extension_is_400_naming_it(pki: Pki) -> None:
    async with world(pki) as place:
        a, _ = await pair(place)
        body = {"extension_mandatory": [{"acme_route": "north"}, {"qnode_simulated": False}]}
        details = refused(
            await a.post(f"{API}/{B}/enc_keys", json=body),
            400,
            "not all extension_mandatory parameters are supported",
        )
        assert details == [{"extension": "acme_route"}]


async def test_a_known_mandatory_extension_that_cannot_be_met_is_400(pki: Pki) -> None:
    async with world(pki, simulated=True) as place:
        a, _ = await pair(place)
        body = {"extension_mandatory": [{"qnode_simulated": False}]}
        message = "not all extension_mandatory request options could be met"
        refused(await a.post(f"{API}/{B}/enc_keys", json=body), 400, message)
        assert place.supply.chunks == 1000


async def test_unknown_used_and_expired_key_ids_have_one_answer_and_all_or_nothing(
    pki: Pki, logs: list[dict[str, Any]]
) -> None:
    async with world(pki) as place:
        a, b = await pair(place)
        used, fresh = [*keys_of(await a.get(f"{API}/{B}/enc_keys", params={"number": 2}))]
        keys_of(await b.get(f"{API}/{A}/dec_keys", params={"key_ID": used}))
        answers = [
            await b.post(f"{API}/{A}/dec_keys", json=by_post([str(uuid4())])),
            await b.post(f"{API}/{A}/dec_keys", json=by_post([fresh, used])),
        ]
        assert keys_of(await b.get(f"{API}/{A}/dec_keys", params={"key_ID": fresh}))
        (late,) = keys_of(await a.get(f"{API}/{B}/enc_keys"))
        place.supply.expire()
        answers.append(await b.post(f"{API}/{A}/dec_keys", json=by_post([late])))
        for answer in answers:
            refused(answer, 400, NOT_FOUND)
        assert len({answer.content for answer in answers}) == 1
        reasons = [entry["reason"] for entry in logs if entry["event"] == "request.refused"]
        assert reasons[1:] == [used, late]


async def test_trouble_at_the_kme_is_503_that_says_when_to_retry(
    pki: Pki, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world(pki) as place:
        a, _ = await pair(place)

        async def broken(*_: Any) -> Any:
            raise StoreError("disk full at sector 7")

        monkeypatch.setattr(place.supply, "allocate", broken)
        monkeypatch.setattr(place.supply, "stored_key_count", broken)
        for path in ("enc_keys", "status"):
            answer = await a.get(f"{API}/{B}/{path}")
            refused(answer, 503, "the KME is in trouble")
            assert answer.headers["retry-after"] == "2"


# Choices where the text is silent.


@pytest.mark.parametrize(
    "key_id", ["", "1", "{" + str(UUID(int=1)) + "}", UUID(int=1).hex, f"{UUID(int=1)}\n"]
)
async def test_a_malformed_key_id_is_400_naming_the_field(pki: Pki, key_id: str) -> None:
    async with world(pki) as place:
        _, b = await pair(place)
        for answer in (
            await b.get(f"{API}/{A}/dec_keys", params={"key_ID": key_id}),
            await b.post(f"{API}/{A}/dec_keys", json=by_post([key_id])),
        ):
            assert refused(answer, 400) == [{"field": "key_ID"}]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b'{"key_IDs": []}',
        b'{"key_IDs": {}}',
        b'{"key_IDs": ["00000000-0000-0000-0000-000000000001"]}',
        b'{"key_IDs": [{}]}',
        b'{"key_IDs": [{"key_ID": 1}]}',
        b'{"key_IDs": [{"key_ID": null}]}',
        b'{"key_IDs": null}',
        b'{"key_IDs": [{"key_ID": "00000000-0000-4000-8000-000000000001", "key_ID_extension": null}]}',
        b'{"key_IDs": [{"key_ID": "00000000-0000-4000-8000-000000000001"}], "key_IDs_extension": [1]}',
    ],
)
async def test_dec_keys_without_proper_key_ids_is_400(pki: Pki, body: bytes) -> None:
    async with world(pki) as place:
        _, b = await pair(place)
        refused(await b.post(f"{API}/{A}/dec_keys", content=body), 400)


async def test_get_dec_keys_takes_exactly_one_key_id(pki: Pki) -> None:
    async with world(pki) as place:
        a, b = await pair(place)
        keys = [*keys_of(await a.get(f"{API}/{B}/enc_keys", params={"number": 2}))]
        refused(await b.get(f"{API}/{A}/dec_keys", params={"key_ID": keys}), 400)
        refused(await b.get(f"{API}/{A}/dec_keys"), 400)


async def test_key_ids_beyond_the_limit_or_twice_are_400(pki: Pki) -> None:
    async with world(pki) as place:
        _, b = await pair(place)
        many = [str(UUID(int=i)) for i in range(129)]
        details = refused(await b.post(f"{API}/{A}/dec_keys", json=by_post(many)), 400)
        assert details == [{"field": "key_IDs", "minimum": 1, "maximum": 128}]
        refused(await b.post(f"{API}/{A}/dec_keys", json=by_post(many[:1] * 2)), 400)


async def test_an_empty_pool_is_503_with_numbers_and_never_a_part(
    pki: Pki, logs: list[dict[str, Any]]
) -> None:
    async with world(pki, MemorySupply(chunks=3)) as place:
        a, _ = await pair(place)
        answer = await a.get(f"{API}/{B}/enc_keys", params={"number": 4})
        assert refused(answer, 503, "not enough keys are available") == [{"asked": 4, "available": 3}]
        assert int(answer.headers["retry-after"]) > 0
        assert len(keys_of(await a.get(f"{API}/{B}/enc_keys", params={"number": 3}))) == 3
    (entry,) = [entry for entry in logs if entry["event"] == "request.refused"]
    assert (entry["sae"], entry["reason"], entry["status"]) == (A, "not enough keys", 503)


async def test_a_link_that_is_down_is_503_that_says_when_to_retry(pki: Pki) -> None:
    async with world(pki, MemorySupply(link_up=False)) as place:
        a, _ = await pair(place)
        answer = await a.get(f"{API}/{B}/enc_keys")
        refused(answer, 503, "the link to the peer KME is down")
        assert int(answer.headers["retry-after"]) > 0


async def test_a_store_that_does_not_answer_is_503(pki: Pki, monkeypatch: pytest.MonkeyPatch) -> None:
    async with world(pki, limits=ApiLimits(answer_s=0.05)) as place:
        a, _ = await pair(place)

        async def hang(*_: Any) -> Any:
            await trio.sleep_forever()

        monkeypatch.setattr(place.supply, "allocate", hang)
        refused(await a.get(f"{API}/{B}/enc_keys"), 503, "the KME takes too long")


@pytest.mark.parametrize(
    "path", ["status", "enc_keys", "dec_keys?key_ID=00000000-0000-4000-8000-000000000001"]
)
async def test_unknown_foreign_and_own_sae_ids_in_the_url_are_400(pki: Pki, path: str) -> None:
    async with world(pki) as place:
        a, _ = await pair(place)
        for sae_id in ("nobody", A, D, "%FF", "%zz"):
            refused(await a.get(f"{API}/{sae_id}/{path}"), 400)


@pytest.mark.parametrize(("field", "least", "most"), [("number", 1, 128), ("size", 64, 65536)])
async def test_a_wrong_number_or_size_is_400_with_the_range(
    pki: Pki, field: str, least: int, most: int
) -> None:
    expected = [{"field": field, "minimum": least, "maximum": most}]
    async with world(pki) as place:
        a, _ = await pair(place)
        for number in (0, -1, least - 1, most + 1, 10**30):
            assert refused(await a.get(f"{API}/{B}/enc_keys", params={field: number}), 400) == expected
            assert refused(await a.post(f"{API}/{B}/enc_keys", json={field: number}), 400) == expected
        for text in ("", "64.0", "1e2", "0x40", "٦٤", "6_4", "+64", " 64", "true"):
            assert refused(await a.get(f"{API}/{B}/enc_keys", params={field: text}), 400) == expected
        values: list[object] = [True, 64.0, "64", "", [], {}, [64]]
        for value in values:
            assert refused(await a.post(f"{API}/{B}/enc_keys", json={field: value}), 400) == expected
        assert place.supply.chunks == 1000


@pytest.mark.parametrize(
    ("slaves", "status"),
    [
        ([], 200),
        ([C], 200),
        ([C, C], 400),
        ([B], 400),
        ([A], 400),
        (["nobody"], 400),
        ([D], 400),
        ([f"sae-{i}" for i in range(9)], 400),
    ],
)
async def test_additional_slaves_are_distinct_known_and_few(pki: Pki, slaves: list[str], status: int) -> None:
    async with world(pki) as place:
        a, _ = await pair(place)
        answer = await a.post(f"{API}/{B}/enc_keys", json={"additional_slave_SAE_IDs": slaves})
        assert answer.status_code == status


@pytest.mark.parametrize(
    "query", ["additional_slave_SAE_IDs=x", "extension_mandatory=x", "number=1&number=2", "number=%FF"]
)
async def test_a_get_that_would_lose_something_is_400(pki: Pki, query: str) -> None:
    async with world(pki) as place:
        a, _ = await pair(place)
        refused(await a.get(f"{API}/{B}/enc_keys?{query}"), 400)


@pytest.mark.parametrize(
    ("path", "allow", "posted"),
    [("status", "GET", 405), ("enc_keys", "GET, POST", 200), ("dec_keys", "GET, POST", 400)],
)
async def test_other_methods_are_405_with_exact_allow(pki: Pki, path: str, allow: str, posted: int) -> None:
    async with world(pki) as place:
        a, _ = await pair(place)
        for method in ("HEAD", "OPTIONS", "PUT", "PATCH", "DELETE", "TRACE", "QUERY"):
            answer = await a.request(method, f"{API}/{B}/{path}")
            assert (answer.status_code, answer.headers["allow"]) == (405, allow), method
        assert (await a.post(f"{API}/{B}/{path}")).status_code == (
            405 if path == "status" else answer_of(path)
        )


def answer_of(path: str) -> int:
    return {"enc_keys": 200, "dec_keys": 400}[path]


@pytest.mark.parametrize(
    "path",
    ["/", "/api/v1/keys", f"{API}/{B}", f"{API}/{B}/status/", f"{API}//status", f"/api/v2/keys/{B}/status"],
)
async def test_unknown_paths_are_404_in_json(pki: Pki, path: str) -> None:
    async with world(pki) as place:
        a, _ = await pair(place)
        refused(await a.get(path), 404)


async def test_base64_is_padded_and_of_the_standard_alphabet(pki: Pki) -> None:
    async with world(pki) as place:
        a, _ = await pair(place)
        for entry in (await a.get(f"{API}/{B}/enc_keys", params={"number": 32})).json()["keys"]:
            expected = place.supply.issued[UUID(entry["key_ID"])].key
            assert entry["key"] == base64.b64encode(expected).decode("ascii")


# What is kept from others.


async def test_one_saes_calls_wait_for_each_other_and_not_for_another_saes(
    pki: Pki, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world(pki, limits=ApiLimits(requests_per_sae=2)) as place, trio.open_nursery() as nursery:
        b, c = await place.client(B, "bob"), await place.client(C, "bob")
        at_work, release = 0, trio.Event()
        allocate = place.supply.allocate

        async def slow(master: str, *rest: Any) -> list[Key]:
            nonlocal at_work
            if master == B:
                at_work += 1
                await release.wait()
            return await allocate(master, *rest)

        monkeypatch.setattr(place.supply, "allocate", slow)
        for _ in range(5):
            nursery.start_soon(b.get, f"{API}/{A}/enc_keys")
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert at_work == 2
        keys_of(await c.get(f"{API}/{A}/enc_keys"))
        release.set()


async def test_events_name_key_ids_and_never_key_bytes(pki: Pki, logs: list[dict[str, Any]]) -> None:
    async with world(pki) as place:
        a, b = await pair(place)
        keys = keys_of(await a.get(f"{API}/{B}/enc_keys"))
        keys_of(await b.post(f"{API}/{A}/dec_keys", json=by_post([*keys])))
    (allocated,) = [entry for entry in logs if entry["event"] == "key.allocated"]
    (fetched,) = [entry for entry in logs if entry["event"] == "key.fetched"]
    assert allocated["key_ids"] == fetched["key_ids"] == [*keys]
    assert (allocated["master"], allocated["slaves"], fetched["slave"]) == (A, (B,), B)
    told = json.dumps(logs, default=repr)
    for key in keys.values():
        assert base64.b64encode(key).decode() not in told
        assert key.hex() not in told
        assert repr(key) not in told


def test_a_key_shows_its_name_and_never_its_bytes() -> None:
    from rich.pretty import pretty_repr

    key = Key(UUID(int=1), b"s3cret" * 8)
    assert str(UUID(int=1)) in repr(key)
    assert "384 bits" in repr(key)
    for text in (repr(key), str(key), pretty_repr(key), pretty_repr([key])):
        assert "s3cret" not in text


async def test_a_request_in_progress_is_answered_when_its_encryptor_is_removed_and_the_next_gets_401(
    pki: Pki, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world(pki) as place:
        a, b = await pair(place)
        delivery, give = place.deliveries["alice"], place.supply.allocate
        taken, removed = trio.Event(), trio.Event()

        async def slowly(*asked: Any) -> list[Key]:
            keys = await give(*asked)
            taken.set()
            await removed.wait()
            return keys

        monkeypatch.setattr(place.supply, "allocate", slowly)
        answers: list[httpx.Response] = []

        async def ask() -> None:
            answers.append(await a.get(f"{API}/{B}/enc_keys"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await taken.wait()
            without = tuple(
                msgspec.structs.replace(entry, peers=tuple(peer for peer in entry.peers if peer != A))
                for entry in ENTRIES
                if entry.sae_id != A
            )
            delivery.renew(SaeDirectory("alice", without), max_key_count=1)
            removed.set()
        keys = keys_of(answers[0])
        refused(await a.get(f"{API}/{B}/enc_keys"), 401)
        # The other site, where the encryptor is not removed yet, gives its peer the same key.
        assert keys_of(await b.post(f"{API}/{A}/dec_keys", json=by_post(list(keys)))) == keys
