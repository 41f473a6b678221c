"""InfluxDB for tests: a server that answers as it was seen to answer, and the real one if installed."""

import contextlib
import http.server
import shutil
import subprocess
import threading
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from qnode.testbed.sensors.influxd import influxd_command

PATIENT_S = 60.0
needs_influxd = pytest.mark.skipif(
    shutil.which("influxd") is None, reason="needs Debian's package influxdb (1.x)"
)


class AsSeen(http.server.BaseHTTPRequestHandler):
    """Answers as InfluxDB 1.6 was seen to answer; the line of number 3 is refused, the others stay."""

    protocol_version = "HTTP/1.1"
    server: "StandIn"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing."""

    def do_POST(self) -> None:
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        with self.server.guard:
            self.server.authorizations.add(self.headers.get("Authorization"))
            code, answer = self.server.answer(url.path, query, body)
        self.send_response(code)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)


class StandIn(http.server.ThreadingHTTPServer):
    """A database of the test; ``faults`` are the statuses of the next writes."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), AsSeen)
        self.guard = threading.Lock()
        self.faults: list[int] = []
        self.exists = False
        self.points: dict[str, str] = {}
        self.writes = 0
        self.queries: list[dict[str, str]] = []
        self.authorizations: set[str | None] = set()

    def answer(self, path: str, query: dict[str, str], body: str) -> tuple[int, bytes]:
        if path == "/query":
            self.exists = True
            return 200, b'{"results":[{"statement_id":0}]}'
        self.queries.append(query)
        self.writes += 1
        if self.faults:
            return self.faults.pop(0), b'{"error":"timeout"}'
        if not self.exists:
            return 404, b'{"error":"database not found: \\"plant\\""}'
        lines = body.split("\n")
        for line in lines:
            series, fields, stamp = line.rsplit(" ", 2)
            if "number=3.0," not in fields:
                self.points[f"{series} {stamp}"] = fields
        if any("number=3.0," in line for line in lines):
            return 400, b'{"error":"partial write: field type conflict dropped=1"}'
        return 204, b""


@contextmanager
def stand_in() -> Iterator[tuple[str, StandIn]]:
    server = StandIn()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def running(command: list[str]) -> Iterator[None]:
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.kill()
        process.wait()


@contextmanager
def influxd(folder: Path, port: int) -> Iterator[None]:
    with running(influxd_command(folder, f"127.0.0.1:{port}")):
        deadline_s = time.monotonic() + PATIENT_S
        while True:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"http://127.0.0.1:{port}/ping", trust_env=False).status_code == 204:
                    break
            assert time.monotonic() < deadline_s
            time.sleep(0.1)
        yield
