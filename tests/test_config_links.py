"""The file of a site with several links: each mistake is one clear error, at a start and in a check."""

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from qnode.config import load_site
from qnode.errors import ConfigError
from qnode.loopback.prepare import LoopbackConfig, Staging, prepare
from qnode.node.check import check_site

Change = Callable[[list[dict[str, Any]]], object]


@pytest.fixture
def site_file(tmp_path: Path) -> Path:
    return prepare(tmp_path / "data", LoopbackConfig(), Staging(links=3)).site_files["alice"]


def altered(site_file: Path, change: Change) -> Path:
    raw = tomllib.loads(site_file.read_text())
    change(raw["link"])
    site_file.write_text(tomli_w.dumps(raw))
    return site_file


def rename(key: str, other: str) -> Change:
    return lambda links: links[1].update({other: links[1].pop(key)})


def same(key: str, *, of: str = "") -> Change:
    return lambda links: links[1]["store"].update({key: links[0]["store"][of or key]})


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda links: links.clear(), "[[link]]: expected one table or more"),
        (rename("peer", "pear"), "link 2: [[link]] unknown key pear, did you mean peer?"),
        (rename("store", "stores"), "link 2: [[link]] unknown key stores, did you mean store?"),
        (
            lambda links: links[1].update(role="bop"),
            "link 2: [[link]] role: expected alice or bob, got 'bop'",
        ),
        (
            lambda links: links[1].update(name="link"),
            "[[link]] name: link 2 has the name of link 1, link; give it its own",
        ),
        (
            lambda links: links[2]["peer"].update(address=links[1]["peer"]["address"]),
            "[[link]] peer.address: link 3 has the peer.address of link 2, ",
        ),
        (same("path"), "[[link]] store.path: link 2 has the store.path of link 1, "),
        (
            same("preshared_key"),
            "store.preshared_key: link 2 has the store.preshared_key of link 1, ",
        ),
        (same("anchor", of="path"), "[[link]] store.anchor: link 2 has the store.path of link 1, "),
        (
            lambda links: [link["store"].update(witness="/mnt/../mnt/witness") for link in links[1:]],
            "[[link]] store.witness: link 3 has the store.witness of link 2, /mnt/witness; give it its own",
        ),
    ],
)
def test_a_mistake_between_links_is_told_once_with_its_place(
    site_file: Path, change: Change, told: str
) -> None:
    altered(site_file, change)
    with pytest.raises(ConfigError) as refused:
        load_site(site_file)
    assert told in str(refused.value)
    (fault,) = check_site(site_file).faults
    assert told in fault


def test_a_link_without_a_peer_makes_no_encryptor_a_fault(site_file: Path) -> None:
    altered(site_file, lambda links: links[1].pop("peer"))
    assert check_site(site_file).faults == ["link 2: peer: is missing"]


def test_two_links_to_one_site_are_told_beside_what_follows_from_it(site_file: Path) -> None:
    altered(site_file, lambda links: links[1]["peer"].update(kme_id="kme-bob"))
    *encryptors, fault = check_site(site_file).faults
    assert fault == "[[link]] peer.kme_id: link 2 has the peer.kme_id of link 1, kme-bob; give it its own"
    assert all("expected 'kme-alice' or 'kme-bob' or 'kme-bob-3'" in one for one in encryptors)
