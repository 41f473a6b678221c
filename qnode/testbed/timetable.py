"""When the outages of a testbed begin, and for how long they last."""

from typing import Final

from msgspec import Struct

from qnode.testbed.outcome import OutageOf

# Each at its share of the time. In an hour: minutes 12, 33 and 45, outside the burst of minute 25.
_SHARES: Final[dict[OutageOf, float]] = {"tunnel": 0.2, "database": 0.55, "collector": 0.75}
LONGEST_S: Final = 60.0
_LONGEST_SHARE: Final = 0.1


class Planned(Struct, frozen=True):
    """An outage to come: seconds after the start, and how long it lasts in seconds."""

    what: OutageOf
    begin_s: float
    lasting_s: float


def planned_outages(minutes: float) -> list[Planned]:
    """Return one outage of tunnel, database and collector each, over the time of a run."""
    lasting_s = min(LONGEST_S, _LONGEST_SHARE * 60.0 * minutes)
    return [Planned(what, share * 60.0 * minutes, lasting_s) for what, share in _SHARES.items()]
