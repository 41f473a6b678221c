"""sd_notify over real datagram sockets."""

import os
import socket
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import trio
import trio.testing

from qnode.operate.notify import Notifier, feed_watchdog, from_environment


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """The service manager's end, and the $NOTIFY_SOCKET that leads there."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.setblocking(False)
        if request.param == "path":
            receiver.bind(str(tmp_path / "notify"))
            yield receiver, str(tmp_path / "notify")
        else:
            name = f"qnode-test-{os.getpid()}"
            receiver.bind("\0" + name)
            yield receiver, "@" + name


def test_each_notification_is_one_datagram(manager: tuple[socket.socket, str]) -> None:
    receiver, address = manager
    notifier = from_environment({"NOTIFY_SOCKET": address})
    notifier.ready("running")
    notifier.status("running, QBER 1.62 %,\n12 481 keys\nWATCHDOG=1")
    notifier.watchdog()
    before_us = time.monotonic_ns() // 1000
    notifier.reloading()
    notifier.stopping()
    received = [receiver.recv(4096).decode() for _ in range(5)]
    assert received[:3] == [
        "READY=1\nSTATUS=running",
        "STATUS=running, QBER 1.62 %, 12 481 keys WATCHDOG=1",
        "WATCHDOG=1",
    ]
    reloading, _, stamp = received[3].partition("\nMONOTONIC_USEC=")
    assert reloading == "RELOADING=1"
    assert before_us <= int(stamp) <= time.monotonic_ns() // 1000
    assert received[4] == "STOPPING=1"


def test_without_systemd_nothing_happens() -> None:
    for environment in ({}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "vsock:2:1"}):
        notifier = from_environment(environment)
        assert notifier == Notifier()
        notifier.ready("running")


def test_an_absent_manager_does_not_stop_the_node(tmp_path: Path) -> None:
    Notifier(address=str(tmp_path / "gone")).ready()


def test_a_manager_that_reads_nothing_does_not_block_the_node(manager: tuple[socket.socket, str]) -> None:
    notifier = from_environment({"NOTIFY_SOCKET": manager[1]})
    for _ in range(2000):
        notifier.watchdog()


@pytest.mark.parametrize(
    ("environment", "expected_s"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({}, None),
    ],
)
def test_the_watchdogs_period_is_taken_when_meant_for_us(
    environment: dict[str, str], expected_s: float | None
) -> None:
    assert from_environment({"NOTIFY_SOCKET": "/run/notify", **environment}).watchdog_s == expected_s


async def test_the_watchdog_is_fed_only_while_the_node_is_alive(
    manager: tuple[socket.socket, str], autojump_clock: trio.testing.MockClock
) -> None:
    receiver, address = manager
    notifier = from_environment({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "30000000"})
    with trio.move_on_after(61):
        await feed_watchdog(notifier, is_alive=lambda: trio.current_time() < 40)
    fed = 0
    while True:
        try:
            assert receiver.recv(100) == b"WATCHDOG=1"
        except BlockingIOError:
            break
        fed += 1
    assert fed == 3  # at 0, 15 and 30 seconds; not at 45 and 60


async def test_a_node_that_moves_again_is_fed_before_systemd_ends_it(
    manager: tuple[socket.socket, str], autojump_clock: trio.testing.MockClock
) -> None:
    _, address = manager
    notifier = from_environment({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "30000000"})
    fed_s = [0.0]

    def is_alive() -> bool:
        now_s = trio.current_time()
        alive = not 29.0 < now_s < 32.0  # it hangs for a moment, and just then it is looked at
        if alive:
            fed_s.append(now_s)
        return alive

    with trio.move_on_after(100):
        await feed_watchdog(notifier, is_alive)
    assert max(later - earlier for earlier, later in pairwise(fed_s)) < 20.0
