"""The account of a sensor chain: what was read, what the database gives back, and what lies between."""

import sys
from pathlib import Path

import msgspec
import trio
from msgspec import Struct

from qnode.spool import acknowledged, identity
from qnode.testbed.sensors.collector import Journal
from qnode.testbed.sensors.influxdb import QUESTION_S, READINGS, Extent, SensorDatabase
from qnode.testbed.sensors.part import run_trio, settings_of_command
from qnode.testbed.sensors.spool import last_record


class AccountSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where the parts of the chain keep what they know.

    ``bins``: in how many equal parts the current between ``begin_ms`` and ``end_ms`` (Unix time in
    milliseconds) is read back; 0: it is not.
    """

    spool: Path
    journal: Path
    url: str
    database: str
    begin_ms: int = 0
    end_ms: int = 0
    bins: int = 0


class SensorAccount(Struct, frozen=True, kw_only=True):
    """The account of one spool.

    ``read``: readings that the reader spooled. ``missed``: polls without a reading, by reason, as the
    database has them. ``records``: readings and gaps that were numbered. ``waiting``: records that are not
    acknowledged. ``set_aside``: readings that the database refused for good. ``absent``: records that the
    spool dropped. ``lost``: readings that are neither stored nor set aside, and do not wait. ``currents``:
    of phase L1 in ampere.
    """

    read: int
    missed_polls: int
    missed: dict[str, int]
    records: int
    waiting: int
    stored: int
    stored_gaps: int
    set_aside: int
    absent: int
    lost: int
    currents: list[Extent]


async def account(settings: AccountSettings) -> SensorAccount:
    """Return the account, as it is now.

    Raises:
        DatabaseAway: the database does not answer.
    """
    spool, last = identity(settings.spool), last_record(settings.spool)
    waiting = (last.number if last else 0) - acknowledged(settings.spool)
    database = SensorDatabase(settings.url, settings.database, patience_s=QUESTION_S)
    try:
        stored = await database.stored(spool)
        currents = []
        if settings.bins:
            window = settings.begin_ms, settings.end_ms, settings.bins
            currents = await database.extents(spool, "current_l1_a", *window)
    finally:
        with trio.CancelScope(shield=True):
            await database.aclose()
    journal = Journal(settings.journal)
    aside = [entry for (name, _), entry in journal.set_aside.items() if name == spool]
    refused = sum(entry.line.startswith(f"{READINGS},") for entry in aside)
    read = last.readings if last else 0
    return SensorAccount(
        read=read,
        missed_polls=last.missed if last else 0,
        missed=stored.missed,
        records=last.number if last else 0,
        waiting=waiting,
        stored=stored.readings,
        stored_gaps=stored.gaps,
        set_aside=refused,
        absent=journal.counts(spool)[1],
        lost=max(0, read - stored.readings - refused - waiting),
        currents=currents,
    )


def main() -> None:
    """Print the account as JSON; the settings file is the one argument."""
    settings = settings_of_command(AccountSettings)

    async def tell() -> None:
        sys.stdout.write(msgspec.json.encode(await account(settings)).decode() + "\n")

    run_trio(tell)


if __name__ == "__main__":
    main()
