"""What `qnode tags` says of a tag file: its figures, the periods in it, and what to watch out for."""

from dataclasses import dataclass
from typing import Any, Final

from msgspec import Struct

from qnode.config import ReceiverParameters
from qnode.tags.formats import TagFile, TagFileSummary
from qnode.tags.inspection import MOST_CHANNELS, ChannelFigures, Inspected, Inspection
from qnode.tags.periods import Period, find_periods
from qnode.units import PS_PER_S

MOST_SEARCHED: Final = 8  # channels whose period is sought, the busiest
_RECORDS_AT_ONCE: Final = 1 << 16  # arrays that stay in the processor's cache
_USUAL_ORDER_WINDOW_PS: Final = ReceiverParameters().order_window_ps
_LATE_START_S: Final = 600.0  # a counter that begins later was started before the measurement
_LONGEST_S: Final = 366 * 86_400.0
# The period that a channel keeps by itself has at least this vector strength, and explains intervals up to
# this multiple.
_OWN_STRENGTH: Final = 0.5
_OWN_PERIOD: Final = 1.05


class PeriodRow(Struct, frozen=True, kw_only=True):
    """A `qnode.tags.periods.ChannelClock`; ``over_s``: the length of the stretch that shows it."""

    channel: int
    period_ps: float
    period_sigma_ps: float
    frequency_hz: float
    vector_strength: float
    width_ps: float
    tags: int
    over_s: float


class GapRow(Struct, frozen=True, kw_only=True):
    """A silence of all channels, ``at_s`` after the first tag."""

    at_s: float
    seconds: float


class TagFileReport(Struct, frozen=True, kw_only=True):
    """The JSON object of `qnode tags --json`.

    Channels and markers are numbered as in the file (sync 0, input n is n). ``records``: whole records of
    any kind. ``lost``: tags that the device lost, as the file says. ``out_of_order``: tags earlier than the
    tag just before, by ``largest_step_back_ps`` at most; ``disorder_ps``: how far a tag is earlier than any
    tag before it. ``truncated``: whether the file is not sound to its end, ``truncated_reason``: why.
    ``first_ps``: the earliest time as in the file. ``dead_times_ps``: null where none shows beside the
    channel's own period. ``header``: facts by the names in the file.
    """

    format: str
    device: str
    unit_ps: float
    first_ps: int
    duration_s: float
    records: int
    channels: dict[str, int]
    rates_hz: dict[str, float]
    shortest_intervals_ps: dict[str, int | None]
    dead_times_ps: dict[str, float | None]
    markers: dict[str, int]
    wraps: int
    lost: int
    out_of_order: int
    largest_step_back_ps: int
    disorder_ps: int
    longest_gap_s: float
    gaps: list[GapRow]
    truncated: bool
    truncated_reason: str
    periods: list[PeriodRow]
    warnings: list[str]
    header: dict[str, Any]


@dataclass(frozen=True, eq=False)
class TagFileFindings:
    """The report, and the figures behind it."""

    report: TagFileReport
    inspected: Inspected
    periods: tuple[Period, ...]


def inspect_file(file: TagFile) -> TagFileFindings:
    """Read the file once, in constant memory, and say what is in it.

    Raises:
        ConfigError: it cannot be read.
    """
    inspection = Inspection()
    for block in file.blocks(_RECORDS_AT_ONCE):
        inspection.see(block.times_ps, block.channels)
    inspected = inspection.figures()
    busiest = sorted(inspected.channels, key=lambda one: -one.tags)[:MOST_SEARCHED]
    samples = {one.channel: one.sample_ps for one in sorted(busiest, key=lambda one: one.channel)}
    periods = find_periods(samples, file.unit_ps)
    return TagFileFindings(_report(file, inspected, periods), inspected, periods)


def _report(file: TagFile, inspected: Inspected, periods: tuple[Period, ...]) -> TagFileReport:
    summary = file.summary
    by_channel = {str(one.channel): one for one in inspected.channels}
    dead_times_ps = {name: _dead_time_ps(one, periods) for name, one in by_channel.items()}
    return TagFileReport(
        format=file.format,
        device=file.device,
        unit_ps=file.unit_ps,
        first_ps=inspected.first_ps,
        duration_s=inspected.duration_s,
        records=summary.records,
        channels={name: one.tags for name, one in by_channel.items()},
        rates_hz={name: one.rate_hz for name, one in by_channel.items()},
        shortest_intervals_ps={name: one.shortest_interval_ps for name, one in by_channel.items()},
        dead_times_ps=dead_times_ps,
        markers={str(number): count for number, count in sorted(summary.markers.items())},
        wraps=summary.wraps,
        lost=summary.lost,
        out_of_order=inspected.backward_steps,
        largest_step_back_ps=inspected.largest_step_back_ps,
        disorder_ps=inspected.disorder_ps,
        longest_gap_s=inspected.longest_gap_s,
        gaps=[GapRow(at_s=gap.at_s, seconds=gap.seconds) for gap in inspected.gaps],
        truncated=bool(summary.truncated),
        truncated_reason=summary.truncated,
        periods=[
            PeriodRow(
                channel=one.channel,
                period_ps=one.clock.period_ps,
                period_sigma_ps=one.period_sigma_ps,
                frequency_hz=PS_PER_S / one.clock.period_ps,
                vector_strength=one.clock.vector_strength,
                width_ps=one.width_ps,
                tags=one.clock.n_tags,
                over_s=one.seconds,
            )
            for period in periods
            for one in period.channels
        ],
        warnings=[
            *_warnings(summary, inspected),
            *(
                _glitches(one, dead_ps)
                for name, one in by_channel.items()
                if (dead_ps := dead_times_ps[name]) is not None and _has_glitches(one, dead_ps)
            ),
        ],
        header=dict(file.facts),
    )


def _warnings(summary: TagFileSummary, inspected: Inspected) -> list[str]:
    """Return what whoever uses the file should know."""
    found = list[str]()
    if summary.truncated:
        found.append(f"{summary.truncated}; what is sound is counted here, {summary.records} records")
    if summary.lost:
        found.append(f"the device lost {summary.lost} tags, as the file says")
    if not inspected.tags:
        return [*found, "there are no tags of detectors in this file"]
    if inspected.duration_s > _LONGEST_S:
        found.append(
            f"the times span {inspected.duration_s / 86_400:.0f} days: is the format right? "
            "Else name it with --format"
        )
    if inspected.disorder_ps > _USUAL_ORDER_WINDOW_PS:
        found.append(
            f"tags come up to {inspected.disorder_ps} ps late: set order_window_ps in [link.receiver] to "
            f"more than that (it is {_USUAL_ORDER_WINDOW_PS} by default), or the late ones are dropped"
        )
    if inspected.first_ps > _LATE_START_S * PS_PER_S:
        found.append(
            f"the times begin at {inspected.first_ps / PS_PER_S / 3600:.3g} h: the counter ran before the "
            "measurement, so its zero is not the measurement's"
        )
    if inspected.gaps:
        gap = inspected.gaps[0]
        found.append(
            f"no tags for {gap.seconds:.3g} s from {gap.at_s:.6g} s on: longer than chance explains"
            + (f", and {len(inspected.gaps) - 1} more such gaps" if len(inspected.gaps) > 1 else "")
        )
    if inspected.channels_left_out:
        found.append(
            f"more than {MOST_CHANNELS} channels: {inspected.channels_left_out} tags on the others are not "
            "counted; is the format right?"
        )
    return found


def _dead_time_ps(one: ChannelFigures, periods: tuple[Period, ...]) -> float | None:
    """Return the dead time of a channel; None where the light's or the clock's own period explains it."""
    own_ps = [
        seen.clock.period_ps
        for period in periods
        for seen in period.channels
        if seen.channel == one.channel and seen.clock.vector_strength > _OWN_STRENGTH
    ]
    dead_ps = one.dead_time_ps
    return None if dead_ps is None or dead_ps <= _OWN_PERIOD * max(own_ps, default=0.0) else dead_ps


def _has_glitches(one: ChannelFigures, dead_ps: float) -> bool:
    return one.shortest_interval_ps is not None and one.shortest_interval_ps < 0.5 * dead_ps


def _glitches(one: ChannelFigures, dead_ps: float) -> str:
    return (
        f"channel {one.channel}: some tags come {one.shortest_interval_ps} ps after another, although its "
        f"dead time is about {dead_ps:.3g} ps: glitches, or two detectors on one input"
    )
