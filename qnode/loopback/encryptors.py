"""Two demonstration encryptors: they fetch keys from both ends, as the standard says, and compare them.

They are ordinary HTTPS clients of the two key managers and know nothing of the daemons.
"""

import base64
import hmac
import ssl
from collections.abc import Callable
from dataclasses import dataclass

import httpx
import trio

from qnode.loopback.prepare import Endpoints, SaeEndpoint

KEYS_PER_REQUEST = 128
# The demonstration leaves some keys of each direction for anybody else's client.
LEFT_FOR_OTHERS = 32
POLL_S = 0.25


@dataclass
class Comparison:
    """What the two encryptors have seen so far; a key counts once, when both ends have it."""

    delivered: int = 0
    compared: int = 0
    different: int = 0
    refused: int = 0


async def run_encryptors(
    endpoints: Endpoints, comparison: Comparison, wanted: int | None, reached: Callable[[], None]
) -> None:
    """Fetch and compare keys in both directions until ``wanted`` were compared, then call ``reached``."""
    alice, bob = endpoints.saes_of(demo=True)
    async with (
        _client(endpoints, alice) as at_alice,
        _client(endpoints, bob) as at_bob,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(_drain, at_alice, alice, at_bob, bob, comparison, wanted, reached)
        nursery.start_soon(_drain, at_bob, bob, at_alice, alice, comparison, wanted, reached)


def _client(endpoints: Endpoints, sae: SaeEndpoint) -> httpx.AsyncClient:
    context = ssl.create_default_context(cafile=endpoints.ca)
    context.load_cert_chain(sae.cert, sae.key)
    site = next(site for site in endpoints.sites.values() if site.kme_id == sae.kme)
    return httpx.AsyncClient(base_url=site.url, verify=context, timeout=10.0, trust_env=False)


async def _drain(
    master_client: httpx.AsyncClient,
    master: SaeEndpoint,
    slave_client: httpx.AsyncClient,
    slave: SaeEndpoint,
    comparison: Comparison,
    wanted: int | None,
    reached: Callable[[], None],
) -> None:
    """Ask as master at one end, as slave at the other, as long as there are keys."""
    while True:
        moved = False
        try:
            stored = await _stored(master_client, slave)
            while stored > 0:
                missing = KEYS_PER_REQUEST if wanted is None else wanted - comparison.compared
                number = max(0, min(stored, KEYS_PER_REQUEST, missing))
                if not number or not await _move(
                    master_client, master, slave_client, slave, number, comparison
                ):
                    break
                moved = True
                stored -= number
        except (httpx.HTTPError, OSError):
            pass  # a daemon is being restarted; its keys wait
        if wanted is not None and comparison.compared >= wanted:
            reached()
        if not moved:
            await trio.sleep(POLL_S)


async def _stored(client: httpx.AsyncClient, slave: SaeEndpoint) -> int:
    """Return how many keys may be asked for, some left for others."""
    response = await client.get(f"/api/v1/keys/{slave.sae_id}/status")
    return int(response.json()["stored_key_count"]) - LEFT_FOR_OTHERS if response.status_code == 200 else 0


async def _move(
    master_client: httpx.AsyncClient,
    master: SaeEndpoint,
    slave_client: httpx.AsyncClient,
    slave: SaeEndpoint,
    number: int,
    comparison: Comparison,
) -> bool:
    """Fetch ``number`` keys at the master, the same ones at the slave, and compare them."""
    response = await master_client.post(f"/api/v1/keys/{slave.sae_id}/enc_keys", json={"number": number})
    if response.status_code != 200:
        comparison.refused += 1
        return False
    keys = {entry["key_ID"]: base64.b64decode(entry["key"]) for entry in response.json()["keys"]}
    comparison.delivered += len(keys)
    wanted = {"key_IDs": [{"key_ID": key_id} for key_id in keys]}
    response = await slave_client.post(f"/api/v1/keys/{master.sae_id}/dec_keys", json=wanted)
    if response.status_code != 200:
        comparison.refused += 1
        return False
    for entry in response.json()["keys"]:
        comparison.compared += 1
        if not hmac.compare_digest(base64.b64decode(entry["key"]), keys.pop(entry["key_ID"], b"")):
            comparison.different += 1
    return True
