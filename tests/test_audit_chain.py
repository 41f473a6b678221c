"""The audit: every history verifies, and any change of it is found and located."""

import copy
import hashlib
import random
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keys_support import Site, add_block, assigned, make_block, preshared

from qnode.audit import ledger
from qnode.audit.door import through
from qnode.audit.entries import Chain, Head, KeyDelivered, OperatorChanged, Row, decode
from qnode.audit.file import FileSource
from qnode.audit.verify import AuditUnreadable, verify
from qnode.choices import Door
from qnode.errors import StoreError
from qnode.keys import SqliteKeyStore

SCHEMA = Path(ledger.__file__).parent.parent / "keys" / "schema_v2.sql"
DAY_US = 86_400_000_000


class Made:
    """An audit in memory."""

    name = "made"

    def __init__(self, chains: list[Chain], entries: dict[int, list[Row]], anchored: Head | None) -> None:
        self._chains, self.entries, self.anchored = chains, entries, anchored

    def chains(self) -> list[Chain]:
        return self._chains

    def rows(self, chain: Chain) -> Iterator[Row]:
        return iter(self.entries[chain.chain])


def empty_audit() -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    for statement in SCHEMA.read_text().split(";\n"):
        if "audit_" in statement:
            connection.execute(statement)
    return connection


def made(connection: sqlite3.Connection) -> Made:
    chains = ledger.chains(connection)
    entries = {one.chain: list(ledger.rows(connection, one.chain, 0)) for one in chains}
    return Made(chains, entries, ledger.head(connection))


def deliver(connection: sqlite3.Connection, n_keys: int = 1) -> None:
    ledger.append(connection, KeyDelivered, "etsi014", "master", "a", ("b",), 256, bytes(16 * n_keys))


step = st.one_of(
    st.tuples(st.just("deliver"), st.integers(1, 5)),
    st.tuples(st.just("change"), st.text(max_size=20)),
    st.tuples(st.just("begin"), st.just(0)),
    st.tuples(st.just("prune"), st.integers(1, 40)),
)


def lived(steps: Sequence[tuple[str, object]], monkeypatch: pytest.MonkeyPatch) -> Made:
    """Return the audit of a history in which an hour goes by with each step."""
    now_us = 0

    def time_ns() -> int:
        return now_us * 1000

    monkeypatch.setattr("qnode.audit.ledger.time.time_ns", time_ns)
    connection = empty_audit()
    ledger.begin(connection, "a new store")
    for kind, value in steps:
        now_us += 3600 * 10**6
        if kind == "deliver":
            deliver(connection, int(str(value)))
        elif kind == "change":
            ledger.append(connection, OperatorChanged, "sae.added", str(value), "")
        elif kind == "begin":
            ledger.begin(connection, "again")
        else:
            while ledger.prune(connection, now_us - int(str(value)) * 3600 * 10**6):
                pass
    return made(connection)


@settings(max_examples=40, deadline=None)
@given(st.lists(step, max_size=60))
def test_every_history_verifies_and_no_single_change_of_it_does(steps: list[tuple[str, object]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        audit = lived(steps, patch)
    result = verify(audit)
    assert result.findings == []
    assert result.entries == sum(len(rows) for rows in audit.entries.values())
    rng = random.Random(len(steps))
    chain = rng.choice(audit.chains())
    index = rng.randrange(len(audit.entries[chain.chain]))
    for change in (flip_content, flip_hash, remove, swap, double, truncate):
        spoilt = Made(audit.chains(), copy.deepcopy(audit.entries), audit.anchored)
        if change(spoilt.entries[chain.chain], index, rng):
            assert verify(spoilt).findings, change.__name__
    if not chain.pruned_number and chain.head != audit.anchored:
        rest = [one for one in audit.chains() if one is not chain]
        assert verify(Made(rest, audit.entries, audit.anchored)).findings, "a chain is gone"


def flip(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(8 * len(data))
    changed = bytearray(data)
    changed[at // 8] ^= 1 << at % 8
    return bytes(changed)


def flip_content(rows: list[Row], i: int, rng: random.Random) -> bool:
    rows[i] = rows[i]._replace(content=flip(rows[i].content, rng))
    return True


def flip_hash(rows: list[Row], i: int, rng: random.Random) -> bool:
    rows[i] = rows[i]._replace(hash=flip(rows[i].hash, rng))
    return True


def remove(rows: list[Row], i: int, rng: random.Random) -> bool:
    del rows[i]
    return True


def swap(rows: list[Row], i: int, rng: random.Random) -> bool:
    if i == 0:
        return False
    rows[i], rows[i - 1] = (
        rows[i - 1]._replace(number=rows[i].number),
        rows[i]._replace(number=rows[i - 1].number),
    )
    return True


def double(rows: list[Row], i: int, rng: random.Random) -> bool:
    rows.insert(i, rows[i])
    return True


def truncate(rows: list[Row], i: int, rng: random.Random) -> bool:
    del rows[i:]
    return True


def long_audit() -> Made:
    connection = empty_audit()
    ledger.begin(connection, "a new store")
    for _ in range(50):
        deliver(connection)
    return made(connection)


def test_a_flipped_bit_of_an_entry_and_of_a_hash_is_located() -> None:
    for change, told in ((flip_content, "its content was changed"), (flip_hash, "its hash was changed")):
        audit = long_audit()
        rows = audit.entries[1]
        change(rows, 20, random.Random(told))
        (finding,) = verify(audit).findings
        assert finding.where.endswith("entry 21")
        assert told in finding.what


def test_an_audit_that_was_written_anew_from_an_entry_on_is_found_by_its_anchor_and_by_a_kept_head() -> None:
    audit = long_audit()
    forged = long_audit()
    chain = audit.chains()[0]
    forged.entries[1] = audit.entries[1][:20]
    previous = audit.entries[1][19].hash
    for row in audit.entries[1][20:]:
        content = row.content.replace(b"\xa1a", b"\xa1x")
        previous = hashlib.sha256(previous + content).digest()
        forged.entries[1].append(Row(row.number, content, previous))
    whole = Chain(1, chain.chain_id, 0, chain.pruned_hash, chain.last_number, previous)
    by_nobody = Made([whole], forged.entries, None)
    assert verify(by_nobody).findings == []
    by_anchor = verify(Made([whole], forged.entries, audit.anchored))
    by_keeper = verify(by_nobody, [chain.head])
    for result, who in ((by_anchor, "the anchor"), (by_keeper, "the head that was kept")):
        (finding,) = result.findings
        assert who in finding.what


def test_a_head_is_read_as_it_is_written() -> None:
    head = long_audit().chains()[0].head
    assert Head.parse(str(head)) == head
    with pytest.raises(ValueError, match="hex"):
        Head.parse("0:1:22")


def test_old_entries_are_deleted_with_an_entry_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    audit = lived([("deliver", 1)] * 100 + [("prune", 10)], monkeypatch)
    assert len(audit.entries[1]) == 11
    assert verify(audit).findings == []
    audit.entries[1].pop()  # the entry that says so
    assert verify(audit).findings


# In the store


def fill(alice: SqliteKeyStore, bob: SqliteKeyStore) -> None:
    for store in (alice, bob):
        store.load_preshared(preshared(20))
    add_block(make_block(1, 40), alice, bob)


def of_site(site: Site) -> FileSource:
    return FileSource(site.path, site.anchor)


def deliveries(source: FileSource) -> list[KeyDelivered]:
    entries = [decode(row.content) for chain in source.chains() for row in source.rows(chain)]
    return [entry for entry in entries if isinstance(entry, KeyDelivered)]


@pytest.fixture
def sites(tmp_path: Path) -> tuple[Site, Site]:
    return Site(tmp_path / "alice", "alice"), Site(tmp_path / "bob", "bob")


def test_what_both_sites_delivered_is_in_their_audits(sites: tuple[Site, Site]) -> None:
    with sites[0].open() as alice, sites[1].open() as bob:
        fill(alice, bob)
        with through(Door.SKIP):
            keys = alice.deliver_to_master(assigned(alice, bob, 3))
        with through(Door.ETSI014):
            bob.deliver_to_slave("s", "m", [key.key_id for key in keys])
        with pytest.raises(StoreError):
            bob.deliver_to_slave("s", "m", [keys[0].key_id])
        with pytest.raises(AuditUnreadable, match="has this store open"):
            of_site(sites[0])
    for site, side, door, names in (
        (sites[0], "master", "skip", ("m", ("s",))),
        (sites[1], "slave", "etsi014", ("s", ("m",))),
    ):
        with of_site(site) as source:
            assert verify(source).findings == []
            (entry,) = deliveries(source)
            assert (entry.side, entry.door, (entry.sae, entry.peers)) == (side, door, names)
            ids = [UUID(bytes=entry.key_ids[i : i + 16]) for i in range(0, len(entry.key_ids), 16)]
            assert ids == [key.key_id for key in keys]
            content = site.path.read_bytes()
            assert not any(key.key in content for key in keys)


def test_keys_that_were_taken_from_stock_are_in_the_audit(sites: tuple[Site, Site]) -> None:
    with sites[0].open() as alice, sites[1].open() as bob:
        fill(alice, bob)
        stock = alice.assign("m", ["s"], 3, 256, 0.0, stock=True)
        bob.accept_assignment(stock, 0.0)
        alice.acknowledge(stock.assignment_id)
        keys = alice.take_from_stock("m", "s", 2)
    with of_site(sites[0]) as source:
        (entry,) = deliveries(source)
    assert (entry.side, entry.sae, entry.peers) == ("master", "m", ("s",))
    assert entry.key_ids == b"".join(key.key_id.bytes for key in keys)


def test_a_database_put_back_lacks_entries_and_its_audit_says_so(
    sites: tuple[Site, Site], tmp_path: Path
) -> None:
    with sites[0].open() as alice, sites[1].open() as bob:
        fill(alice, bob)
    backup = sites[0].copy_to(tmp_path / "backup")
    with sites[0].open() as alice, sites[1].open() as bob:
        alice.deliver_to_master(assigned(alice, bob, 1))
    sites[0].restore_database_from(backup)
    with of_site(sites[0]) as source:
        assert any("missing at the end; the anchor knows" in one.what for one in verify(source).findings)
    with sites[0].open() as alice:
        assert "are missing" in alice.audit_standing().damage
    with of_site(sites[0]) as source:
        (finding,) = verify(source).findings
        assert "was lost or changed" in finding.what


def test_an_audit_cut_or_changed_while_the_node_was_stopped_is_noted_for_ever(
    sites: tuple[Site, Site],
) -> None:
    with sites[0].open() as alice, sites[1].open() as bob:
        fill(alice, bob)
        alice.record_changes(("sae.added", "x", ""))
        alice.record_changes(("sae.added", "y", ""))
    connection = sqlite3.connect(sites[0].path)
    connection.execute("DELETE FROM audit_entry WHERE number = 3")
    connection.execute(
        "UPDATE audit_chain SET last_number = 2, last_hash = (SELECT hash FROM audit_entry WHERE number = 2)"
    )
    connection.commit()
    connection.close()
    with of_site(sites[0]) as source:
        assert [one.what for one in verify(source).findings] == [
            "entries 3 to 3 are missing at the end; the anchor knows them"
        ]
    for _ in range(2):
        with sites[0].open() as alice:
            assert alice.condition().serves
            alice.record_changes(("sae.added", "z", ""))
    with of_site(sites[0]) as source:
        (finding,) = verify(source).findings
        assert "entry 3" in finding.what


def test_every_flipped_bit_of_the_audit_in_the_file_is_found_with_the_entry(
    sites: tuple[Site, Site], tmp_path: Path
) -> None:
    with sites[0].open() as alice:
        for i in range(30):
            alice.record_changes(("settings.changed", "node", f"unmistakable {i:02}"))
    data = sites[0].path.read_bytes()
    rng = random.Random(4)
    for i in rng.sample(range(30), 12):
        at = data.index(f"unmistakable {i:02}".encode()) + rng.randrange(12)
        spoilt = bytearray(data)
        spoilt[at] ^= 1 << rng.randrange(8)
        path = tmp_path / "spoilt.db"
        path.write_bytes(spoilt)
        with FileSource(path, sites[0].anchor) as source:
            (finding,) = verify(source).findings
            assert finding.where.endswith(f"entry {i + 2}")


def test_a_full_disk_gives_no_key_without_its_entry(sites: tuple[Site, Site]) -> None:
    with sites[0].open() as alice, sites[1].open() as bob:
        fill(alice, bob)
        assignment_id = assigned(alice, bob, 2)
        connection = alice._database._tx.connection
        connection.execute(
            "CREATE TEMP TRIGGER full BEFORE INSERT ON audit_entry BEGIN SELECT RAISE(ABORT, 'full'); END"
        )
        with pytest.raises(StoreError):
            alice.deliver_to_master(assignment_id)
        connection.execute("DROP TRIGGER full")
        assert len(alice.deliver_to_master(assignment_id)) == 2
    with of_site(sites[0]) as source:
        assert len(deliveries(source)) == 1


def test_the_peers_head_is_noted_when_the_sites_meet(sites: tuple[Site, Site]) -> None:
    with sites[0].open() as alice, sites[1].open() as bob:
        fill(alice, bob)
        alice.note_peer(bob.positions().generation, bob.standing())
        head = bob.audit_standing().head
    with of_site(sites[0]) as source:
        assert verify(source).peer_head == head
    with of_site(sites[1]) as source:
        assert verify(source, [head]).findings == []
