"""Measures the key delivery interface with many clients, and under a flood of unauthenticated connections.

    python -m qnode.bench.key_delivery

starts Alice's daemon in a temporary folder, without a peer, and prints one figure per line: memory over
thousands of connections, answers to many clients behind one address, and answers to an honest encryptor
beside client hellos without a certificate. Everything stays on this machine (127.0.0.0/8), ends within two
minutes and opens 50,000 connections at most.
"""

import argparse
import itertools
import multiprocessing
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections import deque
from contextlib import suppress
from functools import partial
from ipaddress import ip_address, ip_network
from pathlib import Path

import trio

from qnode.bench.links import TURIN
from qnode.bench.processes import resident_mib
from qnode.loopback.https import HttpsClient, NoResponse
from qnode.loopback.prepare import Prepared, SaeEndpoint, Staging, prepare

LOOPBACK = ip_network("127.0.0.0/8")
STRANGER = "127.0.0.9"
MOST_HELLOS = 40_000
HELLOS_HZ = 1700.0
CONNECTIONS = 6500
CLIENTS = 200
_AT_ONCE = 8
_OPEN_HELLOS = 64
_STARTING_S = 60


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Figures of the key delivery interface under load.")
    parser.add_argument("--connections", type=int, default=CONNECTIONS, help="for the figure of memory")
    parser.add_argument("--seconds", type=float, default=8.0, help="length of each of the other parts")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="qnode-bench-") as directory:
        prepared = prepare(Path(directory), TURIN, Staging())
        command = [sys.executable, "-m", "qnode", "run", "--config", str(prepared.site_files["alice"])]
        with Path(directory, "log").open("wb") as log, subprocess.Popen(command, stderr=log) as daemon:
            try:
                seconds = min(arguments.seconds, 20.0)
                connections = min(arguments.connections, CONNECTIONS)
                trio.run(partial(_measure, prepared, daemon.pid, connections, seconds))
            finally:
                daemon.terminate()
        print(f"lines of the log: {len(Path(directory, 'log').read_bytes().splitlines())}")


async def _measure(prepared: Prepared, pid: int, connections: int, seconds: float) -> None:
    sae = prepared.endpoints.saes_of(demo=False)[0]
    url = prepared.endpoints.sites["alice"].url
    context = ssl.create_default_context(cafile=prepared.endpoints.ca)
    context.load_cert_chain(sae.cert, sae.key)
    client = partial(HttpsClient, url, context)
    for _ in range(_STARTING_S):
        if await _asks(client(), sae):
            break
        await trio.sleep(1.0)

    await _ask_anew(client, sae, connections // 10)
    before = resident_mib(pid)
    await _ask_anew(client, sae, connections)
    print(f"memory: {before:.0f} MiB, after {connections} connections {resident_mib(pid):.0f} MiB")

    answers, errors = await _crowd(client, sae, seconds)
    print(f"{CLIENTS} clients behind one address: {answers / seconds:.0f} answers/s, {errors} errors")

    before = resident_mib(pid)
    kept = client()
    alone = await _honest(client, kept, sae, seconds)
    port = int(url.rpartition(":")[2])
    flood = multiprocessing.get_context("spawn").Process(
        target=send_hellos, args=(STRANGER, port, 2 * seconds + 2), daemon=True
    )
    flood.start()
    await trio.sleep(2.0)
    beside = await _honest(client, kept, sae, seconds)
    await trio.to_thread.run_sync(flood.join)
    print(f"answers on one connection: {alone[0]} alone, {beside[0]} beside the flood, in {seconds:g} s")
    print(f"answers, each on a new one: {alone[1]} alone, {beside[1]} beside the flood, in {seconds:g} s")
    print(f"memory: {before:.0f} MiB before the flood, {resident_mib(pid):.0f} MiB after it")


def send_hellos(source: str, port: int, seconds: float) -> None:
    """Send 1,700 client hellos a second from ``source`` to a port of this machine, if it accepts so many.

    Raises:
        ValueError: ``source`` is not an address of this machine.
    """
    if ip_address(source) not in LOOPBACK:
        raise ValueError(f"{source}: expected an address in {LOOPBACK}")
    outgoing = ssl.MemoryBIO()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    with suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="localhost").do_handshake()
    hello = outgoing.read()
    open_ones: deque[socket.socket] = deque()
    began = time.monotonic()
    sent = 0
    while sent < MOST_HELLOS and time.monotonic() - began < seconds:
        time.sleep(max(0.0, began + sent / HELLOS_HZ - time.monotonic()))
        connection = socket.socket()
        open_ones.append(connection)
        with suppress(OSError):
            connection.settimeout(1.0)
            connection.bind((source, 0))
            connection.connect(("127.0.0.1", port))
            connection.sendall(hello)
            sent += 1
        if len(open_ones) > _OPEN_HELLOS:
            open_ones.popleft().close()
    print(f"flood: {sent / (time.monotonic() - began):.0f} client hellos a second from {source}", flush=True)


async def _asks(client: HttpsClient, sae: SaeEndpoint) -> bool:
    """Request the status once; return whether there was an answer."""
    try:
        return (await client.call("GET", f"/api/v1/keys/{sae.peer_sae_id}/status")).ok
    except NoResponse:
        return False


async def _ask_anew(client: partial[HttpsClient], sae: SaeEndpoint, connections: int) -> None:
    numbers = itertools.count()

    async def some() -> None:
        while next(numbers) < connections:
            one = client()
            await _asks(one, sae)
            await one.aclose()

    async with trio.open_nursery() as nursery:
        for _ in range(_AT_ONCE):
            nursery.start_soon(some)


async def _crowd(client: partial[HttpsClient], sae: SaeEndpoint, seconds: float) -> tuple[int, int]:
    """Let many clients with kept connections send two requests a second; return answers and errors."""
    told = [0, 0]

    async def one() -> None:
        kept = client()
        while True:
            told[0 if await _asks(kept, sae) else 1] += 1
            await trio.sleep(0.5)

    with trio.move_on_after(seconds):
        async with trio.open_nursery() as nursery:
            for _ in range(CLIENTS):
                nursery.start_soon(one)
    return told[0], told[1]


async def _honest(
    client: partial[HttpsClient], kept: HttpsClient, sae: SaeEndpoint, seconds: float
) -> tuple[int, int]:
    """Send requests, half of the time on ``kept`` and half on new connections; return both counts."""
    told = [0, 0]
    with trio.move_on_after(seconds / 2):
        while True:
            told[0] += await _asks(kept, sae)
    with trio.move_on_after(seconds / 2):
        while True:
            one = client()
            told[1] += await _asks(one, sae)
            await one.aclose()
    return told[0], told[1]


if __name__ == "__main__":
    main()
