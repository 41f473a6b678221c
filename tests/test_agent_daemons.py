"""Two agents as processes, with a real line and real key managers between them; encryptors are scripts."""

import base64
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import httpx
import msgspec
import trio
from agent_support import agent_tables, issue, written
from etsi014_support import MemorySupply, World, world
from http_support import HOST, Pki

PATIENCE_S = 120.0  # for what takes seconds, on a machine that does other things as well
SITES = ("a", "b")
ROLES = {"a": "initiator", "b": "responder"}

# An encryptor: what it was told to use, and every key_ID that it ever used, one a line.
ENCRYPTOR = """#!/bin/sh
cd {folder} || exit 1
case $1 in
load) cat > loaded ;;
activate) cat > new && mv new active && echo "$2" > active.id && echo "$2" >> history ;;
in_use) test -f active.id && cat active.id ;;
take_down) rm -f active active.id && echo down >> history ;;
transferred_bytes) echo 12345 ;;
esac
exit 0
"""

T = TypeVar("T")


@dataclass
class Site:
    """One site: its file, its encryptor's folder, and its process."""

    name: str
    path: Path
    encryptor: Path
    metrics_port: int
    log: Path
    process: subprocess.Popen[bytes] | None = field(default=None)

    @property
    def socket(self) -> Path:
        return self.path.parent / f"run-{self.name}" / "control.sock"

    def start(self) -> None:
        command = [sys.executable, "-m", "qnode", "agent", "run", "--config", str(self.path)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stderr=log)

    def stop(self, number: int = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(PATIENCE_S)

    def active(self) -> bytes:
        path = self.encryptor / "active"
        return path.read_bytes() if path.exists() else b""

    def history(self) -> list[str]:
        path = self.encryptor / "history"
        return path.read_text().splitlines() if path.exists() else []


@dataclass
class Pair:
    """Both sites and their key managers."""

    sites: dict[str, Site]
    kmes: World

    async def until(self, look: Callable[[], T | None], what: str) -> T:
        deadline = trio.current_time() + PATIENCE_S
        while trio.current_time() < deadline:
            if found := look():
                return found
            await trio.sleep(0.05)
        logs = "\n".join(site.log.read_text() for site in self.sites.values())
        raise AssertionError(f"not within {PATIENCE_S:g} s: {what}\n{logs}")

    def agree(self) -> str | None:
        """Return the key_ID in use if both ends use the same key."""
        first, second = (self.sites[name] for name in SITES)
        if not first.active() or first.active() != second.active():
            return None
        return first.history()[-1]

    async def new_key(self, since: int) -> str:
        """Wait until both ends use a key after the first ``since`` of the initiator."""
        a = self.sites["a"]
        return await self.until(
            lambda: self.agree() if len(a.history()) > since else None, "both ends use a new key"
        )


async def ask(site: Site, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "qnode", "agent", "status", "--socket", str(site.socket), *words]
    return await trio.to_thread.run_sync(
        lambda: subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    )


def free_port() -> int:
    with socket.socket() as bound:
        bound.bind((HOST, 0))
        return int(bound.getsockname()[1])


@asynccontextmanager
async def pair(folder: Path, **rotation: object) -> AsyncIterator[Pair]:
    pki = Pki(folder)
    for name in ("agent-a", "agent-b", "sae-a", "sae-b"):
        issue(pki, name)
    line_port = free_port()
    async with world(pki, MemorySupply(chunks=100_000)) as kmes:
        sites = {}
        for name, kme in zip(SITES, ("alice", "bob"), strict=True):
            encryptor = folder / f"encryptor-{name}"
            encryptor.mkdir()
            script = encryptor / "encryptor.sh"
            script.write_text(ENCRYPTOR.format(folder=encryptor))
            script.chmod(script.stat().st_mode | stat.S_IXUSR)
            tables = agent_tables(folder, ROLES[name], listens=name == "b")
            tables["line"]["listen" if name == "b" else "connect"] = f"{HOST}:{line_port}"
            tables["kme"]["url"] = f"https://{HOST}:{kmes.servers[kme].port}"
            tables["rotation"] = {"period_s": 1.0, "longest_s": 3600.0, **rotation}
            tables["tunnel"] = {
                "kind": "command",
                "program": [str(script)],
                "timeout_s": 14.0,
                "events": ["load", "activate", "in_use", "take_down", "transferred_bytes", "unload"],
            }
            metrics_port = free_port()
            tables["metrics"] = {"listen": f"{HOST}:{metrics_port}"}
            path = written(folder, tables, f"{name}.toml")
            sites[name] = Site(name, path, encryptor, metrics_port, folder / f"{name}.log")
        made = Pair(sites, kmes)
        try:
            yield made
        finally:
            for site in sites.values():
                if site.process is not None and site.process.poll() is None:
                    site.process.kill()
                    site.process.wait()


async def test_a_pair_of_agents_changes_keys_and_survives_the_death_of_either(tmp_path: Path) -> None:
    with trio.fail_after(280):
        async with pair(tmp_path) as made:
            a, b = made.sites["a"], made.sites["b"]
            nobody = await ask(a)
            assert nobody.returncode == 2
            for site in (a, b):
                site.start()
            await made.new_key(2)
            assert a.history()[0] == b.history()[0] == "down"  # held down until the first key

            told = await ask(a, "--json")
            status = msgspec.json.decode(told.stdout)
            assert told.returncode == 0
            assert (status["state"]["state"], status["role"]) == ("ready", "initiator")
            assert status["key"]["said"].startswith("the program says ")
            shown = await ask(b)
            assert shown.stdout.startswith("agent-b   READY for")
            assert "line      to agent-a, up for" in shown.stdout

            async with httpx.AsyncClient() as client:
                metrics = (await client.get(f"http://{HOST}:{a.metrics_port}/metrics")).text
            assert 'qkd_agent_state{state="ready"} 1.0' in metrics
            assert "qkd_agent_ends_differ_seconds_bucket" in metrics

            for name in SITES:
                killed = made.sites[name]
                assert killed.stop(signal.SIGKILL) == -signal.SIGKILL
                other = made.sites["b" if name == "a" else "a"]
                held = other.active()
                assert held  # the tunnel goes on
                before = len(a.history())
                killed.start()
                await made.new_key(before + 1)
                assert "down" not in killed.history()[1:]

            # A reload of certificates in use changes nothing; the clean stop leaves the tunnel.
            assert a.process is not None
            a.process.send_signal(signal.SIGHUP)
            await made.until(lambda: "agent.reloaded" in a.log.read_text(), "reloaded")
            for site in (a, b):
                assert site.stop() == 0
                assert site.active()

            used = [key_id for key_id in a.history() if key_id != "down"]
            assert len(set(used)) == len(used)
            keys = [base64.b64encode(key.key).decode() for key in made.kmes.supply.issued.values()]
            for site in (a, b):
                log = site.log.read_text()
                assert not any(key in log or key.rstrip("=") in log for key in keys)
                assert "Traceback" not in log


async def test_an_agent_without_keys_starves_and_takes_its_tunnel_down_and_is_back_by_itself(
    tmp_path: Path,
) -> None:
    with trio.fail_after(280):
        async with pair(tmp_path, longest_s=4.0) as made:
            a, b = made.sites["a"], made.sites["b"]
            for site in (a, b):
                site.start()
            await made.new_key(1)
            made.kmes.supply.chunks = 0
            await made.until(lambda: not a.active() and not b.active(), "both tunnels are taken down")
            for site in (a, b):
                told = await ask(site)
                assert told.returncode == 1
                assert "STARVED" in told.stdout
                assert "no key stored for this pair" in told.stdout
            made.kmes.supply.chunks = 1000
            await made.new_key(len(a.history()))


def test_a_wrong_file_ends_a_start_and_check_names_every_error(tmp_path: Path) -> None:
    tables = agent_tables(tmp_path, "initiator")
    del tables["agent"]["role"]
    path = written(tmp_path, tables)
    commands = (["run", "--config", str(path)], ["check", str(path)])
    ends = [
        subprocess.run(
            [sys.executable, "-m", "qnode", "agent", *words], capture_output=True, text=True, check=False
        )
        for words in commands
    ]
    assert [end.returncode for end in ends] == [64, 64]
    assert "role" in ends[0].stderr
    assert "fault: [agent] role: is missing" in ends[1].stdout
    assert "agent-a.pem: cannot be read" in ends[1].stdout


def test_the_status_of_something_else_cannot_be_told(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as silent:
        silent.bind(str(tmp_path / "silent"))
        silent.listen()
        command = [sys.executable, "-m", "qnode", "agent", "status", "--patience", "0.2"]
        end = subprocess.run(
            [*command, "--socket", str(tmp_path / "silent")], capture_output=True, text=True, check=False
        )
    assert end.returncode == 3
    assert "no answer within 0.2 s" in end.stderr
