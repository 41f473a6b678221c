"""ETSI GS QKD 004 over real TLS between two sites: equal keys, every status, and what wrong clients get."""

import struct
from typing import Any
from uuid import UUID

import msgspec
import pytest
import trio
from etsi004_support import NULL, QOS, Application, Line, TwoSites, quiet, two_sites
from etsi014_support import ENTRIES, A, B, C, D, MemorySupply
from http_support import Pki, read_all

from qnode.delivery import Delivery, Key, SaeDirectory, SaeEntry
from qnode.errors import SaeLimitReached, ShareUsedUp, StoreError
from qnode.etsi004 import StreamCalls
from qnode.etsi004.between import AskChunk, AskDiscard, AskOpen, Told
from qnode.etsi004.serving import MOST_WAITING_PER_SAE
from qnode.etsi004.wire import GetKey, OpenConnect, Qos, Status, message

ID = UUID(int=7)
SHORT = msgspec.structs.replace(QOS, timeout_ms=50)


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(tmp_path_factory.mktemp("pki"))


async def test_both_ends_get_the_same_bytes_at_the_same_index_each_once(pki: Pki) -> None:
    async with two_sites(pki) as sites:
        one, other = await sites.pair()
        mine = {index: await one.get_key(index) for index in (0, 1, 2, 5)}
        theirs = {index: await other.get_key(index) for index in (5, 0, 2, 1)}
        assert {index: got.key for index, got in mine.items()} == {index: theirs[index].key for index in mine}
        assert len({got.key for got in mine.values()}) == 4
        assert all(got.index == index and len(got.key) == 32 for index, got in mine.items())
        for application in (one, other):
            again = await application.get_key(0)
            assert (again.status, again.key) == (Status.INSUFFICIENT_KEY, b"")
        # Indices that were skipped are still there.
        assert (await one.get_key(3)).key == (await other.get_key(3)).key != b""
        usage = [sites.calls[kme].delivery.usage[sae] for kme, sae in (("alice", A), ("bob", B))]
        assert [one_usage.keys_delivered for one_usage in usage] == [5, 5]


@pytest.mark.parametrize("padded", [True, False])
async def test_a_predefined_id_connects_both_ends_whoever_comes_first(pki: Pki, padded: bool) -> None:
    async with two_sites(pki) as sites:
        one = await sites.application(A, "alice", padded=padded)
        other = await sites.application(B, "bob", padded=not padded)
        statuses = {}

        async def come(name: str, application: Application, source: str, destination: str) -> None:
            statuses[name] = (await application.open_connect(source, destination, QOS, ID)).status

        async with trio.open_nursery() as nursery:
            nursery.start_soon(come, "b", other, f"qkd://{B}@bob", f"qkd://{A}@alice")
            nursery.start_soon(come, "a", one, f"server://{A}:25575", f"server://{B}")
        assert statuses == {"a": Status.SUCCESSFUL, "b": Status.SUCCESSFUL}
        assert (await other.get_key(0)).key == (await one.get_key(0)).key != b""


async def test_open_connect_waits_for_the_peer_not_longer_than_the_timeout(pki: Pki) -> None:
    async with two_sites(pki) as sites:
        for name, kme, peer in ((A, "alice", B), (B, "bob", A)):
            application = await sites.application(name, kme)
            stream_id = UUID(int=ord(name[-1]))
            opened = await application.open_connect(name, peer, SHORT, stream_id)
            assert (opened.status, opened.stream_id) == (Status.PEER_NOT_CONNECTED, stream_id)
            # Without the peer no key is allocated.
            assert (await application.get_key(0)).status == Status.PEER_NOT_YET_CONNECTED
            assert sites.supply.chunks == 1000


async def test_an_id_in_use_is_refused_at_both_sites(pki: Pki) -> None:
    async with two_sites(pki) as sites:
        one, other = await sites.pair()
        assert (await one.open_connect(A, B, QOS, one.opened)).status == Status.SUCCESSFUL
        assert (await other.open_connect(B, A, QOS, one.opened)).status == Status.SUCCESSFUL
        for application, source, peer in ((one, A, C), (other, B, C)):
            refused = await application.open_connect(source, peer, QOS, one.opened)
            assert refused.status == Status.ID_IN_USE
        third = await sites.application(C, "bob")
        assert (await third.open_connect(C, A, QOS, one.opened)).status == Status.ID_IN_USE
        assert (await third.get_key(0, stream_id=one.opened)).status == Status.PEER_NOT_YET_CONNECTED
        assert (await third.close(one.opened)) == Status.PEER_NOT_YET_CONNECTED


async def test_the_second_end_gets_the_quality_of_the_stream(pki: Pki) -> None:
    async with two_sites(pki) as sites:
        one, other = await sites.application(A, "alice"), await sites.application(B, "bob")
        opened = await one.open_connect(A, B, msgspec.structs.replace(QOS, key_chunk_bytes=100))
        joined = await other.open_connect(B, A, Qos(min_bps=2**32 - 1), opened.stream_id)
        assert (joined.status, joined.qos) == (Status.SUCCESSFUL, opened.qos)
        keys = [(await application.get_key(0)).key for application in (one, other)]
        assert keys[0] == keys[1]
        assert len(keys[0]) == 100


async def test_metadata_says_age_hops_and_that_keys_are_simulated_and_a_small_buffer_costs_no_key(
    pki: Pki,
) -> None:
    async with two_sites(pki) as sites:
        for application in await sites.pair():
            small = await application.get_key(0, metadata_bytes=4)
            assert (small.status, small.key) == (Status.METADATA_SIZE_INSUFFICIENT, b"")
            got = await application.get_key(0, metadata_bytes=len(small.metadata) + 8)
            assert got.status == Status.SUCCESSFUL
            assert got.facts["hops"] == 0
            assert got.facts["qnode_simulated"] is True
            assert isinstance(got.facts["age"], int)
            assert (await application.get_key(1, metadata_bytes=0)).metadata == b""
        one, other = await sites.pair(msgspec.structs.replace(QOS, metadata_mimetype=""))
        for application in (one, other):
            got = await application.get_key(0)
            assert (got.status, got.metadata) == (Status.SUCCESSFUL, b"")


async def test_a_quality_that_cannot_be_given_fails_with_a_counter_proposal(pki: Pki) -> None:
    async with two_sites(pki) as sites:
        for name, kme, peer in ((A, "alice", B), (B, "bob", A)):
            application = await sites.application(name, kme)
            asked = msgspec.structs.replace(QOS, min_bps=10_000, key_chunk_bytes=9000)
            refused = await application.open_connect(name, peer, asked)
            assert (refused.status, refused.stream_id) == (Status.QOS_NOT_MET, NULL)
            # 1000 chunks of 256 bits, spread over an hour; as the chunk is too large, it holds fewer keys.
            assert refused.qos.key_chunk_bytes == 8192
            assert 0 < refused.qos.min_bps < 10_000
            accepted = await application.open_connect(name, peer, refused.qos)
            assert accepted.status == Status.SUCCESSFUL
            assert await application.close() == Status.SUCCESSFUL


async def test_what_streams_were_promised_is_not_promised_again(pki: Pki) -> None:
    async with two_sites(pki) as sites:
        application = await sites.application(A, "alice")
        asked = msgspec.structs.replace(QOS, min_bps=50)
        assert (await application.open_connect(A, B, asked)).status == Status.SUCCESSFUL
        refused = await application.open_connect(A, B, asked)
        assert (refused.status, refused.qos.min_bps) == (Status.QOS_NOT_MET, 1000 * 256 // 3600 - 50)
        sites.calls["alice"]._link_bps = lambda kme_id: 29.0 if kme_id == "bob" else 0.0
        assert (await application.open_connect(A, B, asked)).status == Status.SUCCESSFUL


async def test_get_key_waits_for_keys_and_says_when_there_are_none(pki: Pki) -> None:
    supply = MemorySupply(chunks=0)
    async with two_sites(pki, supply) as sites:
        one, other = await sites.pair()
        got = []

        async def get(application: Application) -> None:
            got.append(await application.get_key(0))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(get, one)
            nursery.start_soon(get, other)
            await trio.testing.wait_all_tasks_blocked(0.2)
            supply.chunks = 1
        assert got[0].key == got[1].key != b""
        one, other = await sites.pair(SHORT)
        for application in (one, other):
            assert (await application.get_key(0)).status == Status.INSUFFICIENT_KEY


async def test_many_calls_that_wait_for_keys_ask_the_store_no_more_often_than_one(
    pki: Pki, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    supply = MemorySupply(chunks=0)
    sites: dict[str, StreamCalls] = {}
    for kme in ("alice", "bob"):
        sites[kme] = StreamCalls(
            Delivery(SaeDirectory(kme, ENTRIES), supply),
            supply,
            Line(kme, sites),
            most_per_sae=4,
            idle_limit_s=100.0,
        )
    entries = {sae.sae_id: sae for sae in ENTRIES}
    for sae, other, kme in ((A, B, "alice"), (B, A, "bob")):
        asked = OpenConnect(source=sae, destination=other, qos=QOS, key_stream_id=ID, padded=True)
        await sites[kme].open_connect(entries[sae], asked)
        # The first to open waits for the other one in vain.
    allocate, times = supply.allocate, 0

    async def counted(*asked: Any) -> list[Key]:
        nonlocal times
        times += 1
        return await allocate(*asked)

    monkeypatch.setattr(supply, "allocate", counted)
    async with trio.open_nursery() as nursery:
        for _ in range(30):
            asked_for = GetKey(key_stream_id=ID, index=0, metadata_bytes=0)
            nursery.start_soon(sites["alice"].get_key, entries[A], asked_for)
    assert trio.current_time() > 3.0
    assert times <= 2 * 5, "twice every half second of its timeout"


async def test_an_index_far_ahead_is_refused_at_once(pki: Pki) -> None:
    async with two_sites(pki) as sites:
        for application in await sites.pair(msgspec.structs.replace(QOS, timeout_ms=60_000)):
            assert (await application.get_key(1_000_000)).status == Status.INSUFFICIENT_KEY
        assert sites.supply.chunks == 1000


async def test_keys_that_wait_are_bounded_and_an_end_that_takes_lets_the_other_go_on(pki: Pki) -> None:
    async with two_sites(pki) as sites:
        one, other = await sites.pair(SHORT)
        mine: list[bytes] = []
        while (got := await one.get_key(len(mine))).status == Status.SUCCESSFUL:
            mine.append(got.key)
        assert got.status == Status.INSUFFICIENT_KEY
        assert len(mine) == 64
        assert sites.supply.chunks == 1000 - 64
        theirs = [(await other.get_key(index)).key for index in range(64)]
        assert theirs == mine
        # The home hears with the next call of the other end what that has taken.
        assert (await other.get_key(64)).key == (await one.get_key(64)).key != b""


async def test_close_holds_what_the_other_end_may_still_take_and_then_destroys_the_rest(pki: Pki) -> None:
    async with two_sites(pki) as sites:
        one, other = await sites.pair()
        first = await one.get_key(0)
        allocated = 1000 - sites.supply.chunks
        assert await one.close() == Status.SUCCESSFUL
        assert await one.close() == Status.PEER_NOT_YET_CONNECTED
        assert (await one.get_key(1)).status == Status.PEER_NOT_YET_CONNECTED
        assert (await one.open_connect(A, B, SHORT, other.opened)).status == Status.ID_IN_USE
        assert (await other.get_key(0)).key == first.key
        assert (await other.get_key(1)).status == Status.SUCCESSFUL
        assert (await other.get_key(allocated)).status == Status.PEER_NOT_YET_CONNECTED
        assert 1000 - sites.supply.chunks == allocated
        assert await other.close() == Status.SUCCESSFUL
        await quiet(list(sites.calls.values()))
        assert not any(sites.supply.owed.values())
        again = await one.open_connect(A, B, SHORT, other.opened)
        assert again.status == Status.PEER_NOT_CONNECTED


async def test_keys_that_nobody_will_take_are_destroyed_at_the_slaves_site_after_a_cut(pki: Pki) -> None:
    async with two_sites(pki) as sites:
        one, other = await sites.pair()
        await one.get_key(0)
        sites.cut()
        await quiet(list(sites.calls.values()))
        assert await one.close() == Status.SUCCESSFUL
        assert await other.close() == Status.NO_QKD_CONNECTION
        sites.cut(up=True)
        assert await other.close() == Status.SUCCESSFUL
        sites.cut()
        await quiet(list(sites.calls.values()))
        assert any(sites.supply.owed.values())
        sites.cut(up=True)
        await quiet(list(sites.calls.values()))
        assert not any(sites.supply.owed.values())


async def test_a_peer_site_that_does_not_answer_does_not_lengthen_the_life_of_chunks(
    pki: Pki, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hang(*_: object) -> bytes:
        await trio.sleep_forever()
        raise AssertionError

    async with two_sites(pki) as sites:
        calls = sites.calls["alice"]
        one, other = await sites.pair(msgspec.structs.replace(QOS, ttl_s=1))
        await one.get_key(0)
        monkeypatch.setattr(sites.lines["alice"], "ask", hang)
        calls.home.close(A, one.opened)
        calls.home.close(B, one.opened)
        one, other = await sites.pair(msgspec.structs.replace(QOS, ttl_s=1))
        await one.get_key(0)
        sites.nursery.start_soon(calls.run)
        while next(iter(calls.home.streams)).waiting:  # noqa: ASYNC110
            await trio.sleep(0.05)
        assert (await other.get_key(0)).status == Status.INSUFFICIENT_KEY


async def test_a_cut_ends_no_stream(pki: Pki) -> None:
    async with two_sites(pki) as sites:
        one, other = await sites.pair(SHORT)
        await one.get_key(0)
        sites.cut()
        assert (await other.get_key(0)).status == Status.NO_QKD_CONNECTION
        assert (await one.get_key(1)).status == Status.SUCCESSFUL  # allocated before
        assert (await one.get_key(20)).status == Status.TIMEOUT
        refused = await other.open_connect(B, A, SHORT)
        assert refused.status == Status.NO_QKD_CONNECTION
        assert (await one.open_connect(A, B, SHORT)).status == Status.NO_QKD_CONNECTION
        sites.cut(up=True)
        assert (await other.get_key(1, stream_id=one_id(sites))).status == Status.SUCCESSFUL


def one_id(sites: TwoSites) -> UUID:
    return next(iter(sites.calls["alice"].home.streams)).stream_id


async def test_a_peer_site_without_streams_is_no_connection(
    pki: Pki, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with two_sites(pki) as sites:
        application = await sites.application(B, "bob")

        async def no_streams(_kme_id: str, _content: bytes) -> bytes:
            return b""

        monkeypatch.setattr(sites.calls["alice"].peer_calls, "serve", no_streams)
        assert (await application.open_connect(B, A)).status == Status.NO_QKD_CONNECTION
        assert (await application.get_key(0)).status == Status.NO_QKD_CONNECTION
        assert await application.close() == Status.NO_QKD_CONNECTION


async def test_an_answer_of_the_home_that_is_lost_costs_no_key(pki: Pki) -> None:
    async with two_sites(pki) as sites:
        one, other = await sites.pair()
        sites.lines["bob"].lost = 1
        assert (await other.get_key(0)).status == Status.NO_QKD_CONNECTION
        assert (await other.get_key(0)).key == (await one.get_key(0)).key != b""


async def test_a_restart_of_the_site_that_is_not_the_home_ends_no_stream(pki: Pki) -> None:
    async with two_sites(pki) as sites:
        one, other = await sites.pair()
        assert (await other.get_key(0)).status == Status.SUCCESSFUL
        sites.calls["bob"]._joined.clear()
        assert (await other.get_key(0)).status == Status.INSUFFICIENT_KEY
        assert (await other.get_key(1)).key == (await one.get_key(1)).key != b""
        assert await other.close() == Status.SUCCESSFUL


async def test_a_restart_of_the_home_ends_the_stream_and_its_keys_are_never_given_differently(
    pki: Pki,
) -> None:
    async with two_sites(pki) as sites:
        one, other = await sites.pair()
        stream_id = one.opened
        before = (await one.get_key(0)).key
        streams = sites.calls["alice"].home.streams
        streams._streams.clear()
        for application in (one, other):
            assert (await application.get_key(0)).status == Status.PEER_NOT_YET_CONNECTED
            assert (await application.get_key(1)).status == Status.PEER_NOT_YET_CONNECTED
        assert (await one.open_connect(A, B, SHORT, stream_id)).status == Status.PEER_NOT_CONNECTED
        assert (await one.get_key(0)).status == Status.PEER_NOT_YET_CONNECTED  # before the other end is back
        assert (await other.open_connect(B, A, QOS, stream_id)).status == Status.SUCCESSFUL
        got = [(await application.get_key(0)).key for application in (one, other)]
        assert got[0] == got[1] != before


async def test_two_encryptors_of_one_site_have_a_stream_without_asking_the_other_site(pki: Pki) -> None:
    async with two_sites(pki) as sites:
        one, other = await sites.application(B, "bob"), await sites.application(C, "bob")
        opened = await one.open_connect(B, C)
        assert (await other.open_connect(C, B, QOS, opened.stream_id)).status == Status.SUCCESSFUL
        assert (await other.get_key(0)).key == (await one.get_key(0)).key != b""
        assert sites.lines["bob"].asked == []
        await one.close()
        await other.close()
        await quiet(list(sites.calls.values()))
        assert not any(sites.supply.owed.values())


@pytest.mark.parametrize("reason", [ShareUsedUp("full"), SaeLimitReached(A, 1, 60.0)])
async def test_a_full_share_of_the_slaves_store_and_the_limit_of_the_master_are_insufficient_key(
    pki: Pki, monkeypatch: pytest.MonkeyPatch, reason: StoreError
) -> None:
    async def full(*_: object) -> list[Key]:
        raise reason

    async with two_sites(pki) as sites:
        one, _ = await sites.pair(SHORT)
        monkeypatch.setattr(sites.supply, "allocate", full)
        assert (await one.get_key(0)).status == Status.INSUFFICIENT_KEY


async def test_an_answer_that_was_not_sent_is_given_to_the_same_encryptor_again(pki: Pki) -> None:
    async with two_sites(pki) as sites:
        one, other = await sites.pair()
        entry = sites.calls["alice"].delivery.directory.local[0]
        got = await sites.calls["alice"].get_key(entry, asked := get(one, 0))
        sites.calls["alice"].take_back(entry, asked, got)
        small = await one.get_key(0, metadata_bytes=3)
        assert small.status == Status.METADATA_SIZE_INSUFFICIENT
        again = await one.get_key(0)
        assert again.key == got.key == (await other.get_key(0)).key
        assert again.facts["qnode_simulated"] is True
        assert (await one.get_key(0)).status == Status.INSUFFICIENT_KEY


async def test_a_chunk_that_was_not_sent_is_never_given_in_a_later_stream_of_the_same_id(pki: Pki) -> None:
    async with two_sites(pki) as sites:
        one, other = await sites.pair()
        entries = {kme: local(sites, kme, sae) for kme, sae in (("alice", A), ("bob", B))}
        for kme, entry in entries.items():
            got = await sites.calls[kme].get_key(entry, asked := get(one, 0))
            sites.calls[kme].take_back(entry, asked, got)
        assert await one.close() == await other.close() == Status.SUCCESSFUL
        assert (await one.open_connect(A, B, SHORT, one.opened)).status == Status.PEER_NOT_CONNECTED
        sites.lines["bob"].lost = 1
        assert (await other.open_connect(B, A, QOS, one.opened)).status == Status.NO_QKD_CONNECTION
        assert (await other.get_key(0, stream_id=one.opened)).key == (await one.get_key(0)).key != got.key


async def test_an_application_that_opens_its_stream_again_for_each_chunk_never_stops_the_other(
    pki: Pki,
) -> None:
    async with two_sites(pki) as sites:
        one, other = await sites.pair(SHORT)
        for index in range(70):
            assert (await other.open_connect(B, A, SHORT, one.opened)).status == Status.SUCCESSFUL
            assert (await other.get_key(index)).key == (await one.get_key(index)).key != b""


async def test_a_pair_that_a_reload_has_removed_at_either_site_gets_no_more_chunks(pki: Pki) -> None:
    async with two_sites(pki) as sites:
        for kme, application in (("alice", 0), ("alice", 1), ("bob", 1)):
            ends = await sites.pair()
            assert (await ends[0].get_key(0)).status == Status.SUCCESSFUL
            entries = [
                msgspec.structs.replace(sae, peers=tuple({*sae.peers} - {A, B})) if sae.kme_id == kme else sae
                for sae in ENTRIES
            ]
            delivery = sites.calls[kme].delivery
            before = delivery.directory
            delivery.renew(SaeDirectory(kme, entries), max_key_count=1000)
            for index in (0, 1):
                told = await ends[application].get_key(index)
                assert told.status == Status.PEER_NOT_YET_CONNECTED, (kme, application, index)
            delivery.renew(before, max_key_count=1000)


async def test_a_client_that_goes_while_its_chunk_is_fetched_can_ask_for_it_again(
    pki: Pki, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with two_sites(pki) as sites:
        one, other = await sites.pair()
        fetch = sites.supply.fetch

        async def slow(*asked: Any) -> list[Key]:
            keys = await fetch(*asked)
            await trio.aclose_forcefully(other.stream)
            await trio.sleep(0.1)
            return keys

        monkeypatch.setattr(sites.supply, "fetch", slow)
        with pytest.raises((trio.ClosedResourceError, trio.BrokenResourceError)):
            await other.get_key(0)
        await trio.testing.wait_all_tasks_blocked(0.3)
        monkeypatch.setattr(sites.supply, "fetch", fetch)
        again = await sites.application(B, "bob")
        assert (await again.get_key(0, stream_id=one.opened)).key == (await one.get_key(0)).key != b""


def local(sites: TwoSites, kme: str, sae_id: str) -> SaeEntry:
    return next(one for one in sites.calls[kme].delivery.directory.local if one.sae_id == sae_id)


def get(application: Application, index: int) -> GetKey:
    return GetKey(key_stream_id=application.opened, index=index, metadata_bytes=1024)


async def test_no_key_is_used_up_for_a_client_that_has_gone(pki: Pki) -> None:
    async with two_sites(pki) as sites:
        one, other = await sites.pair()
        for kme, sae in (("alice", A), ("bob", B)):
            entry = local(sites, kme, sae)
            got = await sites.calls[kme].get_key(entry, get(one, 0), lambda: True)
            assert got.key == b""
        assert (await other.get_key(0)).key == (await one.get_key(0)).key != b""


async def test_source_and_destination_must_be_the_caller_and_an_encryptor_that_shares_keys_with_it(
    pki: Pki,
) -> None:
    async with two_sites(pki) as sites:
        application = await sites.application(A, "alice")
        for source, destination in (
            ("client", "server"),
            (A, A),
            (B, C),
            (A, D),
            (A, "qkd://[broken"),
            ("", ""),
            (f"qkd://{B}@{A}", B),
        ):
            refused = await application.open_connect(source, destination)
            assert refused.status == Status.NO_QKD_CONNECTION, (source, destination)
        # If a client/server scheme is defined, the standard swaps them.
        for source, destination in ((B, A), (A, "qkd//app2"), (f"qkd://x/{A}", f"qkd://{B}:8000")):
            assert (await application.open_connect(source, destination)).status == Status.SUCCESSFUL


async def test_an_encryptor_has_a_limited_number_of_streams(pki: Pki) -> None:
    async with two_sites(pki, most_per_sae=2) as sites:
        application = await sites.application(A, "alice")
        opened = [(await application.open_connect(A, B)).status for _ in range(3)]
        assert opened == [Status.SUCCESSFUL, Status.SUCCESSFUL, Status.NO_QKD_CONNECTION]


@pytest.mark.parametrize("name", ["nobody", "node.alice", B])
async def test_a_certificate_of_nobody_here_gets_no_stream(pki: Pki, name: str) -> None:
    async with two_sites(pki) as sites:
        application = await sites.application(name, "alice")
        assert (await application.open_connect(A, B)).status == Status.NO_QKD_CONNECTION
        assert (await application.get_key(0)).status == Status.PEER_NOT_YET_CONNECTED
        assert await application.close() == Status.PEER_NOT_YET_CONNECTED
        assert sites.calls["alice"].delivery.requests_unauthorised["etsi004"] == 3


async def test_malformed_calls_get_a_status_and_bytes_of_another_protocol_a_closed_connection(
    pki: Pki,
) -> None:
    async with two_sites(pki) as sites:
        application = await sites.application(A, "alice")
        told = await application.call(0x02, b"\xff\0no\0")
        assert struct.unpack("!I", told[:4])[0] == Status.NO_QKD_CONNECTION
        assert len(told) == 4 + 28 + 256 + 16
        told = await application.call(0x04, b"short")
        assert struct.unpack("!IIII", told) == (Status.PEER_NOT_YET_CONNECTED, 0, 0, 0)
        assert await application.call(0x08, b"") == struct.pack("!I", Status.PEER_NOT_YET_CONNECTED)
        assert (await application.open_connect(A, B)).status == Status.SUCCESSFUL
        for garbage in (b"GET / HTTP/1.1\r\n\r\n", message(b"\2\1\1", 0x04, b"")[:4] + b"\xff" * 4):
            stream = await sites.connect(A, "alice")
            await stream.send_all(garbage)
            assert await read_all(stream) == b""
        assert sites.servers["alice"].counters.requests_refused == 2
        half = await sites.connect(A, "alice")
        await half.send_all(message(b"\2\1\1", 0x04, bytes(24))[:20])
        await trio.aclose_forcefully(half)
        assert (await application.open_connect(A, B)).status == Status.SUCCESSFUL
        assert sites.servers["alice"].counters.connections_failed == 0


async def test_many_waiting_calls_of_one_encryptor_leave_room_for_those_of_others(pki: Pki) -> None:
    async with two_sites(pki, MemorySupply(chunks=0)) as sites:
        one, _ = await sites.pair(QOS)
        calls = sites.calls["alice"].peer_calls
        ask = AskChunk(sae_id=B, stream_id=one.opened, index=0, waited_ms=0)
        answers: list[Told] = []

        async def wait() -> None:
            answer = await calls.serve("bob", msgspec.msgpack.encode(ask))
            answers.append(msgspec.msgpack.decode(answer, type=Told))

        async with trio.open_nursery() as nursery:
            for _ in range(MOST_WAITING_PER_SAE):
                nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            assert answers == []
            await wait()
            assert answers == [Told(status=Status.INSUFFICIENT_KEY, final=False)]
        assert answers[1:] == [Told(status=Status.INSUFFICIENT_KEY)] * MOST_WAITING_PER_SAE
        await wait()
        assert answers[-1].final


async def test_a_peer_site_speaks_for_its_own_encryptors_only(pki: Pki) -> None:
    async with two_sites(pki) as sites:
        one, other = await sites.pair()
        await one.get_key(0)
        calls, home = sites.calls["alice"].peer_calls, sites.calls["alice"].home

        async def ask(asked: object) -> Told:
            return msgspec.msgpack.decode(await calls.serve("bob", msgspec.msgpack.encode(asked)), type=Told)

        for sae_id, peer in ((A, B), (D, B), (B, D), ("x", A), (B, "x"), (B, C)):
            refused = await ask(AskOpen(sae_id=sae_id, peer=peer, stream_id=None, qos=QOS))
            assert refused.status == Status.NO_QKD_CONNECTION, (sae_id, peer)
        assert len(list(home.streams)) == 1
        of_bobs = AskOpen(sae_id=C, peer=B, stream_id=None, qos=QOS)
        answer = await sites.calls["bob"].peer_calls.serve("alice", msgspec.msgpack.encode(of_bobs))
        assert msgspec.msgpack.decode(answer, type=Told).status == Status.NO_QKD_CONNECTION
        stolen = {"tag": "chunk", "sae_id": A, "stream_id": str(one.opened), "index": 1, "waited_ms": 0}
        told = msgspec.msgpack.decode(
            await calls.serve("bob", msgspec.msgpack.encode({**stolen, "type": "chunk"})), type=Told
        )
        assert not told.known
        key_ids = tuple(sites.supply.owed)
        await ask(AskDiscard(slave=B, master=A, key_ids=key_ids))
        assert all(sites.supply.owed.values())
        assert await calls.serve("bob", b"\xc1") == b""
        assert await calls.serve("bob", msgspec.msgpack.encode({"type": "open"})) == b""
        assert (await other.get_key(0)).status == Status.SUCCESSFUL
