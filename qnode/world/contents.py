"""What lies in a store, all of it opened: for the checker alone."""

from collections.abc import Iterable, Iterator

from cryptography.exceptions import InvalidTag

from qnode.audit import ledger
from qnode.audit.entries import Chain, Head, KeyDelivered, Row
from qnode.audit.entries import decode as decode_entry
from qnode.audit.verify import verify
from qnode.keys import BlockState, KeyRange, Release, SqliteKeyStore
from qnode.keys._assigned import decode, rest_of
from qnode.keys._database import Database
from qnode.keys._vault import SLOT_BYTES, Kind
from qnode.keys._waiting import Held, parts
from qnode.sql import Statements
from qnode.world.checker import StoreContents

_LIVE_BYTES = 16


class _AuditOf:
    """The audit of an open store."""

    name = "store"

    def __init__(self, connection: Statements, anchored: Head | None) -> None:
        self._connection = connection
        self.anchored = anchored

    def chains(self) -> list[Chain]:
        return ledger.chains(self._connection)

    def rows(self, chain: Chain) -> Iterator[Row]:
        return ledger.rows(self._connection, chain.chain, chain.pruned_number)


def _places(ranges: Iterable[KeyRange]) -> set[tuple[int, int]]:
    return {(item.block_id, item.first + i) for item in ranges for i in range(item.count)}


def contents_of(store: SqliteKeyStore) -> StoreContents:
    """Read every block, every free chunk and every slot of key."""
    database: Database = store._database
    secrets: list[bytes] = []
    with database.look() as tx:
        blocks = tx.connection.execute("SELECT block_id, state FROM block").fetchall()
        free = tx.connection.execute("SELECT block_id, first, count, owner FROM free_range").fetchall()
        units = tx.connection.execute(
            "SELECT segment, unit, sealed FROM sealed_unit WHERE kind = ?", (Kind.CHUNK,)
        ).fetchall()
        for segment, unit, sealed in units:
            address = Kind.CHUNK.encode() + b"\0" + segment.to_bytes(8, "big") + unit.to_bytes(8, "big")
            try:
                opened = tx.vault._cipher(Kind.CHUNK, segment).decrypt(sealed[:12], sealed[12:], address)
            except InvalidTag:  # damaged, and nobody has asked for it since
                continue
            slots = opened[_LIVE_BYTES:]
            width = SLOT_BYTES[Kind.CHUNK]
            secrets += [
                slots[i : i + width] for i in range(0, len(slots), width) if any(slots[i : i + width])
            ]
        audit = _AuditOf(tx.connection, None if database.anchor is None else database.anchor.audit)
        verified = verify(audit)
        entries = [decode_entry(row.content) for chain in audit.chains() for row in audit.rows(chain)]
        audited = [entry for entry in entries if isinstance(entry, KeyDelivered)]
        own = tx.connection.execute(
            "SELECT content, n_taken FROM own_assignment WHERE acknowledged = 1"
        ).fetchall()
        accepted = tx.connection.execute("SELECT content, waiting FROM peer_assignment").fetchall()
    promised, held = set[tuple[int, int]](), set[tuple[int, int]]()
    for content, n_taken in own:
        promised |= _places(rest_of(Release(assignment=decode(content), n_taken=n_taken)))
    for content, waiting in accepted:
        one = Held.decode(content, waiting)
        held |= _places(parts(one, one.wanted))
    return StoreContents(
        audited=audited,
        audit_findings=[str(one) for one in verified.findings],
        n_chains=verified.chains,
        promised=promised,
        held=held,
        blocks={block_id: BlockState(state) for block_id, state in blocks},
        free={(block_id, first + i): owner for block_id, first, count, owner in free for i in range(count)},
        secrets=secrets,
    )
