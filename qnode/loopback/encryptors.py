"""Two demonstration encryptors: they fetch keys from both ends by the standard, and compare them.

They are ordinary HTTPS clients of the two KMEs, without access to the daemons.
"""

import hmac
import ssl
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import trio
from msgspec import Struct

from qnode.loopback.https import HttpsClient, NoResponse
from qnode.loopback.prepare import LinkEndpoints, SaeEndpoint

KEYS_PER_REQUEST = 128
# The demonstration leaves some keys of each direction for other clients.
LEFT_FOR_OTHERS = 32
POLL_S = 0.25


@dataclass
class Comparison:
    """The results of the two encryptors so far; a key counts once, when both ends have it."""

    delivered: int = 0
    compared: int = 0
    different: int = 0
    refused: int = 0


class _Status(Struct, frozen=True):
    """The member of a status that the encryptors use (ETSI GS QKD 014, 6.1)."""

    stored_key_count: int


class _Key(Struct, frozen=True, gc=False):
    key_id: str = msgspec.field(name="key_ID")
    key: bytes

    def __repr__(self) -> str:
        return f"_Key({self.key_id})"


class _KeyContainer(Struct, frozen=True):
    keys: list[_Key]


class _KeyId(Struct, frozen=True, gc=False):
    key_id: str = msgspec.field(name="key_ID")


class _KeyIds(Struct, frozen=True):
    key_ids: list[_KeyId] = msgspec.field(name="key_IDs")


class _KeyRequest(Struct, frozen=True):
    number: int


_decode_status = msgspec.json.Decoder(_Status).decode
_decode_keys = msgspec.json.Decoder(_KeyContainer).decode


class Encryptor:
    """One SAE and its connection to the KME of its site."""

    def __init__(self, ca: str, link: LinkEndpoints, sae: SaeEndpoint) -> None:
        context = ssl.create_default_context(cafile=ca)
        context.load_cert_chain(sae.cert, sae.key)
        site = next(site for site in link.sites.values() if site.kme_id == sae.kme)
        self._client = HttpsClient(site.url, context)
        self._base = f"/api/v1/keys/{sae.peer_sae_id}"

    async def aclose(self) -> None:
        """Close the connection."""
        await self._client.aclose()

    async def stored(self) -> int:
        """Return the number of keys to request as master; some are left for others. Raises NoResponse."""
        response = await self._client.call("GET", f"{self._base}/status")
        return _decode_status(response.body).stored_key_count - LEFT_FOR_OTHERS if response.ok else 0

    async def assign(self, number: int) -> list[_Key] | None:
        """Fetch new keys as master; None if refused. Raises NoResponse."""
        return await self._keys("enc_keys", _KeyRequest(number))

    async def fetch(self, key_ids: list[str]) -> list[_Key] | None:
        """Fetch the same keys as slave; None if refused. Raises NoResponse."""
        return await self._keys("dec_keys", _KeyIds([_KeyId(key_id) for key_id in key_ids]))

    async def _keys(self, call: str, request: Struct) -> list[_Key] | None:
        response = await self._client.call("POST", f"{self._base}/{call}", msgspec.json.encode(request))
        return _decode_keys(response.body).keys if response.ok else None


async def run_encryptors(
    ca: str, link: LinkEndpoints, comparison: Comparison, wanted: int | None, reached: Callable[[], None]
) -> None:
    """Fetch and compare keys of a link both ways until ``wanted`` were compared, then call ``reached``.

    ``ca``: the file of the authority of the sites' certificates.
    """
    # The master and slave parts of an encryptor are separate clients, so that neither waits for the other.
    alice, bob = link.saes_of(demo=True)
    async with trio.open_nursery() as nursery:
        for master, slave in ((alice, bob), (bob, alice)):
            nursery.start_soon(
                _drain, Encryptor(ca, link, master), Encryptor(ca, link, slave), comparison, wanted, reached
            )


async def _drain(
    master: Encryptor,
    slave: Encryptor,
    comparison: Comparison,
    wanted: int | None,
    reached: Callable[[], None],
) -> None:
    """Request keys as master at one end, and as slave at the other, while there are keys."""
    try:
        while True:
            moved = False
            try:
                stored = await master.stored()
                while stored > 0:
                    missing = KEYS_PER_REQUEST if wanted is None else wanted - comparison.compared
                    number = max(0, min(stored, KEYS_PER_REQUEST, missing))
                    if not number or not await _move(master, slave, number, comparison):
                        break
                    moved = True
                    stored -= number
            except NoResponse:
                pass  # a daemon restarts; its keys wait
            if wanted is not None and comparison.compared >= wanted:
                reached()
            if not moved:
                await trio.sleep(POLL_S)
    finally:
        await master.aclose()
        await slave.aclose()


async def _move(master: Encryptor, slave: Encryptor, number: int, comparison: Comparison) -> bool:
    """Fetch ``number`` keys at the master, the same ones at the slave, and compare them."""
    assigned = await master.assign(number)
    if assigned is None:
        comparison.refused += 1
        return False
    keys = {entry.key_id: entry.key for entry in assigned}
    comparison.delivered += len(keys)
    fetched = await slave.fetch(list(keys))
    if fetched is None:
        comparison.refused += 1
        return False
    for entry in fetched:
        comparison.compared += 1
        if not hmac.compare_digest(entry.key, keys.pop(entry.key_id, b"")):
            comparison.different += 1
    return True
