"""An address that is not there yet: the node goes on, says what it waits for, and listens when it can."""

import errno
import os
import socket
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest
import trio
from daemons_support import Sites, alter, encryptors, eventually, two_sites
from http_support import HOST, respond, speak

import qnode.accepting
from qnode.accepting import open_listeners
from qnode.addresses import host_and_port
from qnode.config import SiteConfig, load
from qnode.errors import ConfigError
from qnode.http import Limits, Server
from qnode.node.listening import start_serving
from qnode.node.status.link_figures import LinkFigures
from qnode.node.status.site_figures import SiteFigures

CONFIG = Path(__file__).parent.parent / "config"


def site_figures() -> SiteFigures:
    config = load(CONFIG / "alice.toml", SiteConfig)
    return SiteFigures(config.node, [LinkFigures(config)])


@pytest.fixture
def figures() -> SiteFigures:
    return site_figures()


def server() -> Server:
    async def app(_scope: object, _receive: object, send: object) -> None:
        await respond(send, 200, b"here")

    return Server(app, None, Limits())


def waiting(figures: SiteFigures) -> list[str]:
    return [alarm.text for alarm in figures.status().alarms if alarm.name == "listener.waiting"]


async def test_ports_that_are_taken_are_named_together_and_listened_on_once_they_are_free(
    figures: SiteFigures, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qnode.accepting, "LISTEN_RETRY_S", 0.02)
    with socket.socket() as first, socket.socket() as second:
        taken = []
        for holder in (first, second):
            holder.bind((HOST, 0))
            holder.listen()
            taken.append(holder.getsockname()[1])
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for where, port in zip(("etsi014.listen", "operate.metrics_listen"), taken, strict=True):
                    await start_serving(nursery, server(), f"{HOST}:{port}", where, figures)
                (text,) = waiting(figures)
                for where, port in zip(("etsi014.listen", "operate.metrics_listen"), taken, strict=True):
                    assert f"{where}: cannot listen on {HOST}:{port}: Address already in use" in text
                assert text in figures.headline()
                first.close()
                while "etsi014" in "".join(waiting(figures)):  # noqa: ASYNC110
                    await trio.sleep(0.01)
                assert b"here" in await speak(
                    taken[0], b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
                )
                assert "operate.metrics_listen" in waiting(figures)[0]
                second.close()
                while waiting(figures):  # noqa: ASYNC110
                    await trio.sleep(0.01)
                assert b"here" in await speak(
                    taken[1], b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
                )
                nursery.cancel_scope.cancel()


async def test_an_address_that_this_machine_does_not_have_yet_is_waited_for(figures: SiteFigures) -> None:
    async with trio.open_nursery() as nursery:
        await start_serving(nursery, server(), "192.0.2.1:8443", "etsi014.listen", figures)  # RFC 5737
        assert "etsi014.listen: cannot listen on 192.0.2.1:8443: Cannot assign" in waiting(figures)[0]
        nursery.cancel_scope.cancel()


async def test_a_name_that_resolves_slowly_or_not_yet_holds_up_nothing(
    figures: SiteFigures, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    async def unresolved(port: int, *, host: str) -> list[trio.SocketListener]:
        await trio.sleep(30.0)
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(trio, "open_tcp_listeners", unresolved)
    async with trio.open_nursery() as nursery:
        began = trio.current_time()
        await start_serving(nursery, server(), "kme.example:8443", "etsi014.listen", figures)
        assert trio.current_time() - began <= 1.0
        await trio.sleep(31.0)
        assert "kme.example:8443: Temporary failure in name resolution; trying again" in waiting(figures)[0]
        nursery.cancel_scope.cancel()


async def test_each_new_reason_why_an_address_cannot_be_listened_on_is_told_once_and_then_the_success(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    attempts = iter([errno.EADDRNOTAVAIL, errno.EADDRINUSE, errno.EADDRINUSE, errno.EADDRNOTAVAIL, None])

    async def late(port: int, *, host: str) -> list[trio.SocketListener]:
        await trio.lowlevel.checkpoint()
        if number := next(attempts):
            raise OSError(number, os.strerror(number))
        return []

    monkeypatch.setattr(trio, "open_tcp_listeners", late)
    told: list[str | None] = []
    assert await open_listeners("kme.example", 8443, told.append) == []
    not_here, in_use = os.strerror(errno.EADDRNOTAVAIL), os.strerror(errno.EADDRINUSE)
    assert told == [not_here, in_use, not_here, None]
    assert trio.current_time() >= 4 * qnode.accepting.LISTEN_RETRY_S


def test_what_is_no_address_is_refused_at_once() -> None:
    assert host_and_port("[::1]:8443", "x") == ("::1", 8443)
    for address in ("8443", ":8443", "host:", "host:x", "host:99999", "host..example:1", 64 * "h" + ":1"):
        with pytest.raises(ConfigError, match=r"etsi014\.listen: expected host:port"):
            host_and_port(address, "etsi014.listen")


def alarm_of(sites: Sites) -> str:
    status = sites.status("alice")
    assert sites.processes["alice"].poll() is None, sites.log("alice")[-3000:]
    return "" if status is None else "".join(a.text for a in status.alarms if a.name == "listener.waiting")


def test_a_daemon_whose_ports_are_all_taken_runs_says_so_and_serves_once_they_are_free(
    tmp_path: Path,
) -> None:
    with two_sites(tmp_path) as sites, ExitStack() as holders:
        taken = {}
        for place in ("etsi014__listen", "skip__listen", "operate__metrics_listen", "peer__address"):
            holder = holders.enter_context(socket.create_server((HOST, 0)))
            taken[place] = f"{HOST}:{holder.getsockname()[1]}"
        alter(sites.site_files["alice"], **taken)
        sites.start("alice")
        sites.wait_until_serving("alice")
        for place in ("etsi014.listen", "skip.listen", "operate.metrics_listen"):
            assert (
                f"{place}: cannot listen on {taken[place.replace('.', '__')]}: Address already"
                in alarm_of(sites)
            )

        status = sites.status("alice")
        assert status is not None
        assert status.skip is not None
        for one in (status.etsi014, status.skip):
            assert f"{one.away}; " in f"{alarm_of(sites)}; "
            assert "Address already in use" in (one.away or "")

        def waits_for_the_link() -> bool:
            status = sites.status("alice")
            return status is not None and "peer.address: cannot listen" in (
                status.peer.connection.because or ""
            )

        eventually(waits_for_the_link, "the link's port is named as taken")
        holders.close()
        eventually(lambda: not alarm_of(sites), "all is listened on")
        status = sites.status("alice")
        assert status is not None
        assert status.etsi014.away is None
        alice, _ = encryptors(sites.endpoints)
        alice._url = f"https://{taken['etsi014__listen']}"
        assert alice.get("status").status_code == 200
        for place in ("skip__listen", "operate__metrics_listen", "peer__address"):
            host, _, port = taken[place].rpartition(":")
            eventually(partial(_accepts, host, int(port)), f"{place} is listened on")


def _accepts(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=60.0).close()
    except ConnectionRefusedError:
        return False
    return True
