"""Compiles before a first start: modules, and, by doing a little of all work, a daemon's kernels."""

import compileall
import importlib.util
import multiprocessing
from collections.abc import Callable

import numpy as np

from qnode.choices import LockState
from qnode.config import LinkParameters, ReceiverParameters, SourceParameters
from qnode.distill.amplification.amplify import amplify, seed_length_bytes
from qnode.distill.bits import Bits
from qnode.distill.counts import Pair
from qnode.distill.keylength import EstimatorInput, estimate
from qnode.distill.selftest import self_test
from qnode.distill.sifting.announced import Announced
from qnode.distill.sifting.span_counts import SpanCounts
from qnode.kernel_code import KernelCache
from qnode.offline.synchronise import RunStart, synchronised
from qnode.offline.workers import worker_processes
from qnode.simulate.parameters import DetectorParameters, SimulationParameters
from qnode.simulate.recording import SimulatedRecording
from qnode.simulate.symbols import repeated_symbols
from qnode.tags import open_protocol
from qnode.tags.formats import recognition as tag_files

_PACKAGES = ("qnode", "qnode_drivers")
# A bright link locks within a tenth of a second of tags, which are generated quickly.
_DURATION_S = 0.5
_BRIGHT = DetectorParameters(efficiency=0.5, dead_time_s=1e-6)
_LINK = LinkParameters(
    source=SourceParameters(p_z=0.9), receiver=ReceiverParameters(p_z=0.9, dead_time_s=_BRIGHT.dead_time_s)
)
_SIMULATION = SimulationParameters(attenuation_db=6.0, z_detector=_BRIGHT, x_detector=_BRIGHT)


def warm() -> int:
    """Compile the kernels missing in the cache, on two cores; return their number.

    Raises:
        SelfTestFailed: a step gave a wrong result.
        RuntimeError: the simulated link did not lock.
    """
    for package in _PACKAGES:
        _compile_modules(package)
    # Separate processes: numba compiles one kernel at a time in each. The self-test amplifies last, and finds
    # that kernel compiled by the other process.
    with worker_processes(2, multiprocessing.get_context("spawn")) as workers:
        work = (self_test, warm_amplification, warm_tags, warm_key_length)
        return sum(workers.map(_compiled_by, work))


def _compile_modules(package: str) -> None:
    """Store the bytecode of a package where Python looks for it; a checkout may not have it."""
    found = importlib.util.find_spec(package)
    for folder in (found.submodule_search_locations or []) if found else []:
        compileall.compile_dir(folder, quiet=2)


def _compiled_by(work: Callable[[], None]) -> int:
    before = KernelCache.misses
    work()
    return KernelCache.misses - before


def warm_amplification() -> None:
    """Hash a small block."""
    n_bits = 1000
    amplify(
        Bits(np.zeros(-(-n_bits // 64), np.uint64), n_bits), bytes(seed_length_bytes(n_bits)), n_bits // 2
    )


def warm_key_length() -> None:
    """Search the weights of `three_state` for a block of a few counts."""
    some, few = Pair(10.0, 10.0), Pair(1.0, 1.0)
    inputs = EstimatorInput(
        n_z=some, m_z=few, n_x=some, m_x=few, mu=Pair(0.5, 0.2), p=Pair(0.5, 0.5), p_z=0.5, x_scale=2.0,
        n_z_plus=some, boundary=20.0, e_same=few, e_plus=few, e_dark=few, lambda_ec=0.0,
    )  # fmt: skip
    estimate(inputs, "three_state")


def warm_tags() -> None:
    """Lock onto generated tags of a bright link, look up symbols of a loop, read tag files and frames."""
    recording = SimulatedRecording(_SIMULATION, _LINK)
    state, counts = LockState.SEARCHING, SpanCounts(0, round(_DURATION_S * _LINK.source.qubit_rate_hz))
    for result in synchronised(recording.tags(_DURATION_S), recording.symbols, _LINK, RunStart()):
        state = result.state
        counts.add_clicks(Announced.of(result.clicks))
    if state is not LockState.LOCKED:
        raise RuntimeError(f"the simulated link did not lock: {state.value}")
    repeated_symbols(0, np.arange(8, dtype=np.int64), _LINK.source, period=4, end=8)
    tag_files.warm()
    open_protocol.warm()
