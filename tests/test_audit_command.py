"""`qnodectl audit` on files and on a control socket: exit codes, what is printed, hostile text."""

import csv
import json
import os
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import trio
from click.testing import CliRunner, Result
from keys_support import Site, preshared
from operate_support import well_status

from qnode.audit import ledger
from qnode.audit.entries import KeyDelivered, OperatorChanged
from qnode.audit.export_file import ExportSource
from qnode.audit.verify import verify
from qnode.cli.control import qnodectl
from qnode.config import SaeSection
from qnode.keys import SqliteKeyStore
from qnode.node.reload import audited
from qnode.node.supply.async_store import AsyncStore
from qnode.operate.control.answers import Answers, LinkAnswers
from qnode.operate.control.client import NoAnswer, Request, Restored
from qnode.operate.control.server import serve_control

HOSTILE = '=cmd|"\x1b[2J\u202e\x9b",\n'


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path / "alice", "alice")


def call(*words: str) -> Result:
    result = CliRunner().invoke(qnodectl, [*words], standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    return result


def lived(store: SqliteKeyStore) -> None:
    for sae in ("sae-1", "sae-2", HOSTILE):
        with store._database.change(anchored=True) as tx:
            key_ids = bytes(range(32))
            ledger.append(tx.connection, KeyDelivered, "skip", "slave", sae, ("peer",), 256, key_ids)
    store.record_changes(("sae.removed", "sae-1", ""))


def test_a_stopped_nodes_audit_verifies_with_its_head_and_a_kept_one(site: Site) -> None:
    with site.open() as store:
        lived(store)
        head = str(store.audit_standing().head)
    place = ("audit", "verify", "--from", str(site.path))
    result = call(*place, "--anchor", str(site.anchor), "--expect", head)
    assert result.return_value == 0
    assert "nothing is missing or changed" in result.output
    assert f"head {head}" in result.output
    without = call(*place)
    assert without.return_value == 0
    assert "no anchor" in without.output
    wrong = head[:-2] + ("00" if not head.endswith("00") else "01")
    assert call(*place, "--expect", wrong).return_value == 1


def test_a_flipped_bit_is_told_with_file_and_entry(site: Site) -> None:
    with site.open() as store:
        lived(store)
    data = bytearray(site.path.read_bytes())
    data[data.index(b"sae-2")] ^= 1
    site.path.write_bytes(data)
    result = call("audit", "verify", "--from", str(site.path), "--anchor", str(site.anchor))
    assert result.return_value == 1
    (line,) = [line for line in result.output.splitlines() if line.startswith(str(site.path))]
    assert "entry 3: its content was changed" in line


def test_an_export_selects_by_encryptor_and_time_and_shows_hostile_text_as_text(site: Site) -> None:
    with site.open() as store:
        lived(store)
    place = ("audit", "export", "--from", str(site.path))
    of_one = [json.loads(line) for line in call(*place, "--sae", "sae-1").output.splitlines()]
    assert [one["event"] for one in of_one] == ["key.delivered", "operator.changed"]
    assert of_one[0]["key_ids"] == [
        "00010203-0405-0607-0809-0a0b0c0d0e0f",
        "10111213-1415-1617-1819-1a1b1c1d1e1f",
    ]
    assert len(call(*place, "--sae", "peer").output.splitlines()) == 3  # of whom it has keys
    assert call(*place, "--until", "2020-01-01").output == ""
    assert len(call(*place, "--since", "2020-01-01").output.splitlines()) == 5
    everything = call(*place).output
    assert all(c.isprintable() for c in everything.replace("\n", ""))
    assert json.loads(everything.splitlines()[3])["sae"] == HOSTILE
    table = call(*place, "--csv").output
    assert all(c.isprintable() for c in table.replace("\n", ""))
    (row,) = [row for row in csv.DictReader(table.splitlines()) if row["sae"].startswith("'=")]
    assert row["peers"] == "peer"


@pytest.fixture
def export(site: Site, tmp_path: Path) -> Path:
    """A whole export of seven entries in two chains, the second without its anchor."""
    with site.open() as store:
        lived(store)
        head = store.audit_standing().head
        with store._database.change(anchored=True) as tx:
            ledger.begin(tx.connection, "again", head)
            ledger.append(tx.connection, OperatorChanged, "sae.added", HOSTILE, "")
    path = tmp_path / "audit.jsonl"
    path.write_text(call("audit", "export", "--from", str(site.path)).output)
    return path


def found_in(export: Path, lines: list[str], *words: str) -> list[str]:
    """Return what the verification of an export with these lines finds."""
    export.write_text("".join(lines))
    result = call("audit", "verify", "--from", str(export), *words)
    found = [line for line in result.output.splitlines() if line.startswith(f"{export}: ")]
    assert result.return_value == bool(found)
    return found


def test_a_whole_export_verifies_as_the_audit_itself_and_can_be_exported_again(
    site: Site, export: Path
) -> None:
    lines = export.read_text().splitlines(keepends=True)
    place = ("audit", "verify", "--anchor", str(site.anchor), "--from")
    of_store, of_export = (call(*place, str(path)).output.splitlines() for path in (site.path, export))
    assert [line for line in of_export if "lost or changed before" not in line] == [
        line for line in of_store if "lost or changed before" not in line
    ]
    assert "7 entries in 2 chains" in of_export[-2]
    assert call("audit", "export", "--from", str(export)).output == "".join(lines)


def test_a_changed_removed_added_or_torn_line_of_an_export_is_found_and_located(
    site: Site, export: Path
) -> None:
    sound = export.read_text().splitlines(keepends=True)
    known = found_in(export, sound)  # the second chain says what the first has lost
    assert len(known) == 1
    swapped = [sound[0], sound[2], sound[1], *sound[3:]]
    assert any("entry 2: its number was changed, or its order" in one for one in found_in(export, swapped))
    other = [*sound[:2], sound[2].replace("sae-2", "sae-3"), *sound[3:]]
    assert any("entry 3: its content was changed" in one for one in found_in(export, other))
    assert any("entries 3 to 3 are missing" in one for one in found_in(export, sound[:2] + sound[3:]))
    assert any("entries up to 1 are gone" in one for one in found_in(export, sound[1:]))
    assert any("entries up to 3 are gone" in one for one in found_in(export, [*sound, sound[3]]))
    assert any("chain is gone" in one for one in found_in(export, sound[5:]))
    for added in (
        "{}\n",
        sound[2].replace("{", '{"note":"x",'),
        sound[2].replace('"at"', '"sae":"y","at"'),
        "\n",
    ):
        lines = [*sound[:2], added, *sound[2:]]
        assert any("after entry 2: the next line is not one" in one for one in found_in(export, lines)), added
    assert any("torn" in one for one in found_in(export, [*sound[:-1], sound[-1][:-1]]))
    shorter = found_in(export, sound[:-1], "--anchor", str(site.anchor))
    assert any("entries 2 to 2 are missing at the end" in one for one in shorter)
    assert found_in(export, sound[:-1]) == known  # of an export alone the end cannot be known


def test_every_byte_of_an_export_matters(export: Path) -> None:
    sound = export.read_bytes()
    known = verify(ExportSource(export, None)).findings
    assert len(known) == 1
    rng = random.Random(7)
    for at in rng.sample(range(12, len(sound)), 150):
        spoilt = bytearray(sound)
        spoilt[at] ^= 1 << rng.randrange(8)
        export.write_bytes(spoilt)
        found = verify(ExportSource(export, None)).findings
        assert found not in ([], known), at


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("verify", "--expect", "x"), "expected CHAIN:NUMBER:HASH"),
        (("export", "--since", "yesterday"), "expected a time like"),
        (("export", "--json", "--csv"), "not both"),
        (("verify", "--anchor", "a"), "--anchor is for --from"),
        (("verify", "--from", "no-such-file"), "there is no such file"),
    ],
)
def test_bad_words_get_one_clear_error(words: tuple[str, ...], told: str) -> None:
    with pytest.raises(Exception, match=told):
        call("audit", *words)


def test_a_file_that_is_no_store_and_one_that_is_open_are_refused(site: Site, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(b"text" * 2000)
    with pytest.raises(NoAnswer, match="not a database"):
        call("audit", "verify", "--from", str(other))
    with pytest.raises(NoAnswer, match="not an anchor"):
        call("audit", "verify", "--from", str(other), "--anchor", str(other))
    with site.open() as store:
        lived(store)
        with pytest.raises(NoAnswer, match="without --from"):
            call("audit", "verify", "--from", str(site.path))


async def test_a_running_node_is_verified_through_its_socket_in_pages(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qnode.node.supply.async_store.AUDIT_PAGE_BYTES", 200)
    path = tmp_path / "control.sock"
    results: list[Any] = []

    def ask() -> None:
        for words in (("verify",), ("export",)):
            results.append(call("--socket", str(path), "audit", *words))

    with site.open() as store:
        lived(store)
        link = LinkAnswers(lambda count, after: [], audit=AsyncStore(store, 1000).audit_page)
        async with trio.open_nursery() as nursery:
            await nursery.start(serve_control, path, Answers(well_status, lambda count: [], {"one": link}))
            await trio.to_thread.run_sync(ask)
            nursery.cancel_scope.cancel()
    verified, exported = results
    assert verified.return_value == 0
    assert "5 entries in 1 chains: nothing is missing or changed" in verified.output
    assert len(exported.output.splitlines()) == 5


def test_a_reload_tells_the_audit_encryptors_and_settings_that_it_changes() -> None:
    one = SaeSection(sae_id="one", kme_id="k", peers=("far",))
    two = SaeSection(sae_id="two", kme_id="k", peers=("far",))
    moved = SaeSection(sae_id="two", kme_id="k", peers=("far", "farther"))

    def site(*saes: SaeSection) -> Any:
        return SimpleNamespace(etsi014=SimpleNamespace(sae=saes))

    found: Any = SimpleNamespace(configs=[site(moved)], applied=["etsi014.sae", "operate.log_level"])
    assert audited(site(one, two), found) == [
        ("sae.removed", "one", ""),
        ("sae.changed", "two", "at k, shares keys with far, farther"),
        ("settings.changed", "operate.log_level", ""),
    ]


async def test_who_restored_a_site_is_in_its_audit(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, secret = tmp_path / "control.sock", tmp_path / "preshared.key"
    secret.write_bytes(preshared(30))
    secret.chmod(0o600)

    def ask() -> None:
        monkeypatch.setenv("SUDO_USER", "\udcff" + "a" * 100)
        call("--socket", str(path), "restore", "--yes", str(secret))

    with site.open() as store:
        store.load_preshared(preshared(20))
        own = AsyncStore(store, 1000)

        async def restore(preshared_key: bytes) -> Restored:
            await own.load_preshared(preshared_key)
            return Restored(void_chunks=0, pads_send=0, pads_receive=0)

        link = LinkAnswers(lambda count, after: [], restore=restore)
        async with trio.open_nursery() as nursery:
            await nursery.start(serve_control, path, Answers(well_status, lambda count: [], {"one": link}))
            await trio.to_thread.run_sync(ask)
            nursery.cancel_scope.cancel()
    lines = call("audit", "export", "--from", str(site.path)).output.splitlines()
    (entry,) = [one for line in lines if (one := json.loads(line))["event"] == "operator.changed"]
    by = f"by user {os.geteuid()}, SUDO_USER \\udcff{'a' * 58}"
    assert (entry["what"], entry["details"]) == ("restore", f"a new pre-shared key, {by}")


def test_a_request_without_options_is_understood_by_an_older_node() -> None:
    assert msgspec.json.encode(Request(request="status")) == b'{"request":"status"}'


@pytest.mark.parametrize("place", [{"chain": 2**70}, {"after": 2**70}, {"chain": -1}])
def test_a_request_for_an_entry_that_no_database_can_have_is_no_request(place: dict[str, int]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(json.dumps({"request": "audit", **place}), type=Request)
