"""What of a site is handed to a recorder, and which blocks say so."""

from pathlib import Path
from uuid import UUID

import msgspec.structs
import numpy as np
import pytest

from qnode.block.span import BlockSpan
from qnode.config import SiteConfig, load
from qnode.delivery import for_delivery
from qnode.devices.protocols import EmissionRun
from qnode.keys import BlockRecord, StoredKey
from qnode.node.quantum.recorder import AliceRecorder, BobRecorder, Passage, recorded_lookup
from qnode.operate.recording.frames import Begun, Ended, Frame, FrameReader, Symbols, Tags, WholeBlock
from qnode.operate.recording.recordings import MOST_HELD_BYTES, Recording, Recordings
from qnode.tags.site_recording import RecordedBlock
from qnode.tags.types import Codes, Slots, TagBlock

CONFIGS = {
    role: load(Path(__file__).parent.parent / "config" / f"{role}.toml", SiteConfig)
    for role in ("alice", "bob")
}
RUN = EmissionRun(run_id=7, started_at_s=1000.0)
NEXT_RUN = EmissionRun(run_id=8, started_at_s=2000.0)


def handed_on(recording: Recording) -> list[Frame]:
    reader, frames = FrameReader(), list[Frame]()
    while (encoded := recording.take()) is not None:
        frames += reader.frames(encoded)
    return frames


class Bob:
    """Bob's side: tags come, blocks are opened and end."""

    def __init__(self) -> None:
        self.recordings = Recordings(allowed=True)
        self.recorder = BobRecorder(CONFIGS["bob"], self.recordings, simulated=False)

    def tags(self, time_ps: int, reached_slot: int, numbering: int = 1, run: EmissionRun = RUN) -> None:
        block = TagBlock(np.array([time_ps, time_ps + 5]), np.array([0, 1], np.int8), time_ps + 9)
        self.recorder.hand_on(block, Passage(run, numbering, reached_slot, 999.5))


def times_in(frames: list[Frame]) -> list[int]:
    parts = [np.frombuffer(frame.times_ps, "<i8") for frame in frames if isinstance(frame, Tags)]
    return [int(time_ps) for part in parts for time_ps in part]


def test_nothing_is_handed_on_where_nobody_records() -> None:
    bob = Bob()
    assert bob.recorder.open_block(1, 100) is None
    bob.tags(10, 200)
    recording = bob.recordings.begin(user=0, process=1)
    assert handed_on(recording) == []


def test_tags_before_the_first_block_that_was_opened_as_recorded_are_not_handed_on() -> None:
    bob = Bob()
    assert bob.recorder.open_block(1, 0) is None  # runs while the recorder comes
    assert bob.recorder.open_block(1, 100) is None  # was agreed ahead
    recording = bob.recordings.begin(user=0, process=1)
    bob.tags(10, 50)
    assert bob.recorder.open_block(1, 200) is recording
    assert bob.recorder.open_block(1, 300) is recording
    bob.tags(20, 150)
    bob.tags(30, 199)
    assert handed_on(recording) == []
    bob.tags(40, 210)
    bob.tags(50, 310)
    bob.recorder.end_block(recording, 1, 3, BlockSpan(7, 200, 100))  # some of its tags came before
    bob.recorder.end_block(recording, 1, 4, BlockSpan(7, 300, 100))
    begun, *frames = handed_on(recording)
    assert isinstance(begun, Begun)
    assert (begun.role, begun.run_id, begun.origin_s, begun.first_slot) == ("bob", 7, 999.5, 210)
    assert (begun.kme_id, begun.peer_kme_id, begun.simulated) == ("kme-bob", "kme-alice", False)
    assert times_in(frames) == [40, 45, 50, 55]
    assert frames[-1] == WholeBlock(RecordedBlock(4, 300, 100))


def test_tags_wait_for_lock() -> None:
    bob = Bob()
    recording = bob.recordings.begin(user=0, process=1)
    bob.recorder.open_block(1, 0)
    bob.tags(10, -1)
    assert handed_on(recording) == []


def test_slots_counted_anew_end_a_recording_that_has_begun() -> None:
    bob = Bob()
    recording = bob.recordings.begin(user=0, process=1)
    bob.recorder.open_block(1, 0)
    bob.tags(10, 5)
    bob.tags(20, 0, numbering=2, run=NEXT_RUN)
    assert bob.recorder.open_block(2, 0) is None
    bob.tags(30, 50, numbering=2, run=NEXT_RUN)
    *frames, last = handed_on(recording)
    assert times_in(frames) == [10, 15]
    assert isinstance(last, Ended)
    assert "emission run ended" in last.because
    assert not last.fell_behind


def test_slots_counted_anew_before_it_begins_let_a_recording_wait_on() -> None:
    bob = Bob()
    recording = bob.recordings.begin(user=0, process=1)
    bob.recorder.open_block(1, 500)  # of slots that will never come
    bob.tags(10, 0, numbering=2, run=NEXT_RUN)
    bob.tags(20, 600, numbering=2, run=NEXT_RUN)  # of the new numbering, no block of which is recorded yet
    assert handed_on(recording) == []
    bob.recorder.open_block(2, 700)
    bob.tags(30, 700, numbering=2, run=NEXT_RUN)
    begun, *frames = handed_on(recording)
    assert isinstance(begun, Begun)
    assert begun.run_id == 8
    assert times_in(frames) == [30, 35]


def test_a_second_recorder_gets_nothing_of_the_first_ones_blocks() -> None:
    bob = Bob()
    bob.recordings.begin(user=0, process=1)
    bob.recorder.open_block(1, 100)
    bob.recordings.finish("enough")
    second = bob.recordings.begin(user=0, process=1)
    bob.tags(10, 150)  # of the block that the first one recorded
    assert handed_on(second) == []
    bob.recorder.open_block(1, 200)
    bob.tags(20, 250)
    assert times_in(handed_on(second)) == [20, 25]


def test_a_block_stays_recorded_when_its_recorder_has_gone() -> None:
    bob = Bob()
    first = bob.recordings.begin(user=0, process=1)
    opened = bob.recorder.open_block(1, 100)
    bob.recordings.finish("enough")
    assert opened is first  # what the block says to the peer
    assert bob.recorder.open_block(1, 200) is None


def test_a_block_that_is_opened_after_its_tags_were_handed_on_counts_as_recorded() -> None:
    bob, second_ps = Bob(), 10**12
    first = bob.recordings.begin(user=0, process=1)
    bob.recorder.open_block(1, 100)
    bob.tags(second_ps, 100)  # up to slot 450, say
    bob.recordings.finish("enough")
    assert bob.recorder.open_block(1, 300) is first  # was agreed late, over a long way
    bob.tags(2 * second_ps, 250)  # these are not handed on, but where the last ones were is not known yet
    assert bob.recorder.open_block(1, 900) is first
    bob.tags(3 * second_ps, 700)
    assert bob.recorder.open_block(1, 650) is first  # a session began anew
    assert bob.recorder.open_block(1, 700) is None
    assert bob.recorder.open_block(2, 0) is None  # slots of other tags


def test_where_the_last_tags_were_is_not_known_without_lock() -> None:
    bob, second_ps = Bob(), 10**12
    first = bob.recordings.begin(user=0, process=1)
    bob.recorder.open_block(1, 100)
    bob.tags(second_ps, 100)
    bob.recordings.finish("enough")
    for seconds, reached_slot in enumerate((-1, -1, 300, 300), 2):
        bob.tags(seconds * second_ps, reached_slot)
    assert bob.recorder.open_block(1, 300) is first
    bob.tags(9 * second_ps, 900)
    assert bob.recorder.open_block(1, 900) is None


def sent(slots: Slots) -> Codes:
    return (slots % 3).astype(np.uint8)


def test_alice_hands_on_what_is_looked_up_but_not_of_the_block_before() -> None:
    recording = Recording(MOST_HELD_BYTES)
    look = recorded_lookup(sent, recording, 100)
    assert look(np.array([101, 104])).tolist() == [2, 2]
    # The slots before boundary clicks; the first is of a block that may not be recorded.
    assert look(np.array([99, 103])).tolist() == [0, 1]
    assert look(np.empty(0, np.int64)).tolist() == []
    one, other = handed_on(recording)
    assert isinstance(one, Symbols)
    assert isinstance(other, Symbols)
    assert np.frombuffer(one.slots, "<i8").tolist() == [101, 104]
    assert list(one.symbols) == [2, 2]
    assert np.frombuffer(other.slots, "<i8").tolist() == [103]
    assert list(other.symbols) == [1]


def test_alices_recording_is_of_one_emission_run() -> None:
    recordings = Recordings(allowed=True)
    recorder = AliceRecorder(CONFIGS["alice"], recordings, simulated=True)
    assert recorder.open_block(RUN) is None
    recording = recordings.begin(user=0, process=1)
    assert recorder.open_block(RUN) is recording
    assert recorder.open_block(RUN) is recording
    assert recorder.open_block(NEXT_RUN) is None
    begun, ended = handed_on(recording)
    assert isinstance(begun, Begun)
    assert (begun.role, begun.run_id, begun.started_at_s, begun.simulated) == ("alice", 7, 1000.0, True)
    assert isinstance(ended, Ended)
    recordings.finish("over")
    again = recordings.begin(user=0, process=1)
    assert recorder.open_block(NEXT_RUN) is again


def test_what_is_held_is_bounded_and_taking_makes_room() -> None:
    recording = Recording(1000)
    tags = Tags(bytes(8 * 40), bytes(40))
    recording.put(tags)
    recording.put(tags)
    assert handed_on(recording) == [tags, tags]
    recording.put(tags)
    recording.put(tags)
    recording.put(tags)
    assert recording.ended
    recording.put(tags)
    *frames, last = handed_on(recording)
    assert frames == [tags, tags]
    assert isinstance(last, Ended)
    assert last.fell_behind


def test_a_recording_that_is_over_holds_no_key() -> None:
    bob = Bob()
    recording = bob.recordings.begin(user=0, process=1)
    bob.recorder.open_block(1, 0)
    bob.tags(10, 5)
    bob.recordings.finish("the recorder does not take what is sent")
    bob.tags(20, 7)
    assert recording.ended
    assert handed_on(recording) == []


def test_encryptors_are_told_with_each_key_of_a_recorded_block() -> None:
    plain = BlockRecord(
        estimator="eur",
        eps_sec=1e-9,
        eps_cor=1e-15,
        x_mode="visibility",
        assumptions=("one",),
        simulated=False,
        n_chunks=4,
        secret_bits=1024,
        created_at=0.0,
    )
    recorded = msgspec.structs.replace(plain, recorded=True)
    keys = [
        StoredKey(UUID(int=n), bytes(32), record)
        for n, record in enumerate((plain, recorded, recorded, plain))
    ]
    said = [key.extension.get("recorded") for key in for_delivery(keys)]
    assert said == [None, True, True, None]


@pytest.mark.parametrize("role", ["alice", "bob"])
def test_recordings_are_not_allowed_unless_the_site_file_says_so(role: str) -> None:
    operate = CONFIGS[role].operate
    assert not operate.allow_recording
    without = {
        key: value for key, value in msgspec.structs.asdict(operate).items() if key != "allow_recording"
    }
    assert not type(operate)(**without).allow_recording


def test_a_recording_of_tags_ends_before_the_counter_of_the_tdc_wraps_and_another_may_follow() -> None:
    bob = Bob()
    recording = bob.recordings.begin(user=0, process=1)
    bob.recorder.open_block(1, 200)
    late_ps = 2**63 - 70 * 10**12
    bob.tags(late_ps, 210)
    bob.tags(late_ps + 20 * 10**12, 220)
    assert "wraps" in recording.ended
    assert times_in(handed_on(recording)) == [late_ps, late_ps + 5]
    bob.recordings.finish("over")
    bob.tags(-(2**63) + 10**12, 230)
    bob.tags(-(2**63) + 2 * 10**12, 240)
    later = bob.recordings.begin(user=0, process=1)
    assert bob.recorder.open_block(1, 300) is later
    bob.tags(-(2**63) + 3 * 10**12, 310)
    assert times_in(handed_on(later)) == [-(2**63) + 3 * 10**12, -(2**63) + 3 * 10**12 + 5]
