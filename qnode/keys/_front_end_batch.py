"""The transaction in which a front end answers the requests that wait together.

Rows are locked in one order, so that no two front ends wait for each other in a circle: limits by name, stock
only where nobody else has it, assignments of the peer by number, sealed units by address, and last the row of
the site, which puts the deliveries of the store into one order. The triggers of the tables do not count for a
front end: this does.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from uuid import UUID

from qnode.audit.door import present_door, through
from qnode.choices import Door
from qnode.errors import AboveSaeLimit, KeyNotFound, NotEnoughKeys, NotNamed, SaeLimitReached, StoreError
from qnode.keys import _keybytes, _ranges, _waiting
from qnode.keys._assigned import decode
from qnode.keys._model import KeyRange, StoredKey, chunks_per_key
from qnode.keys._rates import Rates
from qnode.keys._tx import Place, Tx
from qnode.keys._vault import SLOTS_PER_UNIT, Kind
from qnode.units import CHUNK_BITS

_MOST_STOCK_ROWS = 256


@dataclass
class Request:
    """A request through a door; when it was answered, it has keys or an error."""

    door: Door = field(default_factory=present_door, init=False)
    keys: list[StoredKey] = field(default_factory=list, init=False, repr=False)
    error: StoreError | None = field(default=None, init=False)


@dataclass
class Take(Request):
    """Keys agreed ahead for a master and its slave. ``keys_per_minute``: the limit of the master."""

    master_sae: str
    slave_sae: str
    number: int
    keys_per_minute: int | None = None


@dataclass
class Fetch(Request):
    """Keys that wait for a slave, all or none, in this order."""

    slave_sae: str
    master_sae: str
    key_ids: Sequence[UUID]

    @property
    def number(self) -> int:
        """The number of keys."""
        return len(self.key_ids)


@dataclass
class _OfStock:
    """An assignment of the stock that this transaction has locked."""

    assignment_id: int
    ranges: tuple[KeyRange, ...]
    n_taken: int
    n_keys: int
    was_taken: bool = False


@dataclass
class _Delivery:
    """What one request gets of one assignment: chunks, and key_IDs where they are known."""

    request: "Take | Fetch"
    ranges: list[KeyRange]
    size_bits: int
    key_ids: list[UUID]
    place_in_answer: list[int]
    destroyed: list[KeyRange]


class Batch:
    """The requests of one transaction. ``places``: of key_IDs, known before."""

    def __init__(self, tx: Tx, places: Mapping[bytes, Place]) -> None:
        self._tx = tx
        self._places = places
        self._deliveries: list[_Delivery] = []
        self._stock: dict[tuple[str, str], list[_OfStock]] = {}
        self._held: dict[int, _waiting.Held] = {}
        self._fetched: set[int] = set()
        self._n_own = 0
        self._n_peer = 0
        self._fewer_waiting: Counter[tuple[str, str]] = Counter()
        self.changes = False
        """Whether there is anything to commit."""

    def answer(self, requests: Sequence[Take | Fetch]) -> None:
        """Answer all requests in the open transaction; what they got counts when it is committed."""
        takes = [one for one in requests if isinstance(one, Take)]
        fetches = [one for one in requests if isinstance(one, Fetch)]
        rates = Rates(self._tx, (take.master_sae for take in takes if take.keys_per_minute is not None))
        self._lock_stock(takes)
        self._lock_waiting(fetches)
        for take in takes:
            self._plan_take(take, rates)
        for fetch in fetches:
            self._plan_fetch(fetch)
        if not self._deliveries:
            return
        self.changes = True
        self._lock_units()
        for delivery in self._deliveries:
            self._read(delivery)
        destroyed = [item for one in self._deliveries for item in one.destroyed]
        self._wipe(destroyed)
        self._write_down()
        self._count(destroyed)
        rates.write_down()
        self._audit(requests)
        self._tx.write_down()

    # Locks

    def _lock_stock(self, takes: Iterable[Take]) -> None:
        wanted: Counter[tuple[str, str]] = Counter()
        for take in takes:
            wanted[take.master_sae, take.slave_sae] += take.number
        for (master, slave), number in sorted(wanted.items()):
            rows = self._tx.connection.execute(
                "SELECT assignment_id, content, n_taken, n_keys FROM own_assignment WHERE stock = 1 AND "
                "acknowledged = 1 AND master_sae = ? AND slave_sae = ? AND size_bits = ? "
                "ORDER BY assignment_id LIMIT ? FOR UPDATE SKIP LOCKED",
                (master, slave, CHUNK_BITS, min(number, _MOST_STOCK_ROWS)),
            ).fetchall()
            self._stock[master, slave] = [
                _OfStock(row[0], decode(row[1]).ranges, row[2], row[3]) for row in rows
            ]

    def _lock_waiting(self, fetches: Iterable[Fetch]) -> None:
        places = [self._places.get(key_id.bytes) for fetch in fetches for key_id in fetch.key_ids]
        asked = sorted({place.assignment_id for place in places if place is not None})
        if not asked:
            return
        rows = self._tx.connection.execute(
            "SELECT assignment_id, content, waiting FROM peer_assignment "
            "WHERE assignment_id = ANY(?::bigint[]) ORDER BY assignment_id FOR UPDATE",
            (asked,),
        ).fetchall()
        for assignment_id, content, waiting in rows:
            self._held[assignment_id] = _waiting.Held.decode(content, waiting)

    def _lock_units(self) -> None:
        units = sorted(
            {
                (item.block_id, unit)
                for delivery in self._deliveries
                for item in delivery.ranges
                for unit in range(
                    item.first // SLOTS_PER_UNIT, (item.first + item.count - 1) // SLOTS_PER_UNIT + 1
                )
            }
        )
        self._tx.connection.execute(
            "SELECT 1 FROM sealed_unit JOIN unnest(?::bigint[], ?::bigint[]) AS wanted (s, u) "
            "ON segment = s AND unit = u WHERE kind = ? ORDER BY segment, unit FOR UPDATE OF sealed_unit",
            ([block for block, _ in units], [unit for _, unit in units], Kind.CHUNK),
        ).fetchall()

    # What each request gets

    def _plan_take(self, take: Take, rates: Rates) -> None:
        if take.keys_per_minute is not None:
            if take.number > take.keys_per_minute:
                take.error = AboveSaeLimit(take.master_sae, take.keys_per_minute)
                return
            wait_s = rates.wait_s(take.master_sae, take.number, take.keys_per_minute)
            if wait_s:
                take.error = SaeLimitReached(take.master_sae, take.keys_per_minute, wait_s)
                return
        stock = self._stock[take.master_sae, take.slave_sae]
        available = sum(item.n_keys - item.n_taken for item in stock)
        if available < take.number:
            take.error = NotEnoughKeys(take.number, available)
            return
        missing = take.number
        for item in stock:
            part = min(missing, item.n_keys - item.n_taken)
            if part:
                ranges = _keybytes.part_of(item.ranges, 1, item.n_taken, part)
                start = take.number - missing
                at = list(range(start, start + part))
                self._deliveries.append(_Delivery(take, ranges, CHUNK_BITS, [], at, ranges))
                item.n_taken += part
                item.was_taken = True
                missing -= part
        self._n_own += take.number
        if take.keys_per_minute is not None:
            rates.spend(take.master_sae, take.number, take.keys_per_minute)

    def _plan_fetch(self, fetch: Fetch) -> None:
        """Raises nothing: an error is the request's. See `qnode.keys._accepted.deliver`."""
        by_assignment: defaultdict[int, dict[int, int]] = defaultdict(dict)  # position: place in the answer
        for number, key_id in enumerate(fetch.key_ids):
            place = self._places.get(key_id.bytes)
            if place is not None and place.assignment_id in self._held:
                by_assignment[place.assignment_id][place.position] = number
        all_held = [self._held[assignment_id] for assignment_id in by_assignment]
        if any(fetch.slave_sae not in held.assignment.slave_saes for held in all_held):
            fetch.error = NotNamed(f"{fetch.slave_sae} was not named as a slave for one of the keys")
            return
        n_found = 0
        for held in all_held:
            asked = by_assignment[held.assignment.assignment_id]
            slave = held.assignment.slave_saes.index(fetch.slave_sae)
            if held.assignment.master_sae == fetch.master_sae:
                n_found += sum(held.waiting[slave] >> position & 1 for position in asked)
        if n_found < len(fetch.key_ids):
            fetch.error = KeyNotFound("one or more keys are unknown, used or expired")
            return
        for held in all_held:
            self._plan_part(fetch, held, by_assignment[held.assignment.assignment_id])

    def _plan_part(self, fetch: Fetch, held: _waiting.Held, asked: Mapping[int, int]) -> None:
        assignment = held.assignment
        width = chunks_per_key(assignment.size_bits)
        self._fetched.add(assignment.assignment_id)
        positions = sorted(asked)
        mask = sum(1 << position for position in positions)
        held.waiting[assignment.slave_saes.index(fetch.slave_sae)] &= ~mask
        finished = _waiting.positions(mask & ~held.wanted)
        self._fewer_waiting[assignment.master_sae, fetch.slave_sae] += width * len(positions)
        self._n_peer += width * len(finished)
        self._deliveries.append(
            _Delivery(
                request=fetch,
                ranges=_keybytes.parts_of(assignment.ranges, width, positions),
                size_bits=assignment.size_bits,
                key_ids=[fetch.key_ids[asked[position]] for position in positions],
                place_in_answer=[asked[position] for position in positions],
                destroyed=_keybytes.parts_of(assignment.ranges, width, finished),
            )
        )

    def _read(self, delivery: _Delivery) -> None:
        width = chunks_per_key(delivery.size_bits)
        known = delivery.key_ids or None
        keys = _keybytes.Reading(self._tx, delivery.ranges, width, delivery.size_bits, known).read()
        request = delivery.request
        if not request.keys:
            request.keys = [keys[0]] * request.number
        for place, key in zip(delivery.place_in_answer, keys, strict=True):
            request.keys[place] = key

    # What is left

    def _wipe(self, destroyed: Iterable[KeyRange]) -> None:
        runs = ((item.block_id, item.first, item.count) for item in _ranges.joined(destroyed))
        self._tx.vault.wipe_all(Kind.CHUNK, runs)

    def _write_down(self) -> None:
        connection = self._tx.connection
        for item in (one for stock in self._stock.values() for one in stock if one.was_taken):
            if item.n_taken == item.n_keys:
                connection.execute(
                    "DELETE FROM own_assignment WHERE assignment_id = ?", (item.assignment_id,)
                )
            else:
                connection.execute(
                    "UPDATE own_assignment SET n_taken = ? WHERE assignment_id = ?",
                    (item.n_taken, item.assignment_id),
                )
        for assignment_id in sorted(self._fetched):
            held = self._held[assignment_id]
            if wanted := held.wanted:
                connection.execute(
                    "UPDATE peer_assignment SET waiting = ?, keys_left = ? WHERE assignment_id = ?",
                    (held.encoded(), wanted.bit_count(), assignment_id),
                )
            else:
                connection.execute("DELETE FROM peer_assignment WHERE assignment_id = ?", (assignment_id,))

    def _count(self, destroyed: Sequence[KeyRange]) -> None:
        """Count in the rows that all deliveries change; from here on others wait for the commit."""
        connection = self._tx.connection
        connection.execute(
            "UPDATE site SET generation = generation + 1, delivered = delivered + ?, "
            "own_chunks = own_chunks - ?, stock_chunks = stock_chunks - ?, peer_chunks = peer_chunks - ?",
            (self._n_own + self._n_peer, self._n_own, self._n_own, self._n_peer),
        )
        gone: Counter[int] = Counter()
        for item in destroyed:
            gone[item.block_id] += item.count
        for block_id, n_chunks in sorted(gone.items()):
            connection.execute(
                "UPDATE block SET chunks_left = chunks_left - ? WHERE block_id = ?", (n_chunks, block_id)
            )
        for (master, slave), n_chunks in sorted(self._fewer_waiting.items()):
            connection.execute(
                "UPDATE waiting_pair SET chunks = chunks - ? WHERE master_sae = ? AND slave_sae = ?",
                (n_chunks, master, slave),
            )
            connection.execute(
                "DELETE FROM waiting_pair WHERE master_sae = ? AND slave_sae = ? AND chunks <= 0",
                (master, slave),
            )

    def _audit(self, requests: Iterable[Take | Fetch]) -> None:
        for request in requests:
            if not request.keys:
                continue
            with through(request.door):
                if isinstance(request, Take):
                    saes = request.master_sae, (request.slave_sae,)
                    self._tx.audit("master", *saes, CHUNK_BITS, request.keys)
                    continue
                by_size: defaultdict[int, list[StoredKey]] = defaultdict(list)
                for key in request.keys:
                    by_size[8 * len(key.key)].append(key)
                for size_bits, keys in by_size.items():
                    self._tx.audit("slave", request.slave_sae, (request.master_sae,), size_bits, keys)
