"""The limit of an encryptor: how many keys it gets at once and in time, whatever the interface."""

import pytest
import trio
from etsi014_support import MemorySupply

from qnode.config import SaeSection
from qnode.delivery import Delivery, Key, KeyRequest, Refusal, SaeDirectory, SaeLimitReached
from qnode.errors import LinkDown
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
    assert 0.0 < await Site().wait_s(1, 65_536) <= MINUTE_S  # never possible


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
