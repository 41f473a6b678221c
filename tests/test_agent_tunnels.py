"""The kinds of tunnels that a program or a file controls."""

import base64
import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from qnode.agent.tunnel import TunnelKey
from qnode.agent.tunnels.command import CommandConfig, CommandTunnel, Event
from qnode.agent.tunnels.file import FileConfig, FileTunnel, kept_in_memory
from qnode.agent.tunnels.key_text import shows_key
from qnode.errors import TunnelError

ONE, TWO = TunnelKey("key-1", bytes(range(32))), TunnelKey("key-2", bytes(range(32, 64)))
EVERY_EVENT: tuple[Event, ...] = (
    "prepare",
    "load",
    "activate",
    "in_use",
    "retire",
    "unload",
    "take_down",
    "transferred_bytes",
)


@pytest.fixture
def in_memory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        if not kept_in_memory(Path(folder)):
            pytest.skip("no tmpfs at /dev/shm")
        yield Path(folder)


def names_in(folder: Path) -> list[str]:
    return sorted(one.name for one in folder.iterdir())


def program(folder: Path, body: str) -> tuple[str, ...]:
    """Return a program that runs ``body`` with `event`, `key_id` and `key` (standard input)."""
    script = folder / "program.py"
    script.write_text(
        "import os, sys\nevent, key_id = sys.argv[1], (sys.argv + [''])[2]\nkey = sys.stdin.read()\n" + body
    )
    return (sys.executable, "-S", str(script))


async def test_a_program_gets_each_event_and_the_key_on_its_standard_input(tmp_path: Path) -> None:
    log = tmp_path / "log"
    body = (
        f"print(event, key_id, key.strip(), os.environ['QNODE_ROLE'], file=open({str(log)!r}, 'a'))\n"
        "print({'in_use': 'key-1', 'transferred_bytes': '12'}.get(event, ''))\n"
    )
    config = CommandConfig(program=program(tmp_path, body), events=EVERY_EVENT, timeout_s=60.0)
    async with CommandTunnel(config, "initiator").open() as tunnel:
        await tunnel.prepare()
        await tunnel.load(ONE)
        await tunnel.activate(ONE)
        found = await tunnel.in_use()
        assert found is not None
        assert found.key_id == "key-1"
        assert await tunnel.transferred_bytes() == 12
        await tunnel.retire(ONE)
        await tunnel.take_down()
    text = base64.b64encode(ONE.key).decode()
    assert log.read_text().splitlines() == [
        "prepare   initiator",
        f"load key-1 {text} initiator",
        f"activate key-1 {text} initiator",
        "in_use   initiator",
        "transferred_bytes   initiator",
        "retire key-1  initiator",
        "take_down   initiator",
    ]


async def test_a_key_that_is_unloaded_after_its_activation_gives_way_to_the_one_before(
    tmp_path: Path,
) -> None:
    log = tmp_path / "log"
    body = f"print(event, key_id, file=open({str(log)!r}, 'a'))\n"
    config = CommandConfig(program=program(tmp_path, body), events=("activate", "unload"), timeout_s=60.0)
    async with CommandTunnel(config, "responder").open() as tunnel:
        await tunnel.activate(ONE)
        await tunnel.retire(ONE)
        await tunnel.activate(TWO)
        await tunnel.unload(TWO)
        found = await tunnel.in_use()
        assert found is not None
        assert found.key_id == "key-1"
    assert log.read_text().splitlines() == [
        "activate key-1",
        "activate key-2",
        "activate key-1",
        "unload key-2",
    ]


async def test_a_program_that_fails_says_why_unless_its_words_have_the_key(tmp_path: Path) -> None:
    body = "sys.exit('no such policy' if event == 'load' else 'bad key ' + key)\n"
    config = CommandConfig(program=program(tmp_path, body), timeout_s=60.0)
    async with CommandTunnel(config, "initiator").open() as tunnel:
        with pytest.raises(TunnelError, match=r"load: ended with 1: no such policy$"):
            await tunnel.load(ONE)
        with pytest.raises(TunnelError, match=r"not shown, for they have the key\)$"):
            await tunnel.activate(ONE)
        found = await tunnel.in_use()
        assert found is not None
        assert found.key_id is None


async def test_a_program_that_tells_the_key_in_place_of_its_name_is_refused(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    body = f"open({str(kept)!r}, 'a').write(key)\nprint(open({str(kept)!r}).read())\n"
    events: tuple[Event, ...] = ("activate", "in_use")
    config = CommandConfig(program=program(tmp_path, body), events=events, timeout_s=60.0)
    async with CommandTunnel(config, "initiator").open() as tunnel:
        await tunnel.activate(ONE)
        with pytest.raises(TunnelError, match="wrote a key for in_use, expected its key_ID") as refused:
            await tunnel.in_use()
    assert not shows_key(str(refused.value).encode(), ONE.key)


async def test_a_program_that_hangs_is_ended(tmp_path: Path) -> None:
    config = CommandConfig(program=program(tmp_path, "import time; time.sleep(1000)\n"), timeout_s=1.0)
    async with CommandTunnel(config, "initiator").open() as tunnel:
        with pytest.raises(TunnelError, match="not done within 1 s"):
            await tunnel.load(ONE)


async def test_a_program_that_is_not_there_is_refused(tmp_path: Path) -> None:
    missing = CommandConfig(program=(str(tmp_path / "absent"),))
    with pytest.raises(TunnelError, match="is no program"):
        async with CommandTunnel(missing, "initiator").open():
            pass
    unknown = CommandConfig(program=("no-such-program-anywhere",))
    async with CommandTunnel(unknown, "initiator").open() as tunnel:
        with pytest.raises(TunnelError, match="cannot be run"):
            await tunnel.load(ONE)


@pytest.mark.parametrize("text", [ONE.key, base64.b64encode(ONE.key), ONE.key.hex().upper().encode()])
def test_a_part_of_a_key_is_found_in_any_form(text: bytes) -> None:
    assert shows_key(b"it was " + text[5:20] + b"...", ONE.key)
    assert not shows_key(b"it was something else", ONE.key)


async def test_a_file_has_the_key_for_its_owner_alone_and_never_a_part_of_it(in_memory: Path) -> None:
    path, key_id_path = in_memory / "psk", in_memory / "psk.id"
    config = FileConfig(path=path, key_id_path=key_id_path, key_format="hex")
    async with FileTunnel(config, "initiator").open() as tunnel:
        assert await tunnel.in_use() is None
        await tunnel.load(ONE)
        assert not path.exists()
        await tunnel.activate(ONE)
        assert path.read_text() == ONE.key.hex() + "\n"
        assert key_id_path.read_text() == "key-1\n"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        inode = path.stat().st_ino
        await tunnel.activate(TWO)
        assert path.stat().st_ino != inode  # replaced, not written over
        await tunnel.unload(TWO)
        assert path.read_text() == ONE.key.hex() + "\n"
        found = await tunnel.in_use()
        assert found is not None
        assert found.key_id == "key-1"
        await tunnel.take_down()
        assert names_in(in_memory) == []


async def test_the_key_of_an_earlier_agent_stays_in_its_file(in_memory: Path) -> None:
    (in_memory / "psk").write_text("earlier\n")
    (in_memory / ".psk.cut").write_text("half a k")
    async with FileTunnel(FileConfig(path=in_memory / "psk"), "responder").open() as tunnel:
        found = await tunnel.in_use()
        assert found is not None
        assert found.key_id is None
        await tunnel.activate(ONE)
        await tunnel.unload(ONE)
    assert names_in(in_memory) == ["psk"]
    assert (in_memory / "psk").read_text() == "earlier\n"


async def test_the_program_after_a_file_that_fails_leaves_the_key_before(in_memory: Path) -> None:
    fails = FileConfig(path=in_memory / "psk", after=("/bin/false",), timeout_s=60.0)
    (in_memory / "psk").write_text("earlier\n")
    async with FileTunnel(fails, "initiator").open() as tunnel:
        with pytest.raises(TunnelError, match=r"tunnel\.after: /bin/false: ended with 1"):
            await tunnel.activate(ONE)
    assert (in_memory / "psk").read_text() == "earlier\n"


async def test_an_encryptor_that_read_a_key_before_its_program_failed_reads_the_one_before(
    in_memory: Path,
) -> None:
    read = in_memory / "read"
    after = ("/bin/sh", "-c", f"cat {in_memory}/psk >> {read}; exit 1")
    (in_memory / "psk").write_text("earlier\n")
    async with FileTunnel(
        FileConfig(path=in_memory / "psk", after=after, timeout_s=60.0), "initiator"
    ).open() as tunnel:
        with pytest.raises(TunnelError, match="ended with 1"):
            await tunnel.activate(ONE)
    assert read.read_text() == base64.b64encode(ONE.key).decode() + "\nearlier\n"


async def test_what_others_have_in_the_folder_is_no_error(in_memory: Path) -> None:
    (in_memory / ".psk.of-others").mkdir()
    async with FileTunnel(FileConfig(path=in_memory / "psk"), "initiator").open() as tunnel:
        assert await tunnel.in_use() is None


async def test_a_folder_on_a_disk_is_refused_unless_the_file_allows_it(tmp_path: Path) -> None:
    if kept_in_memory(tmp_path):
        pytest.skip("the folder of temporary files is kept in memory")
    with pytest.raises(TunnelError, match="is on a disk, where keys would stay"):
        async with FileTunnel(FileConfig(path=tmp_path / "psk"), "initiator").open():
            pass
    async with FileTunnel(FileConfig(path=tmp_path / "psk", allow_disk=True), "initiator").open() as tunnel:
        await tunnel.activate(ONE)
    with pytest.raises(TunnelError, match="is no folder"):
        async with FileTunnel(FileConfig(path=tmp_path / "absent" / "psk"), "initiator").open():
            pass


async def test_no_argument_and_no_environment_ever_has_the_key(tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    body = (
        f"open({str(seen)!r}, 'ab').write(open('/proc/self/cmdline', 'rb').read() "
        "+ open('/proc/self/environ', 'rb').read())\n"
    )
    config = CommandConfig(program=program(tmp_path, body), events=EVERY_EVENT, timeout_s=60.0)
    async with CommandTunnel(config, "initiator").open() as tunnel:
        await tunnel.load(ONE)
        await tunnel.activate(ONE)
        await trio.lowlevel.checkpoint()
    assert b"key-1" in seen.read_bytes()
    assert not shows_key(seen.read_bytes(), ONE.key)
    assert os.environ.get("QNODE_KEY_ID") is None
