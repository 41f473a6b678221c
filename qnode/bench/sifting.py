"""From tags to sifted bits, both sides: clock and gates, announcement, look-up, bits of both sites."""

from collections.abc import Iterator
from typing import Final

import msgspec.structs

from qnode.bench.links import FAST
from qnode.bench.results import BenchResult, Effort, Machine, rates, summary
from qnode.offline.sifting import sifted_blocks
from qnode.offline.synchronise import RunStart, synchronised
from qnode.simulate.recording import SimulatedRecording

TAGS_S: Final = 0.25  # of the fast link: eight million tags
# The least memory traffic: a tag is 9 bytes, a click too; each is written once and read twice.
_BYTES_A_TAG: Final = 9 * 2 + 9 * 2
# Alignment is not measured: the start of the run is known better here than between two sites.
_KNOWN: Final = RunStart(uncertainty_s=1e-4)


def sift(machine: Machine, effort: Effort) -> Iterator[BenchResult]:
    """Measure the path from the fast link's tags, X arm included, to sifted bits, without alignment."""
    # Blocks that end within the recording.
    block = msgspec.structs.replace(FAST.link.block, sifted_bits=1_000_000)
    link = msgspec.structs.replace(FAST.link, block=block)
    recording = SimulatedRecording(FAST.simulation, link)
    blocks = list(recording.tags(TAGS_S))
    n_tags = sum(int(one.times_ps.shape[0]) for one in blocks)
    sifted: list[int] = []

    def work() -> float:
        results = synchronised(blocks, recording.symbols, link, _KNOWN)
        part = sifted_blocks(results, recording.symbols, link)
        sifted[:] = [len(one.received) for one in part]
        if not sifted:
            raise AssertionError("the link did not lock")
        return n_tags / 1e6

    yield summary(
        "sift",
        rates(work, effort),
        "Mtag/s",
        n_bits=sum(sifted),
        limit=machine.copy_bytes_per_s / _BYTES_A_TAG / 1e6,
    )
