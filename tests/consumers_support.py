"""What trials of other makers' clients share: a running loopback, pinned packages, steps."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from daemons_support import Encryptor, encryptors, eventually, write_small_link

from qnode.loopback.prepare import Endpoints, SaeEndpoint, SiteEndpoints

KEYS_AT_START = 60
START_S = 600.0


class Unexpected(Exception):
    """A step whose result is not as expected; the text says what was seen."""


class NotHere(Exception):
    """A client that cannot be had on this machine; the text says why."""


@dataclass
class Place:
    """A running loopback, and the pair of encryptors that anybody may be."""

    folder: Path
    endpoints: Endpoints

    @property
    def alice(self) -> SaeEndpoint:
        return self._encryptors[0].sae

    @property
    def bob(self) -> SaeEndpoint:
        return self._encryptors[1].sae

    def site(self, sae: SaeEndpoint) -> SiteEndpoints:
        """Return the site of an encryptor."""
        return next(site for site in self.endpoints.sites.values() if site.kme_id == sae.kme)

    @property
    def _encryptors(self) -> tuple[Encryptor, Encryptor]:
        return encryptors(self.endpoints)

    def wait_for_keys(self, number: int) -> None:
        """Return once both encryptors could have so many keys as master."""
        for one in self._encryptors:
            eventually(lambda one=one: one.stored() >= number, f"{number} keys", within_s=START_S)  # type: ignore[misc]


@dataclass
class Environment:
    """An environment of Python with a client in it; ``run`` is for scripts and commands in it."""

    folder: Path

    def run(self, *words: str, expect: int = 0) -> str:
        """Run one of its commands and return all that it printed.

        Raises:
            Unexpected: it ended with another code than ``expect``.
        """
        command = [str(self.folder / "bin" / words[0]), *words[1:]]
        plain = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=600, check=False, cwd=self.folder, env=plain
        )
        printed = done.stdout + done.stderr
        if done.returncode != expect:
            raise Unexpected(f"ended with {done.returncode}: {printed.strip()[-2000:]}")
        return printed


def _error_in(said: str) -> str:
    """Return the line of pip's complaint that says most: the error of a build, if there is one."""
    lines = [line.strip() for line in said.splitlines() if re.search(r"\b\w*Error: |^ERROR: ", line)]
    return lines[0] if lines else said.strip()[-200:]


Step = tuple[str, Callable[[Place, Environment], str]]


@dataclass
class Consumer:
    """A client: its pinned packages, and its steps. A step returns what was seen, or raises Unexpected."""

    name: str
    packages: tuple[str, ...]
    steps: list[Step] = field(default_factory=list)

    def step(self, text: str) -> Callable[[Callable[[Place, Environment], str]], None]:
        """Add a step."""
        return lambda do: self.steps.append((text, do))

    def install(self, folder: Path) -> Environment:
        """Install the client into ``folder``, and print the versions.

        Raises:
            NotHere: it cannot be installed.
        """
        if not self.packages:
            folder.mkdir()
            return Environment(folder)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        python = str(folder / "bin" / "python")
        command = [python, "-m", "pip", "install", "--quiet", *self.packages]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            (folder / "install.log").write_text(done.stdout + done.stderr)
            raise NotHere(f"not run: {' '.join(self.packages)} cannot be installed: {_error_in(done.stderr)}")
        listed = subprocess.run([python, "-m", "pip", "freeze"], capture_output=True, text=True, check=True)
        print(f"{self.name}: {', '.join(listed.stdout.split())}", flush=True)
        return Environment(folder)


def json_in(printed: str) -> Any:
    """Return the JSON that a command printed at the end, on one line or more."""
    lines = printed.strip().splitlines()
    for first in reversed(range(len(lines))):
        try:
            return msgspec.json.decode("\n".join(lines[first:]))
        except msgspec.DecodeError:
            continue
    raise Unexpected(f"no JSON: {printed[-2000:]}")


def expect(condition: object, seen: object) -> None:
    """Raise Unexpected with what was seen, unless ``condition`` holds."""
    if not condition:
        raise Unexpected(repr(seen))


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


@contextlib.contextmanager
def loopback(folder: Path) -> Iterator[Place]:
    """Run `qnode loopback` over a small simulated link for the time of the block."""
    data = folder / "loopback"
    configuration = write_small_link(folder / "small.toml")
    command = [sys.executable, "-m", "qnode", "loopback", "--config", str(configuration)]
    with (folder / "loopback.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--data-dir", str(data), "--speed", "4"], stdout=log, stderr=log
        )
    try:
        eventually((data / "endpoints.json").exists, "the loopback serves", within_s=START_S)
        place = Place(folder, msgspec.json.decode((data / "endpoints.json").read_bytes(), type=Endpoints))
        place.wait_for_keys(KEYS_AT_START)
        yield place
    finally:
        process.send_signal(signal.SIGINT)
        process.wait()
