"""An IDQ Time Controller and the maker's DataLinkTarget service, over ZeroMQ. Needs the extra `zmq`.

Commands are those of the manual and of the maker's examples. Every command is answered; what the device
answers to a setting, and how it writes a figure, is second-hand.
"""

import json
import re
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

import numpy as np
import trio
import zmq

from qnode.emulate.clicks import Clicks, dark_counts
from qnode.tags.types import X_CHANNEL, TagBlock

POLL_S: Final = 0.002
FORMS: Final = {"EDGE": "RISING", "COUP": "DC", "ENAB": "OFF", "THRE": "1V", "SEND": "OFF"}


class IdqEmulator:
    """A Time Controller with detectors at two inputs, and the service on its host.

    ``errors``: acquisition errors by input. ``silent``: the device answers nothing. ``service_error``: the
    description with which the service refuses. ``skip``: messages that vanish, by input. ``stuck``: commands
    with this text change nothing.
    """

    def __init__(self, clicks: Clicks | None = None, *, z_input: int = 1, x_input: int = 2) -> None:
        self.identity = "IDQ,ID1000,100042,1.5.0"
        self.silent = False
        self.errors: dict[int, int] = defaultdict(int)
        self.skip: dict[int, int] = defaultdict(int)
        self.service_error = ""
        self.stuck = ""
        self.playing = False
        self.commands: list[str] = []
        self.streams: dict[str, tuple[int, zmq.Socket[bytes]]] = {}
        self.address = self.service = ""
        self._clicks = clicks or dark_counts(500.0)
        self._inputs = {X_CHANNEL: x_input}
        self._z_input = z_input
        self._set: dict[str, str] = {}
        self._context: zmq.Context[Any]
        self._began_ps: int | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator["IdqEmulator"]:
        """Answer at ``address`` (the device) and ``service``, both `zmq://127.0.0.1:PORT`."""
        self._context = zmq.Context()
        sockets = [self._context.socket(zmq.REP) for _ in range(2)]
        ports = [socket.bind_to_random_port("tcp://127.0.0.1") for socket in sockets]
        self.address, self.service = (f"zmq://127.0.0.1:{port}" for port in ports)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._answer, sockets[0], self._device)
                nursery.start_soon(self._answer, sockets[1], self._link)
                nursery.start_soon(self._detect)
                yield self
                nursery.cancel_scope.cancel()
        finally:
            for name in list(self.streams):
                self._stop(name)
            for socket in sockets:
                socket.close(linger=0)
            self._context.destroy(linger=0)

    async def _answer(self, socket: "zmq.Socket[bytes]", answer: Any) -> None:
        while True:
            try:
                command = socket.recv(zmq.NOBLOCK).decode()
            except zmq.Again:
                await trio.sleep(POLL_S)
                continue
            while self.silent and answer == self._device:  # noqa: ASYNC110
                await trio.sleep(POLL_S)
            socket.send((await answer(command)).encode())

    def send_next(self, number: int, message: bytes) -> None:
        """Send ``message`` as the tags of an input, beside those of its detector."""
        next(socket for one, socket in self.streams.values() if one == number).send(message, zmq.NOBLOCK)

    # The device

    async def _device(self, line: str) -> str:
        self.commands.append(line)
        if line == "*IDN?":
            return self.identity
        answers, path = [], ""
        for part in line.split(";"):
            command, _, value = part.strip().partition(" ")
            full = command.lstrip(":") if command.startswith(":") or not path else f"{path}:{command}"
            path = full.rpartition(":")[0]
            answers.append(self._one(_short(full), value.strip()))
        return answers[-1]

    def _one(self, command: str, value: str) -> str:
        match = re.fullmatch(r"RAW(\d):ERRO(\?|:CLEA)", command)
        if match:
            if match[2] == "?":
                return str(self.errors[int(match[1])])
            self.errors[int(match[1])] = 0
        elif command == "REC:STAG?":
            return "PLAYING" if self.playing else "IDLE"
        elif command in ("REC:PLAY", "REC:STOP"):
            self.playing, self._began_ps = command == "REC:PLAY", None
        elif command.endswith("?"):
            return self._set.get(command[:-1], FORMS.get(command[:-1].rpartition(":")[2], "NONE"))
        elif command.split(":")[0].rstrip("12345678") not in ("INPU", "DELA", "TSCO", "RAW", "REC"):
            return f"{command}: SCPI_ERR_INVALID_CMD"
        elif not (self.stuck and self.stuck in command):
            self._set[command] = f"{value}TB" if command in ("REC:PWID", "REC:PPER") else value.upper()
        return ""

    # The service

    async def _link(self, line: str) -> str:
        word, *rest = line.split()
        options = dict(zip(rest[::2], rest[1::2], strict=False))
        if self.service_error and word == "start-stream":
            return json.dumps({"error": {"description": self.service_error}})
        if word == "list":
            return json.dumps(list(self.streams))
        if word == "start-stream":
            name = options.get("--id", f"{options['--address']}:5556")
            socket = self._context.socket(zmq.PAIR)
            while True:
                try:
                    socket.bind(f"tcp://127.0.0.1:{options['--stream-port']}")
                    break
                except zmq.ZMQError:  # the stream before is still being closed
                    await trio.sleep(POLL_S)
            self.streams[name] = (int(options["--channel"]), socket)
            return json.dumps({"id": name})
        status = {"acquisitions_count": 1, "errors": [], "inactivity": 0.1, "timestamps_count": 0}
        if options.get("--id") not in self.streams:
            return json.dumps({"error": {"description": f"no acquisition {options.get('--id')}"}})
        if word == "stop":
            self._stop(options["--id"])
            return json.dumps({"status": status})
        return json.dumps(status)

    def _stop(self, name: str) -> None:
        self.streams.pop(name)[1].close(linger=0)

    # The measurement

    async def _detect(self) -> None:
        """Send one message for each input and part of the measurement."""
        waiting: list[TagBlock] = []
        number = 0
        async for block in self._clicks():
            if not self.playing:
                waiting.clear()
                continue
            if self._began_ps is None:
                self._began_ps, number = block.until_ps, 0
                waiting.clear()
                continue
            waiting.append(block)
            width, period = (int(self._set[f"REC:{name}"].removesuffix("TB")) for name in ("PWID", "PPER"))
            while self._began_ps is not None and block.until_ps >= self._began_ps + (number + 1) * period:
                end = self._began_ps + (number + 1) * period
                self._send(waiting, end - period, width)
                waiting = [one for one in waiting if one.until_ps > end - period]
                number += 1

    def _send(self, waiting: list[TagBlock], first_ps: int, width_ps: int) -> None:
        times_ps = np.concatenate([block.times_ps for block in waiting]) - first_ps
        channels = np.concatenate([block.channels for block in waiting])
        for number, socket in self.streams.values():
            if self._set.get(f"RAW{number}:SEND") != "ON":
                continue
            if self.skip[number]:
                self.skip[number] -= 1
                continue
            ours = np.isin(
                channels, [one for one in (0, 1) if self._inputs.get(one, self._z_input) == number]
            )
            chosen = times_ps[ours & (times_ps >= 0) & (times_ps < width_ps)]
            with suppress(zmq.Again):  # nobody takes it: he has just left
                socket.send(np.sort(chosen).astype("<u8").tobytes(), zmq.NOBLOCK)


def _short(command: str) -> str:
    """Return a command with the first four letters of each word, in capitals."""
    nodes = []
    for node in command.upper().split(":"):
        match = re.fullmatch(r"([A-Z]+)(\d*)(\??)", node)
        nodes.append(f"{match[1][:4]}{match[2]}{match[3]}" if match else node)
    return ":".join(nodes)
