"""The three calls, independent of the edition of the API."""

import math
import time
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar
from uuid import UUID

import msgspec
import structlog
import trio
from msgspec import UNSET, Struct

from qnode.delivery.directory import SaeDirectory, SaeEntry
from qnode.delivery.refusal import Refusal, gone, malformed, unauthorised
from qnode.delivery.supply import Key, KeySupply
from qnode.delivery.unsent import Unsent
from qnode.errors import (
    AboveSaeLimit,
    KeyNotFound,
    LinkDown,
    NotEnoughKeys,
    NotNamed,
    SaeLimitReached,
    ShareUsedUp,
    StoreError,
)

log = structlog.get_logger()

T = TypeVar("T")

SIMULATED = "qnode_simulated"
NOT_FOUND = "one or more keys specified are not found on KME"
MOST_LOGGED_KEY_IDS = 4
MOST_ISSUED_REMEMBERED = 16_384


class ApiLimits(Struct, frozen=True, kw_only=True):
    """Sizes and numbers that the interface announces and enforces; sizes in bits."""

    key_size_bits: int = 256
    min_key_size_bits: int = 64
    max_key_size_bits: int = 65_536
    size_step_bits: int = 8
    max_key_per_request: int = 128
    max_sae_id_count: int = 8
    max_key_count: int = 1 << 20
    requests_per_sae: int = 8
    """The number of calls of one SAE that the store of one link handles at a time; further calls wait."""
    answer_s: float = 10.0
    """After this time a call that the store has not answered ends with 503."""
    retry_after_s: int = 2


_DEFAULT_LIMITS = ApiLimits()


@dataclass(frozen=True)
class KeyRequest:
    """The request of a master; UNSET is the default. ``number`` and ``size_bits`` are not checked yet."""

    number: object = UNSET
    size_bits: object = UNSET
    additional_slaves: tuple[str, ...] = ()
    mandatory: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class Stock:
    """The keys available to a master for a pair."""

    master: SaeEntry
    slave: SaeEntry
    stored_key_count: int


@dataclass(frozen=True)
class Given:
    """Keys on their way to an SAE; ``owner`` may get them again if they were not sent."""

    owner: Hashable
    keys: list[Key] = field(repr=False)


@dataclass
class Usage:
    """The use of the interface by one SAE of this site; ``last_key_at`` is in Unix seconds."""

    keys_delivered: int = 0
    last_key_at: float | None = None
    requests_refused: int = 0

    def add(self, keys: int) -> None:
        """Count delivered keys."""
        self.keys_delivered += keys
        self.last_key_at = time.time()


class Delivery:
    """The calls of encryptors, checked against directory and limits, answered by a supply.

    ``simulated``: the keys come from a simulated link, and every answer states that.
    ``peer_shares``: whether the other site would give its slave the keys of a master of this site.
    """

    def __init__(
        self,
        directory: SaeDirectory,
        supply: KeySupply,
        *,
        limits: ApiLimits = _DEFAULT_LIMITS,
        simulated: bool = False,
        peer_shares: Callable[[str, str], bool] = lambda master, slave: True,
    ) -> None:
        self.directory = directory
        self._peer_shares = peer_shares
        self.limits = limits
        self.simulated = simulated
        self._supply = supply
        self.usage = {sae.sae_id: Usage() for sae in directory.local}
        self.requests_unauthorised = Counter[str]()
        """The number of answers 401 of each interface, to SAEs of this site as well."""
        self.unsent = Unsent()
        self._issued = _Issued()
        self._turns: dict[tuple[str, str], trio.Semaphore] = {}

    def renew(self, directory: SaeDirectory, *, max_key_count: int) -> None:
        """Serve the SAEs of ``directory`` from the next call on; the counts of known SAEs stay."""
        self.directory = directory
        self.limits = msgspec.structs.replace(self.limits, max_key_count=max_key_count)
        for sae in directory.local:
            self.usage.setdefault(sae.sae_id, Usage())

    @property
    def extension(self) -> dict[str, Any] | None:
        """The extension of every answer."""
        return {SIMULATED: True} if self.simulated else None

    async def status(self, caller: SaeEntry, slave_id: str) -> Stock:
        """Return the keys that ``caller`` could get as master for ``slave_id``.

        Raises:
            Refusal: 400, 503.
        """
        slave = self._slave(caller, slave_id, "slave_SAE_ID")

        async def count_keys() -> int:
            return await self._supply.stored_key_count(caller.sae_id, slave.sae_id, self.limits.key_size_bits)

        count = await self._in_turn(count_keys, caller, slave.sae_id)
        return Stock(caller, slave, min(count, self.limits.max_key_count))

    async def allocate(
        self,
        caller: SaeEntry,
        slave_id: str,
        request: KeyRequest,
        client_gone: Callable[[], bool] = lambda: False,
        *,
        named: str = "slave_SAE_ID",
    ) -> Given:
        """Give ``caller`` keys as master; its slaves fetch the same keys at the other site.

        No key is used up for a client that has disconnected. Keys of the same request that could not be sent
        before (`take_back`) are given first. ``named``: the interface's name of the field of ``slave_id``.

        Raises:
            Refusal: 400, 503.
        """
        slaves = self._slaves(caller, slave_id, request, named)
        self._check_extensions(request.mandatory)
        number = self._number(request)
        size_bits = self._size_bits(request)
        owner = ("enc_keys", caller.sae_id, slaves, number, size_bits)

        async def allocated() -> list[Key] | Given:
            if client_gone():
                raise gone()
            if (unsent := self.unsent.take_any(owner)) is not None:
                return _given_again(owner, unsent)
            return await self._supply.allocate(caller.sae_id, slaves, number, size_bits)

        keys = await self._in_turn(allocated, caller, *slaves)
        if isinstance(keys, Given):
            return keys
        assert len(keys) == number, "a supply gives all keys or none"
        assert all(8 * len(key.key) == size_bits for key in keys), "a supply gives keys of the size asked for"
        self._issued.add(slaves, keys)
        self.usage[caller.sae_id].add(len(keys))
        ids = _named([key.key_id for key in keys])
        log.info("key.allocated", master=caller.sae_id, slaves=slaves, size_bits=size_bits, **ids)
        return Given(owner, keys)

    async def fetch(
        self,
        caller: SaeEntry,
        master_id: str,
        key_ids: tuple[UUID, ...],
        client_gone: Callable[[], bool] = lambda: False,
        *,
        named: str = "master_SAE_ID",
    ) -> Given:
        """Give ``caller`` as slave the keys that ``master_id`` got.

        No key is used up for a client that has disconnected. ``named``: the interface's name of the field of
        ``master_id``.

        Raises:
            Refusal: 400, 401, 503.
        """
        if not self._issued.names(caller.sae_id, key_ids):
            raise unauthorised("not named as slave")
        master = self.directory.other(caller, master_id, named)
        if not 1 <= len(key_ids) <= self.limits.max_key_per_request:
            raise _out_of_range("key_IDs", "the number of key_IDs", 1, self.limits.max_key_per_request)
        if len(set(key_ids)) < len(key_ids):
            raise malformed("key_IDs are not distinct", "duplicate key_ID", {"field": "key_IDs"})
        owner = ("dec_keys", caller.sae_id, master.sae_id)

        async def fetched() -> list[Key] | Given:
            if client_gone():
                raise gone()
            if (unsent := self.unsent.take(owner, key_ids)) is not None:
                return _given_again(owner, unsent)
            return await self._supply.fetch(caller.sae_id, master.sae_id, key_ids)

        keys = await self._in_turn(fetched, caller, master.sae_id)
        if isinstance(keys, Given):
            return keys
        assert tuple(key.key_id for key in keys) == key_ids, "a supply gives all keys or none, in order"
        self.usage[caller.sae_id].add(len(keys))
        log.info("key.fetched", slave=caller.sae_id, master=master.sae_id, **_named(list(key_ids)))
        return Given(owner, keys)

    def take_back(self, given: Given) -> None:
        """Keep keys whose answer was certainly not sent, until the same SAE requests them again."""
        self.unsent.hold(given.owner, given.keys)

    async def _in_turn(self, work: Callable[[], Awaitable[T]], caller: SaeEntry, *others: str) -> T:
        """Limit the calls of the caller at the store, and convert its errors into refusals of the API.

        ``others``: the SAEs with which it shares the keys. Each other site has a link and a store of its own.
        """
        retry = self.limits.retry_after_s
        sites = {self.directory.kme_of(sae_id) for sae_id in others} - {self.directory.kme_id}
        place = caller.sae_id, min(sites, default="")
        turns = self._turns.get(place)
        if turns is None:
            turns = self._turns[place] = trio.Semaphore(self.limits.requests_per_sae)
        try:
            with trio.move_on_after(self.limits.answer_s):
                try:
                    turns.acquire_nowait()  # without a turn of the scheduler
                except trio.WouldBlock:
                    await turns.acquire()
                try:
                    return await work()
                finally:
                    turns.release()
        except NotEnoughKeys as short:
            raise Refusal(
                503,
                "not enough keys are available",
                reason="not enough keys",
                details=({"asked": short.asked, "available": short.available},),
                retry_after_s=retry,
            ) from None
        except NotNamed:
            raise unauthorised("not named as slave") from None
        except KeyNotFound as missing:
            raise malformed(NOT_FOUND, str(missing)) from None
        except LinkDown:
            message = "the link to the peer KME is down"
            raise Refusal(503, message, reason="link down", retry_after_s=retry) from None
        except ShareUsedUp as full:
            message = "keys of this pair wait to be fetched by the slave"
            raise Refusal(503, message, reason=str(full), retry_after_s=retry) from None
        except AboveSaeLimit as above:
            message = (
                f"this SAE may get {above.keys_per_minute} keys of 256 bits a minute, and this request alone "
                "is for more; ask for fewer or shorter keys"
            )
            raise malformed(message, "more than keys_per_minute") from None
        except SaeLimitReached as reached:
            message = f"this SAE may get {reached.keys_per_minute} keys of 256 bits a minute"
            wait_s = math.ceil(reached.wait_s)
            raise Refusal(503, message, reason="keys_per_minute reached", retry_after_s=wait_s) from None
        except StoreError as trouble:
            message = "the KME is in trouble"
            raise Refusal(503, message, reason=str(trouble), retry_after_s=retry, internal=True) from None
        message = "the KME takes too long"
        reason = "store took too long"
        raise Refusal(503, message, reason=reason, retry_after_s=retry, internal=True)

    def _slaves(self, caller: SaeEntry, slave_id: str, request: KeyRequest, named: str) -> tuple[str, ...]:
        field = "additional_slave_SAE_IDs"
        slaves = [self._slave(caller, slave_id, named).sae_id]
        if len(request.additional_slaves) > self.limits.max_sae_id_count:
            raise _out_of_range(field, f"the number of {field}", 0, self.limits.max_sae_id_count)
        for additional in request.additional_slaves:
            slave = self._slave(caller, additional, field)
            if slave.sae_id in slaves:
                raise malformed(f"{field} are not distinct", "duplicate slave", {"field": field})
            slaves.append(slave.sae_id)
        if len({self.directory.kme_of(sae_id) for sae_id in slaves} - {self.directory.kme_id}) > 1:
            message = f"{field} name SAEs at several other KMEs, which have no key in common"
            raise malformed(message, "slaves at several sites", {"field": field})
        return tuple(slaves)

    def _slave(self, caller: SaeEntry, sae_id: str, field: str) -> SaeEntry:
        """Return the SAE that gets the same keys; its own site must know the pair."""
        slave = self.directory.other(caller, sae_id, field)
        if slave.kme_id != self.directory.kme_id and not self._peer_shares(caller.sae_id, slave.sae_id):
            message = f"{field} is not registered for keys with {caller.sae_id} at its own KME"
            raise malformed(message, "SAE unknown to the peer", {"field": field})
        return slave

    def _check_extensions(self, mandatory: tuple[tuple[str, Any], ...]) -> None:
        """Check the mandatory extensions; the only known one states whether keys may be simulated."""
        unknown = [{"extension": name} for name, _ in mandatory if name != SIMULATED]
        if unknown:
            message = "not all extension_mandatory parameters are supported"
            raise malformed(message, "unknown mandatory extension", *unknown)
        if any(wanted is not self.simulated for _, wanted in mandatory):
            message = "not all extension_mandatory request options could be met"
            raise malformed(message, "mandatory extension not met", {"extension": SIMULATED})

    def _number(self, request: KeyRequest) -> int:
        asked = 1 if request.number is UNSET else request.number
        return _integer("number", asked, 1, self.limits.max_key_per_request)

    def _size_bits(self, request: KeyRequest) -> int:
        limits = self.limits
        asked = limits.key_size_bits if request.size_bits is UNSET else request.size_bits
        size = _integer("size", asked, limits.min_key_size_bits, limits.max_key_size_bits)
        if size % limits.size_step_bits:
            message = f"size shall be a multiple of {limits.size_step_bits}"
            raise malformed(message, "odd size", {"field": "size", "step": limits.size_step_bits})
        return size


def _given_again(owner: Hashable, keys: list[Key]) -> Given:
    log.info("key.sent_again", **_named([key.key_id for key in keys]))
    return Given(owner, keys)


class _Issued:
    """The slaves of the latest keys that masters got at this site.

    The slaves fetch such a key at the other site, whose store knows them. At this site, the record
    distinguishes a key that is not for the caller (401) from an unknown key (400).
    """

    def __init__(self) -> None:
        self._slaves: OrderedDict[UUID, tuple[str, ...]] = OrderedDict()

    def add(self, slaves: tuple[str, ...], keys: list[Key]) -> None:
        """Remember ``keys``, and forget the oldest beyond 16,384."""
        self._slaves.update((key.key_id, slaves) for key in keys)
        while len(self._slaves) > MOST_ISSUED_REMEMBERED:
            self._slaves.popitem(last=False)

    def names(self, sae_id: str, key_ids: tuple[UUID, ...]) -> bool:
        """Return whether ``sae_id`` is a slave of each of those ``key_ids`` that are known here."""
        return all(sae_id in self._slaves.get(key_id, (sae_id,)) for key_id in key_ids)


def _named(key_ids: list[UUID]) -> dict[str, Any]:
    """Name keys for the event log: all of a few, the first and last of many."""
    if len(key_ids) <= MOST_LOGGED_KEY_IDS:
        return {"keys": len(key_ids), "key_ids": [str(key_id) for key_id in key_ids]}
    return {"keys": len(key_ids), "first_key_id": str(key_ids[0]), "last_key_id": str(key_ids[-1])}


def _integer(field: str, value: object, least: int, most: int) -> int:
    """Return ``value`` if it is an integer in range; text, True and 1.0 are not integers."""
    if type(value) is not int or not least <= value <= most:
        raise _out_of_range(field, field, least, most)
    return value


def _out_of_range(field: str, subject: str, least: int, most: int) -> Refusal:
    details: Mapping[str, Any] = {"field": field, "minimum": least, "maximum": most}
    return malformed(
        f"{subject} shall be an integer from {least} to {most}", f"{field} out of range", details
    )
