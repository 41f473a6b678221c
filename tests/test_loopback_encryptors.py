"""The demonstration encryptors as clients of two key managers, over real TLS."""

from typing import Any
from uuid import UUID

import msgspec
import pytest
import trio
import trio.testing
from etsi014_support import A, B, MemorySupply, World, world
from http_support import HOST, Pki, respond, running

from qnode.delivery import Key
from qnode.http import Limits
from qnode.loopback.encryptors import LEFT_FOR_OTHERS, Comparison, run_encryptors
from qnode.loopback.https import HttpsClient, NoResponse
from qnode.loopback.prepare import LinkEndpoints, SaeEndpoint, SiteEndpoints


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(tmp_path_factory.mktemp("pki"))


def endpoints(place: World) -> LinkEndpoints:
    """Describe two running key managers as loopback does."""
    folder = place.pki.folder
    for sae in (A, B):
        place.pki.write(sae, place.pki.ca.issue_cert(common_name=sae))
    return LinkEndpoints(
        name="link",
        sites={
            role: SiteEndpoints(role, f"https://{HOST}:{server.port}", "", "")
            for role, server in place.servers.items()
        },
        saes=[
            SaeEndpoint(sae, kme, peer, str(folder / f"{sae}.pem"), str(folder / f"{sae}.key"), demo=True)
            for sae, kme, peer in ((A, "alice", B), (B, "bob", A))
        ],
    )


async def drain(place: World, wanted: int) -> Comparison:
    comparison = Comparison()
    with trio.fail_after(60), trio.CancelScope() as scope:
        await run_encryptors(str(place.pki.ca_file), endpoints(place), comparison, wanted, scope.cancel)
    return comparison


async def test_keys_are_fetched_from_both_ends_and_compared(pki: Pki) -> None:
    async with world(pki, MemorySupply(chunks=2000)) as place:
        comparison = await drain(place, 500)
        # Two directions at once may overshoot by what the other one had asked for.
        assert 500 <= comparison.compared == comparison.delivered <= 500 + 128
        assert (comparison.different, comparison.refused) == (0, 0)
        assert all(not owed for owed in place.supply.owed.values())


class CorruptSupply(MemorySupply):
    """Gives the slave another key than the master under one key_ID of each request."""

    async def fetch(self, slave: str, master: str, key_ids: tuple[UUID, ...]) -> list[Key]:
        first, *others = await super().fetch(slave, master, key_ids)
        return [msgspec.structs.replace(first, key=bytes(32)), *others]


async def test_a_key_that_differs_is_counted(pki: Pki) -> None:
    async with world(pki, CorruptSupply(chunks=2000)) as place:
        comparison = await drain(place, 128)
        assert comparison.different == comparison.compared // 128 >= 1


async def test_some_keys_of_each_direction_are_left_for_others(pki: Pki) -> None:
    supply = MemorySupply(chunks=LEFT_FOR_OTHERS + 40)
    async with world(pki, supply) as place:
        await drain(place, 40)
        comparison = Comparison()
        with trio.move_on_after(0.5):
            await run_encryptors(str(place.pki.ca_file), endpoints(place), comparison, None, lambda: None)
        assert comparison.delivered == 0
        assert supply.chunks <= LEFT_FOR_OTHERS


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answer with method, path and body, a large one."""
    body = (await receive())["body"]
    await respond(send, 200, f"{scope['method']} {scope['path']} ".encode() + body * 5000)


async def test_the_client_keeps_its_connection_and_reads_large_answers_whole(pki: Pki) -> None:
    async with running(echo, pki.settings(mutual=False)) as server:
        client = HttpsClient(f"https://{HOST}:{server.port}", pki.client_context(None))
        for i in range(3):
            body = b"%d" % i * 20
            response = await client.call("POST", f"/x{i}", body)
            assert response.ok
            assert response.body == b"POST /x%d " % i + body * 5000
        assert server.counters.connections == 1
        assert repr(response).count("2") < 10
        await client.aclose()


async def test_the_client_connects_anew_when_the_server_has_had_enough(pki: Pki) -> None:
    async with running(echo, pki.settings(mutual=False), Limits(age_s=0.0)) as server:
        client = HttpsClient(f"https://{HOST}:{server.port}", pki.client_context(None))
        for _ in range(3):
            assert (await client.call("GET", "/")).body == b"GET / "
        assert server.counters.connections == 3
        await client.aclose()


async def test_a_broken_connection_is_told_and_the_next_call_connects_anew(pki: Pki) -> None:
    async with running(echo, pki.settings(mutual=False), Limits(idle_s=1.0)) as server:
        client = HttpsClient(f"https://{HOST}:{server.port}", pki.client_context(None))
        assert (await client.call("GET", "/")).ok
        while server.open_connections:
            await trio.testing.wait_all_tasks_blocked(0.01)
        with pytest.raises(NoResponse, match="GET /second"):
            await client.call("GET", "/second")
        assert (await client.call("GET", "/third")).ok
        await client.aclose()


async def test_nobody_there_and_no_certificate_are_no_response(pki: Pki) -> None:
    async with running(echo, pki.settings()) as server:
        url = f"https://{HOST}:{server.port}"
        with pytest.raises(NoResponse):
            await HttpsClient(url, pki.client_context(None)).call("GET", "/")
    with pytest.raises(NoResponse):
        await HttpsClient(url, pki.client_context(None)).call("GET", "/")
