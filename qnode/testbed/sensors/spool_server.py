"""The spool server at the plant: hands the records to the collector, and remembers what it has stored.

It sends a record only when it is on the disk, so the collector never has a record that a loss of power takes
back. Whoever can connect may take and acknowledge: it listens inside the tunnel only.
"""

from pathlib import Path

import trio
from msgspec import Struct

from qnode.addresses import host_and_port
from qnode.config.reading import Impossible
from qnode.spool import acknowledged, identity, set_acknowledged
from qnode.testbed.sensors.part import address_faults, run_trio, say, settings_of_command
from qnode.testbed.sensors.record import encode
from qnode.testbed.sensors.spool import read_after
from qnode.testbed.sensors.spool_line import MOST_RECORDS, Batch, LineBroken, Take, receive, send

LOOK_PERIOD_S = 0.2
WAIT_S = 1.0
# A collector that says nothing for so long is gone, or the line is: it connects anew.
IDLE_S = 60.0
MOST_CONNECTIONS = 4


class SpoolServerSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The folder of the spool, and HOST:PORT to listen on."""

    spool: Path
    listen: str

    def __post_init__(self) -> None:
        Impossible.check(address_faults(listen=self.listen))


async def serve(folder: Path, stream: trio.SocketStream, slots: trio.CapacityLimiter) -> None:
    """Serve one collector until it goes."""
    try:
        slots.acquire_nowait()
    except trio.WouldBlock:
        await stream.aclose()
        return
    try:
        async with stream:
            while True:
                with trio.fail_after(IDLE_S):
                    take = await receive(stream, Take)
                batch = await _answer(folder, take)
                with trio.fail_after(IDLE_S):
                    await send(stream, batch)
    except (LineBroken, trio.TooSlowError) as error:
        say(f"spool.collector_gone: {error or 'silent'}")
    finally:
        slots.release()


async def _answer(folder: Path, take: Take) -> Batch:
    known = acknowledged(folder)
    # Another collector may have acknowledged more meanwhile; what is acknowledged may be deleted already.
    after = known if take.after is None else max(take.after, known)
    if take.after is not None and take.spool != identity(folder):
        raise LineBroken(f"asked for the spool {take.spool!r}, which is not here any more")
    if after > known:
        if not read_after(folder, after - 1, 1):
            raise LineBroken(f"acknowledged number {after}, which this spool has not given out")
        await trio.to_thread.run_sync(set_acknowledged, folder, after)
    limit = min(max(take.limit, 1), MOST_RECORDS)
    with trio.move_on_after(WAIT_S):
        while True:
            records = await trio.to_thread.run_sync(read_after, folder, after, limit)
            if records:
                return Batch(identity(folder), after, tuple(encode(record) for record in records))
            await trio.sleep(LOOK_PERIOD_S)
    return Batch(identity(folder), after, ())


async def _main(settings: SpoolServerSettings) -> None:
    host, port = host_and_port(settings.listen, "listen")
    slots = trio.CapacityLimiter(MOST_CONNECTIONS)

    async def handle(stream: trio.SocketStream) -> None:
        await serve(settings.spool, stream, slots)

    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(port, host=host)
        say("spool.serving")
        await trio.serve_listeners(handle, listeners, handler_nursery=nursery)


def main() -> None:
    """Run the spool server whose settings file is the one argument."""
    settings = settings_of_command(SpoolServerSettings)
    run_trio(lambda: _main(settings))


if __name__ == "__main__":
    main()
