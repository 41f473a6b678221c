"""The limit of an encryptor: how many keys it gets at once and in time, whatever the interface."""

import math
from typing import Any

import pytest
import trio
from etsi014_support import MemorySupply

from qnode.config import SaeSection
from qnode.delivery import Delivery, Key, KeyRequest, Refusal, SaeDirectory
from qnode.errors import LinkDown, SaeLimitReached
from qnode.node.supply.site_supply import SiteKeySupply

MINUTE_S = 60.0


def directory(keys_per_minute: int | None) -> SaeDirectory:
    saes = (
        SaeSection(sae_id="a", kme_id="here", peers=("b",), keys_per_minute=keys_per_minute),
        SaeSection(sae_id="other", kme_id="here", peers=("b",)),
        SaeSection(sae_id="b", kme_id="there", peers=("a", "other"), keys_per_minute=1),
    )
    return SaeDirectory("here", saes, ("there",))


class Site:
    def __init__(self, keys_per_minute: int | None = 10) -> None:
        self.store = MemorySupply(chunks=100_000)
        self.supply = SiteKeySupply({"there": self.store}, directory(keys_per_minute))

    async def take(self, number: int = 1, size_bits: int = 256, sae_id: str = "a") -> None:
        keys = await self.supply.allocate(sae_id, ("b",), number, size_bits)
        assert len(keys) == number

    async def wait_s(self, number: int = 1, size_bits: int = 256) -> float:
        before = self.store.chunks
        with pytest.raises(SaeLimitReached) as reached:
            await self.take(number, size_bits)
        assert self.store.chunks == before
        return reached.value.wait_s


async def test_as_many_keys_as_the_limit_come_at_once_and_as_many_in_each_minute_after(
    autojump_clock: trio.abc.Clock,
) -> None:
    site = Site()
    await site.take(10)
    assert await site.wait_s() == pytest.approx(6.0)
    assert await site.wait_s(10) == pytest.approx(MINUTE_S)
    await trio.sleep(6.1)
    await site.take()
    assert await site.wait_s() > 5.0
    await trio.sleep(MINUTE_S)
    taken = 0
    for _ in range(10 * 60):  # for ten minutes, a request each second
        try:
            await site.take()
            taken += 1
        except SaeLimitReached:
            pass
        await trio.sleep(1.0)
    assert 100 <= taken <= 110
    await trio.sleep(1000 * MINUTE_S)  # what was not taken is not saved up
    await site.take(10)
    await site.wait_s()


async def test_a_long_key_counts_as_one_for_each_256_bits_begun(autojump_clock: trio.abc.Clock) -> None:
    site = Site()
    await site.take(1, 64)
    await site.take(2, 257)
    await site.take(1, 1280)
    await site.wait_s()


async def test_a_request_for_more_than_the_limit_is_refused_for_good(autojump_clock: trio.abc.Clock) -> None:
    for number, size_bits in ((11, 256), (1, 65_536), (6, 264)):
        site = Site()
        assert await site.wait_s(number, size_bits) == math.inf
        delivery = Delivery(site.supply.directory, site.supply)
        caller = next(sae for sae in delivery.directory.local if sae.sae_id == "a")
        with pytest.raises(Refusal) as refusal:
            await delivery.allocate(caller, "b", KeyRequest(number=number, size_bits=size_bits))
        assert (refusal.value.status, refusal.value.retry_after_s) == (400, None)
        assert refusal.value.message == (
            "this SAE may get 10 keys of 256 bits a minute, and this request alone is for more; "
            "ask for fewer or shorter keys"
        )
        await site.take(10)


async def test_only_the_limited_encryptor_waits_and_only_as_master_at_its_site(
    autojump_clock: trio.abc.Clock,
) -> None:
    site = Site(1)
    (key,) = await site.supply.allocate("a", ("b",), 1, 256)
    await site.wait_s()
    await site.take(500, sae_id="other")
    assert await site.supply.fetch("b", "a", (key.key_id,)) == [key]


async def test_what_the_store_did_not_give_counts_for_nothing(autojump_clock: trio.abc.Clock) -> None:
    site = Site()
    site.store.link_up = False
    for _ in range(50):
        with pytest.raises(LinkDown):
            await site.take(10)
    site.store.link_up = True
    await site.take(10)
    await site.wait_s()


async def test_a_request_that_was_cancelled_counts_for_nothing(
    autojump_clock: trio.abc.Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = Site()

    async def hang(*_asked: object) -> list[Key]:
        return await trio.sleep_forever()

    with monkeypatch.context() as patch, trio.move_on_after(1):
        patch.setattr(site.store, "allocate", hang)
        await site.take(10)
    await site.take(10)


async def test_a_call_that_fails_late_leaves_no_more_than_if_it_had_not_been_made(
    autojump_clock: trio.abc.Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = Site()
    give = site.store.allocate

    async def slow(*asked: Any) -> list[Key]:
        if asked[2] == 5:
            await trio.sleep(50.0)
            raise LinkDown("the session ended")
        return await give(*asked)

    monkeypatch.setattr(site.store, "allocate", slow)
    async with trio.open_nursery() as nursery:

        async def fails() -> None:
            with pytest.raises(LinkDown):
                await site.take(5)

        nursery.start_soon(fails)
        await trio.sleep(40.0)
        assert await site.wait_s(6) == pytest.approx(6.0)  # the open call may still succeed
        await site.take(4)
    # Ten seconds after the four keys: less than two of them are paid.
    assert await site.wait_s(8) == pytest.approx(2.0)
    await site.take(7)


async def test_a_reload_changes_the_limit_for_the_next_request(autojump_clock: trio.abc.Clock) -> None:
    site = Site()
    await site.take(10)
    site.supply.directory = directory(None)
    await site.take(1000)
    site.supply.directory = directory(20)
    assert await site.wait_s() == pytest.approx(3.0)


async def test_every_interface_says_503_and_when_to_come_again(autojump_clock: trio.abc.Clock) -> None:
    site = Site(2)
    delivery = Delivery(site.supply.directory, site.supply)
    caller = next(sae for sae in delivery.directory.local if sae.sae_id == "a")
    await delivery.allocate(caller, "b", KeyRequest(number=2))
    with pytest.raises(Refusal) as refusal:
        await delivery.allocate(caller, "b", KeyRequest())
    assert (refusal.value.status, refusal.value.retry_after_s) == (503, 30)
    assert refusal.value.message == "this SAE may get 2 keys of 256 bits a minute"
    assert not refusal.value.internal
