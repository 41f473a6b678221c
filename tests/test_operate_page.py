"""The operator's page: answers, policy, who may look, the live stream, hostile text."""

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, MutableMapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import trio
from http_support import HOST, Pki, running
from msgspec.structs import replace
from operate_support import NOW, degraded_status, well_status

from qnode.config import PageSection, TlsFiles
from qnode.errors import ConfigError
from qnode.http import Limits, Server, serve
from qnode.node.listening import serve_at_socket
from qnode.node.page import check_page
from qnode.operate.page.app import Page, page_file
from qnode.operate.page.live import Live
from qnode.operate.page.view import view_of
from qnode.operate.status.alarms import TO_DO, AlarmName
from qnode.operate.status.interfaces import SaeStatus
from qnode.operate.status.model import Alarm, LinkStatus, NodeStatus, State, status_of_links
from qnode.operate.status.screen import status_lines
from qnode.operate.trend.figures import FIGURES
from qnode.operate.trend.ring import Trend

HOSTILE = '</script><img src=x onerror="document.title=1">\x1b[2J'


def trend() -> Trend:
    made = Trend()
    for step in range(50):
        made.add(NOW - 500 + 10 * step, tuple(float(step) for _ in FIGURES))
    return made


def page(status: NodeStatus | None = None, **options: Any) -> Page:
    present = status or degraded_status()
    live = Live(lambda: present, lambda _link: [])
    return Page(live, {"turin": trend()}, lambda: NOW, **options)


@asynccontextmanager
async def client_of(app: Page) -> AsyncIterator[httpx.AsyncClient]:
    async with running(app) as server, httpx.AsyncClient(base_url=f"http://{HOST}:{server.port}") as client:
        yield client


async def test_the_page_is_one_file_whose_policy_allows_its_own_script_and_style_alone() -> None:
    async with client_of(page(loopback_only=True)) as client:
        answer = await client.get("/")
    assert answer.status_code == 200
    policy = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["frame-ancestors"] == "'none'"
    for kind in ("script", "style"):
        (part,) = re.findall(f"<{kind}>(.*?)</{kind}>", answer.text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(part.encode()).digest()).decode()
        assert policy[f"{kind}-src"] == f"'sha256-{digest}'"
    assert "unsafe" not in answer.headers["content-security-policy"]
    assert not re.findall(r"""(?:src|href)=["']?(?:https?:)?//""", answer.text)
    assert not re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", answer.text)
    assert not re.findall(r"\sstyle=|\son[a-z]+=", answer.text)
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("HEAD", "/", 200),
        ("HEAD", "/live", 200),
        ("POST", "/", 405),
        ("DELETE", "/status", 405),
        ("GET", "/trend/year", 404),
        ("GET", "/../page.html", 404),
    ],
)
async def test_the_page_answers_get_alone_and_knows_few_paths(method: str, path: str, status: int) -> None:
    async with client_of(page()) as client:
        answer = await client.request(method, path)
    assert answer.status_code == status
    assert "default-src 'none'" in answer.headers["content-security-policy"]


@pytest.mark.parametrize(
    ("host", "status"),
    [("127.0.0.1:9410", 200), ("localhost", 200), ("[::1]:9410", 200), ("evil.example:9410", 421), ("", 421)],
)
async def test_without_certificates_only_a_loopback_name_is_answered(host: str, status: int) -> None:
    async with client_of(page(loopback_only=True)) as client:
        assert (await client.get("/status", headers={"host": host})).status_code == status


async def test_the_figures_over_time_are_columns_with_gaps() -> None:
    async with client_of(page()) as client:
        answer = (await client.get("/trend/hour")).json()
    columns = answer["links"]["turin"]
    assert answer["step_s"] == 10
    assert set(columns) == set(FIGURES)
    assert len(columns["qber_z"]) == 360
    assert columns["qber_z"][-10:-2] == [41.0, 42.0, 43.0, 44.0, 45.0, 46.0, 47.0, 48.0]
    assert columns["qber_z"][0] is None


async def test_a_viewer_gets_views_as_server_sent_events(autojump_clock: trio.abc.Clock) -> None:
    present = degraded_status()
    live = Live(lambda: present, lambda _link: [])
    sent: list[dict[str, Any]] = []

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(dict(message))

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    scope = {"type": "http", "method": "GET", "path": "/live", "headers": [], "extensions": {}}
    await Page(live, {}, lambda: NOW)(scope, receive, send)
    assert (b"content-type", b"text/event-stream") in sent[0]["headers"]
    assert not sent[-1].get("more_body", False)
    bodies = [message["body"] for message in sent[1:-1]]
    assert 280 <= len(bodies) <= 302  # every two seconds, for ten minutes
    for body in bodies:
        assert body.endswith(b"\n\n")
        data = [line for line in body.decode().splitlines() if line.startswith("data: ")]
        assert len(data) == 1
        assert json.loads(data[0].removeprefix("data: "))["title"] == present.site.kme_id


async def test_a_hundred_viewers_share_one_encoding_and_do_not_come_at_once(
    autojump_clock: trio.abc.Clock,
) -> None:
    encoded_at: list[float] = []
    served_at: list[float] = []

    def provide() -> NodeStatus:
        encoded_at.append(trio.current_time())
        return well_status()

    async def send(message: MutableMapping[str, Any]) -> None:
        if message.get("body"):
            served_at.append(trio.current_time())

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    app = Page(Live(provide, lambda _link: []), {}, lambda: NOW)
    scope = {"type": "http", "method": "GET", "path": "/live", "headers": [], "extensions": {}}
    with trio.move_on_after(60):
        async with trio.open_nursery() as viewers:
            for _ in range(100):
                viewers.start_soon(app, scope, receive, send)
    assert len(encoded_at) <= 31
    assert len(served_at) >= 100 * 29
    late = [at for at in served_at if at > encoded_at[0]]
    assert max(late.count(at) for at in set(late)) <= 2


async def test_a_viewer_that_does_not_read_is_dropped_and_the_others_go_on(tmp_path: Path) -> None:
    big = replace(well_status(), alarms=[Alarm(name="x.y", since=NOW, text="z" * 400_000)])
    live = Live(lambda: big, lambda _link: [])
    app = Page(live, {}, lambda: NOW)
    path = tmp_path / "page.sock"
    server = Server(app, None, Limits(send_s=0.3))
    async with trio.open_nursery() as nursery:
        await nursery.start(serve_at_socket, server, path, "page.listen")
        slow = await trio.open_unix_socket(path)
        await slow.send_all(b"GET /live HTTP/1.1\r\nhost: page\r\n\r\n")
        with trio.fail_after(60):
            while server.counters.requests == 0 or server.open_connections:  # noqa: ASYNC110
                await trio.sleep(0.05)
            async with await trio.open_unix_socket(path) as quick:
                await quick.send_all(b"GET /status HTTP/1.1\r\nhost: page\r\nconnection: close\r\n\r\n")
                answer = b"".join([piece async for piece in quick])
        assert answer.startswith(b"HTTP/1.1 200")
        await slow.aclose()
        nursery.cancel_scope.cancel()
    assert not path.exists()


async def test_a_certificate_of_the_pages_authority_may_look_and_an_encryptors_may_not(
    tmp_path: Path,
) -> None:
    pki = Pki(tmp_path)
    viewer, sae = pki.ca.issue_cert("viewer-1"), pki.ca.issue_cert("sae-a")
    app = page(may_look=lambda names: bool(names) and "sae-a" not in names)
    async with running(app, pki.settings()) as server:
        async with pki.http_client(viewer, server.port) as client:
            assert (await client.get("/status")).status_code == 200
        async with pki.http_client(sae, server.port) as client:
            assert (await client.get("/status")).status_code == 403
        async with pki.http_client(None, server.port) as client:
            with pytest.raises(httpx.HTTPError):
                await client.get("/status")


async def test_the_stream_of_a_viewer_ends_with_the_reload_that_withdraws_its_certificate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qnode.operate.page.app.PERIOD_S", 0.05)
    pki = Pki(tmp_path)
    pki.revoke()
    leaves = {name: pki.ca.issue_cert(name) for name in ("anna", "berta", "carla")}
    may_look = {"anna", "berta", "carla"}
    views = dict.fromkeys(leaves, 0)
    ended = {name: trio.Event() for name in leaves}

    async def watch(name: str, port: int) -> None:
        async with pki.http_client(leaves[name], port) as client, client.stream("GET", "/live") as live:
            async for line in live.aiter_lines():
                views[name] += line.startswith("data: ")
        ended[name].set()

    app = page(may_look=lambda names: not may_look.isdisjoint(names))
    async with running(app, pki.settings(crl=True)) as server, trio.open_nursery() as nursery:

        async def see_more(*names: str) -> None:
            before = dict(views)
            while any(views[name] < before[name] + 3 for name in names):  # noqa: ASYNC110
                await trio.sleep(0.05)

        for name in leaves:
            nursery.start_soon(watch, name, server.port)
        await see_more(*leaves)
        pki.revoke(leaves["anna"])
        server.reload()
        await ended["anna"].wait()
        async with pki.http_client(leaves["anna"], server.port) as client:
            with pytest.raises(httpx.HTTPError):
                await client.get("/status")
        may_look.discard("berta")
        await ended["berta"].wait()
        async with pki.http_client(leaves["berta"], server.port) as client:
            assert (await client.get("/status")).status_code == 403
        await see_more("carla")
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("listen", "tls", "told"),
    [
        ("127.0.0.1:9410", False, None),
        ("[::1]:9410", False, None),
        ("localhost:9410", False, None),
        ("unix:/run/qnode/page.sock", False, None),
        ("192.0.2.1:9410", True, None),
        ("192.0.2.1:9410", False, "without certificates only a loopback address"),
        ("0.0.0.0:9410", False, "without certificates only a loopback address"),
        ("unix:page.sock", False, "an absolute path"),
        ("unix:/run/qnode/page.sock", True, "page.tls: a local socket has none"),
        ("9410", False, "page.listen"),
    ],
)
def test_nobody_looks_without_a_certificate_from_elsewhere(listen: str, tls: bool, told: str | None) -> None:
    files = TlsFiles(ca=Path("ca"), certificate=Path("cert"), key=Path("key")) if tls else None
    section = PageSection(listen=listen, tls=files)
    if told is None:
        check_page(section)
    else:
        with pytest.raises(ConfigError, match=told):
            check_page(section)


def test_names_of_operators_need_certificates() -> None:
    section = PageSection(listen="127.0.0.1:9410", operators=("anna",))
    with pytest.raises(ConfigError, match=r"page.operators: without \[page.tls\]"):
        check_page(section)


def test_every_alarm_says_what_to_do() -> None:
    assert set(TO_DO) == set(AlarmName)


def test_the_view_has_the_words_of_qnodectl_status() -> None:
    status = degraded_status()
    view = view_of(status, lambda _link: [])
    assert view.screen == [str(line) for line in status_lines(status)]
    told = "\n".join(view.screen)
    (link,) = view.links
    for row in link.devices:
        assert row.text in told
        assert row.verdict in told
    assert [one.name for one in view.alarms] == ["device.failed", "pads.low"]
    assert view.alarms[0].to_do == TO_DO[AlarmName.DEVICE_FAILED]
    assert not view.well


@pytest.mark.parametrize(("used_bits_per_s", "told"), [(None, "?"), (0.0, "none used at present")])
def test_a_use_of_keys_that_is_not_known_yet_is_not_called_none(
    used_bits_per_s: float | None, told: str
) -> None:
    status = well_status()
    keys = replace(status.keys, used_bits_per_s=used_bits_per_s, lasts_s=None)
    (link,) = view_of(replace(status, keys=keys), lambda _link: []).links
    assert ("keys", told) in link.facts


def test_each_of_several_links_has_its_part() -> None:
    one = well_status()
    names = ("kind", "of")
    links = [
        msgspec.convert(
            {**msgspec.to_builtins(one), "name": name, "role": "alice"},
            type=LinkStatus,
        )
        for name in names
    ]
    site = status_of_links(
        links, kme_id="KME-ALICE", alarms=[], at=NOW, version="1", simulated=True, state=State("running", NOW)
    )
    asked: list[str] = []

    def blocks(link: str) -> list[Any]:
        asked.append(link)
        return []

    view = view_of(site, blocks)
    assert [link.name for link in view.links] == asked == list(names)
    assert view.simulated


def _chromium() -> str | None:
    return shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.mark.skipif(_chromium() is None, reason="needs chromium")
async def test_hostile_text_stays_text_in_a_real_browser(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The browser's virtual time stands still while a request is open.
    monkeypatch.setattr("qnode.operate.page.app.STREAM_S", 0.0)
    status = replace(
        degraded_status(),
        alarms=[Alarm(name="x.y", since=NOW, text=HOSTILE)],
        etsi014=replace(degraded_status().etsi014, saes=[SaeStatus(sae_id=HOSTILE, peers=[HOSTILE])]),
    )
    live = Live(lambda: status, lambda _link: [])
    app = Page(live, {"turin": trend()}, lambda: NOW, loopback_only=True)
    async with trio.open_nursery() as nursery:
        server = await nursery.start(
            lambda task_status: serve(app, host=HOST, port=0, task_status=task_status)
        )
        chromium = [
            str(_chromium()), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
            "--no-first-run", "--disable-background-networking", "--disable-component-update",
            "--disable-sync", f"--user-data-dir={tmp_path}", "--dump-dom",
        ]  # fmt: skip
        command = [*chromium, "--virtual-time-budget=4000", f"http://{HOST}:{server.port}/"]
        with trio.fail_after(200):
            done = await trio.run_process(
                command,
                capture_stdout=True,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "HOME": str(tmp_path)},
            )
        nursery.cancel_scope.cancel()
    dom = done.stdout.decode()
    assert "device.failed" in dom
    assert "&lt;/script&gt;&lt;img src=x" in dom
    assert "<img" not in dom
    assert "<title>✕ KME-ALICE</title>" in dom
    assert 'aria-label="QBER over the last hour' in dom


def test_the_page_is_in_the_package() -> None:
    body, policy = page_file()
    assert body.startswith(b"<!doctype html>")
    assert policy
    assert sys.getsizeof(body) < 64 * 1024
