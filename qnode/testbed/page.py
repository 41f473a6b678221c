"""The page of a testbed: one HTML file that needs nothing else, from the recorded outcome."""

import datetime
import html
from collections.abc import Iterable, Sequence

from qnode.testbed.figures import DARK, LIGHT, Colours, Draw, draw_current, draw_keys, svg
from qnode.testbed.measure import PathFigures
from qnode.testbed.outcome import KeySide, Outcome

NOTHING = "–"
_WIDE_INCHES, _NARROW_INCHES = 8.6, 4.2

_CSS = """
:root { color-scheme: light dark; --font: system-ui, sans-serif; --paper: #ffffff; --card: #f5f7f9; @LIGHT@ }
@media (prefers-color-scheme: dark) { :root { --paper: #12181f; --card: #1b232c; @DARK@ } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 1.5rem 1rem 3rem; font: 1rem/1.5 var(--font);
  background: var(--paper); color: var(--ink); }
h1 { font-size: 1.5rem; margin: 0 0 .25rem; } h2 { font-size: 1.1rem; margin: 2.2rem 0 .5rem; }
p { margin: .4rem 0; } .faint, caption, th { color: var(--faint); }
.faint { font-size: .9rem; }
.verdict { border-left: .3rem solid var(--first); background: var(--card); padding: .6rem .9rem; }
.verdict.failed { border-color: var(--second); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(11.5rem, 1fr)); gap: .6rem; }
.verdict, .tiles { margin: 1rem 0; }
.tile { background: var(--card); padding: .6rem .8rem; } .tile b { display: block; font-size: 1.35rem;
  white-space: nowrap; }
.tile span { color: var(--faint); font-size: .85rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .35rem .8rem .35rem 0; border-bottom: 1px solid var(--grid); }
th { font-weight: normal; }
td.number, th.number { text-align: right; }
figure { margin: .5rem 0; } figure svg { display: block; width: 100%; height: auto; }
figure .narrow { display: none; }
@media (max-width: 40rem) { figure .wide { display: none; } figure .narrow { display: block; } }
pre { background: var(--card); padding: .7rem .9rem; white-space: pre-wrap; font-size: .85rem; }
"""


def page_of(outcome: Outcome) -> str:
    """Return the page; it fetches nothing from anywhere."""
    parts = [
        f"<h1>{html.escape(title_of(outcome))}</h1>",
        f'<p class="faint">{html.escape(_when(outcome))}</p>',
        _verdict(outcome.faults),
        _tiles(outcome),
    ]
    if outcome.keys is not None:
        keys = outcome.keys
        parts += [
            "<h2>Secret key rate and QBER</h2>",
            f"<p>{html.escape(_about_keys(keys))}</p>",
            _figure(
                lambda figure, colours: draw_keys(figure, colours, keys), 3.6, 4.0, "keys", _about_keys(keys)
            ),
        ]
    parts += [
        "<h2>The current of the plant</h2>",
        f"<p>{html.escape(_about_samples(outcome))}</p>",
        _figure(
            lambda figure, colours: draw_current(figure, colours, outcome),
            3.2,
            3.0,
            "current",
            _about_samples(outcome),
        ),
        "<h2>The tunnel</h2>",
        f"<p>{html.escape(_about_changes(outcome))}</p>",
        _paths(outcome),
        *_outages(outcome),
        "<h2>What is simulated, what is real</h2>",
        "<p>Light, fibre and detectors are simulated, and so is the load of the plant: these keys protect "
        "nothing. The daemons, the classical channel, key delivery, the agents, the tunnel, Modbus, the "
        "spool and the database are real processes in three network namespaces of one machine.</p>",
        "<h2>How it was made</h2>",
        f"<pre>{html.escape(outcome.command)}</pre>",
        _table(("part", "version"), [(name, text) for name, text in outcome.versions.items()], numbers=False),
    ]
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{html.escape(title_of(outcome))}</title>",
            f"<style>{_css()}</style></head><body>",
            *parts,
            "</body></html>\n",
        ]
    )


def title_of(outcome: Outcome) -> str:
    """Return the title of page and picture."""
    keys = "" if outcome.keys is None else f", {outcome.keys.hours:.0f} simulated hours of keys"
    return f"Testbed: {outcome.minutes:g} min of samples through a tunnel with QKD keys{keys}"


def summary(outcome: Outcome) -> str:
    """Return the figures in a few lines, for a terminal."""
    lines = [_about_samples(outcome), _about_changes(outcome)]
    if outcome.keys is not None:
        lines.insert(0, _about_keys(outcome.keys))
    for name, path in (("without the tunnel", outcome.tunnel.direct), ("through it", outcome.tunnel.through)):
        rtt, _, throughput, _ = _path_cells(path)
        lines.append(f"The path {name}: round trip {rtt} ms, {throughput} Mbit/s.")
    lines += [
        f"Outage of the {what} at minute {minute}, {lasted} s: all as before {back} s after its end."
        for what, minute, lasted, back, _ in _outage_rows(outcome)
    ]
    return "\n".join([*lines, *(outcome.faults or ["All that was asked for was reached."])])


def _when(outcome: Outcome) -> str:
    began = datetime.datetime.fromtimestamp(outcome.began_at_s, datetime.UTC)
    return f"Began {began:%Y-%m-%d %H:%M} UTC. The central office is Alice's site, the plant is Bob's."


def _verdict(faults: Sequence[str]) -> str:
    if not faults:
        return '<p class="verdict">All that was asked for was reached.</p>'
    items = "".join(f"<li>{html.escape(fault)}</li>" for fault in faults)
    return f'<div class="verdict failed">Not all that was asked for was reached:<ul>{items}</ul></div>'


def _tiles(outcome: Outcome) -> str:
    sensors, tunnel = outcome.sensors, outcome.tunnel
    tiles = [
        (f"{sensors.read:,}", "samples read"),
        (f"{sensors.stored:,}", "samples stored"),
        (f"{sensors.lost:,}", "samples lost"),
        (f"{tunnel.changes:,}", f"key changes, one each {tunnel.period_s:g} s"),
        (f"{tunnel.keys_used:,}", "keys used by the tunnel"),
        (f"{tunnel.pings_lost:,} of {tunnel.pings_sent:,}", "pings lost outside line outages"),
    ]
    if outcome.keys is not None:
        tiles += [
            (f"{outcome.keys.secret_bits_per_s / 1e3:.2f} kbit/s", "secret key rate"),
            (f"{outcome.keys.keys:,}", "keys compared at both ends"),
        ]
    cells = (
        f'<div class="tile"><b>{html.escape(value)}</b><span>{what}</span></div>' for value, what in tiles
    )
    return f'<div class="tiles">{"".join(cells)}</div>'


def _about_keys(keys: KeySide) -> str:
    discarded = sum(keys.discarded.values())
    return (
        f"{keys.hours:.1f} simulated hours in {keys.wall_s / 60.0:.1f} minutes: mean "
        f"{keys.secret_bits_per_s / 1e3:.2f} kbit/s of secret key, before the share for authentication, "
        f"QBER {_percent(keys.qber_z)}, {keys.accepted:,} blocks accepted, {discarded:,} discarded. "
        f"{keys.keys:,} keys of 256 bits were compared from both ends, {keys.different} were different. "
        f"A dot is a block, also a discarded one; the line is the mean of an hour."
    )


def _about_samples(outcome: Outcome) -> str:
    sensors = outcome.sensors
    missed = ", ".join(f"{polls:,} {reason.replace('_', ' ')}" for reason, polls in sensors.missed.items())
    return (
        f"{sensors.read:,} samples read, from just before the {outcome.minutes:g} minutes, in which "
        f"{sensors.due:,} were due, to just after them. {sensors.stored:,} are in the database, "
        f"{sensors.lost:,} are lost. Polls without a sample: {missed or 'none'}."
    )


def _about_changes(outcome: Outcome) -> str:
    tunnel = outcome.tunnel
    differ = ""
    if tunnel.differ_longest_s is not None:
        longest_ms = 1e3 * tunnel.differ_longest_s
        differ = f" The two ends may have used different keys for at most {longest_ms:.0f} ms at a change."
    return (
        f"{tunnel.kind}: {tunnel.changes} changes of key, {tunnel.failed_changes} failed, {tunnel.keys_used} "
        f"keys used, period {tunnel.period_s:g} s.{differ} Of {tunnel.pings_sent:,} pings, ten a second, "
        f"{tunnel.pings_lost} were lost outside the outages of the line, {tunnel.pings_lost_in_cut} in them."
    )


def _paths(outcome: Outcome) -> str:
    titles = ("path", "round trip, median (ms)", "99 % (ms)", "throughput (Mbit/s)", "pings lost")
    rows = [
        ("without the tunnel", *_path_cells(outcome.tunnel.direct)),
        ("through the tunnel", *_path_cells(outcome.tunnel.through)),
    ]
    line = outcome.line
    return _table(titles, rows) + (
        f'<p class="faint">The line passed {line.passed:,} packets ({line.passed_bytes / 1e6:,.0f} MB) and '
        f"lost {line.lost_in_cut:,} while it was cut, {line.lost_by_chance:,} by chance, "
        f"{line.lost_by_queue:,} in full queues.</p>"
    )


def _path_cells(path: PathFigures) -> tuple[str, str, str, str]:
    throughput = path.throughput_bits_per_s
    return (
        _number(path.rtt_median_ms, 2),
        _number(path.rtt_p99_ms, 2),
        _number(None if throughput is None else throughput / 1e6, 0),
        f"{path.pings_lost} of {path.pings_sent}",
    )


def _outages(outcome: Outcome) -> Iterable[str]:
    if outcome.outages:
        yield "<h2>Outages</h2>"
        titles = ("what was away", "from minute", "for (s)", "all as before after (s)", "samples waiting")
        yield _table(titles, _outage_rows(outcome))


def _outage_rows(outcome: Outcome) -> list[tuple[str, str, str, str, str]]:
    return [
        (
            one.what,
            f"{one.minute:.1f}",
            f"{one.lasted_s:.0f}",
            _number(one.recovered_s, 1),
            f"{one.waiting:,}",
        )
        for one in outcome.outages
    ]


def _figure(draw: Draw, wide_height: float, narrow_height: float, name: str, words: str) -> str:
    drawings = [
        f'<div class="{kind}">{svg(draw, (width, height), f"{name}-{kind}")}</div>'
        for kind, width, height in (
            ("wide", _WIDE_INCHES, wide_height),
            ("narrow", _NARROW_INCHES, narrow_height),
        )
    ]
    return f'<figure role="img" aria-label="{html.escape(words, quote=True)}">{"".join(drawings)}</figure>'


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: bool = True) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        kind = ' class="number"' if numbers else ""
        first, *rest = (html.escape(cell) for cell in cells)
        return f"<tr><{tag}>{first}</{tag}>{''.join(f'<{tag}{kind}>{cell}</{tag}>' for cell in rest)}</tr>"

    body = "".join(row(cells, "td") for cells in rows)
    return f'<div class="scroll"><table><thead>{row(titles, "th")}</thead><tbody>{body}</tbody></table></div>'


def _css() -> str:
    def variables(colours: Colours) -> str:
        return " ".join(f"--{name}: {value};" for name, value in colours._asdict().items())

    return _CSS.replace("@LIGHT@", variables(LIGHT)).replace("@DARK@", variables(DARK))


def _number(value: float | None, digits: int) -> str:
    return NOTHING if value is None else f"{value:,.{digits}f}"


def _percent(fraction: float | None) -> str:
    return NOTHING if fraction is None else f"{100 * fraction:.2f} %"
