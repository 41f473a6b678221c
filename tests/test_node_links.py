"""Several links of one site in one process: keys, reloads and faults of one link concern no other."""

import tomllib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import msgspec
import pytest
import tomli_w
import trio
import trio.testing
from etsi014_support import MemorySupply
from keys_support import Site as StoreSite
from keys_support import preshared
from link_room import link_node
from test_node_hung_disk import HungDisk

import qnode.node.link_node
from qnode.config import SaeSection, SiteConfig, load, load_site
from qnode.delivery import ApiLimits, Delivery, Key, KeyRequest, SaeDirectory
from qnode.errors import KeyNotFound, LinkDown, StoreError
from qnode.link.hello import LocalEnd
from qnode.loopback.prepare import LoopbackConfig, Staging, prepare
from qnode.node.reload import Reload, read_again, read_trust
from qnode.node.site import SiteNode
from qnode.node.supply.site_supply import SiteKeySupply
from qnode.operate.events.log import EventLog

CONFIG = Path(__file__).parent.parent / "config"
CENTRE = "kme-centre"
SAES = (
    SaeSection(sae_id="a", kme_id=CENTRE, peers=("b", "c", "d", "x")),
    SaeSection(sae_id="b", kme_id="kme-b", peers=("a",)),
    SaeSection(sae_id="c", kme_id="kme-c", peers=("a",)),
    SaeSection(sae_id="d", kme_id=CENTRE, peers=("a",)),
    SaeSection(sae_id="x", kme_id="kme-x", peers=("a",)),
)


class Supplies:
    """A site with links to two others, each with a supply of its own."""

    def __init__(self) -> None:
        self.b, self.c = MemorySupply(), MemorySupply()
        self.directory = SaeDirectory(CENTRE, SAES, ("kme-b", "kme-c"))
        self.site = SiteKeySupply({"kme-b": self.b, "kme-c": self.c}, self.directory)


async def test_a_key_comes_from_the_link_to_the_site_of_its_slave() -> None:
    here = Supplies()
    (key,) = await here.site.allocate("a", ("c", "d"), 1, 256)
    assert key.key_id in here.c.issued
    assert (here.b.chunks, here.c.chunks) == (1000, 999)
    with pytest.raises(KeyNotFound):
        await here.b.fetch("c", "a", (key.key_id,))
    # The slave within the site gets it too, though the first link does not know it.
    assert await here.site.fetch("d", "a", (key.key_id,)) == [key]


async def test_no_link_gives_keys_for_a_site_to_which_none_leads() -> None:
    here = Supplies()
    only = SiteKeySupply({"kme-b": here.b}, here.directory)
    for site in (here.site, only):
        for call in (site.allocate("a", ("x",), 1, 256), site.stored_key_count("a", "x", 256)):
            with pytest.raises(LinkDown, match="no link leads to kme-x"):
                await call
    assert here.b.chunks == here.c.chunks == 1000


async def test_a_link_that_is_in_trouble_hides_no_key_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    here = Supplies()
    (key,) = await here.site.allocate("a", ("c", "d"), 1, 256)

    async def refuse(*_: object) -> list[Key]:
        raise StoreError("the disk is broken")

    monkeypatch.setattr(here.b, "fetch", refuse)
    assert await here.site.fetch("d", "a", (key.key_id,)) == [key]
    with pytest.raises(StoreError, match="the disk is broken"):  # the key may be there
        await here.site.fetch("d", "a", (UUID(int=7),))


async def test_calls_that_wait_for_one_link_hold_up_none_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    here = Supplies()
    delivery = Delivery(here.directory, here.site, limits=ApiLimits(requests_per_sae=2))
    (caller,) = (sae for sae in delivery.directory.local if sae.sae_id == "a")

    async def hang(*_: object) -> list[Key]:
        await trio.sleep_forever()

    monkeypatch.setattr(here.b, "allocate", hang)
    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(delivery.allocate, caller, "b", KeyRequest())
        await trio.testing.wait_all_tasks_blocked()
        with trio.fail_after(1.0):
            assert len((await delivery.allocate(caller, "c", KeyRequest())).keys) == 1
        nursery.cancel_scope.cancel()


async def test_an_encryptor_at_a_site_without_a_link_is_unknown(tmp_path: Path) -> None:
    config = load(CONFIG / "alice.toml", SiteConfig)
    sae = SaeSection(sae_id="far", kme_id="kme-far", peers=())
    etsi014 = msgspec.structs.replace(config.etsi014, sae=(*config.etsi014.sae, sae))
    with StoreSite(tmp_path / "a", "alice").open() as store:
        node = SiteNode([msgspec.structs.replace(config, etsi014=etsi014)], [store], EventLog())
        node._delivery = Delivery(node._supply.directory, node._supply)
        (own, *_), theirs = node._delivery.directory.local, config.etsi014.sae[1].sae_id
        assert not node._peer_shares(own.sae_id, "far")
        assert node._peer_shares(own.sae_id, theirs)


# Reload.


class Files:
    """The file of a site with three links, and what a running site has read of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = prepare(folder, LoopbackConfig(), Staging(links=3)).site_files["alice"]
        self.in_force = load_site(self.path)
        self.trust = read_trust(self.in_force)

    def reload(self, change: Callable[[dict[str, Any]], None]) -> Reload:
        raw = tomllib.loads(self.path.read_text())
        change(raw)
        self.path.write_text(tomli_w.dumps(raw))
        return read_again(self.path, self.in_force, self.trust)


def test_encryptors_wait_for_the_restart_if_the_sites_change_together_with_the_links(tmp_path: Path) -> None:
    files = Files(tmp_path)

    def change(raw: dict[str, Any]) -> None:
        raw["node"]["kme_id"] = "kme-renamed"
        del raw["link"][2]
        raw["etsi014"]["stock_per_pair"] = 7
        for sae in raw["etsi014"]["sae"]:
            sae["kme_id"] = sae["kme_id"].replace("kme-alice", "kme-renamed")

    found = files.reload(change)
    assert found.applied == ["etsi014.stock_per_pair"]
    assert found.waiting == ["node.kme_id", "etsi014.sae", "link"]
    assert [sae.sae_id for sae in found.directory.local] == [
        sae.sae_id for sae in files.in_force[0].etsi014.sae if sae.kme_id == "kme-alice"
    ]


def test_links_in_another_order_leave_encryptors_to_the_reload(tmp_path: Path) -> None:
    found = Files(tmp_path).reload(lambda raw: (raw["link"].reverse(), raw["etsi014"]["sae"].reverse())[0])
    assert (found.applied, found.waiting) == (["etsi014.sae"], ["link"])


def test_a_reload_gives_the_store_its_new_lifetime_of_keys(tmp_path: Path) -> None:
    config = load(CONFIG / "bob.toml", SiteConfig)
    with StoreSite(tmp_path / "b", "bob").open() as store:
        node = link_node(config, store)
        shorter = msgspec.structs.replace(config.store, key_lifetime_s=60.0, most_chunks=99)
        contexts: Any = None
        node.renew(msgspec.structs.replace(config, store=shorter), node.saes.directory, contexts)
        assert (node.store.key_lifetime_s, node.store.most_chunks) == (60.0, 99)


def test_the_certificates_of_each_link_are_told_apart(tmp_path: Path) -> None:
    files = Files(tmp_path)
    names = {one.file for one in files.trust.validities if one.file.endswith("peer.tls.certificate")}
    assert names == {f"{name}: peer.tls.certificate" for name in ("link", "link-2", "link-3")}


# Faults of one link.


async def test_a_hung_disk_takes_no_thread_that_another_link_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends: list[LocalEnd] = []

    async def keep(local: LocalEnd, *_: object, **_options: object) -> None:
        ends.append(local)

    monkeypatch.setattr(qnode.node.link_node, "connect_to_peer", keep)
    with StoreSite(tmp_path / "b", "bob").open() as store:
        store.load_preshared(preshared(64))
        await link_node(load(CONFIG / "bob.toml", SiteConfig), store)._keep_session()
        shared = trio.to_thread.current_default_thread_limiter()
        async with trio.open_nursery() as nursery:
            with HungDisk(store):
                for _ in range(50):  # hellos
                    nursery.start_soon(ends[0].run_sync, ends[0].standing)
                await trio.testing.wait_all_tasks_blocked(0.05)
                assert shared.borrowed_tokens == 0


async def test_no_request_uses_a_session_that_ended_while_its_start_was_settled(tmp_path: Path) -> None:
    with StoreSite(tmp_path, "bob").open() as store:
        node = link_node(load(CONFIG / "bob.toml", SiteConfig), store)
        router: Any = SimpleNamespace(
            settled=trio.Event(),
            context=SimpleNamespace(session=SimpleNamespace(knows=lambda _kind: False)),
            keys=SimpleNamespace(accepted_chunks=0, assignments=SimpleNamespace(stalled=False)),
        )
        async with trio.open_nursery() as session:
            session.start_soon(node._serve_requests, router, session)
            await trio.testing.wait_all_tasks_blocked()
            router.settled.set()
            session.cancel_scope.cancel()  # the task is on its way already
        assert not node.connected
