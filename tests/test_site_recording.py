"""Recording a running site: frames, the hub, the control socket and the command, over real sockets."""

import os
import resource
import signal
import socket
import stat
import struct
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from operate_support import well_status

from qnode.config import LinkParameters
from qnode.errors import ConfigError
from qnode.operate.control import listening, requests, sending
from qnode.operate.control.answers import Answers, LinkAnswers
from qnode.operate.control.client import NoAnswer, NodeNotRunning, ask_status
from qnode.operate.control.server import serve_control
from qnode.operate.recorder.site import Recorded, record_site
from qnode.operate.recording.frames import (
    MOST_FRAME_BYTES,
    Begun,
    BrokenFrame,
    Ended,
    Frame,
    FrameReader,
    Symbols,
    Tags,
    WholeBlock,
    encode_frame,
)
from qnode.operate.recording.recordings import Recordings
from qnode.operate.status.screen import status_lines
from qnode.tags.recording import MANIFEST
from qnode.tags.site_recording import (
    AliceRecording,
    BobRecording,
    RecordedBlock,
    SiteRecordingWriter,
    is_site_recording,
    open_site_recording,
)

QNODE = str(Path(sys.executable).parent / "qnode")
LINK = LinkParameters(name="recorded")
BOB = Begun(
    role="bob",
    kme_id="kme-bob",
    peer_kme_id="kme-alice",
    simulated=True,
    run_id=7,
    began_at_s=1000.0,
    start_uncertainty_s=0.01,
    link=LINK,
    origin_s=999.5,
    first_slot=123,
)
ALICE = Begun(
    role="alice",
    kme_id="kme-alice",
    peer_kme_id="kme-bob",
    simulated=True,
    run_id=7,
    began_at_s=1000.0,
    start_uncertainty_s=0.01,
    link=LINK,
    started_at_s=999.0,
)


def tags(*times_ps: int) -> Tags:
    return Tags(np.array(times_ps, "<i8").tobytes(), bytes(len(times_ps)))


def symbols(*slots: int) -> Symbols:
    return Symbols(np.array(slots, "<i8").tobytes(), bytes(slot % 3 for slot in slots))


# Frames


frames_of_all_kinds = st.one_of(
    st.builds(Tags, st.binary(max_size=300), st.binary(max_size=300)),
    st.builds(Symbols, st.binary(max_size=300), st.binary(max_size=300)),
    st.builds(WholeBlock, st.builds(RecordedBlock, *[st.integers(0, 2**62)] * 3)),
    st.builds(Ended, st.text(max_size=50), st.booleans()),
    st.sampled_from([BOB, ALICE]),
)


@given(frames=st.lists(frames_of_all_kinds, max_size=8), cuts=st.lists(st.integers(1, 400), max_size=20))
def test_frames_arrive_as_they_were_sent_however_they_are_cut(frames: list[Frame], cuts: list[int]) -> None:
    sent = b"".join(encode_frame(frame) for frame in frames)
    reader, received, place = FrameReader(), list[Frame](), 0
    for length in [*cuts, len(sent)]:
        received += reader.frames(sent[place : place + length])
        place += length
    assert received == frames


@given(sent=st.binary(min_size=4, max_size=200))
def test_what_is_no_frame_is_refused_or_incomplete(sent: bytes) -> None:
    try:
        received = list(FrameReader().frames(sent))
    except BrokenFrame:
        return
    assert b"".join(encode_frame(frame) for frame in received) != sent or not received
    assert int.from_bytes(sent[:4], "big") <= MOST_FRAME_BYTES


def test_a_frame_too_long_is_refused_before_it_has_come() -> None:
    with pytest.raises(BrokenFrame, match=f"at most {MOST_FRAME_BYTES}"):
        list(FrameReader().frames((MOST_FRAME_BYTES + 1).to_bytes(4, "big")))


def test_frames_do_not_show_what_they_hold() -> None:
    assert repr(symbols(1, 2)) == "Symbols(2 symbols)"
    assert repr(tags(1, 2, 3)) == "Tags(3 tags)"


# The hub and the control socket


class Site:
    """A daemon's control socket and what stands behind its recordings."""

    def __init__(self, socket_path: Path, **settings: Any) -> None:
        self.path = socket_path
        self.since_s: list[float | None] = []
        defaults: dict[str, Any] = {"allowed": True, "changed": self.since_s.append}
        self.recordings = Recordings(**(defaults | settings))

    @asynccontextmanager
    async def served(self) -> AsyncIterator["Site"]:
        answers = Answers(
            well_status,
            lambda _count: [],
            {"turin": LinkAnswers(lambda _count, _after: [], self.recordings)},
        )
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                await nursery.start(serve_control, self.path, answers)
                yield self
                nursery.cancel_scope.cancel()

    async def recorded(self) -> None:
        """Wait until somebody records."""
        while self.recordings.current is None:  # noqa: ASYNC110
            await trio.sleep(0.01)

    async def free(self) -> None:
        """Wait until a next recorder would be taken."""
        while self.recordings._present is not None:  # noqa: ASYNC110
            await trio.sleep(0.01)

    def put(self, *frames: Frame) -> None:
        recording = self.recordings.current
        assert recording is not None
        for frame in frames:
            recording.put(frame)


def record(
    site: Path, folder: Path, wait: Callable[[float], bool], duration_s: float | None = None
) -> Recorded:
    """Record in a thread until ``wait`` says so."""
    with SiteRecordingWriter(folder) as writer:
        return record_site(site, writer, duration_s=duration_s, wait=wait, tell=lambda _text: None)


class Stop:
    """Ends a recording once it is set."""

    def __init__(self) -> None:
        self.set = False

    def __call__(self, _pause_s: float) -> bool:
        return self.set


async def started(nursery: trio.Nursery, site: Site, folder: Path, stop: Stop, done: list[Recorded]) -> None:
    """Start a recorder and wait until the site knows of it."""

    async def work() -> None:
        done.append(await trio.to_thread.run_sync(partial(record, site.path, folder, stop)))

    nursery.start_soon(work)
    await site.recorded()


async def test_tags_and_blocks_are_recorded_as_they_were_handed_on(tmp_path: Path) -> None:
    folder, stop, done = tmp_path / "bob.rec", Stop(), list[Recorded]()
    async with Site(tmp_path / "s").served() as site:
        async with trio.open_nursery() as nursery:
            await started(nursery, site, folder, stop, done)
            site.put(
                BOB, tags(10, 50, 90, 70), tags(80, 120), WholeBlock(RecordedBlock(4, 200, 50)), tags(150)
            )
            stop.set = True
        await site.free()
    assert done[0].whole
    recording = open_site_recording(folder)
    assert isinstance(recording, BobRecording)
    assert recording.times_ps.tolist() == [10, 50, 90, 70, 80, 120, 150]
    assert recording.channels.tolist() == [0] * 7
    manifest = recording.manifest
    assert manifest == done[0].manifest
    assert manifest.blocks == (RecordedBlock(4, 200, 50),)
    assert (manifest.role, manifest.run_id, manifest.link, manifest.simulated) == ("bob", 7, LINK, True)
    assert (manifest.origin_s, manifest.first_slot, manifest.started_at_s) == (999.5, 123, None)
    assert (manifest.entries, manifest.disorder_ps) == (7, 20)
    assert is_site_recording(folder)
    since, over = site.since_s
    assert since is not None
    assert over is None


async def test_only_the_owner_can_read_a_recording(tmp_path: Path) -> None:
    folder, stop, done = tmp_path / "alice.rec", Stop(), list[Recorded]()
    folder.mkdir(mode=0o755)
    async with Site(tmp_path / "s").served() as site, trio.open_nursery() as nursery:
        await started(nursery, site, folder, stop, done)
        site.put(ALICE, symbols(5, 9), symbols(4))
        stop.set = True
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert modes == {"slots.npy": 0o600, "symbols.npy": 0o600, MANIFEST: 0o600}
    recording = open_site_recording(folder)
    assert isinstance(recording, AliceRecording)
    assert (recording.slots.tolist(), recording.symbols.tolist()) == ([5, 9, 4], [2, 0, 1])
    folder.chmod(0o750)
    with pytest.raises(ConfigError, match="chmod 700"):
        open_site_recording(folder)


async def test_a_site_that_does_not_allow_it_says_how_to(tmp_path: Path) -> None:
    async with Site(tmp_path / "s", allowed=False).served() as site:
        with pytest.raises(NoAnswer, match=r"set allow_recording = true in \[operate\]"):
            await trio.to_thread.run_sync(partial(record, site.path, tmp_path / "r", Stop()))
        assert site.since_s == []
        # The answer is a line; the same caller may ask on.
        async with await trio.open_unix_socket(site.path) as stream:
            await stream.send_all(b'{"request":"record"}\n{"request":"status"}\n')
            await stream.send_eof()
            lines = b"".join([part async for part in stream]).splitlines()
        assert [b"error" in lines[0], b"status" in lines[1]] == [True, True]


async def test_only_root_and_the_daemons_own_user_may_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Site(tmp_path / "s").served() as site:
        # Seen from a daemon of another user: the kernel still says who the caller is.
        monkeypatch.setattr(requests, "ROOT", 2**31)
        monkeypatch.setattr(os, "geteuid", lambda: 2**30)
        with pytest.raises(NoAnswer, match=f"user {os.getuid()} may not record, restore or adjust this site"):
            await trio.to_thread.run_sync(partial(record, site.path, tmp_path / "r", Stop()))
        assert site.since_s == []


async def test_a_second_recorder_is_refused_until_the_first_has_ended(tmp_path: Path) -> None:
    stop, done = Stop(), list[Recorded]()
    async with Site(tmp_path / "s").served() as site:
        async with trio.open_nursery() as nursery:
            await started(nursery, site, tmp_path / "first", stop, done)
            with pytest.raises(NoAnswer, match="is being recorded already"):
                await trio.to_thread.run_sync(partial(record, site.path, tmp_path / "second", Stop()))
            stop.set = True
        await site.free()
        async with trio.open_nursery() as nursery:
            again = Stop()
            await started(nursery, site, tmp_path / "second", again, done)
            site.put(ALICE, symbols(1))
            again.set = True
    assert done[0].manifest is None  # no block began
    assert done[1].manifest is not None
    assert done[1].manifest.entries == 1


async def test_a_recorder_that_falls_behind_keeps_a_whole_beginning(tmp_path: Path) -> None:
    folder, stop, done = tmp_path / "r", Stop(), list[Recorded]()
    many = 5000
    async with Site(tmp_path / "s", most_held_bytes=100_000).served() as site, trio.open_nursery() as nursery:
        await started(nursery, site, folder, stop, done)
        # All at once: the event loop, which sends, has no turn meanwhile.
        site.put(
            BOB,
            *(tags(first, first + 1) for first in range(0, 2 * many, 2)),
            WholeBlock(RecordedBlock(1, 200, 50)),
        )
        assert site.recordings.current is None
    assert not done[0].whole
    assert "fell behind" in done[0].because
    recording = open_site_recording(folder)
    assert isinstance(recording, BobRecording)
    assert recording.times_ps.tolist() == list(range(recording.manifest.entries))
    assert 0 < recording.manifest.entries < 2 * many
    assert recording.manifest.blocks == ()


async def test_a_recorder_that_does_not_read_never_holds_up_the_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "SEND_LIMIT_S", 0.2)
    async with Site(tmp_path / "s").served() as site:
        async with await trio.open_unix_socket(site.path) as stream:
            await stream.send_all(b'{"request":"record"}\n')
            await site.recorded()
            # Megabytes, more than a socket holds, put without waiting for anybody.
            site.put(BOB, *(tags(*range(100_000)) for _ in range(10)))
            await site.free()
        assert site.since_s[-1] is None
        assert await trio.to_thread.run_sync(lambda: ask_status(site.path, patience_s=60))


async def test_a_recorder_that_does_not_read_does_not_hold_up_the_daemons_end(tmp_path: Path) -> None:
    site = Site(tmp_path / "s")
    async with site.served():
        stream = await trio.open_unix_socket(site.path)
        await stream.send_all(b'{"request":"record"}\n')
        await site.recorded()
        site.put(BOB, *(tags(*range(100_000)) for _ in range(10)))
        await stream.send_eof()  # enough, it says, but it takes nothing
        await trio.sleep(0.2)  # until the socket is full
        assert site.recordings._present is not None
        stopping_at = trio.current_time()
    assert trio.current_time() - stopping_at < listening.SEND_LIMIT_S / 2
    await stream.aclose()


async def test_a_run_that_ends_ends_the_recording_whole(tmp_path: Path) -> None:
    folder, done = tmp_path / "r", list[Recorded]()
    async with Site(tmp_path / "s").served() as site, trio.open_nursery() as nursery:
        await started(nursery, site, folder, Stop(), done)
        site.put(ALICE, symbols(3), WholeBlock(RecordedBlock(4, 0, 50)))
        recording = site.recordings.current
        assert recording is not None
        recording.end("Alice's emission run ended")
        recording.put(symbols(99))
    assert done[0].whole
    assert done[0].because == "Alice's emission run ended"
    found = open_site_recording(folder)
    assert isinstance(found, AliceRecording)
    assert found.slots.tolist() == [3]
    assert found.manifest.ended == "Alice's emission run ended"


async def test_a_daemon_that_goes_away_leaves_what_came(tmp_path: Path) -> None:
    folder, done = tmp_path / "r", list[Recorded]()
    async with trio.open_nursery() as nursery, Site(tmp_path / "s").served() as site:
        await started(nursery, site, folder, Stop(), done)
        site.put(ALICE, symbols(3))
        while site.recordings.current._frames:  # type: ignore[union-attr] # noqa: ASYNC110
            await trio.sleep(0.01)
    assert not done[0].whole
    assert done[0].because == "the daemon went away"
    assert open_site_recording(folder).manifest.entries == 1


def test_a_recorded_site_says_so_on_its_screen() -> None:
    status = well_status(recorded_since=well_status().at - 61)
    assert (
        "BEING RECORDED for 1 min 1 s: whoever reads the recording knows its keys" in status_lines(status)[1]
    )
    assert not any("RECORDED" in line for line in status_lines(well_status()))


# The command


@asynccontextmanager
async def command(site: Site, *arguments: str) -> AsyncIterator[tuple[trio.Process, list[Any]]]:
    """Run `qnode record --site` while the site is served; its outcome is in the list afterwards."""
    outcome: list[Any] = []
    words = [QNODE, "record", "--site", str(site.path), *arguments]
    async with trio.open_nursery() as nursery:
        process = await nursery.start(
            partial(trio.run_process, words, capture_stdout=True, capture_stderr=True, check=False)
        )
        await site.recorded()
        yield process, outcome
    outcome.append(process.returncode)


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
async def test_the_command_records_until_it_is_told_to_end(tmp_path: Path, ending: signal.Signals) -> None:
    folder, table = tmp_path / "r", tmp_path / "t.csv"
    async with Site(tmp_path / "s").served() as site:
        arguments = ("--out", str(folder), "--blocks", str(table))
        async with command(site, *arguments) as (process, outcome):
            site.put(BOB, tags(1, 2, 3))
            process.send_signal(ending)
    assert outcome == [0]
    assert open_site_recording(folder).manifest.entries == 3
    assert table.read_text().startswith("block_id,")


async def test_the_duration_counts_from_the_first_recorded_block(tmp_path: Path) -> None:
    folder = tmp_path / "r"
    async with Site(tmp_path / "s").served() as site:
        async with command(site, "--out", str(folder), "--duration", "0.3") as (process, outcome):
            await trio.sleep(0.6)
            assert process.poll() is None
            began = time.monotonic()
            site.put(BOB, tags(1))
        assert time.monotonic() - began >= 0.3
    assert outcome == [0]
    assert open_site_recording(folder).manifest.entries == 1


async def test_a_command_in_which_no_block_began_exits_with_1(tmp_path: Path) -> None:
    out = ("--out", str(tmp_path / "r"))
    async with Site(tmp_path / "s").served() as site, command(site, *out) as (process, outcome):
        process.send_signal(signal.SIGTERM)
    assert outcome == [1]
    assert not list((tmp_path / "r").iterdir())


async def test_a_command_that_falls_behind_keeps_what_came_and_exits_with_1(tmp_path: Path) -> None:
    folder = tmp_path / "r"
    small = Site(tmp_path / "s", most_held_bytes=20_000)
    async with small.served() as site, command(site, "--out", str(folder)) as (_process, outcome):
        site.put(BOB, *(tags(first) for first in range(1000)))
    assert outcome == [1]
    recording = open_site_recording(folder)
    assert isinstance(recording, BobRecording)
    assert recording.times_ps.tolist() == list(range(recording.manifest.entries))
    assert "fell behind" in recording.manifest.ended


async def test_a_disk_that_takes_no_more_is_a_clear_error(tmp_path: Path) -> None:
    def small_files() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    folder = tmp_path / "r"
    async with Site(tmp_path / "s").served() as site:
        words = [QNODE, "record", "--site", str(site.path), "--out", str(folder)]
        run = partial(
            subprocess.run, words, capture_output=True, text=True, preexec_fn=small_files, check=False
        )
        async with trio.open_nursery() as nursery:

            async def hand_on() -> None:
                await site.recorded()
                site.put(BOB, tags(*range(100_000)))

            nursery.start_soon(hand_on)
            done = await trio.to_thread.run_sync(run)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == f"qnode: {folder}: cannot be written: File too large"
    assert not (folder / MANIFEST).exists()


def test_a_folder_in_use_and_a_site_that_is_away_are_refused(tmp_path: Path) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    for folder, code, expected in (("used", 64, "is not empty"), ("new", 1, "nobody answers here")):
        words = [QNODE, "record", "--site", str(tmp_path / "none"), "--out", str(tmp_path / folder)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert (done.returncode, expected in done.stderr) == (code, True)
    with pytest.raises(NodeNotRunning):
        record(tmp_path / "none", tmp_path / "again", Stop())


async def test_an_answer_that_is_no_recording_is_told(tmp_path: Path) -> None:
    path = tmp_path / "s"
    answers = {
        b'{"events":[]}\n': "something else than a recording",
        b'{"recording":{"role":"bob","kme_id":"b","link":"l"}}\n' + b"\0\0\0\1\xc0": "none of a recording",
        b'{"recording":{"role":"bob","kme_id":"b","link":"l"}}\n' + struct.pack(">I", 2**31): "at most",
    }
    for number, (answer, expected) in enumerate(answers.items()):
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(str(path))
            bound.listen(1)

            def answer_once(bound: socket.socket = bound, answer: bytes = answer) -> None:
                connection, _ = bound.accept()
                with connection:
                    connection.recv(1000)
                    connection.sendall(answer)
                    connection.recv(1)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(partial(trio.to_thread.run_sync, answer_once))
                with pytest.raises(NoAnswer, match=expected):
                    await trio.to_thread.run_sync(partial(record, path, tmp_path / f"r{number}", Stop()))
        path.unlink()
