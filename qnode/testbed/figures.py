"""The two figures of the trial: secret key rate and QBER over days, the current of the plant over an hour.

In SVG, colours are variables of the page (`--ink` and so on), so that one drawing serves light and dark.
"""

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

from qnode.plan.figure import SAME_BYTES, check_figure, save_figure
from qnode.testbed.outcome import KeySide, Outcome, hourly


class Colours(NamedTuple):
    """The colours of one drawing."""

    ink: str
    faint: str
    grid: str
    first: str
    second: str
    outage: str


LIGHT: Final = Colours("#1d2733", "#5b6775", "#dfe3e8", "#1f5fbf", "#b4460f", "#f0b429")
DARK: Final = Colours("#e6eaf0", "#9aa6b4", "#2f3945", "#7db0ff", "#ff9a5c", "#b98a1d")
# Stand-ins that occur nowhere else; in SVG each becomes a variable of the page.
_STAND_INS: Final = Colours("#010203", "#010204", "#010205", "#010206", "#010207", "#010208")
_STYLE: Final = {"font.family": "DejaVu Sans", "font.size": 9.0, "svg.fonttype": "none"}
_SVG_FONT: Final = re.compile(r"font: ([\d.]+px) 'DejaVu Sans'[^;\"]*")

Draw = Callable[[Any, Colours], None]


def check_figures(folder: Path) -> None:
    """Refuse figures that cannot be written, before anything runs. Raises ConfigError."""
    check_figure(folder / "testbed.png")


def svg(draw: Draw, size_inches: tuple[float, float], name: str) -> str:
    """Return a drawing as an element ``svg``, with identifiers that begin with ``name``."""
    import matplotlib

    style: Any = {**SAME_BYTES, **_STYLE}
    with matplotlib.rc_context(style):
        from matplotlib.figure import Figure

        figure = Figure(figsize=size_inches, layout="constrained")
        figure.patch.set_alpha(0.0)
        draw(figure, _STAND_INS)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = _SVG_FONT.sub(r"font: \1 var(--font)", text)
    for field, stand_in in zip(Colours._fields, _STAND_INS, strict=True):
        text = text.replace(stand_in, f"var(--{field})")
    return text.strip()


def write_png(path: Path, outcome: Outcome, title: str) -> None:
    """Write both figures as one picture.

    Raises:
        ConfigError: it cannot be written, or matplotlib is not installed.
    """
    parts: list[tuple[float, Draw]] = [(3.2, lambda figure, colours: draw_current(figure, colours, outcome))]
    if outcome.keys is not None:
        keys = outcome.keys
        parts.insert(0, (3.6, lambda figure, colours: draw_keys(figure, colours, keys)))

    def draw(figure: Any) -> None:
        figure.suptitle(title, fontsize=10.0, color=LIGHT.ink)
        inner = figure.subfigures(len(parts), 1, height_ratios=[height for height, _ in parts], squeeze=False)
        for (_, part), place in zip(parts, inner[:, 0], strict=True):
            part(place, LIGHT)

    save_figure(path, (9.0, 0.6 + sum(height for height, _ in parts)), draw)


def draw_keys(figure: Any, colours: Colours, keys: KeySide) -> None:
    """Draw the secret key rate and QBER of each block, and their hourly means, over the hours."""
    rate, errors = figure.subplots(2, 1, sharex=True)
    means = hourly(keys.blocks) if keys.hours >= 3.0 else []
    for axes, name, scale, colour in (
        (rate, "secret_bits_per_s", 1e-3, colours.first),
        (errors, "qber_z", 100.0, colours.second),
    ):
        for points, style in (
            (keys.blocks, {"linestyle": "none", "marker": ".", "markersize": 2.0, "alpha": 0.35}),
            (means, {"linewidth": 1.6}),
        ):
            known = [(one.hour, value * scale) for one in points if (value := getattr(one, name)) is not None]
            if known:
                axes.plot(*zip(*known, strict=True), color=colour, **style)
        axes.set_ylim(0.0, 1.08 * axes.get_ylim()[1])
        _plain(axes, colours)
    rate.set_title("Secret key rate (kbit/s)", loc="left", fontsize=9.0, color=colours.first)
    errors.set_title("QBER, key basis (%)", loc="left", fontsize=9.0, color=colours.second)
    errors.set_xlim(0.0, max(keys.hours, 1e-3))
    errors.set_xlabel("simulated time (h)", color=colours.faint)


def draw_current(figure: Any, colours: Colours, outcome: Outcome) -> None:
    """Draw the current of the first phase, as the database has it, over the minutes, with the outages."""
    axes = figure.subplots()
    bins = outcome.sensors.currents
    for outage in outcome.outages:
        end = outage.minute + outage.lasted_s / 60.0
        axes.axvspan(outage.minute, end, color=colours.outage, alpha=0.35, linewidth=0.0)
        axes.annotate(
            f"{outage.what} away",
            (outage.minute, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(-2.0, -3.0),
            textcoords="offset points",
            ha="right",
            va="top",
            rotation=90.0,
            fontsize=7.5,
            color=colours.faint,
        )
    minutes = [one.minute for one in bins]
    axes.fill_between(
        minutes,
        [one.least_a for one in bins],
        [one.most_a for one in bins],
        color=colours.first,
        alpha=0.4,
        linewidth=0.8,  # a peak of one bin shows
    )
    axes.plot(minutes, [one.mean_a for one in bins], color=colours.first, linewidth=1.3)
    axes.set_xlim(0.0, outcome.minutes)
    axes.set_ylim(0.0, 1.08 * axes.get_ylim()[1])
    axes.set_title(
        "Current of phase 1 (A), as stored: mean, least and most",
        loc="left",
        fontsize=9.0,
        color=colours.first,
    )
    axes.set_xlabel("time (min)", color=colours.faint)
    _plain(axes, colours)


def _plain(axes: Any, colours: Colours) -> None:
    axes.set_facecolor("none")
    axes.grid(visible=True, color=colours.grid, linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(colours.grid)
    axes.tick_params(colors=colours.faint, length=0.0)
