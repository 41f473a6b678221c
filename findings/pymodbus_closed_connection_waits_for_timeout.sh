#!/usr/bin/env bash
# pymodbus 3.16.1's asyncio client waits out its whole timeout when the meter has closed the connection.
#
# A TCP server takes a request and closes the connection, as a meter does that is full, restarts or refuses a
# client. The client notes the loss at once: `connected` becomes False, and `trace_connect` is called. But the
# request that waits is not told: `read_holding_registers` returns only after its timeout (3 s by default, and
# again for each retry), with "No response received", as if the meter were silent. With one poll in 100 ms and
# the default settings a connection that the meter closes costs 30 readings or more instead of one.
#
# Seen 2026-11-30: with retries=0 and timeout=2 the client knows of the loss within 0.1 s, and the request
# fails after 2.0 s.
#
# Needs python3 with venv, and the package index. Fails when the behaviour changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet pymodbus==3.16.1
cat > "$folder/look.py" <<'PYTHON'
import asyncio
import logging
import time

from pymodbus.client import AsyncModbusTcpClient
from pymodbus.exceptions import ModbusIOException

logging.getLogger("pymodbus.logging").setLevel(logging.CRITICAL)


async def close_at_once(reader, writer):
    await reader.read(12)
    writer.close()


async def main():
    server = await asyncio.start_server(close_at_once, "127.0.0.1", 0)
    known = []
    client = AsyncModbusTcpClient(
        "127.0.0.1",
        port=server.sockets[0].getsockname()[1],
        timeout=2,
        retries=0,
        reconnect_delay=0,
        trace_connect=lambda connected: connected or known.append(time.monotonic()),
    )
    await client.connect()
    begin = time.monotonic()
    try:
        await client.read_holding_registers(1, count=2)
    except ModbusIOException as error:
        words = str(error)
    failed_s = time.monotonic() - begin
    print(f"the client knew after {known[0] - begin:.2f} s; the request failed after {failed_s:.2f} s: {words}")
    server.close()
    return known[0] - begin < 0.5 and 1.9 < failed_s < 4 and "No response received" in words


raise SystemExit(not asyncio.run(main()))
PYTHON
"$folder/venv/bin/python" "$folder/look.py"
