"""Requests to ETSI GS QKD 014 as encryptors of known makers write them, by their scripts or sources."""

import base64
import ssl
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog
from etsi014_support import A, B, MemorySupply, World, world
from http_support import Pki

API = "/api/v1/keys"


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(Path(tmp_path_factory.mktemp("pki")))


@pytest.fixture(autouse=True)
def logs() -> Any:
    with structlog.testing.capture_logs() as captured:
        yield captured


def only_key(answer: httpx.Response) -> dict[str, str]:
    assert answer.status_code == 200, answer.text
    (entry,) = answer.json()["keys"]
    return {name: entry[name] for name in ("key_ID", "key")}


async def pair(place: World) -> tuple[httpx.AsyncClient, httpx.AsyncClient]:
    return await place.client(A, "alice"), await place.client(B, "bob")


async def test_junipers_macsec_script_takes_four_keys_with_key_size_in_both_calls(pki: Pki) -> None:
    """Its size is ``key_size``, which is no word of the standard: the default size serves it."""
    async with world(pki) as place:
        a, b = await pair(place)
        keys = [only_key(await a.get(f"{API}/{B}/enc_keys?key_size=256")) for _ in range(4)]
        for key in keys:
            assert len(base64.b64decode(key["key"])) == 32
            fetch = f"{API}/{A}/dec_keys?key_ID={key['key_ID']}&key_size=256"
            assert only_key(await b.get(fetch)) == key
            assert (
                await b.get(fetch)
            ).status_code == 400  # it asks again after a second, for any status but 200


async def test_junipers_certificates_name_the_device_beside_its_address(pki: Pki) -> None:
    async with world(pki) as place:
        client = await place.client(pki.ca.issue_cert(A, "192-0-2-1.example", common_name=A), "alice")
        assert (await client.get(f"{API}/{B}/status")).json()["master_SAE_ID"] == A


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_arnika_and_wg_qrotator_ask_for_one_key_of_256_bits(pki: Pki, method: str) -> None:
    """Both use GET; qkdsec writes the same as a body."""
    async with world(pki) as place:
        a, b = await pair(place)
        if method == "GET":
            key = only_key(await a.get(f"{API}/{B}/enc_keys?number=1&size=256"))
            answer = await b.get(f"{API}/{A}/dec_keys?key_ID={key['key_ID']}")
        else:
            key = only_key(await a.post(f"{API}/{B}/enc_keys", json={"number": 1, "size": 256}))
            answer = await b.post(f"{API}/{A}/dec_keys", json={"key_IDs": [{"key_ID": key["key_ID"]}]})
        assert only_key(answer) == key


async def test_arnikas_script_keyreq_sends_a_content_type_with_a_get(pki: Pki) -> None:
    async with world(pki) as place:
        a, b = await pair(place)
        headers = {"Content-Type": "application/json"}
        assert (await a.get(f"{API}/{B}/status", headers=headers)).status_code == 200
        key = only_key(await a.get(f"{API}/{B}/enc_keys", headers=headers))
        assert only_key(await b.get(f"{API}/{A}/dec_keys?key_ID={key['key_ID']}", headers=headers)) == key


async def test_a_rotator_that_asks_again_while_keys_are_missing_takes_none_by_it(pki: Pki) -> None:
    """arnika asks up to six times, for any status but 200, beginning after 100 ms."""
    async with world(pki, MemorySupply(chunks=0)) as place:
        a, _ = await pair(place)
        for _ in range(6):
            assert (await a.get(f"{API}/{B}/enc_keys?number=1&size=256")).status_code == 503
        place.supply.chunks = 1
        only_key(await a.get(f"{API}/{B}/enc_keys?number=1&size=256"))
        assert place.supply.chunks == 0


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_clients_that_speak_one_version_of_tls_only_are_served(
    pki: Pki, version: ssl.TLSVersion
) -> None:
    """Arista's client speaks TLS 1.3 only; arnika's least is TLS 1.2."""
    async with world(pki) as place:
        context = pki.client_context(pki.ca.issue_cert(common_name=A))
        context.minimum_version = context.maximum_version = version
        url = f"https://127.0.0.1:{place.servers['alice'].port}"
        async with httpx.AsyncClient(base_url=url, verify=context, trust_env=False) as client:
            only_key(await client.get(f"{API}/{B}/enc_keys"))
