"""What every process of the sensor chain has: a settings file, a status file, an end on SIGTERM."""

import asyncio
import logging
import signal
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import trio
from msgspec import Struct

from qnode.addresses import host_and_port
from qnode.config.reading import load
from qnode.errors import ConfigError, QnodeError, first_of

EXIT_USAGE = 64
S = TypeVar("S", bound=Struct)


def settings_of_command(kind: type[S]) -> S:
    """Read the one argument of the command line, a TOML file, as ``kind``; exit with 64 if it is wrong."""
    if len(sys.argv) != 2:
        print(f"usage: python -m {sys.argv[0]} SETTINGS.toml", file=sys.stderr)
        sys.exit(EXIT_USAGE)
    try:
        return load(Path(sys.argv[1]), kind)
    except ConfigError as error:
        print(error, file=sys.stderr)
        sys.exit(EXIT_USAGE)


def address_faults(**addresses: str) -> list[str]:
    """Return the faults of addresses that are not HOST:PORT, by the names of their keys."""
    faults = []
    for key, address in addresses.items():
        try:
            host_and_port(address, key)
        except ConfigError as error:
            faults.append(str(error))
    return faults


def quiet(*libraries: str) -> None:
    """Keep ``libraries`` from logging: what matters of a fault is in the error that they raise."""
    for name in libraries:
        logging.getLogger(name).setLevel(logging.CRITICAL)


def say(message: str) -> None:
    """Write one line to the log."""
    print(message, file=sys.stderr, flush=True)


def run_trio(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run ``main`` with trio until it ends or a signal cancels it; a known error is one line and exit 1."""

    async def until_signal() -> None:
        async with trio.open_nursery() as nursery:

            async def work() -> None:
                await main()
                nursery.cancel_scope.cancel()

            nursery.start_soon(work)
            with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
                async for _ in signals:
                    nursery.cancel_scope.cancel()

    _run(lambda: trio.run(until_signal))


def run_asyncio(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run ``main`` with asyncio, like `run_trio`: for libraries that need it."""

    async def until_signal() -> None:
        task = asyncio.ensure_future(main())
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
        try:
            await task
        except asyncio.CancelledError:
            return

    _run(lambda: asyncio.run(until_signal()))


def _run(run: Callable[[], None]) -> None:
    try:
        run()
    except* (QnodeError, OSError) as group:
        say(f"{first_of(group)}")
        sys.exit(1)


def write_status(path: Path, status: Struct) -> None:
    """Replace the status file, so that nobody reads half of one."""
    new = path.with_suffix(".new")
    new.write_bytes(msgspec.json.encode(status) + b"\n")
    new.replace(path)


def read_status(path: Path, kind: type[S]) -> S | None:
    """Return the status in a file; None if there is none."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (FileNotFoundError, msgspec.MsgspecError):
        return None
