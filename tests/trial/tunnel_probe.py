"""Packets with sequence numbers through a tunnel, at a steady rate, and the list of those that were lost.

    python tests/trial/tunnel_probe.py echo ADDRESS PORT
    python tests/trial/tunnel_probe.py send FROM ADDRESS PORT PACKETS-A-SECOND FILE

`send` runs until SIGTERM, and then writes FILE: {"sent", "lost": [Unix times], "refused": [...], "rtt_ms"}.
A packet that this machine itself refused to send (no route, no key) is both lost and refused.
"""

import json
import selectors
import signal
import socket
import struct
import sys
import time
from pathlib import Path

FORM = struct.Struct("!Q")
LATEST_S = 2.0  # a reply that comes later counts as lost


def echo(address: str, port: int) -> None:
    """Send every packet back."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as end:
        end.bind((address, port))
        while True:
            packet, sender = end.recvfrom(2048)
            try:
                end.sendto(packet, sender)
            except OSError:
                continue


def send(source: str, address: str, port: int, rate: float, file: Path) -> None:
    """Send until SIGTERM."""
    ended: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: ended.append(number))
    times: list[float] = []
    trips: list[float | None] = []
    refused: list[float] = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as end, selectors.DefaultSelector() as selector:
        end.bind((source, 0))
        end.setblocking(False)
        selector.register(end, selectors.EVENT_READ)
        due = time.monotonic()
        stop: float | None = None
        while stop is None or time.monotonic() < stop:
            now = time.monotonic()
            if stop is None and ended:
                stop = now + LATEST_S
            if stop is None and now >= due:
                due += 1 / rate
                times.append(time.time())
                trips.append(None)
                try:
                    end.sendto(FORM.pack(len(times) - 1).ljust(64, b"\0"), (address, port))
                except OSError:
                    refused.append(times[-1])
            wait = 0.1 if stop is not None else max(0.0, due - time.monotonic())
            for _ in selector.select(wait):
                try:
                    packet = end.recv(2048)
                except OSError:
                    continue
                (number,) = FORM.unpack_from(packet)
                trip = time.time() - times[number]
                if trips[number] is None and trip < LATEST_S:
                    trips[number] = trip
    found = sorted(trip for trip in trips if trip is not None)
    rtt = (
        {name: 1000 * found[int(share * (len(found) - 1))] for name, share in _SHARES.items()}
        if found
        else {}
    )
    lost = [at for at, trip in zip(times, trips, strict=True) if trip is None]
    file.write_text(json.dumps({"sent": len(times), "lost": lost, "refused": refused, "rtt_ms": rtt}))


_SHARES = {"p50": 0.5, "p99": 0.99, "max": 1.0}

if __name__ == "__main__":
    match sys.argv[1:]:
        case ["echo", address, port]:
            echo(address, int(port))
        case ["send", source, address, port, rate, file]:
            send(source, address, int(port), float(rate), Path(file))
        case _:
            sys.exit(__doc__)
