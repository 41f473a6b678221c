"""Load on key servers by ETSI GS QKD 014: many encryptors that ask at once, and what they got.

First all masters ask (`ask`), then all slaves fetch the same keys (`fetch`): so each call has a processor
time of its own, and a server that answers nothing while its other site waits for it can be measured.
"""

import json
import math
import ssl
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any, Final
from urllib.parse import urlsplit

import trio
from measure_support import processor_s

from qnode.streams import TlsStream, Wire

KEY_BITS: Final = 256
_READ_BYTES: Final = 64 << 10
_END_OF_HEAD: Final = b"\r\n\r\n"
_OPENING_AT_ONCE: Final = 8
_AFTER_REFUSAL_S: Final = 0.05
_STARTING_LOOKS, _STARTING_POLL_S = 75, 0.2


Given = dict[int, deque[dict[str, str]]]
"""Keys that masters got, by pair of encryptors; of each call the keys by key_ID."""


class NoAnswer(Exception):
    """A server did not answer a call, or not in time."""


@dataclass(frozen=True)
class Encryptor:
    """One encryptor: the server it asks, the name of the other encryptor, its certificate."""

    url: str
    peer_sae_id: str
    context: ssl.SSLContext = field(repr=False)


@dataclass(frozen=True)
class Running:
    """Servers that run: all their processes, and the pairs of encryptors (master, slave)."""

    pids: Callable[[], Sequence[int]]
    pairs: Sequence[tuple[Encryptor, Encryptor]]


@dataclass(frozen=True)
class Load:
    """How it is asked.

    ``number``: keys a call. ``connections``: at a time, each with one call after another, shared by so many
    ``pairs`` of encryptors. ``keeps``: whether a connection stays open if the server lets it. ``p256``:
    whether certificates are on the curve P-256, else as the server's makers make them. ``warm_s``: before
    calls count, ``seconds``: while they do.
    """

    number: int
    connections: int
    pairs: int = 1
    keeps: bool = True
    p256: bool = False
    warm_s: float = 0.0
    seconds: float = 0.0
    patience_s: float = 30.0


@dataclass
class Calls:
    """What calls of one kind took.

    ``took_s``: of each answer, from the call on, in s. ``processor_s``: of all servers for ``n_answers``.
    ``keys``: got in the fixed time, by pair of encryptors. ``refused``: answers other than 200, by status.
    """

    took_s: list[float] = field(default_factory=list)
    n_answers: int = 0
    processor_s: float = 0.0
    keys: Counter[int] = field(default_factory=Counter)
    refused: Counter[int] = field(default_factory=Counter)

    def quantile_ms(self, share: float) -> float:
        """Return the time that ``share`` of the answers took at most; nan without any."""
        ordered = sorted(self.took_s)
        return 1e3 * ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")

    def processor_ms(self) -> float:
        """Return the processor time of an answer, over all processes of both sites; nan without any."""
        return 1e3 * self.processor_s / self.n_answers if self.n_answers else float("nan")


def jain(shares: Sequence[float]) -> float:
    """Return Jain's index of fairness: 1 if all shares are equal, 1/n if one of n has all.

    R. Jain, D. Chiu, W. Hawe, DEC-TR-301 (1984): the square of the sum over n times the sum of the squares.
    """
    squares = sum(share * share for share in shares)
    return sum(shares) ** 2 / (len(shares) * squares) if squares else float("nan")


class Connection:
    """A client of one encryptor over one connection, which is opened on demand."""

    def __init__(self, encryptor: Encryptor, load: Load) -> None:
        parts = urlsplit(encryptor.url)
        self._host, self._port = parts.hostname or "", parts.port or 443
        self._encryptor, self._load = encryptor, load
        self._stream: TlsStream | None = None

    async def enc_keys(self) -> tuple[int, Any]:
        """Ask for new keys; return status and body; raises NoAnswer."""
        return await self._post("enc_keys", {"number": self._load.number, "size": KEY_BITS})

    async def dec_keys(self, key_ids: Sequence[str]) -> tuple[int, Any]:
        """Fetch keys; return status and body; raises NoAnswer."""
        return await self._post("dec_keys", {"key_IDs": [{"key_ID": one} for one in key_ids]})

    async def open(self) -> None:
        """Connect; raises NoAnswer."""
        try:
            with trio.fail_after(self._load.patience_s):
                transport = Wire.over(await trio.open_tcp_stream(self._host, self._port))
                self._stream = TlsStream(transport, self._encryptor.context, server_side=False)
                await self._stream.handshake()
        except (OSError, trio.BrokenResourceError, trio.TooSlowError) as error:
            await self.aclose()
            raise NoAnswer(f"{self._encryptor.url}: {error.__cause__ or type(error).__name__}") from None

    async def aclose(self) -> None:
        """Close the connection; the next call opens another."""
        stream, self._stream = self._stream, None
        if stream is not None:
            await trio.aclose_forcefully(stream)

    async def _post(self, call: str, asked: dict[str, Any]) -> tuple[int, Any]:
        body = json.dumps(asked).encode()
        head = (
            f"POST /api/v1/keys/{self._encryptor.peer_sae_id}/{call} HTTP/1.1\r\nHost: {self._host}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        if self._stream is None:
            await self.open()
        assert self._stream is not None
        try:
            with trio.fail_after(self._load.patience_s):
                await self._stream.send_all(head.encode() + body)
                status, closes, answer = await _answer(self._stream)
        except (OSError, trio.BrokenResourceError, trio.TooSlowError, ValueError) as error:
            await self.aclose()
            raise NoAnswer(f"{self._encryptor.url} {call}: {str(error) or type(error).__name__}") from None
        if closes or not self._load.keeps:
            await self.aclose()
        return status, answer


async def _answer(stream: TlsStream) -> tuple[int, bool, Any]:
    """Read one answer: status, whether the server closes the connection, body."""
    received = bytearray()
    while (end := received.find(_END_OF_HEAD)) < 0:
        await _receive(stream, received)
    first, *lines = bytes(received[:end]).decode("latin-1").split("\r\n")
    fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    length = int(fields["content-length"]) if "content-length" in fields else 0
    begin = end + len(_END_OF_HEAD)
    while len(received) < begin + length:
        await _receive(stream, received)
    closes = "close" in fields.get("connection", "").lower() or first.startswith("HTTP/1.0")
    body = bytes(received[begin : begin + length])
    is_json = fields.get("content-type", "").startswith("application/json")
    return int(first.split()[1]), closes, json.loads(body) if is_json else None


async def _receive(stream: TlsStream, received: bytearray) -> None:
    more = await stream.receive_some(_READ_BYTES)
    if not more:
        raise ValueError("closed by the server before its answer")
    received += more


async def ask(running: Running, load: Load) -> tuple[Calls, Given]:
    """Let all masters ask for keys for the fixed time; return what it took, and the keys by pair.

    Raises:
        NoAnswer: a call had no answer.
    """
    calls = Calls()
    given: Given = {pair: deque() for pair in range(len(running.pairs))}
    until_s = from_s = math.inf

    async def master(at: int) -> None:
        while (began_s := trio.current_time()) < until_s:
            status, body = await clients[at].enc_keys()
            ended_s = trio.current_time()
            if status != 200:
                calls.refused[status] += 1
                await trio.sleep(_AFTER_REFUSAL_S)
                continue
            pair = at % len(running.pairs)
            given[pair].append({one["key_ID"]: one["key"] for one in body["keys"]})
            if began_s >= from_s:
                calls.took_s.append(ended_s - began_s)
            if from_s <= ended_s <= until_s:
                calls.n_answers += 1
                calls.keys[pair] += len(body["keys"])

    async def watch() -> None:
        await trio.sleep_until(from_s)
        calls.processor_s -= processor_s(running.pids())
        await trio.sleep_until(until_s)
        calls.processor_s += processor_s(running.pids())

    async with _connections(running, load, 0) as clients:
        from_s = trio.current_time() + load.warm_s
        until_s = from_s + load.seconds
        await _at_once([watch, *(_bound(master, at) for at in range(load.connections))])
    return calls, given


async def fetch(running: Running, load: Load, given: Given, calls: Calls | None = None) -> Calls:
    """Let all slaves fetch the keys that the masters got, until there are no more, or the time is over.

    ``calls``: what earlier calls took, to which these are added.

    Raises:
        NoAnswer: a call had no answer.
        AssertionError: a key is another one than at the master.
    """
    calls = calls or Calls()
    until_s = math.inf

    async def slave(at: int) -> None:
        waiting = given[at % len(running.pairs)]
        while waiting and (began_s := trio.current_time()) < until_s:
            keys = waiting.popleft()
            status, body = await clients[at].dec_keys(list(keys))
            if status != 200:
                calls.refused[status] += 1
                continue
            calls.took_s.append(trio.current_time() - began_s)
            calls.n_answers += 1
            fetched = {one["key_ID"]: one["key"] for one in body["keys"]}
            assert fetched == keys, "a slave got other keys than its master"

    async with _connections(running, load, 1) as clients:
        until_s = trio.current_time() + load.seconds
        before_s = processor_s(running.pids())
        await _at_once([_bound(slave, at) for at in range(load.connections)])
        calls.processor_s += processor_s(running.pids()) - before_s
    return calls


async def fetch_batches(running: Running, load: Load, most: int) -> Calls:
    """As `fetch`, of a server that keeps only the keys of a pair's last `enc_keys`, which gives ``most``."""
    calls, until_s = Calls(), trio.current_time() + load.seconds
    batch = replace(load, number=most, connections=1)
    while trio.current_time() < until_s:
        master = _client(running, batch, 0, 0)
        status, body = await master.enc_keys()
        await master.aclose()
        if status != 200:
            raise NoAnswer(f"enc_keys of {batch.number} keys: {status}")
        keys = [(one["key_ID"], one["key"]) for one in body["keys"]]
        parts = (dict(keys[at : at + load.number]) for at in range(0, len(keys), load.number))
        await fetch(running, load, {0: deque(parts)}, calls)
    return calls


def _client(running: Running, load: Load, at: int, end: int) -> Connection:
    return Connection(running.pairs[at % len(running.pairs)][end], load)


def _bound(work: Callable[[int], Any], at: int) -> Callable[[], Any]:
    return lambda: work(at)


async def wait_ready(running: Running, number: int) -> None:
    """Return when a master gets ``number`` keys; raises NoAnswer after some seconds."""
    load = Load(number, 1, keeps=False, patience_s=5.0)
    for _ in range(_STARTING_LOOKS):
        with suppress(NoAnswer):
            if (await _client(running, load, 0, 0).enc_keys())[0] == 200:
                return
        await trio.sleep(_STARTING_POLL_S)
    raise NoAnswer("not ready in time")


async def _at_once(work: Sequence[Callable[[], Any]]) -> None:
    """Do all work; raises the first NoAnswer instead of a group."""
    failed: list[NoAnswer] = []
    with trio.CancelScope() as scope:

        async def do(one: Callable[[], Any]) -> None:
            try:
                await one()
            except NoAnswer as error:
                failed.append(error)
                scope.cancel()

        async with trio.open_nursery() as nursery:
            for one in work:
                nursery.start_soon(do, one)
    if failed:
        raise failed[0]


@asynccontextmanager
async def _connections(running: Running, load: Load, end: int) -> AsyncIterator[list[Connection]]:
    """Lend the connections of all masters (0) or slaves (1), open already if they are kept."""
    clients = [_client(running, load, at, end) for at in range(load.connections)]
    limit = trio.CapacityLimiter(_OPENING_AT_ONCE)

    async def open_one(at: int) -> None:
        async with limit:
            await clients[at].open()

    try:
        if load.keeps:
            await _at_once([_bound(open_one, at) for at in range(load.connections)])
        yield clients
    finally:
        for client in clients:
            await client.aclose()
