"""`qnode driver`: new packages pass their own tests; the check and the recording work with any driver."""

import importlib
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType

import pytest
import trio
from click.testing import CliRunner, Result

from qnode.cli.driver import driver
from qnode.cli.driver_package import write_package
from qnode.devices import registry
from qnode.emulate.ports import Emulator, tcp_port
from qnode.emulate.transcript import Said, TranscriptEmulator, joined, read_transcript, write_transcript
from qnode.errors import ConfigError

TOP = Path(__file__).parent.parent
PATIENCE_S = 120.0


def run(*arguments: str, answer: str | None = None) -> Result:
    return CliRunner().invoke(driver, list(arguments), input=answer, standalone_mode=False)


def environment(*places: Path) -> dict[str, str]:
    path = os.pathsep.join([*map(str, places), str(TOP), str(TOP / "drivers")])
    return {**os.environ, "PYTHONPATH": path}


def pytest_of(folder: Path) -> None:
    """Run the tests of a package as its author does."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@contextmanager
def served(emulator: Emulator) -> Iterator[str]:
    """Serve an emulator in a thread of its own; gives its address."""
    addresses: queue.Queue[str] = queue.Queue()
    tokens: queue.Queue[tuple[trio.lowlevel.TrioToken, trio.Event]] = queue.Queue()

    async def serve() -> None:
        async with tcp_port(emulator) as address:
            ended = trio.Event()
            tokens.put((trio.lowlevel.current_trio_token(), ended))
            addresses.put(address)
            await ended.wait()

    thread = threading.Thread(target=trio.run, args=(serve,))
    thread.start()
    token, ended = tokens.get(timeout=PATIENCE_S)
    try:
        yield addresses.get(timeout=PATIENCE_S)
    finally:
        token.run_sync_soon(ended.set)
        thread.join(PATIENCE_S)


# New packages


@pytest.mark.parametrize(
    ("transport", "kind"), [("serial", "sensor"), ("tcp", "attenuator"), ("serial", "tdc"), ("usb", "sensor")]
)
def test_a_new_package_passes_its_own_tests(tmp_path: Path, transport: str, kind: str) -> None:
    folder = tmp_path / "my-device"
    result = run("new", "my-device", "--transport", transport, "--kind", kind, "--output", str(folder))
    assert result.return_value == 0, result.output
    assert str(folder / "my_device" / "driver.py") in result.output
    pytest_of(folder)


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("My Device", "expected a name of small letters"),
        ("my--device", "expected a name of small letters"),
        ("../other", "expected a name of small letters"),
        ("simulated-tdc", "a driver of this name is installed"),
        ("random", "Python has a module random already"),
        ("numpy", "Python has a module numpy already"),
        ("class", "Python has a module class already"),
    ],
)
def test_a_name_that_would_be_in_the_way_is_refused(tmp_path: Path, name: str, fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        write_package(tmp_path / "new", name, "tcp", "sensor")
    assert not (tmp_path / "new").exists()


def test_a_folder_that_is_there_is_left_as_it_is(tmp_path: Path) -> None:
    result = run("new", "my-device", "--transport", "tcp", "--output", str(tmp_path))
    assert result.return_value == 64
    assert "is there already" in result.output
    assert list(tmp_path.iterdir()) == []


# Check and record


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[type, ModuleType]]:
    """Lend the driver class and the emulator's module of a new attenuator behind TCP."""
    folder = tmp_path / "package"
    write_package(folder, "kit-voa", "tcp", "attenuator")
    for place in (folder, folder / "tests"):
        monkeypatch.syspath_prepend(place)
    found: type = importlib.import_module("kit_voa.driver").KitVoa

    class Found(EntryPoint):
        def load(self) -> type:
            return found

    entry = Found("kit-voa", "kit_voa.driver:KitVoa", "qnode.drivers")
    monkeypatch.setattr(registry, "entry_points", lambda **_: [entry])
    yield found, importlib.import_module("kit_voa_emulator")
    for name in ("kit_voa", "kit_voa.driver", "kit_voa_emulator"):
        del sys.modules[name]


def test_the_check_prints_each_promise(tmp_path: Path, package: tuple[type, ModuleType]) -> None:
    emulator = package[1].KitVoaEmulator()
    config = tmp_path / "device.toml"
    with served(emulator) as address:
        config.write_text(f'address = "{address}"\n')
        result = run("check", "kit-voa", "--config", str(config), "--yes")
    assert result.return_value == 0, result.output
    lines = result.output.splitlines()
    assert lines[-1] == "kit-voa: every promise is kept"
    assert sum(line.startswith("ok     ") for line in lines) == len(lines) - 1 == len(set(lines)) - 1
    assert any("kit-voa, serial 0042" in line for line in lines)
    assert any("VariableAttenuator: settings are reached" in line for line in lines)


def test_the_check_names_the_broken_promise(tmp_path: Path, package: tuple[type, ModuleType]) -> None:
    emulator = package[1].KitVoaEmulator()
    config = tmp_path / "site.toml"
    package[0].attenuation_limits_db = (0.0, 40.0)  # type: ignore[attr-defined] # but it takes 60
    with served(emulator) as address:
        config.write_text(f'[devices.voa]\ndriver = "kit-voa"\n[devices.voa.config]\naddress = "{address}"\n')
        result = run("check", "kit-voa", "--config", str(config), "--yes")
    assert result.return_value == 1
    assert "BROKEN KitVoa: " in result.output


def test_the_check_asks_before_it_moves_anything(tmp_path: Path, package: tuple[type, ModuleType]) -> None:
    emulator = package[1].KitVoaEmulator()
    config = tmp_path / "device.toml"
    with served(emulator) as address:
        config.write_text(f'address = "{address}"\n')
        result = run("check", "kit-voa", "--config", str(config), answer="n\n")
    assert result.return_value != 0
    assert emulator.attenuation_db == 3.0


def test_a_recording_replays_as_the_device(tmp_path: Path, package: tuple[type, ModuleType]) -> None:
    device, emulators = package
    config, output = tmp_path / "device.toml", tmp_path / "transcript.txt"
    with served(emulators.KitVoaEmulator()) as address:
        config.write_text(f'address = "{address}"\n')
        result = run(
            *("record", "kit-voa", "--config", str(config), "--output", str(output), "--seconds", "0.5")
        )
    assert result.return_value == 0, result.output
    assert "kit-voa, serial number 0042" in result.output
    assert "> ATT 60.00\\n\n< OK\\n" in output.read_text()

    async def replay() -> None:
        replayed = TranscriptEmulator(read_transcript(output))
        async with (
            tcp_port(replayed) as address,
            device.open(device.Config(address=address)) as opened,  # type: ignore[attr-defined]
        ):
            await opened.attenuation_db()
        replayed.check()

    trio.run(replay)
    again = run("record", "kit-voa", "--config", str(config), "--output", str(output))
    assert again.return_value == 64
    assert "is there already" in again.output


def test_what_was_said_before_a_failure_is_recorded(tmp_path: Path, package: tuple[type, ModuleType]) -> None:
    config, output = tmp_path / "device.toml", tmp_path / "transcript.txt"
    with served(package[1].KitVoaEmulator(serial_number="0043")) as address:
        config.write_text(f'address = "{address}"\nserial_number = "0042"\n')
        result = run("record", "kit-voa", "--config", str(config), "--output", str(output))
    assert result.return_value == 1
    assert "expected serial number 0042, got 0043" in result.output
    assert "< MAKER,kit-voa,0043,1.0\\n" in output.read_text()


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ('[devices.a]\ndriver = "other"\n', "expected one device with driver kit-voa, found none"),
        (
            '[devices.a]\ndriver = "kit-voa"\n[devices.b]\ndriver = "kit-voa"\n',
            "expected one device with driver kit-voa, found a, b",
        ),
        ('adress = "tcp://127.0.0.1:1"\n', "did you mean address"),
        ('address = "tcp://127.0.0.1:1', "not TOML"),
    ],
)
def test_a_wrong_file_is_one_line(
    tmp_path: Path, package: tuple[type, ModuleType], text: str, fault: str
) -> None:
    config = tmp_path / "device.toml"
    config.write_text(text)
    result = run("check", "kit-voa", "--config", str(config), "--yes")
    assert result.return_value == 64
    assert fault in result.output
    assert len(result.output.strip().splitlines()) == 1


def test_a_driver_from_a_wheel_of_its_own_is_found_and_passes(tmp_path: Path) -> None:
    folder, installed = tmp_path / "package", tmp_path / "installed"
    write_package(folder, "wheel-voa", "tcp", "attenuator")
    command = ("install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--target")
    subprocess.run(
        [sys.executable, "-m", "pip", *command, str(installed), str(folder)], timeout=PATIENCE_S, check=True
    )
    sys.path.insert(0, str(folder / "tests"))
    try:
        emulator = importlib.import_module("wheel_voa_emulator").WheelVoaEmulator()
    finally:
        sys.path.remove(str(folder / "tests"))
    config = tmp_path / "device.toml"
    with served(emulator) as address:
        config.write_text(f'address = "{address}"\n')
        done = subprocess.run(
            [sys.executable, "-m", "qnode", "driver", "check", "wheel-voa", "--config", str(config), "--yes"],
            env=environment(installed),
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "every promise is kept" in done.stdout
    assert emulator.attenuation_db == 60.0


# Transcripts


def test_any_bytes_survive_a_transcript(tmp_path: Path) -> None:
    path = tmp_path / "transcript.txt"
    said = [
        Said(True, bytes(range(256)) * 3),
        Said(False, b"a \r\n b \n"),
        Said(True, b" "),
        Said(False, b"\\n"),
    ]
    write_transcript(path, said, "all bytes")
    assert read_transcript(path) == said
    assert all(len(line) < 280 for line in path.read_text().splitlines())


def test_parts_in_one_direction_are_one() -> None:
    parts = [Said(True, b"a"), Said(True, b"b"), Said(False, b"c"), Said(False, b"d")]
    assert joined(parts) == [Said(True, b"ab"), Said(False, b"cd")]


@pytest.mark.parametrize(
    ("line", "fault"),
    [("* a", "line 2: expected '> '"), ("> a\\q", "line 2: expected printable"), ("> é", "not ASCII")],
)
def test_a_wrong_line_of_a_transcript_is_named(tmp_path: Path, line: str, fault: str) -> None:
    path = tmp_path / "transcript.txt"
    path.write_text(f"# a remark\n{line}\n")
    with pytest.raises(ConfigError, match=fault):
        read_transcript(path)


async def test_a_replayed_device_says_what_differs() -> None:
    device = TranscriptEmulator([Said(True, b"A?\n"), Said(False, b"1\n")])
    with pytest.raises(AssertionError, match="not said"):
        device.check()
    async with tcp_port(device) as address:
        stream = await trio.open_tcp_stream("127.0.0.1", int(address.rpartition(":")[2]))
        async with stream:
            await stream.send_all(b"B?\n")
            with trio.move_on_after(0.2):
                await stream.receive_some()
    with pytest.raises(AssertionError, match=r"expected b'A\?\\n', b'B\?\\n' came"):
        device.check()
