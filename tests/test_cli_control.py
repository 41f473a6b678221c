"""`qnodectl` as an operator runs it: a process of its own against a served socket."""

import csv
import io
import json
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from blocks_support import accepted_block, lost_block
from msgspec.structs import replace
from operate_support import degraded_status, well_status

from qnode.cli.control import main
from qnode.devices.status import Exchange
from qnode.distill.check_table import Finding
from qnode.distill.selftest import SelfTestFailed
from qnode.emulate.transcript import Said, read_transcript
from qnode.errors import ConfigError, StoreError
from qnode.operate.blocks.row import DecidedBlock
from qnode.operate.control import requests
from qnode.operate.control.answers import Answers, LinkAnswers
from qnode.operate.control.client import Request, Restored
from qnode.operate.control.server import serve_control
from qnode.operate.status.model import ControllerStatus, KeyStatus, LinkStatus, NodeStatus, State

QNODECTL = str(Path(sys.executable).parent / "qnodectl")
EVENTS = [
    {"at": 1.8e9, "level": "info", "event": "node.started", "version": "0.4.1"},
    {"at": 1.8e9 + 1, "level": "warning", "event": "block.discarded", "block": 7, "reason": "qber_z"},
]


def recent_events(count: int) -> list[dict[str, Any]]:
    return EVENTS[-count:]


BLOCKS = [accepted_block(812), lost_block(813, "qber_z", "12.1 % is above\nthe limit")]


def decided_blocks(count: int, after: int | None) -> list[DecidedBlock]:
    assert after is None
    return BLOCKS[-count:]


def exchanges(device: str) -> list[Exchange] | None:
    said = (Exchange(1.8e9 + number, sent=number < 2, data=bytes(4096)) for number in range(40))
    last = (
        Exchange(1.8e9 + 40, sent=True, data=b"*IDN?\r\n"),
        Exchange(1.8e9 + 41, sent=False, data=b"\x1b[2J"),
    )
    return [*said, *last] if device == "voa" else [] if device == "tdc" else None


@asynccontextmanager
async def served(path: Path, status: NodeStatus) -> AsyncIterator[None]:
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            answers = Answers(
                lambda: status, recent_events, {"turin": LinkAnswers(decided_blocks, exchanges=exchanges)}
            )
            await nursery.start(serve_control, path, answers)
            yield
            nursery.cancel_scope.cancel()


async def qnodectl(*arguments: str | Path, **environment: str) -> "subprocess.CompletedProcess[bytes]":
    return await trio.run_process(
        [QNODECTL, *map(str, arguments)],
        capture_stdout=True,
        capture_stderr=True,
        check=False,
        env={**os.environ, "QNODE_CONTROL_SOCKET": "", **environment},
    )


async def test_status_of_a_node_that_is_well_exits_with_0(tmp_path: Path) -> None:
    async with served(tmp_path / "s", well_status()):
        run = await qnodectl("--socket", tmp_path / "s", "status")
    assert run.returncode == 0, run.stderr
    assert b"alice@turin" in run.stdout
    assert b"12 481 ready" in run.stdout
    assert run.stderr == b""


async def test_status_of_a_degraded_node_exits_with_1_and_says_why(tmp_path: Path) -> None:
    async with served(tmp_path / "s", degraded_status()):
        run = await qnodectl("status", QNODE_CONTROL_SOCKET=str(tmp_path / "s"))
    assert run.returncode == 1
    assert b"2 warnings. See: qnodectl devices voa" in run.stdout


async def test_status_as_json_is_the_status_with_every_field(tmp_path: Path) -> None:
    async with served(tmp_path / "s", degraded_status()):
        run = await qnodectl("--socket", tmp_path / "s", "status", "--json")
    assert run.returncode == 1
    assert msgspec.json.decode(run.stdout, type=NodeStatus) == degraded_status()
    assert json.loads(run.stdout)["state"] == {"state": "running", "since": 1799751600.0, "because": ""}


async def test_a_link_that_is_simulated_or_without_key_says_so(tmp_path: Path) -> None:
    status = well_status(simulated=True, keys=KeyStatus())
    async with served(tmp_path / "s", status):
        screen = await qnodectl("--socket", tmp_path / "s", "status")
        keys = await qnodectl("--socket", tmp_path / "s", "keys")
        as_json = await qnodectl("--socket", tmp_path / "s", "status", "--json")
    for run in (screen, keys):
        assert b"SIMULATED: these keys are not keys" in run.stdout
        assert b"no key: all keys are used; block 812 was the last to give key" in run.stdout
    assert json.loads(as_json.stdout)["simulated"] is True


async def test_keys_saes_devices_and_events_show_their_part(tmp_path: Path) -> None:
    at = ("--socket", tmp_path / "s")
    async with served(tmp_path / "s", degraded_status()):
        runs = {name: await qnodectl(*at, name) for name in ("keys", "saes", "devices", "events")}
        one = await qnodectl(*at, "devices", "voa")
        silent = await qnodectl(*at, "devices", "tdc")
        unknown = await qnodectl(*at, "devices", "vao")
        last = await qnodectl(*at, "events", "--count", "1", "--json")
    assert {run.returncode for run in runs.values()} == {0}
    out = {name: run.stdout.decode() for name, run in runs.items()}
    assert "ready here" in out["keys"]
    assert "6 481" in out["keys"]
    assert "SAE-A" in out["saes"]
    assert "3.0 s ago" in out["saes"]
    assert "never" in out["saes"]
    assert [line.split()[1] for line in out["devices"].splitlines()] == ["ok", "ok", "WARN"]
    assert [line.split()[3] for line in out["events"].splitlines()] == ["node.started", "block.discarded"]
    assert "retry" in one.stdout.decode()
    last_bytes = one.stdout.decode().partition("last bytes\n")[2].splitlines()
    assert [line.split()[1] for line in last_bytes] == ["sent", "sent", *["received"] * 8, "sent", "received"]
    assert [line.split(maxsplit=2)[2] for line in last_bytes[-2:]] == ["*IDN?\\r\\n", "\\x1b[2J"]
    assert max(map(len, last_bytes)) <= 80
    assert "none are recorded" in silent.stdout.decode()
    assert unknown.returncode == 64
    assert b"no device vao (devices: tdc, bias, voa)" in unknown.stderr
    assert json.loads(last.stdout) == EVENTS[1]


async def test_blocks_show_what_became_of_each(tmp_path: Path) -> None:
    async with served(tmp_path / "s", well_status(simulated=True)):
        table = await qnodectl("--socket", tmp_path / "s", "blocks")
        wide = await qnodectl("--socket", tmp_path / "s", "blocks", COLUMNS="160")
        as_csv = await qnodectl("--socket", tmp_path / "s", "blocks", "--csv")
        newest = await qnodectl("--socket", tmp_path / "s", "blocks", "--csv", "--count", "1")
    assert (table.returncode, as_csv.returncode, newest.returncode) == (0, 0, 0), table.stderr
    lines = [" ".join(line.split()) for line in table.stdout.decode().splitlines()]
    assert lines[0] == "SIMULATED: these keys are not keys"
    assert "812 41 s 24 1 048 576 1.62 % 1.120 4.50 % 238 112 accepted" in lines
    assert "813 40 s 0 qber_z: 12.1 % is above\\nthe limit" in [
        " ".join(line.split()) for line in wide.stdout.decode().splitlines()
    ]
    rows = list(csv.DictReader(io.StringIO(as_csv.stdout.decode())))
    assert [(row["block_id"], row["outcome"]) for row in rows] == [("812", "accepted"), ("813", "qber_z")]
    assert rows[0]["e_plus_decoy"] == "32001"
    assert newest.stdout.splitlines()[1].startswith(b"813,")


async def test_everything_fits_80_columns_and_no_word_or_number_is_broken(tmp_path: Path) -> None:
    shown: dict[tuple[str, str], list[str]] = {}
    async with served(tmp_path / "s", degraded_status()):
        for command in ("status", "blocks", "keys", "devices"):
            for columns in ("80", "400"):
                run = await qnodectl("--socket", tmp_path / "s", command, COLUMNS=columns)
                shown[command, columns] = run.stdout.decode().splitlines()
    for command in ("status", "blocks", "keys", "devices"):
        narrow, wide = shown[command, "80"], shown[command, "400"]
        assert max(map(len, narrow)) <= 80, command
        assert set(" ".join(narrow).split()) >= {word for word in " ".join(wide).split() if "─" not in word}
    assert any(len(line) > 80 for line in shown["status", "400"])
    assert any("12 481 ready" in line for line in shown["status", "80"])
    assert any("1 048 576" in line and "238 112" in line for line in shown["blocks", "80"])


async def test_checks_show_each_limit_and_exit_with_1_where_one_failed(tmp_path: Path) -> None:
    well = well_status()
    blinded = Finding("cross_clicks", 0.0, 12.5, 160.5, points_to="blinding")
    quantum = replace(well.quantum, checks=(blinded, *well.quantum.checks[1:]), checks_of_block=812)
    async with served(tmp_path / "s", well):
        plausible = await qnodectl("--socket", tmp_path / "s", "checks")
    async with served(tmp_path / "s", replace(well, quantum=quantum)):
        failed = await qnodectl("--socket", tmp_path / "s", "checks")
    assert (plausible.returncode, failed.returncode) == (0, 1), failed.stderr
    assert b"0 of 2 checks failed" in plausible.stdout
    assert b"block 812: 1 of 2 checks failed" in failed.stdout
    assert b"WARN blinding" in failed.stdout


async def test_doctor_writes_the_last_bytes_of_a_device_as_a_transcript(tmp_path: Path) -> None:
    output = tmp_path / "transcript.txt"
    at = ("--socket", tmp_path / "s", "doctor")
    async with served(tmp_path / "s", well_status()):
        written = await qnodectl(*at, "voa", "--output", output)
        again = await qnodectl(*at, "voa", "--output", output)
        silent = await qnodectl(*at, "tdc", "--output", tmp_path / "other")
        unknown = await qnodectl(*at, "vao", "--output", tmp_path / "other")
        nowhere = await qnodectl(*at, "voa", "--output", tmp_path / "no" / "folder")
    assert written.returncode == 0, written.stderr
    said = read_transcript(output)
    assert said[-1] == Said(sent=False, data=b"\x1b[2J")
    assert said[-2] == Said(sent=True, data=b"*IDN?\r\n")
    assert [run.returncode for run in (again, silent, nowhere)] == [64, 1, 64]
    assert b"is there already" in again.stderr
    assert b"no bytes are recorded" in silent.stdout
    assert unknown.returncode != 0
    assert not (tmp_path / "other").exists()


async def test_checks_show_the_monitors_over_devices(tmp_path: Path) -> None:
    dark = Finding("backward_light", 1e-10, -5e-10, 1.5e-9)
    bright = replace(dark, value=1e-6, points_to="Trojan horse")
    unknown = replace(dark, check="of a later version")
    well = well_status()
    async with served(tmp_path / "s", replace(well, monitors={"readings.back": dark, "x": unknown})):
        quiet = await qnodectl("--socket", tmp_path / "s", "checks")
    async with served(tmp_path / "s", replace(well, monitors={"readings.back": bright})):
        tripped = await qnodectl("--socket", tmp_path / "s", "checks")
    assert (quiet.returncode, tripped.returncode) == (0, 1), tripped.stderr
    assert b"0 of 2 monitors are outside" in quiet.stdout
    assert b"1 of 1 monitors are outside" in tripped.stdout
    assert b"WARN Trojan horse" in tripped.stdout


async def test_watch_shows_one_look_after_another(tmp_path: Path) -> None:
    async with served(tmp_path / "s", well_status()):
        run = await qnodectl("--socket", tmp_path / "s", "watch", "--interval", "0.1", "--count", "3")
    assert run.returncode == 0, run.stderr
    assert run.stdout.count(b"alice@turin") == 3


async def test_nobody_at_the_socket_exits_with_2(tmp_path: Path) -> None:
    missing = await qnodectl("--socket", tmp_path / "none", "status")
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(tmp_path / "stale"))
    stale = await qnodectl("--socket", tmp_path / "stale", "status", "--json")
    for run in (missing, stale):
        assert (run.returncode, run.stdout) == (2, b"")
        assert b"not running: " in run.stderr


async def test_a_node_that_does_not_answer_exits_with_3(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as hung:
        hung.bind(str(tmp_path / "s"))
        hung.listen()
        run = await qnodectl("--socket", tmp_path / "s", "--patience", "0.1", "status")
    assert (run.returncode, run.stdout) == (3, b"")
    assert b"cannot tell: " in run.stderr
    assert b"no answer within 0.1 s" in run.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("status", "--jsn"),
        ("statsu",),
        (),
        ("events", "--count", "0"),
        ("blocks", "--count", "4097"),
        ("--socket",),
        ("--patience", "x", "keys"),
    ],
)
def test_wrong_usage_exits_with_64(
    arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["qnodectl", *arguments])
    with pytest.raises(SystemExit) as exit_:
        main()
    assert exit_.value.code == 64
    said = capsys.readouterr().err
    assert "Error: " in said or "Usage: " in said


async def test_help_exits_with_0() -> None:
    run = await qnodectl("--help")
    assert run.returncode == 0
    assert b"Exit codes" in run.stdout


async def test_a_reader_that_has_seen_enough_is_no_error(tmp_path: Path) -> None:
    many = replace(well_status(), devices=well_status().devices * 2000)
    async with served(tmp_path / "s", many):
        command = f"{QNODECTL} --socket {tmp_path}/s status | head -1; exit ${{PIPESTATUS[0]}}"
        run = await trio.run_process(
            ["bash", "-c", command], capture_stdout=True, capture_stderr=True, check=False
        )
    assert (run.returncode, run.stdout[:13], run.stderr) == (0, b"alice@turin (", b"")


def test_status_imports_nothing_heavy() -> None:
    heavy = ["numpy", "numba", "trio", "rich", "structlog", "prometheus_client"]
    program = (
        "import sys, qnode.cli.control, qnode.operate.status.screen;"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, text=True)
    assert found.stdout == "[]\n"


# restore


async def restored(preshared_key: bytes) -> Restored:
    if preshared_key != SECRET:
        raise StoreError("this pre-shared key was loaded before; make a new one for both sites")
    return Restored(void_chunks=1234, pads_send=5, pads_receive=6)


SECRET = bytes(range(200))


@asynccontextmanager
async def restorable(path: Path) -> AsyncIterator[None]:
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            answers = Answers(
                well_status, recent_events, {"turin": LinkAnswers(decided_blocks, restore=restored)}
            )
            await nursery.start(serve_control, path, answers)
            yield
            nursery.cancel_scope.cancel()


async def test_restore_carries_the_preshared_key_and_says_what_was_voided(tmp_path: Path) -> None:
    path, key = tmp_path / "control.sock", tmp_path / "new.key"
    key.write_bytes(SECRET)
    key.chmod(0o600)
    async with restorable(path):
        done = await qnodectl("--socket", path, "restore", "--yes", key)
        assert done.returncode == 0, done.stderr
        assert b"1,234 chunks are void, 5 one-time pads to send and 6 to receive" in done.stdout

        unasked = await qnodectl("--socket", path, "restore", key)  # standard input is no terminal
        assert (unasked.returncode, b"--yes" in unasked.stderr) == (64, True)

        key.write_bytes(SECRET[1:])
        refused = await qnodectl("--socket", path, "restore", "--yes", key)
        assert (refused.returncode, b"make a new one" in refused.stderr) == (3, True)

        key.chmod(0o640)
        readable = await qnodectl("--socket", path, "restore", "--yes", key)
        assert (readable.returncode, b"chmod 600" in readable.stderr) == (64, True)

        key.chmod(0o600)
        key.write_bytes(bytes((1 << 17) + 1))
        too_long = await qnodectl("--socket", path, "restore", "--yes", key)
        assert (too_long.returncode, b"at most 131,072 are taken" in too_long.stderr) == (64, True)


def status_of_two_links() -> NodeStatus:
    """Return the status of a site whose two links are alike but for their names."""
    one = well_status()
    links = [
        LinkStatus(name=name, role="alice", peer=one.peer, quantum=one.quantum) for name in ("turin", "asti")
    ]
    return replace(one, links=links)


async def test_a_restore_names_its_link_where_there_are_several(tmp_path: Path) -> None:
    path, key = tmp_path / "control.sock", tmp_path / "new.key"
    key.write_bytes(SECRET)
    key.chmod(0o600)
    of_link = LinkAnswers(decided_blocks, restore=restored)
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            answers = Answers(status_of_two_links, recent_events, {"turin": of_link, "asti": of_link})
            await nursery.start(serve_control, path, answers)
            unnamed = await qnodectl("--socket", path, "restore", "--yes", key)
            assert unnamed.returncode == 64
            assert b"--link (links: turin, asti)" in unnamed.stderr
            named = await qnodectl("--socket", path, "--link", "asti", "restore", "--yes", key)
            assert named.returncode == 0, named.stderr
            request = Request(request="restore", preshared_key=SECRET)
            async with await trio.open_unix_socket(path) as stream:
                await stream.send_all(msgspec.json.encode(request) + b"\n")
                assert b"name it with --link (links: turin, asti)" in await stream.receive_some()
            nursery.cancel_scope.cancel()


def test_a_request_does_not_show_the_preshared_key_that_it_carries() -> None:
    request = Request(request="restore", preshared_key=SECRET)
    assert repr(request) == "Request(restore)"
    assert request.__rich_repr__() == [("request", "restore")]


# calibrate

FOLLOWING = ControllerStatus(
    name="phase", device="tdc", state=State("following", 1.8e9), unit="rad",
    setting=-1.26, best=-1.2, sigma=0.04, drift_per_hour=9.4, moves=7,
)  # fmt: skip


def calibrated(name: str, command: str) -> ControllerStatus:
    if name != "phase":
        raise ConfigError(f"no controller {name!r} (controllers: phase)")
    assert command in ("hold", "-1.5")
    return replace(FOLLOWING, state=State("held", 1.8e9, f"told {command}"))


async def test_an_operator_tells_a_controller_what_to_hold(tmp_path: Path) -> None:
    path = tmp_path / "s"
    of_link = LinkAnswers(decided_blocks, calibrate=calibrated)
    status = well_status(controllers=[FOLLOWING])
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            answers = Answers(lambda: status, recent_events, {"turin": of_link})
            await nursery.start(serve_control, path, answers)
            shown = await qnodectl("--socket", path, "status")
            held = await qnodectl("--socket", path, "calibrate", "phase", "hold")
            below_zero = await qnodectl("--socket", path, "calibrate", "phase", "-1.5")
            unknown = await qnodectl("--socket", path, "calibrate", "im1", "auto")
            nursery.cancel_scope.cancel()
    assert b"control   phase      ok     set -1.26 rad   best -1.2 rad \xc2\xb10.04" in shown.stdout
    assert (held.returncode, below_zero.returncode) == (0, 0), below_zero.stderr
    assert b"told hold" in held.stdout
    assert b"told -1.5" in below_zero.stdout
    assert unknown.returncode == 3
    assert b"no controller 'im1' (controllers: phase)" in unknown.stderr


async def passes() -> float:
    return 0.125


async def fails() -> float:
    raise SelfTestFailed("self-test: SHA-256 gives a wrong result on this machine; it must not make keys")


async def test_a_self_test_is_told_and_its_failure_is_exit_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, runs = tmp_path / "s", []
    for self_test in (passes, fails):
        answers = Answers(well_status, recent_events, {"turin": LinkAnswers(decided_blocks)}, None, self_test)
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                await nursery.start(serve_control, path, answers)
                runs.append(await qnodectl("--socket", path, "selftest"))
                with monkeypatch.context() as another_user:
                    another_user.setattr(requests, "ROOT", 2**31)
                    another_user.setattr(os, "geteuid", lambda: 2**30)
                    refused = await qnodectl("--socket", path, "selftest")
                nursery.cancel_scope.cancel()
        assert (refused.returncode, b"only root and the daemon" in refused.stderr) == (3, True)
    assert [run.returncode for run in runs] == [0, 1]
    assert runs[0].stdout == b"passed in 0.12 s: distillation, ciphers and hashes\n"
    assert (
        b"SHA-256 gives a wrong result on this machine; it must not make keys; the node ends"
        in runs[1].stdout
    )


async def test_align_shows_page_after_page(tmp_path: Path) -> None:
    async with served(tmp_path / "s", well_status()):
        run = await qnodectl("--socket", tmp_path / "s", "align", "--count", "2", "--interval", "0.1")
    assert run.returncode == 0, run.stderr
    assert run.stdout.count(b"KME-ALICE  turin  locked for 1 h") == 2
    assert b"\x1b" not in run.stdout
