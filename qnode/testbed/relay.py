"""The operator's line: passes packets between two TUN devices, with loss, delay, jitter and outages.

`Relay` is the handling of packets, without a clock of its own. As a program it is one process in the line's
namespace: each line of its standard input is a `LineQuality` in JSON, which it answers with its `LineCounts`;
it ends when its standard input does.
"""

import fcntl
import os
import random
import select
import struct
import sys
import time
from collections import deque
from collections.abc import Iterator
from typing import Final

import msgspec
from msgspec import Struct

# Packets of one wake-up, so that neither direction waits long for the other.
BATCH: Final = 256
# Packets under way in one direction; what comes on top is lost, as in a router with a full queue.
MOST_UNDER_WAY: Final = 20_000
_LARGEST_PACKET_BYTES: Final = 65_536
_TUNSETIFF: Final = 0x400454CA
_IFF_TUN: Final = 0x0001
_IFF_NO_PI: Final = 0x1000


class LineQuality(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the line does to each packet, in each direction alike.

    ``loss``: the share of packets that it loses, from 0 to 1. Each packet takes ``delay_s`` and up to
    ``jitter_s`` more; none overtakes another. ``cut``: nothing passes.
    """

    loss: float = 0.0
    delay_s: float = 0.0
    jitter_s: float = 0.0
    cut: bool = False

    def __post_init__(self) -> None:
        if not 0.0 <= self.loss <= 1.0:
            raise ValueError(f"loss: expected a share from 0 to 1, got {self.loss}")
        for name in ("delay_s", "jitter_s"):
            if not 0.0 <= getattr(self, name) <= 10.0:
                raise ValueError(f"{name}: expected 0 to 10 seconds, got {getattr(self, name)}")


class LineCounts(Struct, kw_only=True):
    """Packets of both directions: each is passed, lost for one of three reasons, or under way."""

    received: int = 0
    passed: int = 0
    passed_bytes: int = 0
    lost_by_chance: int = 0
    lost_in_cut: int = 0
    lost_by_queue: int = 0
    under_way: int = 0


class _Direction:
    """Packets from one end to the other: (due, packet), in the order of arrival."""

    def __init__(self, source: int, target: int) -> None:
        self.source, self.target = source, target
        self.waiting: deque[tuple[float, bytes]] = deque()
        self.last_due_s = 0.0


class Relay:
    """Two ends that do not block and read and write whole packets: TUN devices, or sockets of datagrams."""

    def __init__(self, ends: tuple[int, int], quality: LineQuality, seed: int | None = None) -> None:
        self.ends = ends
        self.quality = quality
        self.counts = LineCounts()
        # Chance of a line, not of a key.
        self._random = random.Random(seed).random  # noqa: S311
        self._directions = (_Direction(*ends), _Direction(ends[1], ends[0]))

    def pass_packets(self, now_s: float) -> float | None:
        """Take what has arrived, pass on what is due; return when the next packet is due, or None."""
        for direction in self._directions:
            self._take(direction, now_s)
        for direction in self._directions:
            self._release(direction, now_s)
        self.counts.under_way = sum(len(one.waiting) for one in self._directions)
        return min((one.waiting[0][0] for one in self._directions if one.waiting), default=None)

    def _take(self, direction: _Direction, now_s: float) -> None:
        quality, counts = self.quality, self.counts
        at_once = not (quality.delay_s or quality.jitter_s or direction.waiting)
        for packet in _arrived(direction.source):
            counts.received += 1
            if quality.cut:
                counts.lost_in_cut += 1
            elif quality.loss and self._random() < quality.loss:
                counts.lost_by_chance += 1
            elif at_once:
                self._write(direction.target, packet)
            elif len(direction.waiting) >= MOST_UNDER_WAY:
                counts.lost_by_queue += 1
            else:
                due_s = now_s + quality.delay_s + (quality.jitter_s and quality.jitter_s * self._random())
                direction.last_due_s = max(direction.last_due_s, due_s)
                direction.waiting.append((direction.last_due_s, packet))

    def _release(self, direction: _Direction, now_s: float) -> None:
        waiting = direction.waiting
        while waiting and waiting[0][0] <= now_s:
            packet = waiting.popleft()[1]
            if self.quality.cut:  # what is in a fibre when it is cut does not arrive
                self.counts.lost_in_cut += 1
            else:
                self._write(direction.target, packet)

    def _write(self, target: int, packet: bytes) -> None:
        try:
            os.write(target, packet)
        except OSError:  # the far end's queue is full, or its device is down
            self.counts.lost_by_queue += 1
        else:
            self.counts.passed += 1
            self.counts.passed_bytes += len(packet)


def _arrived(source: int) -> Iterator[bytes]:
    for _ in range(BATCH):
        try:
            yield os.read(source, _LARGEST_PACKET_BYTES)
        except BlockingIOError:
            return
        except OSError:  # the device is down: it has nothing
            return


def open_tun(name: str) -> int:
    """Make the TUN device ``name`` in this process's network namespace; it goes away when it is closed.

    Raises:
        OSError: without root, or without /dev/net/tun.
    """
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI))
    except OSError:
        os.close(device)
        raise
    return device


def serve(relay: Relay, orders: int, answers: int) -> None:
    """Pass packets in real time until ``orders`` ends; each line of it is a `LineQuality`."""
    rest = b""
    due_s: float | None = None
    while True:
        patience_s = None if due_s is None else max(0.0, due_s - time.monotonic())
        # select, because its timeout has microseconds; epoll would round it up to milliseconds.
        ready, _, _ = select.select([*relay.ends, orders], [], [], patience_s)
        if orders in ready:
            piece = os.read(orders, 65_536)
            if not piece:
                return
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                relay.quality = msgspec.json.decode(line, type=LineQuality)
                os.write(answers, msgspec.json.encode(relay.counts) + b"\n")
        due_s = relay.pass_packets(time.monotonic())


def main() -> None:
    """Run the line between the two TUN devices that the arguments name."""
    first, second = sys.argv[1:]
    relay = Relay((open_tun(first), open_tun(second)), LineQuality())
    serve(relay, sys.stdin.fileno(), sys.stdout.fileno())


if __name__ == "__main__":
    main()
