"""The fast link as two daemons over TCP and TLS with recorded hardware: the rate that two processors sustain.

No encryptor fetches keys: both stores keep all of them, and the end compares the stores chunk by chunk.
"""

import os
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import msgspec.structs
import trio

from qnode.bench.links import FAST
from qnode.bench.processes import peak_mib
from qnode.bench.results import BenchResult, Effort, Machine, PairResult, Unit, summary
from qnode.bench.whole_link import Meter
from qnode.config import Role, SiteConfig, load
from qnode.keys import BlockState, open_store
from qnode.loopback.hardware import Played
from qnode.loopback.prepare import Prepared, Staging, prepare
from qnode.loopback.result import LinkResult
from qnode.loopback.run import run_prepared
from qnode.operate.status.model import NodeStatus
from qnode.simulate.recorder import record, steady_clocks

RECORDED_S = 1.0  # 28 million tags, repeated
ROUND_TRIPS_S = (0.0, 0.010, 0.050)
_BLOCKS = 4096
_MOST_CHUNKS = 1 << 25
_SIFTED_UNIT: Unit = "Mbit/s"
_KEY_UNIT: Unit = "secret Mbit/s"
_PEAK_UNIT: Unit = "MiB"


class StoresDiffer(AssertionError):
    """The two sites do not hold the same keys."""


def pair(_machine: Machine, effort: Effort) -> Iterator[BenchResult]:
    """Measure sifted and secret bits a second and peak memory, without and with a longer fibre."""
    with tempfile.TemporaryDirectory(prefix="qnode-recording-") as directory:
        folder = Path(directory) / "fast"
        record(folder, steady_clocks(FAST.simulation), FAST.link, RECORDED_S)
        for round_trip_s in ROUND_TRIPS_S:
            yield from _over(folder, round_trip_s, effort)


def _over(recording: Path, round_trip_s: float, effort: Effort) -> Iterator[BenchResult]:
    with tempfile.TemporaryDirectory(prefix="qnode-bench-") as directory:
        prepared = prepare(
            Path(directory),
            FAST,
            Staging(round_trip_s=round_trip_s, played=Played(recording, loop=True), most_chunks=_MOST_CHUNKS),
        )
        sifted = Meter(lambda status: status.totals.sifted_bits / 1e6, effort.pair_s)
        secret = Meter(lambda status: status.totals.secret_bits / 1e6, effort.pair_s)
        peaks = dict.fromkeys(prepared.site_files, 0.0)

        def see(result: LinkResult, status: NodeStatus) -> bool:
            for role, site_file in prepared.site_files.items():
                peaks[role] = max(peaks[role], peak_memory_mib(site_file))
            return secret.see(result, status) & sifted.see(result, status)

        outcome = trio.run(partial(run_prepared, prepared, FAST.link.source.p_z, see, exchange=False))
        compare_stores(prepared)
    result = outcome.result
    peak_mib = max(peaks.values())
    found = ((sifted.rates, _SIFTED_UNIT), (secret.rates, _KEY_UNIT), ([peak_mib], _PEAK_UNIT))
    for rates, unit in found:
        one = summary("pair", rates, unit, n_bits=result.sifted_bits, qber=result.qber_z, f=result.f_ec)
        yield PairResult(**msgspec.structs.asdict(one), round_trip_s=round_trip_s)


def compare_stores(prepared: Prepared) -> int:
    """Compare every block that both stopped sites hold; return the number of chunks.

    Raises:
        StoresDiffer: a block differs, or there is none to compare.
    """
    fingerprints: dict[Role, dict[int, bytes]] = {}
    chunks = 0
    for site_file in prepared.site_files.values():
        config = load(site_file, SiteConfig)
        role = config.node.role
        with open_store(
            config.store.path,
            role=role,
            store_key=config.store.store_key.read_bytes(),
            anchor=config.store.anchor,
            kme_id=config.node.kme_id,
            peer_kme_id=config.peer.kme_id,
            create=False,
        ) as store:
            held = [
                block
                for block in store.recent_blocks(_BLOCKS)
                if block.state == BlockState.AVAILABLE and block.chunks_left
            ]
            fingerprints[role] = {block.block_id: store.fingerprint(block.block_id) for block in held}
            chunks = sum(block.chunks_left for block in held)
    alice, bob = fingerprints["alice"], fingerprints["bob"]
    both = alice.keys() & bob.keys()
    if not both or any(alice[block_id] != bob[block_id] for block_id in both):
        raise StoresDiffer(f"of {len(both)} blocks that both sites hold some differ, or there are none")
    return chunks


def peak_memory_mib(site_file: Path) -> float:
    """Return the peak resident memory of the daemon that runs ``site_file``; 0 when there is none."""
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            if os.fsencode(site_file) not in (folder / "cmdline").read_bytes().split(b"\0"):
                continue
            return peak_mib(int(folder.name))
        except OSError:
            continue
    return 0.0
