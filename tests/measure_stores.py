"""Key stores in SQLite and in PostgreSQL side by side: keys a second, processor time a key, time to open.

    python tests/measure_stores.py                          10,000 and 1,000,000 stored keys
    python tests/measure_stores.py --keys 10000 --rounds 100
    python tests/measure_stores.py --keys 10000 10000000    two gigabytes in memory

Both sites' stores are in this process, on files and on a server in memory, so a flush costs little; the
server has processors of its own where there are. A round assigns four keys, accepts and acknowledges them,
and delivers them at both sites. Stores of all sizes take turns. Debian's package postgresql is needed.
"""

import argparse
import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from keys_support import Site, make_block
from postgresql_support import PostgresqlSite, missing, running_server

from qnode.keys import KeyLayout

CHUNKS_OF_A_BLOCK = 1000
ALL_OF_ALICE = KeyLayout(pads_per_direction=3, direction_share_alice=1.0)
KEYS_OF_A_ROUND = 4
BLOCKS_TOGETHER = 32
TURNS = 3
COUNTS = 5


def fill(stores: tuple[Any, Any], n_keys: int) -> None:
    n_blocks = n_keys // CHUNKS_OF_A_BLOCK
    for first in range(1, 1 + n_blocks, BLOCKS_TOGETHER):
        ids = range(first, min(first + BLOCKS_TOGETHER, 1 + n_blocks))
        blocks = [make_block(block_id, CHUNKS_OF_A_BLOCK, layout=ALL_OF_ALICE) for block_id in ids]
        for store in stores:
            make(store, (partial(store.record_block_opened, block_id, 1e-9) for block_id in ids))
            make(store, (partial(store.prepare, block) for block in blocks))
        for store in stores:
            make(store, (partial(store.confirm, block_id) for block_id in ids))


def make(store: Any, calls: Iterable[Callable[[], object]]) -> None:
    for answer in store.together(calls):
        if answer.error is not None:
            raise answer.error


def rate(stores: tuple[Any, Any], n_rounds: int, n_threads: int) -> tuple[float, float]:
    """Return keys a second and microseconds of this process's processor time a key."""
    owner, peer = stores

    def work() -> None:
        for _ in range(n_rounds // n_threads):
            assignment = owner.assign("m", ["s"], KEYS_OF_A_ROUND, 256, 0.0)
            peer.accept_assignment(assignment, 0.0)
            owner.acknowledge(assignment.assignment_id)
            keys = owner.deliver_to_master(assignment.assignment_id)
            peer.deliver_to_slave("s", "m", [key.key_id for key in keys])

    began_s, used_s = time.monotonic(), time.process_time()
    threads = [threading.Thread(target=work) for _ in range(n_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    n_keys = n_rounds // n_threads * n_threads * KEYS_OF_A_ROUND
    return n_keys / (time.monotonic() - began_s), (time.process_time() - used_s) / n_keys * 1e6


def opening(open_again: Callable[[], Any]) -> tuple[float, float]:
    """Return the milliseconds from the call to a store that has told its counts, and those of more counts."""
    began_s = time.monotonic()
    store = open_again()
    store.counts()
    took_s = time.monotonic() - began_s
    began_s = time.monotonic()
    for _ in range(COUNTS):
        store.counts()
    counted_s = (time.monotonic() - began_s) / COUNTS
    store.close()
    return 1e3 * took_s, 1e3 * counted_s


def assigning(store: Any, n_rounds: int) -> float:
    """Return the microseconds of this process's processor time to assign a key."""
    used_s = time.process_time()
    for _ in range(n_rounds):
        store.assign("m", ["s"], KEYS_OF_A_ROUND, 256, 0.0)
    return (time.process_time() - used_s) / n_rounds / KEYS_OF_A_ROUND * 1e6


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--keys", type=int, nargs="+", default=[10_000, 1_000_000])
    parser.add_argument("--rounds", type=int, default=200)
    options = parser.parse_args()
    if because := missing():
        print(because, file=sys.stderr)
        return 1
    print(
        "stored keys  store       open ms  counts ms   1 caller: keys/s  us/key   8 callers: keys/s  us/key"
        "   assign us/key"
    )
    memory = Path("/dev/shm")
    with ExitStack() as stack:
        folder = Path(
            stack.enter_context(tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None))
        )
        PostgresqlSite.server = stack.enter_context(running_server())
        sites = {
            (n_keys, what): (
                kind(folder / f"{n_keys}{what}a", "alice"),
                kind(folder / f"{n_keys}{what}b", "bob"),
            )
            for n_keys in options.keys
            for what, kind in (("SQLite", Site), ("PostgreSQL", PostgresqlSite))
        }
        for (n_keys, _), pair in sites.items():
            with pair[0].open() as alice, pair[1].open() as bob:
                fill((alice, bob), n_keys)
        found: dict[tuple[int, str], list[tuple[float, ...]]] = {name: [] for name in sites}
        for turn in range(TURNS):
            for name in random.Random(turn).sample(list(sites), len(sites)):
                opened = opening(sites[name][0].open)
                with sites[name][0].open() as alice, sites[name][1].open() as bob:
                    one = rate((alice, bob), options.rounds, 1)
                    eight = rate((alice, bob), options.rounds, 8)
                    assign_us = assigning(alice, options.rounds)
                found[name].append((*opened, *one, *eight, assign_us))
        for (n_keys, what), rows in found.items():
            columns = [median(column) for column in zip(*rows, strict=True)]
            open_ms, counts_ms, one_s, one_us, eight_s, eight_us, assign_us = columns
            print(
                f"{n_keys:>11,}  {what:<10}  {open_ms:>7.0f}  {counts_ms:>9.1f}  {one_s:>17,.0f}"
                f"  {one_us:>6,.0f}  {eight_s:>18,.0f}  {eight_us:>6,.0f}  {assign_us:>14,.0f}"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
