"""A soak of the key supply: sites killed and lines cut at random moments, while keys are asked for.

    python tests/fault_soak.py --kills 200 --cuts 300 --seed 1

Two real daemons, a relay between them that breaks connections after a random number of bytes, and a pair of
encryptors that assign and fetch in both directions all the time. Nothing may be lost: every key that was
assigned is fetched with the same bits, none twice, and at the end both sites hold as many keys for the pair.
Exit 1 if anything was.
"""

import argparse
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from random import Random

from daemons_support import ROLES, SMALL_LINK, SPEED, Sites, encryptors, eventually, keys_in
from exchange_support import Exchange

from qnode.config import Role, convert
from qnode.loopback.prepare import LongLine, LoopbackConfig, Staging, prepare

# As if the fibre were a little longer: only so that the sites speak through the relay.
_ROUND_TRIP_S = 1e-4
_PATIENCE_S = 180.0
_RESET = struct.pack("ii", 1, 0)


class Relay:
    """Carries the classical channel; while ``cutting``, breaks connections after random numbers of bytes.

    A break resets both ends: what was under way is lost, in either direction.
    """

    def __init__(self, line: LongLine, rng: Random) -> None:
        self.cuts = 0
        self.cutting = False
        self._rng, self._target, self._remaining = rng, line.alice_port, 0
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", line.bob_port))
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            near, _ = self._listener.accept()
            try:
                far = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                near.close()
                continue
            for source, target in ((near, far), (far, near)):
                threading.Thread(target=self._carry, args=(source, target), daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        try:
            while piece := source.recv(65536):
                let_through = self._let_through(len(piece))
                target.sendall(piece[:let_through])
                if let_through < len(piece):
                    for end in (source, target):
                        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                    return
        except OSError:
            return
        finally:
            for end in (source, target):
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
                end.close()

    def _let_through(self, n_bytes: int) -> int:
        """Return how many bytes of a piece pass before the next cut."""
        with self._lock:
            if not self.cutting:
                return n_bytes
            if n_bytes < self._remaining:
                self._remaining -= n_bytes
                return n_bytes
            passed = max(0, self._remaining - 1)
            # From within the handshakes to several blocks.
            self._remaining = int(10 ** self._rng.uniform(2.5, 5.5))
            self.cuts += 1
            return passed


class RelayedSites(Sites):
    """Two daemons that speak through a relay."""

    def __init__(self, folder: Path, rng: Random) -> None:
        self.data, self._logs = folder / "data", folder / "logs"
        self._logs.mkdir()
        config = convert(SMALL_LINK, LoopbackConfig, where="the small link")
        prepared = prepare(self.data, config, Staging(SPEED, round_trip_s=_ROUND_TRIP_S))
        assert prepared.line is not None
        self.site_files, self.endpoints = prepared.site_files, prepared.endpoints
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.relay = Relay(prepared.line, rng)


@contextmanager
def relayed_sites(folder: Path, rng: Random) -> Iterator[RelayedSites]:
    """Hold both sites; what still runs at the end is killed."""
    sites = RelayedSites(folder, rng)
    try:
        yield sites
    finally:
        for process in sites.processes.values():
            process.kill()


def kill_again_and_again(sites: Sites, kills: int, rng: Random, exchange: Exchange) -> None:
    """Kill one site or both at random moments, some while they start; at times wait until keys flow again."""
    for number in range(kills):
        time.sleep(rng.uniform(0.0, 4.0))
        victims: tuple[Role, ...] = ROLES if rng.random() < 0.1 else (rng.choice(ROLES),)
        sites.kill(*victims)
        time.sleep(rng.uniform(0.0, 0.5))
        sites.start(*victims)
        if number % 10 == 9:
            fetched = len(exchange.fetched)
            eventually(partial(more_fetched, exchange, fetched), "keys again", within_s=_PATIENCE_S)
            print(f"{number + 1} kills, {len(exchange.fetched)} keys fetched", file=sys.stderr)


def more_fetched(exchange: Exchange, than: int) -> bool:
    return len(exchange.fetched) > than


def was_cut(relay: Relay, cuts: int) -> bool:
    return relay.cuts >= cuts


def cut_again_and_again(relay: Relay, cuts: int, exchange: Exchange) -> None:
    """Let the relay break connections; a pause after every ten, in which keys flow again."""
    seen = relay.cuts
    for goal in range(10, cuts + 10, 10):
        relay.cutting = True
        goal = min(goal, cuts)
        eventually(partial(was_cut, relay, seen + goal), f"{goal} cuts", within_s=10 * _PATIENCE_S)
        relay.cutting = False
        fetched = len(exchange.fetched)
        eventually(partial(more_fetched, exchange, fetched), "keys again", within_s=_PATIENCE_S)
        print(f"{relay.cuts - seen} cuts, {len(exchange.fetched)} keys fetched", file=sys.stderr)


def drain(sites: Sites) -> tuple[int, list[str]]:
    """Take every key that is left, in both directions; return how many, and what went wrong."""
    wrong, taken = [], 0
    alice, bob = encryptors(sites.endpoints)
    for master, slave in ((alice, bob), (bob, alice)):
        while number := min(master.stored(), 128):
            response = master.post("enc_keys", {"number": number})
            if response.status_code == 503:  # they went to the other site meanwhile
                time.sleep(0.2)
                continue
            keys = keys_in(response)
            if slave.fetch_soon(list(keys)) != keys:
                wrong.append(f"different bits among {number} keys of {master.sae.sae_id}")
            taken += number
    return taken, wrong


def main() -> int:
    """Run the soak and return 0 if nothing was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--cuts", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    rng = Random(asked.seed)
    started_s = time.monotonic()
    with (
        tempfile.TemporaryDirectory() as folder,
        relayed_sites(Path(folder), rng) as sites,
        ThreadPoolExecutor(1) as threads,
    ):
        sites.start(*ROLES)
        sites.wait_until_serving(*ROLES)
        exchange = Exchange(sites.endpoints)
        running = threads.submit(exchange.run)
        try:
            kill_again_and_again(sites, asked.kills, rng, exchange)
            cut_again_and_again(sites.relay, asked.cuts, exchange)
        finally:
            exchange.stop()
        running.result()
        left, wrong = drain(sites)
        codes = sites.stop(*ROLES)
    wrong += [f"different bits: {key_id}" for key_id in exchange.different]
    wrong += [f"lost: {key_id}" for key_id in exchange.refused]
    wrong += ["assigned twice"] * (len(exchange.assigned) - len(set(exchange.assigned)))
    wrong += ["fetched twice"] * (len(exchange.fetched) - len(set(exchange.fetched)))
    wrong += ["fetched but never assigned"] * len(set(exchange.fetched) - set(exchange.assigned))
    wrong += [f"exit code {code}" for code in codes if code]
    print(f"{asked.kills} kills, {sites.relay.cuts} cuts in {time.monotonic() - started_s:.0f} s")
    print(f"{len(exchange.assigned)} keys assigned, {len(exchange.fetched)} fetched and equal,")
    print(f"{exchange.broken} answers broken off, {left} keys left and taken at the end")
    print(f"{len(wrong)} failures" + "".join(f"\n  {one}" for one in wrong[:20]))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
