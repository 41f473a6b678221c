"""Protocol 1 as commit bac72f2 spoke and stored it (`fixtures/protocol_1`): today's code still knows it."""

import hashlib
import json
import os
import socket
import sqlite3
import sys
import tarfile
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
import trio
from archives import unpack
from conversation_room import (
    FROZEN,
    LINK,
    Known,
    copied,
    hold_conversation,
    open_copy,
    other,
    seed_randomness,
)
from link_room import greet_both, local_end
from trio.testing import memory_stream_pair

from qnode.config import LinkParameters, Role
from qnode.keys import SqliteKeyStore
from qnode.keys._opening import create_database
from qnode.link import messages as m
from qnode.link.codec import decode, decode_hello, encode
from qnode.link.directions import outgoing_direction
from qnode.link.frames import FrameStream
from qnode.link.hello import Greeted, Standing, _our_hello
from qnode.link.protocol import parameters_of_protocol_1
from qnode.link.session_keys import derive_session_keys, joined_hellos

ROLES: tuple[Role, Role] = ("alice", "bob")
KINDS = {
    str(kind.__struct_config__.tag): kind for kind in [*get_args(m.SessionMessage), *get_args(m.HelloMessage)]
}
ADDED_IN_PROTOCOL_2 = {
    "release_assignments",
    "saes_registered",
    "void_lost",
    "stream_request",
    "stream_answer",
}
RESUMED = 3  # confirmed at the meeting, for which it was not counted then
ENDED_TOGETHER = (10, 11)  # which of these a site has counted as lost when the session ends is a race


def frozen_messages() -> list[tuple[bytes, dict[str, Any]]]:
    """Return each frozen payload with what it says, in JSON's types."""
    content, payloads = (FROZEN / "messages.bin").read_bytes(), []
    while content:
        end = 4 + int.from_bytes(content[:4], "big")
        payloads.append(content[4:end])
        content = content[end:]
    return list(zip(payloads, json.loads((FROZEN / "messages.json").read_text()), strict=True))


def frozen_conversation() -> list[tuple[Role, bytes]]:
    content, said = (FROZEN / "conversation.bin").read_bytes(), list[tuple[Role, bytes]]()
    while content:
        role: Role = "alice" if content[:1] == b"a" else "bob"
        end = 5 + int.from_bytes(content[1:5], "big")
        said.append((role, content[5:end]))
        content = content[end:]
    return said


# Messages and hello


def test_every_frozen_message_is_read_to_the_same_values_and_written_to_the_same_bytes() -> None:
    seen: Counter[str] = Counter()
    for payload, said in frozen_messages():
        kind = KINDS[said["kind"]]
        message = decode_hello(payload) if issubclass(kind, m.HelloMessage) else decode(payload)
        assert isinstance(message, kind)
        shown = json.loads(msgspec.json.encode(message))
        assert shown == said
        assert encode(message) == payload
        seen[said["kind"]] += 1
    assert seen == dict.fromkeys(KINDS.keys() - ADDED_IN_PROTOCOL_2, 6)


def test_a_message_that_says_what_protocol_2_added_is_not_one_of_protocol_1() -> None:
    added = {name: set(KINDS[name].__struct_fields__) for name in ("clicks_ended", "sifted")}
    for payload, said in frozen_messages():
        if said["kind"] in added:
            added[said["kind"]] -= set(msgspec.msgpack.decode(payload))
    assert added == {"clicks_ended": {"tags"}, "sifted": {"n_z_plus", "boundary"}}


@pytest.mark.parametrize("role", ROLES)
def test_a_hello_in_protocol_1_is_the_frozen_one_to_the_byte(role: Role) -> None:
    frozen = decode_hello((FROZEN / "hello" / f"{role}.bin").read_bytes())
    assert isinstance(frozen, m.Hello)
    local = local_end(
        role,
        parameters=as_frozen(),
        protocol=1,
        software=frozen.software,
        random_bytes=lambda _: frozen.nonce,
    )
    assert encode(_our_hello(local, Standing())) == (FROZEN / "hello" / f"{role}.bin").read_bytes()


def as_frozen() -> LinkParameters:
    """Return the link's parameters by default as of the frozen commit, whatever the defaults are today."""
    shown = json.loads((FROZEN / "hello" / "parameters.json").read_text())["parameters"]
    # The bound's old name is no parameter of today; who configured it must name another.
    kinds: Any = {field.name: field.type for field in msgspec.structs.fields(LinkParameters)}
    tables = {
        name: kinds[name](**{key: tuple(v) if isinstance(v, list) else v for key, v in table.items()})
        for name, table in shown.items()
        if name != "name"
    }
    return LinkParameters(name=shown["name"], **tables)


def test_tables_and_digest_of_the_frozen_link_are_what_a_hello_says_of_it_today() -> None:
    frozen = json.loads((FROZEN / "hello" / "parameters.json").read_text())
    tables, digest = parameters_of_protocol_1(as_frozen())
    assert tables == frozen["parameters"]
    assert digest.hex() == frozen["digest"]


@pytest.mark.parametrize("role", ROLES)
async def test_the_frozen_hello_is_greeted_in_protocol_1(role: Role) -> None:
    frozen = decode_hello((FROZEN / "hello" / f"{role}.bin").read_bytes())
    assert isinstance(frozen, m.Hello)
    theirs = local_end(role, protocol=1, parameters=as_frozen(), random_bytes=lambda _: frozen.nonce)
    ours = local_end(other(role), parameters=as_frozen())
    greeted = await greet_both(*((ours, theirs) if role == "bob" else (theirs, ours)))
    assert isinstance(greeted.alice, Greeted)
    assert isinstance(greeted.bob, Greeted)
    assert greeted.alice.protocol == greeted.bob.protocol == 1


# The store


def test_a_store_of_the_frozen_schema_becomes_what_a_new_one_is(tmp_path: Path) -> None:
    old, new = copied(tmp_path / "data") / "alice" / "db" / "keys.db", tmp_path / "new.db"
    assert _schema(old).splitlines() == (FROZEN / "schema.sql").read_text().splitlines()
    with open_copy(tmp_path / "data", "alice"):
        pass
    create_database(new, role="alice", store_key=bytes(32), kme_id="a", peer_kme_id="b")
    assert _columns(old) == _columns(new)


def _schema(database: Path) -> str:
    connection = sqlite3.connect(database)
    rows = connection.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY rowid").fetchall()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    connection.close()
    return "".join([f"-- user_version {version}\n", *(f"{row[0]};\n" for row in rows)])


def _columns(database: Path) -> dict[str, object]:
    """Return version, tables with their columns, and indices."""
    connection = sqlite3.connect(database)
    names = connection.execute("SELECT type, name FROM sqlite_master ORDER BY type, name").fetchall()
    found: dict[str, object] = {"version": connection.execute("PRAGMA user_version").fetchone()}
    for kind, name in names:
        found[f"{kind} {name}"] = connection.execute(f"PRAGMA {kind}_info({name})").fetchall()
    connection.close()
    return found


@pytest.mark.parametrize("role", ROLES)
def test_the_frozen_data_directory_is_opened_and_holds_what_it_held(tmp_path: Path, role: Role) -> None:
    held = json.loads((FROZEN / "data" / role / "holds.json").read_text())
    with open_copy(copied(tmp_path / "data"), role) as store:
        assert store.condition().state == held["condition"]
        assert _shown(store.counts()) == held["counts"]
        # Only blocks that gave key were counted in the sum of epsilons then.
        largest = max(
            one.record.eps_sec + one.record.eps_cor
            for one in store.recent_blocks(10)
            if one.record is not None
        )
        for positions, then in (
            (store.positions(), held["positions"]),
            (store.view_of_peer(), held["view_of_peer"]),
        ):
            assert _shown(positions) == then | {"epsilon": pytest.approx(then["last_block_id"] * largest)}
        assert [
            [one.block_id, str(one.state), one.chunks_left, one.void_reason]
            for one in store.recent_blocks(10)
        ] == held["blocks"]
        assert store.unconfirmed_blocks() == held["unconfirmed"]
        assert [_shown(one) for one in store.unacknowledged_assignments()] == held["unacknowledged"]
        last_block_id = held["positions"]["last_block_id"]
        assert _shown(store.pads_left()) == held["pads_left"] | {"used": 4 * last_block_id}
        assert store.pad_segments() == held["pad_segments"]
        if held["untouched_block"]:
            block_id, fingerprint = held["untouched_block"]
            assert store.fingerprint(block_id).hex() == fingerprint


@pytest.mark.parametrize("role", ROLES)
def test_the_keys_of_the_frozen_data_directory_have_their_names_and_bytes(tmp_path: Path, role: Role) -> None:
    known = json.loads((FROZEN / "data" / role / "keys.json").read_text())
    master, slave = ("sae-a", "sae-b") if role == "alice" else ("sae-b", "sae-a")
    folder = copied(tmp_path / "data")
    with open_copy(folder, role) as store, open_copy(folder, other(role)) as peer:
        for how, keys in (
            ("assigned", store.deliver_to_master(2)),
            ("stock", store.take_from_stock(master, slave, 4)),
        ):
            assert [[str(key.key_id), hashlib.sha256(key.key).hexdigest()] for key in keys] == known[how]
            same = peer.deliver_to_slave(slave, master, [key.key_id for key in keys])
            assert [key.key for key in same] == [key.key for key in keys]


def test_a_block_that_the_frozen_version_stored_as_recorded_is_read_as_recorded(tmp_path: Path) -> None:
    folder = copied(tmp_path / "data")
    with closing(sqlite3.connect(folder / "alice" / "db" / "keys.db")) as connection, connection:
        (stored,) = connection.execute("SELECT record FROM block WHERE block_id = 1").fetchone()
        record = json.loads(stored)
        # The text by which version 0.1.0 said so.
        record["assumptions"].append(
            "tags or symbols of this block were recorded: whoever reads the recording knows its key"
        )
        connection.execute("UPDATE block SET record = ? WHERE block_id = 1", (json.dumps(record).encode(),))
    with open_copy(folder, "alice") as store:
        assert store.block_record(1).recorded
        assert list(store.block_record(1).assumptions) == record["assumptions"]
        assert not store.block_record(2).recorded


def _shown(value: msgspec.Struct) -> Any:
    return json.loads(msgspec.json.encode(value))


# The conversation


class RecordedPeer:
    """The other site: repeats its recorded messages, each after the same received messages as before."""

    def __init__(self, role: Role, frames: FrameStream, secrets: Any) -> None:
        self._role = role
        self._frames = frames
        self._secrets = secrets
        self._heard: Counter[bytes] = Counter()
        self._news = trio.Event()
        self._turn = trio.Lock()

    async def speak(self) -> None:
        said = frozen_conversation()
        for role, payload in said[:4]:  # two hellos, two proofs, in turn
            if role == self._role:
                await self._frames.send(payload)
            else:
                assert await self._frames.receive() == payload
        self._authenticate(dict(said[:2]))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._listen)
            nursery.start_soon(self._stay_alive)
            for role, payload in said[4:]:
                if role == self._role:
                    await self._send(payload)
                else:
                    await self._wait_for(comparable(payload))
            nursery.cancel_scope.cancel()
        assert not +self._heard, "more was said than is recorded"

    def _authenticate(self, hellos: dict[Role, bytes]) -> None:
        keys = derive_session_keys(
            self._secrets.session_root(),
            joined_hellos(hellos[self._role], hellos[other(self._role)], self._role),
            outgoing_direction(self._role),
        )
        self._frames.authenticate(keys.outgoing, keys.outgoing_frames, keys.incoming_frames)

    async def _send(self, payload: bytes) -> None:
        async with self._turn:
            await self._frames.send(payload)

    async def _listen(self) -> None:
        while True:
            payload = await self._frames.receive()
            if not isinstance(decode(payload), m.Ping | m.Pong):
                self._heard[comparable(payload)] += 1
                self._news.set()
                self._news = trio.Event()

    async def _stay_alive(self) -> None:
        while True:
            await trio.sleep(1)
            await self._send(encode(m.Ping(0)))

    async def _wait_for(self, payload: bytes) -> None:
        with trio.move_on_after(60):
            while not self._heard[payload]:
                await self._news.wait()
            self._heard[payload] -= 1
            return
        raise AssertionError(
            f"not said: {decode(payload)!r}; said instead: "
            f"{[decode(heard) for heard, n in self._heard.items() if n]!r}"
        )


def comparable(payload: bytes) -> bytes:
    """Return a payload without what logarithms of another machine may give other last digits."""
    message = decode(payload)
    if isinstance(message, m.AlignmentResult):
        return encode(msgspec.structs.replace(message, significance=round(message.significance, 6)))
    return payload


@pytest.mark.timeout(600)
@pytest.mark.parametrize("role", ROLES)
async def test_todays_site_says_the_frozen_conversation_again_to_the_byte(
    tmp_path: Path, role: Role, monkeypatch: pytest.MonkeyPatch
) -> None:
    seed_randomness(monkeypatch)
    streams = memory_stream_pair()
    folder = copied(tmp_path / "data")
    with open_copy(folder, role) as store, open_copy(folder, other(role)) as peer_store:
        _set_epsilon(store, json.loads((FROZEN / "data" / role / "holds.json").read_text()))
        peer = RecordedPeer(other(role), FrameStream(streams[1]), peer_store)
        with trio.fail_after(500):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(peer.speak)
                known = await hold_conversation(role, store, FrameStream(streams[0]), protocol=1)
    assert_as_frozen(role, known)


def _set_epsilon(store: SqliteKeyStore, held: dict[str, Any]) -> None:
    """Take the sum of epsilons, which a hello says, back to what it was by the rules of then."""
    with store._database.change(anchored=False) as tx:
        tx.connection.execute("UPDATE site SET epsilon = ?", (held["positions"]["epsilon"],))


def assert_as_frozen(role: Role, known: Known) -> None:
    assert known.protocol == 1
    frozen = json.loads((FROZEN / "conversation.json").read_text())["afterwards"][role]
    outcomes = {int(block_id): tuple(outcome) for block_id, outcome in frozen["outcomes"].items()}
    for ended in ENDED_TOGETHER:
        outcomes.pop(ended, None)
    unlike = (*ENDED_TOGETHER, RESUMED)
    assert {block: what for block, what in known.outcomes.items() if block not in unlike} == outcomes
    assert _shown(known.stored) == frozen["counts"]
    unknown = [(one.tags, one.boundary, one.n_z_plus) for one in known.counts.values()]
    assert unknown == [(None, None, None)] * len(unknown)


@pytest.mark.link
@pytest.mark.timeout(600)
@pytest.mark.parametrize("role", ROLES)
async def test_todays_site_and_one_of_the_frozen_commit_make_the_same_key(
    tmp_path: Path, role: Role, monkeypatch: pytest.MonkeyPatch
) -> None:
    seed_randomness(monkeypatch)
    old, folder = other(role), copied(tmp_path / "data")
    extract_old_code(tmp_path / "code")
    # Today's site would rather have its own bound, which protocol 1 cannot carry.
    estimation = msgspec.structs.replace(LINK.estimation, asymmetry_bound="shares")
    link = msgspec.structs.replace(LINK, estimation=estimation)
    ours, theirs = socket.socketpair()
    told: list[Any] = []

    async def run_old_site() -> None:
        with theirs:
            descriptor = theirs.fileno()
            done = await trio.run_process(
                [sys.executable, str(FROZEN / "frozen_site.py"), old, str(descriptor), str(folder / old)],
                env=os.environ | {"PYTHONPATH": str(tmp_path / "code"), "PYTHONDONTWRITEBYTECODE": "1"},
                pass_fds=[descriptor],
                capture_stdout=True,
            )
        told.append(json.loads(done.stdout.splitlines()[-1]))

    with open_copy(folder, role) as store, trio.fail_after(500):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_old_site)
            end = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
            known = await hold_conversation(role, store, FrameStream(end), link)
    assert_as_frozen(role, known)
    assert told[0]["outcomes"]["6"] == list(known.outcomes[6])
    with open_copy(folder, role) as here, open_copy(folder, old) as peer:
        assert here.block_state(6) == peer.block_state(6) == "available"
        assert keys_of_block_6(here, peer, role) >= 2


def extract_old_code(folder: Path) -> None:
    with tarfile.open(FROZEN / "qnode.tar.xz") as code:
        unpack(code, folder)


def keys_of_block_6(here: SqliteKeyStore, peer: SqliteKeyStore, role: Role) -> int:
    """Assign all free keys of one site, fetch them at both, and return how many are of block 6."""
    master, slave = f"master-{role}", "slave"
    assignment = here.assign(master, [slave], here.counts().available_own, 256, now=0.0)
    peer.accept_assignment(assignment, now=0.0)
    here.acknowledge(assignment.assignment_id)
    keys = here.deliver_to_master(assignment.assignment_id)
    fetched = peer.deliver_to_slave(slave, master, [key.key_id for key in keys])
    assert [(key.key_id, key.key) for key in fetched] == [(key.key_id, key.key) for key in keys]
    return sum(part.count for part in assignment.ranges if part.block_id == 6)
