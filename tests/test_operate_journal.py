"""Events as entries of journald, over a real datagram socket: fields, any length, hostile text."""

import array
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st

from qnode.operate.events.journal import JournalWriter, entry_of, has_journal
from qnode.operate.events.log import EventLog, configure_log


def fields_of(entry: bytes) -> dict[str, str]:
    """Read journald's native format, as its own parser does."""
    found = {}
    while entry:
        name, _, rest = entry.partition(b"\n")
        assert b"=" not in name
        (length,) = struct.unpack_from("<Q", rest)
        value, end, entry = rest[8 : 8 + length], rest[8 + length : 9 + length], rest[9 + length :]
        assert end == b"\n"
        assert name.decode() not in found
        found[name.decode()] = value.decode()
    return found


class Journal:
    """A socket like journald's, and the stream to it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "socket"
        self.entries = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.entries.bind(str(self.path))
        self.entries.settimeout(10.0)
        self.stream, self.near = socket.socketpair()
        self.stream.settimeout(10.0)

    def next(self) -> dict[str, str]:
        """Return the next entry, from its datagram or from the file that came with it."""
        data, ancillary, _, _ = self.entries.recvmsg(1 << 20, 64)
        if not data:
            ((_, _, rights),) = ancillary
            (number,) = array.array("i", rights)
            data = os.pread(number, os.fstat(number).st_size, 0)
            with pytest.raises(OSError, match="not permitted"):
                os.ftruncate(number, 0)
            os.close(number)
        return fields_of(data)

    def close(self) -> None:
        for one in (self.entries, self.stream, self.near):
            one.close()


@contextmanager
def journal_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Journal, EventLog]]:
    journal = Journal(tmp_path)
    where = os.fstat(journal.near.fileno())
    monkeypatch.setenv("JOURNAL_STREAM", f"{where.st_dev}:{where.st_ino}")
    stream = journal.near.makefile("w")
    try:
        yield journal, configure_log(stream=stream, journal_socket=journal.path)
    finally:
        structlog.reset_defaults()
        journal.close()


def test_an_event_has_its_fields_its_priority_and_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with journal_of(tmp_path, monkeypatch) as (journal, _):
        structlog.get_logger().warning("block.done", block=812, qber_z=0.0162, key=b"secret", link="turin 1")
        assert journal.next() == {
            "MESSAGE": 'warning  block.done  block=812 qber_z=0.0162 key="<6 bytes>" link="turin 1"',
            "PRIORITY": "4",
            "SYSLOG_IDENTIFIER": "qnode",
            "QKD_EVENT": "block.done",
            "QKD_BLOCK": "812",
            "QKD_QBER_Z": "0.0162",
            "QKD_KEY": "<6 bytes>",
            "QKD_LINK": "turin 1",
        }


def test_an_entry_too_long_for_a_datagram_comes_in_a_sealed_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with journal_of(tmp_path, monkeypatch) as (journal, _):
        long = {f"f{n}": "x" * 999 for n in range(600)}
        structlog.get_logger().info("block.long", **long)
        found = journal.next()
        assert found["QKD_F599"] == "x" * 999


def test_without_the_socket_events_go_to_the_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with journal_of(tmp_path, monkeypatch) as (journal, events):
        journal.path.unlink()
        structlog.get_logger().info("node.started", version="1")
        assert journal.stream.recv(1000) == b"<6>info     node.started  version=1\n"
        assert events.dropped_lines == 0


def test_other_output_goes_to_the_stream_beside_the_entries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with journal_of(tmp_path, monkeypatch) as (journal, _):
        writer = JournalWriter(journal.near.fileno(), str, journal.path)
        writer.put("Traceback")
        assert journal.stream.recv(1000) == b"Traceback\n"


@settings(max_examples=50)
@given(
    st.dictionaries(st.text(min_size=1, max_size=80), st.text(max_size=50) | st.integers(), max_size=5),
    st.text(),
)
def test_no_text_of_an_event_becomes_another_field(fields: dict[str, str | int], message: str) -> None:
    entry = fields_of(
        entry_of({"level": "info", **fields, "event": message, "evil": "x\nPRIORITY=0\nQKD_BLOCK=1"})
    )
    own = {"MESSAGE", "PRIORITY", "SYSLOG_IDENTIFIER"}
    assert all(name in own or (name.startswith("QKD_") and len(name) <= 64) for name in entry)
    assert entry["QKD_EVIL"] == "x\\nPRIORITY=0\\nQKD_BLOCK=1" or "EVIL" in "".join(fields).upper()
    assert all(line.isprintable() for line in entry["MESSAGE"].split("\n"))
    assert "exception" in fields or "\n" not in entry["MESSAGE"]


def test_a_file_or_a_missing_socket_is_no_journal(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w") as file:
        assert not has_journal(file.fileno(), tmp_path / "socket")
