"""Key delivery by ETSI GS QKD 014, as encryptors at both sites see it: processor time and latency."""

import ssl
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.client import HTTPException, HTTPSConnection
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from qnode.bench.against.case import Figures, Measure
from qnode.bench.against.checkout import CaseFailed, Checkout
from qnode.bench.against.daemons import Link, Staged, Status, blocks_of, recorded, running, staged
from qnode.choices import ROLES

KEPT = "ETSI pair, 10 kept, ms a site"
NEW = "ETSI pair, new each, ms a site"
STATUS = "new status / bare handshake"
FAR = "enc_keys p50, 50 ms away / near"
_CONNECTIONS: Final = 10
_ROUND_TRIP_S: Final = 0.05
_HANDSHAKES: Final = 200
_FIRST_REQUESTS: Final = 50  # show the sites what this pair asks for
_REQUESTS: Final = 100
_PAUSE_S: Final = 0.02
_IDLE_SHARE: Final = 0.1


@dataclass
class Client:
    """One encryptor at its site, over one connection, or a new one for each request."""

    url: str
    peer_sae_id: str
    context: ssl.SSLContext = field(repr=False)
    keeps: bool = True
    _connection: HTTPSConnection | None = field(default=None, init=False, repr=False)

    def call(self, path: str) -> Any:
        """Return the answer to a GET request below the path of the pair.

        Raises:
            CaseFailed: it is not 200, or there is none.
        """
        if self._connection is None:
            parts = urlsplit(self.url)
            self._connection = HTTPSConnection(
                parts.hostname or "", parts.port, context=self.context, timeout=60
            )
        try:
            self._connection.request("GET", f"/api/v1/keys/{self.peer_sae_id}/{path}")
            answer = self._connection.getresponse()
            body = answer.read()
        except (OSError, HTTPException) as error:
            raise CaseFailed(f"{path.partition('?')[0]}: {error}") from None
        if answer.status != 200:
            told = body.decode(errors="replace")  # what is refused has no key
            raise CaseFailed(f"{path.partition('?')[0]}: answer {answer.status}: {told}")
        if not self.keeps:
            self.close()
        return msgspec.json.decode(body)

    def close(self) -> None:
        """Close the connection; the next request opens another one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


@dataclass(frozen=True)
class Encryptors:
    """The encryptors of both sites, by role."""

    sites: Staged
    contexts: dict[str, ssl.SSLContext]

    @classmethod
    def of(cls, sites: Staged) -> "Encryptors":
        """Read the files of both."""
        contexts = {}
        for role, sae in sites.saes.items():
            contexts[role] = ssl.create_default_context(cafile=sites.ca)
            contexts[role].load_cert_chain(sae.certificate, sae.key)
        return cls(sites, contexts)

    def client(self, role: str, *, keeps: bool = True) -> Client:
        """Return a client of the encryptor at a site."""
        peer = self.sites.saes["bob" if role == "alice" else "alice"].sae_id
        return Client(self.sites.sites[role].url, peer, self.contexts[role], keeps)

    def pairs(self, number: int, *, keeps: bool) -> None:
        """Get ``number`` keys, one at a time, at Alice's site and then at Bob's, over one connection each.

        Raises:
            CaseFailed: an answer failed, or a key differs.
        """
        alice, bob = (self.client(role, keeps=keeps) for role in ROLES)
        with closing(alice), closing(bob):
            for _ in range(number):
                (ours,) = alice.call("enc_keys")["keys"]
                (theirs,) = bob.call(f"dec_keys?key_ID={ours['key_ID']}")["keys"]
                if ours["key"] != theirs["key"]:
                    raise CaseFailed("a key differs between the sites")


def delivery(checkout: Checkout, folder: Path, *, quick: bool) -> Measure:
    """Measure pairs of calls at ten connections at once, and status requests on new ones."""
    recording = recorded(checkout, "fast", folder)
    kept, new, statuses = (60, 20, 20) if quick else (200, 60, 60)  # of each connection

    def measure() -> Figures:
        with _with_keys(checkout, folder, recording) as (sites, link):
            encryptors = Encryptors.of(sites)
            _at_once(partial(encryptors.pairs, 20, keeps=True))
            spent = {}
            for name, number, keeps in ((KEPT, kept, True), (NEW, new, False)):
                began_s = link.processor_s()
                _at_once(partial(encryptors.pairs, number, keeps=keeps))
                spent[name] = 1e3 * (link.processor_s() - began_s) / 2 / (number * _CONNECTIONS)

            def ask() -> None:
                with closing(encryptors.client("alice", keeps=False)) as client:
                    for _ in range(statuses):
                        client.call("status")

            began_s = link.alice.processor_s()
            _at_once(ask)
            status_s = (link.alice.processor_s() - began_s) / (statuses * _CONNECTIONS)
            return spent | {STATUS: status_s / handshake_s(sites, encryptors.contexts["alice"])}

    return measure


def far_away(checkout: Checkout, folder: Path, *, quick: bool) -> Measure:
    """Measure the median latency of `enc_keys` with 50 ms of round trip between the sites over that of 0."""
    recording = recorded(checkout, "fast", folder)
    requests = _REQUESTS // 2 if quick else _REQUESTS

    def median_s(round_trip_s: float) -> float:
        with _with_keys(checkout, folder, recording, round_trip_s=round_trip_s) as (sites, _link):
            took_s = []
            with closing(Encryptors.of(sites).client("alice")) as alice:
                for _ in range(_FIRST_REQUESTS + requests):
                    began_s = time.perf_counter()
                    alice.call("enc_keys")
                    took_s.append(time.perf_counter() - began_s)
                    time.sleep(_PAUSE_S)
            return statistics.median(took_s[_FIRST_REQUESTS:])

    def measure() -> Figures:
        near_s = median_s(0.0)
        return {FAR: median_s(_ROUND_TRIP_S) / near_s}

    return measure


@contextmanager
def _with_keys(
    checkout: Checkout, folder: Path, recording: Path, **options: object
) -> Iterator[tuple[Staged, Link]]:
    """Run both sites until they have the keys of a recording and nothing more to do."""
    with (
        staged(checkout, folder, "fast", recording=str(recording), loop=False, **options) as sites,
        running(checkout, sites) as link,
    ):
        if not blocks_of(link.wait(_is_over, "end of the recording")):
            raise CaseFailed("the recording gave no key")
        while True:
            before_s = link.processor_s()
            time.sleep(1.0)
            if link.processor_s() - before_s < _IDLE_SHARE:
                break
        yield sites, link


def _is_over(bob: Status) -> bool:
    ended = any(device["state"]["state"] == "finished" for device in bob["devices"])
    return ended and not bob["block"]["in_flight"]


def _at_once(work: Callable[[], None]) -> None:
    """Do the work in ten threads; raises the first error."""
    with ThreadPoolExecutor(_CONNECTIONS) as threads:
        for done in [threads.submit(work) for _ in range(_CONNECTIONS)]:
            done.result()


def handshake_s(sites: Staged, client: ssl.SSLContext) -> float:
    """Return the processor time of the server in one mutual handshake in memory, with the site's files."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(sites.kme_certificate, sites.kme_key)
    server.load_verify_locations(sites.ca)
    server.verify_mode = ssl.CERT_REQUIRED
    server.num_tickets = 0
    return statistics.median(_one_handshake_s(server, client) for _ in range(_HANDSHAKES))


def _one_handshake_s(server: ssl.SSLContext, client: ssl.SSLContext) -> float:
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = server.wrap_bio(to_server, to_client, server_side=True)
    theirs = client.wrap_bio(to_client, to_server, server_hostname="localhost")
    spent_ns, ended = 0, set[ssl.SSLObject]()
    while len(ended) < 2:
        for end in (theirs, ours):
            began_ns = time.thread_time_ns()
            try:
                end.do_handshake()
                ended.add(end)
            except ssl.SSLWantReadError:
                pass
            if end is ours:
                spent_ns += time.thread_time_ns() - began_ns
    return spent_ns / 1e9
