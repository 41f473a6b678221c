"""The event log: its formats, its memory, and that key material cannot slip into it."""

import io
import json
import os
import pty
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st

from qnode.choices import LogFormat
from qnode.operate.events.line import render_dated_line, render_line
from qnode.operate.events.log import configure_log, set_log_level

SECRET = bytes(range(200, 232))


def logged(log_format: LogFormat, event: str, **fields: Any) -> str:
    stream = io.StringIO()
    configure_log("debug", log_format, stream=stream)
    structlog.get_logger().info(event, **fields)
    return stream.getvalue()


def test_a_line_has_the_event_and_its_fields_in_order() -> None:
    line = logged(
        "plain", "block.done", block=812, qber_z=0.016234567, reason="too few clicks", peer=None, ok=True
    )
    when, _, rest = line.rstrip("\n").partition(" info ")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d", when)
    assert rest.strip() == (
        'block.done  block=812 qber_z=0.0162346 reason="too few clicks" peer=none ok=true'
    )


def test_under_journald_each_line_carries_its_priority() -> None:
    assert logged("journal", "node.started", version="0.4.1") == "<6>info     node.started  version=0.4.1\n"
    stream = io.StringIO()
    configure_log("info", "journal", stream=stream)
    try:
        raise ValueError("bad\nluck")
    except ValueError:
        structlog.get_logger().exception("device.failed", device="tdc")
    lines = stream.getvalue().splitlines()
    assert lines[0] == "<3>error    device.failed  device=tdc"
    assert all(line.startswith("<3>") for line in lines)
    assert lines[-1] == "<3>luck"


def test_json_lines_are_one_object_an_event() -> None:
    event = json.loads(logged("json", "block.done", block=812))
    assert event["at"] > 1.7e9
    del event["at"]
    assert event == {"level": "info", "event": "block.done", "block": 812}


def test_events_below_the_level_are_neither_written_nor_kept() -> None:
    stream = io.StringIO()
    events = configure_log("warning", "plain", stream=stream)
    structlog.get_logger().info("block.done")
    structlog.get_logger().warning("block.discarded", reason="qber_z")
    assert "block.done" not in stream.getvalue()
    assert [event["event"] for event in events.recent()] == ["block.discarded"]


def test_the_level_can_be_changed_and_all_else_stays() -> None:
    stream = io.StringIO()
    events = configure_log("info", "plain", stream=stream)
    log = structlog.get_logger()
    for level, event in (("error", "block.done"), ("debug", "block.begun")):
        set_log_level(level)  # type: ignore[arg-type]
        log.info(event, key=b"secret")
    assert [event["event"] for event in events.recent()] == ["block.begun"]
    assert "block.done" not in stream.getvalue()
    assert "<6 bytes>" in stream.getvalue()


def test_the_latest_thousand_events_are_kept_oldest_first() -> None:
    events = configure_log("info", "plain", stream=io.StringIO())
    log = structlog.get_logger()
    for number in range(1005):
        log.info("tag.counted", number=number)
    assert [event["number"] for event in events.recent(3)] == [1002, 1003, 1004]
    assert len(events.recent()) == 1000
    assert events.recent(0) == []
    assert events.recent(-1) == []


class Pad:
    def __repr__(self) -> str:
        return f"Pad({SECRET!r})"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (SECRET, "<32 bytes>"),
        (bytearray(SECRET), "<32 bytes>"),
        (memoryview(SECRET), "<32 bytes>"),
        (int.from_bytes(SECRET), "<256-bit number>"),
        (np.frombuffer(SECRET, np.uint8), "<ndarray>"),
        (Pad(), "<Pad>"),
        ([SECRET, {"key": SECRET}], ["<32 bytes>", {"key": "<32 bytes>"}]),
        ({SECRET: 1}, {"<32 bytes>": 1}),
        ((((([SECRET],),),),), [[["<tuple>"]]]),
        (str(SECRET), "<bytes>"),
        (f"pad {SECRET!r} used", "pad <bytes> used"),
        (f"got {np.frombuffer(SECRET, np.uint8)!r}", "got <array>"),
        (ValueError("bad", SECRET), "ValueError: ('bad', <bytes>)"),
        (UUID(int=5), "00000000-0000-0000-0000-000000000005"),
        (Path("/etc/qnode"), "/etc/qnode"),
        (np.float64(0.25), 0.25),
        (np.int64(7), 7),
        (-(2**63), -(2**63)),
        ("x" * 1500, "x" * 1000 + "… (500 more)"),
    ],
)
def test_what_may_be_key_material_is_named_and_not_shown(value: Any, shown: Any) -> None:
    assert json.loads(logged("json", "pad.used", value=value))["value"] == shown


def test_a_traceback_shows_neither_bytes_nor_local_variables() -> None:
    stream = io.StringIO()
    events = configure_log("info", "plain", stream=stream)
    local_pad = int.from_bytes(SECRET)
    try:
        raise KeyError(SECRET)
    except KeyError:
        structlog.get_logger().exception("store.failed")
    text = stream.getvalue() + str(events.recent())
    assert "KeyError: <bytes>" in text
    assert str(local_pad) not in text
    assert "\\xc8" not in text


BYTES = st.binary(min_size=16)


@settings(max_examples=40, deadline=None)
@given(st.recursive(BYTES, lambda inner: st.lists(inner) | st.dictionaries(BYTES, inner), max_leaves=6))
def test_no_bytes_reach_any_format(value: Any) -> None:
    def pieces(part: Any) -> list[bytes]:
        if isinstance(part, bytes):
            return [part]
        inner = [*part, *part.values()] if isinstance(part, dict) else part
        return [piece for item in inner for piece in pieces(item)]

    for log_format in ("plain", "journal", "json"):
        text = logged(log_format, "pad.used", value=value, why=f"because {value}")
        assert not [piece for piece in pieces(value) if repr(piece)[2:-1] in text or piece.hex() in text]


def test_an_event_is_one_line_whatever_a_stranger_sends() -> None:
    line = logged("plain", "peer.refused", name="evil\n<0>\x1b[2J\x9b2J")
    assert line.count("\n") == 1
    assert "\x1b" not in line
    assert "\x9b" not in line


def test_kept_events_are_rendered_like_the_log() -> None:
    stream = io.StringIO()
    events = configure_log("info", "plain", stream=stream)
    structlog.get_logger().info("block.done", block=812)
    assert render_dated_line(events.recent()[0]) + "\n" == stream.getvalue()
    assert render_line({"level": "warning", "event": "x.y"}, coloured=True).startswith("\x1b[33mwarning")


PROGRAM = """
import structlog
from qnode.operate.events.log import configure_log
configure_log()
structlog.get_logger().warning("node.started")
"""


def test_a_closed_stderr_is_no_reason_to_fail() -> None:
    program = f"{PROGRAM}print('goes on')"
    command = ["sh", "-c", 'exec "$0" -c "$1" 2>&-', sys.executable, program]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == "goes on\n"


def test_the_format_follows_where_stderr_leads() -> None:
    def run(stderr: int, **environment: str) -> None:
        subprocess.run(
            [sys.executable, "-c", PROGRAM], stderr=stderr, check=True, env={**os.environ, **environment}
        )

    with tempfile.TemporaryFile() as file:
        where = os.fstat(file.fileno())
        run(file.fileno(), JOURNAL_STREAM=f"{where.st_dev}:{where.st_ino}")
        run(file.fileno(), JOURNAL_STREAM="1:1")
        file.seek(0)
        under_journald, elsewhere = file.read().decode().splitlines()
    assert under_journald == "<4>warning  node.started"
    assert elsewhere[:2] == "20"
    assert "\x1b" not in elsewhere
    ours, theirs = pty.openpty()
    run(theirs)
    assert b"\x1b[33mwarning" in os.read(ours, 4096)
    os.close(ours)
    os.close(theirs)


CHATTY = """
import sys
import structlog
from qnode.operate.events.log import configure_log
events = configure_log(log_format="plain")
log = structlog.get_logger()
for number in range(12_000):
    log.info("key.allocated", number=number, text=400 * "x")
print(len(events.recent()), flush=True)
sys.stdin.readline()
log.info("node.stopped")
events.flush(60 if "wait" in sys.argv else 1)
print(events.dropped_lines)
"""


FAILING = """
import sys
import click
from qnode.operate.events.log import configure_log
import structlog
events = configure_log(log_format="plain")
events.take_stderr()
for number in range(1000 if "much" in sys.argv else 1):
    structlog.get_logger().info("key.allocated", number=number, text=400 * "x")
click.echo("qnode: the store cannot be trusted", err=True)
if "raise" in sys.argv:
    raise RuntimeError("nobody foresaw this")
sys.exit(64)
"""


def test_the_last_words_of_a_process_go_the_way_of_its_log_and_keep_it_from_no_end() -> None:
    reader, writer = os.pipe()  # nobody reads, and it is soon full
    dead_reader, dead = os.pipe()
    os.close(dead_reader)
    for stderr in (writer, dead):
        for how, status in (("exit", 64), ("raise", 1)):
            ended = subprocess.run(
                [sys.executable, "-c", FAILING, how, "much"], stderr=stderr, check=False, timeout=60
            )
            assert ended.returncode == status
        os.close(stderr)
    os.close(reader)
    told = subprocess.run(
        [sys.executable, "-c", FAILING, "raise"], stderr=subprocess.PIPE, text=True, check=False, timeout=60
    ).stderr.splitlines()
    assert "key.allocated" in told[0]
    assert told[1:3] == ["qnode: the store cannot be trusted", "Traceback (most recent call last):"]
    assert told[-1] == "RuntimeError: nobody foresaw this"


def chatty(stderr: int, *arguments: str) -> "subprocess.Popen[str]":
    command, pipe = [sys.executable, "-c", CHATTY, *arguments], subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=stderr, text=True)


def test_a_full_device_and_a_dead_reader_neither_end_nor_hold_up_who_logs() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    full = os.open("/dev/full", os.O_WRONLY)
    for stderr in (full, writer):
        with chatty(stderr) as process:
            kept, dropped = map(int, process.communicate("\n", timeout=60)[0].split())
        assert (process.returncode, kept) == (0, 1000)
        assert dropped > 0
        os.close(stderr)


def test_a_pipe_that_nobody_reads_does_not_hold_up_who_logs_and_what_was_lost_is_told() -> None:
    reader, writer = os.pipe()
    with chatty(writer, "wait") as process, os.fdopen(reader, encoding="utf-8") as pipe:
        os.close(writer)
        assert process.stdin is not None
        assert process.stdout is not None
        # The program has logged far more than pipe and memory hold, though nobody has read a line yet.
        assert process.stdout.readline() == "1000\n"
        lines = [pipe.readline() for _ in range(2000)]  # which makes room for the last event
        process.stdin.write("\n")
        process.stdin.flush()
        lines += pipe.readlines()
        dropped = int(process.stdout.read())
    assert process.returncode == 0
    told = [int(line.rpartition("lines=")[2]) for line in lines if "log.dropped" in line]
    assert sum("key.allocated" in line for line in lines) + dropped == 12_000
    assert sum(told) == dropped > 0
    assert "node.stopped" in lines[-1]
