"""Key delivery beside next-door-key-simulator and easy-kme: latency, processor time, fairness between pairs.

    python tests/measure_delivery.py [--quick] [--json] [--clone NAME=REPOSITORY ...] [--only NAME ...]

Two sites of qnode run as daemons over TCP and TLS, without devices, on stores that were filled before. The
others are fetched at pinned commits and installed into a temporary folder (network), each with the
certificates of its makers' scripts; `--clone` names a repository that is here already. One client asks all
of them in the same way: masters `enc_keys`, then slaves `dec_keys` of the same keys, which are compared. A
connection asks again as soon as it has an answer. Times are the client's; processor time is that of all
processes of both sites, as the kernel counts it, over the answers. Prints a table in Markdown, after a
quarter of an hour.
"""

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol

import trio
from measure_delivery_load import (
    Calls,
    Encryptor,
    Load,
    NoAnswer,
    Running,
    ask,
    fetch,
    fetch_batches,
    jain,
    wait_ready,
)
from measure_delivery_peers import MOST_KEYS, PEERS, NextDoor, NotHere, p256_certificates
from measure_support import ROLES, Sites, saes_of_pair

from qnode.commit import commit_of

CONNECTIONS, NEW_CONNECTIONS, NUMBERS, PAIRS = (1, 10, 50, 200), (1, 10), (1, MOST_KEYS), (2, 100, 1000)
ATTEMPTS: Final = 3
KEYS_IN_STORE: Final = 1_000_000
CONNECTIONS_OF_A_SITE: Final = 512, 4096  # as shipped, and the most that can be configured
MOST_CHUNKS: Final = 1 << 25  # of the store: many more than the keys that wait for slaves here


class Server(Protocol):
    """A key server that can be run."""

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> str: ...
    @property
    def keeps_last_keys_only(self) -> bool: ...
    @property
    def keeps_connections(self) -> bool: ...
    @property
    def most_connections_of_many(self) -> int: ...
    def running(self, load: Load, /) -> AbstractContextManager[Running]: ...


class Qnode:
    """Both sites of qnode."""

    name = "qnode"
    version = commit_of(Path(__file__).parents[1]) or "unknown"
    keeps_last_keys_only = False
    keeps_connections = True
    most_connections_of_many = sys.maxsize

    def __init__(self, folder: Path, n_keys: int, n_pairs: int) -> None:
        """Fill the stores, all keys for masters at Alice's site, and make certificates of so many pairs."""
        self._sites = Sites(folder / "sites", n_keys, share_alice=1.0)
        saes = [sae for pair in range(n_pairs) for sae in saes_of_pair(pair)]
        self._files = p256_certificates(folder / "tls", [*(f"kme-{role}" for role in ROLES), *saes])

    @contextmanager
    def running(self, load: Load) -> Iterator[Running]:
        """Run both, from full stores."""
        tables: dict[str, dict[str, dict[str, Any]]] = {}
        for role in ROLES:
            certificate, key = self._files.files[f"kme-{role}"]
            tls = {"ca": str(self._files.authority), "certificate": str(certificate), "key": str(key)}
            tables[role] = {"etsi014": {"tls": tls}, "store": {"most_chunks": MOST_CHUNKS}}
            shipped, most = CONNECTIONS_OF_A_SITE
            if 2 * load.connections > shipped:
                for limit in ("most_connections", "most_connections_per_address"):
                    tables[role]["etsi014"][limit] = most
        self._sites.start(load.pairs, tables)
        try:
            self._sites.wait_connected()
            yield Running(lambda: self._sites.pids, [self._encryptors(pair) for pair in range(load.pairs)])
        finally:
            self._sites.stop()

    def _encryptors(self, pair: int) -> tuple[Encryptor, Encryptor]:
        names = saes_of_pair(pair)
        urls = (self._sites.endpoints.sites[role].url for role in ROLES)
        master, slave = (
            Encryptor(url, peer, self._files.context(own))
            for url, own, peer in zip(urls, names, reversed(names), strict=True)
        )
        return master, slave


@dataclass(frozen=True)
class Row:
    """The figures of one call at one server under one load.

    ``processor_ms``: of an answer, over all processes of both sites. ``refused``: other answers than 200.
    ``jain``: over the keys that the pairs got in the fixed time.
    """

    server: str
    call: str
    number: int
    connections: int
    pairs: int
    keeps: bool
    p256: bool
    p50_ms: float
    p99_ms: float
    processor_ms: float
    answers: int
    refused: int
    jain: float | None


def measured(server: Server, load: Load) -> Iterator[Row]:
    """Measure both calls; a server that stops answering is started again, `ATTEMPTS` times at most.

    Raises:
        NotHere: it does not run, or stops answering each time.
    """
    for call, calls in (
        _enc_and_dec(server, load) if not server.keeps_last_keys_only else _apart(server, load)
    ):
        index = None
        if load.pairs > 1 and call == "enc_keys":
            index = jain([calls.keys[pair] for pair in range(load.pairs)])
        yield Row(
            server=server.name,
            call=call,
            number=load.number,
            connections=load.connections,
            pairs=load.pairs,
            keeps=load.keeps,
            p256=load.p256,
            p50_ms=calls.quantile_ms(0.5),
            p99_ms=calls.quantile_ms(0.99),
            processor_ms=calls.processor_ms(),
            answers=len(calls.took_s),
            refused=calls.refused.total(),
            jain=index,
        )


def _enc_and_dec(server: Server, load: Load) -> Iterator[tuple[str, Calls]]:
    async def both(running: Running) -> tuple[Calls, Calls]:
        asked, given = await ask(running, load)
        return asked, await fetch(running, load, given)

    asked, fetched = _started(server, load, both)
    yield "enc_keys", asked
    yield "dec_keys", fetched


def _apart(server: Server, load: Load) -> Iterator[tuple[str, Calls]]:
    async def masters(running: Running) -> Calls:
        return (await ask(running, load))[0]

    yield "enc_keys", _started(server, load, masters)
    if load.number == 1 or load.connections == 1:
        batches = partial(fetch_batches, load=load, most=MOST_KEYS)
        yield "dec_keys", _started(server, load, batches, first=MOST_KEYS)


def _started(server: Server, load: Load, measure: Any, first: int | None = None) -> Any:
    """Run a server and measure once it gives ``first`` keys, as many as `load` asks for unless told."""

    async def when_ready(running: Running) -> Any:
        await wait_ready(running, first or load.number)
        return await measure(running)

    for attempt in range(1, ATTEMPTS + 1):
        with server.running(load) as running:
            try:
                return trio.run(when_ready, running)
            except NoAnswer as error:
                told = f"{load.number} keys, {load.connections} connections, start {attempt}: {error}"
                print(f"{server.name}: {told}", file=sys.stderr)
    raise NotHere(f"stopped answering in {ATTEMPTS} starts")


def loads_of(server: Server, asked: Any) -> Iterator[Load]:
    """Return what is measured of a server."""
    times = {"warm_s": asked.warm, "seconds": asked.seconds}
    keeps = server.keeps_connections
    for number in NUMBERS:
        for connections in asked.connections:
            if number == 1 or connections <= server.most_connections_of_many:
                yield Load(number, connections, keeps=keeps, **times)
    own_kind = () if server.name == Qnode.name else (False,)
    for p256 in (*own_kind, True):
        for connections in NEW_CONNECTIONS:
            if keeps or p256:  # otherwise it was measured above
                yield Load(1, connections, keeps=False, p256=p256, **times)
    if server.name == Qnode.name:
        for number in NUMBERS:
            for pairs in asked.pairs:
                yield Load(number, pairs, pairs, warm_s=asked.warm, seconds=2 * asked.seconds)


def table(rows: Sequence[Row], servers: Sequence[str]) -> str:
    """Return the table in Markdown: a line for each call under each load."""
    lines: dict[tuple[Any, ...], dict[str, Row]] = {}
    for row in rows:
        for line in _lines_of(row):
            lines.setdefault(line, {})[row.server] = row
    head = ["call", "keys", "pairs", "connections"]
    for name in servers:
        head += [f"{name}: p50, p99 ms", "CPU ms"]
    text = [" | ".join(["", *head, "Jain", ""]), "|---|---:|---:|---" + "|---:" * (len(head) - 3) + "|"]
    for (call, kind, number, pairs, connections), found in lines.items():
        cells = [f"`{call}`", str(number), str(pairs), f"{connections} {kind}"]
        for name in servers:
            one = found.get(name)
            cells += [_latency(one), _short(one.processor_ms)] if one and one.answers else ["", ""]
        index = next((row.jain for row in found.values() if row.jain is not None), None)
        text.append(" | ".join(["", *cells, "" if index is None else f"{index:.3f}", ""]))
    return "\n".join(line.strip() for line in text)


def _lines_of(row: Row) -> Iterator[tuple[Any, ...]]:
    """Return the lines of a row: each kind of connection that it is the figure of."""
    rest = row.number, row.pairs, row.connections
    if row.keeps or (row.server == NextDoor.name and not row.p256):  # it closes each one
        yield row.call, "kept", *rest
    if not row.keeps and row.number == 1 and row.connections in NEW_CONNECTIONS:
        if not row.p256 or row.server == Qnode.name:
            yield row.call, "new", *rest
        if row.p256:
            yield row.call, "new, P-256", *rest


def _latency(row: Row) -> str:
    refused = f" ({row.refused} refused)" if row.refused else ""
    return f"{_short(row.p50_ms)}, {_short(row.p99_ms)}{refused}"


def _short(value_ms: float) -> str:
    """Return three or so digits."""
    return f"{value_ms:.{2 if value_ms < 10 else 1 if value_ms < 100 else 0}f}"


def ratios(rows: Sequence[Row], servers: Sequence[str]) -> Iterator[str]:
    """Return, in words, our processor time of a pair of calls over that of each other server."""
    spent: dict[tuple[str, bool, int], float] = {}
    for row in rows:
        if not row.keeps and row.number == 1 and row.pairs == 1:
            kind = row.server, row.p256, row.connections
            spent[kind] = spent.get(kind, 0.0) + row.processor_ms
    for name in servers:
        for p256 in (False, True):
            for connections in NEW_CONNECTIONS:
                ours, theirs = (
                    spent.get(kind) for kind in ((Qnode.name, True, connections), (name, p256, connections))
                )
                if name != Qnode.name and ours and theirs:
                    kinds = "P-256" if p256 else "its makers' certificates"
                    yield (
                        f"processor time of a pair of calls on {connections} new connections at a time, "
                        f"ours over {name} ({kinds}): {ours / theirs:.3f}"
                    )


def main() -> int:
    """Print the table; 1 when a server could not be measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="one second a figure, and fewer figures")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    parser.add_argument("--clone", action="append", default=[], metavar="NAME=REPOSITORY")
    parser.add_argument(
        "--only", action="append", metavar="NAME", help="qnode, or the name of another server"
    )
    asked: Any = parser.parse_args()
    asked.warm, asked.seconds = (0.5, 1.0) if asked.quick else (1.0, 3.0)
    asked.connections, asked.pairs = (CONNECTIONS[:2], PAIRS[:2]) if asked.quick else (CONNECTIONS, PAIRS)
    clones = {name: Path(where) for name, _, where in (one.partition("=") for one in asked.clone)}
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    began, load_before = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()), os.getloadavg()
    rows: list[Row] = []
    versions: dict[str, str] = {}
    failed: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="measure-delivery-") as folder:
        makes: dict[str, Any] = {"qnode": lambda place: Qnode(place, KEYS_IN_STORE, max(asked.pairs))}
        makes |= {peer.name: partial(peer, clone=clones.get(peer.name)) for peer in PEERS}
        for name in asked.only or makes:
            try:
                server = makes[name](Path(folder, name))
                versions[name] = server.version
            except NotHere as error:
                failed[name] = str(error)
                continue
            for load in loads_of(server, asked):
                try:
                    for row in measured(server, load):
                        rows.append(row)
                        print(row, file=sys.stderr, flush=True)
                except NotHere as error:
                    kind = "kept" if load.keeps else "new"
                    failed[f"{name}, {load.number} keys, {load.connections} {kind} connections"] = str(error)
    if asked.json:
        told = {"began": began, "load_before": load_before, "versions": versions, "failed": failed}
        print(json.dumps(told | {"rows": [asdict(row) for row in rows]}))
    else:
        print(
            f"{began}, load before {load_before[0]:.1f}; "
            + ", ".join(f"{k} {v}" for k, v in versions.items())
        )
        print(table(rows, list(versions)))
        for line in ratios(rows, list(versions)):
            print(line)
        for name, reason in failed.items():
            print(f"{name}: not measured: {reason}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
