"""The search windows for slots: every offset within ±0.32 s, the likely ones first."""

import itertools
import os
from collections.abc import AsyncGenerator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import msgspec
import numpy as np
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from qnode.choices import LockState
from qnode.config import LinkParameters, ReceiverParameters, SiteConfig, SourceParameters, load
from qnode.devices.protocols import EmissionRun, TagSource
from qnode.errors import TransientDeviceError
from qnode.node.quantum.bob import BobSide
from qnode.node.quantum.receiver import Receiver
from qnode.node.quantum.receiver_requests import AlignmentRequest, ReceiverRequest
from qnode.node.quantum.recorder import BobRecorder
from qnode.node.status.link_figures import LinkFigures
from qnode.operate.recording.recordings import Recordings
from qnode.simulate.parameters import DetectorParameters, SimulationParameters
from qnode.simulate.recording import SimulatedRecording
from qnode.tags.alignment import MOST_OFFSETS, Alignment, AlignmentProbe, correlate
from qnode.tags.marks import NO_MARKS
from qnode.tags.offset_search import ARRIVAL_S, FURTHEST_S, OffsetSearch
from qnode.tags.order import OrderStatistics
from qnode.tags.sync_statistics import SyncStatistics
from qnode.tags.synchroniser import Synchroniser, SyncResult
from qnode.tags.types import NO_CLICKS, TagBlock
from qnode.units import PS_PER_S

RATE_HZ = 600_000_000
PROBE = AlignmentProbe(1, 3 * PS_PER_S, np.arange(0, 40_000, 10))


def asked(search: OffsetSearch, n: int, now_s: float = 5.0) -> list[range]:
    """Return the windows of ``n`` probes that all fail."""
    windows = []
    for _ in range(n):
        windows.append(search.next(PROBE, 7, 100.0, 4 * PS_PER_S, now_s).offsets)
        search.answered(now_s, found=False)
    return windows


@given(uncertainty_s=st.floats(1e-6, 0.1), rate_hz=st.integers(10_000_000, 2_500_000_000))
def test_windows_cover_all_within_a_third_of_a_second_once_and_each_can_be_searched(
    uncertainty_s: float, rate_hz: int
) -> None:
    windows = asked(OffsetSearch(uncertainty_s, rate_hz), 400)
    first, *elsewhere = windows[0], *windows[1::2]
    assert set(windows[::2]) == {first}
    once = elsewhere[: elsewhere.index(elsewhere[0], 1)]
    ordered = sorted([first, *once], key=lambda one: one.start)
    assert all(one.stop == other.start for one, other in itertools.pairwise(ordered))
    centre = round(2 * rate_hz * 100.0)
    reach = round(2 * rate_hz * FURTHEST_S)
    assert ordered[0].start <= centre - reach
    assert ordered[-1].stop > centre + reach
    assert all(len(one) <= 1 << 26 for one in once)
    assert len(first) <= MOST_OFFSETS


def test_the_second_place_is_where_the_count_should_be_by_our_own_clock() -> None:
    search = OffsetSearch(0.010, RATE_HZ)
    search.note(7, 30_000 * RATE_HZ, 2.0)
    search.note(7, 77, 2.5)  # a lock on something else
    # The tags until 4 s came at 5 s, the probe began a second before those: two seconds after the note.
    _, second = asked(search, 2)
    assert (second.start + second.stop) // 2 == 2 * 30_002 * RATE_HZ
    around = [second, *asked(search, 16)[1::2]]
    assert max(one.stop for one in around) >= second.stop + 2 * RATE_HZ * ARRIVAL_S
    search.answered(5.0, found=True)
    search.note(7, 77 * RATE_HZ, 5.0)  # believed: it is the first after an answer
    _, second = asked(search, 2)
    assert (second.start + second.stop) // 2 == 2 * 76 * RATE_HZ
    search.answered(5.0, found=True)
    _, second = asked(search, 2)
    assert second.start == asked(OffsetSearch(0.010, RATE_HZ), 1)[0].stop  # nothing is known


def test_a_new_run_is_looked_for_by_the_times_of_day_first() -> None:
    search = OffsetSearch(0.010, RATE_HZ)
    first = asked(search, 19)[0]
    assert search.next(PROBE, 8, 100.0, 4 * PS_PER_S, 5.0).offsets == first


def test_elsewhere_a_probe_is_short_so_that_alice_is_not_kept_long() -> None:
    search = OffsetSearch(0.010, RATE_HZ)
    assert search.next(PROBE, 7, 100.0, 0, 0.0).probe.ticks.size == 4000
    search.answered(0.0, found=False)
    assert search.next(PROBE, 7, 100.0, 0, 0.0).probe.ticks.size == 1024


def test_a_round_of_half_a_minute_without_an_alignment_asks_for_a_new_time_of_day() -> None:
    search = OffsetSearch(0.010, RATE_HZ)
    first = asked(search, 1, 0.0)[0]
    asked(search, 100, 29.9)
    search.answered(30.0, found=True)
    asked(search, 1, 40.0)
    asked(search, 8, 100.0)  # seldom a probe: not everywhere has been asked yet
    with pytest.raises(TransientDeviceError, match="times of day"):
        asked(search, 40, 100.0)
    assert asked(search, 1, 101.0)[0] == first  # of the next opening


class LateAnswer:
    """The part of a session that alignment needs: Alice is slow."""

    run = EmissionRun(run_id=1, started_at_s=0.0)
    last_block_id = 0

    async def do(self, request: ReceiverRequest) -> None:
        if isinstance(request, AlignmentRequest):
            await trio.sleep(0.6)
            request.reply.send_nowait(Alignment(request.probe.number, 0, 1, 9.0, 0))


class EmptyTdc:
    paced = True
    origin_s = 0.0
    began_s = 0.0

    async def tags(self) -> AsyncGenerator[TagBlock, None]:
        self.began_s = trio.current_time()
        while True:
            await trio.sleep(0.01)
            until_ps = round((trio.current_time() - self.began_s) * PS_PER_S)
            yield TagBlock(np.zeros(0, np.int64), np.zeros(0, np.int8), until_ps)


class AligningAtOnce:
    """A synchroniser that wants one probe, and keeps lock though tags are lost."""

    def __init__(self, *_parameters: object) -> None:
        self._state = LockState.ALIGNING
        self._probe: AlignmentProbe | None = PROBE

    def restart(self) -> None: ...

    def aligned(self, _alignment: Alignment) -> None:
        self._state = LockState.LOCKED

    def feed(self, block: TagBlock, _settling_ps: int | None = None) -> SyncResult:
        probe, self._probe = self._probe, None
        reached = block.until_ps * RATE_HZ // PS_PER_S
        statistics, order = SyncStatistics(), OrderStatistics()
        return SyncResult(
            self._state, NO_CLICKS, NO_MARKS, (), reached, probe, (), statistics, order, block.until_ps
        )


async def test_the_count_is_known_as_of_when_tags_came_though_they_wait_while_alice_searches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("qnode.node.quantum.receiver.Synchroniser", AligningAtOnce)
    config = load(Path(__file__).parent.parent / "config" / "bob.toml", SiteConfig)
    source = msgspec.structs.replace(config.link.source, qubit_rate_hz=RATE_HZ)
    config = msgspec.structs.replace(config, link=msgspec.structs.replace(config.link, source=source))
    receiver = Receiver(config, LinkFigures(config), BobRecorder(config, Recordings(), simulated=True))
    receiver._part = cast(BobSide, LateAnswer())
    tdc = EmptyTdc()

    def known_after(seconds: float) -> bool:
        known = receiver._search._known
        return known is not None and known.at_s > tdc.began_s + seconds

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receiver.use, cast(TagSource, tdc), 1000.0)
            # A quarter of a second of tags is lost, and the count is believed all the same.
            while not known_after(0.7):  # noqa: ASYNC110
                await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
    known = receiver._search._known
    assert known is not None
    assert known.slot / RATE_HZ == pytest.approx(known.at_s - tdc.began_s, abs=ARRIVAL_S)


BRIGHT = DetectorParameters(efficiency=0.5, dead_time_s=1e-6)
LINK = LinkParameters(source=SourceParameters(p_z=0.9), receiver=ReceiverParameters(p_z=0.9))
RECORDED = SimulatedRecording(
    SimulationParameters(attenuation_db=6.0, z_detector=BRIGHT, x_detector=BRIGHT), LINK
)


class AnsweringPart:
    """Of a session what alignment needs: Alice searches among what was sent."""

    run = EmissionRun(run_id=1, started_at_s=0.0)
    last_block_id = 0

    async def do(self, request: ReceiverRequest) -> None:
        if isinstance(request, AlignmentRequest):
            offsets = request.offsets
            request.reply.send_nowait(
                correlate(request.probe, RECORDED.symbols, offsets.start, offsets.stop - 1)
            )


@pytest.mark.parametrize("strayed_s", [0.0, 0.015, -0.035])
async def test_slots_are_found_though_alices_clock_has_strayed_from_the_time_of_day(strayed_s: float) -> None:
    config = load(Path(__file__).parent.parent / "config" / "bob.toml", SiteConfig)
    config = msgspec.structs.replace(config, link=LINK)
    figures = LinkFigures(config)
    receiver = Receiver(config, figures, BobRecorder(config, Recordings(), simulated=True))
    receiver._part = cast(BobSide, AnsweringPart())
    synchroniser = Synchroniser(LINK.source, LINK.receiver, os.urandom)
    source = cast(TagSource, SimpleNamespace(paced=False, origin_s=-strayed_s))
    for block in RECORDED.tags(3.0):
        for first in range(0, block.times_ps.size, 20_000):
            times_ps = block.times_ps[first : first + 20_000]
            until_ps = min(int(times_ps[-1]), block.until_ps)
            await receiver._process(
                source,
                synchroniser,
                TagBlock(times_ps, block.channels[first : first + 20_000], until_ps),
                0.0,
            )
            if synchroniser.state is LockState.LOCKED:
                return
    raise AssertionError(f"no lock: {synchroniser.state}")
