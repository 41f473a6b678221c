"""The picture of `qnode tags`: rates over time, the histogram folded at a period, and intervals."""

from pathlib import Path
from typing import Any

import numpy as np

from qnode.plan.figure import save_figure
from qnode.tags.file_report import TagFileFindings
from qnode.tags.inspection import interval_edges_ps
from qnode.tags.periods import FOLD_BINS
from qnode.units import PS_PER_S

_PS_PER_NS = 1e3


def write_picture(path: Path, title: str, findings: TagFileFindings) -> None:
    """Draw the three panels.

    Raises:
        ConfigError: like `qnode.plan.figure.save_figure`.
    """

    def draw(figure: Any) -> None:
        rates, folded, intervals = figure.subplots(3)
        _rates(rates, findings)
        rates.set_title(title)
        _folded(folded, findings)
        _intervals(intervals, findings)

    save_figure(path, (7.0, 9.0), draw)


def _rates(axes: Any, findings: TagFileFindings) -> None:
    inspected = findings.inspected
    for one in inspected.channels:
        n = one.rate_bins.shape[0]
        widths_s = np.full(n, inspected.bin_s)
        widths_s[-1] = max(inspected.duration_s - (n - 1) * inspected.bin_s, 0.01 * inspected.bin_s)
        seconds = np.arange(n) * inspected.bin_s + widths_s / 2.0
        axes.plot(seconds, one.rate_bins / widths_s, linewidth=0.8, label=f"channel {one.channel}")
    axes.set_xlabel("time since the first tag (s)")
    axes.set_ylabel("tags/s")
    axes.set_ylim(bottom=0.0)
    axes.grid(visible=True, alpha=0.3)
    if inspected.channels:
        axes.legend(fontsize="small")


def _folded(axes: Any, findings: TagFileFindings) -> None:
    if not findings.periods:
        axes.text(0.5, 0.5, "no period found", ha="center", va="center", transform=axes.transAxes)
        axes.set_axis_off()
        return
    period = findings.periods[0]
    places_ns = (np.arange(FOLD_BINS) + 0.5) / FOLD_BINS * period.period_ps / _PS_PER_NS
    for one in period.channels:
        label = f"channel {one.channel}, {one.clock.n_tags:,} tags"
        axes.step(places_ns, one.folded, where="mid", linewidth=0.8, label=label)
    frequency_mhz = PS_PER_S / period.period_ps / 1e6
    axes.set_xlabel(f"time in the period (ns), {frequency_mhz:.6f} MHz; each channel centred by itself")
    axes.set_ylabel("tags")
    axes.set_yscale("symlog", linthresh=1.0)
    axes.set_ylim(bottom=0.0)
    axes.grid(visible=True, alpha=0.3)
    axes.legend(fontsize="small")


def _intervals(axes: Any, findings: TagFileFindings) -> None:
    edges_ns = interval_edges_ps() / _PS_PER_NS
    for number, one in enumerate(findings.inspected.channels):
        filled = np.flatnonzero(one.intervals)
        if not filled.size:
            continue
        first, end = int(filled[0]), int(filled[-1]) + 1
        edges, color = edges_ns[first : end + 1], f"C{number % 10}"
        density = one.intervals[first:end] / np.diff(edges)
        axes.stairs(density, edges, color=color, linewidth=0.8, label=f"channel {one.channel}")
        dead_ps = findings.report.dead_times_ps[str(one.channel)]
        if dead_ps is not None:
            axes.axvline(dead_ps / _PS_PER_NS, color=color, linestyle=":", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("interval to the next tag of the channel (ns); dotted: dead time")
    axes.set_ylabel("intervals/ns")
    axes.grid(visible=True, which="major", alpha=0.3)
    if axes.patches:
        axes.legend(fontsize="small")
