"""Print what keys that wait for their slaves cost a store: at its opening, and at each look at its counts.

    python tests/measure_opening.py [--keys 100000] [--beside CHECKOUT]

`--beside` measures the code of another checkout as well. Processor time, least of a few runs.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from measure_support import figures_of

OPENING_LIMIT, COUNTS_LIMIT = 10.0, 2.0


def measure(n_keys: int) -> dict[str, float]:
    """Return milliseconds of processor time of opening and counting, without and with keys that wait."""
    from keys_support import Site, add_block, make_block

    result: dict[str, float] = {}
    per_block = 2000
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        sites = Site(Path(folder) / "a", "alice"), Site(Path(folder) / "b", "bob")
        alice, bob = (site.open() for site in sites)
        for block_id in range(1, 2 + 2 * n_keys // per_block):
            add_block(make_block(block_id, per_block), alice, bob)
        for name in ("without", "with"):
            if name == "with":
                # One durable change each takes minutes: the same rows in one transaction.
                for store in (alice, bob):
                    store._database._tx.connection.execute("PRAGMA synchronous = OFF")
                for _ in range(n_keys):
                    assignment = alice.assign("m", ["s"], 1, 256, 0.0)
                    bob.accept_assignment(assignment, 0.0)
                    alice.acknowledge(assignment.assignment_id)
            alice.close()
            bob.close()
            result[f"opening_{name}_ms"] = _least(lambda: sites[1].open(create=False).close())
            alice, bob = (site.open(create=False) for site in sites)
            result[f"counts_{name}_ms"] = _least(bob.counts)
        alice.close()
        bob.close()
    return result


def _least(call: Callable[[], object]) -> float:
    took = []
    for _ in range(5):
        before = time.process_time()
        call()
        took.append(time.process_time() - before)
    return 1000.0 * min(took)


def main() -> int:
    """Print the figures of this checkout, and of another; 1 when this one is beyond a limit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--keys", type=int, default=100_000)
    parser.add_argument("--beside", type=Path)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    asked: Any = parser.parse_args()
    if asked.child:
        print(json.dumps(measure(asked.keys)))
        return 0
    here, words = Path(__file__).parents[1], ["--keys", str(asked.keys)]
    figures = {"here": figures_of(__file__, here, words)}
    if asked.beside:
        figures[str(asked.beside)] = figures_of(__file__, asked.beside.resolve(), words)
    for name, limit in (("opening", OPENING_LIMIT), ("counts", COUNTS_LIMIT)):
        print(f"{name}, {asked.keys} keys that wait: ms without, with, ratio (limit {limit:g})")
        for where, of in figures.items():
            without, waiting = of[f"{name}_without_ms"], of[f"{name}_with_ms"]
            print(f"  {where}: {without:.2f} {waiting:.2f} {waiting / without:.1f}")
    mine = figures["here"]
    good = (
        mine["opening_with_ms"] <= OPENING_LIMIT * mine["opening_without_ms"]
        and mine["counts_with_ms"] <= COUNTS_LIMIT * mine["counts_without_ms"]
    )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
