"""The tables of a site's file for its monitors of devices, and for its physical source of randomness."""

from collections.abc import Iterator
from typing import Annotated, Final, Literal

from qnode.config.description import Described, Limits, Rule, limit_faults
from qnode.config.link import Table

ReadingMonitorName = Literal[
    "detector_temperature",
    "detector_bias",
    "detector_dead_time",
    "output_power",
    "backward_light",
    "input_light",
    "interlock",
]

_UNIT: Final = "of the reading"
_ANY: Final = Limits(-1e9, 1e9)
_NOT_NEGATIVE: Final = Limits(0.0, 1e9)
_CHARGE: Final = Limits(0.0, 1e-3, exclusive=True, text="above 0, below 1 mC")
_POSITIVE: Final = Rule("a number above 0", lambda value: value > 0.0)


class ReadingMonitor(Table, frozen=True):
    """One monitored reading. You choose NAME.

    The limits of an alarm lie beyond `least` and `most` by a multiple of `noise` that follows from
    `monitors.false_alarms_per_year`. So drift within the interval never raises an alarm.
    """

    monitor: Annotated[
        ReadingMonitorName, Described("what the reading shows ([monitors](monitors.md) has the attacks)")
    ]
    device: Annotated[str, Described("the device, a NAME of `[devices]`")]
    reading: Annotated[
        str, Described("the figure of the device as `qnodectl devices NAME` shows it, for example `power_w`")
    ]
    least: Annotated[float, Described("the least value of honest operation", _UNIT, limits=_ANY)]
    most: Annotated[float, Described("the greatest value of honest operation", _UNIT, limits=_ANY)]
    noise: Annotated[float, Described("standard deviation of one reading", _UNIT, limits=_NOT_NEGATIVE)] = 0.0


class PhotocurrentMonitor(Table, frozen=True):
    """The photocurrent of one detector at Bob, compared with its clicks. You choose NAME."""

    device: Annotated[str, Described("the device, a NAME of `[devices]`")]
    channel: Annotated[
        Literal[0, 1],
        Described("tag channel of the detector: 0 in the Z arm, 1 in the X arm", "channel"),
    ]
    reading: Annotated[
        str, Described("the figure of the device, for example `z_detector_photocurrent_a`; its unit is A")
    ]
    dark_a: Annotated[float, Described("current without a click", "A", limits=_NOT_NEGATIVE)]
    charge_per_click_c: Annotated[float, Described("charge of one avalanche", "C", limits=_CHARGE)]
    noise_a: Annotated[float, Described("standard deviation of one reading", "A", limits=_NOT_NEGATIVE)] = 0.0
    tolerance: Annotated[
        float,
        Described(
            "greatest relative error of dark current and charge: calibration, ageing, and a rate that "
            "changes between two readings",
            "fraction",
            limits=Limits(0.0, 0.9),
        ),
    ] = 0.2


class MonitorsSection(Table, frozen=True):
    """Monitors over the readings of devices ([monitors](monitors.md)). Without tables below, none is read."""

    longest_gap_s: Annotated[
        float,
        Described(
            "a block is discarded if a monitored reading was missing for longer than this",
            limits=Limits(5.5, 3600.0),
        ),
    ] = 15.0
    false_alarms_per_year: Annotated[
        float,
        Described(
            "false alarms of all monitored readings together, for honest values at the edge of their "
            "intervals",
            "alarms a year",
            limits=Limits(1e-6, 1e3),
        ),
    ] = 1.0
    readings: Annotated[dict[str, ReadingMonitor], Described("")] = {}  # noqa: RUF012
    photocurrents: Annotated[dict[str, PhotocurrentMonitor], Described("")] = {}  # noqa: RUF012

    def tables(self) -> dict[str, ReadingMonitor | PhotocurrentMonitor]:
        """Return every monitored reading by the name of its table below ``[monitors]``."""
        readings = {f"readings.{name}": one for name, one in self.readings.items()}
        return {**readings, **{f"photocurrents.{name}": one for name, one in self.photocurrents.items()}}


class RandomnessSection(Table, frozen=True):
    """The physical source of the seeds that this site draws, tested by SP 800-90B ([monitors](monitors.md)).

    Without this table, all random bits come from the operating system.
    """

    device: Annotated[str, Described("the random number generator, a NAME of `[devices]`")]
    min_entropy_bits: Annotated[
        float,
        Described("the min-entropy of one sample that the maker states", "bits a sample", limits=_POSITIVE),
    ]
    sample_bits: Annotated[
        Literal[1, 8], Described("size of one sample: the health tests compare whole samples", "bits")
    ] = 8
    alpha_exponent: Annotated[
        int,
        Described(
            "probability of a false alarm of each health test, 2 to the power of minus this number. "
            "SP 800-90B recommends 20 to 40",
            "exponent",
            limits=Limits(20, 60),
        ),
    ] = 40
    fallback_to_system: Annotated[
        bool,
        Described(
            "continue with the operating system's generator alone after a failed health test, or without the "
            "device. Otherwise blocks are discarded"
        ),
    ] = False


def monitor_faults(
    monitors: MonitorsSection, randomness: RandomnessSection | None, devices: frozenset[str]
) -> Iterator[str]:
    """Yield the impossible values of the two tables; ``devices``: the names of all devices."""
    known = f"known: {', '.join(sorted(devices)) or 'none'}"
    yield from limit_faults(monitors, "monitors")
    for name, one in monitors.tables().items():
        yield from limit_faults(one, f"monitors.{name}")
        if one.device not in devices:
            yield f"monitors.{name}.device: no device {one.device} ({known})"
        if isinstance(one, ReadingMonitor) and one.least > one.most:
            yield f"monitors.{name}.least: expected at most {one.most:g} (most), got {one.least:g}"
    if randomness is None:
        return
    yield from limit_faults(randomness, "randomness")
    if randomness.device not in devices:
        yield f"randomness.device: no device {randomness.device} ({known})"
    if randomness.min_entropy_bits > randomness.sample_bits:
        yield (
            f"randomness.min_entropy_bits: expected at most {randomness.sample_bits} (sample_bits), "
            f"got {randomness.min_entropy_bits:g}"
        )
