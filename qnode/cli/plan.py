"""`qnode plan`: the key rate of a link, and the best parameters, from the analytic model."""

import sys
import textwrap
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias, cast

import click
import msgspec
from click.core import ParameterSource

from qnode.cli.exits import EXIT_USAGE
from qnode.cli.width import USUAL_COLUMNS, fitted
from qnode.errors import ConfigError
from qnode.loopback.prepare import LoopbackConfig, parse_loopback_config
from qnode.plan.answer import Answer, LossFigures, PointFigures, UncertaintyCost, answer
from qnode.plan.curve import AGAINST, Against, Fibre, Link, places
from qnode.plan.figure import check_figure, write_figure
from qnode.plan.forecast import USUAL_F_EC
from qnode.plan.optimum import ALICES, FREE, Free

_UNITS = {"loss": "dB", "distance": "km", "block": "sifted bits", "dead-time": "us"}
Columns: TypeAlias = tuple[tuple[str, int], ...]
_NAMES: Columns = (("fibre", 9), ("loss", 9), ("", 5))
_SETTINGS: Columns = (("mu1", 7), ("mu2", 7), ("p_1", 7), ("p_Z", 7), ("split", 7))
_RESULTS: Columns = (
    ("sifted/s", 9), ("QBER_Z", 8), ("e_vis", 8), ("phi_Z^u", 8), ("block", 8), ("secret/s", 9),
    ("keys/s", 7),
)  # fmt: skip


@click.command()
@click.option(
    "--config",
    "path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Link and simulation; default: the shipped defaults.",
)
@click.option(
    "--set",
    "changes",
    metavar="KEY=VALUE",
    multiple=True,
    help="Another value for a key of the file, as in link.block.sifted_bits=10000000.",
)
@click.option("--loss-db", type=click.FloatRange(0, 200), multiple=True, help="Attenuation; may be repeated.")
@click.option(
    "--fibre-km", type=click.FloatRange(0, 2000), multiple=True, help="Length of fibre; may be repeated."
)
@click.option(
    "--db-per-km",
    type=click.FloatRange(0, 10, min_open=True),
    default=0.2,
    show_default=True,
    help="Loss of the fibre.",
)
@click.option(
    "--excess-db",
    type=click.FloatRange(0, 200),
    default=0.0,
    show_default=True,
    help="Loss besides that of the length: splices, patches, a switch.",
)
@click.option(
    "--f-ec",
    type=click.FloatRange(1, 10),
    default=USUAL_F_EC,
    show_default=True,
    help="Bits that error correction discloses, over the Shannon limit.",
)
@click.option("--optimise", is_flag=True, help="Choose the parameters that give the most key.")
@click.option(
    "--choose",
    type=click.Choice(FREE),
    multiple=True,
    default=ALICES,
    show_default=True,
    help="A parameter that --optimise may choose; may be repeated.",
)
@click.option(
    "--against",
    type=click.Choice(AGAINST),
    help="Print a curve (at the first loss, unless loss is its axis).",
)
@click.option(
    "--points",
    type=click.IntRange(2, 500),
    default=16,
    show_default=True,
    help="Most points of the curve.",
)
@click.option(
    "--plot",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Draw the curve into FILE.png or FILE.svg (default: against loss).",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def plan(
    context: click.Context,
    path: Path | None,
    changes: tuple[str, ...],
    loss_db: tuple[float, ...],
    fibre_km: tuple[float, ...],
    db_per_km: float,
    excess_db: float,
    f_ec: float,
    optimise: bool,
    choose: tuple[str, ...],
    against: str | None,
    points: int,
    plot: Path | None,
    as_json: bool,
) -> int:
    """Compute the key rate of a planned link.

    The attenuation comes from the configuration unless --loss-db or --fibre-km gives another one.
    """
    try:
        if loss_db and fibre_km:
            raise ConfigError("--loss-db and --fibre-km: give one of them")
        if not optimise and context.get_parameter_source("choose") is ParameterSource.COMMANDLINE:
            raise ConfigError("--choose: has a meaning only with --optimise")
        if plot is not None:
            check_figure(plot)
            against = against or "loss"
        config = _load(path, changes)
        fibre = Fibre(db_per_km=db_per_km, excess_db=excess_db)
        link = Link(simulation=config.simulation, link=config.link, f_ec=f_ec, fibre=fibre)
        configured_db = link.simulation.settings_at(0.0).attenuation_db
        losses_db = loss_db or [fibre.loss_db(km) for km in fibre_km] or [configured_db]
        axis = cast(Against | None, against)
        found = answer(
            link,
            losses_db,
            cast(tuple[Free, ...], choose if optimise else ()),
            by_length=bool(fibre_km) or axis == "distance",
            against=axis,
            at=[] if axis is None else places(link.at("loss", losses_db[0]), axis, points),
        )
        if plot is not None:
            write_figure(plot, found)
    except (ConfigError, ValueError) as error:
        click.echo(f"qnode plan: {error}", err=True)
        return EXIT_USAGE
    click.echo(msgspec.json.encode(found) if as_json else report(found))
    if plot is not None:
        print(f"{plot}: written", file=sys.stderr)
    return 0


def _load(path: Path | None, changes: Sequence[str]) -> LoopbackConfig:
    """Read the file and apply the changes.

    Raises:
        ConfigError: file or change cannot be used.
    """
    where = "the shipped defaults" if path is None else str(path)
    raw: dict[str, Any] = {}
    if path is not None:
        try:
            raw = tomllib.loads(path.read_text())
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"{path}: not TOML: {error}") from None
    for change in changes:
        _apply(raw, change)
    return parse_loopback_config(raw, " and ".join([where, *(f"--set {change}" for change in changes)]))


def _apply(raw: dict[str, Any], change: str) -> None:
    """Set one dotted key of ``raw`` to a TOML value; a bare word counts as a string."""
    key, equals, text = change.partition("=")
    *tables, name = [part.strip() for part in key.split(".")]
    if not equals or not all((*tables, name)):
        raise ConfigError(f"--set {change}: expected KEY=VALUE, as in link.block.sifted_bits=10000000")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    for table in tables:
        raw = raw.setdefault(table, {})
        if not isinstance(raw, dict):
            raise ConfigError(f"--set {change}: {table} is no table")
    raw[name] = value


def report(found: Answer) -> str:
    """Return the answer for people, in 80 columns."""
    about = (
        f"{found.link}: {found.estimator} ({found.x_mode}), eps_sec {found.eps_sec:g}, f_EC {found.f_ec:g}, "
        "from the analytic model"
    )
    reach = "no key at any loss" if found.reach_db is None else f"key up to {found.reach_db:.1f} dB"
    lines = [*textwrap.wrap(about, USUAL_COLUMNS), "", _titles(_SETTINGS)]
    for figures in found.losses:
        for names, point in _points(figures):
            settings = (*point.mu, point.p[0], point.p_z, point.splitter)
            lines.append(_cells(names, [f"{value:.3f}" for value in settings], _SETTINGS))
    lines += ["", _titles(_RESULTS)]
    for figures in found.losses:
        lines += _result_lines(figures, wanted_best=bool(found.chosen))
    cost = f"As configured: {reach}. {_uncertainty(found.uncertainty)}"
    lines += ["", *textwrap.wrap(cost, USUAL_COLUMNS)]
    if found.curve is not None:
        unit, curve = _UNITS[found.curve.against], found.curve
        lines += ["", f"{unit:>12}{'secret/s':>14}{'best secret/s':>16}"]
        for x, now, best in zip(
            curve.x, curve.now_secret_bits_per_s, curve.best_secret_bits_per_s, strict=True
        ):
            lines.append(f"{x:>12.6g}{now:>14.1f}{'-' if best is None else f'{best:.1f}':>16}")
    return "\n".join(lines)


def _uncertainty(cost: UncertaintyCost) -> str:
    """Describe the cost of the uncertainty of the intensities, and the remedy."""
    signal, decoy = cost.mu_uncertainty
    share = "all of the key" if cost.share_of_key is None else f"{cost.share_of_key:.1%} of the key"
    within = f"within {signal:.2%} (signal) and {decoy:.2%} (decoy)"
    if cost.configured:
        return (
            f"The intensities are taken as known {within} of mu, and the key as the least that this allows: "
            f"it costs {share}. A better calibration gives it back (link.source.mu_uncertainty)."
        )
    return (
        "The intensities are taken as exact (link.source.mu_uncertainty is 0), which no calibration is: "
        f"known {within} they would cost {share}."
    )


def _points(figures: LossFigures) -> Iterator[tuple[list[str], PointFigures]]:
    """Yield the points at one loss with their names: the configured point, then the best one if it exists."""
    length = "" if figures.fibre_km is None else f"{figures.fibre_km:.1f} km"
    yield [length, f"{figures.loss_db:.2f} dB", "now"], figures.now
    if figures.best is not None:
        yield ["", "", "best"], figures.best


def _result_lines(figures: LossFigures, *, wanted_best: bool) -> list[str]:
    lines = []
    for names, point in _points(figures):
        results = [
            f"{point.sifted_bits_per_s:.0f}",
            *(_percent(value) for value in (point.qber_z, point.e_vis, point.phi_z_upper)),
            f"{point.block_s:.0f} s" if point.block_s >= 100.0 else f"{point.block_s:.3g} s",
            f"{point.secret_bits_per_s:.0f}",
            f"{point.keys_per_s:.2f}" if point.keys_per_s < 1000.0 else f"{point.keys_per_s:.0f}",
        ]
        lines.append(_cells(names, results, _RESULTS))
        if point is figures.now and point.no_key_because is not None:
            lines += fitted(f"{'':9}no key: {point.no_key_because}", USUAL_COLUMNS, 9)
    if figures.best is None and wanted_best:
        lines.append(f"{'':9}no choice of the parameters gives key")
    return lines


def _titles(figures: Columns) -> str:
    return _cells([title for title, _ in _NAMES], [title for title, _ in figures], figures)


def _cells(names: list[str], values: list[str], figures: Columns) -> str:
    widths = [width for _, width in (*_NAMES, *figures)]
    return "".join(cell.rjust(width) for cell, width in zip((*names, *values), widths, strict=True)).rstrip()


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100.0 * value:.2f} %"
